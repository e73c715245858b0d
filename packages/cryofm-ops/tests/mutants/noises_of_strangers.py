"""Mistakes that authors of noise models make, each with the check that tells of it, and words of what that says."""

import math
from typing import Any

import torch
from torch import Tensor

from cryofm_ops.fourier.grid import fourier_filter, frequencies, half_shape, standard_normal
from mutants._register import box, named
from mutants.noises import Steep

NOISES: list[tuple[Any, str, str]] = []


class PerVoxel:
    """Correct: white noise whose standard deviation differs from plane to plane, stationary in no Fourier space."""

    def sigma(self, y: Tensor) -> Tensor:
        return torch.linspace(0.5, 2, y.shape[-1], dtype=y.dtype)

    def sample(self, y: Tensor, /, *, generator: torch.Generator) -> Tensor:
        return y + self.sigma(y) * standard_normal(y, generator)

    def precision(self, r: Tensor, /) -> Tensor:
        return r / self.sigma(r) ** 2


@named(NOISES, "covariance", "the variance of whitened draws")
class StandardDeviationForVariance(PerVoxel):
    def precision(self, r):
        return r / self.sigma(r)


@named(NOISES, "covariance", "the variance of whitened draws")
class VarianceForStandardDeviation(PerVoxel):
    def sample(self, y, *, generator):
        return y + self.sigma(y) * (super().sample(torch.zeros_like(y), generator=generator))


@named(NOISES, "covariance", "the variance of whitened draws")
class SigmaAlongTheWrongAxis(PerVoxel):
    def precision(self, r):
        return r / torch.linspace(0.5, 2, r.shape[-2], dtype=r.dtype)[:, None] ** 2


@named(NOISES, "power_is_precision", "Σ⁻¹ r equal to r̃ / N")
class PrecisionSquared(Steep):
    def precision(self, r):
        return super().precision(super().precision(r))


@named(NOISES, "precision_contract", "the elements of a batch mixed by precision")
class PrecisionOfTheBatch(PerVoxel):
    """Takes off what all have in common: symmetric and positive all the same."""

    def precision(self, r):
        mixed = r - 0.5 * r.mean(0, keepdim=True) if r.ndim > 3 else r
        return super().precision(mixed)


@named(NOISES, "precision_contract", "a lost dtype: torch.float64")
class DoublePrecision(PerVoxel):
    def precision(self, r):
        return r / self.sigma(r).double() ** 2


@named(NOISES, "precision_symmetric", "a lost dtype: torch.float32")
class SinglePrecision(PerVoxel):
    def precision(self, r):
        return super().precision(r).float()


@named(NOISES, "precision_symmetric", "a changed input")
class PrecisionInPlace(PerVoxel):
    def precision(self, r):
        return r.div_(self.sigma(r) ** 2)


@named(NOISES, "precision_symmetric", "NaN in")
class ZeroOverZero(PerVoxel):
    """A plane outside of the mask has no noise, and no data."""

    def precision(self, r):
        mask = torch.arange(r.shape[-1]) > 0
        return r * mask / (self.sigma(r) ** 2 * mask)


@named(NOISES, "sample_contract", "a lost dtype: torch.float32")
class SingleSample(PerVoxel):
    def sample(self, y, *, generator):
        return super().sample(y, generator=generator).float()


@named(NOISES, "draws_are_centred", "the square of the mean of whitened draws")
class OffCentre(PerVoxel):
    """Dark current: too little of it for the variance to tell."""

    def sample(self, y, *, generator):
        return super().sample(y, generator=generator) + 0.05


@named(NOISES, "draws_are_centred", "the square of the mean of whitened draws")
class UniformForNormal(PerVoxel):
    def sample(self, y, *, generator):
        uniform = torch.rand(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
        return y + self.sigma(y) * uniform * math.sqrt(12)


@named(NOISES, "sample_uses_its_generator", "the same draw twice")
class SeededByTheData(PerVoxel):
    def sample(self, y, *, generator):
        own = torch.Generator().manual_seed(int(y.abs().sum() * 1e3) % 2**31)
        return super().sample(y, generator=own)


@named(NOISES, "sample_uses_its_generator", "the same draw twice")
class DrawKept(PerVoxel):
    def __init__(self):
        self.kept = {}

    def sample(self, y, *, generator):
        if y.shape not in self.kept:
            self.kept[y.shape] = super().sample(torch.zeros_like(y), generator=generator)
        return y + self.kept[y.shape].to(y.dtype)


@named(NOISES, "sample_uses_its_generator", "a changed global random state")
class SeedsTheWorld(PerVoxel):
    def sample(self, y, *, generator):
        torch.manual_seed(generator.initial_seed())
        return super().sample(y, generator=generator)


@named(NOISES, "sample_adds", "sample(y) − y equal to sample(0)")
class NoiseAlone(PerVoxel):
    def sample(self, y, *, generator):
        return super().sample(torch.zeros_like(y), generator=generator)


@named(NOISES, "sample_adds", "sample(y) − y equal to sample(0)")
class Multiplied(PerVoxel):
    def sample(self, y, *, generator):
        return y * (1 + 0.3 * super().sample(torch.zeros_like(y), generator=generator))


@named(NOISES, "batch_draws", "the same noise twice")
class OneDrawForAll(PerVoxel):
    def sample(self, y, *, generator):
        return y + super().sample(torch.zeros(box(y), dtype=y.dtype), generator=generator)


@named(NOISES, "batch_draws", "draws that depend on how many follow")
class DrawnAllAtOnce(PerVoxel):
    """torch fills a tensor by vectors, and the last ones anew."""

    def sample(self, y, *, generator):
        return y + self.sigma(y) * torch.randn(y.shape, generator=generator, dtype=y.dtype)


@named(NOISES, "power_grid", "N(−k) = N(k)")
class ShiftedByOneFrequency(Steep):
    def power(self, shape):
        return super().power(shape).roll(1, -3)


@named(NOISES, "power_grid", "a power on the half grid")
class AxesReversed(Steep):
    def power(self, shape):
        z, y, x = shape
        return super().power((x, y, z))


@named(NOISES, "power_grid", "a real, finite power")
class ComplexPower(Steep):
    def power(self, shape):
        return super().power(shape).to(torch.complex128)


@named(NOISES, "power_is_variance", "the variance of ñ(k) over N(k)")
class TimesTheVoxels(Steep):
    """The power of an FFT that is not orthonormal."""

    def power(self, shape):
        return super().power(shape) * math.prod(shape)


@named(NOISES, "power_is_variance", "the variance of ñ(k) over N(k)")
class AlongTheWrongAxis(Steep):
    """Anisotropic: the power falls along z, and the draws fall along y."""

    def power(self, shape):
        return 1 + 4 * torch.fft.fftfreq(shape[0], dtype=torch.float64).abs()[:, None, None].expand(half_shape(shape))

    def precision(self, r):
        return fourier_filter(r, (1 / self.power(box(r))).to(r.dtype))

    def sample(self, y, *, generator):
        k = torch.fft.fftfreq(y.shape[-2], dtype=torch.float64).abs()[:, None].expand(half_shape(box(y)))
        white = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        return y + fourier_filter(white, (1 + 4 * k).sqrt()).to(y.dtype)


@named(NOISES, "zero_power_has_no_precision", "a ValueError where the power is 0")
class ClampedPrecision(Steep):
    """A number in place of an answer."""

    table = torch.tensor([0.0, 4.0], dtype=torch.float64)

    def precision(self, r):
        return fourier_filter(r, 1 / (frequencies(box(r)).to(r.dtype) * 8).clamp(min=1e-12))


GOOD_NOISES = [PerVoxel()]
