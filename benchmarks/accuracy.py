"""How much do bf16 and the solver of `log_likelihood` change? ``python benchmarks/accuracy.py MAP --out CSV``.

Restored at the paper's level 4.3 Å (64³, told the scale) with the network in fp32 and in bf16: the FSC of the two
results, beside that of two seeds in fp32, and the FSC_AUC against the truth. Then the log-likelihood of crops, in nats
and model units, by several solvers with the same probes, and how far each is off the finest.
"""

import argparse
import time
from pathlib import Path
from typing import TypedDict

import torch
from _inputs import calibrated_prior, clean
from _protocol import BOX, crop, degraded
from _table import write_csv
from torch import Tensor

from cryofm_io import fsc
from cryofm_model import CalibratedPrior
from cryofm_ops import Identity, SpectralNoise, estimate_noise_power, gaussian_likelihood
from cryofm_sampling import log_likelihood, restore

Row = dict[str, object]
SEEDS = (0, 1)
VOXEL_SIZE = 1.5  # of the maps as the prior knows them, Å


class Solver(TypedDict, total=False):
    """Settings of `log_likelihood`."""

    rtol: float
    atol: float
    steps: int


SOLVERS = (
    Solver(rtol=1e-6, atol=1e-6),  # the finest
    Solver(rtol=1e-5, atol=1e-5),
    Solver(rtol=1e-4, atol=1e-4),
    *(Solver(steps=n) for n in (40, 20, 10)),
)
CROPS = {  # first voxel of a crop of the 64³, side, probes
    "inside, 16³": (24, 16, 4),
    "surface, 16³": (8, 16, 4),
    "solvent, 16³": (0, 16, 4),
    "inside, 32³": (16, 32, 2),
}


def restorations(prior: CalibratedPrior, truth: Tensor) -> list[Row]:
    """In bf16 and fp32, by two seeds each."""
    one, two = degraded("spectral 4.3A", truth, torch.Generator().manual_seed(0)).maps
    noise = SpectralNoise(estimate_noise_power(one, two).noise_power / 2)
    likelihood = gaussian_likelihood(Identity(), noise, (one + two) / 2)
    found: dict[tuple[str, int], Tensor] = {}
    rows: list[Row] = []
    for seed in SEEDS:
        for precision in ("fp32", "bf16"):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                generator = torch.Generator().manual_seed(seed)
                x = restore(prior, likelihood, shape=BOX, generator=generator).x
            found[precision, seed] = x
            seconds = time.perf_counter() - start
            rows.append({"what": precision, "seed": seed, "auc": auc(x, truth)[0], "seconds": round(seconds, 2)})
    pairs = [("fp32", seed, "bf16", seed) for seed in SEEDS] + [("fp32", *SEEDS[:1], "fp32", *SEEDS[1:])]
    for first, i, second, j in pairs:
        mean, least = auc(found[first, i], found[second, j])
        rows.append({"what": f"{first} beside {second}", "seed": f"{i} {j}", "auc": mean, "least_fsc": least})
    return rows


def auc(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean and least of the FSC over the shells from the first to Nyquist."""
    curve = fsc(x.numpy(), y.numpy(), VOXEL_SIZE)
    return round(curve.auc, 6), round(float(curve.correlation.min()), 6)


def likelihoods(prior: CalibratedPrior, truth: Tensor) -> list[Row]:
    """Of every crop, by every solver."""
    z = (truth - prior.normalization.mean) / prior.normalization.std
    rows: list[Row] = []
    for name, (first, side, probes) in CROPS.items():
        x = z[(slice(first, first + side),) * 3]
        nats: list[float] = []
        for solver in SOLVERS:
            start = time.perf_counter()
            numbers = torch.Generator().manual_seed(0)
            found = log_likelihood(prior, x, generator=numbers, probes=probes, units="model", **solver)
            nats.append(float(found.nats))
            rows.append(
                {
                    "what": f"log-likelihood, {name}",
                    "solver": " ".join(f"{key}={value}" for key, value in solver.items()),
                    "nats": round(nats[-1], 2),
                    "standard_error": round(float(found.standard_error), 2),
                    "off": round(nats[-1] - nats[0], 2),
                    "points": int(found.nfe) // (1 + probes),
                    "seconds": round(time.perf_counter() - start, 2),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Parse the command line; measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("map", type=Path, help="a clean map")
    parser.add_argument("--prior", default="cryofm-tiny")
    parser.add_argument("--out", type=Path, required=True, help=".csv file")
    args = parser.parse_args()
    prior = calibrated_prior(args.prior)
    truth = torch.from_numpy(crop(clean(args.map, prior.voxel_size)))
    rows = [*restorations(prior, truth), *likelihoods(prior, truth)]
    names = dict.fromkeys(name for row in rows for name in row)
    write_csv(args.out, [{name: row.get(name, "") for name in names} for row in rows])


if __name__ == "__main__":
    main()
