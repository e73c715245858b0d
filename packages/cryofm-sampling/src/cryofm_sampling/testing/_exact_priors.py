"""Priors whose flows, and whose posteriors, are known in closed form."""

import math
from functools import cached_property
from typing import Self

import attrs
import torch
from torch import Tensor

from cryofm_ops import FourierDiagonal, fourier_filter, friedel_weights, half_shape, irfft, radial, radial_mean, rfft
from cryofm_sampling._common import Box, spectral, split_shape, streams, white_noise
from cryofm_sampling.errors import GridMismatchError, SettingError
from cryofm_sampling.samplers._denoising_error import gaussian_error

__all__ = ["GaussianPrior", "MixturePrior"]


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

    @cached_property  # every sampler asks several times
    def denoising_error(self) -> Tensor:
        """`(50, 2)`: t, and the mean of P t² / D over the coefficients of `box`."""
        power = radial(self.signal_power, self.box)
        times = torch.linspace(0.02, 1, 50, dtype=power.dtype)
        weights = friedel_weights(self.box).to(power) / math.prod(self.box)
        return torch.stack([times, torch.stack([(weights * gaussian_error(power, float(t))).sum() for t in times])], -1)


def _normalised(weights: Tensor) -> Tensor:
    if weights.ndim != 1 or not (weights > 0).all():
        raise SettingError(f"the weights of a mixture are (m,) and positive, got {weights}")
    return weights / weights.sum()


@attrs.frozen(eq=False)
class MixturePrior:
    """The exact velocity of a mixture of m stationary Gaussians: a prior with several modes.

    Given x_t, component j holds with probability ∝ π_j N(x_t; (1 − t) μ_j, D_j), D_j = (1 − t)² P_j + t², and the
    velocity is the mean of the components' velocities −μ_j + (t − (1 − t) P_j) / D_j (x_t − (1 − t) μ_j). Its
    statistics have no closed form: `calibrate(prior, prior.sample(...), ...)`.

    Attributes:
        weights: π `(m,)`, positive; they are divided by their sum.
        means: μ `(m, z, y, x)`.
        power: P, each component's variance per Fourier coefficient, `(m, z, y, x // 2 + 1)`, positive but where
            a posterior knows better.

    >>> means = torch.stack([torch.ones(2, 2, 2), -torch.ones(2, 2, 2)])
    >>> prior = MixturePrior(torch.tensor([3.0, 1.0]), means, torch.full((2, 2, 2, 2), 0.01))
    >>> x = prior.sample(1000, generator=torch.Generator().manual_seed(0))
    >>> round(float((x.mean((1, 2, 3)) > 0).float().mean()), 2)
    0.76
    """

    weights: Tensor = attrs.field(converter=_normalised)
    means: Tensor
    power: Tensor

    def __attrs_post_init__(self) -> None:
        m, half = len(self.weights), half_shape(self.box)
        if self.means.shape != (m, *self.box) or self.power.shape != (m, *half):
            raise GridMismatchError(
                f"{m} components need means ({m}, z, y, x) and power ({m}, z, y, x // 2 + 1), "
                f"got {tuple(self.means.shape)} and {tuple(self.power.shape)}"
            )

    @property
    def box(self) -> Box:
        """The box `(z, y, x)`."""
        return split_shape(self.means.shape)[1]

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """The velocity at x `(*batch, z, y, x)` and t, a scalar or `(batch,)`."""
        t = t.to(x).reshape((*t.shape, 1, 1, 1, 1))  # before the box: the component
        u, D = self._deviation(x, t)
        v = (t - (1 - t) * self.power.to(x)) / D * u - rfft(self.means.to(x))
        w = self._membership(u, D)[..., None, None, None]
        return irfft((w * v).sum(-4), self.box)

    def membership(self, x: Tensor) -> Tensor:
        """The probability that x `(*batch, z, y, x)` comes from each component, `(*batch, m)`."""
        return self._membership(*self._deviation(x, x.new_zeros(1, 1, 1, 1)))

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Draw `(n, z, y, x)`."""
        component = torch.multinomial(
            self.weights.to(generator.device), n, replacement=True, generator=generator
        ).tolist()
        noise = [white_noise(self.box, stream, self.means) for stream in streams(generator, (n,))]
        return self.means[component] + fourier_filter(torch.stack(noise), self.power[component].sqrt())

    def given(self, likelihood: FourierDiagonal) -> Self:
        """The exact posterior, a mixture again: p_j(x | y) of each component, weighted by π_j p_j(y)."""
        W, y = spectral(likelihood, (), self.box)
        prior = rfft(self.means)
        variance = 1 / (1 / self.power + W)
        gain = torch.where(self.power > 0, self.power / (self.power + 1 / W), 0)
        evidence = torch.where(W > 0, self.power + 1 / W, 1)
        weights = self._membership(torch.where(W > 0, y - prior, 0), evidence)
        return type(self)(weights, irfft(prior + gain * (y - prior), self.box), variance)

    @property
    def signal_power(self) -> Tensor:
        """P(ν): radial table of E|x̃_0|²."""
        each = rfft(self.means).abs().square() + self.power
        return radial_mean((self.weights[:, None, None, None] * each).sum(0), self.box)

    def _deviation(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of x_t − (1 − t) μ_j, and their variances D_j."""
        u = rfft(x)[..., None, :, :, :] - (1 - t) * rfft(self.means.to(x))
        return u, (1 - t) ** 2 * self.power.to(x) + t**2

    def _membership(self, u: Tensor, variance: Tensor) -> Tensor:
        full = friedel_weights(self.box, device=u.device).to(variance)
        terms = torch.where(variance > 0, u.abs().square() / variance + variance.log(), 0)  # where all agree: nothing
        distance = (full * terms).sum((-3, -2, -1))
        return (self.weights.to(distance).log() - distance / 2).softmax(-1)
