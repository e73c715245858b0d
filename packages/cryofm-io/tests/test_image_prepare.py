"""Prepared images are the originals moved, masked and resampled exactly, and poses find their way back."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cryofm_io import CryoFMError, GeometryError, ImageStack, MapWarning, Poses, prepare_images
from cryofm_io.image_prepare import sides

RNG = np.random.default_rng(0)
ATOMS = RNG.normal(scale=9, size=(7, 3))  # Å
WEIGHTS = RNG.uniform(0.5, 2, size=7)
WIDTH = 5.0  # Å


def render(points, n, voxel_size):
    """Gaussians at points (x, y) in Å from pixel n // 2, in closed form: (n, n)."""
    axis = voxel_size * (np.arange(n) - n // 2)
    x, y = (np.exp(-((axis - points[:, [i]]) ** 2) / (2 * WIDTH**2)) for i in (0, 1))
    return np.einsum("a,ay,ax->yx", WEIGHTS, y, x)


def views(k, spread=6.0):
    """Poses, and what they show: points (k, atoms, 2) in Å."""
    poses = Poses(Rotation.random(k, rng=RNG).as_matrix(), RNG.uniform(-spread, spread, size=(k, 2)))
    return poses, np.einsum("kij,aj->kai", poses.rotations, ATOMS)[..., :2] - poses.shifts[:, None]


@pytest.mark.parametrize("n", [96, 97])
@pytest.mark.parametrize(("box", "voxel_size"), [(32, 5.0), (33, 4.7), (120, 1.2)])
def test_projections_of_one_object(n, box, voxel_size):
    """Centred on the projection of its centre of mass, in the new pixels, whatever the parities."""
    poses, points = views(4)
    images = np.stack([render(p, n, 1.5) + 3 for p in points])
    prepared = prepare_images(ImageStack(images, 1.5, poses=poses), mask_diameter=110, voxel_size=voxel_size, box=box)
    new = prepared.images.voxel_size
    assert new == pytest.approx(voxel_size, rel=0.005)
    centre = WEIGHTS @ ATOMS / WEIGHTS.sum()
    expected_shift = -np.einsum("kij,j->ki", poses.rotations, centre)[:, :2] + poses.shifts
    np.testing.assert_allclose(prepared.shifts, expected_shift, atol=0.01)
    expected = np.stack([render(p + s, box, new) for p, s in zip(points, prepared.shifts, strict=True)])
    np.testing.assert_allclose(prepared.images.data / prepared.scale, expected, atol=0.01)
    np.testing.assert_allclose(prepared.background, 3, atol=0.01)
    # what is left to centre on the object's origin, and the way back
    np.testing.assert_allclose(prepared.images.poses.shifts, poses.shifts - prepared.shifts)
    back = prepared.original_poses(prepared.images.poses)
    np.testing.assert_allclose(back.shifts, poses.shifts, atol=1e-12)
    assert np.array_equal(back.rotations, poses.rotations)


@pytest.mark.parametrize("n", [24, 25])
def test_the_shift_is_trigonometric_interpolation(n):
    """Against the interpolant written down, for images with power up to Nyquist."""

    def shift_matrix(shift):
        here, there = np.arange(n), np.arange(n) - shift
        k = np.arange(1, (n + 1) // 2)[:, None, None]
        matrix = (1 + 2 * np.cos(2 * np.pi * k * (there[:, None] - here) / n).sum(0)) / n
        return matrix + np.outer(np.cos(np.pi * there), np.cos(np.pi * here)) / n * (n % 2 == 0)

    images = RNG.normal(size=(3, n, n)) + 20 * render(np.full((7, 2), 1.3), n, 1.5)
    if n % 2 == 0:  # Nyquist along both axes at once is the one coefficient with two real interpolants
        checks = (-1) ** np.add.outer(np.arange(n), np.arange(n))
        images -= checks * (images * checks).mean((1, 2), keepdims=True)
    prepared = prepare_images(ImageStack(images, 1.5), mask_diameter=0.8 * n * 1.5, voxel_size=1.5, box=n)
    axis = np.arange(n) - n // 2
    inside = np.hypot(axis, axis[:, None]) <= 0.4 * n
    for image, background, (x, y), result in zip(
        images, prepared.background, prepared.shifts / 1.5, prepared.images.data, strict=True
    ):
        assert np.abs([x, y]).min() > 0.05
        expected = shift_matrix(y) @ (image - background) @ shift_matrix(x).T
        np.testing.assert_allclose(result[inside], (prepared.scale * expected)[inside], atol=1e-5)


def test_mask_background_and_scale():
    """What is beyond the mask is gone, and its mean is what the background is."""
    n = 64
    _, points = views(3, spread=0)
    clean = np.stack([render(p, n, 1.5) for p in points])
    border = np.hypot(*np.ogrid[-32:32, -32:32]) > 28  # neighbours in the corners
    dirty = 2 * clean + 5 + border * RNG.normal(size=clean.shape)
    settings = {"mask_diameter": 66.0, "voxel_size": 1.5, "box": n}
    prepared = prepare_images(ImageStack(dirty, 1.5), **settings)
    r = 1.5 * np.hypot(*np.ogrid[-32:32, -32:32])
    assert np.abs(prepared.images.data[:, r > 40]).max() == 0
    assert prepared.background == pytest.approx(5, abs=0.1)
    power = np.sum(prepared.images.data**2) / (3 * np.pi * (33 / 1.5) ** 2)
    assert power == pytest.approx(1, abs=1e-5)
    # one scale for all: relative strengths of the images stay
    strength = prepared.images.data.sum((1, 2)) / clean.sum((1, 2))
    np.testing.assert_allclose(strength / strength.mean(), 1, atol=0.05)


def test_inverted_contrast():
    _, points = views(3)
    images = np.stack([render(p, 64, 1.5) for p in points])
    settings = {"mask_diameter": 80.0, "voxel_size": 3.0, "box": 32}
    good = prepare_images(ImageStack(images, 1.5), **settings)
    with pytest.warns(MapWarning, match="3 of 3 images are darker .* inverted contrast"):
        prepare_images(ImageStack(7 - images, 1.5), **settings)
    inverted = prepare_images(ImageStack(7 - images, 1.5), invert=True, **settings)
    np.testing.assert_allclose(inverted.images.data, good.images.data, atol=1e-5)
    assert inverted.scale == pytest.approx(-good.scale)
    np.testing.assert_allclose(inverted.background, 7 - good.background, atol=1e-6)


def test_low_pass():
    images = RNG.normal(size=(2, 65, 65)) + 30 * render(ATOMS[:, :2], 65, 1.5)
    settings = {"mask_diameter": 70.0, "voxel_size": 1.5, "box": 65}
    sharp, smooth = (
        prepare_images(ImageStack(images, 1.5), resolution=resolution, **settings) for resolution in (None, 6.0)
    )
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(65, 1.5)] * 2))
    before, after = (np.fft.fft2(p.images.data.astype(np.float64) / p.scale) for p in (sharp, smooth))
    kept = frequency < 0.9 / 6
    np.testing.assert_allclose(after[:, kept], before[:, kept], atol=1e-4 * np.abs(before).max())
    assert np.abs(after[:, frequency > 1 / 6]).max() < 1e-4 * np.abs(before).max()


def test_images_without_a_particle_are_told():
    images = np.stack([render(ATOMS[:, :2], 64, 1.5)] * 2)
    images[1] = 1e-3 * RNG.normal(size=(64, 64))
    images[1, 32, :] += np.linspace(-1, 1.01, 64)  # hardly any mass, but a moment
    with pytest.warns(MapWarning, match="centres of mass of 1 images .* first of image 1"):
        prepare_images(ImageStack(images, 1.5), mask_diameter=80, voxel_size=3, box=32)


@settings(max_examples=200, deadline=None)
@given(n=st.integers(32, 400), ratio=st.floats(0.08, 4))
@example(n=32, ratio=1 + 1 / 128)
def test_the_pixel_size_is_met(n, ratio):
    padded, resampled = sides(n, ratio)
    assert padded >= n
    assert abs(resampled / padded / ratio - 1) < 0.005


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_diameter": 0}, "must be positive"),
        ({"voxel_size": np.nan}, "must be positive"),
        ({"resolution": -1.0}, "must be positive"),
        ({"mask_diameter": 97}, "a mask of 97 Å does not fit the images of 96 Å"),
        ({"box": 20}, "a mask of 80 Å does not fit the wished box of 60 Å"),
    ],
)
def test_impossible_lengths(change, message):
    images = ImageStack(np.stack([render(ATOMS[:, :2], 64, 1.5)] * 2), 1.5)
    with pytest.raises(GeometryError, match=message):
        prepare_images(images, **({"mask_diameter": 80, "voxel_size": 3, "box": 32} | change))


def test_nothing_within_the_mask():
    with pytest.raises(CryoFMError, match="constant within the mask"):
        prepare_images(ImageStack(np.zeros((2, 16, 16)), 1.5), mask_diameter=20, voxel_size=1.5, box=16)


def test_halos_do_not_pull_the_centre_away():
    """Of images less a part of their own blur, masked, as averages of filtered particles look."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(3)
    points = np.einsum("kij,aj->kai", Rotation.random(6, rng=rng).as_matrix(), ATOMS)[..., :2]
    off = rng.uniform(-9, 9, size=(6, 1, 2))
    images = np.stack([render(p, 96, 1.5) for p in points + off])
    centres = np.einsum("a,kai->ki", WEIGHTS, points + off) / WEIGHTS.sum()
    where = np.hypot(*np.ogrid[-48:48, -48:48]) < 37
    haloed = (images - 0.9 * gaussian_filter(images, (0, 12, 12))) * where
    settings = {"mask_diameter": 110.0, "voxel_size": 5.0, "box": 32}
    found = prepare_images(ImageStack(haloed, 1.5), **settings).shifts
    axis = 1.5 * np.arange(-48, 48)
    mass = haloed.sum((1, 2))
    plain = -np.stack([(haloed.sum(1) * axis).sum(1), (haloed.sum(2) * axis).sum(1)], -1) / mass[:, None]
    error, before = (np.sqrt(np.mean((s + centres) ** 2)) for s in (found, plain))
    assert before > 2
    assert error < 0.5 * before
