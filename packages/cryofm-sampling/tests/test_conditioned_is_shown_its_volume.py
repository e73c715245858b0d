"""A conditional prior with a volume is a velocity field: its guidance, its cost, its tiles, and what it reaches."""

from types import SimpleNamespace

import pytest
import torch

from cryofm_ops import Identity, WhiteNoise, gaussian_likelihood
from cryofm_sampling import (
    Calibrated,
    CapabilityError,
    ConditionalVelocityField,
    Conditioned,
    Flow,
    GridMismatchError,
    Guided,
    PlugAndPlay,
    Rescaled,
    SettingError,
    Tiled,
    VelocityField,
    restore,
)
from cryofm_sampling.testing import GaussianPrior

BOX, T = (6, 7, 5), torch.tensor(0.4)


class Shown:
    """White data of variance s²; beside a volume y = x_0 + noise of variance n², what is known of both."""

    s2, n2 = 2.0, 0.5

    def __init__(self):
        self.tags = []

    def given(self, x, t, volume, tag, /):
        self.tags.append(tag)
        t = t.reshape((*t.shape, 1, 1, 1))
        variance = self.s2 if volume is None else 1 / (1 / self.s2 + 1 / self.n2)
        mean = 0.0 if volume is None else variance / self.n2 * volume
        total = (1 - t) ** 2 * variance + t**2
        x_0 = mean + (1 - t) * variance / total * (x - (1 - t) * mean)
        return (x - x_0) / t


class Calibrated_(Shown):
    signal_power, denoising_error = torch.ones(4), torch.tensor([[0.1, 0.01], [1.0, 1.0]])
    weight = 0.5


def noise(*batch, seed=0):
    return torch.randn(*batch, *BOX, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("weight", [0.0, 0.7, 2.0])
def test_guidance_is_the_formula(weight):
    prior, x, y = Shown(), noise(2), noise(seed=1)
    conditioned = Conditioned(prior, y, tag=3, weight=weight)
    expected = (1 + weight) * prior.given(x, T, y, 3) - weight * prior.given(x, T, None, 3)
    prior.tags.clear()
    torch.testing.assert_close(conditioned(x, T), expected)
    assert prior.tags == [3] * conditioned.evaluations == [3] * (2 if weight else 1)
    assert isinstance(conditioned, VelocityField)


def test_it_has_what_the_prior_has():
    plain, full = Conditioned(Shown(), noise()), Conditioned(Calibrated_(), noise())
    assert (plain.weight, full.weight) == (0.0, 0.5)
    assert not isinstance(plain, Calibrated)
    assert isinstance(full, Calibrated)
    tiled = Tiled(Calibrated_(), 4, 2)
    assert isinstance(tiled, ConditionalVelocityField)
    assert not isinstance(Tiled(GaussianPrior(1.0), 4, 2), ConditionalVelocityField)
    assert Conditioned(tiled, noise()).weight == 0.5


@pytest.mark.parametrize("box", [(6, 7, 5), (3, 9, 12)])
def test_every_tile_is_shown_its_part(box):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, *box, generator=generator), torch.randn(box, generator=generator)
    whole, tiled = (Conditioned(prior, y, weight=0.5) for prior in (Shown(), Tiled(Shown(), 4, 2)))
    t = torch.tensor([0.3, 0.8])
    torch.testing.assert_close(tiled(x, t), whole(x, t), rtol=1e-5, atol=1e-5)
    x = x[:1].requires_grad_()
    of_tiles, of_whole = (torch.autograd.grad(v(x, T).square().sum(), x)[0] for v in (tiled, whole))
    torch.testing.assert_close(of_tiles, of_whole, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::cryofm_sampling.MisfitWarning")
def test_every_sampler_counts_two_evaluations():
    y = noise(seed=1)
    one, two = (Conditioned(Calibrated_(), y, weight=w) for w in (0.0, 1.0))
    likelihood = gaussian_likelihood(Identity(), WhiteNoise(1.0), y)
    for sampler in (PlugAndPlay(3), Guided(3), Guided(3, "paper")):
        nfe = [
            restore(
                v, likelihood, shape=BOX, generator=torch.Generator().manual_seed(0), sampler=sampler, samples=1
            ).nfe
            for v in (one, two)
        ]
        assert nfe[1] == 2 * nfe[0] > 0
    drawn = [Flow(3)(v, shape=BOX, generator=torch.Generator().manual_seed(0)).nfe for v in (one, two)]
    assert drawn == [5, 10]


@pytest.mark.parametrize("integrator", ["euler", "midpoint"])
def test_samples_are_of_the_posterior(integrator):
    """Without guidance: mean and variance of x_0 given y, in closed form."""
    y = noise(seed=1)
    flow = Flow(100, integrator, "even")
    x = flow(Conditioned(Shown(), y), shape=(300, *BOX), generator=torch.Generator().manual_seed(2)).x
    variance = 1 / (1 / Shown.s2 + 1 / Shown.n2)
    assert (x.mean(0) - variance / Shown.n2 * y).abs().mean() < 0.06
    assert float((x - variance / Shown.n2 * y).var()) == pytest.approx(variance, rel=0.03)


@pytest.mark.slow
def test_with_a_likelihood_it_is_told_of_both():
    """The volume is one measurement, the data another: their posterior, exactly where the prior is Gaussian."""
    y, z = noise(seed=1), noise(seed=2)
    likelihood = gaussian_likelihood(Identity(), WhiteNoise(0.8), z)
    prior = Conditioned(Shown(), y)
    known = 1 / (1 / Shown.s2 + 1 / Shown.n2)
    exact = (y / Shown.n2 + z / 0.8**2) / (1 / known + 1 / 0.8**2)
    total = 0.0
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        total = total + Guided(60, "gaussian")(prior, likelihood, shape=BOX, generator=generator).x / 30
    assert (total - exact).norm() < 0.25 * exact.norm()


def test_plug_and_play_turns_the_volume_too():
    """It shows its denoiser x in random orientations: beside a volume that did not turn it would reach another mean."""
    y, z = noise(seed=1), noise(seed=2)
    likelihood = gaussian_likelihood(Identity(), WhiteNoise(0.8), z)
    known = 1 / (1 / Shown.s2 + 1 / Shown.n2)
    exact = (y / Shown.n2 + z / 0.8**2) / (1 / known + 1 / 0.8**2)
    units = Rescaled(Conditioned(Calibrated_(), y, weight=0.0), SimpleNamespace(mean=0.0, std=1.0))
    for velocity in (units, units.velocity):
        generator = torch.Generator().manual_seed(0)
        x = restore(velocity, likelihood, shape=BOX, generator=generator, sampler=PlugAndPlay(60)).x
        assert (x - exact).norm() < 0.1 * exact.norm()


def test_what_does_not_fit_is_refused():
    with pytest.raises(CapabilityError, match="needs a ConditionalVelocityField; GaussianPrior has no given"):
        Conditioned(GaussianPrior(1.0), noise())
    with pytest.raises(SettingError, match="weight must be a finite number from 0"):
        Conditioned(Shown(), noise(), weight=-0.5)
    with pytest.raises(SettingError, match=r"volume must be \(z, y, x\) and finite"):
        Conditioned(Shown(), noise() / 0)
    with pytest.raises(GridMismatchError, match=r"volume shown is \(6, 7, 5\), x \(2, 4, 7, 5\)"):
        Conditioned(Shown(), noise())(torch.zeros(2, 4, 7, 5), T)
