"""Between which tilts the particles of RELION's tomograms were taken (versions 4 and 5).

An optimisation set names particles and tomograms. A tilt of a tomogram is a row of the matrix that projects it (version
4, rlnTomoProjZ) or angles (version 5): the specimen is turned by rlnTomoXTilt about x, then by rlnTomoYTilt about y,
then by rlnTomoZRot in the image. Either tells what direction of the tomogram the beam had, and that its angle about y.
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cryofm_io.errors import InputFileError
from cryofm_io.image_read import find_named
from cryofm_io.image_table import ImageTable
from cryofm_io.star_text import Block, read_star

__all__ = ["set_members", "visible_tilts"]

_MEMBERS = ("rlnTomoParticlesFile", "rlnTomoTomogramsFile")
_MATRIX, _ANGLES, _SERIES = "rlnTomoProjZ", ("rlnTomoXTilt", "rlnTomoYTilt"), "rlnTomoTiltSeriesStarFile"
_SMALL = 2**16  # bytes, of an optimisation set at most
_OFF = 10.0  # degrees that the beam may lie from the plane across y, the tilt axis


def set_members(path: Path) -> tuple[Path, Path] | None:
    """The files of particles and of tomograms that an optimisation set names; None of another file."""
    if not path.is_file() or path.stat().st_size > _SMALL:
        return None
    blocks = read_star(path, _MEMBERS)
    found = [[value for block in blocks for value in block.column(tag) or []] for tag in _MEMBERS]
    if not all(found):
        return None
    particles, tomograms = (find_named(values[0], path) for values in found)
    return particles, tomograms


def visible_tilts(table: ImageTable, path: Path) -> NDArray[np.float64]:
    """The least and the largest tilt of the frames in which each particle is seen, degrees, ``(K, 2)``.

    Args:
        table: The particles, with rlnTomoName, and rlnTomoVisibleFrames where not all see them.
        path: RELION's tomograms.star.

    Raises:
        InputFileError: A tomogram is not there, tells no tilts, or was not tilted about y.
    """
    names = table.block.column("rlnTomoName")
    if names is None:
        raise InputFileError(f"{table.path}: no rlnTomoName, so that nothing tells which tilts are a particle's")
    frames = table.block.column("rlnTomoVisibleFrames") or [""] * len(names)
    tilts = _tilts(path, set(names))
    each = enumerate(zip(names, frames, strict=True))
    seen = [_seen(table.path, row, tilts[name], shown) for row, (name, shown) in each]
    return np.array([(own.min(), own.max()) for own in seen])


def _seen(path: Path, row: int, tilts: NDArray[np.float64], frames: str) -> NDArray[np.float64]:
    if not frames:
        return tilts
    try:
        shown = np.array(json.loads(frames), dtype=bool)
    except (ValueError, TypeError, RecursionError):
        shown = np.zeros(0, bool)
    if shown.shape != tilts.shape or not shown.any():
        raise InputFileError(f"{path}: rlnTomoVisibleFrames in row {row + 1} is {frames!r}, for {len(tilts)} tilts")
    return np.asarray(tilts[shown])


def _tilts(path: Path, wanted: set[str]) -> dict[str, NDArray[np.float64]]:
    """Of every frame of each tomogram."""
    blocks = read_star(path, ("rlnTomoName", _SERIES, _MATRIX, *_ANGLES))
    listed = next((block for block in blocks if block.name == "global"), None)
    names, series = (None if listed is None else listed.column(tag) for tag in ("rlnTomoName", _SERIES))
    if names is None:
        raise InputFileError(f"{path}: no data_global with rlnTomoName; is it RELION's tomograms.star?")
    if missing := sorted(wanted - set(names)):
        raise InputFileError(f"{path}: no tomogram {missing[0]}, in which particles are")
    found = {}
    for row, name in enumerate(names):
        if name in wanted:
            own = blocks if series is None else read_star(find_named(series[row], path), (_MATRIX, *_ANGLES))
            of_name = [block for block in own if block.name == name.lower()] or ([] if series is None else own)
            found[name] = _of_frames(path, name, of_name)
    return found


def _of_frames(path: Path, name: str, blocks: list[Block]) -> NDArray[np.float64]:
    columns = {tag: next((v for block in blocks if (v := block.column(tag))), []) for tag in (_MATRIX, *_ANGLES)}
    try:
        if columns[_MATRIX]:
            beam = np.array([json.loads(cell) for cell in columns[_MATRIX]], np.float64)[:, :3]
        else:
            about_x, about_y = (np.radians(np.array(columns[tag], np.float64)) for tag in _ANGLES)
            about_x = about_x if about_x.size else np.zeros_like(about_y)
            # The third row of the matrices about y and x.
            cosine = np.cos(about_y)
            beam = np.stack([-np.sin(about_y), cosine * np.sin(about_x), cosine * np.cos(about_x)], -1)
        beam = beam / np.linalg.norm(beam, axis=1, keepdims=True)
    except (ValueError, TypeError, IndexError, RecursionError):
        raise InputFileError(f"{path}: the tilts of {name} are no numbers") from None
    if not len(beam) or not np.isfinite(beam).all():
        raise InputFileError(f"{path}: tomogram {name} tells no tilts ({_MATRIX}, or {_ANGLES[1]})")
    if (off := float(np.degrees(np.arcsin(np.abs(beam[:, 1]).max())))) > _OFF:
        raise InputFileError(f"{path}: the beam of {name} is {off:.0f}° off the plane across y, the tilt axis")
    return np.asarray(np.degrees(np.arctan(-beam[:, 0] / beam[:, 2])))
