"""Reading stacks of images: class averages or particles, from MRC files and from RELION's STAR files."""

import math
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.errors import GeometryError, GridMismatchError, InputFileError, MapWarning
from cryofm_io.image_stack import ImageCtf, ImageStack, Poses
from cryofm_io.image_table import ImageTable, read_table
from cryofm_io.mrc_header import Header
from cryofm_io.mrc_read import as_float32, axis_codes, says_stack
from cryofm_io.mrc_store import load
from cryofm_io.other_formats import endings
from cryofm_io.voxel_size import Stated, settle_voxel_size, stated_voxel_size

__all__ = ["ImagesOnDisk", "find_named", "images_on_disk", "read_images"]


def read_images(path: str | os.PathLike[str], *, voxel_size: float | None = None, strict: bool = False) -> ImageStack:
    """Read class averages or particles.

    Args:
        path: A stack (.mrcs, .mrc, .ccp4, also .gz or .bz2), a STAR file of RELION 3.0 or later that lists images
            (rlnImageName) or class averages (rlnReferenceImage), or a data set of cryoSPARC (.cs; blob/path). The files
            that it names are looked for from its folder, from the current one, and from those above its own.
        voxel_size: Å; wins over whatever STAR file and header say about size, with a warning of what it overrides (not
            within 1 %).
        strict: Refuse images that are empty or damaged, which otherwise are named and left out.

    Returns:
        The good images as float32 ``(K, y, x)``, with the CTFs, poses and classes' shares that a STAR file states.

    Raises:
        InputFileError: A file is missing, truncated, of another kind, or a volume; no voxel size is known; or an image
            holds NaN or infinity, or one value throughout, and ``strict`` or fewer than two others are left.
        GeometryError: The images are not square, or fewer than two.
        GridMismatchError: Images of a STAR file differ in size or in pixel size.

    Warns:
        MapWarning: As `cryofm_io.read_map`, and of images that are left out.

    Example:
        >>> from cryofm_io import DensityMap, write_map
        >>> write_map("classes.mrcs", DensityMap(np.arange(5 * 8 * 8).reshape(5, 8, 8), voxel_size=1.2))
        >>> read_images("classes.mrcs")
        ImageStack(data=float32 (5, 8, 8), voxel_size=1.2, names=5 of them, ctf=None, poses=None, shares=None)
    """
    path = Path(path)
    if path.suffix.lower() == ".cs" or ".star" in endings(path):
        return _read_star(path, voxel_size, strict)
    header, data = _load_images(path)
    if not says_stack(path, header) and (header.space_group != 0 or len(set(data.shape)) == 1):
        raise InputFileError(
            f"{path}: expected a stack of images, found a volume of shape {data.shape}; if it is a stack, let its "
            "name end in .mrcs"
        )
    names = [f"{i:06d}@{path}" for i in range(1, len(data) + 1)]
    size = settle_voxel_size(path, stated_voxel_size(header, "xy"), voxel_size)
    return _stack(path, as_float32(data), size, names, strict=strict)


def _read_star(path: Path, voxel_size: float | None, strict: bool) -> ImageStack:
    table = read_table(path)
    rows_of: dict[str, list[tuple[int, int | None]]] = defaultdict(list)
    for row, name in enumerate(table.names):
        number, at, file = name.partition("@")
        if at and not (number.isdecimal() and len(number) < 10 and int(number) > 0):
            raise InputFileError(f"{path}: image name {name!r} in row {row + 1}; expected a number before @, from 1 on")
        rows_of[file if at else name].append((row, int(number) if at else None))

    images: NDArray[np.float32] | None = None
    names = list(table.names)
    headers = []
    for file, rows in rows_of.items():
        found = find_named(file, path)
        header, sections = _load_images(found)
        headers.append(stated_voxel_size(header, "xy"))
        for row, index in rows:
            if index is None and len(sections) > 1:
                raise InputFileError(
                    f"{found}: expected one image, found shape {sections.shape} (row {row + 1}, {path})"
                )
            if (index or 1) > len(sections):
                raise InputFileError(
                    f"{found}: there is no image {index} among {len(sections)} (row {row + 1}, {path})"
                )
            names[row] = f"{index or 1:06d}@{found}"
            if images is None:
                images = _room_for(path, len(names), sections.shape[1:])
            if images.shape[1:] != sections.shape[1:]:
                shapes = f"{names[0]} is {images.shape[1:]} and {names[row]} {sections.shape[1:]}"
                raise GridMismatchError(f"{path}: {shapes}; bring them to one size")
            images[row] = as_float32(sections[(index or 1) - 1])
    assert images is not None  # a table has rows
    size = _star_voxel_size(table, headers, voxel_size)
    return _stack(path, images, size, names, table.ctf(), table.poses(size), table.shares(), strict=strict)


def _room_for(path: Path, count: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array for so many images, of which a table may name one a thousand times, if there is as much memory."""
    needed, free = 4 * count * math.prod(shape), np.inf
    with suppress(OSError, LookupError, ValueError):  # where nobody tells
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    try:
        if needed < free:
            return np.empty((count, *shape), np.float32)
    except MemoryError:
        pass
    side = " × ".join(map(str, reversed(shape)))
    raise InputFileError(
        f"{path}: {count} images of {side} pixels take {needed / 2**30:.1f} GiB, for which there is no memory; "
        "list fewer of them"
    )


@attrs.frozen(eq=False)
class ImagesOnDisk:
    """Images that a STAR file lists, any number of them, which are read as they are needed.

    Args:
        sections: The images of each file ``(K, y, x)``, as stored: views of the files, not looked at yet.
        places: Of every image its file, and its number there from 0.
        voxel_size: Å.
        ctf: As that of `ImageStack`.
        poses: Likewise.
    """

    sections: dict[str, NDArray[Any]] = attrs.field(repr=lambda sections: f"{len(sections)} files")
    places: tuple[tuple[str, int], ...] = attrs.field(repr=lambda places: f"{len(places)} images")
    voxel_size: float
    ctf: ImageCtf | None
    poses: Poses | None

    def __len__(self) -> int:
        return len(self.places)

    @property
    def side(self) -> int:
        """Of every image, in pixels."""
        return int(next(iter(self.sections.values())).shape[-1])

    def read(self, which: Iterable[int]) -> NDArray[np.float32]:
        """Some of the images, ``(k, y, x)``.

        Raises:
            InputFileError: One is not finite everywhere.
        """
        places = [self.places[i] for i in which]
        images = np.stack([as_float32(self.sections[file][number]) for file, number in places])
        if not (finite := np.isfinite(images).all((1, 2))).all():
            file, number = places[int(finite.argmin())]
            raise InputFileError(f"{number + 1:06d}@{file}: there are values that are not finite")
        return images


def images_on_disk(path: str | os.PathLike[str]) -> ImagesOnDisk:
    """Open the images that a STAR file lists, of which there may be more than memory holds.

    Args:
        path: A STAR file or a data set of cryoSPARC, see `read_images`; compressed stacks are unpacked into memory.

    Raises:
        InputFileError: As `read_images`, but for values, which are not looked at.
        GridMismatchError: Likewise.

    Example:
        >>> from cryofm_io import DensityMap, write_map, write_poses
        >>> write_map("some.mrcs", DensityMap(np.arange(5 * 8 * 8).reshape(5, 8, 8), voxel_size=1.2))
        >>> write_poses("some.star", read_images("some.mrcs"), Poses(np.stack([np.eye(3)] * 5), np.zeros((5, 2))))
        >>> images = images_on_disk("some.star")
        >>> len(images), images.side, images.read([3, 1])[:, 0, 0]
        (5, 8, array([192.,  64.], dtype=float32))
    """
    path = Path(path)
    table = read_table(path)
    places = []
    for name in table.names:
        number, at, file = name.partition("@")
        if not (at and file and number.isdecimal() and len(number) < 10 and int(number) > 0):
            raise InputFileError(f"{path}: {name!r} is no image of a stack (000001@stack.mrcs)")
        places.append((file, int(number) - 1))
    loaded = {file: _load_images(find_named(file, path)) for file in dict.fromkeys(file for file, _ in places)}
    sections = {file: data for file, (_, data) in loaded.items()}
    for file, index in places:
        if index >= len(sections[file]):
            raise InputFileError(f"{path}: {file} has {len(sections[file])} images, not {index + 1}")
    shapes = {data.shape[1:] for data in sections.values()}
    if len(shapes) > 1 or len(set(*shapes)) > 1:
        raise GridMismatchError(f"{path}: the images differ in size, or are not square: {sorted(shapes)}")
    size = _star_voxel_size(table, [stated_voxel_size(header, "xy") for header, _ in loaded.values()], None)
    return ImagesOnDisk(sections, tuple(places), size, table.ctf(), table.poses(size))


def _star_voxel_size(table: ImageTable, headers: list[Stated], wished: float | None) -> float:
    """What the STAR file states, or the headers of its files, or what was asked for instead of either."""
    try:
        stated = table.pixel_sizes()
    except InputFileError as error:
        if wished is None:
            raise
        return settle_voxel_size(table.path, Stated(None, str(error).removeprefix(f"{table.path}: ")), wished)
    if stated is None:
        troubled = next((header for header in headers if header.size is None), None)
        if troubled is not None:
            trouble = f"no pixel size in the STAR file, and in an image's header {troubled.trouble}"
            return settle_voxel_size(table.path, Stated(None, trouble, troubled.crooked), wished)
    sizes = np.array([header.size for header in headers], np.float64) if stated is None else stated
    if np.ptp(sizes) > 1e-3 * np.abs(sizes[0]):
        found = f"pixels of {sizes.min():g} and {sizes.max():g} Å"
        if wished is None:
            raise GridMismatchError(f"{table.path}: {found}; bring them to one size")
        return settle_voxel_size(table.path, Stated(None, found), wished)
    return settle_voxel_size(table.path, Stated(float(sizes[0])), wished)


def find_named(name: str, star: Path) -> Path:
    """RELION names files from its project's folder, somewhere above the STAR file."""
    folders = [star.parent, Path(), *star.resolve().parents[1:]]
    for folder in folders:
        try:
            if (folder / name).is_file():
                return _plain(folder / name)
        except (OSError, ValueError):  # too long a name, or one with a NUL
            continue
    raise InputFileError(
        f"{star} names {name}, which is neither in {star.parent} nor in {Path.cwd()} nor above {star}: "
        f"{name} is not there"
    )


def _plain(path: Path) -> Path:
    """The same file without ``..``, where it has them."""
    if ".." not in path.parts:
        return path
    absolute = path.resolve()
    return absolute if path.is_absolute() else Path(os.path.relpath(absolute))


def _load_images(path: Path) -> tuple[Header, NDArray[Any]]:
    """The header and all sections (K, y, x) as stored."""
    header, data = load(path)
    if data.ndim > 3 or np.iscomplexobj(data):
        raise InputFileError(f"{path}: expected a stack of real images, found {data.dtype} of shape {data.shape}")
    codes = axis_codes(path, header)
    if codes[2] != 3:
        raise InputFileError(f"{path}: axes stored in the order {codes}; sections of a stack must lie along z")
    if not np.allclose(header.angles, 90, rtol=0, atol=0.1) and any(header.angles):
        message = f"{path}: cell angles (CELLB) of {header.angles}°, which mean nothing for images, are left out"
        warnings.warn(message, MapWarning, stacklevel=3)
    images = data.reshape(-1, *data.shape[-2:])
    return header, images if codes == (1, 2, 3) else images.mT


def _stack(
    path: Path,
    data: NDArray[np.float32],
    voxel_size: float,
    names: list[str],
    ctf: ImageCtf | None = None,
    poses: Poses | None = None,
    shares: NDArray[np.float64] | None = None,
    *,
    strict: bool,
) -> ImageStack:
    """The images whose values are good."""
    finite = np.isfinite(data).all((1, 2))
    constant = np.ptp(data, axis=(1, 2)) == 0
    good = finite & ~constant
    for bad, what in ((~finite, "not finite everywhere"), (finite & constant, "constant (empty classes?)")):
        if bad.any():
            found = (
                f"{path}: {int(bad.sum())} of {len(data)} images are {what}, the first is {names[int(bad.argmax())]}"
            )
            if strict or good.sum() < 2:
                raise InputFileError(f"{found}; repair them or leave them out")
            warnings.warn(f"{found}; they are left out", MapWarning, stacklevel=3)
    if not good.all():
        data, names = data[good], [name for name, keep in zip(names, good, strict=True) if keep]
        ctf = ctf and ImageCtf(**{field: values[good] for field, values in attrs.asdict(ctf).items()})
        poses = poses and Poses(poses.rotations[good], poses.shifts[good])
        shares = None if shares is None else shares[good]
    try:
        return ImageStack(data, voxel_size, names, ctf, poses, shares)
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from None
