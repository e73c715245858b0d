"""What a prior is worth on maps it was not trained on: ``python benchmarks/prior.py MAPS... --out NAME``.

Two tables, NAME_velocity.csv and NAME_rows.csv, and NAME_power.csv with NAME_power.png:

- the error of the velocity at t = 0.1 … 0.9, beside that of always answering 0, of the best scalar denoiser and of the
  best filter per shell (both told the crops' own power);
- the rows of the paper (sections 5.1 to 5.3): two halves of a 64³ crop are degraded, each is restored by itself, the
  average of both is compared with the truth; `once` is their mean restored once, as ``denoise.py`` does. Noise comes
  from the halves, the scale is the truth's;
- power per shell of what was restored and of the Wiener filter, over the truth's.

The anisotropic rows have 50 times the noise power of the level 3.2 Å outside the wedge. The paper does not say which
level and factor it took; these give its three degraded FSC_AUC (.6623, .6324, .6111) within .001.

Recall is the fraction of the true density's voxels (above 0.15, where 1 is the brightest) in which the restored one is
above it too; precision the reverse. Rows of single maps come first, means and standard deviations over maps last.
"""

import argparse
import math
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import SupportsFloat

import numpy as np
import torch
from _inputs import calibrated_prior, clean
from _table import write_csv
from denoising import BOX, crop, halves_of, noise_power
from numpy.typing import NDArray
from torch import Tensor

from cryofm_io import fsc
from cryofm_model import CalibratedPrior
from cryofm_ops import (
    AnisotropicNoise,
    FourierGaussian,
    FourierMask,
    Identity,
    MissingWedge,
    SpectralNoise,
    StationaryNoise,
    WhiteNoise,
    friedel_weights,
    gaussian_likelihood,
    irfft,
    radial,
    radial_mean,
    rfft,
    wedge_alpha,
)
from cryofm_sampling import PlugAndPlay, restore

TIMES = [i / 10 for i in range(1, 10)]
SPECTRAL = ("3.2A", "4.3A", "6.1A", "8.5A", "15A")
ANISOTROPIC = (45, 30, 15)  # degrees of tilt either way
ALPHA = 50**0.5  # of the amplitude
DENSITY = 0.15
WEDGE = MissingWedge(-60, 60)
NOISE, GAP = PlugAndPlay(), PlugAndPlay(iterations=20)


def velocity_errors(prior: CalibratedPrior, truths: Tensor) -> list[dict[str, object]]:
    """Mean squared error of the velocity, in model units, over crops (n, z, y, x)."""
    crops = (truths - prior.normalization.mean) / prior.normalization.std
    power = radial(radial_mean(rfft(crops).abs().square().mean(0), BOX), BOX)
    weights = friedel_weights(BOX) / crops[0].numel()
    white = crops.square().mean()
    rows: list[dict[str, object]] = []
    for t in TIMES:
        generator = torch.Generator().manual_seed(round(10 * t))
        errors = []
        for x_0 in crops:
            x_1 = torch.randn(BOX, generator=generator)
            v = prior(((1 - t) * x_0 + t * x_1)[None], torch.tensor(t))[0]
            errors.append(float((v - (x_1 - x_0)).square().mean()))
        row: dict[str, SupportsFloat] = {
            "t": t,
            "network": np.mean(errors),
            "wiener": (weights * power / ((1 - t) ** 2 * power + t**2)).sum(),  # error of x̂_0, over t²
            "scalar": white / ((1 - t) ** 2 * white + t**2),
            "zero": white + 1,
        }
        rows.append({key: round(float(value), 4) for key, value in row.items()})
    return rows


def noises(truth: Tensor, generator: torch.Generator) -> dict[str, tuple[list[Tensor], StationaryNoise]]:
    """The noisy rows of the paper: halves, and the noise of one of them as estimated from both."""
    rows: dict[str, tuple[list[Tensor], StationaryNoise]] = {}
    for level in SPECTRAL:
        halves = list(halves_of(truth, level, generator))
        rows[f"spectral {level}"] = halves, SpectralNoise.from_half_maps(halves[0], halves[1])
    power = noise_power(truth, SPECTRAL[0])
    for tilt in ANISOTROPIC:
        alpha = wedge_alpha(-tilt, tilt, ALPHA)
        noise = AnisotropicNoise(power, alpha)
        halves = [noise.sample(truth, generator=generator) for _ in range(2)]
        rows[f"anisotropic ±{tilt}°"] = halves, AnisotropicNoise.from_half_maps(halves[0], halves[1], alpha)
    return rows


def wiener(likelihood: FourierGaussian, signal: Tensor) -> Tensor:
    """The best linear estimate for a signal of the radial power ``signal``."""
    W, y, P = likelihood.spectral_precision(), likelihood.spectral_data(), radial(signal, likelihood.shape)
    return irfft(torch.where(W > 0, P / (P + 1 / W) * y, 0), likelihood.shape)


def scores(x: Tensor, truth: Tensor) -> dict[str, float]:
    """Everything that is said of one estimate."""
    curve = fsc(x.numpy(), truth.numpy(), 1.5)
    true, found = truth > DENSITY, x > DENSITY
    return {
        "auc": curve.auc,
        "fsc05": curve.resolution(0.5),
        "error": float((x - truth).square().sum() / truth.square().sum()),
        "recall": float((true & found).sum() / true.sum()),
        "precision": float((true & found).sum() / found.sum().clamp(min=1)),
    }


def rows_of(
    name: str, truth: Tensor, prior: CalibratedPrior, seed: int, power: dict[str, list[Tensor]]
) -> list[dict[str, object]]:
    """Every row of the paper for one map; adds the shells' power over the truth's to ``power``."""
    true_power = radial_mean(rfft(truth).abs() ** 2, BOX)
    table: list[dict[str, object]] = []

    def restored(likelihood: FourierGaussian, sampler: PlugAndPlay) -> Tensor:
        numbers = torch.Generator().manual_seed(seed)
        return restore(prior, likelihood, shape=BOX, generator=numbers, sampler=sampler).x

    def compare(row: str, estimates: dict[str, Tensor], seconds: float, nfe: int, auc_gap: float = math.nan) -> None:
        line: dict[str, object] = {"map": name, "row": row}
        for kind, x in estimates.items():
            line |= {f"{key}_{kind}": round(value, 4) for key, value in scores(x, truth).items()}
            power[f"{row}|{kind}"].append(radial_mean(rfft(x).abs() ** 2, BOX) / true_power)
        line |= {"auc_gap": round(auc_gap, 4), "seconds": round(seconds, 2), "nfe": nfe}
        print({k: v for k, v in line.items() if k in ("map", "row") or k.startswith("auc")}, flush=True)
        table.append(line)

    for row, (halves, noise) in noises(truth, torch.Generator().manual_seed(seed)).items():
        start = time.perf_counter()
        both = [restored(gaussian_likelihood(Identity(), noise, half), NOISE) for half in halves]
        seconds = time.perf_counter() - start
        mean = (halves[0] + halves[1]) / 2
        W = 2 / noise.power(BOX).to(mean)
        of_mean = FourierGaussian(W, rfft(mean), BOX)
        linear, once = wiener(of_mean, true_power), restored(of_mean, NOISE)
        estimates = {"degraded": mean, "wiener": linear, "restored": (both[0] + both[1]) / 2, "once": once}
        compare(row, estimates, seconds, 16)
    observation = WEDGE(truth)
    start = time.perf_counter()
    filled = restored(gaussian_likelihood(WEDGE, WhiteNoise(0.0), observation), GAP)
    seconds = time.perf_counter() - start
    gap = FourierMask(1 - WEDGE.transfer(BOX), BOX)
    inside = fsc(gap(filled).numpy(), gap(truth).numpy(), 1.5).auc
    # The best linear filter leaves a gap empty: it is what was measured.
    estimates = {"degraded": observation, "wiener": observation, "restored": filled, "once": filled}
    compare("wedge ±60°", estimates, seconds, 20, inside)
    return table


def means(table: list[dict[str, object]]) -> list[dict[str, object]]:
    """Mean and standard deviation over maps, row by row."""
    lines: list[dict[str, object]] = []
    for row in dict.fromkeys(str(line["row"]) for line in table):
        group = [line for line in table if line["row"] == row]
        for label, statistic in (("mean", np.mean), ("standard deviation", partial(np.std, ddof=1))):
            line: dict[str, object] = {"map": f"{label} of {len(group)}", "row": row}
            for key in group[0]:
                if key not in ("map", "row"):
                    line[key] = (
                        round(float(statistic([float(str(other[key])) for other in group])), 4)
                        if len(group) > 1 or statistic is np.mean
                        else math.nan
                    )
            lines.append(line)
    return lines


def plot_power(power: dict[str, NDArray[np.float64]], path: Path) -> None:
    """One panel for each row: power over the truth's against resolution."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(key.split("|")[0] for key in power))
    figure, axes = plt.subplots(3, 3, figsize=(12, 9), sharex=True, sharey=True)
    for name, axis in zip(names, axes.flat, strict=False):
        for kind in ("degraded", "wiener", "restored"):
            if (key := f"{name}|{kind}") in power:
                axis.plot(np.arange(1, 33) / 96, power[key][1:], label=kind)
        axis.axhline(1, color="black", linewidth=0.5)
        axis.set(title=name, yscale="log", ylim=(0.005, 20))
        axis.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.supxlabel("spatial frequency (1/Å)")
    figure.supylabel("power / the truth's power")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


@torch.no_grad()
def main() -> None:
    """Parse the command line, measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path, nargs="+", help="maps that the prior was not trained on")
    parser.add_argument("--prior", default="cryofm-tiny")
    parser.add_argument("--rows", type=int, help="how many of the maps are restored (default all)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    parser.add_argument("--out", required=True, help="beginning of the names of all results")
    args = parser.parse_args()
    with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
        measure(args)


def measure(args: argparse.Namespace) -> None:
    """Write the tables."""
    prior = calibrated_prior(args.prior)
    truths = [crop(clean(path, prior.voxel_size)) for path in args.maps]
    crops = torch.from_numpy(np.stack(truths))
    velocities = velocity_errors(prior, crops)
    for line in velocities:
        print(line, flush=True)
    write_csv(Path(f"{args.out}_velocity.csv"), velocities)

    power: dict[str, list[Tensor]] = defaultdict(list)
    table: list[dict[str, object]] = []
    for seed, (path, truth) in enumerate(list(zip(args.maps, crops, strict=True))[: args.rows]):
        table += rows_of(path.stem, truth, prior, seed, power)
        leave(args.out, table, power)  # after every map: a run of hours may be stopped
    for line in means(table):
        print(line, flush=True)


def leave(out: str, table: list[dict[str, object]], power: dict[str, list[Tensor]]) -> None:
    """Write what there is of the rows and the power."""
    write_csv(Path(f"{out}_rows.csv"), table + means(table))
    medians = {key: torch.stack(ratios).median(0).values.double().numpy() for key, ratios in power.items()}
    shells: list[dict[str, object]] = [
        {"resolution_angstrom": round(96 / shell, 2), **{key: round(float(m[shell]), 4) for key, m in medians.items()}}
        for shell in range(1, 33)
    ]
    write_csv(Path(f"{out}_power.csv"), shells)
    plot_power(medians, Path(f"{out}_power.png"))


if __name__ == "__main__":
    main()
