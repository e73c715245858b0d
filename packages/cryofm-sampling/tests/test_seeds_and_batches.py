"""The same seed gives the same volumes, however many are drawn together."""

import math

import pytest
import torch

from cryofm_ops import Identity, LinearGaussian, WhiteNoise
from cryofm_sampling import Guided, Inpainting, PlugAndPlay, PosteriorFlow, Renoising
from cryofm_sampling.testing import GaussianPrior

BOX = (5, 6, 4)
SAMPLERS = [
    Guided(steps=6),
    Guided(steps=6, guidance="paper", max_push=0.01),  # longer pushes overshoot, and amplify rounding
    PlugAndPlay(),
]


def observed(kit, box):
    y = torch.randn(box, generator=torch.Generator().manual_seed(0))
    half = (*box[:2], box[2] // 2 + 1)
    return kit.Spectral(y, torch.linspace(0.1, 3, math.prod(half)).reshape(half))


@pytest.fixture
def likelihood(kit):
    return observed(kit, BOX)


@pytest.mark.parametrize("box", [BOX, (8, 8, 8)])  # where the FFT of a batch rounds as that of one, and where not
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_four_are_two_and_two(sampler, box, kit):
    likelihood = observed(kit, box)
    prior = GaussianPrior(torch.tensor([3.0, 1.0, 0.2]))
    four = sampler(prior, likelihood, shape=(4, *box), generator=torch.Generator().manual_seed(7)).x
    generator = torch.Generator().manual_seed(7)
    pairs = [sampler(prior, likelihood, shape=(2, *box), generator=generator).x for _ in range(2)]
    # Plug-and-play goes volume by volume; sums over a batch may round differently in guidance.
    tolerance = {"rtol": 0, "atol": 0 if isinstance(sampler, PlugAndPlay) else 1e-12}
    torch.testing.assert_close(four, torch.cat(pairs), **tolerance)
    alone = sampler(prior, likelihood, shape=box, generator=torch.Generator().manual_seed(7)).x
    torch.testing.assert_close(four[0], alone, **tolerance)
    nested = sampler(prior, likelihood, shape=(2, 2, *box), generator=torch.Generator().manual_seed(7)).x
    assert torch.equal(four, nested.reshape(four.shape))


@pytest.mark.parametrize("sampler", SAMPLERS[:2])
def test_seeds_differ_and_global_randomness_is_not_used(sampler, likelihood):
    prior = GaussianPrior(1.0)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    a, b, again = (
        sampler(prior, likelihood, shape=BOX, generator=torch.Generator().manual_seed(seed)).x for seed in (1, 2, 1)
    )
    assert torch.equal(a, again)
    assert not torch.equal(a, b)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_dtype_is_that_of_the_data(sampler, kit):
    likelihood = kit.Spectral(torch.zeros(BOX, dtype=torch.float32), torch.ones(5, 6, 3, dtype=torch.float32))
    draw = sampler(GaussianPrior(torch.tensor([3.0, 1.0])), likelihood, shape=BOX, generator=torch.Generator())
    assert draw.x.dtype == torch.float32
    assert not draw.x.requires_grad


class SinglePrecision(torch.nn.Conv3d):
    """A network of that precision, which refuses any other."""

    signal_power, denoising_error = torch.ones(2), torch.tensor([[0.1, 0.1], [1.0, 1.0]])

    def __init__(self):
        super().__init__(1, 1, 1, dtype=torch.float32)

    def forward(self, x, t):
        return super().forward(x.unsqueeze(-4)).squeeze(-4)


@pytest.mark.parametrize("sampler", [*SAMPLERS, PosteriorFlow(2), Renoising((0.5,)), Inpainting(2)])
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
