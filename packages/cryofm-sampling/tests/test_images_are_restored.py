"""Images at known poses to a map: the parts put together, against each of them and against what units imply."""

import math
from types import SimpleNamespace

import attrs
import pytest
import torch

from cryofm_ops import FourierProjector, GridMismatchError, ToeplitzGaussian, WhiteNoise, random_rotations
from cryofm_sampling import CapabilityError, PlugAndPlay, Rescaled, SettingError, calibrate, restore, restore_images
from cryofm_sampling.testing import GaussianPrior

N, IMAGES, STD = 12, 60, 5.0
SHAPE = (N, N, N)


@pytest.fixture(scope="module")
def truth():
    inside = (torch.cartesian_prod(*3 * [torch.arange(N) - N // 2]).square().sum(-1) < 16).view(SHAPE)
    return 2 * inside * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def half(truth, seed, std=STD):
    g = torch.Generator().manual_seed(seed)
    rotations, shifts = random_rotations(IMAGES, generator=g), 0.5 * torch.randn(IMAGES, 2, generator=g)
    project = FourierProjector(rotations.to(truth), shifts.to(truth), SHAPE)
    clean = project(truth)
    images = clean + std * torch.randn(clean.shape, generator=g, dtype=truth.dtype)
    return ToeplitzGaussian.from_images([(project, images)], WhiteNoise(std**2), shape=SHAPE)


@pytest.fixture(scope="module")
def halves(truth):
    return half(truth, 2), half(truth, 3)


@pytest.fixture(scope="module")
def prior():
    return Rescaled(GaussianPrior(4.0, SHAPE), SimpleNamespace(mean=0.0, std=1.0))


def test_it_is_restore_at_the_scale(prior, halves):
    found = restore_images(prior, *halves, generator=torch.Generator().manual_seed(0), scale=1.0)
    generator = torch.Generator().manual_seed(0)
    alone = restore(prior, halves[0] + halves[1], shape=SHAPE, generator=generator, sampler=PlugAndPlay())
    torch.testing.assert_close(found.map, alone.x)
    assert found.fit.nfe == 0


def test_reconstructions_solve_the_images_equations(prior, halves):
    found = restore_images(prior, *halves, generator=torch.Generator().manual_seed(0), scale=1.0)
    for data, x in zip((*halves, halves[0] + halves[1]), (*found.halves, found.reconstruction), strict=True):
        residual = data.normal(x) - data.data  # next to no prior: H x = b
        assert residual.norm() < 1e-2 * data.data.norm()


def test_the_prior_helps_and_so_does_the_linear_filter(prior, halves, truth):
    found = restore_images(prior, *halves, generator=torch.Generator().manual_seed(0), scale=1.0)
    restored, linear, raw = ((x - truth).norm() for x in (found.map, found.linear, found.reconstruction))
    assert restored < linear < raw


def test_the_map_is_in_the_units_of_the_images(prior, halves):
    found = restore_images(prior, *halves, generator=torch.Generator().manual_seed(0), scale=1.0)
    larger = (attrs.evolve(x, spectrum=x.spectrum / 100, data=x.data / 10) for x in halves)  # images, noise: times 10
    scaled = restore_images(prior, *larger, generator=torch.Generator().manual_seed(0), scale=0.1)
    torch.testing.assert_close(scaled.map / 10, found.map, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scaled.linear / 10, found.linear, rtol=1e-3, atol=1e-3)
    assert float(scaled.draw.misfit) == pytest.approx(float(found.draw.misfit), rel=1e-3)


class Spikes:
    """The exact velocity of voxels that are 0, and one in ten 1."""

    normalization = SimpleNamespace(mean=0.0, std=1.0)

    def __call__(self, x, t):
        log_odds = ((1 - t) * x - (1 - t) ** 2 / 2) / t**2 - math.log(9)
        return (x - log_odds.sigmoid()) / t


def test_the_scale_is_found(truth):
    generator = torch.Generator().manual_seed(0)
    spikes = (torch.rand(SHAPE, generator=generator) < 0.1) * (truth != 0).to(truth)
    prior = calibrate(Spikes(), spikes[None], generator=generator)
    found = restore_images(prior, *(half(8 * spikes, seed, std=2.0) for seed in (2, 3)), generator=generator)
    assert found.fit.normalization.scale == pytest.approx(1 / 8, rel=0.3)
    assert len(found.fit.trials) > 4


def test_what_cannot_be_restored_is_refused(prior, halves):
    g = torch.Generator().manual_seed(0)
    with pytest.raises(CapabilityError, match="normalization"):
        restore_images(GaussianPrior(1.0, SHAPE), *halves, generator=g)
    empty = attrs.evolve(halves[0], data=torch.zeros(SHAPE))
    with pytest.raises(SettingError, match="empty"):
        restore_images(prior, empty, empty, generator=g)
    with pytest.raises(SettingError, match="scale"):
        restore_images(prior, *halves, generator=g, scale=-1.0)
    small = ToeplitzGaussian(torch.ones(16, 16, 9), torch.ones(8, 8, 8))
    with pytest.raises(GridMismatchError, match="box"):
        restore_images(prior, halves[0], small, generator=g)
