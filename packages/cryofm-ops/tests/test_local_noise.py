"""Noise that differs from place to place: against a dense covariance, and found from half maps."""

import pytest
import torch

from cryofm_ops import (
    Identity,
    LocalNoise,
    NoiseError,
    SpectralNoise,
    estimate_local_variance,
    estimate_noise_power,
    fourier_filter,
    gaussian_likelihood,
    radial,
    windowed_noise_power,
)

SHAPE = (4, 3, 5)
VARIANCE = torch.linspace(0.5, 2, 60, dtype=torch.float64).reshape(SHAPE)
POWER = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)


def covariance():
    """D^½ S D^½, column by column."""
    basis = torch.eye(60, dtype=torch.float64).reshape(60, *SHAPE)
    columns = VARIANCE.sqrt() * fourier_filter(VARIANCE.sqrt() * basis, radial(POWER, SHAPE))
    return columns.reshape(60, 60)


def test_its_precision_is_the_inverse_of_its_covariance():
    noise, r = LocalNoise(VARIANCE, POWER), torch.randn(SHAPE, dtype=torch.float64)
    torch.testing.assert_close(noise.precision(r).flatten(), torch.linalg.solve(covariance(), r.flatten()))


def test_its_samples_have_that_covariance():
    noise, generator = LocalNoise(VARIANCE, POWER), torch.Generator().manual_seed(0)
    n = noise.sample(torch.zeros(4000, *SHAPE, dtype=torch.float64), generator=generator).flatten(1)
    found, truth = n.T @ n / len(n), covariance()
    scale = torch.outer(truth.diag(), truth.diag()).sqrt()
    assert ((found - truth) / scale).abs().max() < 6 * len(n) ** -0.5
    torch.testing.assert_close(found.diag() / truth.diag(), torch.ones(60).double(), atol=0.12, rtol=0)


def test_any_operator_is_conditioned_on_it():
    y = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    likelihood = gaussian_likelihood(Identity(), LocalNoise(VARIANCE, POWER), y)
    found = likelihood.condition(torch.zeros(SHAPE, dtype=torch.float64), 0.7).mean
    gain = 0.7 * torch.linalg.inv(0.7 * torch.eye(60, dtype=torch.float64) + covariance())
    torch.testing.assert_close(found.flatten(), gain @ y.flatten(), rtol=1e-3, atol=1e-4)


def test_where_noise_is_stronger_is_found():
    generator, n = torch.Generator().manual_seed(0), 40
    variance = torch.where(torch.arange(n) < n // 2, 1.0, 6.0).expand(n, n, n)
    noise = LocalNoise(variance, torch.tensor([1.0, 0.5]))
    halves = [noise.sample(torch.zeros(n, n, n), generator=generator) for _ in range(2)]
    found = estimate_local_variance(*halves, width_px=3)
    ratio = found[8:32, 8:32, 30:36].mean() / found[8:32, 8:32, 4:10].mean()
    assert ratio == pytest.approx(6, rel=0.3)
    assert float(found.mean()) == pytest.approx(1, abs=1e-3)


def test_noise_inside_a_sphere_is_measured_there():
    """A program that flattens what is outside leaves too little noise in the box."""
    generator, n = torch.Generator().manual_seed(1), 32
    power = torch.linspace(2, 1, 17)
    axis = torch.arange(n) - n // 2
    r = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    sphere = 0.5 + 0.5 * torch.cos(torch.pi * ((r - 10) / 4).clamp(0, 1))
    halves = [SpectralNoise(power).sample(torch.zeros(n, n, n), generator=generator) * (r < 15) for _ in range(2)]
    found = windowed_noise_power(*halves, sphere)
    box = estimate_noise_power(*halves, allow_masked=True).noise_power
    assert (found[3:] / power[3:]).mean() == pytest.approx(1, abs=0.1)
    assert (box[3:] / power[3:]).mean() < 0.6


@pytest.mark.parametrize(
    "values", [(torch.zeros(4, 4, 4), POWER), (VARIANCE, torch.tensor([1.0, -1.0])), (POWER, POWER)]
)
def test_what_is_not_positive_is_refused(values):
    with pytest.raises(NoiseError):
        LocalNoise(*values)


def test_an_empty_window_is_refused():
    half = torch.randn(8, 8, 8)
    with pytest.raises(NoiseError, match="window"):
        windowed_noise_power(half, -half, torch.zeros(8, 8, 8))
