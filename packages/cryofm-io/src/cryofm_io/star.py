"""STAR files of images as RELION writes them: reading (extra ``[atomic]``, whose gemmi reads STAR) and writing poses.

RELION 3.0 has one table; since 3.1 what images of one optics group share stands in a table ``data_optics``.
"""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.atomic import atomic_write
from cryofm_io.errors import CryoFMError, GeometryError, InputFileError, MapWarning, MissingExtraError
from cryofm_io.image_stack import ImageCtf, ImageStack, Poses

if TYPE_CHECKING:
    from gemmi import cif

__all__ = ["write_poses"]

# Columns of RELION by the fields of `ImageCtf`: of an image, and of its optics group.
_DEFOCUS = {
    "defocus_u_angstrom": "rlnDefocusU",
    "defocus_v_angstrom": "rlnDefocusV",
    "defocus_angle_deg": "rlnDefocusAngle",
    "phase_shift_deg": "rlnPhaseShift",
}
_OPTICS = {
    "voltage_kv": "rlnVoltage",
    "spherical_aberration_mm": "rlnSphericalAberration",
    "amplitude_contrast": "rlnAmplitudeContrast",
}
_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")


@attrs.frozen
class ImageTable:
    """The table of a STAR file that lists images, its optics table, and all the file's tables."""

    path: Path
    names: list[str]
    block: "cif.Block"
    document: "cif.Document"

    def numbers(self, tag: str) -> NDArray[np.float64] | None:
        """The column (K,), from the images' own table or their optics groups'; none where neither has it."""
        own = _numbers(self.path, self.block, tag)
        optics = self.document.find_block("optics")
        if own is not None or optics is None:
            return own
        shared, groups = _numbers(self.path, optics, tag), _numbers(self.path, optics, "rlnOpticsGroup")
        mine = _numbers(self.path, self.block, "rlnOpticsGroup")
        if shared is None or groups is None or mine is None:
            return None
        known = dict(zip(groups.tolist(), shared.tolist(), strict=True))
        missing = set(mine.tolist()) - set(known)
        if missing:
            raise InputFileError(f"{self.path}: optics groups {sorted(missing)} of images are not in data_optics")
        return np.array([known[group] for group in mine.tolist()])

    def pixel_sizes(self) -> NDArray[np.float64] | None:
        """Å, one per image or one for all."""
        for tag in ("rlnImagePixelSize", "rlnPixelSize"):
            if (sizes := self.numbers(tag)) is not None:
                return sizes
        pitch, magnification = self.numbers("rlnDetectorPixelSize"), self.numbers("rlnMagnification")  # μm
        if pitch is not None and magnification is not None:
            return np.asarray(1e4 * pitch / magnification)
        for block in self.document:  # data_model_general of a classification
            if (sizes := _numbers(self.path, block, "rlnPixelSize")) is not None:
                return sizes
        return None

    def ctf(self) -> ImageCtf | None:
        """The CTFs, if there is a defocus."""
        u = self.numbers("rlnDefocusU")
        if u is None:
            return None
        columns = {field: self.numbers(tag) for field, tag in (_DEFOCUS | _OPTICS).items()}
        missing = [tag for field, tag in _OPTICS.items() if columns[field] is None]
        if missing:
            raise InputFileError(f"{self.path}: there is a defocus but no {', '.join(missing)}; add the columns")
        premultiplied = self.numbers("rlnCtfDataAreCtfPremultiplied")
        if premultiplied is not None and premultiplied.any():
            message = f"{self.path}: images multiplied by their CTF already: it acts twice on them, once is modelled"
            warnings.warn(message, MapWarning, stacklevel=4)
        otherwise = {"defocus_v_angstrom": u}  # no astigmatism, no phase plate
        return ImageCtf(
            **{f: otherwise.get(f, np.zeros_like(u)) if values is None else values for f, values in columns.items()}
        )

    def poses(self, voxel_size: float) -> Poses | None:
        """The poses, if there are all three angles; origins in pixels are made Å."""
        angles = [column for tag in _ANGLES if (column := self.numbers(tag)) is not None]
        if len(angles) < 3:
            return None
        shifts = []
        for axis in "XY":
            origin, origin_px = self.numbers(f"rlnOrigin{axis}Angst"), self.numbers(f"rlnOrigin{axis}")
            if origin is None:
                origin = np.zeros(len(self.names)) if origin_px is None else voxel_size * origin_px
            shifts.append(origin)
        return Poses.from_angles(np.stack(angles, -1), np.stack(shifts, -1))


def read_table(path: Path) -> ImageTable:
    """The images that a STAR file lists, particles or class averages."""
    try:
        from gemmi import cif
    except ImportError as error:
        raise MissingExtraError("reading STAR files needs gemmi: pip install 'cryofm-io[atomic]'") from error
    if not path.is_file():
        raise InputFileError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; give a STAR file")
    try:
        document = cif.read(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise InputFileError(f"{path}: not a readable STAR file ({error})") from None
    for tag in ("rlnImageName", "rlnReferenceImage"):
        for block in document:
            if names := [cif.as_string(value) for value in block.find_values(f"_{tag}")]:
                return ImageTable(path, names, block, document)
    raise InputFileError(f"{path}: no table lists images (rlnImageName or rlnReferenceImage) among {len(document)}")


def _numbers(path: Path, block: "cif.Block", tag: str) -> NDArray[np.float64] | None:
    values = list(block.find_values(f"_{tag}"))
    if not values:
        return None
    try:
        return np.array([float(value) for value in values])
    except ValueError as error:
        raise InputFileError(f"{path}: {tag} in data_{block.name.strip()} holds no number ({error})") from None


def write_poses(path: str | os.PathLike[str], images: ImageStack, poses: Poses, overwrite: bool = False) -> None:
    """Write poses as a STAR file of RELION 3.1 or later, which `cryofm_io.read_images` reads too.

    Args:
        path: The file; it appears only when complete.
        images: The images; their names, voxel size and, where known, CTFs are written.
        poses: Their poses, shifts in Å.
        overwrite: Whether an existing file may be replaced.

    Raises:
        GeometryError: There are not as many poses as images.
        CryoFMError: The images have no names.
        OutputExistsError: The file exists and ``overwrite`` is false.

    Example:
        >>> images = ImageStack(np.zeros((2, 8, 8)), 1.5, names=["000001@classes.mrcs", "000002@classes.mrcs"])
        >>> write_poses("poses.star", images, Poses.from_angles(np.zeros((2, 3)), np.zeros((2, 2))))
    """
    if len(poses) != len(images):
        raise GeometryError(f"{len(images)} images and {len(poses)} poses; there must be as many")
    if not images.names:
        raise CryoFMError("the images have no names, so a STAR file cannot say what the poses belong to; name them")
    particles: dict[str, Any] = {"rlnImageName": [f"'{name}'" if " " in name else name for name in images.names]}
    optics: dict[str, Any] = {"rlnImagePixelSize": np.array([images.voxel_size])}
    groups = np.ones(len(images), dtype=int)
    if images.ctf is not None:
        shared = np.stack([getattr(images.ctf, field) for field in _OPTICS], -1)
        distinct, groups = np.unique(shared, axis=0, return_inverse=True)
        groups = groups.ravel() + 1
        optics = {"rlnImagePixelSize": np.full(len(distinct), images.voxel_size)}
        optics |= dict(zip(_OPTICS.values(), distinct.T, strict=True))
        particles |= {tag: getattr(images.ctf, field) for field, tag in _DEFOCUS.items()}
    count = len(optics["rlnImagePixelSize"])
    optics = {
        "rlnOpticsGroupName": [f"opticsGroup{i + 1}" for i in range(count)],
        "rlnOpticsGroup": np.arange(1, count + 1),
        "rlnImageSize": np.full(count, images.data.shape[-1]),
        "rlnImageDimensionality": np.full(count, 2),
    } | optics
    particles |= dict(zip(_ANGLES, poses.angles_deg.T, strict=True))
    particles |= {f"rlnOrigin{axis}Angst": poses.shifts[:, i] for i, axis in enumerate("XY")}
    particles |= {"rlnOpticsGroup": groups}
    with atomic_write(path, overwrite) as temporary:
        temporary.write_text(_table("optics", optics) + _table("particles", particles), encoding="utf-8")


def _table(name: str, columns: dict[str, Any]) -> str:
    heads = [f"_{tag} #{i}" for i, tag in enumerate(columns, 1)]
    rows = zip(*(_cells(values) for values in columns.values()), strict=True)
    return "\n".join(["# version 30001", "", f"data_{name}", "", "loop_", *heads, *map("\t".join, rows), "", ""])


def _cells(values: Any) -> list[str]:
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return [f"{value + 0.0:.6f}" for value in values]
    return [str(value) for value in values]
