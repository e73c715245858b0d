"""Restore a map from its two half maps with the bundled prior.

    python examples/denoise.py half1.mrc half2.mrc --out DIR

Without half maps it restores the example in examples/data: EMD-3488 with noise of the paper's level 4.3 Å.
The result is for looking at and for building models, never a target of refinement nor a claim of resolution.
"""

import argparse
import sys
from pathlib import Path

from _input import Input, add_half_map_flags, demo_halves, noise_of, read_halves, sample_files
from _restoration import Model, restore_halves
from _results import FILES
from _script import add_flags, exit_code, launch
from _site import Site, calibrated_prior
from torch import Tensor

from cryofm_ops import FourierGaussian, NoiseEstimate, SpectralNoise, WithoutMean, gaussian_likelihood, radial
from cryofm_sampling import PlugAndPlay

DEMO_LEVEL = "4.3A"


def run(args: argparse.Namespace, folder: Path) -> None:
    """The whole job, from the files that ``args`` name to those in ``folder``."""
    prior = calibrated_prior(args)
    given = read_input(args)
    site = Site.of(args, prior, given.half1)

    # How the data came about: the map plus noise, whose power the halves show. Their mean has half of it.
    noise = noise_of(*site.halves(given.half1, given.half2), site.finer)
    model = Model(
        fsc=noise.fsc,
        observe=lambda x, share: observed(x, noise.noise_power * share),
        gain=radial(wiener_gain(noise).to(site.device), site.grid.target),
        record={"noise_power_of_one_half": noise.noise_power.tolist()},
    )
    restore_halves(args, folder, site, given, model, PlugAndPlay(iterations=args.steps))


def read_input(args: argparse.Namespace) -> Input:
    """The two half maps that the command line names, or the example."""
    return demo_halves(DEMO_LEVEL, args.seed) if args.half1 is None else read_halves(args)


def observed(x: Tensor, noise_power: Tensor) -> FourierGaussian:
    """The likelihood of a map that is the truth plus noise of a radial power, on an unknown constant."""
    return gaussian_likelihood(WithoutMean(), SpectralNoise(noise_power.to(x)), x)


def wiener_gain(noise: NoiseEstimate) -> Tensor:
    """Radial gain of the best linear filter of the mean of both halves."""
    return noise.signal_power / (noise.signal_power + noise.noise_power / 2)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_half_map_flags(parser)
    add_flags(parser, steps=8, of="network evaluations for each restored map, 2 or more")
    args = parser.parse_args(arguments)
    if (args.half1 is None) != (args.half2 is None):
        parser.error("give both half maps, or none for the example")
    if args.steps < 2:
        parser.error("--steps must be at least 2")
    return args


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    launch(args, [*FILES, *sample_files(args.samples)], run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
