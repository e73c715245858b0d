"""What is lost where the network is not evaluated: ``python benchmarks/region.py MAPS... --out CSV``.

Every clean map lies in a box of twice its width, in two halves with white noise whose FSC is .143 at 4.3 Å. It is
restored twice, at the true scale and with the same random numbers: as a whole, and where the halves agree alone.
FSC_AUC, squared error, CPU seconds and voxels that the network saw. Rows are added, under the name of the code, for
before and after; ``--region`` leaves out the whole, which takes four times as long.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch
from _inputs import calibrated_prior, clean
from _table import write_csv
from torch import Tensor

from cryofm_io import fsc
from cryofm_model import CalibratedPrior
from cryofm_ops import WhiteNoise, radial_mean, rfft
from cryofm_sampling import Tiled, restore_half_maps

LEVEL = 4.3  # Å
WAYS = ("whole", "region")


class Counting:
    """A prior that counts the voxels it sees."""

    def __init__(self, prior: CalibratedPrior) -> None:
        self.prior, self.voxels = prior, 0
        self.box, self.multiple, self.local, self.normalization = prior.box, prior.multiple, True, prior.normalization
        self.signal_power, self.denoising_error = prior.signal_power, prior.denoising_error

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """The velocity."""
        self.voxels += x.numel()
        return self.prior(x, t)


def row(path: Path, prior: CalibratedPrior, ways: tuple[str, ...], code: str) -> dict[str, Any]:
    """One map, restored each way."""
    inner = torch.from_numpy(clean(path, prior.voxel_size))
    truth = torch.zeros([2 * n for n in inner.shape])
    truth[tuple(slice(n // 2, n // 2 + n) for n in inner.shape)] = inner
    z, y, x = truth.shape
    power = radial_mean(rfft(truth).abs().square(), (z, y, x))
    at = round(2 * prior.voxel_size / LEVEL * (len(power) - 1))
    noise, generator = WhiteNoise(float(power[at] * (1 - 0.143) / 0.143) ** 0.5), torch.Generator().manual_seed(0)
    halves = [noise.sample(truth, generator=generator) for _ in range(2)]
    found: dict[str, Any] = {"code": code, "map": path.name.split(".")[0], "side": x}
    everywhere = torch.ones_like(truth)
    for name in WAYS:
        if name not in ways:
            found |= dict.fromkeys([f"{column}_{name}" for column in ("auc", "error", "cpu_s", "mvoxels")], "")
            continue
        counting = Counting(prior)
        start = time.process_time()
        result = restore_half_maps(
            Tiled.fitting(counting, (z, y, x)),
            *halves,
            generator=torch.Generator().manual_seed(0),
            scale=1.0,
            where=None if name == "region" else everywhere,
        )
        error = float((result.map - truth).square().sum() / truth.square().sum())
        found |= {
            f"auc_{name}": round(fsc(result.map.numpy(), truth.numpy(), prior.voxel_size).auc, 4),
            f"error_{name}": round(error, 4),
            f"cpu_s_{name}": round(time.process_time() - start, 1),
            f"mvoxels_{name}": round(counting.voxels / 1e6, 1),
        }
    return found


def main() -> None:
    """Parse the command line, and write a row for every map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path, nargs="+", help="clean maps")
    parser.add_argument("--prior", default="cryofm-tiny")
    parser.add_argument("--region", action="store_true", help="restore there alone")
    parser.add_argument("--name", default="this", help="of the code, in the table")
    parser.add_argument("--out", type=Path, required=True, help="CSV; rows are added")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.out.exists():
        with args.out.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    prior = calibrated_prior(args.prior)
    for path in args.maps:
        rows.append(row(path, prior, WAYS[1:] if args.region else WAYS, args.name))
        print(rows[-1], flush=True)
        write_csv(args.out, rows)


if __name__ == "__main__":
    main()
