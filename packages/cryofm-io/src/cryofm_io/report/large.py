"""What a page says of a map larger than memory: all of it in coarse voxels, and in full the block that was checked."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.density_map import DensityMap, position_of
from cryofm_io.mrc_read import MapOnDisk, map_on_disk
from cryofm_io.report.content import content_of
from cryofm_io.report.models import map_volumes
from cryofm_io.report.run import Run, input_file
from cryofm_io.report.volumes import MOST

__all__ = ["coarse", "large_content"]

_EDGE = 0.08  # of a block's side, over which it falls to its median: a cut through density rings in Fourier space


def large_content(folder: Path, measured: Sequence[MapOnDisk] | None, former: dict[str, Any] | None) -> dict[str, Any]:
    """The content of a page; of files that are larger than memory one slab is read at a time.

    Args:
        folder: With ``restored.mrc`` and ``run.json``, which tells the place of the block that was checked
            (``checked_voxels``: first and last + 1 along z, y and x) and under ``checked`` what was found.
        measured: One map or two halves. None: from where ``run.json`` says that they lie.
        former: A page's content, for where they are gone.
    """
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    maps = _inputs(record, folder) if measured is None else list(measured)
    if not maps and former is not None:
        return former
    restored = map_on_disk(folder / "restored.mrc")
    z, y, x = (slice(*ends) for ends in record["checked_voxels"])
    shown, *blocks = (_block(one, (z, y, x)) for one in (restored, *maps))
    content = content_of(
        Run(
            record=record | record.get("checked", {}),
            restored=shown,
            halves=(blocks[0], blocks[1]) if len(blocks) == 2 else None,
            observed=blocks[0] if len(blocks) == 1 else None,
        )
    )
    where = " × ".join(f"{part.start} to {part.stop}" for part in (x, y, z))
    told = (
        f"Curves and numbers are of the block of voxels {where} (x, y, z), the one with most density: there the checks "
        "were made, and the others were not checked. Slices and surface are of the whole map."
    )
    whole = {"restored": coarse(restored)}
    if maps:
        ground = np.median(whole["restored"].data)
        mean = coarse(*maps)
        whole = {"input": attrs.evolve(mean, data=mean.data - np.median(mean.data) + ground)} | whole
    volumes = map_volumes(whole, like="restored")
    volumes["grid"]["coarser"] = volumes["grid"]["voxel_size"] > 1.001 * restored.voxel_size
    verdict = f"Of the one block that was checked: {content['verdict']}"
    return content | {"verdict": verdict, "warnings": [told, *content["warnings"]], **volumes}


def coarse(*maps: MapOnDisk) -> DensityMap:
    """The mean of maps in cubes of k³ voxels, as few as a page takes; what is left beyond the last cube is not shown.

    Raises:
        GeometryError: A value is not finite.
    """
    first = maps[0]
    k = math.ceil((math.prod(first.shape) / MOST) ** (1 / 3))
    kz, ky, kx = each = [min(k, n) for n in first.shape]
    nz, ny, nx = (n // side for n, side in zip(first.shape, each, strict=True))
    made = np.zeros((nz, ny, nx))
    for one in maps:
        for i in range(nz):
            slab = np.asarray(one.data[kz * i : kz * (i + 1), : ky * ny, : kx * nx], np.float32)
            made[i] += slab.reshape(kz, ny, ky, nx, kx).mean((0, 2, 4), dtype=np.float64)
    place = [p + first.voxel_size * (side - 1) / 2 for p, side in zip(position_of(first), each[::-1], strict=True)]
    return DensityMap(made / len(maps), k * first.voxel_size, origin=(place[0], place[1], place[2]))


def _block(map: MapOnDisk, places: tuple[slice, slice, slice]) -> DensityMap:
    data: NDArray[np.float32] = np.array(map.data[places], np.float32)
    ground = np.float32(np.median(data))
    data -= ground
    for axis, n in enumerate(data.shape):
        across = [1, 1, 1]
        across[axis] = n
        data *= _window(n).reshape(across)
    start = [place.start for place in reversed(places)]
    x, y, z = (p + map.voxel_size * first for p, first in zip(position_of(map), start, strict=True))
    return DensityMap(data + ground, map.voxel_size, origin=(x, y, z))


def _window(n: int) -> NDArray[np.float32]:
    """1, and down to nearly 0 by a cosine at both ends."""
    from_end = np.minimum(np.arange(n), np.arange(n)[::-1]) + 1
    wide = max(1, round(_EDGE * n))
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.minimum(from_end / (wide + 1), 1)), np.float32)


def _inputs(record: dict[str, Any], folder: Path) -> list[MapOnDisk]:
    settings = record.get("settings", {})
    given = [settings[name] for name in ("half1", "half2") if settings.get(name)]
    paths = [input_file(record, name, folder) for name in given]
    return [map_on_disk(path, voxel_size=settings.get("voxel_size")) for path in paths if path] if all(paths) else []
