"""Arrays on disk that are made once: each appears whole or not at all, and is checked before it is believed."""

import hashlib
import io
import json
import mmap
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["cached", "file_identity"]

_CRC = 4  # bytes after the array


def cached(folder: Path, key: Sequence[object], make: Callable[[], NDArray[np.float16]]) -> NDArray[np.float16]:
    """The array that ``make`` returns for ``key``, kept in ``folder`` and mapped into memory.

    An entry is an ordinary ``.npy`` file, named after the SHA-256 of the key, with the CRC-32 of its bytes behind. It
    is written beside and renamed, so a killed process leaves no half entry, and of two processes that make the same
    one the later replaces it by an equal one. One that is damaged is made again. Processes that map an entry share
    its memory.

    Args:
        folder: made if it is not there.
        key: everything that determines the array: numbers, strings, and sequences of them.
        make: called when there is no sound entry.

    Returns:
        A read-only array.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> cached(folder, ["zeros", 2], lambda: np.zeros(2, np.float16)).tolist()
    [0.0, 0.0]
    >>> cached(folder, ["zeros", 2], lambda: 1 / 0).tolist()  # it is there: not made again
    [0.0, 0.0]
    """
    from cryofm_io import atomic_write

    path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.npy"
    entry = _load(path)
    if entry is None:
        made = io.BytesIO()
        np.save(made, np.asarray(make(), np.float16), allow_pickle=False)
        with atomic_write(path, overwrite=True) as partial, partial.open("wb") as file:
            file.write(made.getbuffer())
            file.write(zlib.crc32(made.getbuffer()).to_bytes(_CRC, "little"))
        entry = _load(path)
        if entry is None:
            raise OSError(f"{path} cannot be read back after writing; is the disk sound?")
    return entry


def file_identity(path: Path) -> list[object]:
    """What tells a file from any other, and from itself before it was changed: place, size, time of change."""
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def _load(path: Path) -> NDArray[np.float16] | None:
    """The entry, or nothing where it is missing, truncated or altered."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = len(content) - _CRC
            with memoryview(content) as view, view[:end] as body:
                if zlib.crc32(body) != int.from_bytes(content[end:], "little"):
                    return None
        entry: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return np.asarray(entry) if entry.dtype == np.float16 else None
