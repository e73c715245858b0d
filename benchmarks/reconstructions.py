"""Half maps as reconstructions are: blurred, coarser or finer than the prior, with empty cones.

    python benchmarks/reconstructions.py MAPS... --b-factors 0 50 100 150 --resolutions 2.7 3.6 4.6 --out CSV
    python benchmarks/reconstructions.py --halves half1.mrc half2.mrc truth.mrc --out CSV

Of clean maps halves are made: an envelope exp(−B ν² / 4) and white noise whose FSC is .143 at a resolution. With
``--halves`` they come from elsewhere, such as RELION's relion_reconstruct, and the truth is sharp. Everything else is
found as ``denoise.py`` finds it. A row for each problem: FSC_AUC and squared error (after the best factor, since B and
the scale of a truth are conventions) of the best linear filter, of the masked, sharpened mean and of the restored map,
the amplitude that is left over shells with FSC > 0.5, what a shell loses at most, and the check's verdict. Rows are
added as they are done; those that are there are not done again.
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
from torch import Tensor

from cryofm_io import DensityMap, GridTransform, fsc, read_map, soft_mask
from cryofm_ops import Envelope, LowPass, WhiteNoise, estimate_noise_power, radial_mean, rfft
from cryofm_sampling import RestoredHalfMaps, Tiled, restore_half_maps

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
    b_factor: float | None  # of the envelope, where it is known


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


def read(half1: Path, half2: Path, truth: Path) -> Problem:
    """Halves from elsewhere."""
    one, two, true = (read_map(path) for path in (half1, half2, truth))
    first, second = (torch.from_numpy(half.data - np.median(half.data)) for half in (one, two))
    name = half1.name.split("half")[0].strip("-_")
    return Problem(name, first, second, torch.from_numpy(true.data), float(one.voxel_size), None)


def row(problem: Problem, name: str) -> dict[str, Any]:
    """Restore, and compare."""
    prior, start = calibrated_prior(name), time.perf_counter()
    z, y, x = problem.truth.shape
    like = DensityMap(problem.truth.numpy(), problem.voxel_size)
    grid = PriorGrid(GridTransform.of(like, prior.voxel_size))
    result = restore_half_maps(
        Tiled.fitting(prior, grid.transform.target),
        problem.half1,
        problem.half2,
        generator=torch.Generator().manual_seed(0),
        voxel_size=problem.voxel_size,
        grid=grid,
    )
    seconds = time.perf_counter() - start
    maps = {"input": result.observed, "linear": result.linear, "masked": masked(result, problem.voxel_size)}
    maps["restored"] = result.map
    curves = {key: fsc(volume.numpy(), problem.truth.numpy(), problem.voxel_size) for key, volume in maps.items()}
    lost = curves["input"].correlation - curves["restored"].correlation
    agree = estimate_noise_power(problem.half1, problem.half2, allow_masked=True).fsc > 0.5
    powers = [radial_mean(rfft(v).abs().square(), (z, y, x)) for v in (result.map, problem.truth)]
    amplitude = (powers[0] / powers[1]).sqrt()[1:][agree[1:]]
    return {
        "problem": problem.name,
        "b_factor": "" if problem.b_factor is None else problem.b_factor,
        "b_found": round(result.b_factor, 1),
        **{f"auc_{key}": round(curve.auc, 4) for key, curve in curves.items()},
        **{f"error_{key}": round(error(volume, problem.truth), 4) for key, volume in maps.items()},
        "least_amplitude": round(float(amplitude.min()), 3),
        "most_amplitude": round(float(amplitude.max()), 3),
        "most_lost_in_a_shell": round(float(np.nanmax(lost[1:])), 4),
        "slope": round(result.held_out.slope, 3),
        "doubts": len(result.doubts),
        "seconds": round(seconds, 1),
    }


def error(x: Tensor, truth: Tensor) -> float:
    """|k x − truth|² / |truth|² for the best k, means aside."""
    x, truth = x - x.mean(), truth - truth.mean()
    k = (x * truth).sum() / x.square().sum()
    return float((k * x - truth).square().sum() / truth.square().sum())


def masked(result: RestoredHalfMaps, voxel_size: float) -> Tensor:
    """What a microscopist would look at: the sharpened, filtered mean in a soft mask."""
    smooth = LowPass(MASK_RESOLUTION, voxel_size)(result.linear).numpy()
    level = MASK_LEVEL * float(np.percentile(smooth, 99.9))
    return result.linear * torch.from_numpy(soft_mask(smooth, level, MASK_WIDER, MASK_EDGE, voxel_size))


def problems(args: argparse.Namespace, voxel_size: float) -> Iterator[tuple[str, Any]]:
    """Names, and how to make what they name."""
    for halves in args.halves:
        yield halves[0].name.split("half")[0].strip("-_"), lambda halves=halves: read(*halves)
    for path in args.maps:
        for b in args.b_factors:
            for resolution in args.resolutions:
                name = f"{path.name.split('.')[0]} B {b:g} {resolution:g} Å"
                yield name, lambda path=path, b=b, resolution=resolution: made(path, b, resolution, voxel_size)


def main() -> None:
    """Parse the command line, and add rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("maps", type=Path, nargs="*", help="clean maps")
    add("--halves", type=Path, nargs=3, action="append", default=[], metavar=("HALF1", "HALF2", "TRUTH"))
    add("--b-factors", type=float, nargs="+", default=[100.0], help="Å² (default 100)")
    add("--resolutions", type=float, nargs="+", default=[3.6], help="Å (default 3.6)")
    add("--prior", default="cryofm-tiny")
    add("--out", type=Path, required=True, help="CSV; rows are added")
    args = parser.parse_args()
    done = set()
    if args.out.exists():
        with args.out.open(newline="", encoding="utf-8") as file:
            done = {line["problem"] for line in csv.DictReader(file)}
    for name, make in problems(args, calibrated_prior(args.prior).voxel_size):
        if name in done:
            continue
        found = row(make(), args.prior)
        new = not args.out.exists()
        with args.out.open("a", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, found, lineterminator="\n")
            if new:
                table.writeheader()
            table.writerow(found)
        print(found, flush=True)


if __name__ == "__main__":
    main()
