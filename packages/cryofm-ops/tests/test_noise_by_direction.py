"""Noise of half maps by direction and frequency: found where it is, and not where it is not."""

import math

import pytest
import torch

from cryofm_ops import (
    AnisotropicNoise,
    GeometryError,
    SpectralNoise,
    directional,
    estimate_directional_noise,
    fourier_filter,
    frequencies,
    hemisphere,
    irfft,
    radial,
    rfft,
)
from cryofm_ops.fourier.directions import directions
from cryofm_ops.fourier.grid import shells
from cryofm_ops.noise.from_directions import cone_means

SHAPE = (32, 32, 32)
POWER = torch.linspace(1.0, 0.2, 17)


def halves(noise, signal=20.0, keep=None, seed=0):
    """A signal that falls steeply, and noise; both times a transfer."""
    generator = torch.Generator().manual_seed(seed)
    x = fourier_filter(
        torch.randn(SHAPE, generator=generator), (signal * torch.exp(-10 * frequencies(SHAPE)).float()).sqrt()
    )
    made = [noise.sample(x, generator=generator) for _ in range(2)]
    return made if keep is None else [fourier_filter(y, keep) for y in made]


def test_noise_that_does_not_depend_on_direction_is_found_so():
    estimate = estimate_directional_noise(*halves(SpectralNoise(POWER)))
    noise, measured = estimate.on_grid(SHAPE)
    ratio = noise / radial(POWER.double(), SHAPE)
    shells = frequencies(SHAPE) > 0.1
    assert (ratio[shells] - 1).abs().mean() < 0.05
    # Of directions alone, whatever the shell: hardly any dependence is made up.
    assert estimate.spread < 0.05
    assert (measured - 1).abs().max() < 1e-6


def test_a_dependence_on_direction_is_found_in_every_shell():
    def alpha(u):
        return 0.2 + 3 * u[..., 2].square()

    estimate = estimate_directional_noise(*halves(AnisotropicNoise(POWER, alpha)))
    noise, _ = estimate.on_grid(SHAPE)
    truth = directional(alpha, SHAPE).double() * radial(POWER.double(), SHAPE)
    away = frequencies(SHAPE) > 0.15
    error = (noise / truth).log()[away]
    assert error.mean().abs() < 0.1
    assert error.std() < 0.25
    assert estimate.spread > 0.3


def test_what_no_view_reached_counts_as_not_measured():
    """Signal and noise attenuated alike in a cone, as reconstruction programs leave it."""
    cone = directional(lambda u: (u[..., 2].abs() < 0.8).double(), SHAPE)
    keep = (0.02 + 0.98 * cone).float()
    estimate = estimate_directional_noise(*halves(SpectralNoise(0.02 * POWER), keep=keep))
    _, measured = estimate.on_grid(SHAPE)
    told = (frequencies(SHAPE) > 0.1) & (frequencies(SHAPE) < 0.3)
    inside = told & (directional(lambda u: (u[..., 2].abs() > 0.9).double(), SHAPE) > 0.5)
    outside = told & (directional(lambda u: (u[..., 2].abs() < 0.6).double(), SHAPE) > 0.5)
    assert measured[inside].mean() < 0.1
    assert measured[outside].mean() > 0.97
    assert estimate.empty == pytest.approx(0.2, abs=0.1)


def test_strong_noise_is_not_taken_for_an_empty_direction():
    def alpha(u):
        return torch.where(u[..., 2].abs() > 0.8, 50.0, 1.0)

    _, measured = estimate_directional_noise(*halves(AnisotropicNoise(POWER, alpha))).on_grid(SHAPE)
    assert measured.mean() > 0.9


def test_means_in_cones_are_those_of_their_coefficients():
    """Coefficient by coefficient, on a box of unequal sides; of a smooth power: a cone's edge matters little."""
    shape, generator = (20, 24, 27), torch.Generator().manual_seed(0)
    power = directional(lambda u: 1 + 2 * u[..., 0].square() + u[..., 1] * u[..., 2], shape)
    one, other = (rfft(torch.randn(shape, generator=generator, dtype=torch.float64)).sgn() for _ in range(2))
    halves = [irfft(power.sqrt() * y, shape) for y in (one, 1.5 * one + other)]
    axes, angle = hemisphere(20), math.radians(25)
    count, noise, signal = cone_means(*halves, axes, angle)

    n, shell, weight = shells(shape, None, None)
    weight = weight * (shell == n - 1)
    y1, y2 = (rfft(half).flatten() for half in halves)
    a = ((weight * y2.abs() ** 2).sum() / (weight * y1.abs() ** 2).sum()) ** 0.25
    y1, y2 = a * y1, y2 / a
    cones = ((axes @ directions(shape).flatten(0, 2).T).abs() >= math.cos(angle)).double() * weight
    few = cones.sum(1)
    torch.testing.assert_close(count[:, -1], few, rtol=0.1, atol=8)
    torch.testing.assert_close(noise[:, -1], cones @ (y1 - y2).abs() ** 2 / 2 / few, rtol=0.15, atol=0)
    torch.testing.assert_close(signal[:, -1], cones @ (y1 * y2.conj()).real / few, rtol=0.15, atol=0)


@pytest.mark.parametrize("angle", [0.0, -10.0, 90.0, math.nan, math.inf])
def test_cones_of_no_angle_are_refused(angle):
    with pytest.raises(GeometryError, match="half_angle_deg must be between"):
        estimate_directional_noise(*torch.randn(2, 12, 12, 12), half_angle_deg=angle)
