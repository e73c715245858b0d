"""What a restoration changed beyond the noise, and where.

Both maps are looked at no finer than the data reach: there noise and change can be held against each other, and what is
merely sharper is no change.
"""

from typing import Any

import attrs
import numpy as np
import scipy  # its parts load when they are needed
from numpy.typing import NDArray

from cryofm_io.density_map import DensityMap
from cryofm_io.errors import GridMismatchError
from cryofm_io.filters import low_pass

__all__ = ["Change", "changes"]

_NEAR, _ENOUGH = 8.0, 4.0  # Å over which the noise is averaged, but at least so many voxels
_APART = 6.0  # Å, of two places at least
_SPHERE = 0.45  # of the sides: what every reconstruction fills


@attrs.frozen
class Change:
    """A place where density came or went.

    Args:
        position: (x, y, z) in Å of where it changed most, in the frame of the map's header, as ChimeraX has it.
        volume: Å³ that changed beyond the threshold.
        z: By how many standard deviations of the noise it changed most; negative where density went.
    """

    position: tuple[float, float, float]
    volume: float
    z: float


def changes(
    before: DensityMap,
    after: DensityMap,
    noise: NDArray[Any],
    resolution: float,
    *,
    threshold: float = 5.0,
    most: int = 20,
) -> tuple[NDArray[np.float32], list[Change]]:
    """How much a map changed, in standard deviations of the noise, and the places where it did.

    Args:
        before: Such as the best linear filter of the data.
        after: Such as the restored map, on the same grid.
        noise: A draw of the noise in ``before``, ``(z, y, x)``: half the difference of the halves, filtered alike.
        resolution: Å, that the data reach; what is finer is left out of all three.
        threshold: Of |z|, from where on a voxel has changed.
        most: Places that are named at most.

    Returns:
        z, ``(z, y, x)``, and the places, the largest first.

    Raises:
        GridMismatchError: The shapes differ.

    Example:
        >>> noise = np.random.default_rng(0).normal(size=(2, 24, 24, 24))
        >>> bump = np.zeros((24, 24, 24))
        >>> bump[10:14, 6:10, 4:8] = 9
        >>> before = DensityMap(noise[0], 2.0, origin=(100, 0, 0))
        >>> z, places = changes(before, DensityMap(noise[0] + bump, 2.0, origin=(100, 0, 0)), noise[1], 8.0)
        >>> len(places), [round(at) for at in places[0].position], places[0].z > 5
        (1, [111, 15, 23], True)
    """
    if not before.shape == after.shape == noise.shape:
        raise GridMismatchError(f"changes of shapes {before.shape}, {after.shape}, noise {noise.shape}; all must agree")
    voxel_size = before.voxel_size
    difference, drawn = (low_pass(x, resolution, voxel_size) for x in (after.data - before.data, noise))
    return changes_of(difference, drawn, before, threshold=threshold, most=most)


def changes_of(
    difference: NDArray[np.float32], noise: NDArray[np.float32], like: DensityMap, *, threshold: float, most: int = 20
) -> tuple[NDArray[np.float32], list[Change]]:
    """The same of what is left of a difference and of the noise; both are lost."""
    z, near = difference, noise
    least = max(float(_inside(noise).std()), 1e-30)
    near *= noise
    near = _averaged(near, max(_NEAR / like.voxel_size, _ENOUGH))
    np.sqrt(near, out=near)
    # Outside a sphere halves may be flattened, and one draw tells little of a place: it is not below the average.
    z /= np.maximum(near, np.float32(least), out=near)
    found = [place for sign in (1, -1) for place in _places(z, sign, threshold, like)]
    found.sort(key=lambda place: -place.volume)
    return z, found[:most]


def _averaged(values: NDArray[np.float32], sd: float) -> NDArray[np.float32]:
    """As `scipy.ndimage.gaussian_filter`, by products of matrices, which for wide ones are faster."""
    z, y, x = (scipy.ndimage.gaussian_filter1d(np.eye(n, dtype=values.dtype), sd) for n in values.shape)
    along: NDArray[np.float32] = (z.T @ values.reshape(len(z), -1)).reshape(values.shape)
    return np.asarray(y.T @ (along @ x))


def _inside(values: NDArray[Any]) -> NDArray[Any]:
    """Those within the sphere."""
    z, y, x = (((np.arange(n) - n // 2) / n) ** 2 for n in values.shape)
    return np.concatenate([plane[y[:, None] + x < _SPHERE**2 - at] for plane, at in zip(values, z, strict=True)])


def _places(z: NDArray[Any], sign: int, threshold: float, map: DensityMap) -> list[Change]:
    """Each peak with the voxels above the threshold that are nearer to it than to another."""
    reach = max(1, round(_APART / map.voxel_size))
    beyond = sign * z > threshold
    if not beyond.any():
        return []
    part = scipy.ndimage.find_objects(beyond.view(np.uint8))[0]
    near = tuple(slice(max(0, side.start - reach), side.stop + reach) for side in part)
    highest, first = scipy.ndimage.maximum_filter(sign * z[near], size=2 * reach + 1), [side.start for side in near]
    peaks = np.argwhere((sign * z[near] == highest) & beyond[near]) + first
    owner = scipy.spatial.cKDTree(peaks).query(np.argwhere(beyond[near]) + first)[1]
    volumes = np.bincount(owner, minlength=len(peaks)) * map.voxel_size**3
    found = []
    for peak, volume in zip(peaks, volumes, strict=True):
        index = peak[::-1] + [_vertex(z, sign, peak, axis) for axis in (2, 1, 0)]
        x, y, w = (float(p + map.voxel_size * i) for p, i in zip(map.position, index, strict=True))
        found.append(Change((x, y, w), float(volume), float(z[tuple(peak)])))
    return found


def _vertex(z: NDArray[Any], sign: int, peak: NDArray[Any], axis: int) -> float:
    """Where between voxels the peak is, by a parabola through three of them."""
    if not 0 < peak[axis] < z.shape[axis] - 1:
        return 0.0
    low, mid, high = (sign * float(z[tuple(peak + step * (np.arange(3) == axis))]) for step in (-1, 0, 1))
    bend = low - 2 * mid + high
    return 0.5 * (low - high) / bend if bend < 0 else 0.0
