"""Restored with a given noise and scale, a half's result changes if and only if that half's data change."""

from types import SimpleNamespace

import pytest
import torch

from cryofm_ops import Identity, WhiteNoise, gaussian_likelihood
from cryofm_sampling import Guided, PlugAndPlay, PosteriorFlow, Renoising, ScaledNormalization, restore, spread
from cryofm_sampling.testing import GaussianPrior

BOX = (6, 5, 8)


class Scaled:
    """A prior whose units are not those of the data."""

    normalization = ScaledNormalization(SimpleNamespace(mean=0.04, std=0.09), scale=0.2)

    def __init__(self):
        self.inner = GaussianPrior(torch.tensor([3.0, 1.0, 0.2]))
        self.signal_power, self.denoising_error = self.inner.signal_power, self.inner.denoising_error

    def __call__(self, x, t, /):
        return self.inner(x, t)


def restored(halves, sampler):
    """Each half by itself, as the examples do it: one prior, one noise, one scale, the same random numbers."""
    prior = Scaled()

    def job(y):
        likelihood = gaussian_likelihood(Identity(), WhiteNoise(0.3), y)
        generator = torch.Generator().manual_seed(3)
        return restore(prior, likelihood, shape=BOX, generator=generator, sampler=sampler, estimate="mean")

    return [draw.x for draw in spread([lambda y=y: job(y) for y in halves])]


SAMPLERS = [PlugAndPlay(), PosteriorFlow(4), Guided(steps=4), Renoising(), Renoising(chains=2)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("changed", [0, 1])
@pytest.mark.slow
def test_only_the_half_whose_data_change(sampler, changed):
    halves = list(torch.randn(2, *BOX, generator=torch.Generator().manual_seed(0)))
    before = restored(halves, sampler)
    halves[changed] = halves[changed].clone()
    halves[changed][2, 3, 4] += 0.1
    after = restored(halves, sampler)
    assert not torch.equal(after[changed], before[changed])
    assert torch.equal(after[1 - changed], before[1 - changed])
