"""`PlugAndPlayLoss` against flow matching, and against its own passes with the network that it trains."""

import pytest
import torch

from cryofm_ops import irfft, radial, rfft
from cryofm_sampling import PlugAndPlayLoss
from cryofm_sampling.priors import plug_and_play_loss
from cryofm_sampling.samplers._denoising_error import DenoisingError
from cryofm_sampling.testing import GaussianPrior

BOX = (16, 16, 16)


class Linear(torch.nn.Module):
    """A network with something to train: the velocity of a white Gaussian prior of a power to be learnt."""

    def __init__(self, power):
        super().__init__()
        self.power = torch.nn.Parameter(torch.tensor(power))

    def forward(self, x, t):
        s = t.reshape(-1, 1, 1, 1)
        return (s - (1 - s) * self.power) / ((1 - s) ** 2 * self.power + s**2) * x


def batch(n, seed=0):
    return torch.randn(2, n, *BOX, generator=torch.Generator().manual_seed(seed))


def flow_matching(network, x_0, t, x_1):
    s = t[:, None, None, None]
    return (network((1 - s) * x_0 + s * x_1, t) - (x_1 - x_0)).square().mean((-3, -2, -1))


def test_without_observed_crops_it_is_flow_matching():
    x_0, x_1 = batch(4)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])
    network = Linear(0.7)
    torch.testing.assert_close(
        PlugAndPlayLoss(GaussianPrior(1.0), 0.0)(network, x_0, t, x_1), flow_matching(network, x_0, t, x_1)
    )


def test_white_noise_at_its_own_level_is_flow_matching(monkeypatch):
    N = 0.5
    monkeypatch.setattr(
        plug_and_play_loss,
        "_observed",
        lambda x_0, noise, box, stream: (torch.full((16, 16, 9), 1 / N), rfft(x_0) + N**0.5 * rfft(noise)),
    )
    monkeypatch.setattr(plug_and_play_loss, "_JITTER", (0.0, 0.0))
    x_0, x_1 = batch(3)
    level = N**0.5 / (1 + N**0.5)
    expected = flow_matching(Linear(0.7), x_0, torch.full((3,), level), x_1)
    weight = 1 / x_1.square().mean((-3, -2, -1)).clamp(min=1)
    found = PlugAndPlayLoss(GaussianPrior(1.0), 1.0)(Linear(0.7), x_0, torch.rand(3), x_1)
    torch.testing.assert_close(found, weight * expected, rtol=1e-5, atol=1e-6)


def test_crops_do_not_depend_on_their_batch():
    x_0, x_1 = batch(4)
    t = torch.full((4,), 0.5)
    loss = PlugAndPlayLoss(GaussianPrior(1.0), 0.7)
    together = loss(Linear(0.7), x_0, t, x_1)
    alone = torch.cat([loss(Linear(0.7), x_0[i : i + 1], t[i : i + 1], x_1[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)
    assert not torch.allclose(together, flow_matching(Linear(0.7), x_0, t, x_1))


@pytest.mark.parametrize("passes", [1, 3])
def test_it_shows_what_passes_show(monkeypatch, passes):
    seen = {}

    W = radial(torch.linspace(20, 0.2, 9), BOX)

    def observed(x_0, noise, box, stream):
        seen["y"] = rfft(x_0) + W.rsqrt() * rfft(noise)
        return W, seen["y"]

    monkeypatch.setattr(plug_and_play_loss, "_observed", observed)
    monkeypatch.setattr(plug_and_play_loss, "_JITTER", (0.0, 0.0))
    monkeypatch.setattr(plug_and_play_loss, "_AGAIN", 1.0)
    monkeypatch.setattr(plug_and_play_loss, "_PASSES", passes)
    monkeypatch.setattr(plug_and_play_loss, "_DITHER", (0.0, 0.0))

    shown = []

    def network(x, t):
        shown.append((x.detach().clone(), float(t.reshape(-1)[0])))
        return GaussianPrior(1.0)(x, t)

    x_0, x_1 = batch(1)
    PlugAndPlayLoss(GaussianPrior(1.0), 1.0)(network, x_0, torch.rand(1), x_1)
    ours = list(shown)
    shown.clear()
    error = DenoisingError.of(GaussianPrior(1.0), BOX, x_0)
    t = ours[0][1]
    tau = (t / (1 - t)) ** 2
    x = seen["y"] / (1 + 1 / W)
    for _ in range(passes):
        r, _ = plug_and_play_loss._before(x, seen["y"], W, tau)
        x_t = (1 - t) * irfft(r, BOX)[None]
        x_hat = rfft((x_t - t * network(x_t, torch.tensor(t)))[0])
        x = plug_and_play_loss._after(x_hat, seen["y"], W, error(t), tau)
    assert len(ours) == len(shown) == passes
    for (x, t), (x_pnp, t_pnp) in zip(ours, shown, strict=True):
        torch.testing.assert_close(x.squeeze(), x_pnp.squeeze(), rtol=1e-4, atol=1e-5)
        assert t == pytest.approx(t_pnp, abs=1e-6)


@pytest.mark.slow
def test_minimising_it_learns_the_power_that_makes_the_posterior_mean():
    generator = torch.Generator().manual_seed(1)
    network = Linear(0.2)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.05)
    loss = PlugAndPlayLoss(GaussianPrior(1.0), 0.5)
    for _ in range(60):
        x_0, x_1 = torch.randn(2, 4, *BOX, generator=generator)
        optimiser.zero_grad()
        loss(network, x_0, torch.rand(4, generator=generator), x_1).mean().backward()
        optimiser.step()
    assert float(network.power.detach()) == pytest.approx(1.0, abs=0.35)


def test_crops_of_an_odd_number_of_voxels():
    x_0, x_1 = torch.randn(2, 3, 5, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    loss = PlugAndPlayLoss(GaussianPrior(1.0), 1.0)
    each = [loss(GaussianPrior(1.0), a[None], torch.full((1,), 0.5), b[None]) for a, b in zip(x_0, x_1, strict=True)]
    torch.testing.assert_close(loss(GaussianPrior(1.0), x_0, torch.full((3,), 0.5), x_1), torch.cat(each))
