"""Training crops: how fast they are cut, and how like measured maps they are.

``python benchmarks/training_data.py --simulated FOLDER --measured FOLDER --validation FOLDER --out FOLDER``

``training_data_speed.csv``: crops a second of one core (processor time) for each augmentation, cut one by one as
training cuts them. ``training_data.csv`` and ``.png``: mean radial power of 64³ crops (model units, orthonormal FFT)
and the histogram of their values (density, 1 is the 99.999th percentile), for simulated crops, the same after
`imitate_measured`, measured training maps, the mixture of the bundled prior, and measured maps kept back.
"""

import argparse
import itertools
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import torch
from _table import write_csv
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cryofm_model import Normalization
from cryofm_model.data import MapSet
from cryofm_model.data.mixture import CropSource, Imitated, Mixture
from cryofm_ops import radial_mean, rfft

UNITS = Normalization()
BINS = np.linspace(0, 1, 51)
COLOURS = {"measured, kept back": "black", "measured": "tab:blue", "simulated": "tab:orange", "imitated": "tab:green"}


def crops_per_second(source: CropSource, side: int, seconds: float) -> float:
    """Of one core: the clock is the process's, which other programs do not move."""
    cut = partial(source.crops, 1, side)
    cut(np.random.default_rng(0))  # what is made once
    start, number = time.process_time(), 0
    while (passed := time.process_time() - start) < seconds:
        cut(np.random.default_rng([0, number]))
        number += 1
    return number / passed


def statistics(source: CropSource, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean power per shell, and the fraction of the voxels in each bin."""
    crops = torch.cat([source.crops(1, 64, np.random.default_rng([1, number])) for number in range(count)])
    power = radial_mean(rfft(crops).abs().square().mean(0), (64, 64, 64))
    density = (crops * UNITS.std + UNITS.mean).numpy()
    return power.double().numpy(), np.histogram(density.clip(0, 1), BINS)[0] / density.size


def plot(path: Path, frequency: NDArray[np.float64], found: Mapping[str, Sequence[NDArray[np.float64]]]) -> None:
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    power, ratio, values = figure.subplots(1, 3)
    for name, (shells, histogram) in found.items():
        style = {"label": name, "color": COLOURS.get(name, "tab:red"), "ls": "-" if name in COLOURS else "--"}
        power.semilogy(frequency[1:], shells[1:], **style)
        ratio.semilogy(frequency[1:], shells[1:] / found["measured, kept back"][0][1:], **style)
        values.semilogy(BINS[:-1] + np.diff(BINS) / 2, np.maximum(histogram, 1e-7), **style)
    for axes, title in ((power, "radial power, model units"), (ratio, "over that of measured maps kept back")):
        ticks = (24, 12, 8, 6, 4.8, 4, 3)
        axes.set(title=title, xlabel="resolution, Å", xticks=[1 / d for d in ticks], xticklabels=ticks)
        axes.grid(alpha=0.3)
    values.set(title="values", xlabel="density", ylabel="fraction of the voxels", ylim=(1e-6, 1))
    values.grid(alpha=0.3)
    power.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("simulated", "measured", "validation"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="folder of .mrc maps")
    parser.add_argument("--cache", type=Path, help="folder for prepared maps")
    parser.add_argument("--voxel-size", type=float, default=1.5, help="Å (default 1.5)")
    parser.add_argument("--count", type=int, default=200, help="crops of each kind for power and values")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each timing")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables and the picture")
    args = parser.parse_args()
    torch.set_num_threads(1)
    simulated, measured, kept_back = (
        MapSet.from_files(sorted(folder.glob("*.mrc")), UNITS, args.voxel_size, cache=args.cache)
        for folder in (args.simulated, args.measured, args.validation)
    )
    imitated = Imitated(simulated, 1.0, UNITS, args.voxel_size)
    mixture = Mixture([(measured, 0.08), (attrs.evolve(imitated, fraction=0.5), 0.92)])

    timed: dict[str, CropSource] = {
        "centre crop": attrs.evolve(simulated, place="centre", turn="none"),
        "at density": attrs.evolve(simulated, turn="none"),
        "rot24": simulated,
        "random rotation": attrs.evolve(simulated, turn="so3"),
        "rot24, imitated": imitated,
        "mixture of the bundled prior": mixture,
    }
    speeds = []
    for (name, source), side in itertools.product(timed.items(), (32, 64)):
        speed = crops_per_second(source, side, args.seconds)
        speeds.append({"augmentation": name, "side": side, "crops_per_s": f"{speed:.3g}"})
        print(f"{name:30s} {side}³ {speed:8.3g} crops/s", flush=True)
    write_csv(args.out / "training_data_speed.csv", speeds)

    kinds: dict[str, CropSource] = {
        "simulated": simulated,
        "imitated": imitated,
        "measured": measured,
        "mixture": mixture,
    }
    found = {name: statistics(source, args.count) for name, source in kinds.items()}
    found["measured, kept back"] = statistics(kept_back, args.count)
    frequency = np.linspace(0, 0.5, 33) / args.voxel_size
    rows = [
        {"quantity": quantity, "at": f"{x:.4f}", **{name: f"{both[index][i]:.4g}" for name, both in found.items()}}
        for index, (quantity, grid) in enumerate(
            (("power at 1/Å", frequency), ("fraction at density", BINS[:-1] + np.diff(BINS) / 2))
        )
        for i, x in enumerate(grid)
    ]
    write_csv(args.out / "training_data.csv", rows)
    plot(args.out / "training_data.png", frequency, found)
    print("power at Å  " + "  ".join(found))
    for d in (24.0, 12.0, 8.0, 6.86, 4.8, 4.0, 3.2):
        print(f"{d:10.2f}  " + "  ".join(f"{np.interp(1 / d, frequency, both[0]):.3g}" for both in found.values()))


if __name__ == "__main__":
    main()
