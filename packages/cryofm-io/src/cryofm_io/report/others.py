"""What pages say of maps that are no restorations: drawn from a prior, or asked how likely they are."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryofm_io.mrc_read import read_map
from cryofm_io.report.content import FORMAT, listed_provenance
from cryofm_io.report.figures import figure, histogram, of_resolution
from cryofm_io.report.models import map_volumes

__all__ = ["card", "likelihood_content", "page_of", "samples_content"]

_SAMPLES = 4  # shown


def samples_content(folder: Path) -> dict[str, Any]:
    """Of a folder with ``run.json``, ``sample_01.mrc``, … and ``power.csv``, drawn from a prior alone."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    paths = sorted(folder.glob("sample_*.mrc"))
    shown = {path.stem: read_map(path) for path in paths[:_SAMPLES]}
    size = next(iter(shown.values())).voxel_size
    ratio = record.get("power_over_the_prior_s_data")
    numbers = [
        card(
            "samples", str(len(paths)), f"of which {len(shown)} are shown" if len(paths) > len(shown) else "all shown"
        ),
        card("voxel", f"{size:.4g} Å", "box " + " × ".join(str(n) for n in shown[paths[0].stem].shape[::-1])),
    ]
    if ratio is not None:
        note = "median over shells, over that of the prior's data; one that has learnt has about 1"
        numbers.insert(0, card("power", f"{ratio:.2f}", note, 0.5 < ratio < 2))
    verdict = "Drawn from the prior alone: what it believes before it has seen any data. No sample is any molecule."
    made = _powers(folder / "power.csv")
    return page_of(record, "the prior alone", verdict, numbers, [] if made is None else [made], **map_volumes(shown))


def likelihood_content(
    folder: Path, cubes: Mapping[str, NDArray[Any]] | None, former: dict[str, Any] | None
) -> dict[str, Any]:
    """Of a folder with ``run.json`` and ``likelihood.csv``.

    Args:
        folder: Of the script.
        cubes: What was asked about, by name, for a histogram.
        former: A page's content, for cubes that are not given.
    """
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    with (folder / "likelihood.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = [{name: _short(value) for name, value in row.items()} for row in csv.DictReader(file)]
    likeliest = min(rows, key=lambda row: float(row["bits_per_voxel"]))
    bits, error = likeliest["bits_per_voxel"], likeliest["standard_error_bits_per_voxel"]
    beside = f" ± {error}" if error not in ("", "nan") else ", its error not known"
    verdict = f"Of {len(rows)} maps the likeliest is {likeliest['map']}, with {bits}{beside} bits per voxel."
    numbers = [card(row["map"], row["bits_per_voxel"], "bits per voxel, the fewer the likelier") for row in rows[:3]]
    figures = (former or {}).get("figures", [])
    if cubes:
        low, high = (f(np.concatenate([x.ravel() for x in cubes.values()])) for f in (np.min, np.max))
        figures = [histogram(cubes, float(low), float(max(high, low + 1e-12)))]
    warning = (
        "Only maps on one scale, in one box and of one resolution can be compared: the less there is in a map, the "
        "likelier it is."
    )
    return page_of(record, "how likely maps are", verdict, numbers, figures, scores=rows, warnings=[warning])


def page_of(
    record: dict[str, Any],
    what: str,
    verdict: str,
    numbers: list[dict[str, Any]],
    figures: list[dict[str, Any]],
    **parts: Any,
) -> dict[str, Any]:
    """A page's content, with nothing where ``parts`` has nothing."""
    content = {
        "format": FORMAT,
        "title": f"{str(record.get('program', 'a run')).removesuffix('.py')}: {what}",
        "trusted": None,
        "verdict": verdict,
        "numbers": numbers,
        "more_numbers": [],
        "comparison": None,
        "scores": [],
        "warnings": [],
        "figures": figures,
        "places": None,
        "threshold": None,
        "resolution_of_changes": None,
        "volumes": [],
        "grid": None,
        "contrast": None,
        "level": None,
        "sphere": None,
        "pairs": None,
        "provenance": listed_provenance(record),
        "note": str(record.get("note", "")),
    } | parts
    return dict(json.loads(json.dumps(content), parse_constant=lambda _: None))  # NaN is no JSON


def card(label: str, value: str, note: str, good: bool | None = None) -> dict[str, Any]:
    """A number, and what it means."""
    return {"label": label, "value": value, "note": note, "good": good}


def _short(value: str) -> str:
    """A number no longer than one reads; anything else as it is."""
    try:
        return f"{float(value):.5g}"
    except ValueError:
        return value


def _powers(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    values = np.array(rows, dtype=float)[1:].T  # but the mean
    with np.errstate(divide="ignore"):
        series = {name: (values[0], np.log10(power)) for name, power in zip(header[1:], values[1:], strict=True)}
    return figure(
        "power",
        "Radial power",
        "Power per coefficient in model units, of the samples and of the maps that the prior was trained for, where it "
        "knows that: one that has learnt has both alike.",
        series,
        xlabel="resolution (Å)",
        ylabel="log₁₀ power",
        ticks=of_resolution(float(values[0][-1])),
        dashed=[name for name in series if name.startswith("sample")],
    )
