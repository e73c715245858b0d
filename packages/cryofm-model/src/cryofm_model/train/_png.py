"""Grey pictures without a plotting library."""

import struct
import zlib
from pathlib import Path

from torch import Tensor

__all__ = ["write_png"]


def write_png(path: Path, grey: Tensor) -> None:
    """Write a picture (rows, columns) of values from 0, black, to 1, white (PNG specification, 8-bit greyscale)."""
    height, width = grey.shape
    rows = (grey * 255).round().byte().numpy()
    lines = b"".join(b"\0" + row.tobytes() for row in rows)  # each after the number of its filter: none

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )
