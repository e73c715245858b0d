"""A prior on boxes larger, or smaller, than it was trained on: overlapping tiles, averaged at every
evaluation."""

import math
from itertools import product

import attrs
import torch
from torch import Tensor

from cryofm_sampling._common import forward, split_shape
from cryofm_sampling.errors import SettingError
from cryofm_sampling.protocols import VelocityField

__all__ = ["Tiled"]


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """First voxel of every tile along an axis: multiples of the stride, the last one moved in to end with the
    axis."""
    stride = tile - overlap
    return [min(start, size - tile) for start in range(0, size - overlap, stride)] if size > tile else [0]


def _window(tile: int, overlap: int) -> Tensor:
    """Raised cosine over the overlaps, 1 between: sin² up and cos² down, so that two neighbours sum to 1.
    `(tile,)`"""
    window = torch.ones(tile, dtype=torch.float64)
    ramp = torch.sin(math.pi / 2 * (torch.arange(overlap, dtype=torch.float64) + 0.5) / max(overlap, 1)) ** 2
    window[:overlap] *= ramp
    window[tile - overlap :] *= ramp.flip(0)
    return window


def _mirrored(size: int, tile: int) -> Tensor:
    """Indices that extend an axis to at least `tile` by reflection at both edges, as often as it takes."""
    length = max(size, tile)
    phase = (torch.arange(length) - (length - size) // 2) % (2 * size)
    return torch.minimum(phase, 2 * size - 1 - phase)


@attrs.frozen(eq=False, slots=False)
class Tiled:
    """A velocity field on any box, evaluated in overlapping cubic tiles; itself a `VelocityField`.

    Tiles are blended by a raised-cosine window that vanishes towards their edges, where a network sees least,
    so there are no seams; gradients flow through. Axes shorter than a tile are extended by reflection, which
    keeps the statistics of signal and noise (a constant would be noiseless), and cropped back. `Calibrated`
    exactly if the wrapped field is, and with its normalisation if it has one.

    Attributes:
        velocity: the field on tiles.
        tile: side of a tile, in voxels, such as the box that the prior was trained on.
        overlap: voxels shared by neighbours, at most half a tile.
        tile_batch: tiles evaluated together on an accelerator. On a CPU they always go one by one:
            convolutions round differently in another batch size, and there a batch gains nothing. So on a CPU
            the result does not depend on `tile_batch` by a bit; on an accelerator it does by rounding.

    >>> tiled = Tiled(lambda x, t: 2 * x, tile=8, overlap=2)
    >>> x = torch.rand(5, 9, 20)
    >>> tiled(x, torch.tensor(0.5)).allclose(2 * x)
    True
    """

    velocity: VelocityField
    tile: int = attrs.field(validator=attrs.validators.ge(1))
    overlap: int = attrs.field(validator=attrs.validators.ge(0))
    tile_batch: int = attrs.field(default=1, validator=attrs.validators.ge(1), kw_only=True)

    def __attrs_post_init__(self) -> None:
        if 2 * self.overlap > self.tile:
            raise SettingError(f"overlap is at most half a tile of {self.tile}, got {self.overlap}")
        forward(self.velocity, self, "signal_power", "denoising_error", "normalization")

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """The velocity at x `(*batch, z, y, x)` and t, a scalar or `(batch,)`."""
        batch, box = split_shape(x.shape)
        for axis, size in zip((-3, -2, -1), box, strict=True):
            if size < self.tile:
                x = x.index_select(axis, _mirrored(size, self.tile).to(x.device))
        padded = x.shape[-3:]
        x = x.reshape(-1, *padded)
        t = t.expand(batch).reshape(-1) if t.ndim else t

        starts = [_starts(size, self.tile, self.overlap) for size in padded]
        window = _window(self.tile, self.overlap)
        weights = []  # per axis: what the windows sum to
        for size, firsts in zip(padded, starts, strict=True):
            total = torch.zeros(size, dtype=window.dtype)
            for first in firsts:
                total[first : first + self.tile] += window
            weights.append(total)
        cube = _outer([window] * 3).to(x)

        places = [
            (i, slice(z, z + self.tile), slice(y, y + self.tile), slice(w, w + self.tile))
            for z, y, w in product(*starts)
            for i in range(len(x))
        ]
        together = 1 if x.device.type == "cpu" else self.tile_batch
        v = torch.zeros_like(x)
        for first in range(0, len(places), together):
            chunk = places[first : first + together]
            at = t[[i for i, *_ in chunk]] if t.ndim else t
            tiles = self.velocity(torch.stack([x[place] for place in chunk]), at)
            for place, tile in zip(chunk, tiles, strict=True):  # always in this order: sums round the same
                v[place] += cube * tile
        v = v / _outer(weights).to(x)
        z, y, w = (slice((p - n) // 2, (p - n) // 2 + n) for p, n in zip(padded, box, strict=True))
        return v[:, z, y, w].reshape(*batch, *box)


def _outer(axes: list[Tensor]) -> Tensor:
    z, y, x = axes
    return z[:, None, None] * y[:, None] * x
