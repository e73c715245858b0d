"""What people give for half maps: good ones are taken, each kind of others is refused by name."""

import logging
import warnings

import half_cases as cases
import numpy as np
import pytest
from scipy.ndimage import fourier_shift, gaussian_filter, zoom

from cryofm_io import DensityMap, HalfMapError, check_half_maps

DEVIATIONS = [0.004, 0.05, 0.3]  # of the noise; with the least the halves agree up to Nyquist


def check(first, second, **how):
    check_half_maps(DensityMap(first, 1.5), DensityMap(second, 1.5), **how)


GOOD = {
    **{f"noise {deviation}": (lambda d=deviation: cases.halves(d)) for deviation in (*DEVIATIONS, 3.0)},
    "odd box": lambda: cases.halves(n=37),
    "small box": lambda: cases.halves(n=18),
    "tiny box": lambda: np.random.default_rng(0).normal(size=(2, 10, 10, 10)),
    "flat box": lambda: np.random.default_rng(0).normal(size=(2, 14, 40, 27)),
    "blurred": lambda: [gaussian_filter(cases.molecule(), 1.5) + cases.noise((40,) * 3, 0.01, i) for i in (0, 1)],
    "noisier molecule": lambda: [
        cases.molecule() + (1 + cases.mask()) * cases.noise((40,) * 3, 0.05, i) for i in (0, 1)
    ],
    "an unsure molecule": lambda: [  # as of few views: where it is, the halves differ by more than noise
        cases.molecule() * (1 + gaussian_filter(cases.noise((40,) * 3, 2.5, i), 1.5))
        + cases.noise((40,) * 3, 0.01, i + 2)
        for i in (0, 1)
    ],
    "low-frequency noise": lambda: [x + 0.2 * gaussian_filter(x - cases.molecule(), 2) for x in cases.halves()],
    "integers": lambda: [np.round(10 * x) for x in cases.halves(0.3)],
    "unequal noise": lambda: [cases.molecule() + cases.noise((40,) * 3, d, i) for i, d in enumerate((0.01, 0.014))],
    "symmetric": lambda: [_four_fold(cases.molecule(39)) + cases.noise((39,) * 3, 0.05, i) for i in (0, 1)],
    "RELION": lambda: [cases.flattened(x) for x in cases.halves()],
    "RELION, little noise": lambda: [cases.flattened(x) for x in cases.halves(0.004)],
}


def _four_fold(data):
    return sum(np.rot90(data, k, axes=(1, 2)) for k in range(4))


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.slow
def test_good_halves(kind, caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, logger="cryofm_io"):
        warnings.simplefilter("error")
        check(*GOOD[kind]())
    assert ("as RELION leaves them" in caplog.text) == ("RELION" in kind)


@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.slow
def test_a_full_map_for_a_half(deviation):
    first, second = cases.halves(deviation)
    for full in ((first + second) / 2, first + second):
        for pair in ((full, second), (first, full)):
            with pytest.raises(HalfMapError, match=r"share their noise: .* as if one were the full map"):
                check(*pair)
    full = [cases.flattened(x) for x in ((first + second) / 2, second)]
    with pytest.raises(HalfMapError, match="share their noise"):
        check(*full)


@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.parametrize("outside", ["dither", "density", "floor", "sphere"])
@pytest.mark.slow
def test_masked_halves_whose_outside_is_not_equal(deviation, outside):
    rng = np.random.default_rng(4)
    mask = cases.mask()
    if outside == "sphere":
        axis = (np.arange(40) - 20) ** 2
        mask = (axis[:, None, None] + axis[:, None] + axis < 15**2).astype(float)
    floor = {"density": 0.01, "floor": 0.2}.get(outside, 0.0)
    dither = 1e-6 if outside in ("dither", "sphere") else 0.0
    made = [x * (floor + (1 - floor) * mask) + dither * rng.normal(size=x.shape) for x in cases.halves(deviation)]
    with pytest.raises(HalfMapError, match="no noise in some parts of the box: masked"):
        check(*made)
    check(*made, allow_masked=True)


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_a_mask_of_a_hundredth_of_the_box(deviation):
    axis = (np.arange(40) - 20) ** 2
    ball = axis[:, None, None] + axis[:, None] + axis < 6**2  # 1.4 %
    mask = 0.2 + 0.8 * gaussian_filter(ball.astype(float), 1.0)
    with pytest.raises(HalfMapError, match="no noise in some parts of the box: masked"):
        check(*(x * mask for x in cases.halves(deviation)))


@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.slow
def test_a_filter_that_makes_edges(deviation):
    made = [gaussian_filter(x, 1.5) for x in cases.halves(deviation)]  # as if the box were mirrored at its sides
    with pytest.raises(HalfMapError, match="no power at Nyquist"):
        check(*made)


@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.slow
def test_one_half_is_masked(deviation):
    first, second = cases.halves(deviation)
    dithered = second * cases.mask() + cases.noise(first.shape, 1e-6, 5)
    # With next to no noise the other half's says nothing, and only an outside that is exactly constant is seen.
    for masked in (np.where(np.arange(40) < 14, 0, second), *([dithered] if deviation > 0.01 else [])):
        for pair in ((first, masked), (masked, first)):
            with pytest.raises(HalfMapError, match=r"of the box: masked"):
                check(*pair)


@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.parametrize("more", [2, 3, 14, 40])
@pytest.mark.slow
def test_halves_resampled_to_finer_voxels(deviation, more):
    made = [cases.finer(x, more) for x in cases.halves(deviation)]
    with pytest.raises(HalfMapError, match=r"no power at Nyquist .* resampled to finer voxels"):
        check(*made)
    check(*made, allow_masked=True)


@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.parametrize(("sides", "order"), [((32, 40), 1), ((40, 44), 3), ((20, 40), 3), ((27, 40), 1)])
@pytest.mark.slow
def test_halves_that_were_interpolated(deviation, sides, order):
    made = [zoom(x, sides[1] / sides[0], order=order) for x in cases.halves(deviation, n=sides[0])]
    with pytest.raises(HalfMapError, match=r"resampled by interpolation|no power at Nyquist"):
        check(*made)
    check(*made, allow_masked=True)


@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.slow
def test_halves_resampled_to_coarser_voxels_are_good(deviation):
    check(*(cases.finer(x, -8) for x in cases.halves(deviation)))


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_halves_of_which_some_particles_are_in_both(deviation):
    first, second = cases.halves(deviation)
    third = cases.molecule() + cases.noise(first.shape, deviation, 77)
    # 39 % and 50 % of the noise are the same.
    for pair in ((0.7 * first + 0.3 * second, second), (first + second, first + third)):
        with pytest.raises(HalfMapError, match="share their noise"):
            check(*pair)


@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.parametrize("how", ["finer", "blurred", "interpolated"])
def test_one_half_alone_is_resampled_or_filtered(deviation, how):
    raw, other = cases.halves(deviation)
    if how == "finer":
        other = cases.finer(cases.halves(deviation, n=36)[1], 4)
    elif how == "blurred":
        other = gaussian_filter(other, 1.0, mode="wrap")
    else:
        other = zoom(cases.halves(deviation, n=32)[1], 1.25, order=3)
    for pair, which in (((raw, other), "second"), ((other, raw), "first")):
        masked = "|masked" if how == "interpolated" else ""  # which it looks like where there is next to no noise
        with pytest.raises(HalfMapError, match=f"the {which} half map has next to no power at Nyquist{masked}"):
            check(*pair)


@pytest.mark.parametrize("deviation", DEVIATIONS[:2])
def test_halves_that_lie_off_by_a_part_of_a_voxel(deviation):
    first, second = cases.halves(deviation)
    for shift, message in (((0, 0.5, 0), r"moved by 0, -(0.5|1), 0 voxels"), ((0.6, 0, -0.6), "moved by")):
        with pytest.raises(HalfMapError, match=message):
            check(first, fourier_shift_of(second, shift))
    check(first, fourier_shift_of(second, (0.1, 0, -0.1)), allow_masked=True)  # so much two refinements may differ by


def fourier_shift_of(data, shift):
    return np.fft.ifftn(fourier_shift(np.fft.fftn(data), shift)).real


@pytest.mark.parametrize("allow_masked", [False, True])
@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: np.roll(x, 1, 2), r"moved by -1, 0, 0 voxels \(x, y, z\)"),
        (lambda x: np.roll(x, (1, -1), (0, 1)), "moved by 0, 1, -1 voxels"),
        (lambda x: np.roll(x, 8, 0), "moved by 0, 0, -8 voxels"),
        (lambda x: x[::-1], "mirrored along z"),
        (lambda x: np.roll(x[:, :, ::-1], 1, 2), "mirrored along x"),
        (lambda x: x[::-1, ::-1, ::-1], "mirrored along z and y and x"),
        (lambda x: x[:, ::-1, ::-1], "turned by 180° about z"),
        (lambda x: x.transpose(2, 1, 0), "axes in the order x, y, z instead of z, y, x"),
        (lambda x: x.transpose(1, 2, 0), "axes in the order x, z, y instead of z, y, x"),
        (lambda x: np.rot90(x, axes=(0, 1)), "axes in the order .* backwards"),
    ],
)
@pytest.mark.slow
def test_halves_in_two_frames(deviation, change, message, allow_masked):
    first, second = cases.halves(deviation)
    with pytest.raises(HalfMapError, match=f"{message}.*: they do not lie in one frame"):
        check(first, change(second), allow_masked=allow_masked)


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda x: x[::-1], "mirrored along z"), (lambda x: np.roll(x, 8, 0), "moved by"), (lambda x: x, None)],
)
@pytest.mark.slow
def test_frames_are_told_where_the_halves_agree_in_a_few_shells(change, message):
    first, second = cases.halves(0.7)  # FSC 0.5 in the first five shells
    if message is None:
        check(first, second)
    else:
        with pytest.raises(HalfMapError, match=message):
            check(first, change(second))
