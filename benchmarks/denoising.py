"""What the bundled prior gains on maps it was not trained on: ``python benchmarks/denoising.py MAPS... --out CSV``.

Two halves of a 64³ crop get the spectral noise of one of the paper's levels (see ``_protocol.py``). Everything else is
estimated as ``denoise.py`` does: noise power from the halves, scale by cross-validation. (The paper's tables, where the
scale is told, are those of ``paper.py``.) A row is a map at one level; the last rows are means.
"""

import argparse
import time
from pathlib import Path

import attrs
import numpy as np
import torch
from _inputs import clean
from _protocol import BOX, LEVELS, Score, crop, degraded
from _table import write_csv
from torch import Tensor

from cryofm_model import Normalization, Prior, load_prior
from cryofm_ops import (
    FourierGaussian,
    Identity,
    SpectralNoise,
    estimate_noise_power,
    fourier_filter,
    gaussian_likelihood,
    radial,
)
from cryofm_sampling import PlugAndPlay, fit_scale, restore

THREE, EIGHT = PlugAndPlay(iterations=3), PlugAndPlay()


def row_of(path: Path, level: str, seed: int, prior_name: str) -> dict[str, object]:
    """Degrade one map and restore it in every way."""
    prior = load_prior(prior_name)
    truth = torch.from_numpy(crop(clean(path, prior.voxel_size), BOX[0]))
    halves = degraded(f"spectral {level}", truth, torch.Generator().manual_seed(seed)).maps
    noise = estimate_noise_power(*halves)
    mean = (halves[0] + halves[1]) / 2

    def likelihood(x: Tensor, power: Tensor) -> FourierGaussian:
        return gaussian_likelihood(Identity(), SpectralNoise(power), x)

    gain = noise.signal_power / (noise.signal_power + noise.noise_power / 2)
    linear = fourier_filter(mean, radial(gain, BOX))
    results: dict[str, Tensor] = {"input": mean, "wiener": linear}
    seconds: dict[str, float] = {}

    def timed(name: str, units: Prior, data: Tensor, power: Tensor, sampler: PlugAndPlay) -> Tensor:
        start = time.perf_counter()
        x = restore(
            units, likelihood(data, power), shape=BOX, generator=torch.Generator().manual_seed(seed), sampler=sampler
        ).x
        seconds[name] = time.perf_counter() - start
        return x

    start = time.perf_counter()
    fit = fit_scale(
        prior,
        likelihood(halves[0], noise.noise_power),
        halves[1],
        noise.fsc,
        generator=torch.Generator().manual_seed(seed),
        guess=1 / float(np.percentile(linear, 99.999)),
    )
    seconds["scale"] = time.perf_counter() - start
    fitted = attrs.evolve(prior, normalization=Normalization(fit.normalization.mean, fit.normalization.std))
    results["true_scale_8"] = timed("true_scale_8", prior, mean, noise.noise_power / 2, EIGHT)
    results["mean_3"] = timed("mean_3", fitted, mean, noise.noise_power / 2, THREE)
    results["mean_8"] = timed("mean_8", fitted, mean, noise.noise_power / 2, EIGHT)
    both = [timed("halves_8", fitted, half, noise.noise_power, EIGHT) for half in halves]
    results["halves_8"] = (both[0] + both[1]) / 2

    row: dict[str, object] = {"map": path.name, "level": level, "scale": round(fit.normalization.scale, 3)}
    for name, x in results.items():
        score = Score.of(x, truth, prior.voxel_size)
        row[f"auc_{name}"] = round(score.auc, 4)
        row[f"fsc05_{name}"] = round(score.fsc05, 2)
        row[f"error_{name}"] = round(score.error, 4)
    return row | {f"seconds_{name}": round(value, 2) for name, value in seconds.items()}


def main() -> None:
    """Parse the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path, nargs="+", help="maps that the prior was not trained on")
    parser.add_argument("--levels", nargs="+", default=["4.3A"], choices=LEVELS, help="of noise (default 4.3A)")
    parser.add_argument("--prior", default="cryofm-tiny")
    parser.add_argument("--out", type=Path, required=True, help=".csv file")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for level in args.levels:
        of_level = []
        for seed, path in enumerate(args.maps):
            of_level.append(row_of(path, level, seed, args.prior))
            print({k: v for k, v in of_level[-1].items() if k.startswith(("map", "level", "scale", "auc"))}, flush=True)
        mean: dict[str, object] = {"map": f"mean of {len(of_level)}", "level": level}
        for key in of_level[0]:
            if key not in ("map", "level"):
                mean[key] = round(float(np.mean([float(str(row[key])) for row in of_level])), 4)
        print(mean, flush=True)
        rows += [*of_level, mean]
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
