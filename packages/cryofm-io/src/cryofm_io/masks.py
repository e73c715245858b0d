"""Masks with soft edges: 1 inside, a raised cosine at the edge, 0 outside."""

import math
import os
import warnings
from typing import Any

import attrs
import numpy as np
import scipy
from numpy.typing import NDArray

from cryofm_io.checks import all_finite, finite, not_negative, positive
from cryofm_io.density_map import DensityMap, check_same_grid
from cryofm_io.errors import GridMismatchError, MapWarning, MaskError
from cryofm_io.filters import low_pass
from cryofm_io.mrc_read import read_values

__all__ = [
    "MapMask",
    "automatic_mask",
    "check_mask",
    "mask_doubts",
    "mask_lengths",
    "mask_of_map",
    "read_mask",
    "soft_mask",
    "spherical_mask",
]

_LOW_PASS, _DILATE, _EDGE = (10.0, 4), (3.0, 1), (6.0, 3)  # Å, and voxels where that is more
_HARD, _MOST, _DUST = 0.9, 0.6, 0.02  # of a step from voxel to voxel; of the box; of the mask, in pieces
_TOP = 99.9  # percentile that stands for the highest density


def spherical_mask(
    shape: tuple[int, int, int], radius: float, soft_edge: float, voxel_size: float
) -> NDArray[np.float32]:
    """A ball about the centre voxel n // 2.

    Args:
        shape: (z, y, x).
        radius: Å; the mask is 1 up to here.
        soft_edge: Å; width over which it falls to 0 beyond the radius.
        voxel_size: Å.

    Raises:
        GeometryError: A negative length, or a voxel size that is not positive.

    Example:
        >>> mask = spherical_mask((9, 9, 9), radius=3.0, soft_edge=3.0, voxel_size=1.5)
        >>> [round(float(m), 2) for m in mask[4, 4, 4:]]
        [1.0, 1.0, 1.0, 0.5, 0.0]
    """
    positive("voxel size", voxel_size, "Å")
    z, y, x = (voxel_size * (np.arange(n, dtype=np.float32) - n // 2) for n in shape)
    distance = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    return raised_cosine(distance, radius, soft_edge, voxel_size)


def soft_mask(
    data: NDArray[Any], threshold: float, dilate: float, soft_edge: float, voxel_size: float
) -> NDArray[np.float32]:
    """A mask about all voxels at or above a threshold.

    Args:
        data: Density ``(z, y, x)``; low-pass it first if it is noisy.
        threshold: Density level.
        dilate: Å by which the mask is wider than the thresholded region.
        soft_edge: Å; width over which it then falls to 0.
        voxel_size: Å.

    Raises:
        MaskError: No voxel reaches the threshold, or a value is NaN or infinite.
        GeometryError: The threshold is not finite, a negative length, or a voxel size that is not positive.

    Example:
        >>> data = np.zeros((9, 9, 9))
        >>> data[4, 4, 4] = 1
        >>> bool((soft_mask(data, 0.5, 3.0, 3.0, 1.5) == spherical_mask((9, 9, 9), 3.0, 3.0, 1.5)).all())
        True
    """
    all_finite("a map's values", data, MaskError)
    outside = data < finite("threshold", threshold)
    if outside.all():
        raise MaskError(f"no voxel reaches the threshold {threshold:g} (largest {data.max():g}); choose a lower one")
    spacing = positive("voxel size", voxel_size, "Å")
    # Distances take ten times the memory of a map, and farther away there is no mask.
    reach = dilate + soft_edge
    far = math.ceil(reach / spacing) + 1 if 0 <= reach < spacing * max(data.shape) else 0
    found = scipy.ndimage.find_objects((~outside).astype(np.uint8))[0]
    box = tuple(slice(max(0, part.start - far), part.stop + far) if far else slice(None) for part in found)
    distance = np.asarray(scipy.ndimage.distance_transform_edt(outside[box], sampling=spacing), dtype=np.float32)
    mask = np.zeros(data.shape, np.float32)
    mask[box] = raised_cosine(distance, dilate, soft_edge, voxel_size)
    return mask


def automatic_mask(
    data: NDArray[Any],
    voxel_size: float,
    *,
    resolution: float | None = None,
    level: float = 0.2,
    dilate: float | None = None,
    soft_edge: float | None = None,
) -> NDArray[np.float32] | None:
    """A soft mask about what stands out of a map at low resolution, as a microscopist would make one.

    Args:
        data: Density ``(z, y, x)``, its solvent at 0 and protein positive; the mean of two halves.
        voxel_size: Å.
        resolution: Å, of the low pass; None, as of the other two: `mask_lengths`.
        level: The threshold, of the highest density after the low pass (its percentile 99.9).
        dilate: Å by which the mask is wider than the thresholded region.
        soft_edge: Å; width over which it then falls to 0.

    Returns:
        The mask, or None where nothing is above 0.

    Raises:
        GeometryError: As `soft_mask`.

    Example:
        >>> data = np.zeros((24, 24, 24))
        >>> data[8:16, 8:16, 8:16] = 1
        >>> mask = automatic_mask(data, 1.5)
        >>> float(mask[12, 12, 12]), float(mask[0, 0, 0])
        (1.0, 0.0)
    """
    made = _made(data, voxel_size, np.float64(0), None, level, (resolution, dilate, soft_edge))
    return None if made is None else made.mask


@attrs.frozen(eq=False)
class MapMask:
    """A soft mask, and what it was made by.

    Args:
        mask: ``(z, y, x)``, within [0, 1].
        smooth: The map after the low pass.
        threshold: Density of the latter, at or above which all is inside.
        low_pass: Å.
    """

    mask: NDArray[np.float32]
    smooth: NDArray[Any]
    threshold: float
    low_pass: float


def mask_of_map(
    data: NDArray[Any],
    voxel_size: float,
    *,
    threshold: float | None = None,
    level: float = 0.2,
    resolution: float | None = None,
    dilate: float | None = None,
    soft_edge: float | None = None,
) -> MapMask:
    """A soft mask of a map as it stands, its solvent anywhere: `automatic_mask` with all that one may say of it.

    Args:
        data: Density ``(z, y, x)``, protein above the solvent; the mean of two halves.
        voxel_size: Å.
        threshold: Density after the low pass; None: by ``level``.
        level: How far it lies from the solvent, the median, to the highest density (its percentile 99.9).
        resolution: Å, of the low pass; None, as of the other two: `mask_lengths`.
        dilate: Å by which the mask is wider than the thresholded region.
        soft_edge: Å; width over which it then falls to 0.

    Raises:
        MaskError: Nothing stands out, or no voxel reaches the threshold.
        GeometryError: As `soft_mask`.

    Example:
        >>> data = np.full((24, 24, 24), 5.0)
        >>> data[8:16, 8:16, 8:16] = 6
        >>> made = mask_of_map(data, 1.5)
        >>> 5 < made.threshold < 5.3, float(made.mask[12, 12, 12]), float(made.mask[0, 0, 0])
        (True, 1.0, 0.0)
    """
    ground = np.median(data) if threshold is None else np.float64(0)
    made = _made(data, voxel_size, ground, threshold, level, (resolution, dilate, soft_edge))
    if made is None:
        raise MaskError("nothing stands out of the map at that low pass; give a threshold (--threshold)")
    return made


def _made(
    data: NDArray[Any],
    voxel_size: float,
    ground: np.floating[Any],
    threshold: float | None,
    level: float,
    lengths: tuple[float | None, float | None, float | None],
) -> MapMask | None:
    """None: nothing is above the ground."""
    low, wider, edge = (usual if x is None else x for x, usual in zip(lengths, mask_lengths(voxel_size), strict=True))
    smooth = low_pass(data, low, voxel_size)
    if threshold is None:
        top = np.percentile(smooth, _TOP)
        if not top > ground:
            return None
        threshold = float(ground + level * (top - ground))
    return MapMask(soft_mask(smooth, threshold, wider, edge, voxel_size), smooth, threshold, low)


def mask_lengths(voxel_size: float) -> tuple[float, float, float]:
    """Low pass, widening and soft edge of a usual mask, Å: of coarse voxels as much as a few of them.

    Args:
        voxel_size: Å.

    Raises:
        GeometryError: It is not positive.

    Example:
        >>> mask_lengths(1.5), mask_lengths(12.0)
        ((10.0, 3.0, 6.0), (48.0, 12.0, 36.0))
    """
    size = positive("voxel size", voxel_size, "Å")
    low, wider, edge = (max(least, voxels * size) for least, voxels in (_LOW_PASS, _DILATE, _EDGE))
    return low, wider, edge


def mask_doubts(mask: NDArray[Any]) -> tuple[str, ...]:
    """What speaks against a mask, in plain words.

    Args:
        mask: ``(z, y, x)``, within [0, 1].

    Returns:
        A sentence for a hard edge, much of the box, density cut off at its side, and several pieces.

    Example:
        >>> mask_doubts(spherical_mask((24, 24, 24), 8.0, 6.0, 1.5))
        ()
        >>> mask_doubts(spherical_mask((24, 24, 24), 8.0, 0.0, 1.5))
        ("the mask's edge is hard: it correlates whatever is masked; make it softer (--soft-edge)",)
    """
    doubts, filled = [], mask > 0
    if max(float(np.abs(np.diff(mask, axis=axis)).max(initial=0)) for axis in range(3)) > _HARD:
        doubts.append("the mask's edge is hard: it correlates whatever is masked; make it softer (--soft-edge)")
    if filled.mean() > _MOST:
        doubts.append(f"the mask is {filled.mean():.0%} of the box; choose a higher threshold (--threshold, --level)")
    elif any(filled.take(i, axis).any() for axis in range(3) for i in (0, -1)):
        doubts.append("the mask touches the side of the box, where it is cut off; take a larger box, or a tighter mask")
    labels, pieces = scipy.ndimage.label(filled, np.ones((3, 3, 3)))
    sizes = np.sort(np.bincount(labels.ravel())[1:])
    if pieces > 1 and sizes[:-1].sum() > _DUST * sizes.sum():
        largest = sizes[-1] / sizes.sum()
        doubts.append(f"the mask is in {pieces} pieces, the largest {largest:.0%}: dust, or a part left out?")
    return tuple(doubts)


def read_mask(
    path: str | os.PathLike[str], like: DensityMap, *, voxel_size: float | None = None
) -> NDArray[np.float32]:
    """Read a mask that belongs to a map.

    Args:
        path: An MRC or CCP4 file.
        like: The map on whose grid it must lie.
        voxel_size: Å; wins over the header, as in `cryofm_io.read_map`.

    Returns:
        The mask ``(z, y, x)``, within [0, 1].

    Raises:
        MaskError: As `check_mask`.
        InputFileError: As `cryofm_io.read_map`.

    Warns:
        MapWarning: It is of bytes, from 0 to 255, which are taken as from 0 to 1.

    Example:
        >>> from cryofm_io import write_map
        >>> write_map("mask.mrc", DensityMap(np.ones((4, 5, 6)), 1.5))
        >>> read_mask("mask.mrc", like=DensityMap(np.zeros((4, 5, 6)), 1.5)).shape
        (4, 5, 6)
    """
    mask = read_values(path, voxel_size=voxel_size)
    if mask.data.min() == -128:  # IMOD stores the bytes 0 to 255 as signed ones
        mask = attrs.evolve(mask, data=mask.data + 128)
    if (mask.data.min(), mask.data.max()) == (0, 255):
        warnings.warn(f"{path}: a mask of bytes, from 0 to 255: read as from 0 to 1", MapWarning, stacklevel=2)
        mask = attrs.evolve(mask, data=mask.data / 255)
    try:
        return check_mask(mask, like)
    except MaskError as error:
        raise MaskError(f"{path}: {error}") from None


def check_mask(mask: DensityMap, like: DensityMap) -> NDArray[np.float32]:
    """Check a mask against the map it belongs to.

    Args:
        mask: The mask with its grid.
        like: The map.

    Returns:
        The mask's values ``(z, y, x)``, clipped to [0, 1] (rounding may exceed it by 1e-3).

    Raises:
        MaskError: The mask lies on another grid, leaves [0, 1], or is empty.

    Example:
        >>> check_mask(DensityMap(np.zeros((4, 5, 6)), 1.5), DensityMap(np.ones((4, 5, 6)), 1.5))
        Traceback (most recent call last):
        cryofm_io.errors.MaskError: the mask is empty (all 0); ...
    """
    try:
        check_same_grid(mask, like, what="the mask and the map")
    except GridMismatchError as error:
        raise MaskError(str(error)) from None
    low, high = float(mask.data.min()), float(mask.data.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise MaskError(f"mask values from {low:g} to {high:g}; a mask lies within [0, 1]")
    if high <= 1e-3:
        raise MaskError("the mask is empty (all 0); it must be 1 where the molecule is")
    return np.clip(mask.data, 0, 1)


def raised_cosine(
    distance: NDArray[np.float32], inner: float, soft_edge: float, voxel_size: float
) -> NDArray[np.float32]:
    not_negative("mask radius", inner, "Å")
    not_negative("mask edge", soft_edge, "Å")
    positive("voxel size", voxel_size, "Å")
    if soft_edge == 0:
        return (distance <= inner).astype(np.float32)
    fraction = np.clip((distance - inner) / soft_edge, 0, 1)
    return np.asarray((1 + np.cos(np.pi * fraction)) / 2, dtype=np.float32)
