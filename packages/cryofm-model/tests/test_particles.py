"""Whole particles in a box, and the prior that was trained on them."""

from importlib.resources import files

import numpy as np
import pytest
import torch

from cryofm_model import CalibratedPrior, CryoFMError, load_prior
from cryofm_model.data.augment import random_rotation
from cryofm_model.data.particles import LOW_PASS, whole_particle, working_voxel_size

pytest.importorskip("scipy")  # which the extra [train] brings

POINTS = np.array([[0.0, 0.0, 0.0], [24.0, 4.0, -8.0], [-6.0, 18.0, 10.0]])  # Å, (x, y, z)
MASSES = np.array([3.0, 1.0, 2.0])


def blobs(points, masses, n, voxel_size, sigma):
    """Gaussians of these masses about voxel n // 2."""
    axis = voxel_size * (np.arange(n) - n // 2)
    x, y, z = (np.exp(-((axis - points[:, i, None]) ** 2) / (2 * sigma**2)) for i in range(3))
    return np.einsum("a,az,ay,ax->zyx", masses, z, y, x)


def test_turned_and_centred_particle_is_the_turned_and_centred_object():
    rotation = random_rotation(np.random.default_rng(0))
    found, voxel_size = whole_particle(blobs(POINTS, MASSES, 70, 1.5, 9.0), 1.5, 24, finest=5.0, rotation=rotation)
    assert voxel_size == 5.0
    centred = POINTS - MASSES @ POINTS / MASSES.sum()
    expected = blobs(centred @ rotation.T, MASSES, 24, 5.0, 9.0)
    assert np.abs(found - expected).max() < 0.08 * expected.max()  # the centre of mass is that of density above a level


@pytest.mark.slow
def test_large_particles_get_larger_voxels():
    long = POINTS * 5
    found, voxel_size = whole_particle(blobs(long, MASSES, 160, 2.0, 12.0), 2.0, 32, finest=5.0)
    assert voxel_size > 5
    occupied = np.argwhere(found > 0.1 * found.max())
    assert np.sqrt(((occupied - 16) ** 2).sum(1)).max() == pytest.approx(13, abs=1)
    assert working_voxel_size(26 * voxel_size, 32, finest=5.0) == pytest.approx(voxel_size)


def test_nothing_is_left_beyond_the_low_pass():
    density = np.zeros((40, 40, 40))
    density[14:24, 12:25, 13:20] = np.random.default_rng(0).random((10, 13, 7))
    found, _ = whole_particle(density, 2.5, 32, finest=5.0)
    k = np.fft.fftfreq(32)
    radius = np.sqrt((k[:, None, None] ** 2) + k[:, None] ** 2 + k**2)
    power = np.abs(np.fft.fftn(found)) ** 2
    assert power[radius > 1.05 / LOW_PASS].mean() < 1e-3 * power[radius < 0.8 / LOW_PASS].mean()


def test_a_map_without_density_is_refused():
    with pytest.raises(CryoFMError, match="no density"):
        whole_particle(-np.ones((8, 8, 8)), 1.5, 8, finest=5.0)


def test_the_bundled_prior_denoises_particles():
    prior = load_prior("cryofm-tiny-particles")
    assert isinstance(prior, CalibratedPrior)
    assert (prior.voxel_size, prior.box) == (5.0, 32)
    assert (files("cryofm_model") / "weights" / "cryofm-tiny-particles.safetensors").stat().st_size < 8 * 2**20
    density = blobs(POINTS * 1.5, MASSES, 32, 5.0, 11.0)
    x_0 = torch.from_numpy((density / density.max() - prior.normalization.mean) / prior.normalization.std).float()
    t = torch.tensor(0.5)
    x_t = (1 - t) * x_0 + t * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    error = (x_t - t * prior(x_t, t) - x_0).square().mean()
    assert error < 0.1  # of noise of variance 1 (t / (1 − t) = 1)
