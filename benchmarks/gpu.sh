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

restored() { # script, further flags
    "$PYTHON" "$HERE/../examples/$1" --device "$DEVICE" --overwrite "${@:2}"
}

if [ "$DEVICE" = cuda ]; then
    step "the GPU" 20 nvidia-smi
fi
step "device against CPU" 200 "$PYTHON" "$HERE/gpu.py" --device "$DEVICE" $QUICK --out "$OUT/gpu.csv"
step "denoise float32" 60 restored denoise.py --out "$OUT/denoise"
step "denoise bfloat16" 60 restored denoise.py --precision bf16 --out "$OUT/denoise-bf16"
step "missing wedge" 60 restored missing_wedge.py --out "$OUT/missing_wedge"
step "anisotropic with samples" 60 restored anisotropic.py --samples 2 --out "$OUT/anisotropic"
if [ "$DEVICE" = cuda ] && [ "$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')" -gt 1 ]; then
    step "two GPUs" 60 "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 2 \
        "$HERE/../examples/denoise.py" --device cuda --overwrite --out "$OUT/denoise-two"
fi
cat "$OUT/steps.txt"
exit $FAILED
