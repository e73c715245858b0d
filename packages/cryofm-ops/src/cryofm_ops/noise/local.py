"""Noise that differs from place to place: a variance in real space times a spectrum."""

import math

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import NoiseError
from cryofm_ops.fourier.grid import fourier_filter, frequencies, radial, radial_mean, rfft, standard_normal

__all__ = ["LocalNoise", "estimate_local_variance", "windowed_noise_power"]

_LEAST = 0.05  # of the mean variance
_WIDTH = 6.0  # voxels, standard deviation of the local mean


def _check_variance(_: object, __: object, variance: Tensor) -> None:
    if variance.ndim != 3 or not (variance.isfinite() & (variance > 0)).all():
        raise NoiseError(f"a local variance is a volume (z, y, x) of positive numbers, got {tuple(variance.shape)}")


def check_power(_: object, __: object, power: Tensor) -> None:
    if power.ndim != 1 or len(power) < 2 or not (power.isfinite() & (power > 0)).all():
        raise NoiseError("the power of a local noise is a radial table of at least 2 positive numbers")


@attrs.frozen(eq=False)
class LocalNoise:
    """n = D^½ S^½ e for white e: as a reconstruction's, whose flexible parts are noisier.

    Its covariance D^½ S D^½ is diagonal neither in space nor in Fourier space; `LinearGaussian` conditions on it by
    conjugate gradients.

    Attributes:
        variance: D, `(z, y, x)`, relative: of mean 1 if `radial_power` is to be the mean power.
        radial_power: S, radial table of the power in the orthonormal FFT.

    Raises `NoiseError` for values that are not positive.

    >>> noise = LocalNoise(torch.linspace(0.5, 1.5, 8).expand(8, 8, 8), torch.tensor([2.0, 1.0]))
    >>> noise.precision(torch.ones(8, 8, 8)).shape
    torch.Size([8, 8, 8])
    """

    variance: Tensor = attrs.field(validator=_check_variance)
    radial_power: Tensor = attrs.field(validator=check_power)

    def sample(self, y: Tensor, /, *, generator: torch.Generator) -> Tensor:
        """Y + n, for y `(*batch, z, y, x)`."""
        z, height, width = y.shape[-3:]
        root = radial(self.radial_power, (z, height, width)).sqrt().to(y)
        return y + self.variance.sqrt().to(y) * fourier_filter(standard_normal(y, generator), root)

    def precision(self, r: Tensor, /) -> Tensor:
        """Σ⁻¹ r = D^−½ S⁻¹ D^−½ r."""
        z, height, width = r.shape[-3:]
        root = self.variance.rsqrt().to(r)
        return root * fourier_filter(root * r, 1 / radial(self.radial_power, (z, height, width)).to(r))


def windowed_noise_power(half1: Tensor, half2: Tensor, window: Tensor) -> Tensor:
    """Radial power of one half's noise where a window is: Σ |F w (y₁ − y₂)|² / 2 over the mean of w².

    For noise that is the same everywhere E|F w n|² is its power, smeared by |F w|², times the mean of w². Programs
    flatten what lies outside their sphere or mask; over the whole box the noise would come out too low.

    Args:
        half1: `(z, y, x)`.
        half2: likewise.
        window: soft, 0 to 1, such as a sphere or a mask; the smoother, the less a spectrum is smeared.

    Raises `NoiseError` for a window that is empty or of another shape.

    >>> halves = torch.randn(2, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> window = torch.hann_window(32, periodic=False)
    >>> power = windowed_noise_power(*halves, window[:, None, None] * window[:, None] * window)
    >>> bool((power[4:] - 1).abs().max() < 0.3)
    True
    """
    if window.shape != half1.shape or not window.any():
        raise NoiseError(f"a window has the halves' shape {tuple(half1.shape)} and is not 0, got {tuple(window.shape)}")
    z, y, x = half1.shape
    w = window.double()
    difference = w * (half1 - half2).double()
    difference = difference - w * (difference.sum() / w.sum())  # an offset between the halves is no noise
    power = radial_mean(rfft(difference).abs().square(), (z, y, x)) / 2 / w.square().mean()
    power[0] = power[1]
    return power.to(half1.dtype)


def estimate_local_variance(half1: Tensor, half2: Tensor, *, width_px: float = _WIDTH) -> Tensor:
    """How the variance of the halves' noise differs from place to place, `(z, y, x)`, of mean 1.

    The local mean of (y₁ − y₂)² in a Gaussian, its logarithm shrunk to the mean by the share of its spread that is
    chance: noise that is the same everywhere comes out so. Never below 0.05.

    Args:
        half1: `(z, y, x)`.
        half2: likewise.
        width_px: standard deviation of the Gaussian, voxels.

    >>> halves = torch.randn(2, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    >>> bool((estimate_local_variance(*halves) - 1).abs().max() < 0.2)
    True
    """
    z, y, x = half1.shape
    shape = (z, y, x)
    difference = (half1 - half2).double()
    difference = difference - difference.mean()
    smooth = torch.exp(-2 * (math.pi * width_px * frequencies(shape, device=half1.device)).square())
    local = fourier_filter(difference.square(), smooth)
    log = local.clamp(min=_LEAST * float(local.mean())).log()
    power = radial(radial_mean(rfft(difference).abs().square(), shape), shape)
    independent = float(power.mean().square() / power.square().mean())  # coloured noise has fewer such voxels
    chance = 2 / max((4 * math.pi) ** 1.5 * width_px**3 * independent, 1)
    spread = float(log.var())
    kept = max(0.0, spread - chance) / max(spread, torch.finfo(torch.float64).tiny)
    variance = ((log - log.mean()) * kept).exp()
    relative: Tensor = (variance / variance.mean()).clamp(min=_LEAST)
    return relative.to(half1.dtype)
