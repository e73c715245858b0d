"""`check_sampler` and `check_prior`: what is right passes, and every mistake fails the check that is meant for it."""

import re

import attrs
import pytest
import torch

from cryofm_ops import fourier_filter, radial
from cryofm_sampling import Renoising, RunCallback, SettingError, restore, testing
from cryofm_sampling.testing import GaussianPrior, PriorError, SamplerError, check_prior, check_sampler

BOX = (6, 6, 6)


class Flow:
    """Right: the flow of a Gaussian prior, written out."""

    def power(self, x):
        return radial(torch.tensor([4.0, 1.0, 0.2]), tuple(x.shape[-3:])).to(x)

    def __call__(self, x, t, /):
        t = t.to(x).reshape((*t.shape, 1, 1, 1))
        power = self.power(x)
        return fourier_filter(x, (t - (1 - t) * power) / ((1 - t) ** 2 * power + t**2))


class Backwards(Flow):
    def __call__(self, x, t, /):
        return -super().__call__(x, t)


class NoiseAtZero(Flow):
    """The other convention of time."""

    def __call__(self, x, t, /):
        return super().__call__(x, 1 - t)


class PredictsNoise(Flow):
    """x_1, as diffusion models do, for x_1 − x_0."""

    def __call__(self, x, t, /):
        v = super().__call__(x, t)
        return x + (1 - t.to(x).reshape((*t.shape, 1, 1, 1))) * v


class Steps1000(Flow):
    """Takes the time that it was trained with."""

    def __call__(self, x, t, /):
        return super().__call__(x, t / 1000)


class OneTimeForAll(Flow):
    def __call__(self, x, t, /):
        return super().__call__(x, t.reshape(-1)[0])


class BatchNorm(Flow):
    def __call__(self, x, t, /):
        return super().__call__(x / x.std().clamp(min=1), t)


class Dropout(Flow):
    def __call__(self, x, t, /):
        return super().__call__(torch.nn.functional.dropout(x, 0.1), t)


class WithoutGradient(Flow):
    def __call__(self, x, t, /):
        return super().__call__(x.detach(), t)


class InPlace(Flow):
    def __call__(self, x, t, /):
        v = super().__call__(x, t)
        with torch.no_grad():
            x.mul_(0.9)
        return v


class Channels(Flow):
    """Leaves the network's axis in."""

    def __call__(self, x, t, /):
        return super().__call__(x, t)[..., None, :, :, :]


class SingularAtTheEnd(Flow):
    def __call__(self, x, t, /):
        v = super().__call__(x, t)
        return v / (t.to(x) != 0).reshape((*t.shape, 1, 1, 1))


class Double(Flow):
    def __call__(self, x, t, /):
        return super().__call__(x, t).double()


class Buffer(Flow):
    kept = None

    def __call__(self, x, t, /):
        v = super().__call__(x, t)
        if self.kept is None or self.kept.shape != v.shape or v.requires_grad:
            self.kept = v
            return v
        return self.kept.copy_(v)


class WrongPower(Flow):
    """Statistics in data units."""

    signal_power = torch.tensor([4e4, 1e4, 2e3])
    denoising_error = torch.tensor([[0.1, 0.1], [0.9, 0.7]])


class TimesFall(Flow):
    signal_power = torch.tensor([4.0, 1.0, 0.2])
    denoising_error = torch.tensor([[0.9, 0.7], [0.1, 0.1]])


PRIORS = [
    (Backwards, "noise_says_nothing", "is v = x_1 − x_0, and t = 1 noise"),
    (NoiseAtZero, "noise_says_nothing", "at t = 1 the estimate"),
    (PredictsNoise, "denoises", "that of their mean, or of the noise itself"),
    (Steps1000, "noise_says_nothing", "at t = 1 the estimate"),
    (OneTimeForAll, "times_of_a_batch", "not each volume's own"),
    (BatchNorm, "each_alone", "the volumes of a batch are mixed"),
    (Dropout, "deterministic", "another v at the same x and t"),
    (WithoutGradient, "carries_gradients", "no gradient passes"),
    (InPlace, "leaves_its_input", "is written into"),
    (Channels, "shape_and_dtype", "it makes v"),
    (SingularAtTheEnd, "shape_and_dtype", "not finite at t = 0"),
    (Double, "shape_and_dtype", "makes v in torch.float64"),
    (Buffer, "leaves_its_input", "the next call writes into"),
    (WrongPower, "statistics", "is it in model units"),
    (TimesFall, "statistics", "do not rise"),
]


@pytest.fixture(scope="module")
def examples():
    white = torch.randn(6, *BOX, generator=torch.Generator().manual_seed(3))
    return fourier_filter(white, Flow().power(white).sqrt())


def test_a_right_prior_passes(examples):
    assert len(check_prior(Flow(), box=BOX, examples=examples)) == 9
    assert len(check_prior(GaussianPrior(torch.tensor([4.0, 1.0, 0.2]), BOX), box=BOX, examples=examples)) == 9


@pytest.mark.parametrize(("kind", "name", "words"), PRIORS, ids=lambda v: getattr(v, "__name__", ""))
def test_priors(kind, name, words, examples):
    with pytest.raises(PriorError, match=rf"{kind.__name__} fails {name}: [^\n]*{re.escape(words)}"):
        check_prior(kind(), box=BOX, examples=examples)


@attrs.frozen
class Altered:
    """Right, but for what a mutant does."""

    def __call__(self, velocity, likelihood, /, *, shape, generator, callback=None):
        return self.draw(velocity, likelihood, shape=shape, generator=generator, callback=callback)

    def draw(self, velocity, likelihood, **how):
        return Renoising((0.5,))(velocity, likelihood, **how)

    def with_x(self, draw, x):
        return attrs.evolve(draw, x=x)


class HalfTheSpread(Altered):
    def draw(self, velocity, likelihood, **how):
        draw = super().draw(velocity, likelihood, **how)
        x = draw.x
        mean = x.mean(0, keepdim=True) if x.ndim > 3 else x
        return self.with_x(draw, mean + 0.5 * (x - mean))


class MirrorImage(Altered):
    def draw(self, velocity, likelihood, **how):
        draw = super().draw(velocity, likelihood, **how)
        return self.with_x(draw, draw.x.flip(-1))


class OffsetOfAVoxel(Altered):
    def draw(self, velocity, likelihood, **how):
        draw = super().draw(velocity, likelihood, **how)
        return self.with_x(draw, draw.x.roll(1, -1))


class SameNoiseForAll(Altered):
    def draw(self, velocity, likelihood, *, shape, **how):
        draw = super().draw(velocity, likelihood, shape=shape[-3:], **how)
        return self.with_x(draw, draw.x.expand(shape).clone())


class OneRandn(Altered):
    """Noise of a batch drawn at once: the first volume depends on how many there are."""

    def draw(self, velocity, likelihood, *, shape, generator, callback):
        draw = super().draw(velocity, likelihood, shape=shape, generator=generator, callback=callback)
        extra = torch.randn(shape[::-1], generator=generator, dtype=draw.x.dtype).permute(*range(len(shape))[::-1])
        return self.with_x(draw, draw.x + 1e-3 * extra)


class GlobalSeed(Altered):
    def draw(self, velocity, likelihood, **how):
        torch.rand(())
        return super().draw(velocity, likelihood, **how)


class SinglePrecision(Altered):
    def draw(self, velocity, likelihood, **how):
        draw = super().draw(velocity, likelihood, **how)
        return self.with_x(draw, draw.x.float())


class LosesABatchAxis(Altered):
    def draw(self, velocity, likelihood, **how):
        draw = super().draw(velocity, likelihood, **how)
        return self.with_x(draw, draw.x.reshape(-1, *draw.x.shape[-3:]))


class CountsNothing(Altered):
    def draw(self, velocity, likelihood, **how):
        return attrs.evolve(super().draw(velocity, likelihood, **how), nfe=0)


class CountsABatch(Altered):
    def draw(self, velocity, likelihood, **how):
        draw = super().draw(velocity, likelihood, **how)
        return attrs.evolve(draw, nfe=1000 * draw.nfe)


class Mute(Altered):
    def draw(self, velocity, likelihood, **how):
        return super().draw(velocity, likelihood, **how | {"callback": None})


class CountsFromZero(Altered):
    def draw(self, velocity, likelihood, *, callback, **how):
        told = callback and (lambda step, total, x: callback(step - 1, total, x))
        return super().draw(velocity, likelihood, callback=told, **how)


class WritesIntoTheData(Altered):
    def draw(self, velocity, likelihood, **how):
        draw = super().draw(velocity, likelihood, **how)
        likelihood.spectral_data().mul_(1.5)
        return draw


class PlainTensor(Altered):
    def draw(self, velocity, likelihood, **how):
        return super().draw(velocity, likelihood, **how).x


SAMPLERS = [
    (HalfTheSpread, "check_covariance", "of the exact one"),
    (MirrorImage, "check_mean", "the mean is off"),
    (OffsetOfAVoxel, "check_mean", "the mean is off"),
    (SameNoiseForAll, "check_batching", "drawn together differ"),
    (OneRandn, "check_batching", "drawn together differ"),
    (GlobalSeed, "check_batching", "global random state"),
    (SinglePrecision, "check_dtype", "makes volumes in torch.float32"),
    (LosesABatchAxis, "check_batching", "asked for (2, 2"),
    (CountsNothing, "check_run", "nfe is 0"),
    (CountsABatch, "check_run", "calls of the velocity field"),
    (Mute, "check_run", "told nothing"),
    (CountsFromZero, "check_run", "told of steps"),
    (WritesIntoTheData, "check_run", "writes into the data"),
    (PlainTensor, "check_run", "no Draw"),
]


@pytest.mark.parametrize(("kind", "name", "words"), SAMPLERS, ids=lambda v: getattr(v, "__name__", ""))
def test_samplers(kind, name, words):
    if name in ("check_mean", "check_covariance"):
        with pytest.raises(SamplerError, match=words):
            getattr(testing, name)(kind(), runs=100)
        return
    with pytest.raises(SamplerError, match=rf"fails {name}: [^\n]*{re.escape(words)}"):
        check_sampler(kind(), samples=False)


def test_there_are_enough_mutants():
    assert len(PRIORS) >= 10
    assert len(SAMPLERS) >= 10


@pytest.mark.slow
def test_a_right_sampler_passes_and_expected_failures_are_told():
    passed = check_sampler(Mute(), samples=False, expected_failures={"check_run": "it has no callback"})
    assert passed == ("check_dtype", "check_batching", "check_mean")
    with pytest.raises(SamplerError, match=r"1 of 6 checks failed\nAltered passes check_run, expected to fail"):
        check_sampler(Altered(), expected_failures={"check_run": "?"})
    with pytest.raises(SettingError, match="expected_failures names no check: chek_run; there are check_run"):
        check_sampler(Altered(), samples=False, expected_failures={"chek_run": "a typing error"})


def test_a_callback_knows_its_run():
    from cryofm_ops import Identity, WhiteNoise, gaussian_likelihood

    heard = []

    class Listener:
        def __call__(self, step, total, x_0, /):
            heard.append((None, step))

        def of_run(self, run, runs, /):
            return lambda step, total, x_0: heard.append((f"{run}/{runs}", step))

    assert isinstance(Listener(), RunCallback)
    likelihood = gaussian_likelihood(Identity(), WhiteNoise(1.0), torch.ones(BOX))
    how = {"shape": BOX, "sampler": Renoising((0.6, 0.3)), "callback": Listener()}
    restore(GaussianPrior(1.0), likelihood, generator=torch.Generator(), estimate="samples", samples=2, **how)
    assert [run for run, _ in heard] == sorted(["1/2"] * (len(heard) // 2) + ["2/2"] * (len(heard) // 2))
    del heard[:]
    restore(GaussianPrior(1.0), likelihood, generator=torch.Generator(), estimate="samples", samples=1, **how)
    assert {run for run, _ in heard} == {None}
