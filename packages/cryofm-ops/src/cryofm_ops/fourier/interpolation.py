"""Interpolation on a 3-D grid at any positions, `gather`, and its exact transpose, `scatter`.

A value is Σ_abc w_a w_b w_c · grid[a, b, c] over the taps of a separable kernel around the position; outside of the
grid there is 0. Both directions are differentiable any number of times, in the values and in the positions: their
derivatives are themselves gathers and scatters, which torch's `grid_sample` does not offer.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from cryofm_ops.errors import GeometryError, GridMismatchError
from cryofm_ops.fourier.grid import Shape
from cryofm_ops.fourier.kernels import TRILINEAR, Kernel

__all__ = ["gather", "scatter", "scatter_columns_"]

_POINTS_ON_CPU = 2**14  # worked on at a time, so that the taps of a chunk stay in the cache
_POINTS_ELSEWHERE = 2**18  # 128 MiB of taps of width 4


def gather(grid: Tensor, points: Tensor, kernel: Kernel = TRILINEAR) -> Tensor:
    """Values `(*batch, n)` of grids `(*batch, z, y, x)`, real or complex, at points `(*batch, n, 3)`.

    Points are real, in (x, y, z) order, in voxels from voxel (0, 0, 0); the batches broadcast.

    >>> grid = torch.arange(8.0).reshape(2, 2, 2)
    >>> gather(grid, torch.tensor([[0.5, 0.0, 1.0], [1.0, 1.0, 1.5]]))
    tensor([4.5000, 3.5000])
    """
    batch, first, weights = _taps(points, grid.shape[:-3], kernel)
    grid = grid.expand(*batch, *grid.shape[-3:])
    values = [_gather(grid[i], first[i], [w[i] for w in weights]) for i in _indices(batch)]
    return torch.stack(values).reshape(*batch, points.shape[-2])


def scatter(values: Tensor, points: Tensor, shape: Shape, kernel: Kernel = TRILINEAR) -> Tensor:
    """Grids `(*batch, *shape)` on which values `(*batch, n)` are spread at points `(*batch, n, 3)`: `gather`ᵀ.

    >>> scatter(torch.tensor([2.0]), torch.tensor([[0.5, 0.0, 1.0]]), (2, 2, 2))[1, 0]
    tensor([1., 1.])
    """
    if values.shape[-1:] != points.shape[-2:-1]:
        raise GridMismatchError(f"values of shape {tuple(values.shape)} for points of shape {tuple(points.shape)}")
    batch, first, weights = _taps(points, values.shape[:-1], kernel)
    values = values.expand(*batch, values.shape[-1])
    grids = [_scatter(values[i], shape, first[i], [w[i] for w in weights]) for i in _indices(batch)]
    return torch.stack(grids).reshape(*batch, *shape)


@torch.no_grad()
def scatter_columns_(grids: Tensor, columns: Tensor, points: Tensor, kernel: Kernel = TRILINEAR) -> Tensor:
    """Add real columns `(c, n)` at points `(n, 3)` to grids `(c, z, y, x)`, in place: one set of taps; no gradient.

    >>> grids = torch.ones(2, 2, 2, 2)
    >>> scatter_columns_(grids, torch.tensor([[2.0], [4.0]]), torch.tensor([[0.5, 0.0, 1.0]]))[:, 1, 0]
    tensor([[2., 2.],
            [3., 3.]])
    """
    _, first, weights = _taps(points, (), kernel)
    for part, index, weight in _chunks(grids.shape[1:], first, weights):
        at = index.flatten()
        for column, grid in zip(columns, grids, strict=True):
            grid.view(-1).index_add_(0, at, (weight * column[part, None]).flatten().to(grid.dtype))
    return grids


def _taps(points: Tensor, batch: Sequence[int], kernel: Kernel) -> tuple[tuple[int, ...], Tensor, list[Tensor]]:
    """The common batch; first taps `(*batch, n, 3)` along (z, y, x), and weights along each, `(*batch, n, width)`."""
    if points.ndim < 2 or points.shape[-1] != 3 or not points.is_floating_point():
        raise GeometryError(f"points must be real (..., n, 3), got {points.dtype} of shape {tuple(points.shape)}")
    batch = tuple(torch.broadcast_shapes(tuple(batch), points.shape[:-2]))  # type: ignore[no-untyped-call]
    points = points.flip(-1)
    floor = points.detach().floor()
    reach = kernel.width // 2
    offset = torch.arange(1 - reach, 1 + reach, dtype=points.dtype, device=points.device)
    weights = kernel((points - floor)[..., None] - offset).unbind(-2)
    first = floor.long() + 1 - reach
    return batch, first.expand(*batch, *first.shape[-2:]), [w.expand(*batch, *w.shape[-2:]) for w in weights]


def _indices(batch: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, batch))


def _gather(grid: Tensor, first: Tensor, weights: Sequence[Tensor]) -> Tensor:
    values: Tensor = _Gather.apply(grid, first, *weights)  # type: ignore[no-untyped-call]
    return values


def _scatter(values: Tensor, shape: Sequence[int], first: Tensor, weights: Sequence[Tensor]) -> Tensor:
    grid: Tensor = _Scatter.apply(values, shape, first, *weights)  # type: ignore[no-untyped-call]
    return grid


def _chunks(shape: Sequence[int], first: Tensor, weights: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Flat indices and products of weights, `(points, taps)`, chunk after chunk; a tap off the grid weighs 0."""
    step = _POINTS_ON_CPU if first.device.type == "cpu" else _POINTS_ELSEWHERE
    dtype = torch.int32 if math.prod(shape) < 2**31 else torch.int64
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        index = first.new_zeros(1, 1, dtype=dtype)
        weight = weights[0].new_ones(1, 1)
        for axis, n in enumerate(shape):
            w = weights[axis][part]
            i = first[part, axis, None] + torch.arange(w.shape[1], device=first.device)
            w = torch.where((i >= 0) & (i < n), w, 0)
            index = (index[..., None] * n + i.clamp(0, n - 1).to(dtype)[:, None]).flatten(1)
            weight = (weight[..., None] * w[:, None]).flatten(1)
        yield part, index, weight


def _columns(x: Tensor) -> Tensor:
    """Real or complex `(n,)` as real columns `(n, 1 or 2)`."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x[:, None]


class _Gather(torch.autograd.Function):
    """(grid, weights) ↦ values, linear in each; `first` is fixed."""

    @staticmethod
    def forward(grid: Tensor, first: Tensor, *weights: Tensor) -> Tensor:
        columns = _columns(grid.flatten())
        parts = [
            torch.nn.functional.embedding_bag(index, columns, mode="sum", per_sample_weights=weight)
            for _, index, weight in _chunks(grid.shape, first, weights)
        ]
        out = torch.cat(parts) if parts else columns.new_zeros(0, columns.shape[1])
        return torch.view_as_complex(out) if grid.is_complex() else out[:, 0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        grid, first, *weights = ctx.saved_tensors
        d_grid, _, *d_weights = tangents
        return _sum_of(
            [lambda w: _gather(d_grid, first, w), lambda w: _gather(grid, first, w)], d_grid, weights, d_weights
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return _one_by_one(_Gather, info, in_dims, inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (g,) = grad_outputs
        grid, first, *weights = ctx.saved_tensors
        needs = ctx.needs_input_grad
        d_grid = _scatter(g, grid.shape, first, weights) if needs[0] else None
        return d_grid, None, *(_d_weight(grid, g, first, weights, a) if needs[2 + a] else None for a in range(3))


class _Scatter(torch.autograd.Function):
    """(values, weights) ↦ grid, linear in each; `first` is fixed."""

    @staticmethod
    def forward(values: Tensor, shape: Sequence[int], first: Tensor, *weights: Tensor) -> Tensor:
        columns = _columns(values)
        sums = [columns.new_zeros(math.prod(shape)) for _ in range(columns.shape[1])]
        for part, index, weight in _chunks(shape, first, weights):
            for column, total in enumerate(sums):
                total.index_add_(0, index.flatten(), (weight * columns[part, column, None]).flatten())
        return (torch.complex(*sums) if values.is_complex() else sums[0]).reshape(*shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        values, shape, *others = inputs
        ctx.shape = shape
        ctx.save_for_backward(values, *others)
        ctx.save_for_forward(values, *others)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        values, first, *weights = ctx.saved_tensors
        d_values, _, _, *d_weights = tangents
        shape = ctx.shape
        return _sum_of(
            [lambda w: _scatter(d_values, shape, first, w), lambda w: _scatter(values, shape, first, w)],
            d_values,
            weights,
            d_weights,
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return _one_by_one(_Scatter, info, in_dims, inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (g,) = grad_outputs
        values, first, *weights = ctx.saved_tensors
        needs = ctx.needs_input_grad
        d_values = _gather(g, first, weights) if needs[0] else None
        return (
            d_values,
            None,
            None,
            *(_d_weight(g, values, first, weights, a) if needs[3 + a] else None for a in range(3)),
        )


def _sum_of(parts: Any, moves: Any, weights: list[Tensor], d_weights: list[Any]) -> Tensor:
    """The product rule: what is interpolated moves, then one axis of the weights after the other."""
    moved, still = parts
    terms = [] if moves is None else [moved(weights)]
    for axis, d in enumerate(d_weights):
        if d is not None:
            terms.append(still([d if a == axis else w for a, w in enumerate(weights)]))
    total: Tensor = reduce(torch.add, terms)
    return total


def _one_by_one(function: Any, info: Any, in_dims: Any, inputs: Any) -> tuple[Tensor, int]:
    """A batch of `torch.func.vmap`, element by element: every one has points of its own."""

    def of(k: int) -> list[Any]:
        pairs = zip(inputs, in_dims, strict=True)
        return [x.select(d, k) if isinstance(x, Tensor) and d is not None else x for x, d in pairs]

    return torch.stack([function.apply(*of(k)) for k in range(info.batch_size)]), 0


def _d_weight(grid: Tensor, values: Tensor, first: Tensor, weights: list[Tensor], axis: int) -> Tensor:
    """The derivative of Re⟨values, gather(grid)⟩ in the weights along an axis: each tap has a gather of its own."""
    out = []
    for tap in range(weights[axis].shape[1]):
        alone = [torch.ones_like(w[:, :1]) if a == axis else w for a, w in enumerate(weights)]
        step = torch.tensor([tap if a == axis else 0 for a in range(3)], device=first.device)
        out.append((values.conj() * _gather(grid, first + step, alone)).real)
    return torch.stack(out, -1)
