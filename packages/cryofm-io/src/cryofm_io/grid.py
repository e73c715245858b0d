"""Bringing maps to a model's voxel size and box, and results back."""

import math
from collections.abc import Callable
from typing import Any, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.density_map import DensityMap
from cryofm_io.errors import GeometryError, GridMismatchError
from cryofm_io.mrc_read import MapSize
from cryofm_io.resample import fourier_resample

__all__ = ["GridTransform", "to_grid"]

Shape = tuple[int, int, int]

_TOLERANCE = 0.01  # of the voxel size
_LEAST_BOX = 0.1  # new voxels that the map must fill; the search for a ratio takes the longer, the fewer they are
_MOST_VOXELS = 100_000  # along a side, more than any map has
_FADE = 8  # voxels over which padding fades to the border's mean


@attrs.frozen
class GridTransform:
    """Pad, Fourier-resample, pad; and the way back.  All shapes are (z, y, x); centre voxels n // 2 coincide.

    ``forward`` and ``inverse`` are linear.  ``inverse(forward(x))`` is x where the grid becomes finer or the
    voxel size stays, and x without what lies beyond the new Nyquist frequency where it becomes coarser.

    Args:
        source: Shape of the input grid.
        padded: Shape to which the input is padded so that a whole number of new voxels fits.
        resampled: Number of new voxels in the padded box.
        target: Shape of the new grid.
        source_voxel_size: Å.
        voxel_size: Å, the true one of the new grid: ``source_voxel_size * padded / resampled``.
    """

    source: Shape
    padded: Shape
    resampled: Shape
    target: Shape
    source_voxel_size: float
    voxel_size: float

    @classmethod
    def of(cls, map: DensityMap | MapSize, voxel_size: float, multiple: int = 1, minimum: int = 1) -> Self:
        """The transform of `to_grid`, without the array: for who wants to know first how large that is.

        Raises:
            GeometryError: As `to_grid`.
        """
        if not (voxel_size > 0 and multiple >= 1 and minimum >= 1):
            what = f"voxel size {voxel_size} Å, multiple {multiple}, minimum {minimum}"
            raise GeometryError(f"{what}: all must be positive")
        if max(map.shape) * map.voxel_size < _LEAST_BOX * voxel_size:
            raise GeometryError(
                f"a box of {max(map.shape)} voxels of {map.voxel_size:g} Å is far smaller than one voxel of "
                f"{voxel_size:g} Å; is the voxel size right?"
            )
        if max(map.shape) * map.voxel_size > _MOST_VOXELS * voxel_size:
            raise GeometryError(
                f"a box of {max(map.shape)} voxels of {map.voxel_size:g} Å has more than {_MOST_VOXELS} voxels of "
                f"{voxel_size:g} Å along its side; is the voxel size right?"
            )
        p, q = _ratio(map.voxel_size / voxel_size, map.shape)
        padded = _each(map.shape, lambda n: math.ceil(n / q) * q)
        resampled = _each(padded, lambda n: n // q * p)
        target = _each(resampled, lambda m: math.ceil(max(m, minimum) / multiple) * multiple)
        true = map.voxel_size if p == q else float(f"{map.voxel_size * q / p:.7g}")
        return cls(map.shape, padded, resampled, target, map.voxel_size, true)

    def forward(self, data: NDArray[Any]) -> NDArray[Any]:
        """Bring an array ``(..., *source)`` to ``(..., *target)``.

        Padding mirrors the data and fades within 8 voxels to the mean of the array's border, so that no edge
        rings.  A resampled mask may leave [0, 1] by a little: clip it.

        Raises:
            GridMismatchError: The array is not on the input grid.
        """
        self._check(data, self.source)
        return _pad(fourier_resample(_pad(data, self.padded), self.resampled), self.target)

    def inverse(self, data: NDArray[Any]) -> NDArray[Any]:
        """Bring an array ``(..., *target)`` back to ``(..., *source)``.

        Raises:
            GridMismatchError: The array is not on the new grid.
        """
        self._check(data, self.target)
        return _crop(fourier_resample(_crop(data, self.resampled), self.padded), self.source)

    def new_map(self, data: NDArray[Any], like: DensityMap) -> DensityMap:
        """The map that an array on the new grid is, in the place of ``like``: NSTART 0, ORIGIN moved.

        Args:
            data: ``target``.
            like: The map on the input grid whose position, space group and labels are taken.
        """
        self._check(data, self.target)
        origin = [
            position + n // 2 * self.source_voxel_size - m // 2 * self.voxel_size
            for position, n, m in zip(like.position, reversed(self.source), reversed(self.target), strict=True)
        ]
        return attrs.evolve(like, data=data, voxel_size=self.voxel_size, origin=origin, nstart=(0, 0, 0))

    def _check(self, data: NDArray[Any], shape: Shape) -> None:
        if data.shape[-3:] != shape:
            raise GridMismatchError(f"an array of shape {data.shape} is not on this grid of shape (..., *{shape})")


def to_grid(
    map: DensityMap, voxel_size: float, multiple: int = 1, minimum: int = 1
) -> tuple[NDArray[Any], GridTransform]:
    """Bring a map to a voxel size and to sides that a model can take.

    The voxel size is met within 1 %: the box is padded by the few voxels that make a whole number of new
    voxels fit, with one ratio for all axes.  A map that is within 1 % already is only padded, and keeps its
    values exactly.

    Args:
        map: The input.
        voxel_size: The wished voxel size in Å; the true one is the transform's ``voxel_size``.
        multiple: Each new side is a multiple of this.
        minimum: Each new side has at least so many voxels.

    Returns:
        The array on the new grid, and the transform that brings other arrays there and results back.

    Raises:
        GeometryError: ``voxel_size``, ``multiple`` or ``minimum`` is not positive, or the whole map is less than a
            tenth of a new voxel.

    Example:
        >>> half1 = DensityMap(np.random.default_rng(0).normal(size=(50, 51, 52)), voxel_size=1.05)
        >>> array, grid = to_grid(half1, voxel_size=1.5, multiple=8)
        >>> array.shape, grid.voxel_size
        ((40, 40, 40), 1.504054)
        >>> grid.inverse(array).shape
        (50, 51, 52)
    """
    transform = GridTransform.of(map, voxel_size, multiple, minimum)
    return transform.forward(map.data), transform


def _ratio(ratio: float, shape: Shape) -> tuple[int, int]:
    """New voxels p over old voxels q: within the tolerance of ``ratio``, and padding the box least."""
    if abs(ratio - 1) <= _TOLERANCE:
        return 1, 1
    # A denominator up to 100 / ratio always has a numerator within the tolerance; the sides' own need no padding.
    largest = max(math.ceil(100 / min(ratio, 1)), *shape)
    candidates = [(round(q * ratio), q) for q in range(1, largest + 1)]
    error = {(p, q): abs(p / q / ratio - 1) for p, q in candidates if p > 0}
    return min(
        (pq for pq in error if error[pq] <= _TOLERANCE),
        key=lambda pq: (math.prod(math.ceil(n / pq[1]) * pq[1] for n in shape), error[pq]),
    )


def _each(shape: Shape, function: Callable[[int], int]) -> Shape:
    z, y, x = (function(n) for n in shape)
    return z, y, x


def _slices(inner: Shape, outer: Shape) -> tuple[Any, ...]:
    """Where a box lies in a larger one when centre voxels coincide."""
    starts = [m // 2 - n // 2 for n, m in zip(inner, outer, strict=True)]
    return (..., *(slice(start, start + n) for start, n in zip(starts, inner, strict=True)))


def _crop(data: NDArray[Any], shape: Shape) -> NDArray[Any]:
    z, y, x = data.shape[-3:]
    return np.ascontiguousarray(data[_slices(shape, (z, y, x))])


def _pad(data: NDArray[Any], shape: Shape) -> NDArray[Any]:
    z, y, x = source = data.shape[-3:]
    if source == shape:
        return data
    border = np.mean(
        [face.mean(axis=(-2, -1)) for axis in (-3, -2, -1) for face in np.moveaxis(data, axis, 0)[[0, -1]]],
        axis=0,
    )
    border = border[..., None, None, None]
    where = _slices((z, y, x), shape)
    widths = [(part.start, m - part.stop) for part, m in zip(where[1:], shape, strict=True)]
    result = np.pad(data, [(0, 0)] * (data.ndim - 3) + widths, mode="symmetric")
    result -= border
    for axis, (before, after) in zip((-3, -2, -1), widths, strict=True):
        inside = shape[axis] - before - after
        distance = np.concatenate([np.arange(before, 0, -1), np.zeros(inside), np.arange(1, after + 1)])
        window = (1 + np.cos(np.pi * np.minimum(distance / _FADE, 1))) / 2
        result *= window.astype(data.dtype).reshape(-1, *[1] * (-1 - axis))
    result += border
    result[where] = data  # exactly, without the rounding of the border's mean
    return result
