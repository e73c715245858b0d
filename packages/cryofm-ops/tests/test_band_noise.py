"""Noise that differs from place to place in every band by itself: against dense matrices, and found from halves."""

import pytest
import torch

from cryofm_ops import (
    BandNoise,
    Identity,
    LocalNoise,
    NoiseError,
    estimate_band_variances,
    fourier_filter,
    frequencies,
    gaussian_likelihood,
    radial,
)
from cryofm_ops.testing import check_noise

SHAPE = (4, 3, 5)
VARIANCES = torch.stack([torch.linspace(0.5, 2, 60), torch.linspace(3, 0.3, 60)]).double().reshape(2, *SHAPE)
POWER = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)


def matrix(filter):
    """A Fourier filter, column by column."""
    return fourier_filter(torch.eye(60, dtype=torch.float64).reshape(60, *SHAPE), filter).reshape(60, 60)


def precision():
    """S^−½ (Σ_b P_b D_b⁻¹ P_b) S^−½, of dense matrices."""
    nu = frequencies(SHAPE)
    P = [matrix(inside.double()) for inside in (nu < 0.25, nu >= 0.25)]
    inner = sum(p @ torch.diag(1 / D.flatten()) @ p for p, D in zip(P, VARIANCES, strict=True))
    root = matrix(radial(POWER, SHAPE).rsqrt())
    return root @ inner @ root


def test_its_precision_is_the_dense_one():
    r = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = BandNoise(VARIANCES, POWER).precision(r)
    torch.testing.assert_close(found.flatten(1), r.flatten(1) @ precision())


def test_its_samples_have_the_inverse_for_covariance():
    noise, generator = BandNoise(VARIANCES, POWER), torch.Generator().manual_seed(0)
    n = noise.sample(torch.zeros(4000, *SHAPE, dtype=torch.float64), generator=generator).flatten(1)
    found, truth = n.T @ n / len(n), torch.linalg.inv(precision())
    scale = torch.outer(truth.diag(), truth.diag()).sqrt()
    assert ((found - truth) / scale).abs().max() < 6 * len(n) ** -0.5
    torch.testing.assert_close(found.diag() / truth.diag(), torch.ones(60).double(), atol=0.12, rtol=0)


def test_any_operator_is_conditioned_on_it():
    y = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    likelihood = gaussian_likelihood(Identity(), BandNoise(VARIANCES, POWER), y)
    found = likelihood.condition(torch.zeros(SHAPE, dtype=torch.float64), 0.7).mean
    expected = torch.linalg.solve(torch.eye(60, dtype=torch.float64) / 0.7 + precision(), precision() @ y.flatten())
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_contract_of_a_noise():
    variances = 0.5 + torch.rand(3, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    check_noise(BandNoise(variances, torch.tensor([2.0, 1.0])), shapes=[(8, 8, 8)])


def test_one_band_is_local_noise_that_is_white():
    variance, r = VARIANCES[0], torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    white = torch.ones(2, dtype=torch.float64)
    one, local = BandNoise(variance[None], white), LocalNoise(variance, white)
    torch.testing.assert_close(one.precision(r), local.precision(r))


def test_what_is_noisier_in_one_band_alone_is_found_there():
    generator, n = torch.Generator().manual_seed(0), 40
    right = torch.where(torch.arange(n) < n // 2, 0.3, 1.7).expand(n, n, n)
    noise = BandNoise(torch.stack([torch.ones(n, n, n), right, torch.ones(n, n, n)]), torch.tensor([1.0, 0.5]))
    halves = [noise.sample(torch.zeros(n, n, n), generator=generator) for _ in range(2)]
    found = estimate_band_variances(*halves, 3, width_px=3)
    ratios = found[:, 8:32, 8:32, 28:34].mean((1, 2, 3)) / found[:, 8:32, 8:32, 6:12].mean((1, 2, 3))
    assert 3.5 < ratios[1] < 7
    assert (ratios[[0, 2]] - 1).abs().max() < 0.3


def test_what_cannot_be_is_refused():
    with pytest.raises(NoiseError, match=r"variances are volumes \(bands, z, y, x\)"):
        BandNoise(VARIANCES[0], POWER)
    with pytest.raises(NoiseError, match="radial table"):
        BandNoise(VARIANCES, POWER[:1])
    with pytest.raises(NoiseError, match="bands must be 1 or more"):
        estimate_band_variances(torch.ones(4, 4, 4), torch.ones(4, 4, 4), 0)
