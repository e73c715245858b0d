"""Volumes have the precision of the data, whatever that of their weights; without such, the default."""

from types import SimpleNamespace

import pytest
import torch

from cryofm_ops import Identity, LinearGaussian, WhiteNoise, gaussian_likelihood, in_model_units
from cryofm_sampling import CapabilityError, Guided, Inpainting, PlugAndPlay, PosteriorFlow, Renoising
from cryofm_sampling.testing import GaussianPrior

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


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_float64_stays_float64_and_float32_float32(sampler):
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(torch.float32 if dtype == torch.float64 else torch.float64)
        noise = WhiteNoise(0.0 if isinstance(sampler, Inpainting) else 1.0)
        linear = LinearGaussian(Identity(), noise, torch.zeros(BOX, dtype=dtype))
        kinds = [linear, in_model_units(linear, SimpleNamespace(mean=0.1, std=2.0))]
        if not isinstance(sampler, Inpainting):
            kinds.append(SimpleNamespace(log_prob=linear.log_prob))
        for likelihood in kinds:
            draw = sampler(GaussianPrior(1.0, BOX), likelihood, shape=BOX, generator=torch.Generator())
            assert draw.x.dtype == dtype


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_prior_of_another_precision_is_named(sampler):
    likelihood = gaussian_likelihood(Identity(), WhiteNoise(1.0), torch.zeros(BOX, dtype=torch.float64))
    with pytest.raises(CapabilityError, match=r"SinglePrecision does not take volumes in torch\.float64") as error:
        sampler(SinglePrecision(), likelihood, shape=BOX, generator=torch.Generator())
    assert "\n" not in str(error.value)
