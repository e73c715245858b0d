import itertools
import math
import pickle

import pytest
import torch

from cryofm_ops import (
    AnisotropicNoise,
    DirectionTable,
    GeometryError,
    MissingWedge,
    Noise,
    NoiseError,
    SpectralNoise,
    SpectralPower,
    cone_alpha,
    estimate_noise_power,
    hemisphere,
    radial_mean,
    wedge_alpha,
)

TABLE = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
ALPHAS = {
    "wedge": wedge_alpha(-45, 45, 3),
    "one-sided wedge": wedge_alpha(10, 60, 2, tilt_axis="x"),
    "tilted cone": cone_alpha((1, 2, 2), 35, 0.5),
    "table": DirectionTable(hemisphere(20), 1 + hemisphere(20)[:, 2] + hemisphere(20)[:, 0], 12),
}


@pytest.fixture(params=ALPHAS.values(), ids=ALPHAS.keys())
def noise(request):
    return AnisotropicNoise(TABLE, request.param)


def test_capabilities(noise):
    assert isinstance(noise, Noise)
    assert isinstance(noise, SpectralPower)


def test_precision_is_the_inverse_covariance(noise, oracle, generator):
    # `oracle.filter` asserts that the dense covariance is real, which N(−k) = N(k) makes it, Nyquist included.
    covariance = oracle.filter(noise.power(oracle.shape))
    r = torch.randn(2, *oracle.shape, generator=generator, dtype=torch.float64)
    expected = torch.linalg.solve(covariance, r.flatten(1).T).T
    torch.testing.assert_close(noise.precision(r).flatten(1), expected)


def test_draws_have_the_stated_covariance(noise, oracle, generator):
    # 6 standard errors for each of at most 125² entries: a false alarm in 3e-5 of all seeds; the seed is fixed.
    draws = 4000
    n = noise.sample(torch.zeros(draws, *oracle.shape, dtype=torch.float64), generator=generator).flatten(1)
    expected = oracle.filter(noise.power(oracle.shape))
    spread = (expected.diagonal().outer(expected.diagonal()) + expected**2) / draws
    assert ((n.T @ n / draws - expected).abs() < 6 * spread.sqrt()).all()


def test_power_by_hand():
    # Tilts of −30° to 60° about y measure arctan(kz / kx) in that range; elsewhere the amplitude is three times.
    power = AnisotropicNoise(torch.ones(2, dtype=torch.float64), wedge_alpha(-30, 60, 3)).power((7, 5, 9))
    for k, j, i in itertools.product(range(-3, 4), range(-2, 3), range(5)):
        kz, kx = k / 7, i / 9
        if (k, j, i) == (0, 0, 0):
            continue
        theta = math.degrees(math.atan(kz / kx)) if kx else (90.0 if kz else 0.0)
        assert power[k, j, i] == (1 if -30 <= theta <= 60 else 9), (k, j, i)


@pytest.mark.parametrize("tilts", [(-60, 60), (-40, 65), (15, 50)])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_good_directions_are_those_a_tilt_series_measures(tilts, axis):
    shape = (9, 11, 7)
    power = AnisotropicNoise(torch.ones(2), wedge_alpha(*tilts, 2, tilt_axis=axis)).power(shape).flatten()
    kept = MissingWedge(*tilts, axis).transfer(shape).flatten()
    torch.testing.assert_close(power[1:], torch.where(kept == 1, 1.0, 4.0)[1:])


def test_cone_is_about_its_axis():
    power = AnisotropicNoise(torch.ones(2), cone_alpha((0, 0, -3), 40, 2)).power((9, 9, 9))
    assert (power[1:, 0, 0] == 1).all()  # along z
    assert (power[0, 1:, 0] == 4).all()
    assert power[1, 0, 1] == 4  # 45° off
    assert power[4, 0, 3] == 1  # 37° off


def test_constant_alpha_is_spectral_noise(generator):
    noise = AnisotropicNoise(TABLE, lambda d: torch.full(d.shape[:-1], 2.0))
    y = torch.randn(2, 6, 5, 4, generator=generator)
    torch.testing.assert_close(noise.power((6, 5, 4)), SpectralNoise(2 * TABLE).power((6, 5, 4)))
    torch.testing.assert_close(noise.precision(y), SpectralNoise(2 * TABLE).precision(y))
    assert noise.sample(y, generator=generator).dtype == y.dtype


def test_from_half_maps_keeps_the_shell_means_of_d2(generator):
    shape = (20, 17, 24)
    s = SpectralNoise(TABLE * 100).sample(torch.zeros(shape, dtype=torch.float64), generator=generator)
    truth = AnisotropicNoise(TABLE, wedge_alpha(-45, 45, 3))
    h1, h2 = truth.sample(s, generator=generator), truth.sample(s, generator=generator)
    noise = AnisotropicNoise.from_half_maps(h1, h2, truth.alpha_variance)
    h = estimate_noise_power(h1, h2).noise_power
    on_shells = AnisotropicNoise(torch.ones_like(TABLE), truth.alpha_variance).power(shape)  # α(ξ) alone
    torch.testing.assert_close(noise.radial_power * radial_mean(on_shells, shape), h)
    # Interpolating between the shells moves the means of the power itself by little.
    torch.testing.assert_close(radial_mean(noise.power(shape), shape)[3:], h[3:], rtol=0.1, atol=0)
    rescaled = AnisotropicNoise.from_half_maps(h1, h2, lambda d: 7 * truth.alpha_variance(d))
    torch.testing.assert_close(rescaled.power(shape), noise.power(shape))
    # 5 standard errors of shells with at least 500 coefficients, half of them independent.
    assert (noise.power(shape) / truth.power(shape))[8:12].sub(1).abs().max() < 5 * (2 / 500) ** 0.5


def test_noises_can_be_pickled():
    for alpha in ALPHAS.values():
        noise = AnisotropicNoise(TABLE, alpha)
        assert torch.equal(pickle.loads(pickle.dumps(noise)).power((4, 4, 4)), noise.power((4, 4, 4)))


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (lambda d: 1 + 0.5 * d[..., 0], "must be even"),
        (lambda d: d, "one finite value"),
        (lambda d: d[..., 2] ** 2 - 0.5, "not negative"),
        (lambda d: d[..., 0] / 0, "finite"),
    ],
)
def test_impossible_alpha(alpha, message):
    with pytest.raises(NoiseError, match=message):
        AnisotropicNoise(TABLE, alpha)


def test_impossible_parameters(generator):
    with pytest.raises(NoiseError, match="radial_power"):
        AnisotropicNoise(-TABLE, wedge_alpha(-45, 45, 3))
    with pytest.raises(GeometryError, match=r"got 45\.0 to 45\.0"):
        wedge_alpha(45, 45, 3)
    with pytest.raises(GeometryError, match="tilt_axis"):
        wedge_alpha(-45, 45, 3, tilt_axis="z")
    with pytest.raises(NoiseError, match="alpha_amplitude must be finite and positive, got 0"):
        wedge_alpha(-45, 45, 0)
    for axis, angle in (((0, 0, 0), 30), ((0, 1), 30), ((0, 0, 1), 90)):
        with pytest.raises(GeometryError, match="a cone needs"):
            cone_alpha(axis, angle, 3)
    halves = torch.randn(2, 12, 12, 12, generator=generator)
    with pytest.raises(NoiseError, match="0 over a whole shell"):
        AnisotropicNoise.from_half_maps(*halves, lambda d: 0 * d[..., 0])
