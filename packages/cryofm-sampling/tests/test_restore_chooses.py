"""The front door picks the algorithm from capabilities, and works in the units of the data."""

from types import SimpleNamespace

import attrs
import pytest
import torch

from cryofm_ops import (
    Identity,
    MissingWedge,
    OperatorError,
    Proximal,
    RemoveMean,
    WhiteNoise,
    gaussian_likelihood,
    in_model_units,
)
from cryofm_sampling import (
    AbInitio,
    CapabilityError,
    Checkpoint,
    Draw,
    Flow,
    GridMismatchError,
    Guided,
    PlugAndPlay,
    PosteriorFlow,
    Renoising,
    SettingError,
    misfit,
    restore,
)
from cryofm_sampling.samplers._peaks import mean_of_peaks
from cryofm_sampling.testing import GaussianPrior

BOX = (6, 5, 8)


@attrs.frozen
class Units:
    mean: float = 0.04
    std: float = 0.09


@attrs.frozen(slots=False)
class Prior(GaussianPrior):
    """White Gaussian data of mean 0.04 and standard deviation 0.09."""

    normalization: Units = Units()


def run(prior, likelihood, **options):
    generator = torch.Generator().manual_seed(0)
    return restore(prior, likelihood, shape=BOX, generator=generator, **options)


@pytest.fixture
def y():
    return 0.04 + 0.09 * torch.randn(BOX, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def likelihood(y):
    return gaussian_likelihood(Identity(), WhiteNoise(0.09), y)


class LogProb:
    def __init__(self, y):
        self.y = y

    def log_prob(self, x):
        return -0.5 * ((x - self.y) / 0.09).square().sum((-3, -2, -1))


def test_plug_and_play_for_the_mean(y, likelihood):
    draw = run(Prior(1.0), likelihood)
    # Prior and noise are equally wide: the mean is halfway between 0.04 and the data, and 8 passes come near.
    torch.testing.assert_close(draw.x - 0.04, (y - 0.04) / 2, rtol=0.15, atol=0)
    assert draw.settings["algorithm"] == "PlugAndPlay"
    assert "FourierDiagonal" in draw.settings["because"]
    assert draw.nfe == 8


@pytest.mark.parametrize("of", [lambda y: LogProb(y), lambda y: gaussian_likelihood(Identity(), WhiteNoise(0.09), y)])
def test_what_is_in_model_units_already_is_refused(y, of):
    class Units:
        mean, std = 0.04, 0.09

    with pytest.raises(OperatorError, match="in model units already"):
        run(Prior(1.0), in_model_units(of(y), Units()))


@pytest.mark.parametrize(
    ("value", "words"),
    [(lambda x: float(x.detach().sum()), "it is float"), (lambda x: x.detach().numpy().sum(), r"it is float\d\d")],
)
def test_a_log_prob_that_is_no_tensor_is_named(y, value, words):
    likelihood = LogProb(y)
    likelihood.log_prob = value
    with pytest.raises(OperatorError, match=f"log_prob of .* must be a real tensor, {words}"):
        run(Prior(1.0), likelihood)


def test_a_sampler_needs_a_generator(likelihood):
    with pytest.raises(SettingError, match=r"generator must be a torch\.Generator, got None"):
        PlugAndPlay()(Prior(1.0), likelihood, shape=BOX, generator=None)


def test_many_passes_where_something_was_not_measured(y):
    wedge = MissingWedge(-60, 60)
    noiseless = gaussian_likelihood(wedge, WhiteNoise(0.0), wedge(y))
    draw = run(Prior(1.0), noiseless)
    assert draw.settings["algorithm"] == "PlugAndPlay"
    assert "not measured" in draw.settings["because"]
    assert (draw.settings["iterations"], draw.nfe) == (20, 20)
    noisy = run(Prior(1.0), gaussian_likelihood(wedge, WhiteNoise(0.05), wedge(y)))
    assert (noisy.settings["iterations"], noisy.nfe) == (8, 8)
    # The flow of samples begins with the gap filled.
    assert run(Prior(1.0), noiseless, estimate="samples", samples=1).nfe == 44


def test_a_mean_that_was_not_measured_is_no_gap(y):
    for noise in (WhiteNoise(0.0), WhiteNoise(0.09)):
        data = gaussian_likelihood(RemoveMean(), noise, y + 7)
        draw = run(Prior(1.0), data)
        assert (draw.settings["algorithm"], draw.nfe) == ("PlugAndPlay", 8)
        assert draw.x.mean() == pytest.approx(0.04, abs=0.01)  # the prior's, whatever the data's
        assert run(Prior(1.0), data, estimate="samples", samples=1).nfe == 25


def test_plug_and_play_for_the_mean_of_any_linear_operator(y):
    class Gain:
        def __call__(self, x):
            return torch.linspace(0.5, 1.5, BOX[-1]).to(x) * x

        adjoint = __call__

    draw = run(Prior(1.0), gaussian_likelihood(Gain(), WhiteNoise(0.09), Gain()(y)))
    assert (draw.settings["algorithm"], draw.nfe) == ("PlugAndPlay", 8)
    assert "Conjugate" in draw.settings["because"]
    noiseless = run(Prior(1.0), gaussian_likelihood(Gain(), WhiteNoise(0.0), Gain()(y)))
    torch.testing.assert_close(noiseless.x, y, rtol=0, atol=0.02)


def test_poses_are_searched_where_the_likelihood_is_blind(y):
    class Offset:  # y or its negative
        def refine(self, x):
            return LogProb(y if (x * y).sum() > 0 else -y)

    draw = run(GaussianPrior(1.0), Offset(), samples=1)
    assert draw.settings["algorithm"] == "BlindGuided"
    assert "Blind" in draw.settings["because"]


def test_an_average_of_chains_is_no_sample(y, likelihood):
    with pytest.raises(CapabilityError, match="Renoising gives the posterior mean only"):
        run(Prior(1.0), likelihood, sampler=Renoising(chains=2), estimate="samples")
    assert run(Prior(1.0), likelihood, sampler=Renoising(), estimate="samples", samples=2).x.shape == (2, *BOX)


def test_the_mode_of_every_pass_where_the_likelihood_only_has_log_prob(y, likelihood):
    draw = run(Prior(1.0), LogProb(y))
    assert (draw.settings["algorithm"], draw.nfe) == ("PlugAndPlay", 8)
    assert "log_prob alone" in draw.settings["because"]
    assert draw.settings["held"] == 4
    closed = run(Prior(1.0), likelihood)
    torch.testing.assert_close(draw.x, closed.x, rtol=0, atol=0.1 * float(closed.x.std()))
    assert draw.settings["noise_level"][0] == pytest.approx(0.09, rel=0.3)
    assert 8 < draw.calls < 100
    assert closed.calls == 0


class EitherSign(LogProb):
    """Of a volume, or of its negative: the mean of the two is 0."""

    def log_prob(self, x):
        return torch.logaddexp(super().log_prob(x), super().log_prob(-x))


def test_the_mean_of_several_peaks_is_of_runs_that_begin_at_one_each(y, tmp_path):
    prior = GaussianPrior(0.09)
    told = []

    class Told:
        def __call__(self, step, total, x_0):
            told.append((1, step))

        def of_run(self, run, runs):
            return lambda step, total, x_0: told.append((run, step))

    draw = run(prior, EitherSign(y), callback=Told(), checkpoint=Checkpoint(tmp_path / "run.safetensors"))
    assert draw.settings["several_modes"]
    assert "x is the mean of 4 of 4 runs" in draw.settings["note"]
    assert draw.settings["samples"] == 4
    assert draw.nfe == 32
    assert told == [(k, step) for k in (1, 2, 3, 4) for step in range(1, 9)]
    assert list(tmp_path.glob("*.safetensors")) == []
    one = run(prior, LogProb(y)).x
    assert min(float((draw.mode - sign * one).std()) for sign in (1, -1)) < 0.1 * float(one.std())
    assert float(draw.x.std()) < 0.6 * float(one.std())  # 0, where two runs end at either
    torch.testing.assert_close(run(prior, EitherSign(y)).x, draw.x, rtol=0, atol=0)
    alone = run(prior, EitherSign(y), sampler=PlugAndPlay())
    assert (alone.nfe, alone.settings["several_modes"]) == (8, True)


def test_a_run_that_explains_the_data_worse_does_not_count():
    data = Proximal(LogProb(torch.zeros(BOX)))
    draws = [Draw(torch.full(BOX, value), 8, {"note": "n"}) for value in (0.01, 0.02, 1.0)]
    found = mean_of_peaks(draws, data)
    torch.testing.assert_close(found.x, torch.full(BOX, 0.015))
    torch.testing.assert_close(found.mode, torch.full(BOX, 0.01))
    assert found.settings["note"].startswith("n; x is the mean of 2 of 3 runs")


class Writing(Prior):
    def __call__(self, x, t):
        return x.mul_(0.5)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ({"prior": Prior}, "the prior is the class Prior; give an object of it"),
        ({"likelihood": LogProb}, "the likelihood is the class LogProb"),
        ({"sampler": PlugAndPlay}, "the sampler is the class PlugAndPlay"),
        ({"prior": None}, "the prior must be callable, NoneType is not"),
        ({"sampler": "plug and play"}, "the sampler must be callable, str is not"),
        ({"callback": 3}, "the callback must be callable, int is not"),
        ({"prior": Writing(1.0)}, "the prior Writing writes into the volume that it is given"),
    ],
)
def test_what_is_no_object_or_writes_is_named(likelihood, mistake, words):
    given = {"prior": Prior(1.0), "likelihood": likelihood} | mistake
    with pytest.raises(CapabilityError, match=words):
        run(given.pop("prior"), given.pop("likelihood"), **given)


@pytest.mark.slow
def test_of_data_that_are_not_gaussian_the_mean_is_that_of_a_grid_and_the_misfit_that_of_the_mode(y, likelihood):
    def log_p(x, seen):
        return -0.5 * ((x / 0.09).exp() - (seen / 0.09).exp()).square() / 0.3**2

    class Exponential:
        def log_prob(self, x):
            return log_p(x, y).sum((-3, -2, -1))

    draw = run(Prior(1.0), Exponential())
    grid = torch.linspace(-0.6, 0.7, 20001, dtype=torch.float64)
    density = (log_p(grid, y[..., None].double()) - ((grid - 0.04) / 0.09).square() / 2).softmax(-1)
    mean = (density * grid).sum(-1).float()
    assert (draw.x - mean).square().mean() < 0.02 * (draw.mode - mean).square().mean()
    torch.testing.assert_close(draw.misfit, misfit(draw.mode, Exponential(), 0.09**2), rtol=1e-3, atol=0)
    assert run(Prior(1.0), likelihood).mode is None


def test_guidance_where_the_prior_has_no_statistics(likelihood):
    prior = Prior(1.0)

    class Bare:
        normalization = Units()

        def __call__(self, x, t):
            return prior(x, t)

    draw = run(Bare(), likelihood, samples=2)
    assert draw.settings["algorithm"] == "Guided"
    assert "Bare has no signal_power" in draw.settings["because"]


def test_samples_spread_as_the_posterior(y, likelihood):
    draw = run(Prior(1.0), likelihood, estimate="samples", samples=10)
    assert draw.x.shape == (10, *BOX)
    assert (draw.settings["algorithm"], draw.nfe) == ("PosteriorFlow", 25)
    assert draw.x.var(0).mean() == pytest.approx(0.09**2 / 2, rel=0.15)
    fewer = run(Prior(1.0), likelihood, estimate="samples", samples=2)
    assert torch.equal(fewer.x, draw.x[:2])


def test_samples_where_a_gaussian_can_be_conditioned(y, likelihood):
    class Conditions:
        log_prob, condition = likelihood.log_prob, likelihood.condition

    draw = restore(Prior(1.0), Conditions(), shape=BOX, generator=torch.Generator(), estimate="samples", samples=1)
    assert (draw.settings["algorithm"], draw.nfe) == ("PosteriorFlow", 32)


@pytest.mark.parametrize("names", [["spectral_precision", "spectral_data"], ["condition"]])
def test_no_log_prob_is_needed_for_plug_and_play(names, likelihood):
    partial = SimpleNamespace(**{name: getattr(likelihood, name) for name in names})
    torch.testing.assert_close(run(Prior(1.0), partial).x, run(Prior(1.0), likelihood).x, rtol=0, atol=2e-3)


def test_the_data_of_another_box_are_refused_though_their_half_grids_agree(y):
    odd = gaussian_likelihood(Identity(), WhiteNoise(0.09), torch.zeros(6, 5, 9))
    with pytest.raises(GridMismatchError, match=r"box \(6, 5, 9\)"):
        run(Prior(1.0), odd)


def test_samples_of_a_prior_without_statistics_are_guided(likelihood):
    prior = GaussianPrior(1.0)
    draw = run(lambda x, t: prior(x, t), likelihood, estimate="samples", samples=1)
    assert (draw.settings["algorithm"], draw.nfe) == ("Guided", 199)
    assert "function has no signal_power and no denoising_error" in draw.settings["because"]


@pytest.mark.slow
def test_samples_of_a_likelihood_that_only_has_log_prob_spread_as_the_posterior(y):
    draw = run(Prior(1.0), LogProb(y), estimate="samples", samples=8)
    assert (draw.settings["algorithm"], draw.nfe) == ("PosteriorFlow", 32)
    assert draw.x.var(0).mean() == pytest.approx(0.09**2 / 2, rel=0.2)


def test_what_a_sampler_of_the_callers_returns_is_said_by_estimate_alone(likelihood):
    with pytest.raises(SettingError, match=r'PosteriorFlow draws samples: give estimate="samples", or "mean"'):
        run(Prior(1.0), likelihood, sampler=PosteriorFlow(2))
    assert run(Prior(1.0), likelihood, sampler=PosteriorFlow(2), estimate="samples", samples=2).x.shape == (2, *BOX)
    average = run(Prior(1.0), likelihood, sampler=PosteriorFlow(2), estimate="mean", samples=2)
    assert (average.x.shape, average.settings["samples"]) == (BOX, 2)
    assert run(Prior(1.0), likelihood, sampler=PlugAndPlay(2)).x.shape == BOX


def test_a_sampler_of_the_callers(likelihood):
    draw = run(Prior(1.0), likelihood, sampler=Guided(steps=3), samples=1)
    assert draw.settings["because"] == "the caller chose it"
    assert draw.nfe == 5


def test_settings_of_the_callers_sampler_do_not_overwrite_those_of_restore(likelihood):
    class Named:
        def __call__(self, velocity, likelihood, /, *, shape, generator, callback=None):
            return Draw(torch.zeros(shape), 1, {"algorithm": "mine", "samples": 99, "sampler": "Named", "depth": 3})

    settings = run(Prior(1.0), likelihood, sampler=Named(), samples=2, estimate="mean").settings
    assert settings == {
        "algorithm": "Named",
        "because": "the caller chose it",
        "estimate": "mean",
        "samples": 2,
        "sampler": "Named",
        "depth": 3,
    }


@pytest.mark.parametrize("sampler", [Flow(), AbInitio()])
def test_what_is_no_sampler_is_refused(sampler, likelihood):
    with pytest.raises(CapabilityError, match=f"{type(sampler).__name__} cannot be called as a Sampler: "):
        run(Prior(1.0), likelihood, sampler=sampler, estimate="mean")


def test_a_prior_without_normalisation_works_in_data_units(y, likelihood):
    narrow = GaussianPrior(0.09**2)  # centred on 0
    torch.testing.assert_close(run(narrow, likelihood, sampler=PlugAndPlay(60)).x, y / 2, rtol=2e-3, atol=0)


def test_what_cannot_be_is_refused(likelihood):
    with pytest.raises(CapabilityError, match="posterior mean only"):
        run(Prior(1.0), likelihood, estimate="samples", sampler=PlugAndPlay())
    with pytest.raises(SettingError, match="estimate must be"):
        run(Prior(1.0), likelihood, estimate="mode")
    with pytest.raises(SettingError, match=r"samples must be a whole number from 1, got 2\.5"):
        run(Prior(1.0), likelihood, samples=2.5)
    with pytest.raises(SettingError, match="samples must be a whole number from 1, got 0"):
        run(Prior(1.0), likelihood, samples=0)
    with pytest.raises(SettingError, match=r"shape must be \(\*batch, z, y, x\)"):
        restore(GaussianPrior(1.0), likelihood, shape=(5, 8), generator=torch.Generator())


@pytest.mark.slow
def test_of_runs_in_several_poses_the_best_is_taken_and_not_their_mean(y):
    class Offset:  # y or its negative; nearer to y
        def refine(self, x):
            return LogProb(y if (x * y).sum() > 0 else -0.9 * y)

    runs = run(GaussianPrior(1.0), Offset(), samples=8, estimate="samples").x
    best = run(GaussianPrior(1.0), Offset(), samples=8)
    agree = torch.stack([(one * y).mean() for one in runs]).sign()
    assert set(agree.tolist()) == {1.0, -1.0}  # their mean would be neither
    assert any(torch.equal(best.x, one) for one in runs)
    fits = torch.stack([Offset().refine(one).log_prob(one) for one in runs])
    assert torch.equal(best.x, runs[fits.argmax()])
    assert "the run that fits best is taken" in best.settings["because"]


def test_spectra_without_log_prob_will_do_for_a_prior_without_statistics(likelihood):
    class Spectra:
        def spectral_precision(self):
            return likelihood.spectral_precision()

        def spectral_data(self):
            return likelihood.spectral_data()

    asked = run(GaussianPrior(1.0), likelihood, sampler=Guided(4), samples=1)
    assert torch.equal(run(GaussianPrior(1.0), Spectra(), sampler=Guided(4), samples=1).x, asked.x)


def test_a_sampler_that_gives_other_volumes_is_named(likelihood):
    def odd(velocity, likelihood, /, *, shape, generator, callback=None):
        return Draw(torch.zeros(3), 1, {})

    with pytest.raises(GridMismatchError, match=r"function gave volumes of shape \(3,\)"):
        run(Prior(1.0), likelihood, sampler=odd, samples=1)


def test_a_point_group_is_no_process_group(likelihood, tmp_path):
    prior = type("Symmetric", (Prior,), {"group": "C4"})(1.0)
    plain = run(Prior(1.0), likelihood)
    assert torch.equal(run(prior, likelihood, checkpoint=Checkpoint(tmp_path / "run")).x, plain.x)
