"""Broken likelihoods, and the correct ones of which they are made."""

from typing import Any

import attrs
import torch
from torch import Tensor

from cryofm_ops import FourierGaussian, LinearGaussian, Normal, WhiteNoise
from cryofm_ops.fourier.grid import half_shape, irfft, rfft
from mutants._register import mutant
from mutants.noises import Steep
from mutants.operators import Masked

LIKELIHOODS: list[tuple[Any, str]] = []


SHAPE = (4, 4, 4)
DATA = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Half:
    """Correct: everything at half its value."""

    def transfer(self, shape: tuple[int, int, int], /) -> Tensor:
        return torch.full(half_shape(shape), 0.5, dtype=torch.float64)


@attrs.frozen(eq=False)
class Fourier:
    """The correct Fourier-diagonal likelihood of which mutants are made."""

    shape = SHAPE

    @property
    def good(self) -> FourierGaussian:
        return FourierGaussian.observed(Half(), Steep(), DATA)

    def log_prob(self, x: Tensor, /) -> Tensor:
        return self.good.log_prob(x)

    def condition(self, mean: Tensor, variance: Tensor | float, /) -> Normal:
        return self.good.condition(mean, variance)

    def spectral_precision(self) -> Tensor:
        return self.good.spectral_precision()

    def spectral_data(self) -> Tensor:
        return self.good.spectral_data()


@mutant(LIKELIHOODS, "spectral_gradient")
class NoFriedelWeight(Fourier):
    def log_prob(self, x):
        r = rfft(x) - self.spectral_data()
        return -0.5 * (self.spectral_precision() * r.abs() ** 2).flatten(-3).sum(-1)


@mutant(LIKELIHOODS, "spectral_gradient")
class PrecisionWithoutTransfer(Fourier):
    def spectral_precision(self):
        return 4 * super().spectral_precision()


@mutant(LIKELIHOODS, "spectral_condition")
class DataNotDividedByTransfer(Fourier):
    def spectral_data(self):
        return super().spectral_data() / 2


@mutant(LIKELIHOODS, "spectral_grid")
class PrecisionOnTheFullGrid(Fourier):
    def spectral_precision(self):
        return torch.ones(SHAPE)


@mutant(LIKELIHOODS, "log_prob_contract")
class SumsTheBatch(Fourier):
    def log_prob(self, x):
        return super().log_prob(x).sum()


@mutant(LIKELIHOODS, "log_prob_gradient")
class FrozenHalfway(Fourier):
    def log_prob(self, x):
        return super().log_prob((x + x.detach()) / 2)


@mutant(LIKELIHOODS, "condition_is_stationary")
class IgnoresThePrior(Fourier):
    def condition(self, mean, variance):
        return Normal(irfft(self.spectral_data(), SHAPE).expand(mean.shape), variance)


@mutant(LIKELIHOODS, "condition_is_dense_solve")
class KeepsThePriorVariance(Fourier):
    def condition(self, mean, variance):
        return Normal(super().condition(mean, variance).mean, variance)


@mutant(LIKELIHOODS, "condition_contract")
class ConditionsInPlace(Fourier):
    def condition(self, mean, variance):
        posterior = super().condition(mean, variance)
        mean.copy_(posterior.mean)
        return posterior


@attrs.frozen(eq=False)
class Noiseless(Fourier):
    @property
    def good(self) -> FourierGaussian:
        return FourierGaussian.observed(Half(), WhiteNoise(0), DATA)


@mutant(LIKELIHOODS, "noiseless_is_no_nan")
class InfiniteTimesZero(Noiseless):
    def log_prob(self, x):
        return -0.5 * (self.spectral_precision() * (0 * rfft(x)).abs() ** 2).flatten(-3).sum(-1)


@mutant(LIKELIHOODS, "spectral_condition")
class NoiselessDividesByZero(Noiseless):
    def condition(self, mean, variance):
        v, w = torch.as_tensor(variance, dtype=mean.dtype), self.spectral_precision()
        gain = v * w / (1 + v * w)
        return Normal(mean + irfft(gain * (self.spectral_data() - rfft(mean)), SHAPE), v)


@attrs.frozen(eq=False)
class Linear(LinearGaussian):
    shape = SHAPE


@mutant(LIKELIHOODS, "gradient_is_weighted_residual")
class TwiceTheLogDensity(Linear):
    def log_prob(self, x):
        return 2 * super().log_prob(x)


@mutant(LIKELIHOODS, "condition_is_stationary")
class SilentNonConvergence(Linear):
    """One step of steepest descent, and no word that it was not enough."""

    def condition(self, mean, variance):
        x = mean.detach().requires_grad_()
        (g,) = torch.autograd.grad(self.log_prob(x).sum(), x)
        return Normal(mean + 0.1 * g, lambda generator: torch.zeros_like(mean))


@mutant(LIKELIHOODS, "condition_is_dense_solve")
class DrawsThePrior(Linear):
    def condition(self, mean, variance):
        posterior = super().condition(mean, variance)
        return Normal(posterior.mean, lambda g: Normal(mean, variance).sample(g) - mean)


@mutant(LIKELIHOODS, "refines_to_a_likelihood")
class RefinesInPlace:
    shape = SHAPE

    def refine(self, x):
        x.mul_(0.5)
        return Fourier()


def likelihood(kind: type) -> Any:
    """A mutant (or its correct model), made of the data of this module."""
    return kind(Masked(), WhiteNoise(0.5), DATA) if issubclass(kind, LinearGaussian) else kind()
