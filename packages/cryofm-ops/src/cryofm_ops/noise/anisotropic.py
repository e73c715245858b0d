"""Stationary noise whose power depends on direction: σ²(ξ, ν) = α(ξ) σ²(ξ₀, ν) (paper 5.2 and D.2).

The α of 5.2 multiplies the amplitude of the noise, that of D.2 its variance: α_variance = α_amplitude².
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Self

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import GeometryError, NoiseError
from cryofm_ops.fourier.directions import directional, hemisphere
from cryofm_ops.fourier.grid import Shape, radial, radial_mean
from cryofm_ops.noise.from_half_maps import estimate_noise_power
from cryofm_ops.noise.stationary import StationaryNoise, check_table
from cryofm_ops.operators.wedge import MissingWedge

__all__ = ["AnisotropicNoise", "cone_alpha", "wedge_alpha"]


def _check_alpha(noise: "AnisotropicNoise", _: object, alpha_variance: Callable[[Tensor], Tensor]) -> None:
    d = hemisphere(64, device=noise.radial_power.device)
    values, opposite = alpha_variance(d), alpha_variance(-d)
    if tuple(values.shape) != (64,) or not (values.isfinite() & (values >= 0)).all():
        raise NoiseError(
            f"alpha_variance must give one finite value, not negative, for each direction (..., 3); "
            f"for directions (64, 3) it gave {tuple(values.shape)}, smallest {float(values.min()):.3g}"
        )
    if not torch.allclose(values, opposite, rtol=1e-3):
        raise NoiseError("alpha_variance must be even: it differs between directions d and -d")


@attrs.frozen(eq=False)
class AnisotropicNoise(StationaryNoise):
    """Noise of power α(k/|k|) σ²(|k|). A `Noise` and `SpectralPower`.

    Attributes:
        radial_power: the radial table σ²(ξ₀, ν), `(n,)`, of the reference directions, where α = 1 (see `radial`).
        alpha_variance: from unit vectors `(..., 3)`, (x, y, z), float64, to factors `(...)` on the VARIANCE; even.
            The constant term takes their mean, see `directional` for that and for Nyquist.

    Raises `NoiseError` for an impossible table, and an α that is odd, negative or of another shape.

    >>> noise = AnisotropicNoise(torch.ones(2), wedge_alpha(-45, 45, alpha_amplitude=3))
    >>> noise.power((5, 5, 5))[:, 0, 1]  # from kz = 0 up to 2, then from -2
    tensor([1., 1., 9., 9., 1.])
    """

    radial_power: Tensor = attrs.field(validator=check_table)
    alpha_variance: Callable[[Tensor], Tensor] = attrs.field(validator=_check_alpha)

    @classmethod
    def from_half_maps(cls, half1: Tensor, half2: Tensor, alpha_variance: Callable[[Tensor], Tensor]) -> Self:
        """Noise of ONE half map, given α up to a factor: σ²(ξ₀, ν) = h(ν) N_ν / Σ_ξ α(ξ) (D.2, last equation).

        h is the noise power of `estimate_noise_power`, which see for errors and warnings; the sum is over the
        coefficients of the shell, so h is the shell mean of α(ξ) σ²(ξ₀, ν), up to the interpolation in ν
        (3–6 % beyond shell 3; a table that undoes it was tried and has a larger error, 4.6 % instead of 3.7 % at 32³).

        >>> halves = torch.randn(2, 32, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> noise = AnisotropicNoise.from_half_maps(*halves, cone_alpha((0, 0, 1), 30, alpha_amplitude=2))
        >>> bool((radial_mean(noise.power((32, 32, 32)), (32, 32, 32))[4:] - 1).abs().max() < 0.2)
        True
        """
        h = estimate_noise_power(half1, half2).noise_power
        z, y, x = half1.shape
        shape = (z, y, x)
        alpha = radial_mean(directional(alpha_variance, shape, device=h.device), shape)
        if not (alpha > 0).all():
            raise NoiseError(
                "alpha_variance is 0 over a whole shell: no noise could be there, but the halves have some"
            )
        return cls((h / alpha).to(h), alpha_variance)

    def power(self, shape: Shape, /) -> Tensor:
        """α(k/|k|) σ²(|k|) on the half grid of `shape`."""
        table = self.radial_power
        return directional(self.alpha_variance, shape, device=table.device).to(table) * radial(table, shape)


def wedge_alpha(
    tilt_min: float, tilt_max: float, alpha_amplitude: float, tilt_axis: Literal["x", "y"] = "y"
) -> Callable[[Tensor], Tensor]:
    """Paper 5.2: 1 where tilt_min ≤ θ ≤ tilt_max, alpha_amplitude² elsewhere, as a factor on the VARIANCE.

    θ is the angle of the line ±k about the tilt axis, as in `MissingWedge`: the frequencies that tilts between
    the two measure have the reference noise. The tilt axis itself is in every tilt.

    Args:
        tilt_min: in degrees, at least −90.
        tilt_max: in degrees, at most 90.
        alpha_amplitude: factor on the AMPLITUDE of the noise, positive.
        tilt_axis: "y" or "x".

    Raises `GeometryError` for an impossible range or axis, `NoiseError` for an impossible factor.

    >>> wedge_alpha(-60, 60, 3)(torch.eye(3))
    tensor([1., 1., 9.])
    """
    _check_amplitude(alpha_amplitude)
    return partial(_wedge, wedge=MissingWedge(tilt_min, tilt_max, tilt_axis), factor=alpha_amplitude**2)


def cone_alpha(axis: Sequence[float], half_angle_deg: float, alpha_amplitude: float) -> Callable[[Tensor], Tensor]:
    """1 in the double cone about an axis, alpha_amplitude² elsewhere, as a factor on the VARIANCE.

    Args:
        axis: (x, y, z), of any length but 0.
        half_angle_deg: between 0 and 90, both excluded.
        alpha_amplitude: factor on the AMPLITUDE of the noise, positive; below 1 the cone is the noisy part.

    Raises `GeometryError` for an impossible cone, `NoiseError` for an impossible factor.

    >>> cone_alpha((0, 0, 1), 30, alpha_amplitude=0.5)(torch.eye(3))
    tensor([0.2500, 0.2500, 1.0000])
    """
    length = math.hypot(*axis)
    if len(axis) != 3 or not 0 < length < math.inf or not 0 < half_angle_deg < 90:
        raise GeometryError(
            f"a cone needs an axis (x, y, z) and a half-angle between 0 and 90, got {tuple(axis)} and {half_angle_deg}"
        )
    _check_amplitude(alpha_amplitude)
    unit = tuple(a / length for a in axis)
    return partial(_cone, axis=unit, cosine=math.cos(math.radians(half_angle_deg)), factor=alpha_amplitude**2)


def _check_amplitude(alpha_amplitude: float) -> None:
    if not 0 < alpha_amplitude < math.inf:
        raise NoiseError(f"alpha_amplitude must be finite and positive, got {alpha_amplitude}")


# Module-level, so that a noise can be pickled.
def _wedge(d: Tensor, *, wedge: MissingWedge, factor: float) -> Tensor:
    good = wedge.weight(*d.double().unbind(-1)) > 0
    return torch.where(good, d.new_ones(()), factor)


def _cone(d: Tensor, *, axis: tuple[float, ...], cosine: float, factor: float) -> Tensor:
    return torch.where((d @ d.new_tensor(axis)).abs() >= cosine - 1e-9, d.new_ones(()), factor)
