#!/bin/bash
# Everything that has a branch for a GPU, on one, in at most 8 minutes: bash benchmarks/gpu.sh OUT
# Needs our packages in the python of $PYTHON (default: python), and natten where its kernels are to be tried.
# OUT/gpu.csv has the comparisons with the CPU, OUT/steps.txt how every step ended. DEVICE=cpu QUICK=--quick tries this
# script itself.
set -u
OUT=${1:?the folder for the results}
PYTHON=${PYTHON:-python} DEVICE=${DEVICE:-cuda} QUICK=${QUICK:-}
HERE=$(cd "$(dirname "$0")" && pwd)
END=$((SECONDS + ${SECONDS_IN_ALL:-470}))
FAILED=0
mkdir -p "$OUT"
: > "$OUT/steps.txt"

step() { # name, seconds at most, command
    local name=$1 most=$2 left=$((END - SECONDS)) begun=$SECONDS status
    shift 2
    if ((left < 5)); then
        echo "not begun, no time left: $name" | tee -a "$OUT/steps.txt"
        FAILED=1
        return
    fi
    echo "== $name"
    timeout $((most < left ? most : left)) "$@" 2>&1 | tee "$OUT/${name// /_}.log"
    status=${PIPESTATUS[0]}
    if ((status != 0 && status != 3)); then FAILED=1; fi # 3: results in doubt
    echo "status $status, $((SECONDS - begun)) s: $name" | tee -a "$OUT/steps.txt"
}

script() { # name, script, further flags
    step "$1" 60 "$PYTHON" "$HERE/../examples/$2.py" --device "$DEVICE" --overwrite --out "$OUT/${1// /_}" "${@:3}"
}

if [ "$DEVICE" = cuda ]; then
    step "the GPU" 20 nvidia-smi
fi
step "device against CPU" 200 "$PYTHON" "$HERE/gpu.py" --device "$DEVICE" $QUICK --out "$OUT/gpu.csv"
script "denoise float32" denoise --precision fp32
script "denoise bfloat16" denoise --precision bf16
script "missing wedge" missing_wedge
script "anisotropic with samples" anisotropic --samples 2
script "samples of the prior" sample_prior --number 1 --steps 20
script "poses of class averages" abinitio \
    "$HERE/data/class_averages/1AKJ-snr0.5/classes.mrcs.gz" --mask-diameter 104 --tries 2
for part in "maps 0 3" "kept-back 12 12"; do
    "$PYTHON" "$HERE/../tests/helix_bundles.py" "$OUT/${part%% *}" ${part#* }
done
{ cat "$HERE/../examples/recipes/smoke.toml" && echo 'precision = "bf16"'; } > "$OUT/smoke.toml"
training=("$HERE/../examples/train_prior.py" "$OUT/smoke.toml" --maps "$OUT/maps" --validation "$OUT/kept-back")
step "training" 90 "$PYTHON" "${training[@]}" --device "$DEVICE" --out "$OUT/training"
if [ "$DEVICE" = cuda ] && [ "$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')" -gt 1 ]; then
    two=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 2)
    step "two GPUs" 60 "${two[@]}" "$HERE/../examples/denoise.py" --device cuda --overwrite --out "$OUT/denoise-two"
    step "training on two" 60 "${two[@]}" "${training[@]}" --out "$OUT/training-two"
fi
cat "$OUT/steps.txt"
exit $FAILED
