"""Reading and writing poses as STAR files of RELION."""

import os
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.atomic import atomic_write
from cryofm_io.errors import CryoFMError, GeometryError, InputFileError
from cryofm_io.image_stack import ImageStack, Poses
from cryofm_io.image_table import ANGLES, BOX_ANGLES, DEFOCUS, OPTICS, TILTS, read_subtomograms, read_table
from cryofm_io.star_text import quoted
from cryofm_io.tomograms import set_members, visible_tilts

__all__ = ["SubtomogramPoses", "read_poses", "read_subtomogram_poses", "write_poses"]


def read_poses(path: str | os.PathLike[str]) -> Poses:
    """Read the poses of particles, and none of their images, which need not be there.

    Args:
        path: A STAR file of RELION 3.0 or later with rlnAngleRot, rlnAngleTilt and rlnAnglePsi, or a data set of
            cryoSPARC (.cs) with alignments3D.

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


@attrs.frozen(eq=False)
class SubtomogramPoses:
    """How particles lay in their tomograms, and between which tilts these were taken.

    Attributes:
        rotations: average to tomogram, p = R x, ``(K, 3, 3)``, acting on (x, y, z); the beam is along z.
        tilts_deg: (min, max), ``(K, 2)``; None where the file does not tell them.
    """

    rotations: NDArray[np.float64]
    tilts_deg: NDArray[np.float64] | None

    def __len__(self) -> int:
        return len(self.rotations)


def read_subtomogram_poses(path: str | os.PathLike[str]) -> SubtomogramPoses:
    """Read how the particles of a subtomogram average lay in their tomograms; none of their volumes need be there.

    The particle's own angles come first, then those of its box, rlnTomoSubtomogramRot, -Tilt and -Psi, where there are
    any (RELION 4 and 5). The limits of the tilts are those of the tomograms that an optimisation set names. No label of
    RELION has them for a particle, but columns cryofmTiltMin and cryofmTiltMax may, that you add.

    Args:
        path: A STAR file of RELION 3.0 or later with rlnAngleRot, rlnAngleTilt and rlnAnglePsi, or RELION's
            optimisation_set.star.

    Raises:
        InputFileError: The file lists no particles or no angles, images of single particles, or a value that can be
            none.

    Example:
        >>> columns = ["rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "cryofmTiltMin", "cryofmTiltMax"]
        >>> table = ["data_particles", "loop_", *(f"_{name}" for name in columns), "1.mrc 0 90 0 -60 51", ""]
        >>> _ = Path("subtomograms.star").write_text("\\n".join(table))
        >>> read_subtomogram_poses("subtomograms.star").tilts_deg
        array([[-60.,  51.]])
    """
    members = None if Path(path).suffix.lower() == ".cs" else set_members(Path(path))
    table = read_subtomograms(Path(path) if members is None else members[0])

    def columns(tags: tuple[str, ...]) -> NDArray[np.float64] | None:
        found = {tag: table.finite(tag) for tag in tags}
        absent = [tag for tag, values in found.items() if values is None]
        if absent and len(absent) < len(tags):
            raise InputFileError(f"{path}: some of {', '.join(tags)} are there and {', '.join(absent)} not; add them")
        return None if absent else np.stack([values for values in found.values() if values is not None], -1)

    none = np.zeros((len(table.names), 2))
    rotations = [
        Poses.from_angles(angles, none).rotations
        for tags in (BOX_ANGLES, ANGLES)
        if (angles := columns(tags)) is not None
    ]
    tilts = columns(TILTS)
    if tilts is None and members is not None:
        tilts = visible_tilts(table, members[1])
    if tilts is not None and (wrong := ~((tilts >= -90) & (tilts <= 90)).all(1) | (tilts[:, 0] >= tilts[:, 1])).any():
        row = int(wrong.argmax())
        raise InputFileError(
            f"{path}: tilts from {tilts[row, 0]:g} to {tilts[row, 1]:g} in row {row + 1} ({table.names[row]}); "
            "expected -90 <= cryofmTiltMin < cryofmTiltMax <= 90 degrees"
        )
    return SubtomogramPoses(rotations[0] if len(rotations) == 1 else rotations[0] @ rotations[1], tilts)


def write_poses(
    path: str | os.PathLike[str],
    images: ImageStack,
    poses: Poses,
    overwrite: bool = False,
    *,
    read_in: str | os.PathLike[str] | None = None,
) -> None:
    """Write poses as a STAR file of RELION 3.1 or later, which `cryofm_io.read_images` reads too.

    Args:
        path: The file; it appears only when complete.
        images: The images; their names, voxel size and, where known, CTFs are written. Names of files that are there
            are written as seen from the STAR file's folder, so that it can be read from anywhere.
        poses: Their poses, shifts in Å.
        overwrite: Whether an existing file may be replaced.
        read_in: The folder in which it will be read, where it is moved afterwards. None: its own.

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
    folder = Path(path).resolve().parent if read_in is None else Path(read_in).resolve()
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
