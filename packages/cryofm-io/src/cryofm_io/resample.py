"""Fourier resampling, exact for odd and even sizes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy  # its parts load when they are needed, which spares a third of a second at import
from numpy.typing import NDArray

from cryofm_io.errors import GeometryError

__all__ = ["fourier_resample"]


def fourier_resample(data: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Resample a volume to another number of voxels over the same box, by cropping or padding its spectrum.

    The centre voxel n // 2 stays where it is, also between odd and even sizes, and the mean value is kept.
    Going to a finer grid and back gives the same values; going to a coarser grid and back removes what lies
    beyond the coarser Nyquist frequency and nothing else.

    Args:
        data: ``(..., z, y, x)``; double precision stays double, everything else becomes float32.
        shape: The new (z, y, x).

    Returns:
        ``(..., *shape)``; the data themselves where the shape is the same already.

    Raises:
        GeometryError: ``shape`` is not three positive sizes, or the data have fewer than three axes.

    Example:
        >>> fourier_resample(np.ones((9, 6, 8)), (6, 4, 5)).shape
        (6, 4, 5)
    """
    if data.ndim < 3 or len(shape) != 3 or min(shape) < 1:
        raise GeometryError(f"cannot resample shape {data.shape} to {tuple(shape)}: need (..., z, y, x) to (z, y, x)")
    result = data.astype(np.float64 if data.dtype == np.float64 else np.float32, copy=False)
    # Separable, one axis at a time; axes that shrink most go first, to leave less work for the others.
    for axis in sorted((-3, -2, -1), key=lambda axis: shape[axis] / data.shape[axis]):
        if shape[axis] != data.shape[axis]:
            result = _resample_axis(result, shape[axis], axis)
    return result


def _resample_axis(data: NDArray[Any], m: int, axis: int) -> NDArray[Any]:
    n = data.shape[axis]
    # With the centre voxel at index 0 the same position is the phase origin of both grids.
    centred = np.moveaxis(np.fft.ifftshift(data, axes=axis), axis, -1)
    spectrum = np.asarray(scipy.fft.rfft(centred, norm="forward"))
    if m < n:
        spectrum = spectrum[..., : m // 2 + 1].copy()
        if m % 2 == 0:  # +m/2 and -m/2 become one coefficient: their sum, which is real
            spectrum[..., -1] = 2 * np.real(spectrum[..., -1])
    elif n % 2 == 0:  # the one Nyquist coefficient becomes a pair, half of it each
        spectrum[..., -1] /= 2
    resampled = np.asarray(scipy.fft.irfft(spectrum, n=m, norm="forward", overwrite_x=True))
    return np.fft.fftshift(np.moveaxis(resampled, -1, axis), axes=axis)
