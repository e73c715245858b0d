"""What pages say of maps that are only looked at: their FSC, a mask of them, their score, what was found of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.density_map import DensityMap
from cryofm_io.filters import low_pass
from cryofm_io.fsc import FscCurve, shell_sums, transform
from cryofm_io.half_map_fsc import HalfMapFsc
from cryofm_io.inspection import Inspection
from cryofm_io.masks import MapMask, automatic_mask, mask_doubts
from cryofm_io.report.content import WRONG, contrast, directions_figure, frequencies, halves_figure, wilson_figure
from cryofm_io.report.figures import fsc_figure, histogram
from cryofm_io.report.models import map_volumes
from cryofm_io.report.others import card, page_of

__all__ = ["halves_content", "inspection_content", "mask_content", "model_content", "scores_content"]

MASK, LOCAL = "mask", "local resolution"  # as the viewer knows them
_SHOWN = 4  # maps
_TIGHT = 0.05  # of the resolution, that a mask alone may gain
_AGAINST = "0.5 is where as much is right as wrong. With a model that was fitted into the map it is no resolution."
_DALTON = 1.21  # Å³ of protein

Record = dict[str, Any]
Floats = NDArray[Any]


def halves_content(record: Record, found: HalfMapFsc) -> dict[str, Any]:
    """Of two half maps that were correlated.

    Args:
        record: What ``run.json`` would hold: program, command, versions, sums, settings.
        found: How far they agree.
    """
    mean, curves, cones, mask, local = found.mean, found.curves, found.cones, found.mask, found.local
    reach = curves.corrected.resolution(0.143)
    verdict = (
        f"The halves agree to {curves.corrected.told(0.143)} inside the mask, corrected for what the mask itself makes "
        f"alike, and to {curves.unmasked.told(0.143)} in the whole box (FSC 0.143)."
    ).replace("to nowhere", "nowhere")
    numbers = [
        card("resolution in the mask", curves.corrected.told(0.143), "FSC 0.143, corrected by random phases"),
        card("in the whole box", curves.unmasked.told(0.143), "FSC 0.143, unmasked: what no mask can have made"),
        card("cFAR", f"{cones.cfar:.2f}", "worst direction over best; below 0.5 views are missing", cones.cfar >= 0.5),
    ]
    more = [
        card("FSC 0.5 in the mask", curves.corrected.told(0.5), "corrected"),
        card("FSC 0.5 in the whole box", curves.unmasked.told(0.5), "unmasked"),
        card("mask", f"{np.mean(mask > 0.5):.1%}", "of the box"),
        _voxel(mean),
    ]
    maps = {"mean of the halves": mean}
    if 2.5 * mean.voxel_size < reach < math.inf:
        maps = {f"mean, to {reach:.2f} Å": attrs.evolve(mean, data=low_pass(mean.data, reach, mean.voxel_size))} | maps
    paints: dict[str, tuple[Floats, float, float]] = {}
    if local is not None:
        inside = local.data[local.data > 0]
        least, middle, most = (float(q) for q in np.percentile(inside, [5, 50, 95]))
        note = f"FSC 0.5 in small balls, inside the mask; 90 % of it lies between {least:.2f} and {most:.2f} Å"
        more.insert(0, card("local resolution, median", f"{middle:.2f} Å", note))
        paints[LOCAL] = (local.data, least, max(most, least + 0.1))
    paints[MASK] = (mask, 0.0, 1.0)
    told = []
    if cones.cfar < 0.5:
        told.append(f"The halves agree unequally well in different directions (cFAR {cones.cfar:.2f}): {WRONG}.")
    if reach > (1 + _TIGHT) * curves.masked.resolution(0.143):
        told.append(
            f"The mask alone makes the halves seem to agree to {curves.masked.told(0.143)}: it is tight, or its edge "
            "is hard. Report the corrected value, or widen it."
        )
    named = {name: curve for name, curve in found.named().items() if not name.endswith("direction")}
    figures = [halves_figure(named, ["phases randomised"]), directions_figure(cones) | {"folded": False}]
    return page_of(
        record,
        "two half maps",
        verdict,
        numbers,
        figures,
        trusted=False if told else None,
        warnings=told + _sentences(mask_doubts(mask)),
        more_numbers=more,
        **map_volumes(maps, mask=mask, paints=paints),
    )


def model_content(
    record: Record, map: DensityMap, model: DensityMap, curve: FscCurve, mask: Floats | None
) -> dict[str, Any]:
    """Of a map against an atomic model's density on its grid."""
    scaled = attrs.evolve(model, data=_like(model.data, map.data))
    numbers = [
        card("FSC 0.5", curve.told(0.5), "map against model"),
        card("FSC_AUC", f"{curve.auc:.3f}", "mean over the shells to Nyquist"),
        _voxel(map),
    ]
    return page_of(
        record,
        "a map against a model",
        f"Map and model agree to {curve.told(0.5)} (FSC 0.5).".replace("to nowhere", "nowhere"),
        numbers,
        [fsc_figure("fsc-model", "Map against model", _AGAINST, {"map against model": curve})],
        **map_volumes(
            {"map": map, "model": scaled},
            mask=_where(scaled, mask),
        ),
    )


def mask_content(record: Record, map: DensityMap, made: MapMask) -> dict[str, Any]:
    """Of a mask that was made of a map.

    Args:
        record: As of `halves_content`.
        map: What it was made of.
        made: The mask.
    """
    mask, smooth, threshold = made.mask, made.smooth, made.threshold
    voxel = map.voxel_size**3
    inside, edge, dense = (
        float(np.mean(mask == 1)),
        float(np.mean(mask > 0)),
        float((smooth >= threshold).sum()) * voxel,
    )
    told = mask_doubts(mask)
    numbers = [
        card("of the box", f"{inside:.1%}", f"{edge:.1%} with the edge"),
        card("threshold", f"{threshold:.4g}", "density after the low pass"),
        card(
            "above the threshold", f"{_round(dense)} Å³", f"what {_round(dense / _DALTON / 1000)} kDa of protein fill"
        ),
    ]
    more = [
        card("mask", f"{_round(float(mask.sum()) * voxel)} Å³", "the volume that it lets through"),
        _voxel(map),
    ]
    ground = np.median(map.data)
    shown = {
        "after the low pass": attrs.evolve(map, data=smooth),  # whose surface at the threshold is what was taken
        "map × mask": attrs.evolve(map, data=(map.data - ground) * mask + ground),
    }
    return page_of(
        record,
        "a mask",
        "Look at it: all of the molecule has to lie inside, and as little else as may be."
        + ("" if told else " It is in one piece, soft at its edge, and clear of the sides of the box."),
        numbers,
        [],
        trusted=False if told else None,
        warnings=_sentences(told),
        more_numbers=more,
        **map_volumes(shown, mask=mask, paints={MASK: (mask, 0.0, 1.0)}) | {"level": threshold},
    )


def scores_content(
    record: Record,
    truth: DensityMap,
    maps: Sequence[DensityMap],
    rows: Sequence[Mapping[str, Any]],
    curves: Sequence[FscCurve],
    mask: Floats | None,
) -> dict[str, Any]:
    """Of maps that were scored against the truth, or an atomic model's density.

    Args:
        record: As of `halves_content`.
        truth: On the maps' grid.
        maps: At least one.
        rows: One a map: its name as ``map``, ``fsc_auc``, ``error_at_best_scale``.
        curves: One a map.
        mask: That was counted in.
    """
    names = _short([str(row["map"]) for row in rows])
    best = max(range(len(rows)), key=lambda i: rows[i]["fsc_auc"])
    least = min(range(len(rows)), key=lambda i: rows[i]["error_at_best_scale"])
    verdict = f"{names[best]} has an FSC_AUC of {rows[best]['fsc_auc']:.3f}"
    if len(names) > 1:
        also = "also" if best == least else f"{names[least]} has"
        verdict = f"Of {len(names)} maps {verdict}, the highest; {also} the least error"
    table = {
        "head": ["map", "FSC_AUC", "FSC 0.5", "error at the best scale"],
        "rows": [
            [name, f"{row['fsc_auc']:.4f}", curve.told(0.5), f"{row['error_at_best_scale']:.4f}"]
            for name, row, curve in zip(names, rows, curves, strict=True)
        ],
    }
    shown = {
        name: attrs.evolve(one, data=_like(one.data, truth.data))
        for name, one in list(zip(names, maps, strict=True))[:_SHOWN]
    }
    told = [] if len(names) <= _SHOWN else [f"Slices are of the first {_SHOWN} maps."]
    return page_of(
        record,
        "maps against the truth",
        f"{verdict}.",
        [],
        [fsc_figure("fsc-truth", "Against the truth", _AGAINST, dict(zip(names, curves, strict=True)))],
        table=table,
        warnings=told,
        note="The error is |s x − truth|² / |truth|², with the best scale s of each map; the slices have that scale.",
        **map_volumes({"truth": truth} | shown, mask=_where(truth, mask)),
    )


def inspection_content(
    record: Record,
    seen: Sequence[tuple[str, Inspection]],
    trouble: Sequence[str],
    found: Mapping[str, str],
    halves: FscCurve | None,
) -> dict[str, Any]:
    """Of files that were looked at.

    Args:
        record: As of `halves_content`.
        seen: Names, and what was found of each.
        trouble: All of it.
        found: What two of them are to each other, and what would be done with them.
        halves: Their FSC, where they are halves.
    """
    names = _short([name for name, _ in seen])
    maps = {name: one.map for name, (_, one) in zip(names, seen, strict=True) if one.map is not None}
    labels = dict.fromkeys(label for _, one in seen for label in one.found)
    rows = [[label, *(one.found.get(label, "") for _, one in seen)] for label in labels]
    together = [[label, said] + [""] * (len(seen) - 1) for label, said in found.items()]
    figures = [] if halves is None else [halves_figure({"half maps": halves}, [])]
    series = {}
    for name, map in maps.items():
        spectrum = transform(map.data - np.median(map.data))
        _, power, _, count = shell_sums(spectrum, spectrum, map.shape)
        with np.errstate(divide="ignore"):
            series[name] = (frequencies(map) ** 2, np.log(power / np.maximum(count, 1)))
    if maps:
        ends = np.array([contrast(map.data, widest=True) for map in maps.values()])
        figures += [
            wilson_figure(series, None),
            histogram({name: map.data for name, map in maps.items()}, float(ends[:, 0].min()), float(ends[:, 1].max())),
        ]
    first = next(iter(maps.values()), None)
    alike = {name: map for name, map in maps.items() if first is not None and map.shape == first.shape}
    right = f"{len(trouble)} thing{'s' * (len(trouble) > 1)} to put right first."
    return page_of(
        record,
        " and ".join(names),
        right if trouble else "Nothing speaks against " + ("this file." if len(seen) == 1 else "these files."),
        [],
        figures,
        trusted=not trouble,
        table={"head": ["", *names], "rows": rows + together},
        warnings=list(trouble),
        **(map_volumes(dict(list(alike.items())[:_SHOWN])) if alike else {}),
    )


def _where(map: DensityMap, mask: Floats | None) -> Floats | None:
    """The mask, or an automatic one."""
    return automatic_mask(map.data - np.median(map.data), map.voxel_size) if mask is None else mask


def _sentences(said: Sequence[str]) -> list[str]:
    """With a capital and a full stop, as a page has them."""
    return [f"{what[0].upper()}{what[1:]}{'' if what.endswith('?') else '.'}" for what in said]


def _round(value: float) -> str:
    """Three digits of a large number."""
    return f"{float(f'{value:.3g}'):,.0f}"


def _short(names: Sequence[str]) -> list[str]:
    """Names of files without folders, where they tell them apart."""
    last = [name.replace("\\", "/").rsplit("/", 1)[-1] for name in names]
    return last if len(set(last)) == len(last) else list(names)


def _like(data: Floats, other: Floats) -> Floats:
    """On the other's scale, as nearly as a factor and an offset bring it there."""
    x, y = data - data.mean(), other - other.mean()
    power = float(np.vdot(x, x))
    return np.asarray(x * (float(np.vdot(x, y)) / power if power else 0.0) + other.mean(), np.float32)


def _voxel(map: DensityMap) -> dict[str, Any]:
    return card("voxel", f"{map.voxel_size:.4g} Å", "box " + " × ".join(str(n) for n in map.shape[::-1]))
