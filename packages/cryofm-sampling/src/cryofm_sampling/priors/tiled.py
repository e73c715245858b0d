"""A prior on boxes larger, or smaller, than it was trained on: overlapping tiles, averaged at every
evaluation."""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Protocol, Self, cast

import attrs
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cryofm_sampling._common import copy_attributes, split_shape, whole
from cryofm_sampling.errors import SettingError
from cryofm_sampling.priors._memory import tiles_that_fit
from cryofm_sampling.priors.rescaled import Autocast
from cryofm_sampling.protocols import ConditionalVelocityField, VelocityField
from cryofm_sampling.region import Region
from cryofm_sampling.runs._ranks import check_same, gathered, rank_and_size, replicated

__all__ = ["Tiled"]

_LEAST_WEIGHT = 1e-10  # the cube of less, which a corner has, vanishes in single precision


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """First voxel of every tile along an axis: multiples of the stride, the last one moved in to end with the
    axis."""
    stride = tile - overlap
    return [min(start, size - tile) for start in range(0, size - overlap, stride)] if size > tile else [0]


def _raised_cosine(tile: int, overlap: int) -> Tensor:
    """Rises and falls over the overlaps, 1 between: sin² up and cos² down, so that two neighbours sum to 1.
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


class Boxed(VelocityField, Protocol):
    """A velocity field that says what boxes it takes; if it is also `.local`, of any size."""

    @property
    def box(self) -> int:
        """A good side for tiles."""
        ...

    @property
    def multiple(self) -> int:
        """Every side of a box must be a multiple of this."""
        ...


_CARRIED = ("signal_power", "denoising_error", "denoising_spectrum", "normalization", "tag", "weight", "evaluations")
_LARGEST = 160  # side of a tile of a local network: 1 GiB on the way there, 4 GiB with the way back


@attrs.frozen(eq=False, slots=False)
class Tiled:
    """A velocity field on any box, evaluated in overlapping cubic tiles; itself a `VelocityField`.

    Tiles are blended by a window that falls towards their edges, where a network sees least, so there are no
    seams. Axes shorter than a tile are extended by reflection, which keeps the statistics of signal and noise (a
    constant would be noiseless), and cropped back. `Calibrated` exactly if the wrapped field is, or a
    `ConditionalVelocityField`, and with its normalisation if it has one.

    Gradients flow through. Where there are several tiles each is evaluated again on the way back, a third
    evaluation's work beside the two that are counted, so that one tile's graph is in memory at a time.

    Attributes:
        velocity: the field on tiles.
        tile: side of a tile, in voxels, such as the box that the prior was trained on.
        overlap: voxels shared by neighbours, at most half a tile.
        window: `(tile,)`: the weight of a tile's voxels along each axis, positive and within 1e-10 of each other;
            where tiles overlap, weights are divided by their sum. None: a raised cosine over the overlap.
        multiple: a velocity that takes any box whose sides are multiples of this sees axes shorter than a tile
            extended to the next multiple only. None: it sees cubes.
        region: where density can be, for samplers, which then evaluate there alone; see `Region`. A call evaluates the
            whole box all the same.
        tile_batch: the most tiles to evaluate together on an accelerator. On a CUDA device a first tile shows how
            much memory one takes, and fewer go together where fewer fit; `SettingError` if not one does. On a CPU
            they always go one by one: convolutions round differently in another batch size, and there a batch
            gains nothing. So on a CPU the result does not depend on `tile_batch` by a bit; on an accelerator it
            does by rounding.
        group: `torch.distributed` processes that share the tiles, such as `torch.distributed.group.WORLD` under
            torchrun; None: this process does them all. Every one must make the same calls with the same volumes,
            that is run the same program with the same seed, and gets the whole result; `SettingError` if volumes
            differ. Tiles are added in the same order however many ranks there are: on a CPU the velocity is that
            of one process to the bit, and gradients to rounding.

    >>> tiled = Tiled(lambda x, t: 2 * x, tile=8, overlap=2)
    >>> x = torch.rand(5, 9, 20)
    >>> tiled(x, torch.tensor(0.5)).allclose(2 * x)
    True
    """

    velocity: VelocityField
    tile: int = attrs.field(validator=whole(1))
    overlap: int = attrs.field(validator=whole(0))
    window: Tensor | None = None
    multiple: int | None = attrs.field(default=None, kw_only=True)
    region: Region | None = attrs.field(default=None, kw_only=True)
    tile_batch: int = attrs.field(default=1, validator=whole(1), kw_only=True)
    group: "dist.ProcessGroup | None" = attrs.field(default=None, kw_only=True)
    _fit: dict[bool, int] = attrs.field(factory=dict, init=False, repr=False)  # found once, with gradients or without

    def __attrs_post_init__(self) -> None:
        if 2 * self.overlap > self.tile:
            raise SettingError(f"overlap is at most half a tile of {self.tile}, got {self.overlap}")
        if (window := self.window) is not None:
            least = window.max() * _LEAST_WEIGHT
            if window.shape != (self.tile,) or not ((window > 0) & (window >= least) & window.isfinite()).all():
                raise SettingError(
                    f"window must be {self.tile} positive weights, none less than {_LEAST_WEIGHT} of the largest, "
                    f"got {window}"
                )
        copy_attributes(self.velocity, self, *_CARRIED)
        if isinstance(self.velocity, ConditionalVelocityField):
            object.__setattr__(self, "given", self._given)

    @classmethod
    def fitting(
        cls,
        prior: "Boxed",
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype | None = None,
        group: "dist.ProcessGroup | None" = None,
    ) -> Self:
        """A prior on a box of that shape, in tiles of its own box; one that is smaller is a tile by itself.

        Of a prior that is `.local`, whose network sees a neighbourhood alone, tiles are as large as its memory allows.

        Args:
            prior: a velocity field that says what boxes it takes.
            shape: `(z, y, x)`; what is no multiple of what the network takes is mirrored to one.
            dtype: in which its network computes, such as `torch.bfloat16`; volumes keep theirs. None: its own.
            group: of processes that share the tiles, where there are several.

        >>> class Anything:
        ...     box, multiple = 32, 8
        ...     def __call__(self, x, t):
        ...         return x
        >>> Tiled.fitting(Anything(), (30, 40, 50)).overlap, Tiled.fitting(Anything(), (20, 20, 20)).tile
        (8, 24)
        """
        local = getattr(prior, "local", False)
        largest = max(_LARGEST // prior.multiple * prior.multiple, prior.box) if local else prior.box
        tile = min(largest, math.ceil(max(shape) / prior.multiple) * prior.multiple)
        several = tile < max(shape)
        return cls(
            prior if dtype is None else Autocast(prior, dtype),
            tile,
            min(tile, prior.box) // 4 if several else 0,
            multiple=prior.multiple if local else None,
            group=group if several else None,
        )

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """The velocity at x `(*batch, z, y, x)` and t, a scalar or `(batch,)`."""
        return self._in_tiles(self.velocity, x, t)

    def _given(self, x: Tensor, t: Tensor, volume: Tensor | None, tag: int | None, /) -> Tensor:
        """Of a conditional field, whose tiles are shown their part of the volume."""
        conditional = cast(ConditionalVelocityField, self.velocity)
        if volume is None:
            return self._in_tiles(lambda x, t: conditional.given(x, t, None, tag), x, t)
        return self._in_tiles(lambda x, t, shown: conditional.given(x, t, shown, tag), x, t, volume.expand(x.shape))

    def _in_tiles(self, velocity: Callable[..., Tensor], x: Tensor, t: Tensor, *others: Tensor) -> Tensor:
        """Velocity(tiles of x, t, the same tiles of other volumes like x), blended."""
        batch, box = split_shape(x.shape)
        check_same(x, self.group)
        x = replicated(x, self.group)
        sides = [self._side(size) for size in box]
        x, *beside = (self._extended(volume, sides) for volume in (x, *others))
        padded = x.shape[-3:]
        t = t.expand(batch).reshape(-1) if t.ndim else t

        starts = [_starts(size, side, self.overlap) for size, side in zip(padded, sides, strict=True)]
        windows = [self._window(side) for side in sides]
        weights = []  # per axis: what the windows sum to
        for size, firsts, window in zip(padded, starts, windows, strict=True):
            total = torch.zeros(size, dtype=window.dtype)
            for first in firsts:
                total[first : first + len(window)] += window
            weights.append(total)
        wide = torch.promote_types(x.dtype, torch.float32)  # the corners of a window are 0 in float16
        v = torch.zeros_like(x, dtype=wide)
        cuboid = _outer(windows).to(v)

        a, b, c = sides
        places = [
            (i, slice(z, z + a), slice(y, y + b), slice(w, w + c))
            for z, y, w in product(*starts)
            for i in range(len(x))
        ]
        rank, ranks = rank_and_size(self.group)
        together = self._together(x[places[0]][None], t[:1] if t.ndim else t)
        recompute = torch.is_grad_enabled() and x.requires_grad and len(places) > together
        for first in range(0, len(places), together * ranks):
            shared = places[first : first + together * ranks]
            each = math.ceil(len(shared) / ranks)  # the last rank repeats a tile where the shares are not even
            own = [shared[min(rank * each + i, len(shared) - 1)] for i in range(each)]
            at = t[[i for i, *_ in own]] if t.ndim else t
            chunk, *parts = (torch.stack([volume[place] for place in own]) for volume in (x, *beside))
            tiles = (
                checkpoint(velocity, chunk, at, *parts, use_reentrant=False, preserve_rng_state=False)
                if recompute
                else velocity(chunk, at, *parts)
            )
            # Always in this order, so that sums round the same.
            for place, v_tile in zip(shared, gathered(tiles, self.group), strict=False):
                v[place] += cuboid * v_tile
        v = (v / _outer(weights).to(v)).to(x.dtype)
        inner = (slice((p - n) // 2, (p - n) // 2 + n) for p, n in zip(padded, box, strict=True))
        return v[(slice(None), *inner)].reshape(*batch, *box)

    @staticmethod
    def _extended(x: Tensor, sides: Sequence[int]) -> Tensor:
        """Axes shorter than a tile mirrored, batch axes as one. `(n, z, y, x)`"""
        for axis, size, side in zip((-3, -2, -1), x.shape[-3:], sides, strict=True):
            if size < side:
                x = x.index_select(axis, _mirrored(size, side).to(x.device))
        return x.reshape(-1, *x.shape[-3:])

    def _side(self, size: int) -> int:
        """Of a tile along an axis."""
        if self.multiple is None or size >= self.tile:
            return self.tile
        return min(self.tile, math.ceil(size / self.multiple) * self.multiple)

    def _window(self, side: int) -> Tensor:
        """Of a tile along an axis, highest 1; where there is but one, all voxels count alike."""
        if side < self.tile:
            return torch.ones(side, dtype=torch.float64)
        if self.window is not None:
            return (self.window.double() / self.window.max()).cpu()
        return _raised_cosine(self.tile, self.overlap)

    def _together(self, tile: Tensor, t: Tensor) -> int:
        """How many tiles are evaluated at a time."""
        if tile.device.type == "cpu":
            return 1
        gradients = torch.is_grad_enabled() and tile.requires_grad
        if gradients not in self._fit:
            fit = tiles_that_fit(self.velocity, tile, t, gradients=gradients) or self.tile_batch
            self._fit[gradients] = min(fit, self.tile_batch)
            if self.group is not None:  # ranks keep step
                least = torch.tensor(self._fit[gradients], device=tile.device)
                dist.all_reduce(least, dist.ReduceOp.MIN, group=self.group)
                self._fit[gradients] = int(least)
        return self._fit[gradients]


def _outer(axes: list[Tensor]) -> Tensor:
    z, y, x = axes
    return z[:, None, None] * y[:, None] * x
