"""Whether two half maps can tell their noise."""

import logging
import warnings
from typing import Any

import numpy as np
import scipy  # its parts load when they are needed
from numpy.typing import NDArray

from cryofm_io.density_map import DensityMap, check_same_grid
from cryofm_io.errors import HalfMapError, MapWarning
from cryofm_io.fsc import FscCurve, curve_of_sums, middle_value, shell_sums, transform, unit
from cryofm_io.half_frames import other_frame
from cryofm_io.half_lattice import beats_of_a_lattice
from cryofm_io.half_noise import Places, least_at_nyquist, places, unequal_at_nyquist

__all__ = ["check_contrast", "check_half_maps"]

_log = logging.getLogger(__name__)

# Of 34 pairs of halves, six of them real, the good ones have an evenness from 0.33 (one with few views 0.21), a rim
# from 0.83, 5e-3 of their noise at Nyquist, and share at most 0.15. Those with a fifth of their noise outside a mask of
# 2 or 10 % of the box have an evenness of at most 0.14, under a sphere a rim up to 0.23; filtered and
# resampled ones have 1e-4 at Nyquist; a full map for a half shares at least 0.43.
_MIN_EVENNESS = 0.15
_MIN_RIM = 0.3
_MIN_ALONE = 0.1  # of two halves with equal noise it is 0.35; of one that is masked 0 for itself
_MIN_AT_NYQUIST = 1.5e-3
_MAX_SHARED, _SOME_SHARED = 0.35, 0.2  # the latter where it shows at Nyquist as well; a molecule fills some boxes
_MOST_UNEQUAL, _FAR_MORE = 30.0, 1e3
_MAX_CONSTANT = 0.05  # of the box, or of its middle
_FLATTENED = 0.25  # noise in the corners of the box, relative to that in its core
_WAY = "give the raw halves (unfil, half_A/half_B) or allow masked ones explicitly"
_LEAST_SIDE = 12  # voxels; in smaller boxes no place can be told from another
_MAX_SCALE = 0.05
_MIN_SKEW = -0.5
# The noise of a reconstruction rises about as the frequency does, since central slices thin out; sharpening by
# 75 Å² lifts the last shells of 1.5 Å voxels thirtyfold over those at a quarter of Nyquist.
_MAX_RISE = 30


def check_half_maps(half1: DensityMap, half2: DensityMap, *, allow_masked: bool = False) -> FscCurve:
    """Check that two maps are the unmasked, unfiltered halves of one data set.

    Args:
        half1: One half map.
        half2: The other.
        allow_masked: Accept masked, filtered or resampled halves: the noise estimated from them is too small.

    Returns:
        The FSC between them.

    Raises:
        GridMismatchError: The halves differ in shape, voxel size or position.
        HalfMapError: They are equal up to scale, or one is the other's negative, or they are shifted by a voxel or
            more, mirrored or turned against each other; or, unless allowed, masked (next to no noise in parts of the
            box), filtered or resampled (none at Nyquist), or one of them holds the other (their noise correlates).
            Halves that RELION flattened outside a sphere that fills the box are good ones; it is logged.

    Warns:
        MapWarning: Their scales differ by more than 5 %, the contrast seems to be inverted, or they seem to be
            sharpened.

    Example:
        >>> half = DensityMap(np.random.default_rng(0).normal(size=(16, 16, 16)), voxel_size=1.5)
        >>> check_half_maps(half, half)
        Traceback (most recent call last):
        cryofm_io.errors.HalfMapError: the two half maps are equal; ...
    """
    check_same_grid(half1, half2, what="the half maps")
    shape = half1.shape
    # Beside a constant single precision would lose the rest.
    one, two = (unit(half.data - middle_value(half.data)) for half in (half1, half2))
    a, b = transform(one), transform(two)
    sums = shell_sums(a, b, shape)
    curve = curve_of_sums(sums, shape, half1.voxel_size)
    if np.array_equal(half1.data, half2.data) or np.nanmin(curve.correlation) > 1 - 1e-5:
        raise HalfMapError("the two half maps are equal; noise cannot be estimated, give two independent halves")
    coarse = [_coarse(spectrum, shape) for spectrum in (a, b)]
    correlation = float(np.corrcoef([half.ravel() for half in coarse])[0, 1])
    if correlation < -max(0.1, 5 / coarse[0].size ** 0.5):  # halves of nothing but noise are within 1/√N of 0
        raise HalfMapError(
            f"the half maps have a correlation of {correlation:.2f}: one is inverted; protein must be positive in both"
        )
    if (frame := other_frame(one, two, a, b)) is not None:
        raise HalfMapError(
            f"the half maps fit better with the second one {frame}: they do not lie in one frame; give both as one "
            "reconstruction wrote them, or bring them into one frame first"
        )
    scale = np.float32(_scale(sums))
    two *= scale
    b *= scale
    noise = a - b
    _, power, _, count = shell_sums(noise, noise, shape)
    if not allow_masked:
        _check_nyquist(one - two, noise)
        _check_each_at_nyquist(a, b, shape, _FAR_MORE)  # as no mask of one half makes it
        del noise
        if min(shape) >= _LEAST_SIDE:
            _check_noise(
                one, two, places(a, b, (sums[1] / count, scale**2 * sums[2] / count, power / count), shape), curve
            )
        _check_each_at_nyquist(a, b, shape, _MOST_UNEQUAL)
    ratio = float(half2.data.std() / half1.data.std())
    if abs(ratio - 1) > _MAX_SCALE:
        message = f"the second half map's scale is {ratio:.3g} times the first's; are they from one reconstruction?"
        warnings.warn(message, MapWarning, stacklevel=2)
    rise = _rise(power, count)
    if not allow_masked and rise <= _MAX_RISE:  # sharpened noise is nearly all in the corners of the spectrum
        _check_lattice(one, two)
    if rise > _MAX_RISE:
        message = (
            f"the noise is {rise:.0f} times stronger at Nyquist than at a quarter of it: sharpened half maps? "
            "Give unsharpened ones"
        )
        warnings.warn(message, MapWarning, stacklevel=2)
    _check_tail(coarse[0] + scale * coarse[1])
    return curve


def _scale(sums: NDArray[np.float64]) -> float:
    """What the second half must be multiplied with, by the shells in which the halves agree."""
    cross, power1, power2, _ = sums
    with np.errstate(all="ignore"):
        weight = np.nan_to_num(cross / np.sqrt(power1 * power2)).clip(0) ** 4
        scale = float(np.sqrt(np.sum(weight * power1) / np.sum(weight * power2)))
    return scale if 0 < scale < np.inf else 1.0


def _check_nyquist(difference: NDArray[Any], spectrum: NDArray[Any]) -> None:
    at_nyquist = least_at_nyquist(difference, spectrum)
    if at_nyquist < _MIN_AT_NYQUIST:
        raise HalfMapError(
            f"the half maps have no power at Nyquist (noise {at_nyquist:.0e} of that at lower frequencies): filtered, "
            f"or resampled to finer voxels, noise would be underestimated; {_WAY}, on the grid of the reconstruction"
        )


def _check_each_at_nyquist(a: NDArray[Any], b: NDArray[Any], shape: tuple[int, ...], most: float) -> None:
    """Of one raw half and one that was resampled the difference has noise at Nyquist, the one half's."""
    ratio = unequal_at_nyquist(a, b, shape)
    if max(ratio, 1 / ratio) > most:
        raise HalfMapError(
            f"the {'second' if ratio > 1 else 'first'} half map has next to no power at Nyquist, and the other one has "
            f"({max(ratio, 1 / ratio):.0e} times as much): filtered, or resampled to finer voxels, noise would be "
            f"underestimated; {_WAY}, on the grid of the reconstruction"
        )


def _check_lattice(one: NDArray[Any], two: NDArray[Any]) -> None:
    if beats_of_a_lattice(one - two):
        raise HalfMapError(
            "the noise of the half maps is weaker in some planes than in those beside: resampled by interpolation; "
            f"{_WAY}, on the grid of the reconstruction"
        )


def _check_noise(one: NDArray[Any], two: NDArray[Any], found: Places, curve: FscCurve) -> None:
    """Refuse halves whose difference is no noise of a reconstruction, saying which case it is."""
    least = min(found.evenness / _MIN_EVENNESS, found.rim / _MIN_RIM, found.alone / _MIN_ALONE)
    values = [(half, value) for half in (one, two) for value in (0, half[0, 0, 0])]
    if least < 1 or max(share_filled(_middle(half), value) for half, value in values) > _MAX_CONSTANT:
        constant = max(share_filled(half, value) for half, value in values)
        what = f"are constant in {constant:.0%}" if constant > _MAX_CONSTANT else "have next to no noise in some parts"
        raise HalfMapError(f"the half maps {what} of the box: masked, noise would be underestimated; {_WAY}")
    last = float(np.nan_to_num(curve.correlation[-max(1, len(curve.correlation) // 10) :]).mean())
    if found.shared > (_SOME_SHARED if last > _MAX_SHARED else _MAX_SHARED):
        kind = "as if one were the full map, which holds the other" if found.shared < 0.85 else "as if it were one map"
        raise HalfMapError(
            f"the half maps share their noise: a correlation of {found.shared:.2f} even where there is no molecule, an "
            f"FSC of {last:.2f} at Nyquist, {kind}; give two halves made of different particles"
        )
    if found.corners < _FLATTENED:
        _log.info("the half maps have noise inside a sphere only, as RELION leaves them: taken as raw")


def check_contrast(data: NDArray[Any]) -> None:
    """Warn where molecules seem to be dark.

    Args:
        data: Density ``(z, y, x)``, as measured; noise does no harm.

    Warns:
        MapWarning: The density has its tail on the negative side.

    Example:
        >>> blob = np.zeros((16, 16, 16))
        >>> blob[6:10, 6:10, 6:10] = 1
        >>> check_contrast(blob)
    """
    _check_tail(_coarse(transform(data - middle_value(data)), data.shape))


def _check_tail(coarse: NDArray[Any]) -> None:
    """Molecules are few bright voxels; on a coarse grid the noise no longer hides the sign of the tail."""
    if _skewness(coarse) < _MIN_SKEW:
        message = "the density has its tail on the negative side: inverted contrast? Protein must be positive"
        warnings.warn(message, MapWarning, stacklevel=2)


def _skewness(data: NDArray[Any]) -> float:
    centred = data - data.mean(dtype=np.float64)
    spread = float(np.sqrt(np.mean(centred**2)))
    return float(np.mean((centred / spread) ** 3)) if spread else 0.0


def _coarse(spectrum: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """A map by its half transform, on a grid of a quarter of its sides; odd, for these have no Nyquist frequency."""
    sides = [min(max(4, n // 4) | 1, (n - 1) | 1) for n in shape]
    z, y = (np.r_[: m // 2 + 1, n - m // 2 : n] for m, n in zip(sides[:2], shape[:2], strict=True))
    return np.asarray(scipy.fft.irfftn(spectrum[np.ix_(z, y, np.arange(sides[2] // 2 + 1))], s=sides, norm="ortho"))


def _middle(data: NDArray[Any]) -> NDArray[Any]:
    """What lies within RELION's sphere whatever it flattens."""
    return data[tuple(slice(n // 4, n - n // 4) for n in data.shape)]


def share_filled(data: NDArray[Any], value: float) -> float:
    """Share of the cubes of 2³ voxels that have one value."""
    same = data == value
    for axis in range(3):
        first, second = np.arange(same.shape[axis] - 1), np.arange(1, same.shape[axis])
        same = same.take(first, axis) & same.take(second, axis)
    return float(same.mean())


def _rise(power: NDArray[np.float64], count: NDArray[np.float64]) -> float:
    """Mean power of the last tenth of the shells relative to that of the shells around a quarter of Nyquist."""
    shells = len(count)
    near = slice(shells // 5, max(3 * shells // 10, shells // 5 + 1))
    last = slice(-max(1, shells // 10), None)
    return float((power[last].sum() / count[last].sum()) / (power[near].sum() / count[near].sum()))
