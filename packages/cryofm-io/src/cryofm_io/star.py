"""Reading and writing poses as STAR files of RELION."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from cryofm_io.atomic import atomic_write
from cryofm_io.errors import CryoFMError, GeometryError, InputFileError
from cryofm_io.image_stack import ImageStack, Poses
from cryofm_io.image_table import ANGLES, DEFOCUS, OPTICS, read_table
from cryofm_io.star_text import quoted

__all__ = ["read_poses", "write_poses"]


def read_poses(path: str | os.PathLike[str]) -> Poses:
    """Read the poses of particles, and none of their images, which need not be there.

    Args:
        path: A STAR file of RELION 3.0 or later with rlnAngleRot, rlnAngleTilt and rlnAnglePsi.

    Returns:
        The poses, shifts in Å; where these are stated in pixels, and no pixel size is, they are 0.

    Raises:
        InputFileError: The file lists no images or no angles, or a value that can be none.

    Example:
        >>> images = ImageStack(np.zeros((2, 8, 8)), 1.5, names=["000001@classes.mrcs", "000002@classes.mrcs"])
        >>> write_poses("views.star", images, Poses.from_angles([[10, 20, 30], [0, 90, 0]], np.zeros((2, 2))))
        >>> len(read_poses("views.star"))
        2
    """
    table = read_table(Path(path))
    sizes = table.pixel_sizes()
    poses = table.poses(0.0 if sizes is None else float(sizes[0]))
    if poses is None:
        raise InputFileError(f"{path} lists {len(table.names)} images and no angles ({', '.join(ANGLES)})")
    return poses


def write_poses(path: str | os.PathLike[str], images: ImageStack, poses: Poses, overwrite: bool = False) -> None:
    """Write poses as a STAR file of RELION 3.1 or later, which `cryofm_io.read_images` reads too.

    Args:
        path: The file; it appears only when complete.
        images: The images; their names, voxel size and, where known, CTFs are written. Names of files that are there
            are written as seen from the STAR file's folder, so that it can be read from anywhere.
        poses: Their poses, shifts in Å.
        overwrite: Whether an existing file may be replaced.

    Raises:
        GeometryError: There are not as many poses as images.
        CryoFMError: The images have no names, or one that no STAR file can hold.
        OutputExistsError: The file exists and ``overwrite`` is false.

    Example:
        >>> images = ImageStack(np.zeros((2, 8, 8)), 1.5, names=["000001@classes.mrcs", "000002@classes.mrcs"])
        >>> write_poses("poses.star", images, Poses.from_angles(np.zeros((2, 3)), np.zeros((2, 2))))
    """
    if len(poses) != len(images):
        raise GeometryError(f"{len(images)} images and {len(poses)} poses; there must be as many")
    if not images.names:
        raise CryoFMError("the images have no names, so a STAR file cannot say what the poses belong to; name them")
    folder = Path(path).resolve().parent
    particles: dict[str, Any] = {"rlnImageName": [quoted(_seen_from(folder, name)) for name in images.names]}
    optics: dict[str, Any] = {"rlnImagePixelSize": np.array([images.voxel_size])}
    groups = np.ones(len(images), dtype=int)
    if images.ctf is not None:
        shared = np.stack([getattr(images.ctf, field) for field in OPTICS], -1)
        distinct, groups = np.unique(shared, axis=0, return_inverse=True)
        groups = groups.ravel() + 1
        optics = {"rlnImagePixelSize": np.full(len(distinct), images.voxel_size)}
        optics |= dict(zip(OPTICS.values(), distinct.T, strict=True))
        particles |= {tag: getattr(images.ctf, field) for field, tag in DEFOCUS.items()}
    count = len(optics["rlnImagePixelSize"])
    optics = {
        "rlnOpticsGroupName": [f"opticsGroup{i + 1}" for i in range(count)],
        "rlnOpticsGroup": np.arange(1, count + 1),
        "rlnImageSize": np.full(count, images.data.shape[-1]),
        "rlnImageDimensionality": np.full(count, 2),
    } | optics
    particles |= dict(zip(ANGLES, poses.angles_deg.T, strict=True))
    particles |= {f"rlnOrigin{axis}Angst": poses.shifts[:, i] for i, axis in enumerate("XY")}
    particles |= {"rlnOpticsGroup": groups}
    with atomic_write(path, overwrite) as temporary:
        text = _table("optics", optics) + _table("particles", particles)
        # Names of files may hold bytes that are no UTF-8: they go out as they came in.
        temporary.write_bytes(text.encode("utf-8", "surrogateescape"))


def _seen_from(folder: Path, name: str) -> str:
    number, at, file = name.rpartition("@") if name.partition("@")[0].isdecimal() else ("", "", name)
    try:
        if os.path.isabs(file) or not os.path.exists(file):
            return name
        return f"{number}{at}{os.path.relpath(os.path.realpath(file), folder)}"
    except (OSError, ValueError):
        return name


def _table(name: str, columns: dict[str, Any]) -> str:
    heads = [f"_{tag} #{i}" for i, tag in enumerate(columns, 1)]
    rows = zip(*(_cells(values) for values in columns.values()), strict=True)
    return "\n".join(["# version 30001", "", f"data_{name}", "", "loop_", *heads, *map("\t".join, rows), "", ""])


def _cells(values: Any) -> list[str]:
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return [f"{value + 0.0:.6f}" for value in values]
    return [str(value) for value in values]
