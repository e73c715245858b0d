"""Rows of tiles: how `tiled_attention` cuts the grid, and the memory into which it packs the pieces."""

import functools
import itertools
import math
from collections.abc import Iterator

import attrs
import torch
from einops import rearrange
from torch import Tensor

from cryofm_model.attention.window import Segment, segments

__all__ = ["Buffers", "Row", "Tile", "rows_of", "unpacked"]

_TILE = 4  # queries along an axis
_SCORES = 2**20  # computed at a time: they should stay in the cache


@attrs.frozen
class Tile:
    """A small box of queries and the box of keys that they see, as slices of the packed arrays of a `Row`.

    Attributes:
        queries: slice of the packed queries.
        keys: slice of the packed keys.
        bias: (queries, keys), −∞ where a key is outside the window of a query; None if none is.
    """

    queries: slice
    keys: slice
    bias: Tensor | None


@attrs.frozen
class Row:
    """The tiles along x at one place in z and y, for one member of the batch and some of the heads.

    Their queries and keys are packed as (heads, x·z·y, head width), x slowest: a tile is then a slice of
    either, and tiles that are neighbours share the keys which both of them see.

    Attributes:
        queries: index of the row's queries in (batch, z, y, x, heads, head width).
        keys: index of its keys.
        tiles: in the order of x.
    """

    queries: tuple[int | slice, ...]
    keys: tuple[int | slice, ...]
    tiles: list[Tile]


class Buffers:
    """Named memory that is used again for every tile: fresh pages would cost more than the arithmetic.

    Args:
        like: gives the device, and the dtype if it has at least single precision.
    """

    def __init__(self, like: Tensor) -> None:
        self._new = functools.partial(torch.empty, dtype=at_least_float32(like.dtype), device=like.device)
        self._flat: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Memory of a shape, with whatever is in it."""
        size = math.prod(shape)
        if name not in self._flat or self._flat[name].numel() < size:
            self._flat[name] = self._new(size)
        return self._flat[name][:size].view(shape)

    def pack(self, name: str, a: Tensor) -> Tensor:
        """Copy of a (z, y, x, heads, head width) as (heads, x·z·y, head width)."""
        z, y, x, heads, width = a.shape
        packed = self(name, heads, x, z, y, width).copy_(a.permute(3, 2, 0, 1, 4))
        return packed.flatten(1, 3)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic for a dtype of the data."""
    return torch.promote_types(dtype, torch.float32)


def unpacked(packed: Tensor, like: Tensor) -> Tensor:
    """Undo `Buffers.pack`: the view of the shape of `like`."""
    z, y, _, _, _ = like.shape
    return rearrange(packed, "h (x z y) d -> z y x h d", z=z, y=y)


def rows_of(q: Tensor, kernel: int) -> Iterator[Row]:
    """Cut the grid of q (batch, z, y, x, heads, head width) into rows; each query is in exactly one."""
    batch, *grid, heads, _ = q.shape
    z_axis, y_axis, x_axis = (segments(n, kernel, _TILE) for n in grid)

    @functools.cache
    def bias(*offsets: tuple[int, ...]) -> Tensor | None:
        if not any(map(any, offsets)):
            return None
        # 1 inside the window and 0 outside, axis by axis: the logarithm of the product is 0 or −∞.
        x, z, y = (_members(o, kernel) for o in offsets)
        inside = torch.einsum("ai,bj,ck->abcijk", x, z, y).flatten(3).flatten(0, 2)
        return inside.log().to(q.device, at_least_float32(q.dtype))

    def tile(z: Segment, y: Segment, x: Segment) -> Tile:
        m, n = len(z.offsets) * len(y.offsets), _length(z.keys) * _length(y.keys)
        queries, keys = slice(x.queries.start * m, x.queries.stop * m), slice(x.keys.start * n, x.keys.stop * n)
        return Tile(queries, keys, bias(x.offsets, z.offsets, y.offsets))

    largest = math.prod(max(len(s.offsets) * _length(s.keys) for s in axis) for axis in (z_axis, y_axis, x_axis))
    step = max(1, _SCORES // largest)
    blocks = [slice(h, h + step) for h in range(0, heads, step)]
    for b, block, z, y in itertools.product(range(batch), blocks, z_axis, y_axis):
        queries, keys = (b, z.queries, y.queries, slice(None), block), (b, z.keys, y.keys, slice(None), block)
        yield Row(queries, keys, [tile(z, y, x) for x in x_axis])


def _members(offsets: tuple[int, ...], kernel: int) -> Tensor:
    """1 where a key is in the window of a query, else 0: (queries, keys)."""
    place = torch.arange(offsets[-1] + kernel) - torch.tensor(offsets)[:, None]
    return ((place >= 0) & (place < kernel)).float()


def _length(s: slice) -> int:
    length: int = s.stop - s.start
    return length
