"""Crops lie where they are said to lie, whatever the units that a prior is trained in."""

import attrs
import numpy as np
import pytest

from cryofm_model import CryoFMError, Normalization
from cryofm_model.data import MapSet
from cryofm_model.data.augment import cut

UNITS = [Normalization(), Normalization(0.0, 1.0), Normalization(0.5, 0.5), Normalization(0.1, 0.02)]


def densities():
    """Two maps of densities from 0 to 1, of which none is so near 0.13 that float16 might mistake it."""
    maps = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        density = rng.uniform(0, 0.1, (20, 22, 24))
        density[3 : 9 + 4 * seed, 5:11, 6:12] = rng.uniform(0.2, 1, (6 + 4 * seed, 6, 6))
        maps.append(density)
    return maps


def map_set(units, **options):
    return MapSet([((d - units.mean) / units.std).astype(np.float16) for d in densities()], units, **options)


def test_places_and_weights_do_not_depend_on_the_units():
    found = []
    for units in UNITS:
        maps = map_set(units)
        crops = maps.crops(20, 8, np.random.default_rng(0)).numpy() * units.std + units.mean
        found.append((maps.weights, crops))
    for weights, crops in found[1:]:
        assert np.array_equal(weights, found[0][0])
        np.testing.assert_allclose(crops, found[0][1], atol=1 / 250)


def test_with_the_usual_units_nothing_has_changed():
    """The crops of the rule that these units had: voxels above 1.0 in model units."""
    maps = map_set(Normalization(), turn="none")
    expected = np.array([np.count_nonzero(z > 1.0) for z in maps.maps]) ** 0.6
    assert np.array_equal(maps.weights, expected / expected.sum())
    rng = np.random.default_rng(5)
    crops = []
    for index in rng.choice(2, 50, p=maps.weights):
        density = maps.maps[index]
        occupied = []
        while not len(occupied):
            tried = rng.integers(density.size, size=32)
            occupied = tried[density.reshape(-1)[tried] > 1.0]
        centre = np.array(np.unravel_index(occupied[0], density.shape)) + rng.integers(-2, 3, 3)
        crops.append(cut(density, centre, (8, 8, 8), maps.empty))
    assert np.array_equal(crops, maps.crops(50, 8, np.random.default_rng(5)).numpy())


def test_a_level_between_the_values_of_float16_is_exact_in_the_usual_units():
    z = np.full((8, 8, 8), -0.04 / 0.09, np.float16)
    z[0, 0, :3] = 1.0, np.nextafter(np.float16(1), np.float16(2)), np.nextafter(np.float16(1), np.float16(0))
    crops = MapSet([z], Normalization(), turn="none").crops(20, 3, np.random.default_rng(0))
    assert (crops[:, 1, 1, 1] == float(z[0, 0, 1])).all()


@pytest.mark.parametrize("units", UNITS)
def test_maps_of_any_units_are_read(units, tmp_path):
    cryofm_io = pytest.importorskip("cryofm_io")
    grid = np.stack(np.meshgrid(*map(np.arange, (24, 24, 24)), indexing="ij"), -1)
    blob = np.exp(-((grid - 12) ** 2).sum(-1) / 60)
    cryofm_io.write_map(tmp_path / "a.mrc", cryofm_io.DensityMap(blob, 1.5))
    maps = MapSet.from_files([tmp_path / "a.mrc"], units, 1.5)
    assert maps.empty == -units.mean / units.std
    assert maps.crops(2, 8, np.random.default_rng(0)).isfinite().all()


@pytest.mark.parametrize("units", [Normalization(100.0, 1.0), Normalization(0.0, 1e-6), Normalization(0.0, 1e9)])
def test_units_in_which_float16_is_too_coarse_are_refused(units):
    with pytest.raises(CryoFMError, match=r"float16, which shows full density in steps of"):
        MapSet([np.ones((4, 4, 4), np.float16)], units)
    pytest.importorskip("cryofm_io")
    with pytest.raises(CryoFMError, match=r"float16"):
        MapSet.from_files([], units, 1.5)


@pytest.mark.parametrize("units", [(float("nan"), 1.0), (0.0, float("inf")), (0.0, -1.0)])
def test_units_that_are_none_are_refused(units):
    with pytest.raises(CryoFMError, match=r"Normalization: (mean|std) must be"):
        Normalization(*units)


@pytest.mark.parametrize("side", [4, 5])
def test_uniform_places_are_uniform(side):
    """Chi-squared over all places within the map; each of its voxels has a value of its own."""
    shape = (9, 10, 11)
    z = np.arange(990, dtype=np.float16).reshape(shape) + 2
    maps = MapSet([z], Normalization(), place="uniform", turn="none")
    places = [n - side + 1 for n in shape]
    crops = maps.crops(20 * np.prod(places), side, np.random.default_rng(1)).numpy()
    first = crops[:, 0, 0, 0].astype(int) - 2
    found = np.array(np.unravel_index(first, shape))
    assert (found.max(1) == np.array(places) - 1).all()  # none reaches beyond, all are reached
    for crop, (a, b, c) in zip(crops[:20], found.T[:20], strict=True):
        assert np.array_equal(crop, z[a : a + side, b : b + side, c : c + side])
    counts = np.bincount(np.ravel_multi_index(found, places), minlength=np.prod(places))
    freedom = counts.size - 1
    chi_squared = ((counts - 20) ** 2 / 20).sum()
    assert abs(chi_squared - freedom) < 4 * np.sqrt(2 * freedom)


def test_a_map_that_is_smaller_than_the_crop_lies_anywhere_in_it():
    z = np.full((3, 4, 12), 5, np.float16)
    maps = MapSet([z], Normalization(), place="uniform", turn="none")
    crops = maps.crops(400, 6, np.random.default_rng(0)).numpy()
    inside = crops == 5
    assert (inside.sum((1, 2, 3)) == 3 * 4 * 6).all()
    assert np.array_equal(np.unique(inside.any((2, 3)).argmax(1)), range(4))
    assert np.array_equal(np.unique(inside.any((1, 3)).argmax(1)), range(3))


def test_places_around_density_are_not_uniform():
    maps = map_set(Normalization(), turn="none")
    ours, uniform = (
        attrs.evolve(maps, place=place).crops(200, 8, np.random.default_rng(0)).numpy()
        for place in ("density", "uniform")
    )
    assert (ours.max((1, 2, 3)) > 1).all()
    assert (uniform.max((1, 2, 3)) < 1.2).mean() > 0.2


def test_recipes_may_ask_for_uniform_places():
    pytest.importorskip("tqdm")
    from cryofm_model.train import DataConfig

    assert DataConfig(place="uniform").place == "uniform"
