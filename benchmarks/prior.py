"""How well a prior denoises, and what it does to power, on maps it was not trained on.

    python benchmarks/prior.py MAPS... --out NAME

NAME_velocity.csv: the error of the velocity at t = 0.1 … 0.9, beside that of always answering 0, of the best scalar
denoiser and of the best filter per shell (both told the crops' own power). NAME_power.csv and NAME_power.png: power per
shell of what the paper's protocol makes of every row (see ``_protocol.py``), and of the Wiener filter, over the
truth's; medians over maps. What the restored maps are worth is measured by ``paper.py``.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import SupportsFloat

import numpy as np
import torch
from _inputs import clean
from _protocol import BOX, ROWS, VOXEL, crop, degraded, wiener
from _table import write_csv
from numpy.typing import NDArray
from torch import Tensor

from cryofm_model import Prior, load_prior
from cryofm_ops import friedel_weights, radial, radial_mean, rfft
from cryofm_sampling import restore

TIMES = [i / 10 for i in range(1, 10)]


def velocity_errors(prior: Prior, truths: Tensor) -> list[dict[str, object]]:
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


def power_of(truth: Tensor, prior: Prior, seed: int, power: dict[str, list[Tensor]], precision: str) -> None:
    """Degrade one map in every row and restore it; adds the shells' power over the truth's to ``power``."""
    true_power = radial_mean(rfft(truth).abs() ** 2, BOX)
    generator = torch.Generator().manual_seed(seed)
    for row in ROWS:
        data = degraded(row, truth, generator)
        halves = []
        for likelihood in data.likelihoods:
            numbers = torch.Generator().manual_seed(seed)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                halves.append(restore(prior, likelihood, shape=BOX, generator=numbers).x)
        mean = sum(halves[1:], halves[0]) / len(halves)
        for kind, x in (("degraded", data.mean), ("wiener", wiener(data.of_mean, truth)), ("restored", mean)):
            power[f"{row}|{kind}"].append(radial_mean(rfft(x).abs() ** 2, BOX) / true_power)


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
                axis.plot(np.arange(1, BOX[0] // 2 + 1) / (BOX[0] * VOXEL), power[key][1:], label=kind)
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
    prior = load_prior(args.prior)
    crops = torch.from_numpy(np.stack([crop(clean(path, prior.voxel_size), BOX[0]) for path in args.maps]))
    with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
        velocities = velocity_errors(prior, crops)
    for line in velocities:
        print(line, flush=True)
    write_csv(Path(f"{args.out}_velocity.csv"), velocities)

    power: dict[str, list[Tensor]] = defaultdict(list)
    for seed, truth in enumerate(crops[: args.rows]):
        power_of(truth, prior, seed, power, args.precision)
        leave(args.out, power)  # after every map: a run of hours may be stopped


def leave(out: str, power: dict[str, list[Tensor]]) -> None:
    """Write what there is of the power."""
    medians = {key: torch.stack(ratios).median(0).values.double().numpy() for key, ratios in power.items()}
    side = BOX[0] * VOXEL
    shells: list[dict[str, object]] = [
        {"resolution_angstrom": round(side / n, 2), **{key: round(float(m[n]), 4) for key, m in medians.items()}}
        for n in range(1, BOX[0] // 2 + 1)
    ]
    write_csv(Path(f"{out}_power.csv"), shells)
    plot_power(medians, Path(f"{out}_power.png"))


if __name__ == "__main__":
    main()
