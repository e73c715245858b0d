"""A setting out of range, or data or a prior that cannot be, are refused by the error that says so and names them."""

import math
from types import SimpleNamespace

import pytest
import torch

from cryofm_ops import (
    Identity,
    MissingWedge,
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
    Rescaled,
    ScaledNormalization,
    SettingError,
    Tiled,
    calibrate,
    chi_squared,
    log_likelihood,
    restore_half_maps,
    restore_map,
    restore_missing_wedge,
)
from cryofm_sampling.testing import GaussianPrior

PRIOR = GaussianPrior(1.0)


SAMPLERS = [PlugAndPlay(), PosteriorFlow(), Renoising(), Guided(2), Inpainting(2)]


@pytest.mark.parametrize("value", [math.inf, math.nan, -math.inf])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: ScaledNormalization(SimpleNamespace(mean=0.0, std=1.0), x),
        lambda x: AbInitio(draw_above=x),
        lambda x: AbInitio(max_shift_px=x),
        lambda x: Guided(2, max_push=x),
        lambda x: restore_half_maps(
            PRIOR, *torch.zeros(2, 4, 4, 4), voxel_size=1.5, generator=torch.Generator(), samples=x
        ),
    ],
)
def test_settings_are_finite(make, value):
    with pytest.raises(SettingError):
        make(value)


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
        (lambda: Guided(max_push=math.inf), "'max_push'"),
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
        (lambda: PlugAndPlay(10**20), "'iterations'"),
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


class PerImage:
    def __init__(self, *shape):
        self.shape = shape

    def log_prob(self, x):
        return (
            -x.square()
            .sum((-3, -2, -1))
            .reshape(*x.shape[:-3], *(1 for _ in self.shape))
            .expand(*x.shape[:-3], *self.shape)
        )


@pytest.mark.parametrize("guidance", ["paper", "gaussian"])
@pytest.mark.parametrize("shape", [(1,), (8,), (2, 2)])
def test_a_log_prob_is_one_value_a_volume(guidance, shape):
    with pytest.raises(GridMismatchError, match="one value each; PerImage gives"):
        run(Guided(2, guidance), PerImage(*shape))


def test_conditioning_keeps_the_shape_of_volumes():
    class Gain:
        def __call__(self, x):
            return x

        adjoint = __call__

    two = gaussian_likelihood(Gain(), WhiteNoise(0.5), torch.stack([torch.ones(4, 4, 4), -torch.ones(4, 4, 4)]))
    for sampler in (Guided(2), Inpainting(2)):
        with pytest.raises((GridMismatchError, OperatorError), match=r"\(2, 4, 4, 4\)"):
            run(sampler, two)
    with pytest.raises(GridMismatchError, match="one value each"):
        run(Guided(2, "paper"), two)


def test_one_step_of_the_paper_knows_no_data():
    for kind in (Guided, BlindGuided):
        with pytest.raises(SettingError, match="needs 2 steps"):
            kind(1, "paper")


def test_what_conditioning_makes_of_the_last_volume_is_looked_at():
    class Broken:
        def condition(self, mean, variance):
            return Normal(mean * torch.nan, variance)

    with pytest.raises(OperatorError, match="values that are not finite"):
        run(Inpainting(1), Broken())


def test_spectral_precision_is_that_of_both_signs():
    class Lopsided:
        def spectral_precision(self):
            W = torch.ones(4, 4, 3)
            W[1, 0, 0] = math.inf  # and that of [3, 0, 0] is 1
            return W

        def spectral_data(self):
            return torch.zeros(4, 4, 3, dtype=torch.complex64)

    for sampler in SAMPLERS[:3]:
        with pytest.raises(NoiseError, match=r"at index \(1, 0, 0\) it is inf, and at that .* mate 1"):
            run(sampler, Lopsided())


@pytest.mark.parametrize("name", ["signal_power", "denoising_error"])
@pytest.mark.parametrize("value", [0.0, math.nan])
def test_statistics_of_a_prior_are_looked_at(name, value):
    tables = {"signal_power": torch.ones(3), "denoising_error": torch.tensor([[0.5, 0.5], [1.0, 1.0]])}
    tables[name] = torch.full_like(tables[name], value)

    class Prior:
        signal_power = tables["signal_power"]
        denoising_error = tables["denoising_error"]

        def __call__(self, x, t):
            return PRIOR(x, t)

    likelihood = gaussian_likelihood(Identity(), WhiteNoise(1.0), torch.zeros(4, 4, 4))
    with pytest.raises(CapabilityError, match=f"{name} that is not finite, or 0 everywhere"):
        PlugAndPlay()(Prior(), likelihood, shape=(4, 4, 4), generator=torch.Generator())


def test_times_that_are_no_numbers_are_refused():
    with pytest.raises(SettingError, match="times must fall"):
        Renoising(times=(0.5, math.nan))
    with pytest.raises(SettingError, match="times must increase"):
        calibrate(PRIOR, torch.ones(1, 4, 4, 4), generator=torch.Generator(), times=[0.5, math.nan])


@pytest.mark.parametrize("tolerance", [0.0, -1e-5, math.nan, math.inf])
@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_tolerances_are_checked(name, tolerance):
    with pytest.raises(SettingError, match="rtol and atol must be positive and finite"):
        log_likelihood(PRIOR, torch.ones(4, 4, 4), generator=torch.Generator(), **{name: tolerance})
    with pytest.raises(SettingError, match="floating-point type"):
        log_likelihood(PRIOR, torch.ones(4, 4, 4, dtype=torch.int16), generator=torch.Generator())


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_a_scale_that_leaves_no_map_is_refused(scale):
    prior = Rescaled(GaussianPrior(1.0, (16, 16, 16)), SimpleNamespace(mean=0.0, std=1.0))
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(16, 16, 16, generator=generator) for _ in range(2))
    tilts, wanted = MissingWedge(-90, 90), {"scale": scale, "generator": generator}
    for restored in (
        lambda: restore_half_maps(prior, one, two, **wanted),
        lambda: restore_missing_wedge(prior, one, tilts, **wanted),
        lambda: restore_map(prior, one, resolution=4.0, voxel_size=1.5, **wanted),
    ):
        with pytest.raises(SettingError, match="of the map's largest value"):
            restored()
