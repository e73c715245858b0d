"""Ab initio models from few projections: ``python benchmarks/abinitio.py MAPS... --out CSV``.

Each map (simulated from a validation structure, 1.5 Å) is low-passed to 2.4 voxels of max(5 Å, diameter/26) and
projected in random directions, in boxes of 48². The images are moved by up to ``shift`` pixels along each axis, given
white noise (SNR: variance of the clean image within 32² over that of the noise), and prepared as examples/abinitio.py
does: background, centre of mass (or not: ``centred``), mask, box of 32². Noise is estimated from the background. What
comes out is aligned to the truth over rotation, shift and hand; the best by fit of three counts.

Methods: ``ours``, poses from common lines and a Gaussian field, then the prior in several passes; ``wiener`` and
``prior``, told the true poses, without and with the prior; ``sample``, what the prior draws without data; ``alg3`` and
``alg3_poses``, the paper's Algorithm 3 with 100 steps, without (three chains, of which the best by loss counts) or with
the true poses; with 8 and with 2 clean images, the paper's own case. ``alg3_published`` is the same with the published
λ_max = 5 and N = 1000 (``--published N`` structures). ``of_three`` is what each of the three models reaches, best by
fit first. With ``--sym C4`` there is ``ours, C4`` alone, told the point group.

A table that is there already is gone on with: rows that it has are not computed again.
"""

import argparse
import csv
import math
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import torch
from _alignment import aligned, resolution
from _inputs import calibrated_prior
from _table import write_csv
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryofm_io import ImageStack, prepare_images, read_map
from cryofm_model import CalibratedPrior
from cryofm_model.data.particles import whole_particle
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
from cryofm_sampling import AbInitio, BlindGuided, Draw, Flow, Guided, Models, models_by_halving

BOX, WIDE, FINEST, FILLED, BAND = 32, 48, 5.0, 26, 13
CHAINS, SHORT, KEEP = 16, 8, 3  # chains of poses; levels that choose among them; models
LEVELS = 20

# Algorithm 3 with 100 steps. Of q 0 or 0.7, ψ_cor or ψ_sg and pushes per step of 0.1, 0.3, 1 and 3 these were the best
# on two training structures: with the true poses 12.5 and 12.0 Å at a push of 1 and at 3 (27 and 34 Å at 0.3), and
# with poses searched 20 to 28 and 18 to 27 Å (two seeds; 28 to 44 Å at 0.3). With q = 0.7 the best are 41 and 23 Å,
# true poses: ψ_bg, a sum of squares over all pixels, outgrows the correlation, which is at most 1, and turns the
# gradient of fixed length its own way. ψ_sg came to 46 Å and more.
STEPS, BACKGROUND = 100, 0.0
PUSH = 0.6  # λ_max in a box of 64³; here 2.1 a step

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


CLEAN, TWO = Condition("8 clean, ±2 px, centred", 8, shift_px=2), Condition("2 clean, ±2 px, centred", 2, shift_px=2)
CONDITIONS = [
    CLEAN,
    Condition("8, SNR 5, ±2 px, centred", 8, shift_px=2, snr=5),
    Condition("6 clean, ±2 px, centred", 6, shift_px=2),
    Condition("8 clean, 0.5 px rms off", 8, shift_px=0.5 * 3**0.5, centred=False, search_px=1.5),
    TWO,
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
    columns: Row = {"fsc05": "", "of_three": "", "pose_error_deg": "", "first_pose_error_deg": ""}
    columns |= {"agreement_deg": "", "misfit": ""}
    start: Row = {"structure": path.stem, "condition": condition.name, "method": method}
    return {**start, **columns, **values, "seconds": round(seconds, 1), "nfe": nfe}


def with_prior(
    prior: CalibratedPrior,
    problem: Problem,
    rotations: Tensor,
    shifts_px: Tensor,
    symmetry: Tensor | None = None,
    **how: float,
) -> Models:
    """Models at these poses."""
    images = ImagesInBand.of(problem.images, BAND, problem.noise, symmetry=symmetry)
    return AbInitio(**how)(  # type: ignore[arg-type]
        prior,
        images,
        normalization=prior.normalization,
        rotations=rotations,
        shifts_px=shifts_px,
        generator=torch.Generator().manual_seed(1),
    )


def ours(
    prior: CalibratedPrior, path: Path, condition: Condition, problem: Problem, sym: str | None = None
) -> list[Row]:
    """Poses by common lines and the field; then the prior, briefly for all chains, fully for the best."""
    group = None if sym is None else torch.from_numpy(Rotation.create_group(sym).as_matrix()).float()
    start = time.process_time()
    poses = sample_poses(
        problem.images,
        chains=CHAINS,
        generator=torch.Generator().manual_seed(0),
        diameter_px=FILLED,
        noise=problem.noise,
        max_shift_px=condition.search_px,
        symmetry=group,
        from_field=True,
    )
    models, nfe = models_by_halving(
        lambda R, s, levels: with_prior(prior, problem, R, s, group, levels=levels),
        poses.rotations,
        poses.shifts_px,
        keep=KEEP,
        short=SHORT,
        levels=LEVELS,
        symmetry=group,
    )
    seconds = time.process_time() - start
    found = [
        resolution(aligned(x, problem.truth, R, problem.rotations), problem.truth, problem.voxel_size)
        for x, R in zip(models.x, models.rotations, strict=True)
    ]
    return [
        row(
            path,
            condition,
            "ours" if sym is None else f"ours, {sym}",
            seconds,
            nfe,
            fsc05=round(found[0], 2),
            of_three=" ".join(f"{f:.2f}" for f in found),
            pose_error_deg=round(float(pose_difference_deg(problem.rotations, models.rotations[0], group)), 1),
            first_pose_error_deg=round(float(pose_difference_deg(problem.rotations, poses.rotations[0], group)), 1),
            agreement_deg=round(float(pose_difference_deg(models.rotations[0], models.rotations[1], group)), 1),
            misfit=round(float(models.misfit[0]), 4),
        )
    ]


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


def paper(
    prior: CalibratedPrior, path: Path, condition: Condition, problem: Problem, published: bool = False
) -> list[Row]:
    """The prior's own sample, and Algorithm 3; or that with its published settings."""
    blind = BlindProjections(problem.images * problem.scale, max_shift_px=condition.search_px, background=BACKGROUND)
    known = blind.at(problem.rotations, problem.shifts_px)
    searched, told = in_model_units(blind, prior.normalization), in_model_units(known, prior.normalization)
    one = (1, BOX, BOX, BOX)
    runs: dict[str, Callable[[torch.Generator], Draw]] = {
        "sample": lambda g: Flow(20)(prior, shape=one, generator=g),
        "alg3": lambda g: BlindGuided(STEPS, max_push=PUSH)(prior, searched, shape=(KEEP, *one[1:]), generator=g),
        "alg3_poses": lambda g: Guided(STEPS, "paper", PUSH)(prior, told, shape=one, generator=g),
    }
    if published:
        blind_guided = BlindGuided(1000, max_push=5.0)
        runs = {"alg3_published": lambda g: blind_guided(prior, searched, shape=(KEEP, *one[1:]), generator=g)}
    rows = []
    for method, run in runs.items():
        start = time.process_time()
        draw = run(torch.Generator().manual_seed(1))
        x = draw.x
        if len(x) > 1:
            x = x[searched.refine(x).log_prob(x).argsort(descending=True)]
        seconds = time.process_time() - start
        volumes = x * prior.normalization.std + prior.normalization.mean
        found = [resolution(aligned(v, problem.truth), problem.truth, problem.voxel_size) for v in volumes]
        each = " ".join(f"{f:.2f}" for f in found) if len(found) > 1 else ""
        rows.append(row(path, condition, method, seconds, len(x) * draw.nfe, fsc05=round(found[0], 2), of_three=each))
    return rows


def main() -> None:
    """Parse the command line and run; the table is written after every structure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    parser.add_argument("--prior", default="cryofm-tiny-particles")
    parser.add_argument("--conditions", type=int, nargs="+", default=list(range(len(CONDITIONS))), help="which of them")
    parser.add_argument("--paper", type=int, default=3, help="structures for Algorithm 3 (default 3)")
    parser.add_argument("--published", type=int, default=0, help="structures for its 1000 steps, an hour or so each")
    parser.add_argument("--sym", help="point group of all the structures: C4, D7, T, O, I")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    args = parser.parse_args()
    prior = calibrated_prior(args.prior)
    if args.precision == "bf16":
        prior.network.forward = torch.autocast("cpu", torch.bfloat16)(prior.network.forward)
    rows: list[Row] = []
    if args.out.exists():
        with args.out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    runs: dict[str, Callable[..., list[Row]]] = {  # by their first rows
        "ours": ours,
        "wiener": told,
        "sample": paper,
        "alg3_published": partial(paper, published=True),
    }
    structures = {"sample": args.paper, "alg3_published": args.published}  # of two conditions
    if args.sym:
        runs = {f"ours, {args.sym}": partial(ours, sym=args.sym)}
    jobs = [
        (condition, path, first)
        for condition in (CONDITIONS[i] for i in args.conditions)
        for number, path in enumerate(args.maps)
        for first in runs
        if first not in structures or (number < structures[first] and condition in (CLEAN, TWO))
    ]
    for condition, path, first in jobs:
        if (path.stem, condition.name, first) in {(r["structure"], r["condition"], r["method"]) for r in rows}:
            continue
        new = runs[first](prior, path, condition, simulate(path, condition))
        rows += new
        write_csv(args.out, rows)
        print(condition.name, path.stem, *(f"{r['method']} {r['fsc05']}" for r in new), flush=True)
    for condition in CONDITIONS:
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
