"""Half maps as reconstructions are: blurred, coarser or finer than the prior, with empty cones, flexible.

    python benchmarks/reconstructions.py --folder FOLDER --out CSV      (halves of relion_halves.py)
    python benchmarks/reconstructions.py --halves half1.mrc half2.mrc truth.mrc --out CSV
    python benchmarks/reconstructions.py MAPS... --b-factors 0 50 100 150 --resolutions 2.7 3.6 4.6 --out CSV

Of clean maps halves are made without RELION: an envelope exp(−B ν² / 4) and white noise whose FSC is .143 at a
resolution. Everything else is found as ``denoise.py`` finds it, the bundled prior included. A row for each problem, of
the mean of the halves (``input``), the best linear filter, the masked, sharpened mean, the restored map, and, where
particles were blurred by 100 Å², what comes out if no envelope is sought (``sharp``):

- ``auc``: FSC_AUC with the truth; ``error``: squared error after the best factor, since the scale of a truth may be a
  convention; ``raw``: as it is, in the units of the halves;
- ``least_`` and ``most_amplitude``: of the restored map's shells over the truth's, where the halves' FSC is above 0.5
  (after the best factor where the truth's scale is not that of the halves);
- ``most_lost_in_a_shell``: FSC of the input less that of the restored map;
- ``inside_50``, ``_80``, ``_95``: with ``--samples``, how often the truth lies in the interval that should hold it so
  often, over voxels where the linear estimate has density (in the same units as the amplitudes);
- ``prior``: that was taken;
- ``doubts``: of the check, none for results that are to be believed.

Rows are added as they are done; those that are there are not done again.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from _inputs import calibrated_prior, clean
from scipy.stats import t as student
from torch import Tensor

from cryofm_io import DensityMap, GridTransform, fsc, read_map, soft_mask
from cryofm_model import bundled_prior_for
from cryofm_ops import Envelope, LowPass, WhiteNoise, estimate_noise_power, radial_mean, rfft
from cryofm_sampling import RestoredHalfMaps, Tiled, restore_half_maps, signal_end, summarise

MAPS = ("input", "linear", "masked", "restored", "sharp")
LEVELS = (50, 80, 95)  # per cent
DENSITY = 0.15  # of the top of the linear estimate
MASK_RESOLUTION, MASK_LEVEL, MASK_WIDER, MASK_EDGE = 10.0, 0.2, 3.0, 6.0  # as the scripts mask


@attrs.frozen
class PriorGrid:
    """The way of a map to the prior's voxels."""

    transform: GridTransform

    @property
    def band(self) -> float:
        """The map's Nyquist frequency over the prior's."""
        return self.transform.voxel_size / self.transform.source_voxel_size

    @property
    def voxel_size(self) -> float:
        """Å, of the prior's grid."""
        return self.transform.voxel_size

    def forward(self, x: Tensor, /) -> Tensor:
        """To the prior's grid."""
        return torch.from_numpy(self.transform.forward(x.numpy()))

    def inverse(self, x: Tensor, /) -> Tensor:
        """And back."""
        return torch.from_numpy(self.transform.inverse(x.numpy()))


@attrs.frozen(eq=False)
class Problem:
    """Two halves and the truth."""

    name: str
    half1: Tensor
    half2: Tensor
    truth: Tensor
    voxel_size: float
    b_factor: float | None = None  # of the envelope, where it is known


def made(path: Path, b_factor: float, resolution: float, voxel_size: float) -> Problem:
    """Halves of a clean map: blurred, with white noise whose FSC with the other is .143 at the resolution."""
    truth = torch.from_numpy(clean(path, voxel_size))
    z, y, x = truth.shape
    blurred = Envelope(b_factor, voxel_size)(truth)
    power = radial_mean(rfft(blurred).abs().square(), (z, y, x))
    at = min(round(2 * voxel_size / resolution * (len(power) - 1)), len(power) - 1)
    noise = WhiteNoise(float(power[at] * (1 - 0.143) / 0.143) ** 0.5)
    generator = torch.Generator().manual_seed(0)
    half1, half2 = (noise.sample(blurred, generator=generator) for _ in range(2))
    return Problem(
        f"{path.name.split('.')[0]} B {b_factor:g} {resolution:g} Å", half1, half2, truth, voxel_size, b_factor
    )


def read(
    half1: Path, half2: Path, truth: Path, *, voxel_size: float | None = None, b_factor: float | None = None
) -> Problem:
    """Halves from elsewhere."""
    one, two, true = (read_map(path, voxel_size=voxel_size) for path in (half1, half2, truth))
    first, second = (torch.from_numpy(half.data - np.median(half.data)) for half in (one, two))
    name = half1.name.split("half")[0].strip("-_")
    return Problem(name, first, second, torch.from_numpy(true.data), float(one.voxel_size), b_factor)


def fitting(problem: Problem) -> str:
    """The bundled prior that the scripts take for such halves."""
    half1, half2, voxel_size = problem.half1, problem.half2, problem.voxel_size
    z, y, x = half1.shape
    found = estimate_noise_power(half1, half2, allow_masked=True)
    end = 1 / signal_end(found, (z, y, x), voxel_size=voxel_size)
    resolution = fsc(half1.numpy(), half2.numpy(), voxel_size).resolution(0.143)
    return bundled_prior_for(voxel_size, resolution=max(resolution, end))


def row(problem: Problem, name: str | None, samples: int, dtype: torch.dtype | None) -> dict[str, Any]:
    """Restore, and compare."""
    start = time.perf_counter()
    name = name or fitting(problem)
    prior = calibrated_prior(name)
    z, y, x = problem.truth.shape
    like = DensityMap(problem.truth.numpy(), problem.voxel_size)
    grid = PriorGrid(GridTransform.of(like, prior.voxel_size))

    def restored(**settings: Any) -> RestoredHalfMaps:
        return restore_half_maps(
            Tiled.fitting(prior, grid.transform.target, dtype=dtype),
            problem.half1,
            problem.half2,
            generator=torch.Generator().manual_seed(0),
            voxel_size=problem.voxel_size,
            grid=grid,
            **settings,
        )

    result = restored(samples=samples)
    seconds = time.perf_counter() - start
    maps = {"input": result.observed, "linear": result.linear, "masked": masked(result, problem.voxel_size)}
    maps["restored"] = result.map
    if "-B100-" in problem.name:
        maps["sharp"] = restored(b_factor=0.0).map
    curves = {key: fsc(volume.numpy(), problem.truth.numpy(), problem.voxel_size) for key, volume in maps.items()}
    lost = curves["input"].correlation - curves["restored"].correlation
    agree = estimate_noise_power(problem.half1, problem.half2, allow_masked=True).fsc > 0.5
    powers = [radial_mean(rfft(v).abs().square(), (z, y, x)) for v in (result.map, problem.truth)]
    factor = 1.0 if problem.b_factor is not None else best_factor(result.map, problem.truth)
    amplitude = factor * (powers[0] / powers[1]).sqrt()[1:][agree[1:]]
    inside = coverage(result, problem.truth / factor)
    return {
        "problem": problem.name,
        "prior": name,
        "b_factor": "" if problem.b_factor is None else problem.b_factor,
        "b_found": round(result.b_factor, 1),
        "solvent_found": round(result.solvent_contrast, 2),
        **{f"auc_{key}": round(curves[key].auc, 4) if key in curves else "" for key in MAPS},
        **{f"error_{key}": round(error(maps[key], problem.truth), 4) if key in maps else "" for key in MAPS},
        **{
            f"raw_{key}": round(error(maps[key], problem.truth, 1.0), 4) if key in maps else ""
            for key in ("restored", "sharp")
        },
        "least_amplitude": round(float(amplitude.min()), 3),
        "most_amplitude": round(float(amplitude.max()), 3),
        "most_lost_in_a_shell": round(float(np.nanmax(lost[1:])), 4),
        "slope": round(result.held_out.slope, 3),
        "gain": round(result.held_out.gain, 3),
        "explained": round(result.held_out.explained, 3),
        "doubts": len(result.doubts),
        **{f"inside_{level}": round(inside[level], 3) if inside else "" for level in LEVELS},
        "seconds": round(seconds, 1),
    }


def error(x: Tensor, truth: Tensor, k: float | None = None) -> float:
    """|k x − truth|² / |truth|², for the best k if none is given, means aside."""
    if k is None:
        k = best_factor(x, truth)
    x, truth = x - x.mean(), truth - truth.mean()
    return float((k * x - truth).square().sum() / truth.square().sum())


def best_factor(x: Tensor, truth: Tensor) -> float:
    """By which x is to be multiplied to be most like the truth."""
    x = x - x.mean()
    return float((x * truth).sum() / x.square().sum())


def coverage(result: RestoredHalfMaps, truth: Tensor) -> dict[int, float]:
    """How often the truth lies within the samples' intervals, where the linear estimate has density."""
    k = len(result.samples)
    if k < 2:
        return {}
    summary = summarise(torch.stack(result.samples))
    seen = result.linear > DENSITY * float(np.percentile(result.linear.numpy(), 99.999))
    t = ((truth - summary.mean).abs() / summary.std / (1 + 1 / k) ** 0.5)[seen]
    return {level: float((t <= student.ppf((1 + level / 100) / 2, k - 1)).float().mean()) for level in LEVELS}


def masked(result: RestoredHalfMaps, voxel_size: float) -> Tensor:
    """What a microscopist would look at: the sharpened, filtered mean in a soft mask."""
    smooth = LowPass(MASK_RESOLUTION, voxel_size)(result.linear).numpy()
    level = MASK_LEVEL * float(np.percentile(smooth, 99.9))
    return result.linear * torch.from_numpy(soft_mask(smooth, level, MASK_WIDER, MASK_EDGE, voxel_size))


def problems(args: argparse.Namespace, voxel_size: float) -> Iterator[tuple[str, Any]]:
    """Names, and how to make what they name."""
    for halves in args.halves:
        yield halves[0].name.split("half")[0].strip("-_"), lambda halves=halves: read(*halves)
    for line in [] if args.folder is None else rows_of(args.folder / "halves.csv"):
        files = [args.folder / f"{line['problem']}-{part}.mrc" for part in ("half1", "half2", "truth")]
        known = {key: float(line[key]) for key in ("voxel_size", "b_factor")}
        yield line["problem"], lambda files=files, known=known: read(*files, **known)
    for path in args.maps:
        for b in args.b_factors:
            for resolution in args.resolutions:
                name = f"{path.name.split('.')[0]} B {b:g} {resolution:g} Å"
                yield name, lambda path=path, b=b, resolution=resolution: made(path, b, resolution, voxel_size)


def rows_of(table: Path) -> list[dict[str, str]]:
    """Of a CSV file; none where there is no file."""
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Parse the command line, and add rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("maps", type=Path, nargs="*", help="clean maps")
    add("--halves", type=Path, nargs=3, action="append", default=[], metavar=("HALF1", "HALF2", "TRUTH"))
    add("--b-factors", type=float, nargs="+", default=[100.0], help="Å² (default 100)")
    add("--resolutions", type=float, nargs="+", default=[3.6], help="Å (default 3.6)")
    add("--folder", type=Path, help="of halves that relion_halves.py made")
    add("--only", nargs="+", default=[""], help="problems in whose names one of these stands")
    add("--samples", type=int, default=0, help="to draw, for the coverage (default 0)")
    add("--prior", help="default: the bundled one that fits, as the scripts choose it")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    add("--out", type=Path, required=True, help="CSV; rows are added")
    args = parser.parse_args()
    done = {line["problem"] for line in rows_of(args.out)}
    for name, make in problems(args, calibrated_prior(args.prior or "cryofm-tiny").voxel_size):
        if name in done or not any(part in name for part in args.only):
            continue
        found = row(make(), args.prior, args.samples, torch.bfloat16 if args.precision == "bf16" else None)
        new = not args.out.exists()
        with args.out.open("a", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, found, lineterminator="\n")
            if new:
                table.writeheader()
            table.writerow(found)
        print(found, flush=True)


if __name__ == "__main__":
    main()
