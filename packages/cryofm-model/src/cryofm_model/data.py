"""Training crops: density-weighted places in a set of maps, turned by one of the 24 rotations of the cube."""

from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import CryoFMError
from .prior import Normalization

__all__ = ["MapSet", "cube_rotations"]

_OCCUPIED = 1.0  # model units: an eighth of full density
_SMALLEST = 500  # occupied voxels of a map worth training on


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


@attrs.frozen(eq=False)
class MapSet:
    """Maps held in memory, from which crops are drawn (augmentations of paper F.1).

    Attributes:
        maps: model units, float16, (z, y, x), all at the prior's voxel size.
        empty: what solvent is in model units; crops that reach beyond their map are filled with it.
        weights: how often each map is chosen: (voxels with density)^0.6, so that the many small ones do not
            crowd out the large, nor the reverse.
    """

    maps: Sequence[NDArray[np.float16]]
    empty: float
    weights: NDArray[np.float64] = attrs.field(init=False, repr=False)
    _places: list[NDArray[np.int32]] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        places = [np.argwhere(m > _OCCUPIED).astype(np.int32) for m in self.maps]
        weights = np.array([len(p) for p in places], dtype=float) ** 0.6
        if not self.maps or not weights.all():
            raise CryoFMError(f"no density to train on in {int((weights == 0).sum())} of {len(self.maps)} maps")
        object.__setattr__(self, "_places", places)
        object.__setattr__(self, "weights", weights / weights.sum())

    @classmethod
    def from_files(cls, paths: Sequence[Path], normalization: Normalization, voxel_size: float) -> "MapSet":
        """Read maps (extra ``[train]``), bring them to ``voxel_size`` (Å) and to model units.

        A map is clipped to [0, p99.999] and scaled to 0..1 (paper 4.1). Maps with next to no density are left out.
        """
        from cryofm_io import normalise_clean, read_map, to_grid

        maps = []
        for path in paths:
            density, _ = normalise_clean(to_grid(read_map(path), voxel_size)[0])
            z = ((density - normalization.mean) / normalization.std).astype(np.float16)
            if np.count_nonzero(z > _OCCUPIED) >= _SMALLEST:
                maps.append(z)
        return cls(maps, -normalization.mean / normalization.std)

    def crops(self, batch: int, side: int, rng: np.random.Generator) -> Tensor:
        """``batch`` crops of ``side``³ voxels around random places with density, (batch, z, y, x) float32."""
        chosen = rng.choice(len(self.maps), batch, p=self.weights)
        return torch.from_numpy(np.stack([self._crop(int(index), side, rng) for index in chosen]))

    def _crop(self, index: int, side: int, rng: np.random.Generator) -> NDArray[np.float32]:
        density, places = self.maps[index], self._places[index]
        centre = places[rng.integers(len(places))] + rng.integers(-(side // 4), side // 4 + 1, 3)
        crop = np.full((side,) * 3, self.empty, np.float32)
        start = centre - side // 2
        inside = [slice(max(s, 0), min(s + side, n)) for s, n in zip(start, density.shape, strict=True)]
        crop[tuple(slice(i.start - s, i.stop - s) for i, s in zip(inside, start, strict=True))] = density[tuple(inside)]
        order, flips = _ROTATIONS[rng.integers(24)]
        return np.ascontiguousarray(np.flip(crop.transpose(order), flips))


_ROTATIONS = cube_rotations()
