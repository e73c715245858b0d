"""An operator of your own, from nothing to a restored map.

    python examples/custom_operator.py --out DIR

A flexible domain: it moves from particle to particle, so that the average is blurred there, and sharp elsewhere. No
multiplication of Fourier coefficients does that, nothing that ships does, and a class of two methods says it. The data
are the example in examples/data, EMD-3488, degraded by that very operator.
Scale and noise are the truth's; those of your own data come from two halves: `cryofm_sampling.restore_half_maps`.
"""

import argparse
import sys
from pathlib import Path

from _first import check_line
from _flags import add_flags, add_samples_flag

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
add_samples_flag(parser)
add_flags(parser, steps=8, of="network evaluations")
if __name__ == "__main__":
    check_line(parser.parse_args)  # before imports that take seconds

import numpy as np
import torch
from _command_line import Written, calibrated_prior, exit_code, run_script
from _maps import DEMO_MAP, Measured, PriorGrid, check_grid, demo_map
from _record import provenance
from _results import result_names, write_results
from torch import Tensor

from cryofm_ops import LowPass, WhiteNoise, gaussian_likelihood
from cryofm_ops.testing import check_operator
from cryofm_sampling import PlugAndPlay, PosteriorFlow, Rescaled, RestoredMap, ScaledNormalization, ScaleFit, restore


class FlexibleDomain:
    """A = (1 − w) + w B: the map itself where w is 0, on the left, blurred by B where it is 1, on the right."""

    def __init__(self, resolution: float, voxel_size: float) -> None:
        self.blur = LowPass(resolution, voxel_size, edge_fraction=1.0)

    def w(self, x: Tensor) -> Tensor:
        """It rises about the centre, within a few voxels."""
        return torch.linspace(-0.25, 0.25, x.shape[-1]).mul(x.shape[-1]).sigmoid().to(x)

    def __call__(self, x: Tensor, /) -> Tensor:
        """A x, for x `(*batch, z, y, x)` of any precision, on any device."""
        return (1 - self.w(x)) * x + self.w(x) * self.blur(x)

    def adjoint(self, y: Tensor, /) -> Tensor:
        """Aᵀ y = (1 − w) y + Bᵀ (w y): now the weight comes first."""
        return (1 - self.w(y)) * y + self.blur.adjoint(self.w(y) * y)


def run(args: argparse.Namespace, folder: Path) -> Written:
    """From nothing to a restored map."""
    # 72 Å are not much more than the molecule.
    prior, truth, sampler = calibrated_prior(args), demo_map(side=72.0), PlugAndPlay(iterations=args.steps)
    grid = PriorGrid.of(truth, prior)
    tiled = check_grid(args, prior, grid.transform.target, truth.shape, result_names(args.samples), sampler)
    # Is it what it claims to be? A wrong adjoint, a changed input, a lost batch axis: all would be told.
    print("FlexibleDomain passes", ", ".join(check_operator(FlexibleDomain(8.0, voxel_size=1.5))))
    x, brightest = grid.forward(torch.from_numpy(truth.data)), float(np.percentile(demo_map().data, 99.999))
    scale = ScaledNormalization(prior.normalization, 1 / brightest)
    generator = torch.Generator(grid.device).manual_seed(args.seed)

    operator, noise = FlexibleDomain(5.0, grid.transform.voxel_size), WhiteNoise(0.02 * brightest)
    observed = noise.sample(operator(x), generator=generator)
    likelihood, units = gaussian_likelihood(operator, noise, observed), Rescaled(tiled, scale)
    draw, *samples = (
        restore(units, likelihood, shape=tuple(x.shape), generator=generator, sampler=chosen, samples=1)
        for chosen in [sampler] + args.samples * [PosteriorFlow(first=sampler)]  # of maps that the data allow
    )
    result = RestoredMap.of(draw, observed, ScaleFit(scale, (), 0), samples=samples, offset=0.0, grid=grid)
    return write_results(folder, result, Measured((truth,), truth=truth), grid, provenance(args, DEMO_MAP))


def main() -> None:
    """Parse the command line and run."""
    args = parser.parse_args()
    run_script(args, result_names(args.samples), run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
