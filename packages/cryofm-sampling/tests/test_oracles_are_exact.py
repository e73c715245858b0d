"""The mixture priors against brute force, and the checks against samplers that are known to be right and wrong."""

import attrs
import pytest
import torch

from cryofm_ops import FourierGaussian, half_shape, rfft
from cryofm_sampling import (
    Draw,
    GridMismatchError,
    Guided,
    Inpainting,
    PlugAndPlay,
    PosteriorFlow,
    Renoising,
    SettingError,
    calibrate,
)
from cryofm_sampling.testing import (
    GaussianPrior,
    MixturePrior,
    SamplerError,
    check_batching,
    check_covariance,
    check_coverage,
    check_dtype,
    check_mean,
    check_modes,
    two_spectra,
    two_templates,
)

pytestmark = pytest.mark.slow

BOX = (2, 3, 4)


@pytest.fixture
def mixture(kit):
    """Three components, and their dense covariances."""
    generator = torch.Generator().manual_seed(0)
    tables = [[3.0, 1.0, 0.2], [0.5, 0.5, 0.5], [0.1, 1.0, 2.0]]
    powers = [kit.on_full_grid(table, BOX) for table in tables]
    means = torch.randn(3, *BOX, generator=generator)
    prior = MixturePrior(torch.tensor([2.0, 1.0, 1.0]), means, torch.stack([p[..., :3] for p in powers]))
    return prior, [kit.covariance(p, BOX) for p in powers]


def log_density(x, prior, covariances):
    """Of x `(n, voxels)`, by dense matrices."""
    parts = zip(prior.weights, prior.means.flatten(1), covariances, strict=True)
    normals = torch.distributions.MultivariateNormal
    return torch.stack([w.log() + normals(m, C).log_prob(x) for w, m, C in parts]).logsumexp(0)


@pytest.mark.parametrize("t", [0.1, 0.6, 1.0])
def test_velocity_is_that_of_the_score(mixture, t):
    """v = (t ∇log p_t(x) + x_t) / (t − 1) ... for t < 1: Tweedie's E[x_0 | x_t] = (x_t + t² ∇log p_t) / (1 − t)."""
    prior, covariances = mixture
    x = torch.randn(4, *BOX, generator=torch.Generator().manual_seed(1))
    v = prior(x, torch.tensor(t))
    if t == 1:
        expected = x - (prior.weights[:, None, None, None] * prior.means).sum(0)
    else:
        noised = MixturePrior(prior.weights, (1 - t) * prior.means, prior.power)
        smeared = [(1 - t) ** 2 * C + t**2 * torch.eye(24) for C in covariances]
        flat = x.flatten(1).requires_grad_()
        (score,) = torch.autograd.grad(log_density(flat, noised, smeared).sum(), flat)
        x_0 = (x + t**2 * score.reshape(x.shape)) / (1 - t)
        expected = (x - x_0) / t
    torch.testing.assert_close(v, expected)
    torch.testing.assert_close(prior(x, torch.full((4,), t)), v)


def test_posterior_is_bayes(mixture, kit):
    """log p(x | y) − log p(x) − log p(y | x) is the same for all x."""
    prior, covariances = mixture
    noise = kit.on_full_grid([0.3, 0.6, 2.0], BOX)
    y = torch.randn(BOX, generator=torch.Generator().manual_seed(2))
    posterior = prior.given(kit.Spectral(y, 1 / noise[..., :3]))
    S = torch.linalg.inv(kit.covariance(noise, BOX))
    sharpened = [torch.linalg.inv(torch.linalg.inv(C) + S) for C in covariances]
    x = torch.randn(6, 24, generator=torch.Generator().manual_seed(3))
    r = x - y.flatten()
    evidence = log_density(x, prior, covariances) - ((r @ S) * r).sum(1) / 2 - log_density(x, posterior, sharpened)
    torch.testing.assert_close(evidence, evidence[:1].expand(6))


def test_posterior_of_gaps_and_of_noiseless_data(mixture, kit):
    prior, _ = mixture
    W = torch.zeros(2, 3, 3)
    unchanged = prior.given(kit.Spectral(torch.ones(BOX), W))
    for name in ("weights", "means", "power"):
        torch.testing.assert_close(getattr(unchanged, name), getattr(prior, name))
    y = torch.randn(BOX, generator=torch.Generator().manual_seed(2))
    certain = prior.given(kit.Spectral(y, torch.full_like(W, torch.inf)))
    torch.testing.assert_close(certain.means, y.expand(3, *BOX))
    assert not certain.power.any()
    torch.testing.assert_close(certain.weights, prior.membership(y))


def test_a_posterior_of_noiseless_data_is_a_prior(mixture, kit):
    """What is certain tells its components no longer apart, and the same data again change nothing of it."""
    prior, _ = mixture
    y = torch.randn(BOX, generator=torch.Generator().manual_seed(2))
    W = torch.full((2, 3, 3), 0.1)
    W[1] = torch.inf
    posterior = prior.given(kit.Spectral(y, W))
    x = posterior.sample(2000, generator=torch.Generator().manual_seed(3))
    found = posterior.membership(x)
    assert (found.mean(0) - posterior.weights).abs().max() < 5 * 0.5 / 2000**0.5
    again = posterior.given(kit.Spectral(y, torch.where(W.isfinite(), 0, W)))
    for name in ("weights", "means", "power"):
        torch.testing.assert_close(getattr(again, name), getattr(posterior, name))


def test_the_exact_sampler_keeps_modes_beside_noiseless_data():
    prior, likelihood = two_templates()
    W = likelihood.precision.clone()
    W[1] = W[3] = torch.inf
    check_modes(exact, prior, attrs.evolve(likelihood, precision=W))


def test_samples_are_of_the_mixture(mixture):
    prior, covariances = mixture
    x = prior.sample(4000, generator=torch.Generator().manual_seed(4)).flatten(1)
    mean = (prior.weights[:, None] * prior.means.flatten(1)).sum(0)
    second = sum(
        w * (C + torch.outer(m, m)) for w, m, C in zip(prior.weights, prior.means.flatten(1), covariances, strict=True)
    )
    assert (x.mean(0) - mean).abs().max() < 5 * (second.diag().max() / 4000) ** 0.5
    assert (x.T @ x / 4000 - second).abs().max() < 5 * 2 * second.diag().max() / 4000**0.5
    assert float(prior.signal_power[0]) == pytest.approx(
        float((prior.weights * (prior.means.sum((1, 2, 3)) ** 2 / 24 + prior.power[:, 0, 0, 0])).sum())
    )


def test_mixtures_are_checked():
    with pytest.raises(SettingError, match="positive"):
        MixturePrior(torch.tensor([1.0, 0.0]), torch.zeros(2, *BOX), torch.ones(2, 2, 3, 3))
    with pytest.raises(GridMismatchError, match=r"got \(2, 2, 3, 4\) and \(2, 2, 3, 4\)"):
        MixturePrior(torch.tensor([1.0, 1.0]), torch.zeros(2, *BOX), torch.ones(2, *BOX))


class Altered:
    """An exact sampler of Gaussian posteriors, spoiled."""

    def __init__(self, spoil):
        self.spoil = spoil

    def __call__(self, velocity, likelihood, /, *, shape, generator, callback=None):
        return Draw(self.spoil(Renoising((0.5,))(velocity, likelihood, shape=shape, generator=generator).x), 1, {})


def one_coefficient_narrow(x):
    spectrum = torch.fft.rfftn(x, dim=(-3, -2, -1))
    mean = spectrum.mean(0)
    spectrum[:, 0, 0, 2] = mean[0, 0, 2] + 0.5 * (spectrum[:, 0, 0, 2] - mean[0, 0, 2])
    return torch.fft.irfftn(spectrum, s=x.shape[1:], dim=(-3, -2, -1))


def spread_by(factor):
    """What makes the 8 samples of each of the truths of `check_coverage` differ more, or less."""

    def spoil(x):
        samples = x.unflatten(0, (-1, 8))
        mean = samples.mean(1, keepdim=True)
        return (mean + factor * (samples - mean)).flatten(0, 1)

    return spoil


@pytest.mark.parametrize(
    ("check", "spoil", "message"),
    [
        (check_mean, lambda x: x + 0.5, "the mean is off"),
        (check_covariance, lambda x: 0.8 * x, "the variance is 0.6"),
        (check_covariance, one_coefficient_narrow, "a coefficient has 0.2"),
        (check_covariance, lambda x: x + x.roll(1, -1) - x.roll(1, -1).mean(0), "of the exact one"),
        (check_coverage, spread_by(0.85), r"of 50 % hold the truth in 4\d.\d % of the voxels"),
        (check_coverage, spread_by(1.15), r"of 50 % hold the truth in 5\d.\d % of the voxels"),
        (check_coverage, lambda x: x + 0.5, "of 50 % hold the truth in"),
        (check_batching, lambda x: x + x.reshape(-1, *x.shape[-3:]).mean(0), "drawn together differ"),
        (check_batching, lambda x: x + torch.rand(()), "drawn together differ|same seed|global"),
        (check_dtype, lambda x: x.double(), "of data in torch.float32 it makes volumes in torch.float64"),
    ],
)
def test_checks_catch(check, spoil, message):
    runs = {"runs": 200} if check in (check_mean, check_covariance) else {}
    check(Altered(lambda x: x), **runs)
    with pytest.raises(SamplerError, match=message):
        check(Altered(spoil), **runs)


@pytest.mark.parametrize("toy", [two_templates, two_spectra])
def test_weights_of_modes(toy, monkeypatch):
    monkeypatch.setattr("cryofm_sampling.testing.calibrate", once(calibrate))
    prior, likelihood = toy()
    check_modes(Guided(40), prior, likelihood)
    check_modes(PosteriorFlow(), prior, likelihood, runs=200)
    with pytest.raises(SamplerError, match=r"draws fall into the modes as \[0.\d+, 0.\d+\], not as"):
        check_modes(first_mode_too_often, prior, likelihood)
    with pytest.raises(SamplerError, match="draws fall into the modes as"):
        check_modes(the_prior_s_modes, prior, likelihood)


def once(calibrate):
    """The statistics of a prior's examples, which are the same every time, measured the first time."""
    known = {}

    def measured(prior, examples, *, generator):
        key = (prior, examples.sum().item())
        if key not in known:
            known[key] = (calibrate(prior, examples, generator=generator), generator.get_state())
        generator.set_state(known[key][1])
        return known[key][0]

    return measured


def exact(velocity, likelihood, /, *, shape, generator, callback=None):
    return Draw(velocity.velocity.given(likelihood).sample(shape[0], generator=generator), 0, {})


def first_mode_too_often(velocity, likelihood, /, *, shape, generator, callback=None):
    """The posterior, with most of the second mode in the first."""
    posterior = velocity.velocity.given(likelihood)
    weights = posterior.weights - torch.tensor([-0.9, 0.9]) * posterior.weights[1]
    spoiled = MixturePrior(weights, posterior.means, posterior.power)
    return Draw(spoiled.sample(shape[0], generator=generator), 0, {})


def the_prior_s_modes(velocity, likelihood, /, *, shape, generator, callback=None):
    """The posterior, but for what the data say of the modes."""
    posterior = velocity.velocity.given(likelihood)
    spoiled = MixturePrior(velocity.velocity.weights, posterior.means, posterior.power)
    return Draw(spoiled.sample(shape[0], generator=generator), 0, {})


def test_renoising_finds_both_modes_but_not_their_weights():
    prior, likelihood = two_spectra()
    with pytest.raises(SamplerError, match=r"as \[0.[78]\d*, 0.[123]\d*\], not as \[0.29"):
        check_modes(Renoising(), prior, likelihood, runs=200)


@pytest.mark.parametrize("sampler", [Guided(60), PlugAndPlay(100)])
def test_samplers_keep_what_they_claim(sampler):
    check_mean(sampler, runs=100)
    if isinstance(sampler, Guided):
        check_covariance(sampler, bias=0.06)


@pytest.mark.parametrize(("sampler", "runs"), [(Guided(), 100), (Renoising(), 100), (PosteriorFlow(), 40)])
def test_intervals_hold_the_truth(sampler, runs):
    check_coverage(sampler, runs=runs)


@pytest.mark.parametrize("sampler", [Guided(), Renoising(), PosteriorFlow(48), PlugAndPlay(20)])
def test_white_noise(sampler):
    """A white prior of unit power and white noise of a third of it: the posterior is N(3/4 y, 1/4) in every voxel."""
    y = 2 * torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
    W = torch.full(half_shape(y.shape), 3.0)
    likelihood, run = FourierGaussian(W, rfft(y), y.shape), {"generator": torch.Generator().manual_seed(1)}
    x = sampler(GaussianPrior(1.0), likelihood, shape=(200, *y.shape), **run).x
    assert float((x.mean(0) - 0.75 * y).abs().max()) < 5 * (0.25 / 200) ** 0.5
    if not isinstance(sampler, PlugAndPlay):
        assert float(x.var(0).mean()) == pytest.approx(0.25, rel=0.04)


@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [
        (Guided(6), 1e-10),
        (Guided(6, "paper", 0.01), 1e-10),  # longer pushes overshoot, and amplify rounding
        (Inpainting(5), 1e-12),
        # Those that go volume by volume: nothing may differ.
        (PlugAndPlay(), 0.0),
        (PosteriorFlow(3), 0.0),
        (Renoising((0.6, 0.3)), 0.0),
        (Renoising((0.6, 0.3), chains=2), 0.0),
    ],
)
def test_batches_and_dtypes(sampler, tolerance):
    check_dtype(sampler)
    check_batching(sampler, tolerance=tolerance)
