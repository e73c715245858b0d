"""Broken noise models, and the correct one of which they are made."""

import math
from typing import Any

import torch
from torch import Tensor

from cryofm_ops import SpectralNoise, WhiteNoise
from cryofm_ops.fourier.grid import fourier_filter, frequencies, half_shape, irfft, radial
from mutants._register import box, mutant

NOISES: list[tuple[Any, str]] = []


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
