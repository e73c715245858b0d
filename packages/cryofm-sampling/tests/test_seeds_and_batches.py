"""Volumes have the precision of the data, whatever that of their weights; without such, the default."""

import pytest
import torch

from cryofm_ops import Identity, LinearGaussian, WhiteNoise
from cryofm_sampling import Guided, Inpainting, PlugAndPlay, PosteriorFlow, Renoising

BOX = (5, 6, 4)
SAMPLERS = [Guided(2), Guided(2, "paper"), PlugAndPlay(2), PosteriorFlow(2), Renoising((0.5,)), Inpainting(2)]


class SinglePrecision(torch.nn.Conv3d):
    """A network of that precision, which refuses any other."""

    signal_power, denoising_error = torch.ones(2), torch.tensor([[0.1, 0.1], [1.0, 1.0]])

    def __init__(self):
        super().__init__(1, 1, 1, dtype=torch.float32)

    def forward(self, x, t):
        return super().forward(x.unsqueeze(-4)).squeeze(-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_precision_in_float64_does_not_make_the_volumes_so(sampler, kit):
    likelihood = kit.Spectral(torch.zeros(BOX, dtype=torch.float32), torch.ones(5, 6, 3, dtype=torch.float64))
    draw = sampler(SinglePrecision(), likelihood, shape=BOX, generator=torch.Generator())
    assert draw.x.dtype == torch.float32


@pytest.mark.parametrize("sampler", [Guided(2), Renoising((0.5, 0.2)), Inpainting(2)])
def test_without_spectral_data_the_dtype_is_the_default(sampler):
    likelihood = LinearGaussian(Identity(), WhiteNoise(1.0), torch.zeros(BOX, dtype=torch.float64))
    torch.set_default_dtype(torch.float32)
    draw = sampler(SinglePrecision(), likelihood, shape=BOX, generator=torch.Generator())
    assert draw.x.dtype == torch.float32
