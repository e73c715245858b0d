"""Ab initio models from noisy particles with CTFs: ``python benchmarks/abinitio_particles.py MAPS... --out CSV``.

Each map (simulated from a validation structure, 1.5 Å) is low-passed to 2.4 voxels of max(5 Å, diameter/26), projected
in random directions into boxes of 48² of that voxel, moved by up to one pixel along each axis, multiplied by CTFs of
0.8 to 2.5 µm underfocus at 300 kV, given white noise (SNR: variance of the clean image with its CTF, within the
particle's diameter, over that of a pixel's noise), and prepared as examples/abinitio.py --ctf does. The noise is
estimated from the background. What comes out is aligned to the truth over rotation, shift and hand.

Columns: ``fsc05`` of the model that fits best, in Å, and of all those kept; ``drawn``, of the chains before their poses
were refined; ``told`` the true poses, by a Wiener filter and by the prior.

A table that is there already is gone on with: rows that it has are not computed again.
"""

import argparse
import csv
import time
import zlib
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from _alignment import aligned, resolution
from _inputs import calibrated_prior
from _table import write_csv
from torch import Tensor

from cryofm_io import ImageStack, prepare_particles, read_map
from cryofm_model import CalibratedPrior
from cryofm_model.data.particles import whole_particle
from cryofm_ops import (
    CTF,
    FourierProjector,
    ImagesInBand,
    background_power,
    pose_difference_deg,
    radial,
    random_rotations,
)
from cryofm_sampling import AbInitio, Models

BOX, WIDE, FINEST, FILLED, BAND = 32, 48, 5.0, 26, 13
LEVELS, KEEP = 20, 2
DRAWING: dict[str, Any] = {"levels": 40, "ratios": (10.0, 0.4), "draw_above": 0.0}
DEFOCUS, SHIFT_PX = (8000.0, 25000.0), 1.0

Row = dict[str, object]


@attrs.frozen(eq=False)
class Problem:
    """Prepared images and what is known of them by their maker."""

    truth: Tensor
    voxel_size: float
    data: ImagesInBand
    rotations: Tensor
    shifts_px: Tensor
    scale: float  # what brings the prepared images to the prior's


def simulate(path: Path, images: int, snr: float) -> Problem:
    """The particles of one map."""
    density = read_map(path)
    generator = torch.Generator().manual_seed(zlib.crc32(path.name.encode()))
    truth, voxel_size = whole_particle(density.data, density.voxel_size, BOX, finest=FINEST)
    wide = whole_particle(density.data, density.voxel_size, WIDE, finest=voxel_size)[0]
    rotations = random_rotations(images, generator=generator)
    shifts = SHIFT_PX * (2 * torch.rand(images, 2, generator=generator) - 1)
    defocus = DEFOCUS[0] + (DEFOCUS[1] - DEFOCUS[0]) * torch.rand(images, generator=generator)
    ctf = CTF(defocus_u_angstrom=defocus, voxel_size_angstrom=voxel_size)
    y = FourierProjector(rotations, shifts, (WIDE,) * 3, ctf)(torch.from_numpy(wide))
    i = torch.arange(WIDE) - WIDE // 2
    disc = i.square() + i[:, None].square() <= (FILLED / 2) ** 2
    sigma = float(y[:, disc].var(-1).mean() / snr) ** 0.5
    y = y + sigma * torch.randn(y.shape, generator=generator)

    prepared = prepare_particles(
        ImageStack(y.numpy(), voxel_size), mask_diameter=FILLED * voxel_size, voxel_size=voxel_size, box=BOX
    )
    power = prepared.scale**2 * BOX**2 * background_power(y, FILLED)
    noise = torch.from_numpy(np.interp(np.arange(1, BAND + 1) * WIDE / BOX, np.arange(len(power)), power.numpy()))
    data = ImagesInBand.of(torch.from_numpy(prepared.images.data), BAND, noise, ctf=ctf)
    scale = 1 / float(np.percentile(truth, 99.999)) / prepared.scale
    return Problem(torch.from_numpy(truth), voxel_size, data, rotations, shifts, scale)


def row(prior: CalibratedPrior, path: Path, images: int, snr: float, tries: int) -> Row:
    """One line of the table."""
    problem = simulate(path, images, snr)
    generator = torch.Generator().manual_seed(0)

    def models(rotations: Tensor, shifts_px: Tensor, **how: Any) -> Models:
        return AbInitio(max_shift_px=SHIFT_PX, **how)(
            prior,
            problem.data,
            normalization=prior.normalization,
            rotations=rotations,
            shifts_px=shifts_px,
            generator=generator,
        )

    def found(models: Models) -> list[float]:
        return [
            resolution(aligned(x, problem.truth, R, problem.rotations), problem.truth, problem.voxel_size)
            for x, R in zip(models.x, models.rotations, strict=True)
        ]

    start = time.process_time()
    anywhere = random_rotations(tries * images, generator=generator).reshape(tries, images, 3, 3)
    drawn = models(anywhere, torch.zeros(tries, images, 2), **DRAWING)
    ours = models(drawn.rotations[:KEEP], drawn.shifts_px[:KEEP], levels=LEVELS)
    seconds = time.process_time() - start

    R, s = problem.rotations[None], problem.shifts_px[None]
    told = models(R, s, levels=LEVELS, refine_below=1e-9)
    power = prior.normalization.std**2 * radial(prior.signal_power, (BOX,) * 3)
    scaled = problem.data.scaled(torch.tensor([problem.scale]))
    wiener = scaled.at(R, s).condition(torch.zeros(1, BOX, BOX, BOX), power).mean
    kept = found(ours)
    return {
        "structure": path.stem,
        "images": images,
        "snr": snr,
        "fsc05": round(kept[0], 2),
        "kept": " ".join(f"{f:.2f}" for f in kept),
        "drawn": " ".join(f"{f:.2f}" for f in found(drawn)),
        "told_wiener": round(resolution(wiener[0], problem.truth, problem.voxel_size), 2),
        "told_prior": round(resolution(told.x[0], problem.truth, problem.voxel_size), 2),
        "misfit": " ".join(f"{float(m):.4f}" for m in ours.misfit),
        "misfit_drawn": " ".join(f"{float(m):.4f}" for m in drawn.misfit),
        "misfit_told": round(float(told.misfit[0]), 4),
        "pose_error_deg": round(float(pose_difference_deg(problem.rotations, ours.rotations[0])), 1),
        "seconds": round(seconds, 1),
        "nfe": tries * drawn.nfe + KEEP * ours.nfe,
    }


def main() -> None:
    """Parse the command line and run; the table is written after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    parser.add_argument("--prior", default="cryofm-tiny-particles")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--snr", type=float, nargs="+", default=[1.0, 0.3, 0.1])
    parser.add_argument("--tries", type=int, default=4, help="chains of poses")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    args = parser.parse_args()
    prior = calibrated_prior(args.prior)
    if args.precision == "bf16":
        prior.network.forward = torch.autocast("cpu", torch.bfloat16)(prior.network.forward)
    rows: list[Row] = []
    if args.out.exists():
        with args.out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    for snr in args.snr:
        for path in args.maps:
            if (path.stem, str(args.images), str(snr)) in {
                (r["structure"], str(r["images"]), str(r["snr"])) for r in rows
            }:
                continue
            rows.append(row(prior, path, args.images, snr, args.tries))
            write_csv(args.out, rows)
            print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)


if __name__ == "__main__":
    main()
