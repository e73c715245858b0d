"""Inpainting by pseudo-inverse replacement: the missing wedge (CryoFM, appendix E.1, Alg. 2).

At every step what was measured replaces what the prior makes of it,
x̂_0' = A⁺ y + (I − A⁺ A) x̂_0, and x_{t−Δ} = (1 − 1/(N t)) x_t + x̂_0'/(N t) for t = 1, 1 − 1/N, …, 1/N; so the last step
returns x̂_0'. This is for data without noise. Those of a `FourierDiagonal` likelihood are taken so, whatever it says of
their noise; a `Conjugate` one weighs them by it (see `Inpainting`).

What is missing is guided by what is measured only through the network, which sees that at noise level t. Where
measured and missing parts are independent, as for a stationary Gaussian prior, the samples are exact for N → ∞;
elsewhere they are not, and their spread is no uncertainty.
"""

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from cryofm_ops import Conjugate, FourierDiagonal, Likelihood, OperatorError, irfft, rfft
from cryofm_sampling._common import (
    Box,
    Unrounded,
    as_the_data,
    missing,
    spectral,
    spent,
    split_shape,
    streams,
    velocity_at,
    white_noise,
    whole,
)
from cryofm_sampling.errors import CapabilityError
from cryofm_sampling.protocols import Callback, Draw, VelocityField
from cryofm_sampling.runs.checkpoint import Checkpoint, Run, iterate

__all__ = ["Inpainting"]


def _replacement(
    likelihood: FourierDiagonal | Likelihood, batch: tuple[int, ...], box: Box, like: Tensor
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """x̂_0 -> x̂_0', and what samples should be like: the data where the likelihood tells."""
    if isinstance(likelihood, FourierDiagonal):
        W, y = spectral(likelihood, batch, box)
        return lambda x_0: irfft(torch.where(W > 0, y, rfft(x_0)), box), y
    if isinstance(likelihood, Conjugate):
        # Of data without noise the posterior under a white prior is the nearest volume that agrees with them.
        data = Unrounded(likelihood)
        return lambda x_0: data.condition(x_0, 1.0).mean.to(x_0), as_the_data(likelihood, box, like)
    lacking = missing(likelihood, "spectral_precision", "spectral_data", "condition")
    raise CapabilityError(f"Inpainting needs a FourierDiagonal or a Conjugate likelihood; {lacking}")


@attrs.frozen
class Inpainting:
    """Alg. 2: samples by replacement of what was measured; one network evaluation a step.

    Attributes:
        steps: N; published with 1000.

    Needs a `FourierDiagonal` likelihood, where A⁺ A = 1 at W > 0 and 0 elsewhere, or a `Conjugate` one of data without
    noise (of noisy data it keeps the compromise between them and a white prior of unit variance about x̂_0). Raises
    `CapabilityError` naming what is missing, and `GridMismatchError` if the likelihood is on another grid.

    Samples have the dtype of the data, where these tell it, and the device of a `FourierDiagonal` one's, otherwise
    the generator's. The noise of a volume does not depend on the batch that it is drawn in.

    >>> from cryofm_ops import MissingWedge, WhiteNoise, gaussian_likelihood
    >>> from cryofm_sampling.testing import GaussianPrior
    >>> generator = torch.Generator().manual_seed(0)
    >>> truth = torch.randn(16, 16, 16, generator=generator)
    >>> wedge = MissingWedge(-60, 60)
    >>> likelihood = gaussian_likelihood(wedge, WhiteNoise(0.0), wedge(truth))
    >>> draw = Inpainting()(GaussianPrior(1.0), likelihood, shape=(16, 16, 16), generator=generator)
    >>> bool(torch.allclose(wedge(draw.x), wedge(truth), atol=1e-5)), draw.nfe
    (True, 100)
    """

    steps: int = attrs.field(default=100, validator=whole(1))

    @torch.no_grad()
    def __call__(
        self,
        velocity: VelocityField,
        likelihood: FourierDiagonal | Likelihood,
        /,
        *,
        shape: tuple[int, ...],
        generator: torch.Generator,
        callback: Callback | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Draw:
        """One volume for every element of the batch of `shape`; in model units."""
        batch, box = split_shape(shape)
        replaced, like = _replacement(likelihood, batch, box, torch.empty((), device=generator.device))
        noises = streams(generator, batch)
        x_1 = torch.stack([white_noise(box, noise, like) for noise in noises]).reshape(shape)

        def step(i: int, x_t: Tensor) -> tuple[Tensor, Tensor]:
            t, s = 1 - i / self.steps, 1 - (i + 1) / self.steps
            x_0 = replaced(x_t - t * velocity_at(velocity, x_t, t))
            if x_0.shape != x_t.shape or not x_0.isfinite().all():
                raise OperatorError(
                    f"{type(likelihood).__name__} makes {tuple(x_0.shape)}, or values that are not finite, of volumes "
                    f"{tuple(x_t.shape)}"
                )
            return s / t * x_t + (1 - s / t) * x_0, x_0

        run = Run(self, velocity, likelihood, shape)
        x = iterate(step, x_1, self.steps, run=run, streams=noises, callback=callback, checkpoint=checkpoint)
        return Draw(x, spent(velocity, self.steps), {"sampler": "Inpainting", **attrs.asdict(self)})
