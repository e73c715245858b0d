"""What pages say of what priors are made of and how they are made: lists, maps to train on, trainings, statistics."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryofm_io.density_map import DensityMap
from cryofm_io.mrc_read import read_map
from cryofm_io.report.figures import figure, histogram, of_resolution
from cryofm_io.report.models import map_volumes
from cryofm_io.report.others import card, page_of

__all__ = ["calibration_content", "curation_content", "made_maps_content", "training_content"]

Record = dict[str, Any]
Rows = Sequence[Mapping[str, str]]  # of a CSV file

_SHOWN, _TOLD, _TICKS = 4, 20, 6  # maps; failures; ticks


def curation_content(
    record: Record,
    train: Sequence[Mapping[str, str]],
    held_out: Sequence[Mapping[str, str]],
    refused: Mapping[str, str],
) -> dict[str, Any]:
    """Of a list of maps to train on.

    Args:
        record: What ``run.json`` would hold: program, command, versions, sums, settings.
        train: Rows of the list, with ``id`` and ``resolution`` (Å, empty where it is not known).
        held_out: Those that are kept back.
        refused: Why others were, by their id.
    """
    found = {
        name: np.sort([float(row["resolution"]) for row in rows if row["resolution"]])
        for name, rows in (("to train on", train), ("held out", held_out))
    }
    series = {name: (x, np.arange(1, len(x) + 1)) for name, x in found.items() if len(x)}
    figures = []
    if series:
        low, high = min(x[0] for x, _ in series.values()), max(x[-1] for x, _ in series.values())
        figures = [
            figure(
                "resolutions",
                "Resolutions",
                "How many entries are as fine as this, or finer, by their headers.",
                series,
                xlabel="resolution (Å)",
                ylabel="entries",
                ticks=_ticks(float(low), float(high)),
            )
        ]
    reasons = Counter(refused.values()).most_common(_TOLD)
    return page_of(
        record,
        "maps to train on",
        f"{len(train)} maps to train on, {len(held_out)} held out, {len(refused)} refused.",
        [
            card("to train on", str(len(train)), "train.csv"),
            card("held out", str(len(held_out)), "held_out.csv: chosen by seed and entry, never to be trained on"),
            card("refused", str(len(refused)), "refused.csv: by the limits of the paper's section 4.1"),
        ],
        figures,
        note="By the headers alone. The paper's authors also left out what looked wrong to the eye.",
        **_table(["why entries were refused", "how many"], [[why, str(n)] for why, n in reasons]),
    )


def made_maps_content(record: Record, paths: Sequence[Path], failed: Sequence[str]) -> dict[str, Any]:
    """Of maps to train on that were made.

    Args:
        record: As of `curation_content`.
        paths: Where they are.
        failed: What could not be made, and why.
    """
    maps = dict[str, DensityMap]()
    for path in paths:
        one = read_map(path)
        if not maps or next(iter(maps.values())).shape == one.shape:
            maps[path.stem] = one
        if len(maps) == _SHOWN:
            break
    numbers = [card("maps", str(len(paths)), "in this folder"), card("failed", str(len(failed)), "left out")]
    figures: list[dict[str, Any]] = []
    shown: dict[str, Any] = {}
    if maps:
        first = next(iter(maps.values()))
        box = " × ".join(str(n) for n in first.shape[::-1])
        numbers.append(card("voxel", f"{first.voxel_size:.4g} Å", f"box of the first {box}"))
        low, high = (float(f([f(one.data) for one in maps.values()])) for f in (np.min, np.max))
        figures = [histogram({name: one.data for name, one in maps.items()}, low, max(high, low + 1e-12))]
        shown = map_volumes(maps)
    warnings = [f"{len(failed)} could not be made."] if failed else []
    return page_of(
        record,
        "maps to train on",
        f"{len(paths)} maps to train on; look at those that are shown." if paths else "No map was made.",
        numbers,
        figures,
        warnings=warnings,
        **_table(["what could not be made"], [[what] for what in dict.fromkeys(failed[:_TOLD])]),
        **shown,
    )


def training_content(record: Record, rows: Rows, about: Mapping[str, str]) -> dict[str, Any]:
    """Of a training.

    Args:
        record: As of `curation_content`.
        rows: Of ``log.csv``: ``step``, ``loss`` and whatever else was measured.
        about: What the weights say of themselves.
    """
    steps = np.array([float(row["step"]) for row in rows])
    columns = [name for name in (rows[0] if rows else ()) if name.startswith(("loss", "v_mse", "fsc_auc"))]
    groups = {
        "losses": ("Losses", "loss", [name for name in columns if not name.startswith("fsc")]),
        "fsc": ("FSC_AUC of denoised maps", "FSC_AUC", [name for name in columns if name.startswith("fsc")]),
    }
    notes = {
        "losses": "Of the crops that it was trained on (loss) and of maps that were kept back (v_mse), at a time t: "
        "0 is data, 1 noise. Those that rise while the loss falls tell of learning by heart.",
        "fsc": "Of kept-back maps with noise of that time, after they were denoised in one step.",
    }
    figures = [
        figure(
            name,
            title,
            notes[name],
            {one: (steps, np.array([_number(row[one]) for row in rows])) for one in of},
            xlabel="step",
            ylabel=ylabel,
            ticks=_ticks(float(steps[0]), float(steps[-1])),
        )
        for name, (title, ylabel, of) in groups.items()
        if of and len(steps) > 1
    ]
    numbers = [card("steps", f"{steps[-1]:.0f}", "of the recipe")] if len(steps) else []
    if rows and "loss" in rows[-1]:
        numbers.append(card("loss", rows[-1]["loss"], "mean since the row before"))
    validation = about.get("validation_v_mse")
    return page_of(
        record,
        "a training",
        "Trained; whether it is of use is told by restorations of maps that it has never seen, not by its loss.",
        numbers,
        figures,
        warnings=[] if len(steps) > 1 else ["Too few rows in log.csv to draw: the training was short."],
        note=f"Kept-back maps at the end: v-MSE {validation}." if validation else "",
        **_table(["what the weights say of themselves", ""], [[name, str(value)] for name, value in about.items()]),
    )


def calibration_content(
    record: Record, power: NDArray[Any], errors: NDArray[Any], density: float, voxel_size: float
) -> dict[str, Any]:
    """Of the statistics of a prior.

    Args:
        record: As of `curation_content`.
        power: Radial, of the data in model units, from frequency 0 to Nyquist.
        errors: Rows of time t and E|x̂ − x|² per voxel, ``(n, 2)``.
        density: Mean square of the data in model units.
        voxel_size: Å.
    """
    share, frequency = errors[:, 1] / density, np.linspace(0, 0.5 / voxel_size, len(power))[1:]
    with np.errstate(divide="ignore"):
        powers = {"data": (frequency, np.log10(power[1:]))}
    denoises = bool(np.all(share < 1))
    verdict = (
        "It denoises: at every time less is wrong after one step than there is."
        if denoises
        else "At some time what it denoises is worse than nothing: it has not learnt, or these maps are none of its "
        "kind."
    )
    return page_of(
        record,
        "the statistics of a prior",
        verdict,
        [
            card(f"error at t = {errors[i, 0]:.2f}", f"{share[i]:.3f}", "of the density's power", bool(share[i] < 1))
            for i in (int(np.abs(errors[:, 0] - 0.5).argmin()), len(share) - 1)
        ],
        [
            figure(
                "errors",
                "Error of the denoised density",
                "Over the density's power, at each time of the flow: 0 is data, 1 noise.",
                {"error": (errors[:, 0], share)},
                xlabel="time t",
                ylabel="error",
                ticks=_ticks(float(errors[0, 0]), float(errors[-1, 0])),
            ),
            figure(
                "power",
                "Radial power",
                "Of the maps that it was measured on, per coefficient in model units.",
                powers,
                xlabel="resolution (Å)",
                ylabel="log₁₀ power",
                ticks=of_resolution(float(frequency[-1])),
            ),
        ],
        trusted=None if denoises else False,
    )


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    places = np.linspace(low, max(high, low + 1e-9), _TICKS)
    return [(float(at), f"{at:.3g}" if high < 1000 else f"{at:.0f}") for at in places]


def _number(text: str | None) -> float:
    try:
        return float(text or math.nan)
    except ValueError:
        return math.nan


def _table(head: list[str], rows: list[list[str]]) -> dict[str, Any]:
    return {"table": {"head": head, "rows": rows}} if rows else {}
