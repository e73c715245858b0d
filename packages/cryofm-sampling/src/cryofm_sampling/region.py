"""Where in a box density can be, so that a prior is evaluated there and not in the solvent around it.

A few boxes cover what was found and a margin. What the prior makes of each is blended, over the margin, into what the
prior makes of the solvent there: one number, the median over the margins.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Self

import attrs
import torch
from torch import Tensor
from torch.nn.functional import max_pool3d

from cryofm_sampling.errors import SettingError

__all__ = ["Region"]

Box = tuple[int, int, int]
Places = tuple[slice, slice, slice]

_MARGIN = 4  # voxels around what was found; 8 changes the FSC_AUC of four maps by 0.0002, for half as much again
_MULTIPLE = 8  # of the sides of a box, as networks take them
_BLOCK = 4  # voxels: boxes begin and end on these
_WORTH = 0.8  # of a box's voxels that two boxes in its place may have at most
_WHOLE = 0.9  # of the whole, beyond which a region is not worth it


@attrs.frozen(eq=False, slots=False)
class Region:
    """Boxes that cover what is not solvent.

    Attributes:
        shape: of the volumes (z, y, x).
        boxes: slices along z, y and x; they may overlap.

    >>> where = torch.zeros(96, 96, 96, dtype=torch.bool)
    >>> where[40:56, 40:56, 40:56] = True
    >>> region = Region.around(where)
    >>> region.boxes
    ((slice(36, 60, None), slice(36, 60, None), slice(36, 60, None)),)
    >>> round(region.share, 3)
    0.016
    """

    shape: Box
    boxes: tuple[Places, ...]

    @classmethod
    def around(cls, where: Tensor, /) -> Self | None:
        """Boxes around what is true in `where`, `(z, y, x)`, and a margin; None where they save little.

        Raises `SettingError` where nothing is true.
        """
        z, y, x = shape = (int(where.shape[0]), int(where.shape[1]), int(where.shape[2]))
        if not where.any():
            raise SettingError("a region needs a place where density can be; there is none")
        blocks = max_pool3d(where[None].float(), _BLOCK, ceil_mode=True)[0] > 0
        boxes = tuple((_grown(a, z), _grown(b, y), _grown(c, x)) for a, b, c in _covered(blocks, (0, 0, 0), (z, y, x)))
        region = cls(shape, boxes)
        return region if region.share < _WHOLE else None

    @property
    def share(self) -> float:
        """Voxels of the boxes over voxels of the whole."""
        return sum(_volume(box) for box in self.boxes) / math.prod(self.shape)

    @cached_property
    def _weights(self) -> list[Tensor]:
        """Of each box: 1, falling over the margin towards faces within the volume."""
        return [_outer([_ramp(part, size) for part, size in zip(box, self.shape, strict=True)]) for box in self.boxes]

    @cached_property
    def _total(self) -> Tensor:
        total = torch.zeros(self.shape)
        for box, weight in zip(self.boxes, self._weights, strict=True):
            total[box] += weight
        return total

    def within(self, denoise: Callable[[Tensor], Tensor], x: Tensor, /) -> Tensor:
        """What `denoise` makes of volumes x `(*batch, z, y, x)` in the boxes; elsewhere what it makes of the solvent.

        >>> where = torch.zeros(64, 64, 64, dtype=torch.bool)
        >>> where[10:20, 10:20, 10:20] = True
        >>> x = torch.where(where, 2.0, 0.5)
        >>> region = Region.around(where)
        >>> torch.equal(region.within(lambda part: part, x), x)
        True
        """
        total = self._total.to(x)
        result, solvent = torch.zeros_like(x), []
        for box, weight in zip(self.boxes, self._weights, strict=True):
            weight = weight.to(x)
            part = denoise(x[(..., *box)].contiguous())
            result[(..., *box)] = result[(..., *box)] + weight * part
            solvent.append(part[..., (weight > 0.1) & (weight < 0.9)])
        level = torch.cat(solvent, -1).median(-1).values[..., None, None, None]
        return (result + (1 - total).clamp(min=0) * level) / total.clamp(min=1)


Spans = tuple[tuple[int, int], ...]


def _covered(blocks: Tensor, first: tuple[int, ...], shape: Box) -> list[Spans]:
    """(begin, end) in voxels along each axis, of boxes around what is true: one, or those of its two sides."""
    spans = [_span(blocks.any(axes)) for axes in _OTHERS]
    own = _voxels(spans, first)
    best, parts = _WORTH * _cost(own, shape), None
    for axis, (begin, end) in enumerate(spans):
        for cut in range(begin + 1, end):
            low, high = blocks.narrow(axis, begin, cut - begin), blocks.narrow(axis, cut, end - cut)
            if not (low.any() and high.any()):
                continue
            at = [tuple(f + (_BLOCK * at if a == axis else 0) for a, f in enumerate(first)) for at in (begin, cut)]
            halves = [(low, at[0]), (high, at[1])]
            cost = sum(_cost(_voxels([_span(h.any(axes)) for axes in _OTHERS], f), shape) for h, f in halves)
            if cost < best:
                best, parts = cost, halves
    if parts is None:
        return [own]
    return [box for half, begin in parts for box in _covered(half, begin, shape)]


_OTHERS = ((1, 2), (0, 2), (0, 1))


def _span(line: Tensor) -> tuple[int, int]:
    """First and one after the last that is true."""
    true = line.nonzero()
    return int(true[0]), int(true[-1]) + 1


def _voxels(spans: list[tuple[int, int]], first: tuple[int, ...]) -> Spans:
    return tuple((f + _BLOCK * b, f + _BLOCK * e) for (b, e), f in zip(spans, first, strict=True))


def _cost(box: Spans, shape: Box) -> int:
    return _volume(tuple(_grown(span, size) for span, size in zip(box, shape, strict=True)))


def _volume(box: tuple[slice, ...]) -> int:
    return math.prod(part.stop - part.start for part in box)


def _grown(span: tuple[int, int], size: int) -> slice:
    """With its margin, to a multiple that networks take, as far as the volume goes."""
    begin, end = max(span[0] - _MARGIN, 0), min(span[1] + _MARGIN, size)
    side = min(math.ceil((end - begin) / _MULTIPLE) * _MULTIPLE, size)
    begin = min(begin, size - side)
    return slice(begin, begin + side)


def _ramp(part: slice, size: int) -> Tensor:
    """1, and sin² over the margin at each end that is not the volume's."""
    ramp = torch.ones(part.stop - part.start)
    edge = torch.sin(math.pi / 2 * (torch.arange(_MARGIN) + 0.5) / _MARGIN) ** 2
    if part.start > 0:
        ramp[:_MARGIN] *= edge
    if part.stop < size:
        ramp[-_MARGIN:] *= edge.flip(0)
    return ramp


def _outer(axes: list[Tensor]) -> Tensor:
    z, y, x = axes
    return z[:, None, None] * y[:, None] * x
