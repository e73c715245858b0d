"""Writing MRC maps (MRC2014, Cheng et al., J. Struct. Biol. 192:146, 2015)."""

import bz2
import gzip
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import NDArray

from cryofm_io.atomic import atomic_write
from cryofm_io.checks import all_finite
from cryofm_io.density_map import DensityMap
from cryofm_io.errors import GeometryError
from cryofm_io.mrc_header import HEADER_BYTES
from cryofm_io.mrc_read import MapOnDisk

__all__ = ["VIEWING_NOTE", "write_map", "write_sections"]

VIEWING_NOTE = "Restored map: for viewing and model building aid, never for resolution claims."
"""The label that every restored map should carry in its header."""

_CELL = (1e-37, 1e37)  # Å; of single precision


def write_map(path: str | os.PathLike[str], map: DensityMap, overwrite: bool = False) -> None:
    """Write a map as 32-bit MRC2014, compressed if the name ends in .gz or .bz2.

    What `cryofm_io.read_map` read is written back: values, cell, origin, nstart and labels.  The space group is 1,
    whatever the input's was: 0 and 401 would mark a stack.  An extended header is not kept.
    Equal maps give equal files, compressed ones too.

    Args:
        path: The file; it appears only when complete.
        map: What to write.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputExistsError: The file exists and ``overwrite`` is false.

    Example:
        >>> write_map("map.mrc.gz", DensityMap(np.ones((4, 5, 6)), 1.5, labels=[VIEWING_NOTE]))
        >>> write_map("map.mrc.gz", DensityMap(np.ones((4, 5, 6)), 1.5))
        Traceback (most recent call last):
        cryofm_io.errors.OutputExistsError: ...
    """
    mean = float(map.data.mean(dtype=np.float64))
    # section by section: no double-precision copy of a large map
    variance = float(np.mean([np.mean((section - mean) ** 2, dtype=np.float64) for section in map.data]))
    header = _header(map, map.labels, map.data.min(), map.data.max(), mean, variance)
    with atomic_write(path, overwrite) as temporary, _open_stream(temporary) as stream:
        stream.write(header.tobytes())
        stream.write(map.data.astype("<f4", copy=False).data)


def write_sections(
    path: str | os.PathLike[str],
    sections: Iterable[NDArray[Any]],
    like: DensityMap | MapOnDisk,
    *,
    labels: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Write a map that may be larger than memory, some sections at a time; otherwise as `write_map`, not compressed.

    Args:
        path: The file; it appears only when complete.
        sections: Along z, each ``(few, y, x)``.
        like: A map of the same shape in the same place.
        labels: Text lines.
        overwrite: Whether an existing file may be replaced.

    Raises:
        GeometryError: The sections do not make up the shape, or hold NaN or infinity.
        OutputExistsError: The file exists and ``overwrite`` is false.

    Example:
        >>> map = DensityMap(np.ones((4, 5, 6)), 1.5)
        >>> write_sections("map.mrc", (2 * map.data[z : z + 2] for z in (0, 2)), map)
    """
    total, squares, low, high = 0.0, 0.0, np.inf, -np.inf
    written = 0
    with atomic_write(path, overwrite) as temporary, temporary.open("wb") as file:
        file.write(bytes(HEADER_BYTES))
        for section in sections:
            if section.shape[1:] != like.shape[1:]:
                raise GeometryError(f"sections of shape {section.shape} do not make up a map of shape {like.shape}")
            all_finite("a map's values", section)
            written += len(section)
            file.write(np.ascontiguousarray(section, "<f4").data)
            low, high = min(low, float(section.min())), max(high, float(section.max()))
            total += float(section.sum(dtype=np.float64))
            squares += float(np.square(section, dtype=np.float64).sum())
        if written != like.shape[0]:
            raise GeometryError(f"{written} sections do not make up a map of shape {like.shape}")
        mean = total / math.prod(like.shape)
        variance = max(squares / math.prod(like.shape) - mean**2, 0.0)
        file.seek(0)
        file.write(_header(like, labels, low, high, mean, variance).tobytes())


def _header(
    map: DensityMap | MapOnDisk, labels: Sequence[str], low: float, high: float, mean: float, variance: float
) -> NDArray[Any]:
    """A complete MRC2014 header (little-endian, as the data type is)."""
    header = np.zeros((), dtype=HEADER_DTYPE)
    for axis, n, start, origin in zip("xyz", reversed(map.shape), map.nstart, map.origin, strict=True):
        header[f"n{axis}"] = header[f"m{axis}"] = n
        header[f"n{axis}start"] = start
        header["origin"][axis] = origin
        if not _CELL[0] < (cell := n * map.voxel_size) < _CELL[1]:
            raise GeometryError(f"a cell of {cell:g} Å: no file can hold it")
        header["cella"][axis] = cell
    header["cellb"] = (90, 90, 90)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["mode"] = 2
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0)
    header["nversion"] = 20141
    header["ispg"] = 1
    header["dmin"], header["dmax"], header["dmean"], header["rms"] = low, high, mean, np.sqrt(variance)
    labels = labels[-10:]  # the newest, if there are too many
    header["nlabl"] = len(labels)
    for i, label in enumerate(labels):
        # cut between characters, not within one
        header["label"][i] = label.encode("utf-8", "replace")[:80].decode("utf-8", "ignore").encode()
    return header


@contextmanager
def _open_stream(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """A file to write to; a compressed one holds neither time nor name: equal maps give equal files."""
    with path.open("wb") as raw:
        if path.suffix.lower() == ".gz":
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as stream:
                yield stream
        elif path.suffix.lower() == ".bz2":
            with bz2.open(raw, "wb") as stream:
                yield stream
        else:
            yield raw
