"""Draw density maps from the prior alone: what it believes before it has seen any data.

    python examples/sample_prior.py --out DIR

Leaves maps, their sections, and their radial power, beside that of the maps that the prior was trained for where the
prior knows it: one that has learnt has both alike. No sample shows any molecule that exists.
"""

import argparse
import csv
import sys
from functools import partial
from pathlib import Path

from _first import check_line
from _flags import add_checkpoint_flag, add_flags, positive, sample_names, side


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", dest="samples", type=positive, default=4, help="of samples (default 4)")
    parser.add_argument("--side", type=side, default=64, help="of the cubic box, in voxels of the prior (default 64)")
    add_checkpoint_flag(parser, "every sample")
    add_flags(parser, steps=20, of="of Heun's rule, two network evaluations each")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

import numpy as np
import torch
from _command_line import by, check_disk, checkpoint, chosen_prior, exit_code, in_tiles, run_script, tell_plan
from _maps import device_of
from _record import cost, provenance, write_run
from _streams import bar
from numpy.typing import NDArray
from torch import Tensor

from cryofm_io import DensityMap, atomic_write, plot_slices, write_map, write_report
from cryofm_model import CalibratedPrior, Prior
from cryofm_ops import radial_mean, rfft
from cryofm_sampling import Flow, check_memory

FILES = ["samples.png", "power.csv", "power.png", "report.html", "open.cxc", "run.json"]
NOTE = "Drawn from a prior alone: no measurement, no molecule."


@torch.no_grad()
def run(args: argparse.Namespace, folder: Path) -> None:
    """The whole job."""
    prior = chosen_prior(args)
    device = device_of(prior)
    shape = (args.side, args.side, args.side)
    velocity = in_tiles(prior, shape, args.precision)
    need = check_memory(shape, velocity, device=device, samples=args.samples)
    volume = 4 * args.side**3
    flow, disk = Flow(args.steps), check_disk(args.out, args.samples * volume, volume)
    count = args.samples * flow.calls
    tell_plan(args, need, disk, velocity, shape, count, f"{count} evaluations, {flow.calls} a sample")
    print(f"{args.samples} samples of {by(shape)} voxels of {prior.voxel_size:g} Å; prior {args.prior} on {device}")

    generator = torch.Generator(device).manual_seed(args.seed)
    state = checkpoint(args)
    parts = [state and state.part(k) for k in range(args.samples)]
    with bar(total=args.samples * args.steps, unit=" steps") as shown:
        draw = partial(flow, velocity, shape=shape, generator=generator, callback=lambda *_: shown.update())
        samples = [draw(checkpoint=part).x.cpu() for part in parts]
    density = [(z * prior.normalization.std + prior.normalization.mean).numpy() for z in samples]
    for name, data in zip(sample_names(args.samples), density, strict=True):
        write_map(folder / name, DensityMap(data, prior.voxel_size, labels=(NOTE,)))
    pictures = {f"sample {i}": data for i, data in enumerate(density, 1)}
    plot_slices(pictures, folder / "samples.png", prior.voxel_size)
    powers = write_powers(folder, prior, samples)
    expected = powers.get("the prior's data")
    ratio = None if expected is None else float(np.median(powers["mean of the samples"][1:] / expected[1:]))
    record = {
        "algorithm": {"sampler": "Flow", "steps": flow.steps, "integrator": flow.integrator},
        "power_over_the_prior_s_data": ratio,
        "note": NOTE,
    }
    write_run(folder / "run.json", provenance(args) | record | {"took": cost()})
    write_report(folder)
    beside = "" if ratio is None else f"; median power {ratio:.2f} times that of the prior's data"
    print(f"{flow.calls} network evaluations each{beside}")


def write_powers(folder: Path, prior: Prior, samples: list[Tensor]) -> dict[str, NDArray[np.float64]]:
    """Radial powers in model units as a table and a picture."""
    z, y, x = samples[0].shape
    own = [radial_mean(rfft(sample.double()).abs() ** 2, (z, y, x)).numpy() for sample in samples]
    relative = np.linspace(0, 1, len(own[0]))  # of Nyquist
    powers: dict[str, NDArray[np.float64]] = {}
    if isinstance(prior, CalibratedPrior):
        expected = prior.signal_power.cpu().double().numpy()
        powers["the prior's data"] = np.interp(relative, np.linspace(0, 1, len(expected)), expected)
    powers["mean of the samples"] = np.mean(own, axis=0)
    powers |= {f"sample {i}": power for i, power in enumerate(own, 1)}
    frequency = relative / (2 * prior.voxel_size)
    with atomic_write(folder / "power.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["frequency_per_angstrom", *powers])
        rows.writerows([f"{v:.6g}" for v in row] for row in zip(frequency, *powers.values(), strict=True))
    plot(powers, frequency, folder / "power.png")
    return powers


def plot(powers: dict[str, NDArray[np.float64]], frequency: NDArray[np.float64], path: Path) -> None:
    """The powers, on a logarithmic scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for label, power in powers.items():
        style = {"color": "0.75", "zorder": 1} if label.startswith("sample") else {}
        axes.semilogy(frequency[1:], power[1:], label=label, **style)
    axes.set(xlabel="spatial frequency (1/Å)", ylabel="power per coefficient, model units", xlim=(0, frequency[-1]))
    axes.legend(frameon=False, fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    run_script(args, [*sample_names(args.samples), *FILES], run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
