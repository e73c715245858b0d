"""NaN and infinity pass no check, and the scale of a map is no matter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryofm_io import (
    Affine,
    CryoFMError,
    DensityMap,
    ImageCtf,
    ImageStack,
    MapSize,
    Poses,
    conical_fsc,
    fsc,
    local_resolution,
    masked_fsc,
    normalise_clean,
    particle_diameter,
    soft_mask,
    spherical_mask,
    write_map,
)

CUBE = np.random.default_rng(5).normal(size=(8, 8, 8))
BAD = [np.nan, np.inf, -np.inf]


def with_one(value):
    data = CUBE.copy()
    data[1, 2, 3] = value
    return data


@pytest.mark.parametrize("value", BAD)
def test_values(value):
    data = with_one(value)
    with pytest.raises(CryoFMError, match=r"value of .* at \(1, 2, 3\)"):
        DensityMap(data, 1.5)
    with pytest.raises(CryoFMError, match=r"value of .* at \(1, 2, 3\)"):
        ImageStack(data, 1.5)
    with pytest.raises(CryoFMError, match=r"value of .* at \(1, 2, 3\)"):
        soft_mask(data, 0.5, 1.0, 1.0, 1.5)
    with pytest.raises(CryoFMError, match=r"value of .* at \(1, 2, 3\)"):
        normalise_clean(data)
    with pytest.raises(CryoFMError, match="voltage_kv of image 1"):
        ImageCtf(*(np.array([1.0, value if i == 3 else 1.0]) for i in range(7)))


CORRELATIONS = {
    "fsc": lambda a, b, mask: [fsc(a, b, 1.5, mask).correlation],
    "masked": lambda a, b, mask: [masked_fsc(a, b, 1.5, mask).masked.correlation],
    "conical": lambda a, b, mask: [conical_fsc(a, b, 1.5, mask, half_angle_deg=40.0).auc],
    "local": lambda a, b, mask: [local_resolution(a, b, 1.5, mask, window=8)],
}
HALVES = [np.random.default_rng(i).normal(size=(16, 16, 16)) + np.eye(16)[3] for i in (1, 2)]
MASK = np.ones((16, 16, 16))


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("kind", CORRELATIONS)
def test_the_unit_of_density_is_no_matter(kind, scale):
    one, two = HALVES
    for made, wanted in zip(
        CORRELATIONS[kind](scale * one, two, MASK), CORRELATIONS[kind](one, two, MASK), strict=True
    ):
        np.testing.assert_allclose(made, wanted, atol=1e-3)


@pytest.mark.parametrize("value", [*BAD, 0.0])
@pytest.mark.parametrize("kind", CORRELATIONS)
def test_masks_and_maps_of_which_nothing_can_be_told(kind, value):
    one, two = HALVES
    with pytest.raises(CryoFMError):
        CORRELATIONS[kind](one, two, np.full(MASK.shape, value))
    if value:
        with pytest.raises(CryoFMError, match="value of"):
            CORRELATIONS[kind](one, np.where(MASK * np.eye(16) > 0, value, two), MASK)


def test_what_no_file_can_hold(tmp_path):
    for wrong in ({"nstart": (10**12, 0, 0)}, {"origin": (1e300, 0, 0)}):
        with pytest.raises(CryoFMError, match=r"1e.300|32 bits"):
            DensityMap(CUBE, 1.5, **wrong)
    with pytest.raises(CryoFMError, match="a cell of 8e-300"):
        write_map(tmp_path / "small.mrc", DensityMap(CUBE, 1e-300))
    assert not list(tmp_path.iterdir())
    with pytest.raises(CryoFMError, match="complex values"):
        DensityMap(1j * CUBE, 1.5)
    with pytest.raises(CryoFMError, match=r"angles are \(K, 3\)"):
        Poses.from_angles(np.zeros((3, 2)), np.zeros((3, 2)))


def test_no_values_at_all():
    with pytest.raises(CryoFMError, match="no values at all"):
        DensityMap(np.zeros((0, 4, 4)), 1.5)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    "call",
    [
        lambda x: DensityMap(CUBE, x),
        lambda x: DensityMap(CUBE, 1.5, origin=(0, x, 0)),
        lambda x: soft_mask(CUBE, x, 1.0, 1.0, 1.5),
        lambda x: soft_mask(CUBE, 0.5, x, 1.0, 1.5),
        lambda x: soft_mask(CUBE, 0.5, 1.0, x, 1.5),
        lambda x: soft_mask(CUBE, 0.5, 1.0, 1.0, x),
        lambda x: MapSize((8, 8, 8), x),
        lambda x: particle_diameter(CUBE, x),
        lambda x: spherical_mask((4, 4, 4), x, 1.0, 1.5),
        lambda x: spherical_mask((4, 4, 4), 1.0, x, 1.5),
        lambda x: spherical_mask((4, 4, 4), 1.0, 1.0, x),
        lambda x: Affine(x),
        lambda x: Affine(1.0, x),
        lambda x: fsc(CUBE, CUBE, x),
    ],
)
def test_lengths_and_scales(call, value):
    with pytest.raises(CryoFMError):
        call(value)


@settings(max_examples=40, deadline=None)
@given(st.floats(-37, 37), st.sampled_from([np.float32, np.float64]))
def test_fsc_of_any_scale(power, kind):
    a = CUBE.astype(kind)
    b = a * kind(10.0**power)
    np.testing.assert_allclose(fsc(b, a, 1.5).correlation, 1, atol=1e-5)
    np.testing.assert_allclose(fsc(a, -b, 1.5).correlation, -1, atol=1e-5)


@pytest.mark.parametrize("factor", [1e30, 1e-30, 1e300, 1e-300])
def test_fsc_beyond_single_precision(factor):
    np.testing.assert_allclose(fsc(factor * CUBE, CUBE, 1.5).correlation, 1, atol=1e-12)
