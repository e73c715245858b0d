"""What a person asks of a map before anything is done with it."""

import os
import warnings
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.density_map import DensityMap
from cryofm_io.errors import CryoFMError, MapWarning
from cryofm_io.filters import low_pass
from cryofm_io.fsc import FscCurve, shell_sums, transform, unit
from cryofm_io.halves import check_contrast, check_half_maps, share_filled
from cryofm_io.mrc_read import AS_A_VOLUME, read_map
from cryofm_io.particle_size import particle_diameter

__all__ = ["HalvesInspection", "Inspection", "inspect_halves", "inspect_map"]

_MASKED = 0.05  # of the box, from where on so much of one value is a mask's doing
_FALL, _WITHIN = 100.0, 3  # a filter lets the power fall by that within so many shells
_SHAPE = 25.0  # Å; coarser than this the shape of a molecule lets the power fall as steeply
_FROM, _TO = 10.0, 4.0  # Å, of the Wilson plot: coarser is shape, finer is noise
_SHARP, _BLURRED = 15.0, 40.0  # Å²; of sharp maps there it is −50 to 5, of raw half maps from 30 on
_APART = 0.01  # of a voxel, by which ORIGIN and NSTART may differ


@attrs.frozen(eq=False)
class Inspection:
    """What was found of a file.

    Args:
        map: What was read; None where it could not be.
        found: In plain words, by what one asks.
        trouble: What has to be put right first; empty where all is well.
    """

    map: DensityMap | None
    found: dict[str, str]
    trouble: tuple[str, ...]


def inspect_map(path: str | os.PathLike[str], *, voxel_size: float | None = None) -> Inspection:
    """Look at a file: what a scientist would ask of it, and what is wrong with it.

    Args:
        path: An MRC or CCP4 file.
        voxel_size: Å; wins over the header's.

    Returns:
        What was found; no error is raised for a file that cannot be read, it is trouble.

    Example:
        >>> from cryofm_io import write_map
        >>> density = np.random.default_rng(0).normal(size=(24, 24, 24))
        >>> density[8:16, 8:16, 8:16] += 9
        >>> write_map("map.mrc", DensityMap(density, 1.5))
        >>> inspection = inspect_map("map.mrc")
        >>> inspection.found["size"]
        '24 × 24 × 24 voxels of 1.5 Å, a box of 36 × 36 × 36 Å'
        >>> inspection.trouble
        ()
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MapWarning)
        try:
            map = read_map(path, voxel_size=voxel_size)
        except (CryoFMError, OSError) as error:
            return Inspection(None, {}, (str(error),))
        check_contrast(map.data)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, MapWarning)]
    notes = [what.removeprefix(f"{path}: ") for what in said if what.endswith(AS_A_VOLUME)]  # nothing is to be done
    trouble = tuple(what for what in said if not what.endswith(AS_A_VOLUME))
    limit = _band_limit(map)
    found = {
        "size": _size(map),
        "place": _place(map),
        "values": f"{map.data.min():.4g} to {map.data.max():.4g}, mean {map.data.mean():.4g}, "
        f"standard deviation {map.data.std():.4g}",
        "sign": "protein is dark"
        if any("inverted" in what for what in trouble)
        else "protein is bright, or too faint to tell",
        "solvent": _solvent(map.data),
        "masked": _masked(map.data),
        "band": "to Nyquist, "
        f"{2 * map.voxel_size:.3g} Å: not filtered" if limit is None else f"filtered at about {limit:.3g} Å",
        "sharpened": _sharpened(map, limit),
        "molecule": _across(map),
        "hand": "no map tells its own hand: a mirror image fits the data as well",
    }  # fmt: skip
    if notes:
        found["header"] = "; ".join(notes)
    return Inspection(map, found, trouble)


@attrs.frozen(eq=False)
class HalvesInspection:
    """What two maps are to each other.

    Args:
        found: In plain words.
        trouble: What is wrong with them as halves; empty where all is well.
        fsc: Between them; None where they are no halves that can tell their noise.
    """

    found: str
    trouble: tuple[str, ...]
    fsc: FscCurve | None


def inspect_halves(one: DensityMap, two: DensityMap) -> HalvesInspection:
    """Find out whether two maps are raw halves of one reconstruction.

    Args:
        one: A map.
        two: Another.

    Returns:
        What was found; no error is raised for what `check_half_maps` refuses, it is trouble.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> one, two = (DensityMap(rng.normal(size=(24, 24, 24)), 1.5) for _ in range(2))
        >>> inspect_halves(one, one).found
        'no'
        >>> inspect_halves(one, two).trouble
        ()
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MapWarning)
        try:
            curve = check_half_maps(one, two)
        except CryoFMError as error:
            return HalvesInspection("no", (str(error),), None)
    reach = f"agree to {curve.told(0.143)} (FSC 0.143, whole box)"
    said = tuple(str(warning.message) for warning in caught)
    return HalvesInspection(f"yes, two raw halves; they {reach}", said, curve)


def _across(map: DensityMap) -> str:
    """Without the noise, of which specks beside a molecule would count."""
    smooth = low_pass(map.data, max(_FROM, 4 * map.voxel_size), map.voxel_size)
    found = particle_diameter(smooth - np.median(smooth), map.voxel_size)
    return "fills the box" if found > map.voxel_size * max(map.shape) else f"about {found:.0f} Å across"


def _size(map: DensityMap) -> str:
    sides = " × ".join(f"{n}" for n in reversed(map.shape))
    lengths = " × ".join(f"{n * map.voxel_size:.4g}" for n in reversed(map.shape))
    return f"{sides} voxels of {map.voxel_size:.4g} Å, a box of {lengths} Å"


def _place(map: DensityMap) -> str:
    by_start = [n * map.voxel_size for n in map.nstart]
    where = f"the first voxel lies at ({', '.join(f'{x:.2f}' for x in map.position)}) Å"
    if not any(map.origin):
        return f"{where}, by NSTART" if any(map.nstart) else where
    if any(map.nstart) and not np.allclose(by_start, map.origin, rtol=0, atol=_APART * map.voxel_size):
        other = ", ".join(f"{x:.2f}" for x in by_start)
        return f"{where} by ORIGIN (ChimeraX, here), at ({other}) Å by NSTART (EMDB, CCP4): programs will disagree"
    return f"{where}, by ORIGIN"


def _solvent(data: NDArray[Any]) -> str:
    """The fullest of many bins, and how wide the values scatter on its lower side, where no molecule is."""
    low, high = np.percentile(data, [0.1, 99.9])
    counts, edges = np.histogram(data, 200, (low, max(high, low + 1e-30)))
    level = float((edges[counts.argmax()] + edges[counts.argmax() + 1]) / 2)
    below = data[data < level]
    scatter = float(np.sqrt(np.mean((below - level) ** 2))) if below.size else 0.0
    return f"at {level:.4g}, scattering by {scatter:.3g}; the molecule reaches {high:.4g}"


def _masked(data: NDArray[Any]) -> str:
    share = max(share_filled(data, value) for value in {0.0, float(data[0, 0, 0])})
    return f"{share:.0%} of the box has one value" if share > _MASKED else "no"


def _profile(map: DensityMap) -> NDArray[Any]:
    spectrum = transform(unit(map.data - np.median(map.data)))
    _, power, _, count = shell_sums(spectrum, spectrum, map.shape)
    return np.asarray(power / count)


def _band_limit(map: DensityMap) -> float | None:
    """Å, where the power falls steeply and stays there; None: nowhere."""
    power, side = _profile(map), max(map.shape) * map.voxel_size
    for shell in range(max(3, round(side / _SHAPE)), len(power) - _WITHIN):
        if power[shell + _WITHIN :].max() * _FALL < power[shell]:
            return float(side / (shell + 1 + _WITHIN / 2))
    return None


def _sharpened(map: DensityMap, limit: float | None) -> str:
    """By the slope of a Wilson plot, ln P against ν²: −B/2."""
    power = _profile(map)
    frequency = np.arange(1, len(power) + 1) / (max(map.shape) * map.voxel_size)
    used = (frequency > 1 / _FROM) & (frequency < 1 / max(_TO, limit or 0)) & (power > 0)
    if map.voxel_size > _TO / 2 or used.sum() < 4:
        return f"not to be told: too little between {_FROM:g} and {_TO:g} Å"
    b = -2 * float(np.polyfit(frequency[used] ** 2, np.log(power[used]), 1)[0])
    kind = "sharp already" if b < _SHARP else "not sharpened" if b > _BLURRED else "hard to say"
    return f"{kind}: the power falls with B = {b:.0f} Å² from {_FROM:g} to {_TO:g} Å, a sharp map's with about 0"
