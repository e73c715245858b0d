"""A map goes to the model's grid and comes back, in place, whatever its shape."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryofm_io import DensityMap, GeometryError, GridMismatchError, GridTransform, fourier_resample, to_grid


def noise(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(*[st.integers(3, 40)] * 3),
    voxel_size=st.floats(0.5, 4.0),
    target=st.floats(0.8, 3.5),
    multiple=st.sampled_from([1, 4, 7]),
    minimum=st.sampled_from([1, 16]),
)
def test_every_shape_goes_there_and_back(shape, voxel_size, target, multiple, minimum):
    density = DensityMap(noise(*shape), voxel_size)
    array, grid = to_grid(density, target, multiple, minimum)
    assert abs(grid.voxel_size / target - 1) <= 1 / 0.99 - 1 + 1e-6  # the ratio is met within 1 %
    assert all(n % multiple == 0 and n >= minimum for n in array.shape)
    # the true voxel size is the same along all axes: padded · old = resampled · new
    for n, m in zip(grid.padded, grid.resampled, strict=True):
        assert n * voxel_size == pytest.approx(m * grid.voxel_size, rel=1e-6)
    back = grid.inverse(array)
    assert back.shape == shape
    assert back.dtype == np.float32
    if grid.voxel_size <= voxel_size:  # nothing was lost
        np.testing.assert_allclose(back, density.data, atol=2e-5)


def test_the_transform_is_known_before_the_array():
    density = DensityMap(noise(20, 21, 22), 1.1)
    assert GridTransform.of(density, 1.5, multiple=8, minimum=24) == to_grid(density, 1.5, multiple=8, minimum=24)[1]
    for voxel_size in (1e-9, 1e5, 1e300):
        with pytest.raises(GeometryError, match="is the voxel size right"):
            GridTransform.of(DensityMap(noise(20, 21, 22), voxel_size), 1.5)


def test_a_map_at_the_voxel_size_is_only_padded():
    density = DensityMap(noise(20, 21, 22), 1.4999)
    array, grid = to_grid(density, 1.5, multiple=8)
    assert array.shape == (24, 24, 24)
    assert grid.voxel_size == 1.4999
    assert np.array_equal(array[2:22, 2:23, 1:23], density.data)  # centres 10, 10, 11 at 12
    assert np.array_equal(grid.inverse(array), density.data)
    same, _ = to_grid(density, 1.5)
    assert np.array_equal(same, density.data)


@pytest.mark.parametrize("n", [40, 50])
def test_coarser_and_back_is_the_identity_on_band_limited_maps(n):
    coarse = noise(n * 7 // 10, n * 7 // 10, n * 7 // 10)
    density = DensityMap(fourier_resample(coarse, (n, n, n)), 1.05)
    array, grid = to_grid(density, 1.5, multiple=8)
    assert grid.voxel_size == 1.5
    assert grid.padded == density.shape
    np.testing.assert_allclose(grid.inverse(array), density.data, atol=1e-5)


def blob(shape, voxel_size, centre=(0.0, 0.0, 0.0), width=3.0):
    """Gaussian at ``centre`` (z, y, x), Å from the centre voxel."""
    z, y, x = (voxel_size * (np.arange(n) - n // 2) - c for n, c in zip(shape, centre, strict=True))
    return np.exp(-(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2) / (2 * width**2))


@pytest.mark.parametrize("shape", [(47, 52, 49), (60, 60, 60), (41, 64, 48)])
def test_density_keeps_its_place_and_scale(shape):
    density = DensityMap(blob(shape, 1.05, (2.0, -3.0, 1.0)), 1.05)
    array, grid = to_grid(density, 1.5, multiple=4, minimum=48)
    np.testing.assert_allclose(array, blob(array.shape, grid.voxel_size, (2.0, -3.0, 1.0)), atol=2e-3)
    np.testing.assert_allclose(grid.inverse(array), density.data, atol=1e-3)


def test_the_new_map_says_where_it_lies():
    like = DensityMap(blob((47, 52, 49), 1.05), 1.05, nstart=(-5, 6, 7), labels=["kept"])
    array, grid = to_grid(like, 1.5, multiple=8)
    new = grid.new_map(array, like)
    assert new.nstart == (0, 0, 0)
    assert new.labels == ("kept",)
    for axis in range(3):  # x, y, z of the centre voxel, in Å
        old_centre = like.position[axis] + 1.05 * (like.shape[2 - axis] // 2)
        assert new.position[axis] + grid.voxel_size * (new.shape[2 - axis] // 2) == pytest.approx(old_centre)


def test_forward_and_inverse_are_linear_and_take_batches():
    density = DensityMap(noise(17, 18, 19), 1.05)
    _, grid = to_grid(density, 1.5, multiple=8)
    a, b = noise(17, 18, 19).astype(float), noise(19, 18, 17).astype(float).transpose(2, 1, 0)
    both = np.stack([a, b])
    forward = grid.forward(both)
    assert forward.dtype == np.float64
    np.testing.assert_allclose(grid.forward(2 * a - 3 * b), 2 * forward[0] - 3 * forward[1], atol=1e-12)
    back = grid.inverse(forward)
    np.testing.assert_allclose(grid.inverse(2 * forward[0] - 3 * forward[1]), 2 * back[0] - 3 * back[1], atol=1e-12)


def test_padding_is_continuous_and_fades_to_the_mean_of_the_border():
    density = DensityMap(np.full((10, 10, 10), 5.0) + np.arange(10), 1.5)
    array, _ = to_grid(density, 1.5, minimum=40)
    border = np.mean([f.mean() for axis in range(3) for f in np.moveaxis(density.data, axis, 0)[[0, -1]]])
    assert array[0, 0, 0] == pytest.approx(border)
    row = array[20, 20]
    assert abs(row[15] - row[14]) < 0.5  # from 5 outwards, towards 9.5
    assert np.ptp(array) == pytest.approx(np.ptp(density.data))


def test_a_constant_stays_constant():
    array, grid = to_grid(DensityMap(np.full((17, 18, 19), 0.7), 1.05), 1.5, multiple=8)
    np.testing.assert_allclose(array, 0.7, rtol=1e-5)
    np.testing.assert_allclose(grid.inverse(array), 0.7, rtol=1e-5)


def test_bad_requests():
    density = DensityMap(noise(8, 8, 8), 1.5)
    for arguments in [(0.0, 1, 1), (1.5, 0, 1), (1.5, 1, 0)]:
        with pytest.raises(GeometryError, match="must be positive"):
            to_grid(density, *arguments)
    _, grid = to_grid(density, 1.0)
    with pytest.raises(GridMismatchError, match=r"\(8, 8, 9\) is not on this grid"):
        grid.forward(noise(8, 8, 9))
    with pytest.raises(GridMismatchError, match="not on this grid"):
        grid.inverse(noise(8, 8, 8))
