"""Posterior sampling through a decoder: behind a linear one the posterior of the latents is known in closed form."""

import pytest
import torch
from torch import nn

from cryofm_model import Hourglass, HourglassConfig, Normalization
from cryofm_model.latent import AutoencoderConfig, Codec, Decoded, LatentPrior
from cryofm_ops import Identity, WhiteNoise, gaussian_likelihood
from cryofm_sampling import Flow, Guided, restore
from cryofm_sampling.testing import GaussianPrior

BOX, CHANNELS, NOISE = (8, 8, 8), 2, 0.02


class Linear(nn.Module):
    """Every latent voxel becomes 2³ voxels by a matrix (8, 2); the encoder is its pseudo-inverse."""

    def __init__(self):
        super().__init__()
        self.config = AutoencoderConfig(widths=(8, 8), depth=1, channels=CHANNELS, groups=4)
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(8, CHANNELS, generator=generator), requires_grad=False)

    def decode(self, z):
        place = torch.einsum("vc,bczyx->bvzyx", self.matrix, z.reshape(len(z), CHANNELS, 4, 4, 4))
        return place.reshape(-1, 2, 2, 2, 4, 4, 4).permute(0, 4, 1, 5, 2, 6, 3).reshape(-1, *BOX)

    def encode(self, x):
        place = blocks(x)
        z = torch.einsum("cv,bvzyx->bczyx", torch.linalg.pinv(self.matrix), place).reshape(len(x), -1, 4, 4)
        return z, torch.zeros_like(z)


def blocks(x):
    """(batch, 8 voxels of a block, 4, 4, 4)."""
    return x.reshape(-1, 4, 2, 4, 2, 4, 2).permute(0, 2, 4, 6, 1, 3, 5).reshape(-1, 8, 4, 4, 4)


@pytest.fixture(scope="module")
def problem():
    mean, std = torch.tensor([0.5, -0.2]), torch.tensor([2.0, 0.5])
    codec = Codec(Linear(), Normalization(), 1.5, 8, mean, std)
    z = torch.randn(codec.latent_shape(BOX), generator=torch.Generator().manual_seed(1))
    y = codec.densities(z) + NOISE * torch.randn(BOX, generator=torch.Generator().manual_seed(2))
    return codec, y, Decoded(gaussian_likelihood(Identity(), WhiteNoise(NOISE), y), codec)


def posterior(codec, y):
    """Mean, as a latent, and covariance (channels, channels) of every place, for a white prior of the latents."""
    A = 0.09 * codec.autoencoder.matrix * codec.std
    offset = 0.09 * codec.autoencoder.matrix @ codec.mean + 0.04
    covariance = torch.linalg.inv(torch.eye(CHANNELS) + A.T @ A / NOISE**2)
    residual = blocks(y[None])[0] - offset[:, None, None, None]
    return torch.einsum("cv,vzyx->czyx", covariance @ A.T / NOISE**2, residual).reshape(-1, 4, 4), covariance


def test_the_linear_decoder_is_its_own_inverse(problem):
    codec, _, _ = problem
    z = torch.randn(3, 8, 4, 4)
    torch.testing.assert_close(codec.encode(codec.decode(z)), z, atol=1e-4, rtol=1e-4)


def test_the_gradient_is_that_of_the_likelihood_through_the_decoder(problem):
    codec, y, decoded = problem
    z = torch.randn(2, 8, 4, 4, requires_grad=True)
    (found,) = torch.autograd.grad(decoded.log_prob(z).sum(), z)
    A = 0.09 * codec.autoencoder.matrix * codec.std
    residual = blocks((y - codec.densities(z.detach())) / NOISE**2)
    expected = torch.einsum("vc,bvzyx->bczyx", A, residual).reshape(2, 8, 4, 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)


def test_samples_have_the_mean_and_the_spread_of_the_posterior(problem):
    codec, y, decoded = problem
    generator = torch.Generator().manual_seed(0)
    draws = Guided(steps=40)(GaussianPrior(1.0), decoded, shape=(16, *codec.latent_shape(BOX)), generator=generator).x
    mean, covariance = posterior(codec, y)
    found = (draws - mean).reshape(16, CHANNELS, -1).transpose(0, 1).flatten(1)  # 16 · 64 of each channel
    spread = covariance.diagonal().sqrt()
    assert (found.mean(1).abs() < 0.15 * spread).all()
    torch.testing.assert_close(found.std(1), spread, rtol=0.1, atol=0)
    assert torch.corrcoef(found)[0, 1] == pytest.approx(float(covariance[0, 1] / spread.prod()), abs=0.1)


def test_alg_1_steps_as_written(problem):
    codec, y, decoded = problem
    steps, shape = 4, codec.latent_shape(BOX)
    found = Guided(steps=steps, guidance="paper", rescaled=False)(
        GaussianPrior(1.0), decoded, shape=shape, generator=torch.Generator().manual_seed(3)
    ).x
    start = Flow(steps=1, integrator="euler")
    still = start(lambda z, t: torch.zeros_like(z), shape=shape, generator=torch.Generator().manual_seed(3)).x
    A = 0.09 * codec.autoencoder.matrix * codec.std
    z = still
    for i in range(steps):
        t = 1 - i / steps
        slope = (2 * t - 1) / (t**2 + (1 - t) ** 2)  # the white prior's velocity is slope · z
        z_0 = z - t * slope * z
        residual = blocks(codec.densities(z_0)[None] - y)[0] / NOISE**2
        g = (1 - t * slope) * torch.einsum("vc,vzyx->czyx", A, residual).reshape(shape)
        z = z - slope * z / steps
        if t < 1:  # where the gradient is 0
            z = z - min(5.0, t / (1 - t)) * g / g.norm()
    torch.testing.assert_close(found, z, rtol=1e-4, atol=1e-4)


def test_restore_takes_a_latent_prior_and_a_decoded_likelihood(problem):
    codec, _, decoded = problem
    network = Hourglass(HourglassConfig(widths=(16,), depths=(1,), patch=2, head_width=16, channels=2, conditioning=8))
    prior = LatentPrior(network.eval().requires_grad_(False), codec)
    draw = restore(
        prior,
        decoded,
        shape=codec.latent_shape(BOX),
        generator=torch.Generator().manual_seed(0),
        estimate="samples",
        samples=2,
        sampler=Guided(steps=10),
    )
    assert draw.x.shape == (2, 8, 4, 4)
    maps = codec.densities(draw.x)
    assert maps.shape == (2, *BOX)
    blind = codec.densities(torch.zeros_like(draw.x))
    assert (decoded.likelihood.log_prob(maps) > decoded.likelihood.log_prob(blind)).all()  # it went towards the data
