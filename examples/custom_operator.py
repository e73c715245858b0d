"""An operator of your own, from nothing to a restored map.

    python examples/custom_operator.py --out DIR

A flexible domain: it moves from particle to particle, so that the average is blurred there, and sharp elsewhere. No
multiplication of Fourier coefficients does that, nothing that ships does, and a class of two methods says it. The data
are the example in examples/data, EMD-3488, degraded by that very operator.
Scale and noise are the truth's; the scale of your own data comes from two halves, by `cryofm_sampling.fit_scale`.
"""

import argparse
import sys
from pathlib import Path

import torch
from _example import example, start
from _script import exit_code
from torch import Tensor

from cryofm_ops import LowPass, WhiteNoise, gaussian_likelihood
from cryofm_ops.testing import check_operator
from cryofm_sampling import PlugAndPlay, PosteriorFlow, restore


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


def run(args: argparse.Namespace, folder: Path) -> None:
    """From nothing to a restored map."""
    # Is it what it claims to be? A wrong adjoint, a changed input, a lost batch axis: all would be told.
    print("FlexibleDomain passes", ", ".join(check_operator(FlexibleDomain(8.0, voxel_size=1.5))))
    sampler = PlugAndPlay(iterations=args.steps)
    drawing = PosteriorFlow(first=sampler)  # of maps that the data allow
    with example(args, evaluations=args.steps + args.samples * drawing.nfe) as given:
        operator, noise = FlexibleDomain(5.0, given.voxel_size), WhiteNoise(0.02 * given.brightest)
        observed = noise.sample(operator(given.x), generator=given.generator)
        likelihood = gaussian_likelihood(operator, noise, observed)
        draw, *samples = (
            restore(given.prior, likelihood, shape=given.shape, generator=given.generator, sampler=chosen, samples=1)
            for chosen in [sampler] + args.samples * [drawing]
        )
    given.leave(folder, observed, draw, samples)


def main() -> None:
    """Parse the command line and run."""
    start(__doc__, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
