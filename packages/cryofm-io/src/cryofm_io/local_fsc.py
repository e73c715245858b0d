"""Resolution from place to place: the FSC in a window that moves (Cardone et al., J. Struct. Biol. 184:226, 2013)."""

from typing import Any

import numpy as np
import scipy  # its parts load when they are needed
from numpy.typing import NDArray

from cryofm_io.checks import positive
from cryofm_io.errors import GeometryError, GridMismatchError
from cryofm_io.fsc import something_in, unit
from cryofm_io.masks import spherical_mask

__all__ = ["local_resolution"]

_AT_ONCE = 64  # windows


def local_resolution(
    half1: NDArray[Any],
    half2: NDArray[Any],
    voxel_size: float,
    mask: NDArray[Any],
    *,
    window: int = 24,
    step: int = 4,
    threshold: float = 0.5,
) -> NDArray[np.float32]:
    """Where the FSC in a soft ball about each place falls below a threshold, in Å.

    A window of n voxels tells frequencies apart by 1/n, and blurs what differs over less than half of it.

    Args:
        half1: ``(z, y, x)``, raw.
        half2: ``(z, y, x)``, raw.
        voxel_size: Å.
        mask: The places that count are those where it is above 1/2.
        window: Side of the windows, voxels.
        step: Voxels from one to the next; between them it is interpolated.
        threshold: Of the FSC.

    Returns:
        Å, ``(z, y, x)``; 0 outside the mask.  Where nothing agrees it is the window's side, where all does, Nyquist.

    Raises:
        GridMismatchError: The shapes differ.
        GeometryError: A window that does not fit into the box, or an empty mask.

    Example:
        >>> a, noise = np.random.default_rng(0).normal(size=(2, 32, 32, 32))
        >>> found = local_resolution(a, a + 0.1 * noise, 1.5, np.ones(a.shape))
        >>> float(found[16, 16, 16])
        3.0
    """
    if not half1.shape == half2.shape == mask.shape or half1.ndim != 3:
        raise GridMismatchError(f"local FSC of shapes {half1.shape}, {half2.shape}, mask {mask.shape}: all must agree")
    if not 8 <= window <= min(half1.shape) or not 1 <= step <= window:
        raise GeometryError(
            f"a window of {window} voxels, step {step}, in a box of shape {half1.shape}; 8 is the least"
        )
    positive("voxel size", voxel_size, "Å")
    something_in(mask)
    places = [np.arange(step // 2, n, step) for n in half1.shape]
    lattice = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1)
    inside = mask > 0.5
    near = scipy.ndimage.maximum_filter(inside, step + 1)[tuple(np.moveaxis(lattice, -1, 0))]
    if not near.any():
        raise GeometryError("the mask is above 1/2 nowhere; there is no place to look at")
    ball = spherical_mask((window, window, window), 0.3 * window, 0.2 * window, 1.0)
    one, two = (np.pad(np.asarray(unit(half), np.float32), window // 2, mode="reflect") for half in (half1, half2))
    onto = _onto_shells(window)
    values = np.empty(near.sum(), np.float32)
    corners = lattice[near]  # of the padded box: the window's centre n // 2 falls on the place
    for start in range(0, len(corners), _AT_ONCE):
        boxes = [
            [half[z : z + window, y : y + window, x : x + window] for z, y, x in corners[start : start + _AT_ONCE]]
            for half in (one, two)
        ]
        a, b = (scipy.fft.rfftn(np.stack(part) * ball, axes=(1, 2, 3)).reshape(len(part), -1) for part in boxes)
        cross, power_a, power_b = (q @ onto for q in ((a * b.conj()).real, np.abs(a) ** 2, np.abs(b) ** 2))
        correlation = cross / np.sqrt(power_a * power_b).clip(1e-30)
        values[start : start + len(a)] = _crossings(correlation, threshold, window * voxel_size)
    grid = np.full(near.shape, np.nan, np.float32)
    grid[near] = values
    nearest = scipy.ndimage.distance_transform_edt(np.isnan(grid), return_distances=False, return_indices=True)
    where = np.stack(np.meshgrid(*((np.arange(n) - step // 2) / step for n in half1.shape), indexing="ij"))
    full = scipy.ndimage.map_coordinates(grid[tuple(nearest)], where, order=1, mode="nearest")
    return np.asarray(np.where(inside, full, 0), np.float32)


def _onto_shells(n: int) -> NDArray[np.float32]:
    """The sums over shells 1 .. n // 2, with Friedel weights, as a matrix."""
    k, kx = np.fft.fftfreq(n), np.fft.rfftfreq(n)
    shell = np.rint(n * np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + kx**2)).astype(int)
    weight = np.where((kx == 0) | (kx == 0.5), 1.0, 2.0)
    onto = (shell.reshape(-1, 1) == np.arange(1, n // 2 + 1)) * np.broadcast_to(weight, shell.shape).reshape(-1, 1)
    return np.asarray(onto, np.float32)


def _crossings(correlation: NDArray[Any], threshold: float, side: float) -> NDArray[Any]:
    """The first downward crossing of each row, linear in frequency, in Å."""
    rows, shells = correlation.shape
    full = np.concatenate([np.ones((rows, 1)), correlation], axis=1)  # frequency 0
    below = full < threshold
    i = np.where(below.any(axis=1), below.argmax(axis=1), shells + 1)
    last = np.minimum(i, shells)
    high, low = full[np.arange(rows), last - 1], full[np.arange(rows), last]
    at = np.where(i > shells, shells, last - 1 + (high - threshold) / np.maximum(high - low, 1e-9))
    return np.asarray(side / np.maximum(at, 1))
