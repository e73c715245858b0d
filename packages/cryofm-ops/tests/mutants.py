"""Deliberately broken operators, noises and likelihoods, each with the check that is meant to catch it."""

import math
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from cryofm_ops import FourierGaussian, Identity, LinearGaussian, Normal, SpectralNoise, WhiteNoise
from cryofm_ops.spectral import fourier_filter, frequencies, friedel_weights, half_shape, irfft, radial, rfft

OPERATORS: list[tuple[type, str]] = []
NOISES: list[tuple[type, str]] = []
LIKELIHOODS: list[tuple[Any, str]] = []


def mutant(register: list[tuple[Any, str]], caught_by: str):
    def add(thing):
        register.append((thing, caught_by))
        return thing

    return add


def box(x: Tensor) -> tuple[int, int, int]:
    z, y, width = x.shape[-3:]
    return z, y, width


def ramp(x: Tensor) -> Tensor:
    """A mask without any symmetry."""
    return torch.arange(1.0, math.prod(box(x)) + 1, dtype=x.dtype).reshape(box(x)) / math.prod(box(x))


class Masked:
    """The correct operator of which most mutants are made: multiply voxel by voxel."""

    def __call__(self, x: Tensor, /) -> Tensor:
        return x * ramp(x)

    def adjoint(self, y: Tensor, /) -> Tensor:
        return y * ramp(y)

    def pinv(self, y: Tensor, /) -> Tensor:
        return y / ramp(y)


class HalfSpectrum:
    """Correct: measures the half spectrum, real and imaginary parts apart."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def __call__(self, x: Tensor, /) -> Tensor:
        return torch.view_as_real(rfft(x))

    def adjoint(self, y: Tensor, /) -> Tensor:
        weights = friedel_weights(self.shape).to(y.dtype)
        return irfft(torch.view_as_complex(y.contiguous()) / weights, self.shape)


class Gain:
    """Correct: a Fourier filter that advances the phase by half a voxel along x, without the Nyquist column."""

    def transfer(self, shape: tuple[int, int, int], /) -> Tensor:
        k = torch.fft.rfftfreq(shape[2], dtype=torch.float64)
        m = torch.polar(torch.ones_like(k), math.pi * k)
        m[k == 0.5] = 1
        return m.expand(half_shape(shape))

    def __call__(self, x: Tensor, /) -> Tensor:
        return fourier_filter(x, self.transfer(box(x)).to(torch.complex64 if x.dtype == torch.float32 else None))

    def adjoint(self, y: Tensor, /) -> Tensor:
        return fourier_filter(y, self.transfer(box(y)).conj().to(torch.complex64 if y.dtype == torch.float32 else None))


@mutant(OPERATORS, "dot_test")
class TransposedMask(Masked):
    def adjoint(self, y):
        return y * ramp(y).flatten().flip(0).reshape(box(y))


@mutant(OPERATORS, "dot_test")
class MissingFriedelWeight(HalfSpectrum):
    def __init__(self):
        super().__init__((4, 4, 4))

    def adjoint(self, y):
        return irfft(torch.view_as_complex(y.contiguous()), self.shape)


@mutant(OPERATORS, "transfer_hermitian")
class WrongNyquist(Gain):
    def transfer(self, shape):
        k = torch.fft.rfftfreq(shape[2], dtype=torch.float64)
        return torch.polar(torch.ones_like(k), math.pi * k).expand(half_shape(shape))


@mutant(OPERATORS, "dot_test")
class HalfVoxelShiftBothWays(Gain):
    def adjoint(self, y):
        return self(y)


@mutant(OPERATORS, "transfer_is_operator")
class ConjugatedTransfer(Gain):
    def __call__(self, x):
        return super().adjoint(x)

    def adjoint(self, y):
        return Gain.__call__(self, y)


@mutant(OPERATORS, "transfer_grid")
class FullGridTransfer(Gain):
    def transfer(self, shape):
        return torch.ones(shape)


@mutant(OPERATORS, "deterministic")
class NoiseInside(Masked):
    def __call__(self, x):
        return x * ramp(x) + 0.01 * torch.randn_like(x)


@mutant(OPERATORS, "global_random_state")
class GlobalSeed(Masked):
    def __call__(self, x):
        torch.manual_seed(0)
        return x * ramp(x) * torch.rand(box(x), dtype=x.dtype)


@mutant(OPERATORS, "input_unchanged")
class MutatedInput(Masked):
    def __call__(self, x):
        return x.data.mul_(ramp(x))


@mutant(OPERATORS, "input_unchanged")
class MutatedByAdjoint(Masked):
    def adjoint(self, y):
        return y.mul_(ramp(y))


@mutant(OPERATORS, "dot_test")
class UnnormalisedAdjoint(Masked):
    def adjoint(self, y):
        return y * ramp(y) * math.prod(box(y))


@mutant(OPERATORS, "linearity")
class Offset(Masked):
    def __call__(self, x):
        return x * ramp(x) + 1


@mutant(OPERATORS, "linearity")
class NormalisesItsInput(Masked):
    """Right for noise of any scale up to a factor, NaN for a zero volume."""

    def __call__(self, x):
        return x / x.std(dim=(-3, -2, -1), keepdim=True)


@mutant(OPERATORS, "linearity")
class FirstResultKept(Masked):
    kept: ClassVar[dict[tuple[int, ...], Tensor]] = {}

    def __call__(self, x):
        return self.kept.setdefault(tuple(x.shape), x * ramp(x))


@mutant(OPERATORS, "linearity")
class SinglePrecisionInside(Masked):
    def __call__(self, x):
        return (x.float() * ramp(x).float()).to(x.dtype)


@mutant(OPERATORS, "shape_and_batch")
class MeanOverTheBatch(Masked):
    def __call__(self, x):
        return x - x.mean()


@mutant(OPERATORS, "shape_and_batch")
class LosesTheBatch(Masked):
    def __call__(self, x):
        return (x * ramp(x)).reshape(-1, *box(x))


@mutant(OPERATORS, "adjoint_contract")
class AdjointSumsTheBatch(Masked):
    def adjoint(self, y):
        return (y * ramp(y)).flatten(0, -4).sum(0) if y.ndim > 3 else y * ramp(y)


@mutant(OPERATORS, "dtype_and_device")
class AlwaysSingle(Masked):
    def __call__(self, x):
        return (x * ramp(x)).float()


@mutant(OPERATORS, "dtype_and_device")
class ComplexResult(Masked):
    def __call__(self, x):
        return torch.fft.ifftn(torch.fft.fftn(x))


@mutant(OPERATORS, "gradient")
class Detached(Masked):
    def __call__(self, x):
        return x.detach() * ramp(x)


@mutant(OPERATORS, "adjoint_is_autograd")
class StraightThrough(Masked):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * ramp(x)

        @staticmethod
        def backward(ctx, g):
            return g

    def __call__(self, x):
        return self.Function.apply(x)


@mutant(OPERATORS, "dense_matrix")
class AdjointWithOneWrongVoxel(Masked):
    def adjoint(self, y):
        m = ramp(y).clone()
        m[0, 0, 0] *= 1.001
        return y * m


@mutant(OPERATORS, "composition")
class AdjointOfTheLastInput(Masked):
    """Remembers which voxels its last input had, and back-projects to those alone."""

    def __call__(self, x):
        self.seen = (x.detach() != 0).to(x.dtype).expand_as(x) * (x.detach() > 0)
        return x * ramp(x)

    def adjoint(self, y):
        return y * ramp(y) * self.seen


@mutant(OPERATORS, "moore_penrose")
class PinvIsTheAdjoint(Masked):
    def pinv(self, y):
        return self.adjoint(y)


@mutant(OPERATORS, "moore_penrose")
class PinvDividesByZero(Masked):
    def __call__(self, x):
        return x * (ramp(x) > 0.5)

    def adjoint(self, y):
        return y * (ramp(y) > 0.5)

    def pinv(self, y):
        return y / (ramp(y) > 0.5).to(y.dtype)


class Steep:
    """The correct noise of which the mutants are made: variance 1 at DC, 4 at Nyquist."""

    table = torch.tensor([1.0, 4.0], dtype=torch.float64)

    def sample(self, y: Tensor, /, *, generator: torch.Generator) -> Tensor:
        return SpectralNoise(self.table).sample(y, generator=generator)

    def precision(self, r: Tensor, /) -> Tensor:
        return SpectralNoise(self.table).precision(r)

    def power(self, shape: tuple[int, int, int], /) -> Tensor:
        return radial(self.table, shape)


@mutant(NOISES, "power_is_precision")
class AmplitudeForPower(Steep):
    def power(self, shape):
        return radial(self.table, shape).sqrt()


@mutant(NOISES, "power_is_variance")
class SampleByPowerNotAmplitude(Steep):
    def sample(self, y, *, generator):
        n = WhiteNoise(1).sample(torch.zeros_like(y), generator=generator)
        return y + fourier_filter(n, self.power(box(y)).to(y.dtype))


@mutant(NOISES, "power_is_variance")
class HalfPowerAtFriedelMates(Steep):
    """Draws the half spectrum freely: on its own columns the inverse transform keeps only the Hermitian part."""

    def sample(self, y, *, generator):
        size = (*y.shape[:-3], *half_shape(box(y)), 2)
        z = torch.view_as_complex(torch.randn(size, generator=generator, dtype=torch.float64)) / math.sqrt(2)
        return y + irfft(z * self.power(box(y)).sqrt(), box(y)).to(y.dtype)


@mutant(NOISES, "covariance")
class OneDrawAShell(Steep):
    """Paper 5.1 as written: one real number for all coefficients of a shell. The power is right, the noise is not."""

    def sample(self, y, *, generator):
        shell = (frequencies(box(y)) * 8).round().long()
        size = (*y.shape[:-3], int(shell.max()) + 1)
        epsilon = torch.randn(size, generator=generator, dtype=torch.float64)[..., shell]
        return y + irfft((epsilon * self.power(box(y)).sqrt()).to(torch.complex128), box(y)).to(y.dtype)


@mutant(NOISES, "sample_uses_its_generator")
class GlobalGenerator(Steep):
    def sample(self, y, *, generator):
        return y + torch.randn_like(y)


@mutant(NOISES, "sample_uses_its_generator")
class OwnSeed(Steep):
    def sample(self, y, *, generator):
        return super().sample(y, generator=torch.Generator().manual_seed(0))


@mutant(NOISES, "batch_draws")
class SameNoiseForTheBatch(Steep):
    def sample(self, y, *, generator):
        one = torch.zeros(box(y), dtype=y.dtype)
        return y + super().sample(one, generator=generator)


@mutant(NOISES, "sample_adds")
class NoiseGrowsWithSignal(Steep):
    def sample(self, y, *, generator):
        n = super().sample(torch.zeros_like(y), generator=generator)
        return y + n * (1 + y.abs())


@mutant(NOISES, "sample_contract")
class NoiseInPlace(Steep):
    def sample(self, y, *, generator):
        return y.add_(super().sample(torch.zeros_like(y), generator=generator))


@mutant(NOISES, "covariance")
class CovarianceForPrecision(Steep):
    def precision(self, r):
        return fourier_filter(r, self.power(box(r)).to(r.dtype))


@mutant(NOISES, "precision_symmetric")
class SkewPrecision(Steep):
    def precision(self, r):
        return r + 0.5 * r.roll(1, -1)


@mutant(NOISES, "power_grid")
class NegativePower(Steep):
    def power(self, shape):
        return radial(self.table, shape) - 2


@mutant(NOISES, "zero_power_has_no_precision")
class InfinitePrecision(Steep):
    table = torch.tensor([0.0, 4.0], dtype=torch.float64)

    def precision(self, r):
        return fourier_filter(r, 1 / self.power(box(r)).to(r.dtype))


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


GOOD_OPERATORS = [Masked(), Gain(), Identity()]
