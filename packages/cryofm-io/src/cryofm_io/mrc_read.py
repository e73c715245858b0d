"""Reading MRC and CCP4 maps (MRC2014, Cheng et al., J. Struct. Biol. 192:146, 2015)."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.checks import positive
from cryofm_io.density_map import DensityMap
from cryofm_io.errors import InputFileError, MapWarning
from cryofm_io.mrc_header import Header
from cryofm_io.mrc_store import load, peek
from cryofm_io.other_formats import endings
from cryofm_io.voxel_size import settle_voxel_size, stated_voxel_size

__all__ = ["MapOnDisk", "MapSize", "map_on_disk", "map_size", "read_map"]

_log = logging.getLogger(__name__)

AS_A_VOLUME = "read as a volume"


def read_map(path: str | os.PathLike[str], *, voxel_size: float | None = None) -> DensityMap:
    """Read a map.

    Args:
        path: An MRC or CCP4 file (.mrc, .map, .ccp4), also compressed (.gz, .bz2).
        voxel_size: Å; wins over whatever the header says about size, with a warning of what it overrides (not within
            1 %).

    Returns:
        The map as float32 ``(z, y, x)``: other axis orders are transposed, which is logged.

    Raises:
        InputFileError: The file is missing, truncated or not MRC; it holds an image, a stack or complex
            values; a value is NaN or infinite; all values are equal; or no voxel size is known.
        GeometryError: By the header the voxels are not cubes (relative 1e-3).

    Warns:
        MapWarning: A voxel size of exactly 1 or so small that it may be in nm, invalid axis codes, a volume marked as a
            stack, or a damaged header that could be read.

    Example:
        >>> from cryofm_io import write_map
        >>> write_map("map.mrc", DensityMap(np.eye(12).reshape(9, 4, 4), voxel_size=1.2))
        >>> read_map("map.mrc")
        DensityMap(data=float32 (9, 4, 4), voxel_size=1.2, origin=(0.0, 0.0, 0.0), ...)
    """
    density = read_values(path, voxel_size=voxel_size)
    low, high = density.data.min(), density.data.max()
    if low == high:
        raise InputFileError(f"{path}: every voxel is {low:g}; this is an empty map, choose another file")
    return density


@attrs.frozen
class MapSize:
    """How large a map is.

    Args:
        shape: (z, y, x).
        voxel_size: Å.

    Raises:
        GeometryError: The voxel size is not positive.
    """

    shape: tuple[int, int, int]
    voxel_size: float

    def __attrs_post_init__(self) -> None:
        positive("voxel size", self.voxel_size, "Å")


def map_size(path: str | os.PathLike[str], *, voxel_size: float | None = None) -> MapSize:
    """What `read_map` will return, from the header alone: for who wants to know first how large it is.

    Args:
        path: See `read_map`.
        voxel_size: Å; wins over whatever the header says.

    Raises:
        InputFileError: As `read_map`, as far as the header tells.
        GeometryError: Likewise.

    Example:
        >>> from cryofm_io import write_map
        >>> write_map("large.mrc", DensityMap(np.eye(12).reshape(9, 4, 4), voxel_size=1.2))
        >>> map_size("large.mrc")
        MapSize(shape=(9, 4, 4), voxel_size=1.2)
    """
    path = Path(path)
    header = peek(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MapWarning)  # which `read_map` will give
        size = settle_voxel_size(path, stated_voxel_size(header), voxel_size)
        axes = axis_codes(path, header)
    z, y, x = (header.shape[2 - axes.index(axis)] for axis in (3, 2, 1))
    return MapSize((z, y, x), size)


@attrs.frozen(eq=False)
class MapOnDisk:
    """A map whose values are read as they are needed.

    Args:
        data: ``(z, y, x)``, as stored: a view of the file, for slices; not looked at yet, and perhaps not finite.
        voxel_size: Å.
        origin: As that of `DensityMap`.
        nstart: Likewise.
        space_group: Likewise.
        labels: Likewise.
    """

    data: NDArray[Any] = attrs.field(repr=lambda d: f"{d.dtype.name} {d.shape}")
    voxel_size: float
    origin: tuple[float, float, float]
    nstart: tuple[int, int, int]
    space_group: int
    labels: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels (z, y, x)."""
        z, y, x = self.data.shape
        return z, y, x


def map_on_disk(path: str | os.PathLike[str], *, voxel_size: float | None = None) -> MapOnDisk:
    """Open a map that may be larger than memory; what `read_map` refuses by the header is refused here too.

    Args:
        path: See `read_map`; a compressed file is unpacked into memory.
        voxel_size: Å; wins over whatever the header says about size.

    Raises:
        InputFileError: As `read_map`, but for values that are not finite or all equal, which are not looked at.
        GeometryError: As `read_map`.

    Warns:
        MapWarning: As `read_map`.

    Example:
        >>> from cryofm_io import write_map
        >>> write_map("on_disk.mrc", DensityMap(np.eye(12).reshape(9, 4, 4), voxel_size=1.2))
        >>> map_on_disk("on_disk.mrc").data[2:4, 1, 0]
        memmap([0., 1.], dtype=float32)
    """
    path = Path(path)
    header, stored = load(path)
    is_stack = says_stack(path, header) and not _is_volume_all_the_same(path, header)
    if stored.ndim != 3 or 1 in stored.shape or is_stack:
        kind = "a stack of" if stored.ndim == 4 or is_stack else "a single image of"
        raise InputFileError(f"{path}: expected a 3-D map, found {kind} shape {stored.shape}")
    if np.iscomplexobj(stored):
        raise InputFileError(f"{path}: expected a 3-D map of real values, found {stored.dtype} (a transform?)")
    axes = axis_codes(path, header)
    if axes != (1, 2, 3):
        _log.info("%s: axes stored in the order %s, transposed to (z, y, x)", path, axes)
    # Columns are the last stored axis, sections the first.  NSTART follows the stored axes; ORIGIN, the cell
    # and its sampling are along x, y, z already.
    data = stored.transpose([2 - axes.index(axis) for axis in (3, 2, 1)])
    x, y, z = (header.stored_start[axes.index(axis)] for axis in (1, 2, 3))
    size = settle_voxel_size(path, stated_voxel_size(header), voxel_size)
    origin = header.origin
    if not np.isfinite(origin).all():
        warnings.warn(f"{path}: ORIGIN {origin} is not finite, taken as 0", MapWarning, stacklevel=3)
        origin = (0.0, 0.0, 0.0)
    return MapOnDisk(data, size, origin, (x, y, z), header.space_group, header.labels)


def read_values(path: str | os.PathLike[str], *, voxel_size: float | None = None) -> DensityMap:
    """Read a map that may be constant, as a mask may be; otherwise like `read_map`."""
    found = map_on_disk(path, voxel_size=voxel_size)
    data = as_float32(found.data)
    finite = np.isfinite(data)
    if not finite.all():
        first = np.unravel_index(int(finite.argmin()), data.shape)
        index = tuple(int(i) for i in first)
        raise InputFileError(
            f"{path}: {data.size - int(finite.sum())} values are not finite, the first is {data[first]} at "
            f"(z, y, x) = {index}; repair the map or choose another"
        )
    return DensityMap(data, found.voxel_size, found.origin, found.nstart, found.space_group, found.labels)


def as_float32(stored: NDArray[Any]) -> NDArray[np.float32]:
    """A copy that can be written to, which torch minds; NaN and infinity pass without numpy's warnings."""
    with np.errstate(all="ignore"):
        return np.require(np.asarray(stored), np.float32, ["C", "W"])


def says_stack(path: Path, header: Header) -> bool:
    """Whether the name (.mrcs) or the header (MRC2014's mark: ISPG 0, MZ 1) calls a file a stack of images."""
    return ".mrcs" in endings(path) or (header.space_group == 0 and header.sampling[2] == 1)


def _is_volume_all_the_same(path: Path, header: Header) -> bool:
    """Whether only MRC2014's mark says stack, which some programs put on volumes: a cube, or a cell as thick as one."""
    if ".mrcs" in endings(path) or 1 in header.shape:
        return False
    sections, rows, columns = header.shape
    width, _, thickness = header.cell
    cube = sections == rows == columns
    thick = 0 < width < np.inf and abs(thickness * columns / (width * sections) - 1) < 1e-2
    if cube or thick:
        found = f"{path}: ISPG 0 and MZ 1 mark a stack of images, but its shape or cell is a volume's: {AS_A_VOLUME}"
        warnings.warn(found, MapWarning, stacklevel=4)
    return cube or thick


def axis_codes(path: Path, header: Header) -> tuple[int, int, int]:
    """Which of x, y, z (1, 2, 3) the stored columns, rows and sections are."""
    if sorted(header.axes) != [1, 2, 3]:
        warnings.warn(f"{path}: invalid axis codes {header.axes}, taken as (1, 2, 3)", MapWarning, stacklevel=4)
        return 1, 2, 3
    return header.axes
