"""Reading stacks of images: class averages or particles, from MRC files and from RELION's STAR files."""

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryofm_io.errors import GeometryError, GridMismatchError, InputFileError
from cryofm_io.image_stack import ImageStack
from cryofm_io.mrc_read import axis_codes, load, says_stack, settle_voxel_size, stated_voxel_size
from cryofm_io.star import read_table

__all__ = ["read_images"]


def read_images(path: str | os.PathLike[str], *, voxel_size: float | None = None) -> ImageStack:
    """Read class averages or particles.

    Args:
        path: A stack (.mrcs, .mrc, .ccp4, also .gz or .bz2), or a STAR file of RELION 3.0 or later that lists images
            (rlnImageName) or class averages (rlnReferenceImage); this needs the extra ``[atomic]``. The files that it
            names are looked for from its folder, from the current one, and from those above its own.
        voxel_size: Å; wins over STAR file and header, with a warning if they differ by more than 1 %.

    Returns:
        The images as float32 ``(K, y, x)``, with the CTFs and poses that a STAR file states.

    Raises:
        InputFileError: A file is missing, truncated, of another kind, or a volume; a value is NaN or infinite; all
            values of an image are equal; or no voxel size is known.
        GeometryError: The images are not square, or fewer than two.
        GridMismatchError: Images of a STAR file differ in size or in pixel size.
        MissingExtraError: A STAR file, and gemmi is not installed.

    Warns:
        MapWarning: As `cryofm_io.read_map`.

    Example:
        >>> from cryofm_io import DensityMap, write_map
        >>> write_map("classes.mrcs", DensityMap(np.arange(5 * 8 * 8).reshape(5, 8, 8), voxel_size=1.2))
        >>> read_images("classes.mrcs")
        ImageStack(data=float32 (5, 8, 8), voxel_size=1.2, names=5 of them, ctf=None, poses=None)
    """
    path = Path(path)
    if ".star" in path.suffixes[-2:]:
        return _read_star(path, voxel_size)
    header, data = _load_images(path)
    if not says_stack(path, header) and (int(header.ispg) != 0 or len(set(data.shape)) == 1):
        raise InputFileError(
            f"{path}: expected a stack of images, found a volume of shape {data.shape}; if it is a stack, let its "
            "name end in .mrcs"
        )
    names = [f"{i:06d}@{path}" for i in range(1, len(data) + 1)]
    return _stack(path, data, settle_voxel_size(path, stated_voxel_size(path, header, "xy"), voxel_size), names)


def _read_star(path: Path, voxel_size: float | None) -> ImageStack:
    table = read_table(path)
    rows_of: dict[str, list[tuple[int, int | None]]] = defaultdict(list)
    for row, name in enumerate(table.names):
        number, at, file = name.partition("@")
        if at and not (number.isdecimal() and int(number) > 0):
            raise InputFileError(f"{path}: image name {name!r} in row {row + 1}; expected a number before @, from 1 on")
        rows_of[file if at else name].append((row, int(number) if at else None))

    images: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(table.names)
    names = list(table.names)
    headers = []
    for file, rows in rows_of.items():
        found = _find(file, path)
        header, sections = _load_images(found)
        headers.append(stated_voxel_size(found, header, "xy") or 0.0)
        for row, index in rows:
            if index is None and len(sections) > 1:
                raise InputFileError(
                    f"{found}: expected one image, found shape {sections.shape} (row {row + 1}, {path})"
                )
            if (index or 1) > len(sections):
                raise InputFileError(
                    f"{found}: there is no image {index} among {len(sections)} (row {row + 1}, {path})"
                )
            images[row] = sections[(index or 1) - 1].copy()  # lets go of the stack
            names[row] = f"{index or 1:06d}@{found}"
    first = images[0].shape
    for image, name in zip(images, names, strict=True):
        if image.shape != first:
            raise GridMismatchError(f"{path}: {names[0]} is {first} and {name} {image.shape}; bring them to one size")
    stated = table.pixel_sizes()
    sizes = np.array(headers) if stated is None else stated
    if np.ptp(sizes) > 1e-3 * np.abs(sizes[0]):
        raise GridMismatchError(f"{path}: pixels of {sizes.min():g} and {sizes.max():g} Å; bring them to one size")
    size = settle_voxel_size(path, float(sizes[0]) if sizes[0] > 0 else None, voxel_size)
    return _stack(path, np.stack(images), size, names, table.ctf(), table.poses(size))


def _find(name: str, star: Path) -> Path:
    """RELION names files from its project's folder, somewhere above the STAR file."""
    folders = [star.parent, Path(), *star.resolve().parents[1:]]
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    raise InputFileError(f"{star} names {name}, which is neither in {star.parent} nor in {Path.cwd()} nor above {star}")


def _load_images(path: Path) -> tuple[Any, NDArray[np.float32]]:
    """The header and all sections (K, y, x)."""
    header, data = load(path)
    if data.ndim > 3 or np.iscomplexobj(data):
        raise InputFileError(f"{path}: expected a stack of real images, found {data.dtype} of shape {data.shape}")
    codes = axis_codes(path, header)
    if codes[2] != 3:
        raise InputFileError(f"{path}: axes stored in the order {codes}; sections of a stack must lie along z")
    images = data.reshape(-1, *data.shape[-2:])
    return header, np.asarray(images if codes == (1, 2, 3) else images.mT, dtype=np.float32)


def _stack(path: Path, data: NDArray[np.float32], voxel_size: float, names: list[str], *known: Any) -> ImageStack:
    """The images, once their values and shapes are found to be good."""
    finite = np.isfinite(data)
    if not finite.all():
        index = tuple(int(i) for i in np.unravel_index(int(finite.argmin()), data.shape))
        raise InputFileError(
            f"{path}: {data.size - int(finite.sum())} values are not finite, the first is {data[index]} at "
            f"(image, y, x) = {index} in {names[index[0]]}; repair the images or leave them out"
        )
    constant = np.ptp(data, axis=(1, 2)) == 0
    if constant.any():
        raise InputFileError(
            f"{path}: {int(constant.sum())} of {len(data)} images are constant (empty classes?), the first is "
            f"{names[int(constant.argmax())]}; leave them out"
        )
    try:
        return ImageStack(data, voxel_size, names, *known)
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from None
