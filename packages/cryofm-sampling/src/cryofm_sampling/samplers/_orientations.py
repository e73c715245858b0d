"""The 24 proper rotations of the cube, which move voxels onto voxels."""

from functools import partial
from itertools import permutations, product

import torch
from torch import Tensor

from cryofm_sampling._common import Oriented, evaluated, region_of
from cryofm_sampling.protocols import VelocityField

__all__ = ["ROTATIONS", "denoised", "rotate", "rotate_back"]


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


def denoised(velocity: VelocityField, u: Tensor, t: float, stream: torch.Generator) -> Tensor:
    """D(u) of level t for a volume `(z, y, x)`: x̂_0 at x_t = (1 − t) u, seen by the network in a random orientation."""
    rotation = int(torch.randint(len(ROTATIONS), (), generator=stream, device=stream.device))

    # What a field is shown beside x turns with it.
    field = velocity.turned(partial(rotate, rotation=rotation)) if isinstance(velocity, Oriented) else velocity

    def denoise(part: Tensor) -> Tensor:
        x_t = rotate((1 - t) * part[None], rotation)
        return rotate_back(x_t - t * evaluated(field, x_t, t), rotation)[0]

    region = region_of(velocity, u)
    return denoise(u) if region is None else region.within(denoise, u)
