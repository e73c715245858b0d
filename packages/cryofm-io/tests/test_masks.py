"""Masks fall as a raised cosine of the distance in Å, and a wrong mask is refused."""

import numpy as np
import pytest

from cryofm_io import (
    DensityMap,
    GeometryError,
    InputFileError,
    MapWarning,
    MaskError,
    automatic_mask,
    check_mask,
    mask_doubts,
    read_mask,
    soft_mask,
    spherical_mask,
    write_map,
)


def profile(distance, inner, edge):
    if distance <= inner:
        return 1.0
    return 0.0 if distance >= inner + edge else 0.5 + 0.5 * np.cos(np.pi * (distance - inner) / edge)


def test_sphere_voxel_by_voxel():
    shape = (9, 12, 11)
    mask = spherical_mask(shape, radius=4.0, soft_edge=3.0, voxel_size=1.3)
    assert mask.dtype == np.float32
    for index in np.ndindex(shape):
        distance = 1.3 * np.linalg.norm([i - n // 2 for i, n in zip(index, shape, strict=True)])
        assert mask[index] == pytest.approx(profile(distance, 4.0, 3.0), abs=1e-6)


def test_soft_mask_voxel_by_voxel():
    data = np.zeros((8, 9, 10))
    inside = np.array([[2, 3, 4], [2, 3, 5], [6, 6, 2]])
    data[tuple(inside.T)] = 1.0
    mask = soft_mask(data, threshold=1.0, dilate=2.0, soft_edge=4.0, voxel_size=1.5)
    for index in np.ndindex(data.shape):
        distance = 1.5 * min(np.linalg.norm(np.array(index) - p) for p in inside)
        assert mask[index] == pytest.approx(profile(distance, 2.0, 4.0), abs=1e-6)


def test_hard_edge():
    assert set(np.unique(spherical_mask((8, 8, 8), 3.0, 0.0, 1.0))) == {0.0, 1.0}


def test_impossible_masks():
    with pytest.raises(MaskError, match=r"no voxel reaches the threshold 2 \(largest 1\)"):
        soft_mask(np.ones((4, 4, 4)), 2.0, 1.0, 1.0, 1.5)
    for lengths in [(-1.0, 1.0, 1.5), (1.0, -1.0, 1.5), (1.0, 1.0, 0.0)]:
        with pytest.raises(GeometryError, match="must be positive"):
            spherical_mask((4, 4, 4), *lengths)


LIKE = DensityMap(np.zeros((5, 6, 7)), 1.5, origin=(1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (DensityMap(np.ones((5, 6, 8)), 1.5, origin=(1, 2, 3)), "the mask and the map differ in shape"),
        (DensityMap(np.ones((5, 6, 7)), 1.6, origin=(1, 2, 3)), r"voxel size: 1\.6 Å and 1\.5 Å"),
        (DensityMap(np.ones((5, 6, 7)), 1.5), "differ in origin"),
        (DensityMap(np.full((5, 6, 7), 1.2), 1.5, origin=(1, 2, 3)), r"1\.2; a mask lies within"),
        (DensityMap(np.full((5, 6, 7), -0.1), 1.5, origin=(1, 2, 3)), "a mask lies within"),
        (DensityMap(np.zeros((5, 6, 7)), 1.5, origin=(1, 2, 3)), "the mask is empty"),
    ],
)
def test_wrong_masks_are_refused(tmp_path, mask, message):
    with pytest.raises(MaskError, match=message):
        check_mask(mask, LIKE)
    write_map(tmp_path / "mask.mrc", mask)
    with pytest.raises(MaskError, match=rf"mask\.mrc: .*{message}"):
        read_mask(tmp_path / "mask.mrc", LIKE)


def test_a_wrong_voxel_size_of_a_mask_can_be_put_right(tmp_path):
    write_map(tmp_path / "mask.mrc", DensityMap(np.ones(LIKE.shape), 3.0, origin=LIKE.origin))
    with pytest.warns(MapWarning, match="3 Å in the file"):
        assert read_mask(tmp_path / "mask.mrc", LIKE, voxel_size=1.5).shape == LIKE.shape


def test_good_masks_are_clipped(tmp_path):
    values = np.full(LIKE.shape, 1.0002)
    values[0, 0, 0] = -0.0002
    write_map(tmp_path / "mask.mrc", DensityMap(values, 1.5, origin=LIKE.origin))
    mask = read_mask(tmp_path / "mask.mrc", LIKE)
    assert (mask.min(), mask.max()) == (0, 1)
    with pytest.raises(InputFileError, match="no such file"):
        read_mask(tmp_path / "missing.mrc", LIKE)


def test_a_mask_of_coarse_voxels_is_soft():
    z, y, x = np.ogrid[-16:16, -16:16, -16:16]
    ball = (z**2 + y**2 + x**2 < 36) + np.random.default_rng(0).normal(size=(32, 32, 32)) / 2
    ball = np.pad(ball, 8)
    assert mask_doubts(automatic_mask(ball, 12.0)) == ()
    hard = automatic_mask(ball, 12.0, resolution=10.0, dilate=3.0, soft_edge=6.0)
    assert "hard" in mask_doubts(hard)[0]


def test_what_speaks_against_a_mask():
    ball = spherical_mask((24, 24, 24), radius=6.0, soft_edge=6.0, voxel_size=1.5)
    two = np.concatenate((ball, ball))
    assert mask_doubts(two) == ("the mask is in 2 pieces, the largest 50%: dust, or a part left out?",)
    (cut,) = mask_doubts(ball[:, 12:])
    assert "side of the box" in cut
    (full,) = mask_doubts(np.ones((8, 8, 8)))
    assert "100% of the box" in full
