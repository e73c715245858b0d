"""The values of an MRC file as they are stored, never more of them than the file really holds."""

import bz2
import gzip
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cryofm_io.errors import InputFileError, MapWarning
from cryofm_io.mrc_header import HEADER_BYTES, MODES, PACKED, Header, parse_header

__all__ = ["load", "peek"]

_CHUNK = 2**20  # bytes
_MOST_RATIO = 1032  # of deflate; bzip2 has no such limit, and a file that claims more is a trap
_ALLOWED = 2**29  # bytes that a compressed file may claim whatever its size
_VOLUME_STACKS = range(401, 631)
_FEW_LEVELS = 8  # as in a mask, which jumps whatever its bytes are


def load(path: Path) -> tuple[Header, NDArray[Any]]:
    """The header and the values (sections, rows, columns), with a fourth axis in front for a stack of volumes.

    The values of an uncompressed file are a memory map, so that a few images of a large stack cost little.
    A compressed file is decompressed once, as far as the header says.

    Raises:
        InputFileError: The file is missing, truncated, empty, of another kind or of an unknown mode.

    Warns:
        MapWarning: A damaged header that could be read.
    """
    with _readable(path):
        header, raw = _read(path)
    return header, _volumes(path, header, _values(header, raw))


def peek(path: Path) -> Header:
    """The header alone.

    Raises:
        InputFileError: As `load`, as far as the first bytes tell.
    """
    with _readable(path), path.open("rb") as file:
        start = file.read(HEADER_BYTES)
        if (kind := _compression(start)) is not None:
            file.seek(0)
            with gzip.open(file) if kind == "gzip" else bz2.open(file) as stream:
                start = bytes(_read_exactly(stream, HEADER_BYTES))
        return parse_header(path, start)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file brings out into one error."""
    if not path.is_file():
        raise InputFileError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; give a map file")
    try:
        yield
    except InputFileError:
        raise
    except (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error) as error:
        raise InputFileError(f"{path}: not a readable MRC file, or truncated ({error})") from error


def _compression(start: bytes) -> str | None:
    """With MAP in place the first bytes are a size, even if they look like gzip's."""
    return None if start[208:211] == b"MAP" else {b"\x1f\x8b": "gzip", b"BZ": "bzip2"}.get(start[:2])


def _read(path: Path) -> tuple[Header, NDArray[np.uint8]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
        kind = _compression(start)
        if kind is None:
            header = parse_header(path, start, size)
            claimed = HEADER_BYTES + header.extended + header.data_bytes
            if claimed > size:
                raise _truncated(path, header, claimed, f"the file has {size}")
            if claimed < size:
                _warn(f"{path}: {size - claimed} bytes more than the header says; they are left out")
            offset = HEADER_BYTES + header.extended
            return header, np.memmap(file, np.uint8, "r", offset, (header.data_bytes,))
        file.seek(0)
        with gzip.open(file) if kind == "gzip" else bz2.open(file) as stream:
            header = parse_header(path, bytes(_read_exactly(stream, HEADER_BYTES)))
            claimed = HEADER_BYTES + header.extended + header.data_bytes
            if claimed > max(_MOST_RATIO * size, _ALLOWED if kind == "bzip2" else 0):
                raise _truncated(path, header, claimed, f"{size} compressed bytes cannot hold them")
            for start_at in range(0, header.extended, _CHUNK):
                stream.read(min(_CHUNK, header.extended - start_at))
            raw = _read_exactly(stream, header.data_bytes)
            if len(raw) < header.data_bytes:
                raise _truncated(path, header, claimed, f"the file has {claimed - header.data_bytes + len(raw)}")
            if stream.read(1):  # at the end of the stream this checks its sum, too
                _warn(f"{path}: more data than the header says; they are left out")
    return header, np.frombuffer(raw, np.uint8)


def _read_exactly(stream: IO[bytes] | gzip.GzipFile | bz2.BZ2File, count: int) -> bytearray:
    """So many bytes, or fewer at the end: nothing is allocated before it is there."""
    data = bytearray()
    while len(data) < count and (more := stream.read(min(_CHUNK, count - len(data)))):
        data += more
    return data


def _truncated(path: Path, header: Header, claimed: int, there: str) -> InputFileError:
    return InputFileError(
        f"{path}: truncated or damaged: by its header (shape {header.shape}, MODE {header.mode}, NSYMBT "
        f"{header.extended}) it has {claimed} bytes, but {there}; fetch the file again"
    )


def _values(header: Header, raw: NDArray[np.uint8]) -> NDArray[Any]:
    sections, rows, columns = header.shape
    if header.mode == PACKED:  # every row begins a byte; the low half of a byte comes first
        packed = raw.reshape(sections, rows, -1)
        pairs = np.stack([packed & 15, packed >> 4], axis=-1)
        return pairs.reshape(sections, rows, -1)[:, :, :columns]
    data = raw.view(np.dtype(MODES[header.mode]).newbyteorder(header.order)).reshape(header.shape)
    if header.mode not in (0, 1) or not _unsigned(header, data):
        return data
    return data.view(np.dtype(f"u{data.itemsize}").newbyteorder(header.order))


def _unsigned(header: Header, data: NDArray[np.signedinteger]) -> bool:
    """Whether integers of MODE 0 or 1 are unsigned, which MRC2014 does not have: by IMOD's mark, which is of bytes,
    by DMIN and DMAX, or by what is smooth.

    Density does not jump from 127 to -128, which unsigned bytes do that are read as signed ones.
    """
    unsigned = np.dtype(f"u{data.itemsize}").newbyteorder(header.order)
    if header.imod_signed is not None and header.mode == 0:
        return not header.imod_signed
    low, high = header.stats
    if low < 0:
        return False
    if np.iinfo(data.dtype).max < high <= np.iinfo(unsigned).max:
        return True
    some = data[np.linspace(0, len(data) - 1, 5).astype(int)[1:-1]]
    if len(np.unique(some)) < _FEW_LEVELS:
        return False
    as_signed, as_unsigned = (_roughness(x) for x in (some, some.view(unsigned)))
    return as_unsigned < 0.8 * as_signed


def _roughness(sections: NDArray[Any]) -> float:
    return sum(float(np.abs(np.diff(sections.astype(np.int64), axis=axis)).sum()) for axis in (1, 2))


def _volumes(path: Path, header: Header, data: NDArray[Any]) -> NDArray[Any]:
    """A stack of volumes, marked by its space group, gets an axis of its own; one volume is a volume."""
    if header.space_group not in _VOLUME_STACKS:
        return data
    each, sections = header.sampling[2], header.shape[0]
    if each <= 1 or sections % each:
        _warn(f"{path}: ISPG {header.space_group} marks a stack of volumes, but MZ is {each}: read as one volume")
        return data
    return data if each == sections else data.reshape(-1, each, *header.shape[1:])


def _warn(message: str) -> None:
    warnings.warn(message, MapWarning, stacklevel=5)
