"""Filters that depend on the length of the frequency."""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy  # its parts load when they are needed
from numpy.typing import NDArray

from cryofm_io.checks import positive
from cryofm_io.errors import GeometryError

__all__ = ["filtered_by_shell", "low_pass"]

Transfer = Callable[[NDArray[Any]], NDArray[Any]]

_EDGE = 0.2  # full width of the edge over 1/resolution


def low_pass(data: NDArray[Any], resolution: float, voxel_size: float) -> NDArray[np.float32]:
    """Remove what is finer than a resolution, with a raised-cosine edge about it.

    Args:
        data: Density ``(z, y, x)``.
        resolution: Å; the amplitude is 1/2 there.  Finer than Nyquist is no error.
        voxel_size: Å.

    Raises:
        GeometryError: The data are not three-dimensional, or a length is not positive.

    Example:
        >>> noise = np.random.default_rng(0).normal(size=(16, 16, 16))
        >>> bool(low_pass(noise, 12.0, 1.5).std() < 0.3 * noise.std())
        True
    """
    if data.ndim != 3:
        raise GeometryError(f"expected a 3-D map (z, y, x), got shape {data.shape}")
    return _filtered(data, up_to(resolution, voxel_size))


def up_to(resolution: float, voxel_size: float) -> Transfer:
    """What `low_pass` multiplies with, by the frequency in cycles a voxel."""
    cutoff = positive("voxel size", voxel_size, "Å") / positive("resolution", resolution, "Å")
    return lambda radius: 0.5 - 0.5 * np.sin(np.pi * ((radius / cutoff - 1) / _EDGE).clip(-0.5, 0.5))


def filtered_by_shell(data: NDArray[Any], gain: NDArray[Any]) -> NDArray[np.float32]:
    """Multiply each shell of the spectrum with its own factor, linear between shells.

    Args:
        data: ``(z, y, x)``.
        gain: Of shells 1, 2, …, as `cryofm_io.fsc` has them; frequency 0 takes the first, the corners the last.

    Example:
        >>> noise = np.random.default_rng(0).normal(size=(9, 10, 12))
        >>> bool(np.allclose(filtered_by_shell(noise, np.full(6, 2.0)), 2 * noise, atol=1e-5))
        True
    """
    return _filtered(data, by_shell(gain, data.shape))


def by_shell(gain: NDArray[Any], shape: tuple[int, ...]) -> Transfer:
    """What `filtered_by_shell` multiplies with, by the frequency in cycles a voxel of that box."""
    shells, longest = np.arange(1, len(gain) + 1), max(shape)
    return lambda radius: np.interp(longest * radius, shells, gain)


def _filtered(data: NDArray[Any], transfer: Transfer) -> NDArray[np.float32]:
    return multiplied(np.asarray(scipy.fft.rfftn(np.asarray(data, np.float32), norm="ortho")), transfer, data.shape)


def multiplied(spectrum: NDArray[Any], transfer: Transfer, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A half transform, which is lost, times a function of the frequency in cycles a voxel, and back."""
    multiply(spectrum, transfer, shape)
    spectrum = scipy.fft.ifftn(spectrum, axes=(0, 1), norm="ortho", overwrite_x=True)  # `irfftn` would make a copy
    return np.asarray(scipy.fft.irfft(spectrum, shape[2], norm="ortho"), dtype=np.float32)


def multiply(spectrum: NDArray[Any], transfer: Transfer, shape: tuple[int, ...]) -> None:
    """A half transform times a function of the frequency in cycles a voxel, in place."""
    z, y, x = (np.fft.rfftfreq(n) for n in shape)
    lateral = y[:, None] ** 2 + x**2
    mirrored = np.minimum(np.arange(shape[1]), shape[1] - np.arange(shape[1]))
    for i, kz in enumerate(z):  # by planes, to spare memory; k and -k have one length
        factor = transfer(np.sqrt(kz**2 + lateral)).astype(np.float32)[mirrored]
        for plane in {i, -i % shape[0]}:
            spectrum[plane] *= factor
