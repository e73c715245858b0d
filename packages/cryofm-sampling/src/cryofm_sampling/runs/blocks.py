"""A volume larger than memory, in overlapping blocks that are problems of their own."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import Any, Protocol

import attrs
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cryofm_sampling._common import Box, whole
from cryofm_sampling.errors import GridMismatchError, SettingError
from cryofm_sampling.runs._ranks import rank_and_size

__all__ = ["ArrayLike", "Blocks"]

Places = tuple[slice, slice, slice]
_SLAB = 32  # voxels along z that are blended at a time


class ArrayLike(Protocol):
    """What is read and written in parts: an array, a memory map, a dataset of an HDF5 file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As that of an array."""
        ...

    def __getitem__(self, key: Any, /) -> Any:
        """A part."""
        ...

    def __setitem__(self, key: Any, value: Any, /) -> None:
        """Write a part."""
        ...


@attrs.frozen(slots=False)
class Blocks:
    """Overlapping blocks, all of one shape, of a volume of which no more than a few are ever in memory.

    Every block is a problem of its own, but for what `solve` is told of all of them. Within `margin` of a face that
    is not the volume's a result is not used, for there a block knows nothing of its neighbour; over the next `fade`
    voxels neighbours are blended. What is finished is kept until all is, so that a killed run goes on, and the blend
    is added up in one order whoever did what: it is the same to the bit however many processes share the work.

    Attributes:
        shape: of the volume (z, y, x).
        side: of a block, in voxels; of a shorter axis, all of it.
        margin: voxels next to a face of a block that are not used.
        fade: voxels over which neighbours are blended.

    >>> blocks = Blocks((40, 24, 16), side=16, margin=2, fade=4)
    >>> len(blocks), blocks.block, blocks[1]
    (8, (16, 16, 16), (slice(0, 16, None), slice(8, 24, None), slice(0, 16, None)))
    >>> x = np.random.default_rng(0).normal(size=blocks.shape).astype(np.float32)
    >>> kept, done = np.empty((len(blocks), *blocks.block), np.float32), np.zeros(len(blocks), bool)
    >>> blocks.solve(lambda part: 2 * part, [x], kept, done)
    >>> all(np.allclose(slab, 2 * x[z]) for z, slab in blocks.blended(kept))
    True
    """

    shape: Box
    side: int = attrs.field(validator=whole(1))
    margin: int = attrs.field(default=16, validator=whole(0))
    fade: int = attrs.field(default=16, validator=whole(0))

    def __attrs_post_init__(self) -> None:
        if self.side <= 2 * (self.margin + self.fade):
            raise SettingError(
                f"side must be more than two margins and two fades, {2 * (self.margin + self.fade)}, got {self.side}"
            )

    @property
    def block(self) -> Box:
        """The shape of every block."""
        z, y, x = (min(self.side, size) for size in self.shape)
        return z, y, x

    def __len__(self) -> int:
        return math.prod(len(firsts) for firsts in self._firsts)

    def __getitem__(self, number: int, /) -> Places:
        """Where a block lies."""
        z, y, x = (slice(first, first + side) for first, side in zip(self._corners[number], self.block, strict=True))
        return z, y, x

    def read(self, sources: Sequence[ArrayLike], number: int, /) -> list[Tensor]:
        """One block of every source `(z, y, x)`, in single precision.

        Raises `GridMismatchError` for a source of another shape.
        """
        if wrong := [tuple(source.shape) for source in sources if tuple(source.shape) != self.shape]:
            raise GridMismatchError(f"blocks of a volume {self.shape} cannot be read from one of shape {wrong[0]}")
        return [torch.from_numpy(np.array(source[self[number]], np.float32)) for source in sources]

    def solve(
        self,
        restore: Callable[..., Tensor],
        sources: Sequence[ArrayLike],
        kept: ArrayLike,
        done: ArrayLike,
        /,
        *,
        group: "dist.ProcessGroup | None" = None,
        callback: Callable[[int], object] | None = None,
    ) -> None:
        """Restore every block that is not done yet, block i on rank i modulo their number, and wait for all ranks.

        Args:
            restore: one block of every source -> the block restored; the same ones give the same result.
            sources: volumes `(z, y, x)` that are read in blocks.
            kept: `(blocks, *block)`, into which results are written; ranks share it, as a memory-mapped file.
            done: `(blocks,)`, which of them are there: 0 at first, then set one by one.
            group: `torch.distributed` processes that share the blocks. None: this process does all.
            callback: is told the number of every block that is done, also of those that were.
        """
        rank, size = rank_and_size(group)
        for number in range(rank, len(self), size):
            if not done[number]:
                kept[number] = restore(*self.read(sources, number)).numpy(force=True)
                for array in (kept, done):  # the result first
                    if array is done:
                        done[number] = True
                    getattr(array, "flush", lambda: None)()
            if callback is not None:
                callback(number)
        if group is not None:
            dist.barrier(group)

    def blended(self, kept: ArrayLike, /) -> Iterator[tuple[slice, np.ndarray[Any, np.dtype[np.float32]]]]:
        """The volume, slab by slab along z: where each lies, and its values `(few, y, x)`."""
        weights = [
            [self._window(first, side, size) for first in firsts]
            for firsts, side, size in zip(self._firsts, self.block, self.shape, strict=True)
        ]
        numbers = [range(len(firsts)) for firsts in self._firsts]
        for begin in range(0, self.shape[0], _SLAB):
            end = min(begin + _SLAB, self.shape[0])
            sums = np.zeros((end - begin, *self.shape[1:]), np.float32)
            total = np.zeros_like(sums)
            for number, which in enumerate(product(*numbers)):
                z, y, x = self[number]
                low, high = max(begin, z.start), min(end, z.stop)
                if low < high:
                    along_z, along_y, along_x = (weights[axis][i] for axis, i in enumerate(which))
                    part = slice(low - z.start, high - z.start)
                    weight = along_z[part, None, None] * along_y[:, None] * along_x
                    sums[low - begin : high - begin, y, x] += weight * kept[number, part]
                    total[low - begin : high - begin, y, x] += weight
            yield slice(begin, end), sums / total

    @cached_property
    def _firsts(self) -> list[list[int]]:
        """First voxels along each axis: multiples of the stride, the last one moved in to end with the axis."""
        return [
            [min(first, size - side) for first in range(0, max(size - shared, 1), max(side - shared, 1))]
            for size, side, shared in zip(self.shape, self.block, [2 * self.margin + self.fade] * 3, strict=True)
        ]

    @cached_property
    def _corners(self) -> list[tuple[int, ...]]:
        return list(product(*self._firsts))

    def _window(self, first: int, side: int, size: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Of a block along an axis: 0 in the margins, sin² over the fades, 1 between and up to the volume's faces."""
        window = np.ones(side, np.float32)
        ramp = np.sin(np.pi / 2 * (np.arange(self.fade) + 0.5) / max(self.fade, 1)) ** 2
        edge = np.concatenate([np.zeros(self.margin), ramp]).astype(np.float32)
        if first > 0:
            window[: len(edge)] = edge
        if first + side < size:
            window[side - len(edge) :] = edge[::-1]
        return window
