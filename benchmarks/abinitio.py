"""Ab initio models from few projections: ``python benchmarks/abinitio.py MAPS... --out CSV``.

Each map (simulated from a validation structure, 1.5 Å) is low-passed to 2.4 voxels of max(5 Å, diameter/26) and
projected in random directions, in boxes of 48². The images are moved by up to ``shift`` pixels along each axis, given
white noise (SNR: variance of the clean image within 32² over that of the noise), and prepared as examples/abinitio.py
does: background, centre of mass (or not: ``centred``), mask, box of 32². Noise is estimated from the background. What
comes out is aligned to the truth over rotation, shift and hand; the best by fit of three counts.

Methods: ``ours``, poses from common lines, then the prior; ``wiener`` and ``prior``, told the true poses, without and
with the prior; ``sample``, what the prior draws without data; ``alg3`` and ``alg3_poses``, the paper's Algorithm 3 with
100 steps, told the scale, and without or with the true poses.
"""

import argparse
import math
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import torch
from _alignment import aligned, resolution
from _table import write_csv
from torch import Tensor

from cryofm_io import ImageStack, prepare_images, read_map
from cryofm_model import CalibratedPrior, WeightsError, load_prior
from cryofm_model.particles import whole_particle
from cryofm_ops import (
    BlindProjections,
    ImagesInBand,
    background_power,
    in_model_units,
    pose_difference_deg,
    radial,
    random_rotations,
    sample_poses,
)
from cryofm_sampling import AbInitio, BlindGuided, Draw, Flow, Guided, Models

BOX, WIDE, FINEST, FILLED, BAND = 32, 48, 5.0, 26, 13
PUSH = 1.7  # λ_max of Algorithm 3 in a box of 64³

Row = dict[str, object]


@attrs.frozen
class Condition:
    """What is asked of a structure."""

    name: str
    images: int
    shift_px: float = 0.0
    snr: float = math.inf
    centred: bool = True
    search_px: float = 1.0


CONDITIONS = [
    Condition("8 clean, ±2 px, centred", 8, shift_px=2),
    Condition("8, SNR 5, ±2 px, centred", 8, shift_px=2, snr=5),
    Condition("6 clean, ±2 px, centred", 6, shift_px=2),
    Condition("8 clean, 0.5 px rms off", 8, shift_px=0.5 * 3**0.5, centred=False, search_px=1.5),
    Condition("2 clean, ±2 px, centred", 2, shift_px=2),
    Condition("20 clean, ±2 px, centred", 20, shift_px=2),
    Condition("8, SNR 1, ±2 px, centred", 8, shift_px=2, snr=1),
]


@attrs.frozen(eq=False)
class Problem:
    """Images and what is known of them by their maker."""

    truth: Tensor
    voxel_size: float
    images: Tensor  # prepared
    noise: Tensor
    rotations: Tensor
    shifts_px: Tensor  # that would centre the prepared images
    scale: float  # what brings them to the prior's


def simulate(path: Path, condition: Condition) -> Problem:
    """The images of one map under one condition."""
    density = read_map(path)
    generator = torch.Generator().manual_seed(zlib.crc32(path.name.encode()))
    rotations = random_rotations(20, generator=generator)[: condition.images]
    truth, voxel_size = whole_particle(density.data, density.voxel_size, BOX, finest=FINEST)
    clean = np.stack(
        [
            whole_particle(density.data, density.voxel_size, WIDE, finest=voxel_size, rotation=R.double().numpy())[0]
            for R in rotations
        ]
    )
    y = torch.from_numpy(clean).sum(1)
    shifts = condition.shift_px * (2 * torch.rand(len(y), 2, generator=generator) - 1)
    k = torch.fft.fftfreq(WIDE)
    phase = 2 * math.pi * (shifts[:, 0, None, None] * k + shifts[:, 1, None, None] * k[:, None])
    y = torch.fft.ifft2(torch.fft.fft2(y) * torch.polar(torch.ones_like(phase), phase)).real
    edge = (WIDE - BOX) // 2
    sigma = float(y[:, edge:-edge, edge:-edge].var((-2, -1)).mean() / condition.snr) ** 0.5
    y = y + sigma * torch.randn(y.shape, generator=generator)

    diameter = FILLED * voxel_size
    stack = ImageStack(y.numpy(), voxel_size)
    prepared = prepare_images(stack, mask_diameter=diameter, voxel_size=voxel_size, box=BOX)
    moved = torch.from_numpy(prepared.shifts / voxel_size).float()
    images = torch.from_numpy(prepared.images.data)
    if not condition.centred:  # the same mask and scale, and the shifts that the images had
        x = torch.arange(BOX) - BOX // 2
        mask = ((x.square() + x[:, None].square()) <= (FILLED / 2 + 1) ** 2).float()
        level = torch.from_numpy(prepared.background).float()[:, None, None]
        images = prepared.scale * mask * (y[:, edge:-edge, edge:-edge] - level)
        moved = torch.zeros_like(moved)
    power = background_power(y, FILLED)[1 : 1 + math.ceil(BAND * WIDE / BOX)]
    at = torch.arange(1, BAND + 1) * (WIDE / BOX) - 1
    power = torch.lerp(power[at.floor().long()], power[at.ceil().long().clamp(max=len(power) - 1)], at.frac())
    noise = prepared.scale**2 * power * math.pi / 4 * FILLED**2
    top = float(np.percentile(truth, 99.999))
    return Problem(
        torch.from_numpy(truth), voxel_size, images, noise, rotations, shifts - moved, 1 / (top * prepared.scale)
    )


def row(path: Path, condition: Condition, method: str, seconds: float, nfe: int, **values: object) -> Row:
    """One line of the table."""
    columns: Row = {"fsc05": "", "pose_error_deg": "", "first_pose_error_deg": "", "agreement_deg": "", "misfit": ""}
    start: Row = {"structure": path.stem, "condition": condition.name, "method": method}
    return {**start, **columns, **values, "seconds": round(seconds, 1), "nfe": nfe}


def with_prior(
    prior: CalibratedPrior, problem: Problem, rotations: Tensor, shifts_px: Tensor, refine_below: float = 0.9
) -> Models:
    """Models at these poses."""
    images = ImagesInBand.of(problem.images, BAND, problem.noise)
    return AbInitio(refine_below=refine_below)(
        prior,
        images,
        normalization=prior.normalization,
        rotations=rotations,
        shifts_px=shifts_px,
        generator=torch.Generator().manual_seed(1),
    )


def ours(prior: CalibratedPrior, path: Path, condition: Condition, problem: Problem) -> Row:
    """Common lines, then the prior."""
    start = time.process_time()
    poses = sample_poses(
        problem.images,
        chains=8,
        generator=torch.Generator().manual_seed(0),
        diameter_px=FILLED,
        noise=problem.noise,
        max_shift_px=condition.search_px,
    )
    models = with_prior(prior, problem, poses.rotations[:3], poses.shifts_px[:3])
    seconds = time.process_time() - start
    best = aligned(models.x[0], problem.truth, models.rotations[0], problem.rotations)
    return row(
        path,
        condition,
        "ours",
        seconds,
        3 * models.nfe,
        fsc05=round(resolution(best, problem.truth, problem.voxel_size), 2),
        pose_error_deg=round(float(pose_difference_deg(problem.rotations, models.rotations[0])), 1),
        first_pose_error_deg=round(float(pose_difference_deg(problem.rotations, poses.rotations[0])), 1),
        agreement_deg=round(float(pose_difference_deg(models.rotations[0], models.rotations[1])), 1),
        misfit=round(float(models.misfit[0]), 4),
    )


def told(prior: CalibratedPrior, path: Path, condition: Condition, problem: Problem) -> list[Row]:
    """With the true poses."""
    R, s = problem.rotations[None], problem.shifts_px[None]
    start = time.process_time()
    power = prior.normalization.std**2 * radial(prior.signal_power, (BOX,) * 3)
    images = ImagesInBand.of(problem.images * problem.scale, BAND, problem.noise * problem.scale**2)
    wiener = images.at(R, s).condition(torch.zeros(1, BOX, BOX, BOX), power).mean[0]
    middle = time.process_time()
    model = with_prior(prior, problem, R, s, refine_below=1e-9)
    end = time.process_time()
    runs = (("wiener", wiener, middle - start, 0), ("prior", model.x[0], end - middle, model.nfe))
    return [
        row(path, condition, method, seconds, nfe, fsc05=round(resolution(x, problem.truth, problem.voxel_size), 2))
        for method, x, seconds, nfe in runs
    ]


def paper(prior: CalibratedPrior, path: Path, condition: Condition, problem: Problem) -> list[Row]:
    """The prior's own sample, and Algorithm 3, with 100 steps."""
    blind = BlindProjections(problem.images * problem.scale, max_shift_px=condition.search_px, background=0.7)
    known = blind.at(problem.rotations, problem.shifts_px)
    searched, told = in_model_units(blind, prior.normalization), in_model_units(known, prior.normalization)
    shape = (BOX, BOX, BOX)
    runs: dict[str, Callable[[torch.Generator], Draw]] = {
        "sample": lambda g: Flow(20)(prior, shape=shape, generator=g),
        "alg3": lambda g: BlindGuided(100, max_push=PUSH)(prior, searched, shape=shape, generator=g),
        "alg3_poses": lambda g: Guided(100, "paper", PUSH)(prior, told, shape=shape, generator=g),
    }
    rows = []
    for method, run in runs.items():
        start = time.process_time()
        draw = run(torch.Generator().manual_seed(1))
        seconds = time.process_time() - start
        x = draw.x * prior.normalization.std + prior.normalization.mean
        found = resolution(aligned(x, problem.truth), problem.truth, problem.voxel_size)
        rows.append(row(path, condition, method, seconds, draw.nfe, fsc05=round(found, 2)))
    return rows


def main() -> None:
    """Parse the command line and run; the table is written after every structure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    parser.add_argument("--prior", default="cryofm-tiny-particles")
    parser.add_argument("--conditions", type=int, nargs="+", default=list(range(len(CONDITIONS))), help="which of them")
    parser.add_argument("--paper", type=int, default=2, help="structures for Algorithm 3 (default 2)")
    args = parser.parse_args()
    prior = load_prior(args.prior)
    if not isinstance(prior, CalibratedPrior):
        raise WeightsError(f"the prior {args.prior} carries no statistics; `calibrate` measures them")
    rows: list[Row] = []
    for condition in (CONDITIONS[i] for i in args.conditions):
        for number, path in enumerate(args.maps):
            problem = simulate(path, condition)
            rows.append(ours(prior, path, condition, problem))
            rows += told(prior, path, condition, problem)
            if number < args.paper and condition is CONDITIONS[0]:
                rows += paper(prior, path, condition, problem)
            write_csv(args.out, rows)
            own = [r for r in rows if (r["structure"], r["condition"]) == (path.stem, condition.name)]
            print(condition.name, path.stem, *(f"{r['method']} {r['fsc05']}" for r in own), flush=True)
        summary(rows, condition)


def summary(rows: list[Row], condition: Condition) -> None:
    """Means and success rates of one condition."""
    for method in dict.fromkeys(r["method"] for r in rows):
        own = [r for r in rows if r["method"] == method and r["condition"] == condition.name]
        if own:
            found = np.array([float(str(r["fsc05"])) for r in own])
            seconds = np.mean([float(str(r["seconds"])) for r in own])
            quality = f"FSC_0.5 {found.mean():.1f} Å, median {np.median(found):.1f} Å, {(found < 20).sum()}/{len(own)}"
            print(f"{condition.name}: {method}: {quality} below 20 Å, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
