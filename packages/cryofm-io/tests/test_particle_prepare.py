"""Particles in a model's box: where they were, with all of their CTF, and noise that stays white."""

import numpy as np
import pytest
from scipy.ndimage import fourier_shift

from cryofm_io import GeometryError, ImageStack, MapWarning, Poses, prepare_particles

RNG = np.random.default_rng(0)


def blob(n, x, y, width):
    """A Gaussian at (x, y) from pixel n // 2, all in pixels."""
    axis = np.arange(n) - n // 2
    return np.exp(-((axis - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * width**2))


@pytest.mark.parametrize(("n", "box"), [(64, 24), (65, 24), (64, 25), (40, 24)])
def test_a_point_stays_where_it_was(n, box):
    images = 4 + np.stack([blob(n, 6, -4, 5), blob(n, -3, 2, 5)])
    poses = Poses(np.stack([np.eye(3)] * 2), [[1.0, 2.0], [3.0, 4.0]])
    prepared = prepare_particles(ImageStack(images, 2.0, poses=poses), mask_diameter=76, voxel_size=4, box=box)
    expected = np.stack([blob(box, 3, -2, 2.5), blob(box, -1.5, 1, 2.5)])
    found = prepared.images.data / prepared.scale
    np.testing.assert_allclose(found - found.min(), expected, atol=0.02)
    assert prepared.images.data.std() == pytest.approx(1, abs=0.2)
    assert prepared.background == pytest.approx(4, abs=0.05)
    assert prepared.images.voxel_size == 4
    np.testing.assert_array_equal(prepared.original_poses(prepared.images.poses).shifts, poses.shifts)


def test_noise_stays_independent():
    """Its power is flat, and frequencies beside each other know nothing of each other, as a mask would have it."""
    noise = ImageStack(RNG.normal(size=(400, 48, 48)), 2.0)
    prepared = prepare_particles(noise, mask_diameter=60, voxel_size=4, box=20)
    spectra = np.fft.rfft2(prepared.images.data)[:, :8, 1:8] / 20
    power = (np.abs(spectra) ** 2).mean(0)
    np.testing.assert_allclose(power, 1, atol=0.25)
    beside = np.abs((spectra[:, :, 1:] * spectra[:, :, :-1].conj()).mean(0))
    assert beside.max() < 0.25  # 0.05 is its standard error
    assert prepared.scale == pytest.approx(2, rel=0.05)  # pixels that are means of 2 × 2


def test_detail_outside_of_the_mask_is_kept():
    image = blob(64, 0, 0, 3) + np.real(np.fft.ifft2(fourier_shift(np.fft.fft2(blob(64, 0, 0, 3)), (0, 22))))
    prepared = prepare_particles(ImageStack([image, image], 2.0), mask_diameter=60, voxel_size=2, box=60)
    found = prepared.images.data[0] / prepared.scale
    assert found[30, 52] - found[30, 41] == pytest.approx(1, abs=0.05)


def test_inverted_contrast():
    images = blob(48, 0, 0, 6) + RNG.normal(size=(100, 48, 48))
    how = {"mask_diameter": 60, "voxel_size": 4, "box": 20}
    with pytest.warns(MapWarning, match="inverted contrast"):
        prepare_particles(ImageStack(-images, 2.0), **how)
    good = prepare_particles(ImageStack(images, 2.0), **how)
    inverted = prepare_particles(ImageStack(7 - images, 2.0), invert=True, **how)
    np.testing.assert_allclose(inverted.images.data, good.images.data, atol=1e-4)
    assert inverted.scale == pytest.approx(-good.scale)
    np.testing.assert_allclose(inverted.background, 7 - good.background, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_diameter": 0.0}, "must be positive"),
        ({"voxel_size": float("nan")}, "must be positive"),
        ({"mask_diameter": 97.0}, "does not fit the images"),
        ({"box": 12}, "does not fit the wished box"),
    ],
)
def test_what_does_not_fit(change, message):
    images = ImageStack(RNG.normal(size=(2, 48, 48)), 2.0)
    with pytest.raises(GeometryError, match=message):
        prepare_particles(images, **({"mask_diameter": 60.0, "voxel_size": 4.0, "box": 20} | change))
