"""With more steps the flow of a Gaussian posterior is the exact one, which takes x_1 to mean + spread · x_1."""

from itertools import pairwise

import attrs
import pytest
import torch

from cryofm_ops import FourierGaussian, irfft, radial, rfft
from cryofm_sampling import CapabilityError, Checkpoint, PlugAndPlay, PosteriorFlow, SettingError
from cryofm_sampling.testing import (
    GaussianPrior,
    check_batching,
    check_covariance,
    check_dtype,
    check_mean,
    check_modes,
    two_spectra,
)

BOX = (4, 3, 5)
PRIOR = GaussianPrior(torch.tensor([6.0, 2.0, 0.5, 0.1], dtype=torch.float64), BOX)


def data(precisions):
    y = torch.randn(BOX, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return FourierGaussian(radial(torch.tensor(precisions, dtype=torch.float64), BOX), rfft(y), BOX)


def with_gaps_and_noiseless():
    W = torch.tensor([torch.inf, 0.0, 2.0], dtype=torch.float64).repeat(4, 3, 1)
    return attrs.evolve(data([1.0, 1.0, 1.0]), precision=W)


def deviation(steps, likelihood):
    """From the exact flow, root mean square, over the posterior's own."""
    generator = torch.Generator().manual_seed(0)
    x = PosteriorFlow(steps)(PRIOR, likelihood, shape=BOX, generator=generator).x
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(0)))
    x_1 = torch.randn(BOX, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    posterior = likelihood.condition(torch.zeros(BOX, dtype=torch.float64), radial(PRIOR.signal_power, BOX))
    spread = irfft(posterior.variance.sqrt() * rfft(x_1), BOX)
    return float((x - posterior.mean - spread).square().mean().sqrt() / spread.square().mean().sqrt())


@pytest.mark.parametrize("likelihood", [data([20.0, 2.0, 0.5]), data([3.0, 3.0, 3.0]), with_gaps_and_noiseless()])
def test_its_error_falls_as_one_over_steps(likelihood):
    found = [deviation(steps, likelihood) for steps in (50, 100, 200, 400)]
    assert found[-1] < 0.03
    assert all(0.4 < b / a < 0.7 for a, b in pairwise(found)), found


def test_mean_and_covariance():
    sampler = PosteriorFlow(60)
    check_mean(sampler, runs=60, bias=0.1)
    check_covariance(sampler, runs=60, bias=0.1)


def test_what_is_drawn_together():
    check_batching(PosteriorFlow(4), tolerance=0.0)
    check_dtype(PosteriorFlow(4))


def test_two_modes():
    check_modes(PosteriorFlow(24), *two_spectra(), runs=100)


def test_a_killed_run_goes_on(tmp_path):
    run, likelihood = PosteriorFlow(4, PlugAndPlay(3)), data([20.0, 2.0, 0.5])
    whole = run(PRIOR, likelihood, shape=(2, *BOX), generator=torch.Generator().manual_seed(1))
    assert whole.nfe == 7
    for killed_at in (5, 11):  # in the passes, in the flow; of 14 evaluations and one to say which velocity field it is
        calls = 0

        def dying(x, t):
            nonlocal calls
            calls += 1
            if calls > killed_at:  # noqa: B023
                raise KeyboardInterrupt
            return PRIOR(x, t)

        dying.signal_power, dying.denoising_error = PRIOR.signal_power, PRIOR.denoising_error
        checkpoint = Checkpoint(tmp_path / "run", every_seconds=0)
        arguments = {"shape": (2, *BOX), "checkpoint": checkpoint}
        with pytest.raises(KeyboardInterrupt):
            run(dying, likelihood, generator=torch.Generator().manual_seed(1), **arguments)
        resumed = run(PRIOR, likelihood, generator=torch.Generator().manual_seed(1), **arguments)
        assert torch.equal(resumed.x, whole.x)


def test_what_is_missing_is_named():
    class OnlyLogProb:
        def log_prob(self, x):
            return x.sum((-3, -2, -1))

    run = {"shape": BOX, "generator": torch.Generator()}
    with pytest.raises(CapabilityError, match=r"PosteriorFlow needs a FourierDiagonal .* OnlyLogProb has no spectral_"):
        PosteriorFlow()(PRIOR, OnlyLogProb(), **run)
    with pytest.raises(CapabilityError, match=r"PosteriorFlow needs a Calibrated .* function has no signal_power"):
        PosteriorFlow()(lambda x, t: x, data([1.0, 1.0, 1.0]), **run)
    with pytest.raises(SettingError, match="steps"):
        PosteriorFlow(1)
