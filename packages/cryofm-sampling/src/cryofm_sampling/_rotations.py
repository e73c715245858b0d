"""The 24 proper rotations of the cube, which move voxels onto voxels."""

from itertools import permutations, product

from torch import Tensor

__all__ = ["ROTATIONS", "rotate", "rotate_back"]


def _even(permutation: tuple[int, ...]) -> bool:
    return sum(a > b for i, a in enumerate(permutation) for b in permutation[i + 1 :]) % 2 == 0


# Permute the axes, then flip some; determinant +1.
ROTATIONS = [
    (p, tuple(axis - 3 for axis in range(3) if flip[axis]))
    for p in permutations(range(3))
    for flip in product((False, True), repeat=3)
    if _even(p) == (sum(flip) % 2 == 0)
]


def rotate(x: Tensor, rotation: int) -> Tensor:
    """R x, for x `(n, z, y, x)`; a box that is no cube changes its shape."""
    p, flips = ROTATIONS[rotation]
    return x.permute(0, *(axis + 1 for axis in p)).flip(flips)


def rotate_back(x: Tensor, rotation: int) -> Tensor:
    """R⁻¹ x."""
    p, flips = ROTATIONS[rotation]
    return x.flip(flips).permute(0, *(p.index(axis) + 1 for axis in range(3)))
