"""`torch.autocast` around a run: the network computes in bf16, volumes and data stay in single precision."""

import pytest
import torch
from torch import nn

from cryofm_ops import Identity, Normal, WhiteNoise, gaussian_likelihood
from cryofm_sampling import (
    BlindGuided,
    Checkpoint,
    Guided,
    Inpainting,
    PlugAndPlay,
    PosteriorFlow,
    Renoising,
    Tiled,
    calibrate,
    restore,
)

BOX = (10, 8, 12)


class Denoiser(nn.Module):
    """The flow of white data, and a little of a convolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv3d(1, 1, 3, padding=1).float()
        self.seen = set()

    def forward(self, x, t):
        correction = self.convolution(x.unsqueeze(-4)).squeeze(-4)
        self.seen.add(correction.dtype)
        return (2 * t - 1) / (t**2 + (1 - t) ** 2) * x + 0.1 * correction


@pytest.fixture(autouse=True)
def float64():
    """In single precision, as networks are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


class Matrix:
    """Data that are seen through a product of matrices, which autocast would round, at a pose that is searched so."""

    def __init__(self):
        self.seen = set()

    def product(self, x):
        made = x @ torch.eye(x.shape[-1])
        self.seen.add(made.dtype)
        return made

    def log_prob(self, x):
        return -self.product(x).square().sum((-3, -2, -1))

    def refine(self, x):
        self.product(x)
        return self


@pytest.mark.parametrize("kind", [Guided, BlindGuided])
@pytest.mark.parametrize("guidance", ["gaussian", "paper"])
def test_likelihoods_stay_in_single_precision(kind, guidance, tmp_path):
    network, likelihood, checkpoint = Denoiser(), Matrix(), Checkpoint(tmp_path / "run")
    with torch.autocast("cpu", torch.bfloat16):
        kind(2, guidance)(network, likelihood, shape=BOX, generator=torch.Generator(), checkpoint=checkpoint)
    assert network.seen == {torch.bfloat16}
    assert likelihood.seen == {torch.float32}


class Conditions(Matrix):
    """What knows the posterior of a normal prior, and needs products of matrices for it."""

    log_prob = refine = None

    def condition(self, mean, variance):
        return Normal(self.product(mean), torch.full((*mean.shape[:-1], mean.shape[-1] // 2 + 1), 0.5))


@pytest.mark.parametrize("sampler", [PlugAndPlay(2), PosteriorFlow(2), Renoising((0.5,)), Inpainting(2)])
def test_conditioning_stays_in_single_precision(sampler, tmp_path):
    network, likelihood, checkpoint = Denoiser(), Conditions(), Checkpoint(tmp_path / "run")
    network.signal_power, network.denoising_error = torch.ones(2), torch.tensor([[0.1, 0.1], [1.0, 1.0]])
    with torch.autocast("cpu", torch.bfloat16):
        sampler(network, likelihood, shape=BOX, generator=torch.Generator(), checkpoint=checkpoint)
    assert network.seen == {torch.bfloat16}
    assert likelihood.seen == {torch.float32}


@pytest.mark.parametrize("sampler", [PlugAndPlay(), Guided(steps=8), Guided(steps=8, guidance="paper", max_push=0.1)])
@pytest.mark.slow
def test_close_to_single_precision(sampler):
    network, generator = Denoiser(), torch.Generator().manual_seed(0)
    examples = torch.randn(2, 8, 8, 8, generator=generator)
    prior = Tiled(calibrate(network, examples, generator=generator), 8, 4)  # its gradients recompute
    y = torch.randn(BOX, generator=generator)
    likelihood = gaussian_likelihood(Identity(), WhiteNoise(0.5), y)

    def run():
        network.seen.clear()
        generator = torch.Generator().manual_seed(1)
        return restore(prior, likelihood, shape=BOX, generator=generator, sampler=sampler, estimate="mean").x

    single = run()
    assert network.seen == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run()
    assert network.seen == {torch.bfloat16}
    assert mixed.dtype == torch.float32
    difference = (mixed - single).square().mean() / single.square().mean()
    assert 0 < difference < 1e-3


def test_draws_of_a_likelihood_stay_in_single_precision():
    likelihood = Matrix()

    class Draws:
        def condition(self, mean, variance):
            return Normal(mean, lambda generator: likelihood.product(torch.randn(mean.shape, generator=generator)))

    prior = calibrate(Denoiser(), torch.randn(2, *BOX), generator=torch.Generator(), times=[0.5, 1.0])
    with torch.autocast("cpu", torch.bfloat16):
        for sampler in (PlugAndPlay(2), PosteriorFlow(2), Renoising((0.5,))):
            sampler(prior, Draws(), shape=BOX, generator=torch.Generator())
    assert likelihood.seen == {torch.float32}
