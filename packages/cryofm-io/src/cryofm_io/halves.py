"""Whether two half maps can tell their noise."""

import warnings
from typing import Any

import numpy as np
import scipy  # its parts load when they are needed, which spares a third of a second at import
from numpy.typing import NDArray

from cryofm_io.density_map import DensityMap, check_same_grid
from cryofm_io.errors import HalfMapError, MapWarning
from cryofm_io.fsc import fsc, shell_sums, transform
from cryofm_io.resample import fourier_resample

__all__ = ["check_contrast", "check_half_maps"]

# An unmasked half map has noise in every voxel and every shell.  On half maps with the noise of 3.2 to 15 Å
# reconstructions the FSC near Nyquist stays under 0.1 and the power there above 1e-3 of the largest shell's.
_MAX_CONSTANT = 0.05  # share of cubes of 2³ voxels with one and the same value; few grey levels make few of them
_MAX_FSC = 0.9  # mean over the last tenth of the shells
_MIN_POWER = 1e-7  # of the last shells, relative to the strongest
_MAX_SCALE = 0.05
_MIN_SKEW = -0.5
# The noise of a reconstruction rises about as the frequency does, since central slices thin out; sharpening by
# 75 Å² lifts the last shells of 1.5 Å voxels thirtyfold over those at a quarter of Nyquist.
_MAX_RISE = 30


def check_half_maps(half1: DensityMap, half2: DensityMap, *, allow_masked: bool = False) -> None:
    """Check that two maps are the unmasked, unfiltered halves of one data set.

    Args:
        half1: One half map.
        half2: The other.
        allow_masked: Accept masked or filtered halves: the noise estimated from them is too small.

    Raises:
        GridMismatchError: The halves differ in shape, voxel size or position.
        HalfMapError: They are equal up to scale, or one is the other's negative; or masked (one value fills more
            than 5 % of the box) or filtered (FSC over 0.9 or no power near Nyquist), unless allowed.

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
    curve = fsc(half1.data, half2.data, half1.voxel_size)
    if np.array_equal(half1.data, half2.data) or np.nanmin(curve.correlation) > 1 - 1e-5:
        raise HalfMapError("the two half maps are equal; noise cannot be estimated, give two independent halves")
    coarse = [_coarse(half.data).ravel() for half in (half1, half2)]
    correlation = float(np.corrcoef(coarse)[0, 1])
    if correlation < -max(0.1, 5 / len(coarse[0]) ** 0.5):  # halves of nothing but noise are within 1/√N of 0
        raise HalfMapError(
            f"the half maps have a correlation of {correlation:.2f}: one is inverted; protein must be positive in both"
        )
    if not allow_masked:
        tail = max(1, len(curve.correlation) // 10)
        at_nyquist = float(np.nan_to_num(curve.correlation[-tail:]).mean())
        if at_nyquist > _MAX_FSC:
            _refuse(f"have an FSC of {at_nyquist:.2f} at Nyquist")
        for name, half in (("first", half1), ("second", half2)):
            constant = max(_filled(half.data, value) for value in (0, half.data[0, 0, 0]))
            if constant > _MAX_CONSTANT:
                _refuse(f"are constant in {constant:.0%} of the box ({name} half)")
            if _relative_power_at_nyquist(half.data) < _MIN_POWER:
                _refuse(f"have no power at Nyquist ({name} half)")
    ratio = float(half2.data.std() / half1.data.std())
    if abs(ratio - 1) > _MAX_SCALE:
        message = f"the second half map's scale is {ratio:.3g} times the first's; are they from one reconstruction?"
        warnings.warn(message, MapWarning, stacklevel=2)
    rise = _rise_of_noise(half1.data - half2.data)
    if rise > _MAX_RISE:
        message = (
            f"the noise is {rise:.0f} times stronger at Nyquist than at a quarter of it: sharpened half maps? "
            "Give unsharpened ones"
        )
        warnings.warn(message, MapWarning, stacklevel=2)
    check_contrast(half1.data + half2.data)


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
    # Molecules are few bright voxels.  On a coarse grid the noise no longer hides the sign of the tail.
    if _skewness(_coarse(data)) < _MIN_SKEW:
        message = "the density has its tail on the negative side: inverted contrast? Protein must be positive"
        warnings.warn(message, MapWarning, stacklevel=2)


def _skewness(data: NDArray[Any]) -> float:
    centred = data - data.mean(dtype=np.float64)
    spread = float(np.sqrt(np.mean(centred**2)))
    return float(np.mean((centred / spread) ** 3)) if spread else 0.0


def _coarse(data: NDArray[Any]) -> NDArray[Any]:
    return fourier_resample(data - np.median(data), [max(4, n // 4) for n in data.shape])


def _filled(data: NDArray[Any], value: float) -> float:
    """Share of the cubes of 2³ voxels that have one value."""
    same = data == value
    for axis in range(3):
        first, second = np.arange(same.shape[axis] - 1), np.arange(1, same.shape[axis])
        same = same.take(first, axis) & same.take(second, axis)
    return float(same.mean())


def _refuse(found: str) -> None:
    raise HalfMapError(
        f"the half maps {found}: masked or filtered, noise would be underestimated; give the raw halves "
        "(unfil, half_A/half_B) or allow masked ones explicitly"
    )


def _relative_power_at_nyquist(data: NDArray[Any]) -> float:
    """Mean power of the planes kx ≈ Nyquist relative to the strongest plane's, without DC."""
    power = np.abs(np.asarray(scipy.fft.rfft(data, axis=-1))) ** 2
    profile = power.mean(axis=(0, 1), dtype=np.float64)
    tail = max(1, (len(profile) - 1) // 10)
    return float(profile[-tail:].mean() / profile[1:].max())


def _rise_of_noise(difference: NDArray[Any]) -> float:
    """Mean power of the last tenth of the shells relative to that of the shells around a quarter of Nyquist."""
    spectrum = transform(difference)
    _, power, _, count = shell_sums(spectrum, spectrum, difference.shape)
    shells = len(count)
    near = slice(shells // 5, max(3 * shells // 10, shells // 5 + 1))
    last = slice(-max(1, shells // 10), None)
    return float((power[last].sum() / count[last].sum()) / (power[near].sum() / count[near].sum()))
