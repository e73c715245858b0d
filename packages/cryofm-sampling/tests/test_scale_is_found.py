"""The scale of a map comes out of its halves, wherever the search begins."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch

from cryofm_ops import Identity, WhiteNoise, estimate_noise_power, gaussian_likelihood
from cryofm_sampling import CapabilityError, Draw, ScaledNormalization, SettingError, calibrate, fit_scale

SCALE = 5.0


class Spikes:
    """The exact flow of voxels that are 1 in one case of ten and otherwise 0."""

    normalization = SimpleNamespace(mean=0.0, std=1.0)

    def __call__(self, x, t):
        log_odds = ((1 - t) * x - (1 - t) ** 2 / 2) / t**2 - math.log(9)
        return (x - log_odds.sigmoid()) / t


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)
    spikes = (torch.rand(24, 24, 24, generator=generator) < 0.1).float()
    prior = calibrate(Spikes(), spikes[None], generator=generator)
    noise = WhiteNoise(0.15 / SCALE)
    one, two = (noise.sample(spikes / SCALE, generator=generator) for _ in range(2))
    return prior, gaussian_likelihood(Identity(), noise, one), two, estimate_noise_power(one, two).fsc


@pytest.mark.parametrize("guess", [1.5, 5.0, 15.0])
def test_from_any_guess(problem, guess):
    prior, *data = problem
    fit = fit_scale(prior, *data, generator=torch.Generator().manual_seed(1), guess=guess)
    assert fit.normalization.scale == pytest.approx(SCALE, rel=0.2)
    assert fit.normalization.std == pytest.approx(1 / fit.normalization.scale)
    best = max(score for _, score in fit.trials)
    assert best > 0.95  # the estimated FSC_AUC of the first half restored: these halves are nearly clean
    assert fit.nfe == 3 * len(fit.trials)


def test_the_same_seed_gives_the_same_scale(problem):
    prior, *data = problem
    one, two = (fit_scale(prior, *data, generator=torch.Generator().manual_seed(1), guess=4.0) for _ in range(2))
    assert one == two


def test_a_hopeless_guess_is_told(problem):
    prior, *data = problem
    with pytest.warns(UserWarning, match="halves do not tell the scale"):
        fit_scale(prior, *data, generator=torch.Generator().manual_seed(1), guess=SCALE / 10)


def scale_of(score):
    """Found where a restoration scores so, by steps of √2 from the guess of 1: noise in place of a sampler."""
    generator = torch.Generator().manual_seed(0)
    truth, noise = torch.randn(2, 8, 8, 8, generator=generator)

    def sampler(prior, likelihood, /, *, shape, generator, callback=None):
        c = score(-math.log2(likelihood.spectral_precision().mean()))  # the square of the std in data units
        return Draw(c * truth + math.sqrt(1 - c * c) * noise, 1, {})

    data = gaussian_likelihood(Identity(), WhiteNoise(1.0), truth), truth, torch.full((5,), 0.9)
    return fit_scale(Spikes(), *data, generator=generator, guess=1.0, sampler=sampler).normalization.scale


@pytest.mark.parametrize(
    "score", [lambda s: 0.5 + 0.03 * s - 1e-4 * s * s, lambda s: 0.9 - 0.4 * math.exp(-0.05 * (s + 6))]
)
def test_a_score_that_rises_ends_at_the_end_of_the_range(score):
    with pytest.warns(UserWarning, match="halves do not tell the scale"):
        assert scale_of(score) == pytest.approx(8)


@pytest.mark.parametrize("score", [lambda s: 0.9999, lambda s: 0.99 - 1e-4 * s])
def test_where_all_predict_alike_the_guess_decides(score):
    assert scale_of(score) == pytest.approx(1, rel=0.2)


def test_a_peak_at_the_end_of_the_range_is_one():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scale_of(lambda s: 0.9 - 0.004 * (s - 6) ** 2) == pytest.approx(8, rel=0.05)


def test_what_is_missing_is_named(problem):
    _, *data = problem
    with pytest.raises(CapabilityError, match="function has no"):
        fit_scale(lambda x, t: x, *data, generator=torch.Generator(), guess=1.0)
    with pytest.raises(SettingError, match="must be positive, got 0"):
        fit_scale(problem[0], *data, generator=torch.Generator(), guess=0.0)


def test_scaled_units_undo_the_scale():
    units = ScaledNormalization(SimpleNamespace(mean=0.04, std=0.09), scale=4.0)
    x = 0.25  # in data units; times 4 it is 1, which the prior normalises
    assert (x - units.mean) / units.std == pytest.approx((1 - 0.04) / 0.09)


def test_an_empty_shell_says_nothing(problem):
    prior, likelihood, two, fsc = problem
    asked = {"generator": torch.Generator().manual_seed(1), "guess": 5.0}
    holey = fsc.clone()
    holey[5] = torch.nan
    assert fit_scale(prior, likelihood, two, holey, **asked).normalization.scale == pytest.approx(SCALE, rel=0.2)


@pytest.mark.parametrize("value", [math.nan, 0.0])
def test_a_half_that_says_nothing_is_refused(problem, value):
    prior, likelihood, two, fsc = problem
    with pytest.raises(SettingError, match="held-out half must be finite, and not 0 everywhere"):
        fit_scale(prior, likelihood, two * value, fsc, generator=torch.Generator(), guess=5.0)


@pytest.mark.parametrize("unit", [1e-13, 1e13])
def test_units_of_single_precision_do_not_matter(unit):
    generator = torch.Generator().manual_seed(0)
    spikes = (torch.rand(16, 16, 16, generator=generator) < 0.1).float()
    prior = calibrate(Spikes(), spikes[None], generator=generator)
    found = []
    for factor in (1.0, unit):
        noise, numbers = WhiteNoise(0.03 * factor), torch.Generator().manual_seed(1)
        one, two = (noise.sample(spikes / 5 * factor, generator=numbers).float() for _ in range(2))
        fsc = estimate_noise_power(one, two).fsc
        likelihood = gaussian_likelihood(Identity(), noise, one)
        fit = fit_scale(prior, likelihood, two, fsc, generator=torch.Generator().manual_seed(2), guess=2 / factor)
        found.append(fit.normalization.scale * factor)
    assert found[1] == pytest.approx(found[0], rel=0.01)
