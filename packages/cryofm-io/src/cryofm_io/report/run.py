"""What a run left in its folder, and what it was made of."""

import csv
import hashlib
import json
import math
import warnings
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.density_map import DensityMap
from cryofm_io.errors import CryoFMError, InputFileError, MapWarning
from cryofm_io.fsc import FscCurve
from cryofm_io.mrc_read import read_map, read_values

__all__ = ["Run", "input_file"]

Pair = tuple[DensityMap, DensityMap]


@attrs.frozen(eq=False)
class Run:
    """A restored map with what belongs to it; what is not there is None.

    Args:
        record: ``run.json``.
        restored: On the grid of the data, as all other maps.
        linear: What the best linear filter makes of the data.
        uncertainty: Standard deviation of the samples.
        halves: The half maps as measured, or as images were made into.
        observed: The one map as measured, where there are no halves.
        restored_halves: Each restored by itself.
        mask: That the script was given.
        curves: ``fsc.csv``.
    """

    record: dict[str, Any]
    restored: DensityMap
    linear: DensityMap | None = None
    uncertainty: DensityMap | None = None
    halves: Pair | None = None
    observed: DensityMap | None = None
    restored_halves: Pair | None = None
    mask: NDArray[np.float32] | None = None
    curves: dict[str, FscCurve] = attrs.field(factory=dict)

    @classmethod
    def of(cls, folder: Path, **known: Any) -> "Run":
        """From a folder, and from inputs that still lie where they lay; what is ``known`` is not read.

        Raises:
            InputFileError: The folder has no ``run.json`` or no ``restored.mrc``.
        """
        path = folder / "run.json"
        if not path.is_file() or not (folder / "restored.mrc").is_file():
            raise InputFileError(f"{folder} has no run.json and restored.mrc; give a folder of a script that restores")
        record = json.loads(path.read_text(encoding="utf-8"))
        maps: dict[str, Any] = {
            name: _map(folder / f"{name}.mrc") for name in ("restored", "linear", "uncertainty") if name not in known
        }
        if "restored_halves" not in known and (folder / "restored_half1.mrc").is_file():
            maps["restored_halves"] = tuple(_map(folder / f"restored_half{i}.mrc") for i in (1, 2))
        settings = record.get("settings", {})
        if "halves" not in known and "observed" not in known:
            given = [name for name in ("half1", "half2") if settings.get(name)]
            inputs = tuple(_input(record, settings[name], folder) for name in given)
            if inputs and None not in inputs:  # one half alone is not what was restored
                maps |= {"observed": inputs[0]} if len(inputs) == 1 else {"halves": inputs}
            pair = [folder / f"reconstruction_half{i}.mrc" for i in (1, 2)]
            if not given and all(path.is_file() for path in pair):  # which images were made into
                maps["halves"] = tuple(map(_map, pair))
        if "mask" not in known and (mask := _input(record, settings.get("mask"), folder, mask=True)) is not None:
            maps["mask"] = mask.data
        if "curves" not in known:
            maps["curves"] = _curves(folder / "fsc.csv")
        return cls(record=record, **maps, **known)

    @property
    def name(self) -> str:
        """The program that made it."""
        return str(self.record.get("program", "a run"))


def _map(path: Path) -> DensityMap | None:
    """A result; what its header has of the input's was told when that was read."""
    if not path.is_file():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MapWarning)
        return read_map(path)


def _input(record: dict[str, Any], name: str | None, folder: Path, *, mask: bool = False) -> DensityMap | None:
    """A file of the command line, if it is there and still what it was."""
    path = None if name is None else input_file(record, name, folder)
    if path is None:
        return None
    try:
        return (read_values if mask else read_map)(path, voxel_size=record["settings"].get("voxel_size"))
    except CryoFMError:  # the page can do without
        return None


def input_file(record: dict[str, Any], name: str, folder: Path) -> Path | None:
    """Where a file of the command line lies, if it is still what it was."""
    wanted = record.get("inputs_sha256", {}).get(name)
    for path in (Path(name), folder / name):
        if wanted is not None and path.is_file() and _sum(path) == wanted:
            return path
    return None


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _curves(path: Path) -> dict[str, FscCurve]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    values = np.array([[float(value) if value else math.nan for value in row] for row in rows])
    frequency, count = values[:, 0], values[:, 2].astype(np.int64)
    return {name: FscCurve(frequency, values[:, 3 + i], count) for i, name in enumerate(header[3:])}
