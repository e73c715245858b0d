"""The augmentations of paper F.1: a box cut from a map, its 24 turns, and any rotation in SO(3)."""

from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

__all__ = ["cube_rotations", "cut", "cut_rotated", "random_rotation", "rot24"]

_SPLINE = 6  # voxels after which a cubic spline has forgotten where its box ends (0.27^6 < 4e-4)


def cube_rotations() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The 24 proper rotations of the cube as (axis permutation, flipped axes).

    >>> len(cube_rotations())
    24
    """
    rotations = []
    for order in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            if round(np.linalg.det(np.eye(3)[list(order)])) == (-1) ** sum(flips):  # a rotation, no mirror
                rotations.append((order, tuple(axis for axis, flip in enumerate(flips) if flip)))
    return rotations


_ROTATIONS = cube_rotations()


def cut(
    density: NDArray[np.floating], centre: NDArray[np.integer], shape: tuple[int, ...], fill: float
) -> NDArray[np.float32]:
    """The box of ``shape`` whose voxel n // 2 is voxel ``centre`` of ``density``; ``fill`` where there is no map.

    >>> cut(np.arange(8.0).reshape(2, 2, 2), np.array([0, 0, 0]), (1, 1, 3), fill=-1)
    array([[[-1.,  0.,  1.]]], dtype=float32)
    """
    box = np.full(shape, fill, np.float32)
    into, source = [], []
    for c, n, side in zip(centre.tolist(), shape, density.shape, strict=True):
        start = c - n // 2
        first, last = min(max(start, 0), side), max(min(start + n, side), 0)
        source.append(slice(first, max(first, last)))
        into.append(slice(first - start, max(first, last) - start))
    box[tuple(into)] = density[tuple(source)]
    return box


def rot24(crop: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A cube (n, n, n) turned by one of the 24 rotations that swap and flip axes; every value is kept.

    >>> turned = rot24(np.arange(27, dtype=np.float32).reshape(3, 3, 3), np.random.default_rng(0))
    >>> float(turned[1, 1, 1]), sorted(turned.ravel().tolist()) == list(range(27))
    (13.0, True)
    """
    order, flips = _ROTATIONS[rng.integers(24)]
    return np.ascontiguousarray(np.flip(crop.transpose(order), flips))


def random_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """A matrix (3, 3), uniform over SO(3): that of a quaternion with four normal components.

    >>> round(float(np.linalg.det(random_rotation(np.random.default_rng(0)))), 12)
    1.0
    """
    q = rng.standard_normal(4)
    w, (x, y, z) = q[0] / np.linalg.norm(q), q[1:] / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def cut_rotated(
    density: NDArray[np.floating],
    centre: NDArray[np.integer],
    side: int,
    rotation: NDArray[np.float64],
    fill: float,
) -> NDArray[np.float32]:
    """The cube of ``side`` voxels around ``centre`` in axes turned by ``rotation`` (needs scipy, extra ``[train]``).

    Its corners come from the map, since the box that is cut first holds the turned cube whole. Between voxels the
    map is a cubic spline, which keeps the power at 4 Å that trilinear interpolation halves; the little it falls
    below ``fill``, the least that a clipped map has, is set to that.

    Args:
        density: (z, y, x).
        centre: voxel (z, y, x) of the map that becomes voxel ``side // 2`` of the cube.
        side: of the cube, voxels.
        rotation: takes an offset (z, y, x) in the cube to one in the map.
        fill: value beyond the map.

    Returns:
        (side, side, side).
    """
    from scipy.ndimage import affine_transform

    half = np.ceil(np.abs(rotation).sum(1) * (side / 2)).astype(int) + _SPLINE
    box = cut(density, centre, tuple((2 * half + 1).tolist()), fill)
    offset = half - rotation @ np.full(3, side // 2)
    turned = affine_transform(box, rotation, offset, (side,) * 3, np.float32, order=3, mode="nearest")
    crop = np.asarray(turned, np.float32)
    np.maximum(crop, np.float32(fill), out=crop)
    return crop
