"""Maps as bytes for a page: cut to what matters, no finer than a limit allows, with their place in space."""

import base64
import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryofm_io.density_map import DensityMap
from cryofm_io.grid import GridTransform

__all__ = ["MOST", "Window", "packed"]

# Of each map, bytes: five at most are a third more as text, if nothing compresses, and leave room below 8 MB.
MOST = 1_050_000
_MARGIN = 12.0  # Å about the molecule, where the whole box is too large


class Window:
    """The part of a box that is shown, and its voxels.

    Args:
        like: A map on the full grid.
        mask: Where the molecule is, ``(z, y, x)``; None: anywhere.

    Attributes:
        position: (x, y, z) of the first voxel shown, Å.
        voxel_size: Å.
        shape: (z, y, x).
    """

    def __init__(self, like: DensityMap, mask: NDArray[Any] | None) -> None:
        box = tuple(slice(0, n) for n in like.shape)
        if math.prod(like.shape) > MOST and mask is not None and mask.any():
            box = tuple(_extent(mask, axis, round(_MARGIN / like.voxel_size)) for axis in range(3))
        self.box = box
        sides = [part.stop - part.start for part in box]
        coarser = (math.prod(sides) / MOST) ** (1 / 3)
        first = DensityMap(
            np.zeros(sides, np.float32),
            like.voxel_size,
            [p + like.voxel_size * part.start for p, part in zip(like.position, reversed(box), strict=True)],
        )
        self.grid = None if coarser <= 1 else GridTransform.of(first, 1.03 * coarser * like.voxel_size)
        shown = first if self.grid is None else self.grid.new_map(np.zeros(self.grid.target, np.float32), first)
        self.position, self.voxel_size, self.shape = shown.position, shown.voxel_size, shown.shape

    def show(self, data: NDArray[Any]) -> NDArray[Any]:
        """What of a map is shown."""
        cut = np.ascontiguousarray(data[self.box], dtype=np.float32)
        return cut if self.grid is None else self.grid.forward(cut)


def packed(data: NDArray[Any], low: float, high: float) -> str:
    """Values from low to high as 0 to 255, deflated, in base64."""
    scale = 255 / max(high - low, 1e-30)
    values = np.clip((data - np.float32(low)) * np.float32(scale) + np.float32(0.5), 0, 255).astype(np.uint8)
    return base64.b64encode(zlib.compress(values.tobytes(), 4)).decode("ascii")


def _extent(mask: NDArray[Any], axis: int, margin: int) -> slice:
    inside = np.flatnonzero((mask > 0).any(axis=tuple(other for other in range(3) if other != axis)))
    return slice(max(0, int(inside[0]) - margin), min(mask.shape[axis], int(inside[-1]) + 1 + margin))
