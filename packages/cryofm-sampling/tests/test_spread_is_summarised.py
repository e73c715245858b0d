"""Mean, spread and χ² of exact samples are those of the posterior."""

import pytest
import torch

from cryofm_ops import (
    FourierGaussian,
    Identity,
    MissingWedge,
    WhiteNoise,
    friedel_weights,
    gaussian_likelihood,
    irfft,
    radial,
    radial_mean,
    rfft,
    shell_sizes,
)
from cryofm_sampling import CapabilityError, GridMismatchError, Renoising, SettingError, chi_squared, restore, summarise
from cryofm_sampling.testing import GaussianPrior

BOX = (10, 9, 12)
POWER = torch.tensor([6.0, 2.0, 0.5, 0.1], dtype=torch.float64)


def observed(seed: int, W: torch.Tensor):
    """A draw of the prior, and noisy data of it."""
    generator = torch.Generator().manual_seed(seed)
    white = rfft(torch.randn(2, *BOX, generator=generator))
    truth = radial(POWER, BOX).sqrt() * white[0]
    data = torch.where(W > 0, truth + white[1] / torch.where(W > 0, W, 1).sqrt(), 0)
    return irfft(truth, BOX), FourierGaussian(W, data, BOX)


@pytest.fixture
def W():
    precision = radial(torch.tensor([20.0, 2.0, 0.5]), BOX)
    precision[[3, 7]] = 0
    return precision


@pytest.mark.slow
def test_samples_have_the_posterior_mean_and_spread(W):
    _, likelihood = observed(0, W)
    prior = GaussianPrior(POWER, BOX)
    generator = torch.Generator().manual_seed(1)
    draw = restore(
        prior, likelihood, shape=BOX, generator=generator, estimate="samples", samples=400, sampler=Renoising((0.5,))
    )
    summary = summarise(draw.x)
    posterior = likelihood.condition(torch.zeros(BOX), radial(POWER, BOX))
    exact = (posterior.variance * friedel_weights(BOX)).sum() / summary.mean.numel()
    torch.testing.assert_close(summary.std.square().mean(), exact, rtol=0.02, atol=0)
    assert ((summary.mean - posterior.mean).abs() < 5 * summary.std / 20).all()


def test_chi_squared_is_one_at_the_truth_and_at_samples_and_less_at_the_mean(W):
    truths, samples, means = [], [], []
    generator = torch.Generator().manual_seed(2)
    for seed in range(40):
        truth, likelihood = observed(seed, W)
        posterior = likelihood.condition(torch.zeros(BOX), radial(POWER, BOX))
        truths.append(chi_squared(truth, likelihood))
        samples.append(chi_squared(posterior.sample(generator), likelihood))
        means.append(chi_squared(posterior.mean, likelihood))
    scatter = (2 / (40 * shell_sizes(BOX))) ** 0.5
    share = W / (W + 1 / radial(POWER, BOX))  # of the data in their mean: the residual's variance is 1 − share
    at_mean = 1 - radial_mean(share, BOX) / radial_mean((W > 0).to(W), BOX)
    for found, expected in ((truths, 1.0), (samples, 1.0), (means, at_mean)):
        assert ((torch.stack(found).mean(0) - expected).abs() < 5 * scatter).all()


def test_chi_squared_by_brute_force_where_part_was_measured(W):
    truth, likelihood = observed(3, W)
    x = torch.stack([truth, torch.zeros(BOX)])
    full = torch.fft.fftn(x, dim=(1, 2, 3), norm="ortho")
    data = torch.fft.fftn(irfft(likelihood.data, BOX), norm="ortho")
    k = torch.meshgrid(*(torch.fft.fftfreq(n) for n in BOX), indexing="ij")
    shell = (sum(axis**2 for axis in k).sqrt() * 12).round()
    table = torch.tensor([20.0, 2.0, 0.5])
    position = (sum(axis**2 for axis in k).sqrt() * 4).clamp(max=2)
    below = position.floor().clamp(max=1).long()
    precision = torch.lerp(table[below], table[below + 1], position - below)
    precision[[3, 7]] = 0
    terms = precision * (full - data).abs() ** 2
    expected = [[float(t[(shell == s) & (precision > 0)].mean()) for s in range(7)] for t in terms]
    torch.testing.assert_close(chi_squared(x, likelihood), torch.tensor(expected))


def test_a_shell_without_noisy_data_has_none():
    wedge = MissingWedge(-60, 60)
    likelihood = gaussian_likelihood(wedge, WhiteNoise(0.0), wedge(torch.ones(BOX)))
    assert chi_squared(torch.ones(BOX), likelihood).isnan().all()


def test_bad_input_is_refused():
    with pytest.raises(SettingError, match=r"K at least 2, got shape \(1, 4, 4, 4\)"):
        summarise(torch.zeros(1, 4, 4, 4))
    likelihood = gaussian_likelihood(Identity(), WhiteNoise(1.0), torch.zeros(4, 4, 4))
    with pytest.raises(GridMismatchError, match="need"):
        chi_squared(torch.zeros(8, 8, 8), likelihood)

    class LogProb:
        def log_prob(self, x):
            return x.sum()

    with pytest.raises(CapabilityError, match="chi_squared needs a FourierDiagonal likelihood; LogProb has no"):
        chi_squared(torch.zeros(4, 4, 4), LogProb())
