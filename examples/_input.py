"""What the scripts that restore a map take: half maps, or the example that ships with noise of the paper's."""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import attrs
import numpy as np
import torch
from _script import above_zero, sha256, state_file
from torch import Tensor

from cryofm_io import DensityMap, check_half_maps, normalise_clean, read_map
from cryofm_ops import (
    AnisotropicNoise,
    NoiseEstimate,
    SpectralNoise,
    estimate_noise_power,
    radial_mean,
    rfft,
)
from cryofm_sampling import PosteriorFlow

DATA = Path(__file__).parent / "data"
DEMO_MAP, DEMO_CURVES = DATA / "EMD-3488.mrc.gz", DATA / "fsc_curves.csv"


class Input(NamedTuple):
    """Two half maps without solvent, the truth where it is known, SHA-256 sums of files by name, and the solvent."""

    half1: DensityMap
    half2: DensityMap
    truth: DensityMap | None
    files: dict[str, str]
    solvent: float = 0.0  # of the mean of both


UNCERTAINTY = "uncertainty.mrc"
SAMPLES_HELP = (
    f"maps to draw of those that the data allow, each of {PosteriorFlow().nfe} network evaluations or some more; from "
    f"two on, their standard deviation is {UNCERTAINTY} (default 0)"
)


def read_halves(args: argparse.Namespace) -> Input:
    """The two half maps that the command line names."""
    half1, half2 = (read_map(path, voxel_size=args.voxel_size) for path in (args.half1, args.half2))
    check_half_maps(half1, half2, allow_masked=args.allow_masked)
    (half1, one), (half2, two) = without_solvent(half1), without_solvent(half2)
    return Input(half1, half2, None, {str(path): sha256(path) for path in (args.half1, args.half2)}, (one + two) / 2)


def without_solvent(density: DensityMap) -> tuple[DensityMap, float]:
    """A map less its median, and that.

    Beside a large constant transforms in single precision lose the map; and a mask makes a plateau of it, on which
    everything agrees. What is left of the solvent the prior finds.
    """
    solvent = float(np.median(density.data))
    return attrs.evolve(density, data=density.data - solvent), solvent


def demo_truth() -> DensityMap:
    """EMD-3488 (human haemoglobin) without its solvent's noise."""
    deposited = read_map(DEMO_MAP)
    clean, scale = normalise_clean(deposited.data)
    return attrs.evolve(deposited, data=scale.inverse(clean))


def demo_halves(
    level: str, seed: int, what: str = "noise", alpha_variance: Callable[[Tensor], Tensor] | None = None
) -> Input:
    """The truth, and two halves with noise of one of the paper's levels (section 5.1), times α of the direction."""
    truth = demo_truth()
    x = torch.from_numpy(truth.data)
    with DEMO_CURVES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    signal = radial_mean(rfft(x).abs() ** 2, truth.shape)
    frequency = np.linspace(0, 0.5 / truth.voxel_size, len(signal))
    # The last entries repeat beyond the curve's 3 Å, and its largest value at frequency 0.
    correlation = np.interp(frequency, [float(r["freq"]) for r in rows], [float(r[level]) for r in rows])
    f = torch.from_numpy(correlation).clamp(1e-4, 1 - 1e-6).to(x)
    power = signal * (1 - f) / f
    noise = SpectralNoise(power) if alpha_variance is None else AnisotropicNoise(power, alpha_variance)
    generator = torch.Generator().manual_seed(seed)
    half1, half2 = (attrs.evolve(truth, data=noise.sample(x, generator=generator).numpy()) for _ in range(2))
    print(f"example: {DEMO_MAP.name} (human haemoglobin), in two halves with {what} of the paper's level {level}")
    return Input(half1, half2, truth, {path.name: sha256(path) for path in (DEMO_MAP, DEMO_CURVES)})


def noise_of(half1: Tensor, half2: Tensor, finer: float) -> NoiseEstimate:
    """Noise of half maps on a grid whose voxels are ``finer`` times the measured ones.

    Whether they are raw has been judged on their own grid. Beyond the Nyquist frequency of that grid nothing was
    measured, which is noise without end.
    """
    noise = estimate_noise_power(half1, half2, allow_masked=True)
    measured = torch.linspace(0, 1, len(noise.noise_power)) <= finer
    endless = 1e6 * noise.noise_power.max()
    return attrs.evolve(
        noise,
        noise_power=torch.where(measured, noise.noise_power, endless),
        signal_power=torch.where(measured, noise.signal_power, 0),
    )


def add_half_map_flags(parser: argparse.ArgumentParser) -> None:
    """Two half maps and what is particular to them."""
    add = parser.add_argument
    add("half1", type=Path, nargs="?", help="first raw half map (MRC/CCP4, .gz too); none: the example")
    add("half2", type=Path, nargs="?", help="second raw half map, on the same grid")
    add_map_flags(parser, "half maps")
    add(
        "--allow-masked",
        action="store_true",
        help="take masked or filtered half maps; noise is then underestimated",
    )


def add_map_flags(parser: argparse.ArgumentParser, of: str) -> None:
    """What may be said of the input maps."""
    parser.add_argument(
        "--mask",
        type=Path,
        help=f"soft mask, 0..1, on the grid of the {of}: applied to the FSC and the result, whose solvent is then 0",
    )
    parser.add_argument("--voxel-size", type=float, help=f"of the {of} and the mask, Å, where the headers are wrong")
    parser.add_argument(
        "--scale",
        type=above_zero,
        help=f"what the density of the {of} is multiplied by to be the prior's, such as the scale in the run.json of a "
        "map of the same kind; found by cross-validation where it is not given",
    )
    add_checkpoint_flag(parser, "every restoration and sample")
    add_samples_flag(parser)


def add_checkpoint_flag(parser: argparse.ArgumentParser, of: str) -> None:
    """Where a killed run goes on."""
    parser.add_argument(
        "--checkpoint",
        type=state_file,
        help=f"file beside which the state of {of} is kept: the same line goes on from there",
    )


def add_samples_flag(parser: argparse.ArgumentParser) -> None:
    """How many maps to draw."""
    parser.add_argument("--samples", type=natural, default=0, help=SAMPLES_HELP)


def natural(text: str) -> int:
    """A whole number from 0 on, or what argparse makes a message of."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return number


def sample_files(samples: int) -> list[str]:
    """Files of the samples, and of their standard deviation where there is one."""
    return [*sample_names(samples), *([UNCERTAINTY] if samples > 1 else [])]


def sample_names(samples: int) -> list[str]:
    """Files of the samples."""
    return [f"sample_{i + 1:02d}.mrc" for i in range(samples)]
