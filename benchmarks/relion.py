"""The prior inside RELION's refinement: ``python benchmarks/relion.py MODELS... --seeds 0 1 --work FOLDER --out CSV``.

Every model and seed is a set of particles, simulated as ``relion_halves.py`` does it: CTFs, an envelope of B = 80 Å²,
white noise, start poses that are wrong by so many degrees. ``relion_refine_mpi`` refines it by a fixed schedule of
local searches in two halves from a reference at 15 Å, once as it is, and once with examples/relion_reconstruct.py from
the same start. Scale and B are those of its --dry-run on the first run's last half 1. With --auto the schedule is
RELION's own, ``--auto_refine`` with local searches from the first iteration on, until it has converged.

A row is one run: errors of the poses; FSC with the truth of the reference, and of what ``relion_reconstruct`` makes
of the final poses, which no prior touched; what the halves' FSC claims of the latter, less what is true. A mean FSC
is over shells 1 to 20, of which the hook's reference lacks some, or to one before the claimed resolution; in a sphere
or in a tight mask. Steps that are done are not done again.
"""

import argparse
import csv
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from _table import write_csv
from numpy.typing import NDArray
from relion_halves import Particles, truth_of

from cryofm_io import (
    DensityMap,
    Poses,
    automatic_mask,
    fsc,
    low_pass,
    read_map,
    write_map,
)
from cryofm_io.image_table import read_table
from cryofm_io.star_text import read_star
from cryofm_ops import (
    Envelope,
    FourierProjector,
    angular_distance_deg,
    fourier_filter,
    random_rotations,
    rotation_from_vector,
)

HOOK = Path(__file__).parents[1] / "examples" / "relion_reconstruct.py"
TOOLS = ("mpirun", "relion_refine_mpi", "relion_reconstruct", "relion_external_reconstruct")
B_FACTOR, START = 80.0, 15.0  # Å² of the images, Å of the first reference
SHELLS = 20
Volume = NDArray[np.float32]


def make(model: Path, seed: int, folder: Path, args: argparse.Namespace) -> None:
    """Particles with the poses that a refinement starts from, the true ones, the truth and the first reference."""
    truth = truth_of(model, args.voxel_size)
    side = args.side or len(truth) + len(truth) % 2
    if side < len(truth):
        sys.exit(f"{model.name} fills {len(truth)} voxels, more than --side {side}")
    more = side - len(truth)
    truth = torch.nn.functional.pad(truth, (more // 2, more - more // 2) * 3)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{model.name}-{seed}".encode()))
    n = args.particles
    true, still = random_rotations(n, generator=generator), torch.zeros(n, 2)
    images = FourierProjector(true, still, (side, side, side))(truth)
    u = 8000 + 12000 * torch.rand(n, generator=generator)
    angle = 180 * torch.rand(n, generator=generator)
    defocus = torch.stack((u, u - 300 * torch.rand(n, generator=generator), angle))
    start = rotation_from_vector(args.start * torch.randn(n, 3, generator=generator) / math.sqrt(3)) @ true
    particles = Particles(images, defocus, Poses(start.numpy(), still.numpy()), args.voxel_size)
    clean = particles.through(B_FACTOR)
    noise = float(clean.std()) / math.sqrt(args.snr)  # RELION wants it to have a variance of 1
    particles.write(clean / noise + torch.randn(clean.shape, generator=generator), folder / "particles")
    np.save(folder / "true.npy", true.numpy())
    blurred = fourier_filter(truth, Envelope(B_FACTOR, args.voxel_size).transfer((side, side, side)).float()) / noise
    for name, volume in (
        ("truth", truth.numpy()),
        ("reference", low_pass(blurred.numpy(), START, args.voxel_size)),
    ):
        write_map(folder / f"{name}.mrc", DensityMap(volume, args.voxel_size), overwrite=True)


def refine(folder: Path, arm: str, hook: str | None, diameter: float, seed: int, args: argparse.Namespace) -> float:
    """Run RELION by its fixed schedule, unless that was done; seconds."""
    done = folder / arm / "seconds"
    if done.exists():
        return float(done.read_text())
    (folder / arm).mkdir(exist_ok=True)
    fixed = f"--iter {args.iterations} --sigma_ang {args.start / 1.5:.2f}"
    schedule = f"--auto_refine --auto_local_healpix_order {args.healpix_order}" if args.auto else fixed
    line = f"""mpirun --oversubscribe -n 3 relion_refine_mpi --i particles.star --o {arm}/run --ref reference.mrc
        --ini_high {START:g} {schedule} --split_random_halves --healpix_order {args.healpix_order}
        --oversampling 1 --offset_range 2 --offset_step 2 --ctf --norm
        --flatten_solvent --zero_mask --particle_diameter {diameter:.0f} --external_reconstruct --pad 2 --maxsig 100
        --random_seed {seed + 1} --dont_check_norm --dont_combine_weights_via_disc"""
    own = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
    if hook is not None:
        own["RELION_EXTERNAL_RECONSTRUCT_EXECUTABLE"] = hook
    start = time.perf_counter()
    with (folder / arm / "log").open("w") as log:
        subprocess.run(line.split(), cwd=folder, check=True, stdout=log, stderr=subprocess.STDOUT, env=os.environ | own)
    done.write_text(f"{time.perf_counter() - start:.1f}\n")
    return float(done.read_text())


def found_by_dry_run(folder: Path, args: argparse.Namespace) -> str:
    """The line that the script prints for RELION's user."""
    arm = "relion-auto" if args.auto else "relion"
    star = f"{arm}/run_it{last_iteration(folder / arm):03d}_half1_class001_external_reconstruct.star"
    line = [sys.executable, str(HOOK), "--dry-run", "--steps", str(args.steps), "--precision", args.precision, star]
    said = subprocess.run(line, cwd=folder, check=True, capture_output=True, text=True).stdout
    print(said, end="", flush=True)
    hook = re.search(r"EXECUTABLE=(.*)", said)
    assert hook is not None
    return shlex.split(hook[1])[0]


def last_iteration(run: Path) -> int:
    """The last one in which the halves were apart."""
    return max(int(path.name.split("_")[1][2:]) for path in run.glob("run_it*_half1_model.star"))


def judge(folder: Path, arm: str, args: argparse.Namespace) -> dict[str, object]:
    """What came of a run."""
    stem, px = f"{arm}/run_it{last_iteration(folder / arm):03d}", args.voxel_size
    found = f"{arm}/run_data.star" if args.auto else f"{stem}_data.star"  # which RELION has where it has converged
    table = read_table(folder / found)
    poses = table.poses(px)
    assert poses is not None
    order = [int(name.split("@")[0]) - 1 for name in table.names]
    true = torch.from_numpy(np.load(folder / "true.npy"))[order].double()
    error = angular_distance_deg(true, torch.from_numpy(poses.rotations).double())
    line = ["relion_reconstruct", "--i", found, "--o", f"{stem}_plain.mrc", "--ctf", "--verb", "0"]
    subprocess.run(line, cwd=folder, check=True, capture_output=True)
    truth = read_map(folder / "truth.mrc")
    sphere, tight = masks(truth)
    names = ("half1_class001", "half2_class001", "plain")
    one, two, plain = (read_map(folder / f"{stem}_{name}.mrc", voxel_size=px).data for name in names)
    pairs = ((one + two) / 2, sphere), ((one + two) / 2, tight), (plain, sphere)
    curves = [fsc(volume * mask, truth.data * mask, px) for volume, mask in pairs]
    blocks = {block.name: block for block in read_star(folder / f"{stem}_half1_model.star", ["rlnGoldStandardFsc"])}
    claim = np.array([float(v) for v in blocks["model_class_1"].column("rlnGoldStandardFsc") or ()])[1:]
    last = int(np.argmax(claim < 0.143)) if (claim < 0.143).any() else len(claim)
    excess = np.sqrt(2 * claim.clip(0) / (1 + claim.clip(0))) - curves[2].correlation[: len(claim)]
    used = slice(4, min(18, last))
    return {
        "pose_error_deg": round(float(error.median()), 3),
        "below_5_deg": round(float((error < 5).double().mean()), 4),
        "claim_A": round(len(truth.data) * px / max(last, 1), 2),
        "reference_fsc_05_A": round(curves[0].resolution(0.5), 2),
        "reference_fsc": mean(curves[0].correlation),
        "reference_fsc_to_claim": mean(curves[0].correlation[: last - 1]),
        "reference_fsc_tight_to_claim": mean(curves[1].correlation[: last - 1]),
        "plain_fsc_05_A": round(curves[2].resolution(0.5), 2),
        "plain_fsc": mean(curves[2].correlation),
        "claimed_less_true": round(float(np.nanmean(excess[used])), 4),
    }


def mean(correlation: NDArray[np.float64]) -> float:
    """Over the first shells."""
    return round(float(np.nanmean(correlation[:SHELLS])), 4)


def masks(truth: DensityMap) -> tuple[Volume, Volume]:
    """A sphere and a tight mask, both with soft edges."""
    n = len(truth.data)
    x = np.arange(n) - n // 2
    r = np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2)
    tight = automatic_mask(truth.data, truth.voxel_size)
    assert tight is not None
    return np.clip((n / 2 - 1 - r) / 3, 0, 1).astype(np.float32), tight


def extent(truth: Volume, voxel_size: float) -> float:
    """Diameter in Å about the middle of the box, with a margin."""
    z, y, x = np.nonzero(truth > 0.1)
    r = np.sqrt(sum((axis - n // 2) ** 2 for axis, n in zip((z, y, x), truth.shape, strict=True)))
    return min(2 * float(r.max()) * voxel_size + 12, (len(truth) - 2) * voxel_size)


def run(model: Path, seed: int, args: argparse.Namespace) -> None:
    """Both arms of one set; rows are added."""
    name = model.name.split(".")[0]
    folder = args.work / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "reference.mrc").exists():
        make(model, seed, folder, args)
    truth = read_map(folder / "truth.mrc").data
    rows = list(csv.DictReader(args.out.open(newline=""))) if args.out.exists() else []
    for arm in ("relion-auto", "hook-auto") if args.auto else ("relion", "hook"):
        if any((row["protein"], row["seed"], row["arm"]) == (name, str(seed), arm) for row in rows):
            continue
        hook = found_by_dry_run(folder, args) if arm.startswith("hook") else None
        seconds = refine(folder, arm, hook, extent(truth, args.voxel_size), seed, args)
        set_of = {"protein": name, "seed": seed, "side": len(truth), "particles": args.particles, "snr": args.snr}
        flags = dict(zip(*[iter(shlex.split(hook or "")[2:])] * 2, strict=False))
        how = {"start_deg": args.start, "iterations": last_iteration(folder / arm), "arm": arm}
        told = {"scale": flags.get("--scale", ""), "b_factor": flags.get("--b-factor", ""), "seconds": round(seconds)}
        rows.append({**set_of, **how, **judge(folder, arm, args), **told})
        write_csv(args.out, rows)
        print(rows[-1], flush=True)


def main() -> None:
    """Parse the command line, and refine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", type=Path, nargs="+", help="PDB or mmCIF files, .gz too")
    add("--seeds", type=int, nargs="+", default=[0, 1], help="of the particles (default 0 1)")
    add("--particles", type=int, default=1000, help="(default 1000)")
    add("--snr", type=float, default=0.12, help="variance of signal over that of noise in the images (default .12)")
    add("--start", type=float, default=5.0, help="rms degrees by which the first poses are wrong (default 5)")
    add("--voxel-size", type=float, default=2.0, help="Å (default 2)")
    add("--side", type=int, help="voxels a side, even; as small as the model allows if not given")
    add("--iterations", type=int, default=5, help="of the schedule (default 5)")
    add("--auto", action="store_true", help="RELION's own schedule, to convergence, in place of --iterations")
    add("--healpix-order", type=int, default=3, help="of the local searches, oversampled once (default 3)")
    add("--steps", type=int, default=8, help="network evaluations a map (default 8)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    add("--work", type=Path, required=True, help="folder of particles and runs")
    add("--out", type=Path, required=True, help="CSV; rows are added")
    args = parser.parse_args()
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        sys.exit(f"{', '.join(missing)}: not on the PATH; nothing was run (Debian: package relion)")
    for model in args.models:
        for seed in args.seeds:
            run(model, seed, args)


if __name__ == "__main__":
    main()
