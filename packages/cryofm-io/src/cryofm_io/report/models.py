"""What a page says of models made of images: which to believe, their looks, their poses, images beside projections."""

import base64
import csv
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryofm_io.density_map import DensityMap
from cryofm_io.errors import CryoFMError
from cryofm_io.mrc_read import read_map
from cryofm_io.mrc_write import VIEWING_NOTE
from cryofm_io.report.content import FORMAT, contrast, level, listed_provenance
from cryofm_io.report.volumes import Window, packed
from cryofm_io.star import read_poses

__all__ = ["Pairs", "map_volumes", "models_content", "views"]

_MODELS, _IMAGES, _VIEWS = 4, 24, 1500  # shown
_AGREE = 15.0  # degrees

Pairs = tuple[NDArray[Any], NDArray[Any]]


def models_content(folder: Path, pairs: Pairs | None = None, former: dict[str, Any] | None = None) -> dict[str, Any]:
    """The content of a page, of the folder of a script that makes models.

    Args:
        folder: With ``run.json``, ``model_01.mrc``, …, ``scores.csv`` and ``poses.star``.
        pairs: The images and the best model's projections, ``(K, y, x)``.
        former: A page's content, for pairs that are not given.
    """
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    names = [path.stem for path in sorted(folder.glob("model_*.mrc"))]
    shown = {name: read_map(folder / f"{name}.mrc") for name in names[:_MODELS]}
    rows = _scores(folder / "scores.csv")
    verdict, numbers = _judged(record, rows)
    content = {
        "format": FORMAT,
        "title": f"{str(record.get('program', 'models')).removesuffix('.py')}: {_what(record)}",
        **verdict,
        "numbers": numbers,
        "more_numbers": [],
        "comparison": None,
        "scores": rows,
        "warnings": _warnings(record),
        "figures": [],
        "places": None,
        "threshold": None,
        "resolution_of_changes": None,
        **map_volumes(shown),
        "sphere": views(folder / "poses.star"),
        "pairs": _pairs(*pairs) if pairs is not None else (former or {}).get("pairs"),
        "provenance": listed_provenance(record),
        "note": VIEWING_NOTE,
    }
    return dict(json.loads(json.dumps(content), parse_constant=lambda _: None))  # NaN is no JSON


def _what(record: dict[str, Any]) -> str:
    return Path(str(record.get("settings", {}).get("images", "images"))).name


def _scores(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _judged(record: dict[str, Any], rows: list[dict[str, str]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    others = [float(row["poses_from_the_best_deg"]) for row in rows[1:] if row.get("poses_from_the_best_deg")]
    agree = sum(other < _AGREE for other in others)
    known = record.get("settings", {}).get("poses") == "given"
    if "determined" in record:
        trusted = bool(record["determined"])
        finest, chains = record.get("predicted_to_angstrom"), record.get("chains")
        said = (
            f"{record['chains_that_agree']} of {chains} other chains came to the best one's poses, and images that "
            f"were left out are predicted to {'nothing' if finest is None else f'{finest:.1f} Å'}: "
            + ("the images determine the model." if trusted else "the model is in doubt.")
        )
    elif known or not others:
        trusted, said = None, "There is one set of poses, so that nothing shows whether the images determine it."
    elif agree:
        trusted, said = True, f"{agree} of {len(others)} other models have the best one's poses: the images tell them."
    else:
        trusted, said = False, "No other model has the best one's poses: they are in doubt, and so is the model."
    numbers = []
    if others:
        note = f"found from other starts, with the same poses within {_AGREE:g}°"
        numbers.append(
            {"label": "other models agree", "value": f"{agree} of {len(others)}", "note": note, "good": None}
        )
    if found := record.get("correlations_of_the_best"):
        note = "of the images with the best model's projections, on average; noise alone lowers it"
        value = f"{np.mean(found):.3f}"
        numbers.append({"label": "correlation with the images", "value": value, "note": note, "good": None})
    if "voxel_size_angstrom" in record:
        note = "of the models; they show no detail finer than two voxels"
        numbers.append(
            {"label": "voxel", "value": f"{record['voxel_size_angstrom']:.3g} Å", "note": note, "good": None}
        )
    return {"trusted": trusted, "verdict": said}, numbers


def _warnings(record: dict[str, Any]) -> list[str]:
    """Images that were left out or are doubtful, and what holds of every model."""
    found = [f"{name} was left out: {why}." for name, why in record.get("left_out_because", {}).items()]
    found += [f"{name} is hardly predicted by the others." for name in record.get("doubtful", [])]
    return found + ([str(record["note"])] if "note" in record else [])


def map_volumes(
    maps: Mapping[str, DensityMap],
    like: str | None = None,
    *,
    mask: NDArray[Any] | None = None,
    paints: Mapping[str, tuple[NDArray[Any], float, float]] | None = None,
) -> dict[str, Any]:
    """Maps on one grid as a page shows them.

    Args:
        maps: By name.
        like: Whose contrast all have; None: the first one's.
        mask: Where the molecule is: of a large box only that is shown, and the surface is at its level.
        paints: What is no density, of the names that the viewer knows: values, least and greatest.
    """
    first = next(iter(maps.values())) if like is None else maps[like]
    low, high = contrast(first.data, widest=True)
    window = Window(first, mask)
    shown = {name: (one.data, low, high) for name, one in maps.items()} | dict(paints or {})
    inside = None if mask is None else window.show(mask) > 0.5
    return {
        "volumes": [
            {"name": name, "low": darkest, "high": brightest, "data": packed(window.show(data), darkest, brightest)}
            for name, (data, darkest, brightest) in shown.items()
        ],
        "grid": {
            "shape": list(window.shape),
            "voxel_size": window.voxel_size,
            "position": list(window.position),
            "coarser": window.voxel_size > 1.001 * first.voxel_size,
            "cut": any(part.stop - part.start < n for part, n in zip(window.box, first.shape, strict=True)),
        },
        "contrast": list(contrast(first.data)),
        "level": 0.3 * high if inside is None else level(window.show(first.data), inside),
    }


def views(path: Path) -> dict[str, Any] | None:
    """Views from above and from below, in discs in which equal areas are equal parts of the sphere.

    Of many they are some, evenly spread over the file.
    """
    if not path.is_file():
        return None
    try:
        rotations = np.asarray(read_poses(path).rotations)
    except CryoFMError:  # the page can do without
        return None
    number = len(rotations)
    if number > _VIEWS:
        rotations = rotations[np.linspace(0, number - 1, _VIEWS).round().astype(int)]
    seen = rotations[:, 2, :]  # what is turned to the beam, (x, y, z) of the model
    radius = np.sqrt(1 - np.abs(seen[:, 2]).clip(0, 1))
    ring = np.hypot(seen[:, 0], seen[:, 1]).clip(1e-9)
    points = (seen[:, :2] / ring[:, None] * radius[:, None]).round(3)
    return {
        "above": [point.tolist() for point, view in zip(points, seen, strict=True) if view[2] >= 0],
        "below": [point.tolist() for point, view in zip(points, seen, strict=True) if view[2] < 0],
        "of": number,
    }


def _pairs(images: NDArray[Any], projections: NDArray[Any]) -> dict[str, Any]:
    """Evenly spread ones, each from its darkest to its brightest."""
    which = np.unique(np.linspace(0, len(images) - 1, min(_IMAGES, len(images))).round().astype(int))
    stack = np.stack([images[which], projections[which]], axis=1).astype(np.float32)
    low, high = (f(stack, axis=(2, 3), keepdims=True) for f in (np.min, np.max))
    values = (255 * (stack - low) / np.maximum(high - low, 1e-30)).astype(np.uint8)
    return {
        "shape": list(stack.shape[2:]),
        "numbers": (which + 1).tolist(),
        "data": base64.b64encode(zlib.compress(values.tobytes(), 4)).decode("ascii"),
    }
