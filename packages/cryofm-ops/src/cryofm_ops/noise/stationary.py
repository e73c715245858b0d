"""Stationary Gaussian noise: white, or with a radial power spectrum (paper 5.1, one draw per coefficient)."""

import abc
import math
from typing import Self

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import NoiseError
from cryofm_ops.fourier.grid import Shape, fourier_filter, half_shape, radial, standard_normal
from cryofm_ops.noise.from_half_maps import estimate_noise_power

__all__ = ["SpectralNoise", "StationaryNoise", "WhiteNoise"]

_NO_PRECISION = "noise of zero power has no precision; `condition` takes data without noise, `log_prob` cannot"


def _check_std(_: object, __: object, std: float) -> None:
    if not (math.isfinite(std) and std >= 0):
        raise NoiseError(f"std of white noise must be finite and not negative, got {std}")


def _number(std: object) -> float:
    try:
        return float(std)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        found = f"a tensor of shape {tuple(std.shape)}" if isinstance(std, Tensor) else repr(std)
        raise NoiseError(f"std of white noise must be a number, got {found}; VoxelNoise has one for each") from None


def check_table(_: object, __: object, table: Tensor) -> None:
    """A radial power is a 1-D table, finite and not negative (an attrs validator)."""
    if table.ndim != 1 or len(table) < 2 or not table.is_floating_point():
        raise NoiseError(
            f"radial_power must be a 1-D floating-point table of at least 2 entries, "
            f"got {table.dtype} of shape {tuple(table.shape)}"
        )
    wrong = ~(table.isfinite() & (table >= 0))
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise NoiseError(f"radial_power must be finite and not negative, got {table[first]} at entry {first}")


@attrs.frozen
class WhiteNoise:
    """White noise of standard deviation `std`, in data units; 0 is noiseless. A `Noise` and `SpectralPower`.

    >>> WhiteNoise(0.5).precision(torch.ones(1))
    tensor([4.])
    """

    std: float = attrs.field(converter=_number, validator=_check_std)

    def sample(self, y: Tensor, /, *, generator: torch.Generator) -> Tensor:
        """Noisy y: y + n, drawn in order over all but the last three axes (see `standard_normal`)."""
        return y + self.std * standard_normal(y, generator)

    def precision(self, r: Tensor, /) -> Tensor:
        """Σ⁻¹ r = r / std²; `NoiseError` where std is 0."""
        if self.std == 0:
            raise NoiseError(_NO_PRECISION)
        return r / self.std**2

    def power(self, shape: Shape, /) -> Tensor:
        """N = std² everywhere on the half grid of `shape`, float64."""
        return torch.full(half_shape(shape), self.std**2, dtype=torch.float64)


class StationaryNoise(abc.ABC):
    """Noise with independent Fourier coefficients; a subclass says `power` and is a `Noise` and `SpectralPower`.

    >>> class Blue(StationaryNoise):
    ...     def power(self, shape):
    ...         return 0.1 + radial(torch.tensor([0.0, 1.0]), shape)
    >>> Blue().precision(torch.ones(4, 4, 4))[0, 0]
    tensor([10., 10., 10., 10.])
    """

    __slots__ = ()

    @abc.abstractmethod
    def power(self, shape: Shape, /) -> Tensor:
        """N(k) on the half grid of `shape`, real and not negative, with N(−k) = N(k)."""

    def sample(self, y: Tensor, /, *, generator: torch.Generator) -> Tensor:
        """Noisy y: y + n for y `(*batch, z, y, x)`, drawn in order over the batch (see `standard_normal`)."""
        return y + fourier_filter(standard_normal(y, generator), self._power_for(y).sqrt())

    def precision(self, r: Tensor, /) -> Tensor:
        """Σ⁻¹ r for r `(*batch, z, y, x)`; `NoiseError` where some coefficient has no noise."""
        power = self._power_for(r)
        if (power == 0).any():
            raise NoiseError(_NO_PRECISION)
        return fourier_filter(r, 1 / power)

    def _power_for(self, volume: Tensor) -> Tensor:
        z, y, x = volume.shape[-3:]
        return self.power((z, y, x)).to(volume)


@attrs.frozen(eq=False)
class SpectralNoise(StationaryNoise):
    """Noise whose power depends on the length of the frequency only. A `Noise` and `SpectralPower`.

    Every coefficient is an independent complex Gaussian (real where it is its own Friedel mate) of
    variance σ²(ν), so E|ñ|² = σ²(ν) in the orthonormal FFT, in the squared units of the data.

    Attributes:
        radial_power: the radial table σ²(ν), `(n,)`: even steps from 0 to Nyquist inclusive; the corners
            take its last value; 0 where there is no noise.

    >>> noise = SpectralNoise(torch.tensor([1.0, 4.0]))
    >>> noise.power((2, 2, 2))[0, 0]
    tensor([1., 4.])
    """

    radial_power: Tensor = attrs.field(validator=check_table)

    @classmethod
    def from_half_maps(cls, half1: Tensor, half2: Tensor) -> Self:
        """Noise of ONE half map (see `estimate_noise_power`); the average of the two has half its power.

        >>> g = torch.Generator().manual_seed(0)
        >>> halves = torch.randn(2, 32, 32, 32, generator=g)
        >>> bool((SpectralNoise.from_half_maps(*halves).radial_power[4:] - 1).abs().max() < 0.2)
        True
        """
        return cls(estimate_noise_power(half1, half2).noise_power)

    def power(self, shape: Shape, /) -> Tensor:
        """σ²(|k|) on the half grid of `shape`."""
        return radial(self.radial_power, shape)
