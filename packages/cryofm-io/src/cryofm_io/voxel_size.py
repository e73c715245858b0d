"""The voxel size that a header states, and the one that was asked for instead."""

import warnings
from pathlib import Path

import attrs
import numpy as np

from cryofm_io.checks import positive
from cryofm_io.errors import GeometryError, InputFileError, MapWarning
from cryofm_io.mrc_header import Header

__all__ = ["Stated", "settle_voxel_size", "stated_voxel_size"]

_LEAST_VOXEL_SIZE = 0.2  # Å; no detector at any magnification has finer ones
_MOST_VOXEL_SIZE = 1e4  # Å; beyond it a header's numbers mean something else
_ANGLE_TOLERANCE = 0.1  # degrees


@attrs.frozen
class Stated:
    """What a file states: a size in Å, or why there is none to be had.

    Args:
        size: Å; none where the file states none, or none that can be.
        trouble: What is wrong, and in which field.
        crooked: Whether a size is stated that cannot be worked with, rather than none.
    """

    size: float | None
    trouble: str = ""
    crooked: bool = False


def stated_voxel_size(header: Header, axes: str = "xyz") -> Stated:
    """The header's voxel size along these axes; for images, ``xy``, the angles of a cell mean nothing."""
    angles = np.array(header.angles)
    if axes == "xyz" and angles.any() and not (np.abs(angles - 90) <= _ANGLE_TOLERANCE).all():
        # In the crystal that other angles would tell of a voxel is no cube.
        return Stated(None, f"cell angles (CELLB) of {_list(angles)}°, not 90°", crooked=True)
    cell = np.array([header.cell["xyz".index(axis)] for axis in axes], dtype=np.float32)
    sampling = np.array([header.sampling["xyz".index(axis)] for axis in axes], dtype=np.float64)
    with np.errstate(all="ignore"):
        voxel = cell.astype(np.float64) / sampling
        sections = header.shape[0] if header.axes == (1, 2, 3) else 1
        if axes == "xyz" and sampling[2] == 1 and abs(voxel[2] / sections - voxel[0]) <= 1e-3 * voxel[0]:
            sampling[2] = sections  # a volume marked as a stack of images, its cell that of the volume
            voxel[2] /= sections
    from_fields = f"CELLA ({_list(cell)} Å) over MX, MY, MZ ({_list(sampling)})"
    if not (np.isfinite(voxel).all() and (voxel > 0).all() and (voxel <= _MOST_VOXEL_SIZE).all()):
        return Stated(None, f"no voxel size in the file: {from_fields} is none")
    if np.ptp(voxel) > 1e-3 * voxel.mean():
        kind, shape = ("voxels", "cubes") if len(axes) == 3 else ("pixels", "squares")
        return Stated(None, f"{kind} of {_list(voxel)} Å ({', '.join(axes)}), {from_fields}, are not {shape}", True)
    # The header holds the cell in single precision: take the shortest number that gives the same cell back.
    # Where rounding left axes that no one number fits, six digits are as good as the header.
    candidates = [round(float(voxel[0]), digits) for digits in range(1, 9)]
    exact = [size for size in candidates if np.array_equal(np.float32(size * sampling), cell)]
    return Stated(exact[0] if exact else float(f"{voxel.mean():.6g}"))


def settle_voxel_size(path: Path, stated: Stated, wished: float | None) -> float:
    """What is stated in a file, or what was asked for instead, in Å.

    Raises:
        InputFileError: Neither is there.
        GeometryError: What is stated cannot be worked with, or what was asked for is no voxel size.

    Warns:
        MapWarning: What was asked for overrides what the file says, or a size that is often a missing one.
    """
    if wished is not None:
        if (wished := positive("voxel size", wished, "Å")) > _MOST_VOXEL_SIZE:
            raise GeometryError(f"{path}: a voxel size of {wished:.5g} Å was asked for; is the voxel size right?")
        if stated.size is None:
            _warn(f"{path}: {stated.trouble}; {wished:.5g} Å asked for and used")
        elif abs(wished - stated.size) > 0.01 * stated.size:
            _warn(f"{path}: voxel size {stated.size:.5g} Å in the file, {wished:.5g} Å asked for and used")
        return wished
    if stated.size is None:
        if stated.crooked:
            way = "resample, or give the true size if the header is wrong (--voxel-size)"
            raise GeometryError(f"{path}: {stated.trouble}; {way}")
        raise InputFileError(f"{path}: {stated.trouble}; give it (--voxel-size)")
    if stated.size == 1.0:
        _warn(f"{path}: a voxel size of exactly 1 Å is often a missing one; check it (--voxel-size)")
    if stated.size < _LEAST_VOXEL_SIZE:
        _warn(f"{path}: a voxel size of {stated.size:.5g} Å; is it in nm? Give it in Å (--voxel-size)")
    return stated.size


def _list(values: "np.typing.NDArray[np.floating]") -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _warn(message: str) -> None:
    warnings.warn(message, MapWarning, stacklevel=5)
