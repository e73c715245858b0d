"""What the header of an MRC file says (MRC2014, Cheng et al., J. Struct. Biol. 192:146, 2015)."""

import warnings
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import NDArray

from cryofm_io.errors import InputFileError, MapWarning
from cryofm_io.other_formats import what_else

__all__ = ["HEADER_BYTES", "Header", "parse_header"]

HEADER_BYTES = 1024
# Modes by number: what numpy calls them, or what to call them in a refusal.
MODES = {0: "i1", 1: "i2", 2: "f4", 4: "c8", 6: "u2", 12: "f2"}
PACKED = 101  # 4 bits a voxel, two voxels a byte
_OTHER_MODES = {
    3: "complex 16-bit integers: a transform; give a map of real values",
    5: "obsolete bytes; let the program that wrote it write MODE 0 or 2",
    7: "32-bit integers; convert it: newstack -mode 2 IN OUT (IMOD)",
    16: "colours (RGB), no density; give a map of one value a voxel",
}
_MOST_SIDE = 2**20  # voxels; a longer side is a number read in the wrong byte order


@attrs.frozen
class Header:
    """The fields that matter, as numbers; those of axes are along x, y, z unless they are ``stored``.

    Args:
        shape: Stored (sections, rows, columns).
        mode: How a value is stored.
        stored_start: NXSTART, NYSTART, NZSTART, which follow the stored columns, rows, sections.
        sampling: MX, MY, MZ.
        cell: CELLA, Å.
        angles: CELLB, degrees.
        axes: MAPC, MAPR, MAPS.
        stats: DMIN and DMAX.
        space_group: ISPG.
        extended: Bytes between header and data, NSYMBT.
        origin: ORIGIN, Å.
        labels: Text lines.
        imod_signed: Whether IMOD wrote bytes as signed; none where IMOD did not write.
        order: Byte order, ``<`` or ``>``.
    """

    shape: tuple[int, int, int]
    mode: int
    stored_start: tuple[int, int, int]
    sampling: tuple[int, int, int]
    cell: tuple[float, float, float]
    angles: tuple[float, float, float]
    axes: tuple[int, int, int]
    stats: tuple[float, float]
    space_group: int
    extended: int
    origin: tuple[float, float, float]
    labels: tuple[str, ...]
    imod_signed: bool | None
    order: Literal["<", ">"]

    @property
    def data_bytes(self) -> int:
        """What the values take in the file."""
        sections, rows, columns = self.shape
        if self.mode == PACKED:
            return sections * rows * ((columns + 1) // 2)
        return sections * rows * columns * np.dtype(MODES[self.mode]).itemsize


def parse_header(path: Path, raw: bytes, file_bytes: int | None = None) -> Header:
    """Read a header, in the byte order in which it makes sense.

    Args:
        path: For messages.
        raw: The file's first 1024 bytes, or fewer if there are not so many.
        file_bytes: Length of the file, where it is known.

    Raises:
        InputFileError: Not an MRC file, or none that can be read.

    Warns:
        MapWarning: ``MAP`` or the machine stamp is missing, as in the files of SPIDER and old programs.
    """
    named = raw[208:211].upper() == b"MAP"
    if not named and (other := what_else(path, raw)):
        raise InputFileError(f"{path}: {other}")
    if len(raw) < HEADER_BYTES:
        raise InputFileError(f"{path}: not an MRC file, or truncated: {len(raw)} bytes, a header has {HEADER_BYTES}")
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    fields = {order: np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order))[0] for order in orders}
    stamped = {b"\x44\x44": "<", b"\x44\x41": "<", b"\x11\x11": ">"}.get(raw[212:214])
    order = min(orders, key=lambda order: (not _plausible(fields[order]), order != stamped, _longest(fields[order])))
    record = fields[order]
    if not named:
        header = _header(record, order) if _plausible(record) else None
        if header is None or (
            file_bytes is not None and file_bytes < HEADER_BYTES + header.extended + header.data_bytes
        ):
            raise InputFileError(f"{path}: not an MRC or CCP4 file (no 'MAP' at byte 208)")
        _warn(f"{path}: no 'MAP' at byte 208 of the header, otherwise like an MRC file: read as one")
    elif order != stamped:
        _warn(f"{path}: the machine stamp {raw[212:216].hex(' ')} is damaged; read as {_ENDIAN[order]}-endian")
    mode = int(record["mode"])
    if mode in _OTHER_MODES:
        raise InputFileError(f"{path}: MODE {mode}: {_OTHER_MODES[mode]}")
    if mode not in MODES and mode != PACKED:
        raise InputFileError(f"{path}: MODE {mode} is unknown: no MRC file, or a damaged header; fetch the file again")
    header = _header(record, order)
    if min(header.shape) < 0 or header.extended < 0:
        raise InputFileError(
            f"{path}: a shape of {header.shape} and {header.extended} bytes of extended header (NX, NY, NZ, NSYMBT): "
            "damaged; fetch the file again"
        )
    if 0 in header.shape:
        raise InputFileError(f"{path}: empty, of shape {header.shape}; choose another file")
    return header


_ENDIAN = {"<": "little", ">": "big"}


def _warn(message: str) -> None:
    warnings.warn(message, MapWarning, stacklevel=6)


def _longest(record: Any) -> int:
    return max(abs(int(record[name])) for name in ("nx", "ny", "nz"))


def _plausible(record: Any) -> bool:
    sides = [int(record[name]) for name in ("nx", "ny", "nz")]
    known = int(record["mode"]) in {*MODES, *_OTHER_MODES, PACKED}
    return known and min(sides) > 0 and max(sides) <= _MOST_SIDE and int(record["nsymbt"]) >= 0


def _header(record: Any, order: Literal["<", ">"]) -> Header:
    def three(*names: str) -> Any:
        return tuple(record[name].item() for name in names)

    stamp, flags = bytes(record["extra2"])[40:44], bytes(record["extra2"])[44:48]
    imod = {b"IMOD": "little", b"DOMI": "big"}.get(stamp)
    lines: NDArray[Any] = record["label"][: max(0, min(10, int(record["nlabl"])))]
    return Header(
        shape=three("nz", "ny", "nx"),
        mode=int(record["mode"]),
        stored_start=three("nxstart", "nystart", "nzstart"),
        sampling=three("mx", "my", "mz"),
        cell=record["cella"].item(),
        angles=record["cellb"].item(),
        axes=three("mapc", "mapr", "maps"),
        stats=three("dmin", "dmax"),
        space_group=int(record["ispg"]),
        extended=int(record["nsymbt"]),
        origin=record["origin"].item(),
        labels=tuple(_text(bytes(line)) for line in lines),
        imod_signed=None if imod is None else bool(flags[0 if imod == "little" else 3] & 1),
        order=order,
    )


def _text(line: bytes) -> str:
    line = line.rstrip(b"\0 ")
    try:
        return line.decode()
    except UnicodeDecodeError:  # what older programs wrote
        return line.decode("latin-1")
