"""Noise of half maps by direction and frequency: found where it is, and not where it is not."""

import pytest
import torch

from cryofm_ops import (
    AnisotropicNoise,
    SpectralNoise,
    directional,
    estimate_directional_noise,
    fourier_filter,
    frequencies,
    radial,
)

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
