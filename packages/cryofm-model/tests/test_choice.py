"""Which of the bundled priors fits, and how one of whole particles is fitted."""

import math

import pytest
import torch

from cryofm_model import CryoFMError, bundled_prior_for, fitted_to_particle, load_prior

FINE, TINY, PARTICLES = "cryofm-tiny-fine", "cryofm-tiny", "cryofm-tiny-particles"


@pytest.mark.parametrize(
    ("voxel_size", "resolution", "name"),
    [
        (1.0, 2.1, FINE),
        (1.0, 2.9, TINY),  # which both reach, and the coarser one costs less
        (1.0, 3.4, TINY),
        (1.0, math.inf, TINY),
        (3.5, math.inf, TINY),
        (3.6, math.inf, PARTICLES),
        (15.7, 31.4, PARTICLES),
    ],
)
def test_the_data_say_it(voxel_size, resolution, name):
    assert bundled_prior_for(voxel_size, resolution=resolution) == name


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_numbers_are_positive(bad):
    with pytest.raises(CryoFMError, match="voxel_size"):
        bundled_prior_for(bad)
    with pytest.raises(CryoFMError, match="resolution"):
        bundled_prior_for(1.0, resolution=bad)


@pytest.fixture(scope="module")
def particles():
    return load_prior(PARTICLES)


def test_a_particle_fills_the_box_as_in_training(particles):
    fitted = fitted_to_particle(particles, 260.0, voxel_size=6.0, shape=(64, 60, 64))
    assert fitted.voxel_size * particles.box * 26 / 32 == pytest.approx(260.0)
    assert fitted.box == 128  # all of the map at once
    assert fitted.network is particles.network
    x = torch.zeros(32, 32, 32)
    assert torch.equal(fitted(x, torch.tensor(0.5)), particles(x, torch.tensor(0.5)))


def test_voxels_are_never_finer_than_the_map_s(particles):
    assert fitted_to_particle(particles, 170.0, voxel_size=8.0, shape=(64,) * 3).voxel_size == 8.0


@pytest.mark.parametrize("diameter", [60.0, 480.0, 700.0])
def test_what_does_not_fit_is_refused(particles, diameter):
    with pytest.raises(CryoFMError, match=r"one whole particle of 85 to 416 Å; what is dense here"):
        fitted_to_particle(particles, diameter, voxel_size=8.0, shape=(64,) * 3)
