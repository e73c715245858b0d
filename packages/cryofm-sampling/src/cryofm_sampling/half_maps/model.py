"""How two half maps came about: the noise that they show, and what of a density they show."""

import warnings
from collections.abc import Callable
from typing import Protocol

import attrs
import torch
from torch import Tensor

from cryofm_ops import (
    FourierGaussian,
    FourierMask,
    FourierOperator,
    Likelihood,
    LinearOperator,
    MissingWedge,
    NoiseEstimate,
    RemoveMean,
    SpectralNoise,
    compose,
    directional,
    estimate_noise_power,
    friedel_weights,
    gaussian_likelihood,
    radial,
    radial_mean,
    rfft,
)
from cryofm_sampling._common import split_shape

__all__ = ["HalfMapModel", "Observe", "directional_model", "stationary_model", "wedge_model"]

_LOST = 0.01  # of a map's power, that a wedge of the wrong tilts would take away


class Observe(Protocol):
    """How a map came about; any function will do."""

    def __call__(self, y: Tensor, fraction: float, /) -> Likelihood:
        """The likelihood of a map y `(z, y, x)` whose noise has `fraction` of the power that ONE half map has."""
        ...


@attrs.frozen(eq=False)
class HalfMapModel:
    """How two half maps came about; made of them by `stationary_model`, `directional_model` or `wedge_model`.

    Attributes:
        observe: (y, fraction) -> the likelihood of a map y `(z, y, x)` whose noise has `fraction` of the power that
            one half has: 1 of a half, 1/2 of the mean of both.
        fsc: radial table of the FSC between the halves.
        noise_power: radial table of the noise of one half, in the orthonormal FFT.
        gain: of the best linear filter of the mean of both halves, on the half grid of the FFT.
        operator: what a half shows of a density, noise aside. None: the density itself.
        missing: the part of Fourier space that was not measured, where there is one.
    """

    observe: Observe
    fsc: Tensor
    noise_power: Tensor
    gain: Tensor
    operator: LinearOperator | None = None
    missing: FourierOperator | None = None

    def predict(self, x: Tensor) -> Tensor:
        """What a half map shows of density x `(z, y, x)`."""
        return x if self.operator is None else self.operator(x)

    def comparable(self, half: Tensor) -> Tensor:
        """The part of a half map with which a prediction can be compared: what was measured."""
        return self.operator(half) if isinstance(self.operator, FourierMask) else half


def stationary_model(half1: Tensor, half2: Tensor, /, *, band: float = 1.0) -> HalfMapModel:
    """The density on an unknown constant, plus noise with a radial power (paper D.1).

    Args:
        half1: `(z, y, x)`, raw.
        half2: likewise.
        band: the highest frequency that was measured, over the grid's Nyquist frequency.

    Raises `GridMismatchError`, `ObservationError` and `HalfMapError` of cryofm_ops for halves that tell no noise.

    >>> model = stationary_model(*torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0)))
    >>> model.noise_power.shape
    torch.Size([9])
    """
    _, shape = split_shape(half1.shape)
    noise = _noise(half1, half2, band)

    def observe(y: Tensor, fraction: float) -> FourierGaussian:
        return gaussian_likelihood(RemoveMean(), SpectralNoise((noise.noise_power * fraction).to(y)), y)

    gain = radial(_wiener(noise.signal_power, noise.noise_power), shape)
    return HalfMapModel(observe, noise.fsc, noise.noise_power, gain)


def directional_model(
    half1: Tensor, half2: Tensor, alpha_variance: Callable[[Tensor], Tensor], /, *, band: float = 1.0
) -> HalfMapModel:
    """The same, with noise N = α h / mean of α: h its mean over each shell, α how it is spread there (paper D.2).

    Args:
        half1: `(z, y, x)`, raw.
        half2: likewise.
        alpha_variance: α of unit vectors `(..., 3)` in (x, y, z) order, such as `estimate_alpha(...).alpha_variance`
            or `wedge_alpha(...)`; a factor on the variance.
        band: the highest frequency that was measured, over the grid's Nyquist frequency.

    >>> halves = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> directional_model(*halves, lambda u: 1 + u[..., 2] ** 2).gain.shape
    torch.Size([16, 16, 9])
    """
    _, shape = split_shape(half1.shape)
    shells = _noise(half1, half2, band)
    alpha = directional(alpha_variance, shape).to(half1)
    noise = alpha * radial(shells.noise_power / radial_mean(alpha, shape), shape)
    precision = RemoveMean().transfer(shape).to(noise) / noise

    def observe(y: Tensor, fraction: float) -> FourierGaussian:
        return FourierGaussian(precision.to(y) / fraction, rfft(y), shape)

    return HalfMapModel(observe, shells.fsc, shells.noise_power, _wiener(radial(shells.signal_power, shape), noise))


def wedge_model(half1: Tensor, half2: Tensor, tilts: MissingWedge, /, *, band: float = 1.0) -> HalfMapModel:
    """The same noise in what a tilt series measured, estimated there; nothing in its missing wedge.

    Args:
        half1: `(z, y, x)`, raw.
        half2: likewise.
        tilts: what was measured.
        band: the highest frequency that was measured, over the grid's Nyquist frequency.

    Warns where the halves agree about more than a hundredth of their power in the wedge.
    """
    _, shape = split_shape(half1.shape)
    warn_of_other_tilts(half1, half2, tilts)
    kept = tilts.transfer(shape).to(half1)
    wedge = compose(RemoveMean(), tilts)
    shells = _noise(tilts(half1), tilts(half2), band)  # means over whole shells, of which only a part has any
    measured = radial_mean(kept, shape)
    noise, signal = shells.noise_power / measured, shells.signal_power / measured

    def observe(y: Tensor, fraction: float) -> Likelihood:
        return gaussian_likelihood(wedge, SpectralNoise(noise.to(y) * fraction), wedge(y))

    gain = kept * radial(_wiener(signal, noise), shape)
    mask = tilts.transfer(shape)
    return HalfMapModel(
        observe, shells.fsc, noise, gain, FourierMask(mask, shape), missing=FourierMask(1 - mask, shape)
    )


def observed_through(half1: Tensor, half2: Tensor, observe: Observe, operator: LinearOperator | None) -> HalfMapModel:
    """That of a stranger's likelihood and operator: FSC and linear filter are those of the plain model."""
    return attrs.evolve(stationary_model(half1, half2), observe=observe, operator=operator)


def warn_of_other_tilts(one: Tensor, two: Tensor, tilts: MissingWedge) -> None:
    """Warn where much of the power that two maps share, more than by chance, lies where nothing was measured."""
    _, shape = split_shape(one.shape)
    weights = friedel_weights(shape).to(one)
    within = weights * (1 - tilts.transfer(shape).to(one))
    a, b = rfft(one - one.mean()), rfft(two - two.mean())
    shared = (a * b.conj()).real
    lost = float((within * shared).sum() / (weights * shared).sum())
    power, noise = (a.abs().square() + b.abs().square()) / 2, (a - b).abs().square() / 2
    chance = float((2 * within * power * noise).sum().sqrt() / (weights * shared).sum())  # no less than what noise adds
    if lost > max(_LOST, 3 * chance):
        warnings.warn(
            f"{lost:.0%} of the map's power lies within the wedge, and is left out; are the tilts "
            f"({tilts.tilt_min:g} to {tilts.tilt_max:g} degrees, axis {tilts.tilt_axis}) those of the map?",
            stacklevel=3,
        )


def _noise(half1: Tensor, half2: Tensor, band: float) -> NoiseEstimate:
    """Of halves that were judged on their own grid; beyond their band nothing was measured, which is endless noise."""
    noise = estimate_noise_power(half1, half2, allow_masked=True)
    measured = torch.linspace(0, 1, len(noise.noise_power)).to(half1.device) <= band
    endless = 1e6 * noise.noise_power.max()
    return attrs.evolve(
        noise,
        noise_power=torch.where(measured, noise.noise_power, endless),
        signal_power=torch.where(measured, noise.signal_power, 0),
    )


def _wiener(signal: Tensor, noise: Tensor) -> Tensor:
    """Gain of the best linear filter of the mean of two halves, of the noise of one."""
    return signal / (signal + noise / 2)
