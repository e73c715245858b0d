"""Half maps from which noise cannot be estimated are refused; suspicious ones get a warning."""

import warnings

import attrs
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cryofm_io import (
    DensityMap,
    GridMismatchError,
    HalfMapError,
    MapWarning,
    check_contrast,
    check_half_maps,
    spherical_mask,
)
from cryofm_io.half_noise import _amplitude, _blocks, _centres
from cryofm_io.halves import _rise, _scale

SHAPE = (36, 40, 37)


@pytest.fixture(scope="module")
def halves():
    """Blobs of positive density, under noise that hides them voxel by voxel."""
    rng = np.random.default_rng(0)
    points = np.zeros(SHAPE)
    points[tuple(rng.integers(14, 24, size=(3, 40)))] = 1
    signal = gaussian_filter(points, 1.5)
    signal /= signal.max()
    return [DensityMap(signal + rng.normal(size=SHAPE), 1.5) for _ in range(2)]


def changed(halves, function):
    return [attrs.evolve(half, data=function(half.data)) for half in halves]


def test_good_halves_pass_without_a_warning(halves):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_half_maps(*halves)


def test_different_grids(halves):
    first, second = halves
    with pytest.raises(GridMismatchError, match=r"half maps differ in voxel size: 1\.5 Å and 1\.6 Å"):
        check_half_maps(first, attrs.evolve(second, voxel_size=1.6))
    with pytest.raises(GridMismatchError, match="shape"):
        check_half_maps(first, attrs.evolve(second, data=second.data[1:]))
    with pytest.raises(GridMismatchError, match="origin"):
        check_half_maps(first, attrs.evolve(second, origin=(1.5, 0, 0)))


@pytest.mark.parametrize("allow_masked", [False, True])
@pytest.mark.parametrize("factor", [1.0, 1.7])
def test_equal_halves(halves, allow_masked, factor):
    same = attrs.evolve(halves[0], data=halves[0].data * np.float32(factor))
    with pytest.raises(HalfMapError, match="are equal; noise cannot be estimated"):
        check_half_maps(halves[0], same, allow_masked=allow_masked)


def low_pass(data, cutoff=0.3):
    k = [np.fft.fftfreq(n) for n in data.shape]
    radius = np.sqrt(k[0][:, None, None] ** 2 + k[1][:, None] ** 2 + k[2] ** 2)
    return np.fft.ifftn(np.fft.fftn(data) * (radius < cutoff)).real


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x * spherical_mask(SHAPE, 20, 6, 1.5), "constant in .* of the box"),
        (lambda x: (x - 2) * spherical_mask(SHAPE, 20, 6, 1.5) + 2, "constant in .* of the box"),
        (low_pass, "no power at Nyquist"),
        (lambda x: gaussian_filter(x, 3, mode="wrap"), "no power at Nyquist"),
    ],
)
@pytest.mark.filterwarnings("ignore::cryofm_io.MapWarning")
def test_masked_and_filtered_halves(halves, function, message):
    masked = changed(halves, function)
    with pytest.raises(HalfMapError, match=message):
        check_half_maps(*masked)
    check_half_maps(*masked, allow_masked=True)


def without_a_cone(data, half_angle_deg):
    """Nothing of the directions near the axis z, as views around it leave."""
    z, y, x = np.meshgrid(*(np.fft.fftfreq(n) for n in data.shape), indexing="ij")
    seen = np.hypot(x, y) >= np.tan(np.radians(half_angle_deg)) * np.abs(z)
    return np.fft.ifftn(np.fft.fftn(data) * seen).real


@pytest.mark.parametrize("half_angle_deg", [10, 20, 40])
def test_halves_of_preferred_views_are_not_filtered(halves, half_angle_deg):
    check_half_maps(*changed(halves, lambda x: without_a_cone(x, half_angle_deg)))


@pytest.mark.parametrize("grey_levels", [1, 2, 5])  # a standard deviation
def test_halves_of_few_grey_levels_are_not_masked(halves, grey_levels):
    check_half_maps(*changed(halves, lambda x: np.clip(np.round(grey_levels * x), -128, 127)))


def test_one_inverted_half(halves):
    with pytest.raises(HalfMapError, match=r"correlation of -0\.\d+: one is inverted"):
        check_half_maps(halves[0], attrs.evolve(halves[1], data=-gaussian_filter(halves[1].data, 1)))


@pytest.mark.slow
def test_halves_without_a_molecule_contradict_each_other_by_chance_only():
    rng = np.random.default_rng(0)
    for _ in range(20):
        check_half_maps(*(DensityMap(rng.normal(size=(16, 16, 16)), 1.5) for _ in range(2)))


def test_noise_that_the_halves_share(halves):
    shared = np.random.default_rng(1).normal(size=SHAPE) * 20
    with pytest.raises(HalfMapError, match=r"FSC of 1\.00 at Nyquist"):
        check_half_maps(*changed(halves, lambda x: x + shared))


def test_scales(halves):
    first, second = halves
    with pytest.warns(MapWarning, match=r"scale is 1\.[12]\d* times the first's"):
        check_half_maps(first, attrs.evolve(second, data=second.data * np.float32(1.2)))


def test_inverted_contrast(halves):
    with pytest.warns(MapWarning, match="inverted contrast"):
        check_half_maps(*changed(halves, np.negative))
    with pytest.warns(MapWarning, match="inverted contrast"):
        check_contrast(1e4 - halves[0].data)


@pytest.mark.slow
def test_sharpened_halves_are_told():
    rng = np.random.default_rng(0)
    k2 = sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(32, 1.5),) * 3, indexing="ij"))

    def halves(b):
        for _ in range(2):
            noise = np.fft.fftn(rng.normal(size=(32, 32, 32)))
            yield DensityMap(np.fft.ifftn(noise * np.exp(b * k2 / 4)).real, 1.5)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_half_maps(*halves(0.0))
    with pytest.warns(MapWarning, match="sharpened half maps"):
        check_half_maps(*halves(150.0))


@pytest.mark.parametrize("n", [12, 13, 17, 24, 29])
def test_places_of_the_cubes_are_the_means_of_their_voxels(n):
    index = np.broadcast_to((np.arange(n) - n // 2) / n, (n, n, n))
    np.testing.assert_allclose(_blocks(index)[0, 0], _centres(n), atol=1e-12)


def test_the_scale_of_halves_is_told_by_the_shells_that_agree():
    """By shells of FSC 1, ½ and 0, weighted by its fourth power; without any it is 1."""
    one, two = np.array([8.0, 2.0, 5.0]), np.array([2.0, 2.0, 90.0])
    cross = np.array([4.0, 1.0, -1.0])
    sums = np.stack([cross, one, two, np.ones(3)])
    assert _scale(sums) == pytest.approx(((8 + 2 / 16) / (2 + 2 / 16)) ** 0.5)
    assert _scale(np.stack([-cross.clip(0), one, two, np.ones(3)])) == 1
    assert _scale(np.zeros((4, 3))) == 1


def test_the_rise_is_the_last_tenth_over_what_is_around_a_quarter():
    count = np.arange(1.0, 41) ** 2
    power = np.full(40, 7.0)
    power[8:12], power[36:] = 2.0, 10.0
    assert _rise(power * count, count) == pytest.approx(5)


def test_no_amplitude_is_so_small_that_what_is_divided_by_it_is_all_there_is():
    assert _amplitude(np.array([4.0, 1.0, 0.0])) == pytest.approx([2.0, 1.0, 2e-4])
