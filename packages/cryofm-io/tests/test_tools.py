"""What fsc.py, mask.py, score.py and inspect_map.py call, by their parts."""

import attrs
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import cryofm_io as io


@pytest.fixture(scope="module")
def halves():
    rng = np.random.default_rng(1)
    ball = 5 * io.spherical_mask((24, 26, 28), 9.0, 4.0, 1.5)
    return [io.DensityMap(ball + rng.normal(size=ball.shape).astype(np.float32) + 7, 1.5, (1, 2, 3)) for _ in range(2)]


def test_fsc_of_halves_is_that_of_its_parts(halves):
    one, two = halves
    found = io.half_map_fsc(one, two, local=True)
    mean = (one.data + two.data) / 2
    assert_array_equal(found.mask, io.automatic_mask(mean - np.median(mean), 1.5))
    curves = io.masked_fsc(one.data, two.data, 1.5, found.mask)
    assert_array_equal(found.named()["corrected"].correlation, curves.corrected.correlation)
    area = found.cones.auc
    assert found.named()["worst direction"].auc <= found.named()["best direction"].auc
    assert_array_equal(found.named()["worst direction"].correlation, found.cones.correlation[area.argmin()])
    assert found.local.position == found.mean.position == one.position
    assert_array_equal(found.local.data, io.local_resolution(one.data, two.data, 1.5, found.mask))
    mask = np.ones(one.shape, np.float32)
    assert io.half_map_fsc(one, two, mask).mask is mask
    with pytest.raises(io.GridMismatchError, match="half maps"):
        io.half_map_fsc(one, attrs.evolve(two, voxel_size=2.0))
    flat = attrs.evolve(one, data=np.zeros_like(one.data))
    with pytest.raises(io.MaskError, match="--mask"):
        io.half_map_fsc(flat, flat)


def test_a_mask_of_a_map_is_the_automatic_one_wherever_the_solvent_lies(halves):
    data = halves[0].data
    made = io.mask_of_map(data, 1.5)
    assert np.allclose(made.mask, io.automatic_mask(data - np.median(data), 1.5), atol=1e-3)
    assert 7 < made.threshold < 12
    assert_array_equal(made.smooth, io.low_pass(data, made.low_pass, 1.5))
    again = io.mask_of_map(data, 1.5, threshold=made.threshold, dilate=6.0, soft_edge=3.0)
    assert_array_equal(again.mask, io.soft_mask(made.smooth, made.threshold, 6.0, 3.0, 1.5))
    with pytest.raises(io.MaskError, match="nothing stands out"):
        io.mask_of_map(np.zeros_like(data), 1.5)


def test_a_score_is_of_neither_scale_nor_background(halves):
    one, two = halves
    score = io.score_map(attrs.evolve(one, data=3 * one.data - 50), two, finest=6.0)
    x, y = (m.data.astype(np.float64) - m.data.mean(dtype=np.float64) for m in halves)
    best = np.linalg.lstsq(x.reshape(-1, 1), y.ravel(), rcond=None)[1][0] / np.sum(y**2)
    assert score.error == pytest.approx(best, rel=1e-4)
    whole = io.fsc(one.data, two.data, 1.5)
    assert len(score.fsc.frequency) == (whole.frequency <= 1 / 6).sum()
    assert np.allclose(score.fsc.correlation, whole.correlation[: len(score.fsc.frequency)], atol=1e-4)
    with pytest.raises(io.GridMismatchError):
        io.score_map(one, attrs.evolve(two, voxel_size=2.0))


def test_halves_are_told_from_what_is_none(halves):
    one, two = halves
    found = io.inspect_halves(one, two)
    assert found.found.startswith("yes")
    assert found.fsc.told(0.143) in found.found
    same = io.inspect_halves(one, one)
    assert (same.found, same.fsc) == ("no", None)
    assert same.trouble


def test_a_resolution_in_words():
    def curve(*values):
        return io.FscCurve(np.array([0.1, 0.2, 0.25]), np.array(values), np.ones(3, int))

    assert curve(0.9, 0.1, 0.0).told(0.5) == "6.67 Å"
    assert curve(0.9, 0.8, 0.7).told(0.5) == "≤ 4.00 Å"
    assert curve(0.1, 0.0, 0.0).told(0.5) == "nowhere"
