"""cryoSPARC's data sets (.cs), tables of NumPy's, as the table of a STAR file that says the same; its jobs' maps.

A pose is a rotation vector: its matrix is the transpose of RELION's, and what Euler's angles ZYZ (rot, tilt, psi) turn
by. A shift is RELION's origin, in pixels of its own size. Images are counted from 0, angles of CTFs are in radians.
"""

import math
import os
import re
import warnings
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import scipy.spatial.transform
from numpy.typing import NDArray

from cryofm_io.emdb import EmdbEntry
from cryofm_io.errors import InputFileError, MapWarning
from cryofm_io.star_text import Block

__all__ = ["find_cryosparc_maps", "read_data_set"]

_COMPRESSED = b"\x94CSDAT"
_PATH, _NUMBER, _SIZE = "blob/path", "blob/idx", "blob/psize_A"
_POSE, _SHIFT, _SHIFT_SIZE = (f"alignments3D/{field}" for field in ("pose", "shift", "psize_A"))
_CTF = {
    "ctf/df1_A": ("rlnDefocusU", 1.0),
    "ctf/df2_A": ("rlnDefocusV", 1.0),
    "ctf/df_angle_rad": ("rlnDefocusAngle", 180 / np.pi),
    "ctf/phase_shift_rad": ("rlnPhaseShift", 180 / np.pi),
    "ctf/accel_kv": ("rlnVoltage", 1.0),
    "ctf/cs_mm": ("rlnSphericalAberration", 1.0),
    "ctf/amp_contrast": ("rlnAmplitudeContrast", 1.0),
}
_WANTED = (_PATH, _NUMBER, _SIZE, _POSE, _SHIFT, _SHIFT_SIZE, *_CTF)
_LEFT_OUT = ("ctf/tilt_A", "ctf/trefoil_A", "ctf/tetra_A", "ctf/anisomag")

_HALF = re.compile(r"(?P<job>.+?_)??((?P<iteration>\d+)_)?volume_map_half_A\.mrc(\.gz)?")

Columns = dict[str, NDArray[Any]]


def read_data_set(path: Path) -> list[Block]:
    """The images of a data set in RELION's columns; what it lacks is taken from passthrough files beside it, by uid.

    Raises:
        InputFileError: No such data set, one that is compressed, or one that lists no images.

    Warns:
        MapWarning: Aberrations that are not modelled.
    """
    found = _read(path)
    if any(field not in found for field in _WANTED) and "uid" in found:
        for other in sorted(path.parent.glob("*passthrough*.cs")):
            found = _joined(other, found) | found
    if _PATH not in found or _NUMBER not in found:
        raise InputFileError(
            f"{path}: a data set without images (blob/path, blob/idx); give the one that has them, or lay its "
            "passthrough file beside it"
        )
    if odd := [field for field in _LEFT_OUT if field in found and np.any(found[field])]:
        warnings.warn(f"{path}: {', '.join(odd)} are not modelled, and left out", MapWarning, stacklevel=4)
    return [Block("particles", {name.lower(): values for name, values in _columns(path, found).items()})]


def find_cryosparc_maps(folder: str | os.PathLike[str]) -> EmdbEntry | None:
    """The raw half maps of a refinement's folder and the mask that it refined with, of the last iteration.

    Returns:
        What there is; None where there are no such half maps.

    Raises:
        InputFileError: One half is there without the other, or there are those of several jobs.

    Example:
        >>> for name in ("map_half_A", "map_half_B", "mask_refine"):
        ...     open(f"P3_J14_006_volume_{name}.mrc", "w").close()
        >>> find_cryosparc_maps(".").mask.name
        'P3_J14_006_volume_mask_refine.mrc'
    """
    found = [(match, path) for path in Path(folder).glob("*_half_A.*") if (match := _HALF.fullmatch(path.name))]
    if not found:
        return None
    if len(jobs := sorted({match["job"] or "" for match, _ in found})) > 1:
        raise InputFileError(f"{folder} holds half maps of several jobs: {', '.join(jobs)}; give those of one")
    _, first = max(found, key=lambda pair: int(pair[0]["iteration"] or 0))
    other, mask = (first.with_name(first.name.replace("map_half_A", name)) for name in ("map_half_B", "mask_refine"))
    if not other.is_file():
        raise InputFileError(f"{folder} holds one half map, {first.name}, and not the other, {other.name}")
    return EmdbEntry(header=None, map=None, half_maps=(first, other), mask=mask if mask.is_file() else None)


def _read(path: Path) -> Columns:
    if not path.is_file():
        raise InputFileError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; give a data set (.cs)")
    try:
        with path.open("rb") as file:
            compressed = file.read(len(_COMPRESSED)) == _COMPRESSED
            file.seek(0)
            data = None if compressed else _array(file)
    except Exception as error:  # whatever NumPy's parser raises in a damaged header
        why = " ".join(str(error).split())
        raise InputFileError(f"{path}: not a readable data set of cryoSPARC ({why or type(error).__name__})") from None
    if data is None:
        raise InputFileError(
            f"{path}: a compressed data set; unpack it with cryosparc-tools, Dataset.load(IN).save(OUT)"
        )
    if data.dtype.names is None or data.ndim != 1 or not len(data):
        raise InputFileError(f"{path}: not a data set of cryoSPARC, but an array {data.dtype} of shape {data.shape}")
    return {name: data[name] for name in data.dtype.names if name in (*_WANTED, *_LEFT_OUT, "uid")}


def _array(file: BufferedReader) -> NDArray[Any]:
    """A file of NumPy's, no larger than it says."""
    version = np.lib.format.read_magic(file)
    if version > (1, 0) and int.from_bytes(file.peek(4)[:4], "little") > os.fstat(file.fileno()).st_size:
        raise ValueError("a header longer than the file")  # for which room would be made
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    there = os.fstat(file.fileno()).st_size - file.tell()
    if math.prod(shape) * dtype.itemsize > there:
        raise ValueError(f"{there} bytes of an array {shape} of {dtype.itemsize} each")
    file.seek(0)
    array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _joined(path: Path, to: Columns) -> Columns:
    """Another file's fields in the order of these particles; none where it lacks one of them."""
    other = _read(path)
    if "uid" not in other:
        return {}
    order = np.argsort(other["uid"])
    place = np.searchsorted(other["uid"], to["uid"], sorter=order).clip(max=len(order) - 1)
    rows = order[place]
    return {name: values[rows] for name, values in other.items()} if (other["uid"][rows] == to["uid"]).all() else {}


def _columns(path: Path, found: Columns) -> dict[str, list[str]]:
    files = [_text(value).lstrip(">") for value in found[_PATH]]
    if odd := next((file for file in files if len(file.splitlines()) > 1), None):
        raise InputFileError(f"{path}: {odd!r} is no path of images")
    try:
        columns = {"rlnImageName": [f"{int(i) + 1:06d}@{f}" for i, f in zip(found[_NUMBER], files, strict=True)]}
        if _SIZE in found:
            columns["rlnImagePixelSize"] = _cells(found[_SIZE])
        if "ctf/df1_A" in found:
            columns |= {tag: _cells(found[field] * factor) for field, (tag, factor) in _CTF.items() if field in found}
        if _POSE in found:
            turn = scipy.spatial.transform.Rotation.from_rotvec(np.asarray(found[_POSE], np.float64))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Gimbal lock")
                angles = turn.as_euler("ZYZ", degrees=True)
            columns |= {f"rlnAngle{name}": _cells(angles[:, i]) for i, name in enumerate(("Rot", "Tilt", "Psi"))}
            pixel = found.get(_SHIFT_SIZE, found.get(_SIZE))
            if _SHIFT in found and pixel is not None:
                shift = np.asarray(found[_SHIFT], np.float64) * np.asarray(pixel, np.float64)[:, None]
                columns |= {f"rlnOrigin{axis}Angst": _cells(shift[:, i]) for i, axis in enumerate("XY")}
    except (ValueError, TypeError, IndexError) as error:
        raise InputFileError(
            f"{path}: fields of another kind than a data set of cryoSPARC has ({' '.join(str(error).split())})"
        ) from None
    return columns


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _cells(values: Iterable[Any]) -> list[str]:
    return [repr(float(value)) for value in np.asarray(values, np.float64)]
