"""A prior whose flow is known in closed form, for checking samplers against exact posteriors."""

import math

import attrs
import torch
from torch import Tensor

from cryofm_ops import fourier_filter, friedel_weights, radial
from cryofm_sampling._common import Box, gaussian_error, split_shape

__all__ = ["GaussianPrior"]


def _table(power: Tensor | float) -> Tensor:
    return power if isinstance(power, Tensor) else torch.full((2,), float(power))


@attrs.frozen(eq=False)
class GaussianPrior:
    """The exact velocity of a stationary Gaussian prior of mean 0; it is `Calibrated`.

    With x_t = (1 − t) x_0 + t ε, per Fourier coefficient, E[x_0 | x_t] = (1 − t) P / D · x_t with
    D = (1 − t)² P + t², so v = (t − (1 − t) P) / D · x_t.

    Attributes:
        signal_power: radial table P(ν), or a number for a white prior.
        box: the box `(z, y, x)` over which the mean of `denoising_error` is taken.

    >>> prior = GaussianPrior(1.0)
    >>> prior(torch.ones(1, 1, 2), torch.tensor(0.25))  # (0.25 − 0.75) / (0.75² + 0.25²)
    tensor([[[-0.8000, -0.8000]]])
    """

    signal_power: Tensor = attrs.field(converter=_table)
    box: Box = (32, 32, 32)

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """The velocity at x `(*batch, z, y, x)` and t, a scalar or `(batch,)`."""
        _, box = split_shape(x.shape)
        power = radial(self.signal_power.to(x), box)
        t = t.to(x).reshape((*t.shape, 1, 1, 1))
        return fourier_filter(x, (t - (1 - t) * power) / ((1 - t) ** 2 * power + t**2))

    @property
    def denoising_error(self) -> Tensor:
        """`(50, 2)`: t, and the mean of P t² / D over the coefficients of `box`."""
        power = radial(self.signal_power, self.box)
        times = torch.linspace(0.02, 1, 50, dtype=power.dtype)
        weights = friedel_weights(self.box).to(power) / math.prod(self.box)
        return torch.stack([times, torch.stack([(weights * gaussian_error(power, float(t))).sum() for t in times])], -1)
