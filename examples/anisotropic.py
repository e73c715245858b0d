"""Restore a map whose noise depends on direction, as preferred orientations and tilted data make it.

    python examples/anisotropic.py half1.mrc half2.mrc --out DIR

How the noise depends on direction is measured on the halves, in cones (``--cone``). Where it is known that only what
tilts between two limits see has little noise, say so: ``--kept -45 45 --amplitude 7``.

Without half maps it restores the example in examples/data: EMD-3488 with noise of the paper's level 3.2 Å between
tilts of ±45°, and 50 times its power elsewhere (section 5.2). The result is for looking and for building models.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _input import Input, add_half_map_flags, demo_halves, noise_of, read_halves, sample_files
from _restoration import Model, restore_halves
from _results import FILES
from _script import add_flags, exit_code, launch
from _site import Site, calibrated_prior
from torch import Tensor

from cryofm_ops import (
    FourierGaussian,
    WithoutMean,
    directional,
    estimate_alpha,
    radial,
    radial_mean,
    rfft,
    wedge_alpha,
)
from cryofm_sampling import PlugAndPlay

DEMO_LEVEL, DEMO_TILT, DEMO_AMPLITUDE = "3.2A", 45.0, math.sqrt(50)


def run(args: argparse.Namespace, folder: Path) -> None:
    """The whole job, from the files that ``args`` name to those in ``folder``."""
    prior = calibrated_prior(args)
    given = read_input(args)
    site = Site.of(args, prior, given.half1)
    shape = site.grid.target
    halves = site.halves(given.half1, given.half2)

    # The halves show the noise's mean over each shell, and α how it is spread there: N = α h / mean of α (D.2).
    shells = noise_of(*halves, site.finer)
    alpha_variance, record = alpha_of(args, given, site, halves)
    alpha = directional(alpha_variance, shape).to(halves[0])
    noise = (alpha * radial(shells.noise_power / radial_mean(alpha, shape), shape)).to(site.device)
    precision = WithoutMean().transfer(shape).to(noise) / noise  # halves come on any constant
    signal = radial(shells.signal_power, shape).to(site.device)
    model = Model(
        fsc=shells.fsc,
        observe=lambda x, share: FourierGaussian(precision / share, rfft(x), shape),
        gain=signal / (signal + noise / 2),
        record={"noise_power_of_one_half": shells.noise_power.tolist(), **record},
    )
    restore_halves(args, folder, site, given, model, PlugAndPlay(iterations=args.steps))


def alpha_of(
    args: argparse.Namespace, given: Input, site: Site, halves: tuple[Tensor, Tensor]
) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    """How the noise's variance depends on direction, and what to record of it."""
    if args.kept is not None:
        low, high = args.kept
        return wedge_alpha(low, high, args.amplitude, args.tilt_axis), {"alpha": "as given"}
    # A finer grid than the halves' own has shells without noise; directions are the same on either.
    one, two = halves if site.finer >= 1 else (torch.from_numpy(half.data) for half in (given.half1, given.half2))
    # Whether they are raw has been judged, on their own grid.
    found = estimate_alpha(one, two, half_angle_deg=args.cone, allow_masked=True)
    alpha = found.alpha_variance
    least, most = float(alpha.values.min()), float(alpha.values.max())
    print(f"noise power between {least:.2g} and {most:.2g} of the mean over directions; cFAR {found.cfar:.2f}")
    table = {"directions_xyz": alpha.directions.tolist(), "alpha_variance": alpha.values.tolist()}
    return alpha, {"alpha": table, "cfar": found.cfar}


def read_input(args: argparse.Namespace) -> Input:
    """The two half maps that the command line names, or the example."""
    if args.half1 is not None:
        return read_halves(args)
    alpha = wedge_alpha(-DEMO_TILT, DEMO_TILT, DEMO_AMPLITUDE)
    return demo_halves(DEMO_LEVEL, args.seed, f"noise (50 times its power beyond ±{DEMO_TILT:g}°)", alpha)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_half_map_flags(parser)
    add = parser.add_argument
    add("--cone", type=float, default=10.0, help="half-angle of the cones in degrees, 5 to 45; wider for small boxes")
    add("--kept", type=float, nargs=2, metavar=("MIN", "MAX"), help="tilts in degrees between which noise is low")
    add("--amplitude", type=float, help="of the noise elsewhere over that between them; goes with --kept")
    add("--tilt-axis", choices=("x", "y"), default="y", help="of --kept; the beam is along z (default y)")
    add_flags(parser, steps=8, of="network evaluations for each restored map, 2 or more")
    args = parser.parse_args(arguments)
    if (args.half1 is None) != (args.half2 is None):
        parser.error("give both half maps, or none for the example")
    if (args.kept is None) != (args.amplitude is None):
        parser.error("--kept and --amplitude go together")
    if args.steps < 2:
        parser.error("--steps must be at least 2")
    return args


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    launch(args, [*FILES, *sample_files(args.samples)], run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
