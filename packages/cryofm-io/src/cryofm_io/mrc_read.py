"""Reading MRC and CCP4 maps (MRC2014, Cheng et al., J. Struct. Biol. 192:146, 2015)."""

import bz2
import gzip
import logging
import os
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal

import mrcfile
import numpy as np
from numpy.typing import NDArray

from cryofm_io.density_map import DensityMap
from cryofm_io.errors import GeometryError, InputFileError, MapWarning

__all__ = ["read_map"]

_LEAST_VOXEL_SIZE = 0.2  # Å; no detector at any magnification has finer ones

_log = logging.getLogger(__name__)


def read_map(path: str | os.PathLike[str], *, voxel_size: float | None = None) -> DensityMap:
    """Read a map.

    Args:
        path: An MRC or CCP4 file (.mrc, .map, .ccp4), also compressed (.gz, .bz2).
        voxel_size: Å; wins over the header, with a warning if they differ by more than 1 %.

    Returns:
        The map as float32 ``(z, y, x)``: other axis orders are transposed, which is logged.

    Raises:
        InputFileError: The file is missing, truncated or not MRC; it holds an image, a stack or complex
            values; a value is NaN or infinite; all values are equal; or no voxel size is known.
        GeometryError: The voxels are not cubes (relative 1e-3).

    Warns:
        MapWarning: A voxel size of exactly 1 or so small that it may be in nm, invalid axis codes, or a damaged header
            that could be read.

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


def read_values(path: str | os.PathLike[str], *, voxel_size: float | None = None) -> DensityMap:
    """Read a map that may be constant, as a mask may be; otherwise like `read_map`."""
    path = Path(path)
    header, stored = load(path)
    is_stack = says_stack(path, header)
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
    stored_start = (header.nxstart, header.nystart, header.nzstart)
    nstart = [int(stored_start[axes.index(axis)]) for axis in (1, 2, 3)]

    data = np.require(data, np.float32, ["C", "W"])  # the reader's own buffer cannot be written to, which torch minds
    finite = np.isfinite(data)
    if not finite.all():
        first = np.unravel_index(int(finite.argmin()), data.shape)
        index = tuple(int(i) for i in first)
        raise InputFileError(
            f"{path}: {data.size - int(finite.sum())} values are not finite, the first is {data[first]} at "
            f"(z, y, x) = {index}; repair the map or choose another"
        )
    return DensityMap(
        data,
        settle_voxel_size(path, stated_voxel_size(path, header), voxel_size),
        origin=[float(header.origin[axis]) for axis in "xyz"],
        nstart=nstart,
        space_group=int(header.ispg),
        labels=tuple(bytes(label).decode("latin-1").rstrip("\0 ") for label in header.label[: int(header.nlabl)]),
    )


def load(path: Path) -> tuple[Any, NDArray[Any]]:
    """The header record and the values as stored (sections, rows, columns), whatever they are."""
    if not path.is_file():
        raise InputFileError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; give a map file")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            # Looked at first: mrcfile would take the length of an extended header from any file's bytes.
            if _first_bytes(path)[208:211] != b"MAP":
                raise InputFileError(f"{path}: not an MRC or CCP4 file (no 'MAP' at byte 208)")
            with mrcfile.open(path, permissive=True) as file:
                header: Any = file.header
                data = file.data
        except (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error) as error:
            if isinstance(error, InputFileError):
                raise
            raise InputFileError(f"{path}: not a readable MRC file, or truncated ({error})") from error
    complaints = "; ".join(str(warning.message) for warning in caught)
    if data is None:
        raise InputFileError(f"{path}: truncated or damaged ({complaints}); fetch the file again")
    if caught:
        warnings.warn(f"{path}: {complaints}", MapWarning, stacklevel=4)
    if data.dtype == np.int8 and _says_unsigned(header):
        data = data.view(np.uint8)
    if data.size == 0:
        raise InputFileError(f"{path}: empty, of shape {data.shape}; choose another file")
    return header, data


def says_stack(path: Path, header: Any) -> bool:
    """Whether the name (.mrcs) or the header (MRC2014's mark: ISPG 0, MZ 1) calls a file a stack of images."""
    return ".mrcs" in path.suffixes[-2:] or (int(header.ispg) == 0 and int(header.mz) == 1)


def _says_unsigned(header: Any) -> bool:
    """Whether IMOD wrote the file, and did not flag its bytes as signed (its stamp and flags, bytes 152 to 159)."""
    stamp, flags = bytes(header.extra2)[40:44], bytes(header.extra2)[44:48]
    order: Literal["little", "big"] = "little" if stamp == b"IMOD" else "big"
    return stamp in (b"IMOD", b"DOMI") and not int.from_bytes(flags, order) & 1


def _first_bytes(path: Path) -> bytes:
    """The first 212 bytes, decompressed if they are compressed."""
    with path.open("rb") as file:
        start = file.read(212)
    if start[208:211] == b"MAP":  # then the first bytes are a size, even if they look like gzip's
        return start
    if start[:2] == b"\x1f\x8b":
        with gzip.open(path) as stream:
            return stream.read(212)
    if start[:2] == b"BZ":
        with bz2.open(path) as stream:
            return stream.read(212)
    return start


def axis_codes(path: Path, header: Any) -> tuple[int, int, int]:
    codes = int(header.mapc), int(header.mapr), int(header.maps)
    if sorted(codes) != [1, 2, 3]:
        warnings.warn(f"{path}: invalid axis codes {codes}, taken as (1, 2, 3)", MapWarning, stacklevel=4)
        return 1, 2, 3
    return codes


def stated_voxel_size(path: Path, header: Any, axes: str = "xyz") -> float | None:
    """The header's voxel size along these axes in Å; none where it is 0."""
    angles = np.array([header.cellb[axis] for axis in ("alpha", "beta", "gamma")])
    if angles.any() and not np.allclose(angles, 90, rtol=0, atol=0.1):
        raise GeometryError(f"{path}: cell angles {angles.tolist()}, not 90°; resample to an orthogonal grid")
    cell = np.array([header.cella[axis] for axis in axes])
    sampling = np.array([header[f"m{axis}"] for axis in axes], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        voxel = cell.astype(np.float64) / sampling
    if not (np.isfinite(voxel).all() and (voxel > 0).all()):
        return None
    if np.ptp(voxel) > 1e-3 * voxel.mean():
        kind = "voxels" if len(axes) == 3 else "pixels"
        shape = "cubes" if len(axes) == 3 else "squares"
        raise GeometryError(f"{path}: {kind} of {voxel.tolist()} Å ({', '.join(axes)}) are not {shape}; resample")
    # The header holds the cell in single precision: take the shortest number that gives the same cell back.
    # Where rounding left axes that no one number fits, six digits are as good as the header.
    candidates = [round(float(voxel[0]), digits) for digits in range(1, 9)]
    exact = [size for size in candidates if np.array_equal(np.float32(size * sampling), cell)]
    return exact[0] if exact else float(f"{voxel.mean():.6g}")


def settle_voxel_size(path: Path, stated: float | None, wished: float | None) -> float:
    """What is stated in a file, or what was asked for instead, in Å."""
    if wished is not None:
        if not (np.isfinite(wished) and wished > 0):
            raise GeometryError(f"voxel size {wished} Å: it must be positive")
        if stated is not None and abs(wished - stated) > 0.01 * stated:
            message = f"{path}: voxel size {stated:.5g} Å in the file, {wished:.5g} Å asked for and used"
            warnings.warn(message, MapWarning, stacklevel=4)
        return wished
    if stated is None:
        raise InputFileError(f"{path}: no voxel size in the file; give it (--voxel-size)")
    if stated == 1.0:
        message = f"{path}: a voxel size of exactly 1 Å is often a missing one; check it (--voxel-size)"
        warnings.warn(message, MapWarning, stacklevel=4)
    if stated < _LEAST_VOXEL_SIZE:
        message = f"{path}: a voxel size of {stated:.5g} Å; is it in nm? Give it in Å (--voxel-size)"
        warnings.warn(message, MapWarning, stacklevel=4)
    return stated
