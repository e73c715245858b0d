"""A density map and where it lies in space."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.checks import all_finite, finite, positive
from cryofm_io.errors import GeometryError, GridMismatchError

if TYPE_CHECKING:
    from cryofm_io.mrc_read import MapOnDisk

__all__ = ["DensityMap", "check_same_grid"]


_FARTHEST = 1e38  # Å; of single precision


def _as_float32(data: Any) -> NDArray[np.float32]:
    if np.iscomplexobj(data):
        raise GeometryError("complex values, a transform? A map is real")
    return np.ascontiguousarray(data, dtype=np.float32)


def _three_floats(values: Sequence[float]) -> tuple[float, float, float]:
    x, y, z = values
    return float(x), float(y), float(z)


def _three_ints(values: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = values
    return int(x), int(y), int(z)


def _strings(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@attrs.frozen(eq=False)
class DensityMap:
    """A density map on a cubic lattice.

    Args:
        data: The density, float32 ``(z, y, x)``.
        voxel_size: Edge of a voxel in Å, the same along all axes.
        origin: Position (x, y, z) of voxel (0, 0, 0) in Å, as the header's ORIGIN states it.
        nstart: Position (x, y, z) of voxel (0, 0, 0) in voxels, as the header's NSTART states it.
        space_group: The header's ISPG; 1 for a volume (many programs write 0).
        labels: The header's text lines; at most ten of 80 characters are written.

    Raises:
        GeometryError: The data are not three-dimensional or hold NaN or infinity, the voxel size is not positive, or
            the origin is not finite.

    Example:
        >>> DensityMap(np.zeros((4, 5, 6)), 1.5, nstart=(-3, -2, -2)).position
        (-4.5, -3.0, -3.0)
    """

    data: NDArray[np.float32] = attrs.field(converter=_as_float32, repr=lambda d: f"float32 {d.shape}")
    voxel_size: float = attrs.field(converter=float)
    origin: tuple[float, float, float] = attrs.field(default=(0.0, 0.0, 0.0), converter=_three_floats)
    nstart: tuple[int, int, int] = attrs.field(default=(0, 0, 0), converter=_three_ints)
    space_group: int = 1
    labels: tuple[str, ...] = attrs.field(default=(), converter=_strings)

    def __attrs_post_init__(self) -> None:
        if self.data.ndim != 3:
            raise GeometryError(f"expected a 3-D map (z, y, x), got shape {self.data.shape}")
        positive("voxel size", self.voxel_size, "Å")
        all_finite("a map's values", self.data)
        for axis, position in zip("xyz", self.origin, strict=True):
            finite(f"origin {axis}", position, "Å")
        if any(abs(position) > _FARTHEST for position in self.origin):
            raise GeometryError(f"origin {self.origin} Å: no file can hold it")
        if any(abs(start) >= 2**31 for start in self.nstart):
            raise GeometryError(f"NSTART {self.nstart}: an MRC file has 32 bits for each")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels (z, y, x)."""
        z, y, x = self.data.shape
        return z, y, x

    @property
    def position(self) -> tuple[float, float, float]:
        """Position (x, y, z) of voxel (0, 0, 0) in Å: the origin, or nstart where the origin is zero."""
        return position_of(self)


def position_of(map: "DensityMap | MapOnDisk") -> tuple[float, float, float]:
    """See `DensityMap.position`."""
    return map.origin if any(map.origin) else _three_floats([n * map.voxel_size for n in map.nstart])


def check_same_grid(
    first: "DensityMap | MapOnDisk", second: "DensityMap | MapOnDisk", what: str = "the two maps"
) -> None:
    """Refuse two maps that do not lie on one grid.

    Voxel sizes may differ by 0.1 % and positions by a hundredth of a voxel, which is what rounding in
    headers does.  A position may be said by NSTART in one header and by ORIGIN in the other.

    Raises:
        GridMismatchError: Naming the quantity and both values.

    Example:
        >>> check_same_grid(DensityMap(np.zeros((4, 4, 4)), 1.0), DensityMap(np.zeros((4, 4, 4)), 1.1))
        Traceback (most recent call last):
        cryofm_io.errors.GridMismatchError: the two maps differ in voxel size: 1.0 Å and 1.1 Å; ...
    """
    a, b = first.voxel_size, second.voxel_size
    here = _close(position_of(first), position_of(second), 0.01 * a)
    rows = [
        ("shape (z, y, x)", first.shape == second.shape, first.shape, second.shape),
        ("voxel size", abs(a - b) <= 1e-3 * a, f"{a} Å", f"{b} Å"),
        (
            "origin",
            here or _close(first.origin, second.origin, 0.01 * a),
            first.origin,
            second.origin,
        ),
        ("nstart", here or first.nstart == second.nstart, first.nstart, second.nstart),
    ]
    for name, same, mine, theirs in rows:
        if not same:
            raise GridMismatchError(f"{what} differ in {name}: {mine} and {theirs}; bring them to one grid first")


def _close(first: Sequence[float], second: Sequence[float], within: float) -> bool:
    return np.allclose(first, second, rtol=0, atol=within)
