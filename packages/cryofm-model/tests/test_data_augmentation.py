"""Crops and their turns: every value from the right place, corners from the map, rotations uniform and exact."""

from collections import Counter

import numpy as np
import pytest

from cryofm_model import CryoFMError, Normalization
from cryofm_model.data import MapSet
from cryofm_model.data.augment import cut, cut_rotated, random_rotation, rot24

UNITS = Normalization()
EMPTY = -UNITS.mean / UNITS.std


def waves(position, centre, slowest=20.0):
    """A smooth function of places (..., 3), without symmetry."""
    z, y, x = np.moveaxis(position - centre, -1, 0) * 2 * np.pi / slowest
    return np.sin(z) + 0.7 * np.cos(2 * y + 0.3) + 0.5 * np.sin(x - y + 1.0) + 4


def lattice(shape):
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype(float)


@pytest.mark.parametrize("centre", [(0, 0, 0), (5, 3, 8), (9, 7, 6), (-20, 3, 3), (4, 30, 4)])
@pytest.mark.parametrize("shape", [(4, 5, 6), (30, 3, 1)])
def test_a_cut_box_by_brute_force(centre, shape):
    density = np.random.default_rng(0).normal(size=(10, 8, 9)).astype(np.float32)
    box = cut(density, np.array(centre), shape, fill=-7)
    for index in np.ndindex(shape):
        place = [c - n // 2 + i for c, n, i in zip(centre, shape, index, strict=True)]
        inside = all(0 <= p < n for p, n in zip(place, density.shape, strict=True))
        assert box[index] == (density[tuple(place)] if inside else -7)


def test_all_24_turns_come_up_equally_often():
    cube = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    rng = np.random.default_rng(0)
    counts = Counter(rot24(cube, rng).tobytes() for _ in range(4800))
    assert len(counts) == 24
    chi2 = sum((n - 200) ** 2 / 200 for n in counts.values())
    assert chi2 < 45  # 23 degrees of freedom: 1 in 250 would be above, and the seed is fixed


def test_random_rotations_are_uniform():
    """Of a uniform rotation, any vector's image is uniform on the sphere, and E tr² = 1 (the character's norm)."""
    rng = np.random.default_rng(0)
    rotations = np.stack([random_rotation(rng) for _ in range(4000)])
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (4000, 3, 3)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    images = rotations @ np.array([0.6, 0.0, 0.8])
    np.testing.assert_allclose(images.mean(0), 0, atol=0.04)
    np.testing.assert_allclose(images.T @ images / 4000, np.eye(3) / 3, atol=0.03)
    traces = rotations.trace(axis1=1, axis2=2)
    assert traces.mean() == pytest.approx(0, abs=0.06)
    assert (traces**2).mean() == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("side", [9, 12])
def test_a_turned_crop_is_the_function_at_turned_places(side):
    pytest.importorskip("scipy")
    centre = np.array([25, 24, 23])
    density = waves(lattice((50, 48, 47)), centre).astype(np.float32)
    for seed in range(4):
        rotation = random_rotation(np.random.default_rng(seed))
        crop = cut_rotated(density, centre, side, rotation, fill=EMPTY)
        places = (lattice((side,) * 3) - side // 2) @ rotation.T + centre
        np.testing.assert_allclose(crop, waves(places, centre), atol=2e-3)  # corners too: nothing is filled


def test_turned_by_a_cube_rotation_nothing_is_interpolated():
    pytest.importorskip("scipy")
    density = np.random.default_rng(0).uniform(0, 1, (30, 30, 30)).astype(np.float32)
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    crop = cut_rotated(density, np.array([14, 15, 16]), 7, quarter, fill=0)
    straight = density[11:18, 12:19, 13:20]
    np.testing.assert_allclose(crop, np.rot90(straight, -1, (0, 1)), atol=1e-3)


def test_a_cubic_spline_keeps_the_fine_detail():
    """Power at 4 Å (0.375 cycles a voxel of 1.5 Å) after a turn, where trilinear interpolation keeps about half."""
    pytest.importorskip("scipy")
    wave = np.cos(2 * np.pi * 0.375 * lattice((60, 60, 60))[..., 0]).astype(np.float32)
    rng = np.random.default_rng(0)
    kept = [cut_rotated(wave, np.full(3, 30), 16, random_rotation(rng), -9).var() / wave.var() for _ in range(8)]
    assert min(kept) > 0.75


@pytest.fixture
def density():
    z = np.full((40, 36, 32), EMPTY, np.float16)
    z[4:9, 20:30, 6:12] = np.random.default_rng(0).uniform(2, 9, (5, 10, 6)).astype(np.float16)
    return z


@pytest.mark.parametrize("turn", ["none", "rot24", "so3"])
def test_a_crop_holds_density_and_nothing_below_solvent(density, turn):
    if turn == "so3":
        pytest.importorskip("scipy")
    crops = MapSet([density], UNITS, turn=turn).crops(40, 16, np.random.default_rng(0)).numpy()
    assert crops.dtype == np.float32
    assert (crops.max((1, 2, 3)) > 1).all()
    assert crops.min() == np.float32(EMPTY)


@pytest.mark.slow
def test_centres_are_the_dilated_mask(density):
    """All of it is reached, and nothing beyond: the mask's voxels moved by up to a quarter of the side."""
    padded = np.pad(density.astype(np.float32), 8, constant_values=np.float32(EMPTY))
    boxes = np.lib.stride_tricks.sliding_window_view(padded, (8, 8, 8))  # box c + 4 has its voxel 4 at c
    mask = np.argwhere(density > 1)
    low, high = mask.min(0) - 2, mask.max(0) + 2
    z, y, x = (slice(first + 4, last + 5) for first, last in zip(low, high, strict=True))
    found = set()
    for crop in MapSet([density], UNITS, turn="none").crops(400, 8, np.random.default_rng(0)).numpy():
        centres = np.argwhere((boxes[z, y, x] == crop).all((-3, -2, -1)))
        assert len(centres)
        found.update(map(tuple, centres + low))
    assert np.array_equal(np.min(list(found), 0), low)
    assert np.array_equal(np.max(list(found), 0), high)


def test_the_centre_crop_is_the_middle(density):
    maps = MapSet([density], UNITS, place="centre", turn="none")
    crops = maps.crops(2, 10, np.random.default_rng(0)).numpy()
    assert np.array_equal(crops[0], density[15:25, 13:23, 11:21].astype(np.float32))
    assert np.array_equal(crops[0], crops[1])


def test_occupied_voxels_are_found_equally_often():
    z = np.full((24, 20, 22), EMPTY, np.float16)
    z[[3, 14, 23], [5, 5, 19], [0, 7, 21]] = 5, 6, 7
    crops = MapSet([z], UNITS, turn="none").crops(600, 3, np.random.default_rng(0))  # 3 // 4 = 0: not moved
    assert (crops[:, 1, 1, 1] > 4).all()
    counts = Counter(crops[:, 1, 1, 1].tolist())
    assert [counts[value] for value in (5, 6, 7)] == pytest.approx([200, 200, 200], abs=45)


@pytest.mark.parametrize("option", [{"turn": "sideways"}, {"place": "edge"}])
def test_unknown_augmentations_are_refused(density, option):
    with pytest.raises(ValueError, match="must be one of"):
        MapSet([density], UNITS, **option)


def test_a_set_without_maps_is_refused():
    with pytest.raises(CryoFMError, match="no density to train on in 0 of 0 maps"):
        MapSet([], UNITS)
