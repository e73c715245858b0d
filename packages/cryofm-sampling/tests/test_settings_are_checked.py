"""A setting out of range, or data or a prior that cannot be, are refused by the error that says so and names them."""

import math
from types import SimpleNamespace

import pytest
import torch

from cryofm_ops import (
    Identity,
    NoiseError,
    Normal,
    ObservationError,
    OperatorError,
    WhiteNoise,
    gaussian_likelihood,
    in_model_units,
)
from cryofm_sampling import (
    AbInitio,
    BlindGuided,
    CapabilityError,
    Checkpoint,
    Flow,
    GridMismatchError,
    Guided,
    Inpainting,
    PlugAndPlay,
    PlugAndPlayLoss,
    PosteriorFlow,
    Renoising,
    ScaledNormalization,
    SettingError,
    Tiled,
    chi_squared,
)
from cryofm_sampling.testing import GaussianPrior

PRIOR = GaussianPrior(1.0)


SAMPLERS = [PlugAndPlay(), PosteriorFlow(), Renoising(), Guided(2), Inpainting(2)]


def run(sampler, likelihood, shape=(4, 4, 4)):
    asked = (PRIOR,) if isinstance(sampler, Flow) else (PRIOR, likelihood)
    return sampler(*asked, shape=shape, generator=torch.Generator())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_data_of_an_odd_box_are_not_taken_for_those_of_an_even_one(sampler):
    likelihood = gaussian_likelihood(Identity(), WhiteNoise(1.0), torch.zeros(4, 4, 5))
    with pytest.raises(GridMismatchError, match=r"the data have box \(4, 4, 5\), the volumes asked for \(4, 4, 4\)"):
        run(sampler, likelihood)
    with pytest.raises(GridMismatchError, match="the data have box"):
        run(sampler, in_model_units(likelihood, SimpleNamespace(mean=0.1, std=2.0)))
    with pytest.raises(GridMismatchError, match="the data have box"):
        chi_squared(torch.zeros(4, 4, 4), likelihood)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_spectrum_that_cannot_be_is_refused(sampler, kit):
    negative, unknown = torch.ones(2, 4, 4, 3)
    negative[1, 2, 0], unknown[1, 2, 0] = -0.5, 0
    with pytest.raises(NoiseError, match=r"must not be negative or NaN, got -0\.5"):
        run(sampler, kit.Spectral(torch.ones(4, 4, 4), negative))
    likelihood = kit.Spectral(torch.ones(4, 4, 4), torch.ones(4, 4, 3))
    likelihood.y[1, 2, 0] = torch.nan
    with pytest.raises(ObservationError, match="1 values that are not finite"):
        run(sampler, likelihood)
    likelihood.W = unknown
    assert run(sampler, likelihood).x.isfinite().all()  # where nothing was measured they may be anything


@pytest.mark.parametrize("sampler", [*SAMPLERS, Guided(2, "paper")])
def test_a_prior_that_is_not_finite_is_named(sampler):
    class Broken(GaussianPrior):
        def __call__(self, x, t):
            return torch.where(t < 0.9, torch.nan, 1.0) * super().__call__(x, t)

    likelihood = gaussian_likelihood(Identity(), WhiteNoise(1.0), torch.ones(4, 4, 4))
    with pytest.raises(CapabilityError, match=r"Broken gives a velocity that is not finite at t = 0\."):
        sampler(Broken(1.0), likelihood, shape=(4, 4, 4), generator=torch.Generator())
    with pytest.raises(CapabilityError, match="Broken gives a velocity that is not finite"):
        Flow()(Broken(1.0), shape=(4, 4, 4), generator=torch.Generator())


@pytest.mark.parametrize("sampler", [Guided(2), Guided(2, "paper")])
def test_a_log_prob_that_is_not_finite_is_named(sampler):
    class Logarithm:
        def log_prob(self, x):
            return -x.log().square().sum((-3, -2, -1))

    with pytest.raises(OperatorError, match="the log_prob of the likelihood, or its gradient, is not finite"):
        run(sampler, Logarithm())


@pytest.mark.parametrize("sampler", [PlugAndPlay(), PosteriorFlow(), Renoising()])
def test_a_conditioning_that_is_not_finite_is_named(sampler):
    class Logarithm:
        def condition(self, mean, variance):
            return Normal(mean.log(), variance)

    with pytest.raises(OperatorError, match="the likelihood made a volume that is not finite"):
        run(sampler, Logarithm())


@pytest.mark.parametrize(
    ("refused", "name"),
    [
        (lambda: Guided(steps=0), "Guided: 'steps' must be >= 1: 0"),
        (lambda: Guided(guidance="mode"), "Guided: 'guidance' must be in .* \\(got 'mode'\\)"),
        (lambda: Guided(max_push=math.nan), "'max_push'"),
        (lambda: BlindGuided(max_push=0.0), "'max_push'"),
        (lambda: PlugAndPlay(time=1.5), "PlugAndPlay: 'time' must be < 1: 1.5"),
        (lambda: PlugAndPlay(time=0.0), "'time' must be > 0"),
        (lambda: PlugAndPlayLoss(PRIOR, 1.5), "'fraction'"),
        (lambda: PosteriorFlow(1), "'steps'"),
        (lambda: PosteriorFlow(2.5), "'steps'.*2.5"),
        (lambda: PosteriorFlow(first=8), "'first'.*PlugAndPlay"),
        (lambda: PlugAndPlay(math.inf), "'iterations'.*inf"),
        (lambda: Renoising(chains=0), "'chains'"),
        (lambda: Renoising(times=0.5), "times must be a sequence of numbers, got 0.5"),
        (lambda: Renoising(times="abc"), "times must be a sequence of numbers, got 'abc'"),
        (lambda: run(Flow(), None, shape=9), r"shape must be \(\*batch, z, y, x\), whole numbers from 1, got 9"),
        (lambda: run(Flow(), None, shape=(4, 4, 4.0)), r"shape must be .* got \(4, 4, 4.0\)"),
        (lambda: Inpainting(0), "'steps'"),
        (lambda: Flow(0), "'steps'"),
        (lambda: Flow(integrator="leapfrog"), "'integrator'"),
        (lambda: Tiled(PRIOR, 0, 0), "'tile'"),
        (lambda: ScaledNormalization(None, 0.0), "'scale'"),
        (lambda: Checkpoint("a", -1), "'every_seconds'"),
        (lambda: AbInitio(levels=1), "'levels'"),
        (lambda: AbInitio(ratios=(20.0, 0.0)), r"'ratios' must be positive and fall, got \(20.0, 0.0\)"),
        (lambda: AbInitio(ratios=(0.1, 20.0)), "'ratios'"),
    ],
)
def test_it_is_refused_by_name(refused, name):
    with pytest.raises(SettingError, match=name):
        refused()
