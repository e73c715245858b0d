"""What a report says: verdict, numbers, figures, places, maps, and where all of it comes from."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.changes import Change, changes_of
from cryofm_io.conical_fsc import ConicalFsc, conical_fsc_of
from cryofm_io.density_map import DensityMap
from cryofm_io.filters import Transfer, by_shell, filtered_by_shell, multiplied, up_to
from cryofm_io.fsc import FscCurve, curve_of_sums, fsc, shell_sums, transform
from cryofm_io.masked_fsc import MaskedFsc, masked_fsc_of
from cryofm_io.masks import automatic_mask
from cryofm_io.mrc_write import VIEWING_NOTE
from cryofm_io.report.figures import figure, fsc_figure, histogram, of_resolution
from cryofm_io.report.run import Run
from cryofm_io.report.volumes import Window, packed

__all__ = [
    "FORMAT",
    "WRONG",
    "content_of",
    "contrast",
    "directions_figure",
    "frequencies",
    "halves_figure",
    "level",
    "listed_provenance",
    "wilson_figure",
]

FORMAT = 1  # of what a page holds; another one cannot be shown again

INPUT, LINEAR, RESTORED, SPREAD = "input", "linear", "restored", "uncertainty"
_AGREE = 0.05  # least FSC of shells that count in what one half says of the other
_ALIKE = 0.8  # cFAR, from where on all directions are
_WIDEST, _SHOWN = [0.02, 99.995], [0.5, 99.8]  # percentiles
_THRESHOLD = 5.0  # standard deviations
_DENSE = 0.2  # of the way from the solvent to the brightest, where a surface is shown at least
WRONG = "missing views or a preferred orientation; the map is smeared along the bad directions"

Floats = NDArray[np.floating]


@attrs.frozen(eq=False)
class _Data:
    """A run, and what is computed of it once: by transforms of its maps, of which no two are made of one map.

    Attributes:
        run: All of it.
        mask: That of the run, or an automatic one.
        widest: From the darkest to the brightest of the restored map that surfaces have.
        shown: The same of slices.
        sums: Of the halves, by `shell_sums`.
        unmasked: FSC of the halves.
        inside: The same inside the mask, every shell of one power first.
        cones: The same by direction.
        results: Of linear and restored map, by `shell_sums`; where there is no linear one, of the restored one twice.
        gain: What the linear filter did, shell by shell.
        z: By how many standard deviations of the noise every voxel changed.
        places: Where most changed.
        mean: What was measured, with the solvent's value of the restored map.
    """

    run: Run
    mask: Floats | None
    results: NDArray[np.float64]
    widest: tuple[float, float]
    shown: tuple[float, float]
    sums: NDArray[np.float64] | None = None
    unmasked: FscCurve | None = None
    inside: MaskedFsc | None = None
    cones: ConicalFsc | None = None
    gain: Floats | None = None
    z: Floats | None = None
    places: list[Change] = attrs.field(factory=list)
    mean: Floats | None = None

    @classmethod
    def of(cls, run: Run) -> "_Data":
        restored, linear = run.restored, run.linear
        mask = run.mask if run.mask is not None else run.automatic_mask
        if mask is None:
            base = restored if linear is None else linear
            mask = automatic_mask(base.data - np.median(base.data), base.voxel_size)
        quantiles = [float(q) for q in np.percentile(restored.data, [*_WIDEST, *_SHOWN, 50])]
        known: dict[str, Any] = {"widest": _some(*quantiles[:2]), "shown": _some(*quantiles[2:4])}
        level = np.float32(quantiles[4])
        before = transform(restored.data if linear is None else linear.data)
        if run.halves is None:
            if run.observed is not None:
                known["mean"] = run.observed.data - np.float32(np.median(run.observed.data)) + level
            return cls(run, mask, shell_sums(before, before, restored.shape), **known)
        shape, voxel_size = restored.shape, restored.voxel_size
        a, b = (transform(half.data - np.median(half.data)) for half in run.halves)  # beside a constant all is lost
        sums = shell_sums(a, b, shape)
        unmasked, cones = curve_of_sums(sums, shape, voxel_size), conical_fsc_of(a, b, shape, voxel_size)
        known |= {"sums": sums, "unmasked": unmasked, "cones": cones, "results": shell_sums(before, before, shape)}
        low: Transfer | None = None
        noise: Floats | None = None
        if linear is not None:
            cross = (shell_sums(a, before, shape)[0] + shell_sums(b, before, shape)[0]) / 2
            power = (2 * sums[0] + sums[1] + sums[2]) / 4  # of the mean
            known["gain"] = np.nan_to_num(cross / np.maximum(power, 1e-30))
            if (reach := _reach_of(unmasked, voxel_size)) is not None:
                low = coarse = up_to(reach, voxel_size)
                shown = by_shell(known["gain"], shape)
                noise = multiplied(a - b, lambda radius: coarse(radius) * shown(radius) / 2, shape)
        if mask is not None:
            known["inside"] = masked_fsc_of(a, b, voxel_size, mask, white=True)
        del a, b
        if linear is not None:
            after = transform(restored.data)
            known["results"] = shell_sums(before, after, shape)
            if low is not None and noise is not None:
                after -= before
                del before
                difference = multiplied(after, low, shape)
                del after
                known["z"], known["places"] = changes_of(difference, noise, linear, threshold=_THRESHOLD)
                del difference, noise
        mean = run.halves[0].data + run.halves[1].data
        mean /= 2
        mean += level - np.float32(np.median(mean))
        return cls(run, mask, mean=mean, **known)


def content_of(run: Run) -> dict[str, Any]:
    """Everything, as what JSON holds."""
    data = _Data.of(run)
    gained, directional = _gained(data), None if data.cones is None else directions_figure(data.cones)
    numbers = _numbers(data, gained)
    figures = [made for made in (*_curves(data), directional, _wilson(data), _noise(data), _densities(data)) if made]
    warnings = [*run.record.get("doubts", []), *_warnings(data, directional)]
    volumes = _volumes(data)
    content = {
        "format": FORMAT,
        "title": f"{run.name.removesuffix('.py')}: {_what(run)}",
        **_verdict(data, gained),
        "numbers": numbers[:3],
        "more_numbers": numbers[3:],
        "comparison": None,
        "scores": [],
        "sphere": None,
        "pairs": None,
        "warnings": warnings,
        "figures": figures,
        "places": None if data.z is None else [attrs.asdict(place) for place in data.places],
        "threshold": _THRESHOLD,
        "resolution_of_changes": _reach(data),
        **volumes,
        "provenance": listed_provenance(run.record),
        "note": VIEWING_NOTE,
    }
    return dict(json.loads(json.dumps(content), parse_constant=lambda _: None))  # NaN is no JSON


def _what(run: Run) -> str:
    settings = run.record.get("settings", {})
    keys = ("half1", "half2", "particles")
    names = [str(settings[key]).replace("\\", "/").rsplit("/", 1)[-1] for key in keys if settings.get(key)]
    return " and ".join(names) or "the example"


# Numbers and verdict


def _numbers(data: _Data, gained: "_Gained | None") -> list[dict[str, Any]]:
    """The most important first."""
    record, numbers = data.run.record, []

    def add(label: str, value: str, note: str, good: bool | None = None) -> None:
        numbers.append({"label": label, "value": value, "note": note, "good": good})

    slope = record.get("slope_of_the_other_half")
    if data.unmasked is not None:
        at, crosses = data.unmasked.resolution(0.143), data.unmasked.crosses(0.143)
        value = f"{at:.2f} Å" if at < math.inf else "none"
        add("resolution of your data", value if crosses or at == math.inf else f"≤ {value}",
            "FSC between the half maps, 0.143, whole box. The restored map has no resolution of its own.")  # fmt: skip
    if slope is not None:
        add("slope of the other half", f"{slope:.2f}", "what one half, restored, has to be multiplied by to predict "
            "the other: about 1; right results have 0.8 to 1.3", 0.8 <= slope <= 1.3)  # fmt: skip
    if gained is not None:
        baseline, restored, how = gained
        add("gained over the masked, sharpened mean", f"{restored - baseline:+.3f}", f"{how}: {restored:.3f} restored, "
            f"{baseline:.3f} masked and sharpened", restored >= baseline)  # fmt: skip
    if (held := record.get("held_out")) is not None:
        add("gained over the half itself", f"{held['gain']:+.3f}", "mean FSC of one half, restored, with the other "
            "half, less that of the half as it is", held["gain"] >= -0.005)  # fmt: skip
    if record.get("misfit") is not None:
        add("misfit of the images", f"{record['misfit']:.3f}", "of what the restored map makes them to be, squared and "
            "over the noise; about 1 is expected", 0.8 < record["misfit"] < 1.3)  # fmt: skip
    if "restored_to_angstrom" in record:
        add("the prior's finest detail", f"{record['restored_to_angstrom']:.2f} Å", "finer than this the map is your "
            "data, linearly filtered")  # fmt: skip
    if record.get("b_factor"):
        add("envelope removed", f"B = {record['b_factor']:.0f} Å²", "found from the halves, or given")
    if record.get("solvent_contrast"):
        add("solvent contrast", f"{record['solvent_contrast']:.2f}", "the solvent's density over the molecule's, by "
            "which coarse features are weaker; the map keeps them so")  # fmt: skip
    add("voxel", f"{data.run.restored.voxel_size:.4g} Å", "box " + " × ".join(map(str, data.run.restored.shape[::-1])))
    return numbers


_Gained = tuple[float, float, str]


def _gained(data: _Data) -> _Gained | None:
    """The masked, sharpened mean, the restored map, and how they were judged."""
    truth = data.run.record.get("against_the_truth") or {}
    restored = truth.get(RESTORED)
    baseline = next((row for name, row in truth.items() if name.startswith("masked")), None)
    if restored is not None and baseline is not None:
        return baseline["fsc_auc"], restored["fsc_auc"], "area under the FSC against the truth"
    if data.run.halves is None or data.run.restored_halves is None or data.mask is None or data.unmasked is None:
        return None
    one, two = (half.data - np.median(half.data) for half in data.run.halves)
    used = np.nan_to_num(data.unmasked.correlation) > _AGREE
    if not used.any() or data.gain is None:
        return None
    sharp = filtered_by_shell(one, data.gain) * data.mask
    voxel_size = data.run.restored.voxel_size
    masked, found = (
        fsc(x, two, voxel_size).correlation[used].mean() for x in (sharp, data.run.restored_halves[0].data)
    )
    return float(masked), float(found), "mean FSC of one half's map with the other half, as measured"


def _verdict(data: _Data, gained: _Gained | None) -> dict[str, Any]:
    doubts = data.run.record.get("doubts", [])
    if doubts:
        return {"trusted": False, "verdict": f"Do not trust this map: {'; '.join(doubts)}."}
    if "held_out" not in data.run.record and data.run.halves is not None:
        alone = "No half was restored by itself, so that nothing shows whether the prior is right: trust your halves."
        return {"trusted": None, "verdict": alone}
    if "held_out" not in data.run.record:
        alone = (
            "Without half maps nothing could be checked: believe no more of this map than of the one it was made of."
        )
        return {"trusted": None, "verdict": alone}
    said = "The checks found nothing against this map: one half, restored, predicts the other as it should"
    if gained is not None:
        baseline, restored, how = gained
        better = "better" if restored >= baseline else "worse"
        said += f", and by the {how} it is {abs(restored - baseline):.3f} {better} than the masked, sharpened mean"
    return {"trusted": True, "verdict": said + "."}


def _warnings(data: _Data, directional: dict[str, Any] | None) -> list[str]:
    found, record = [], data.run.record
    if directional is not None and directional["cfar"] < 0.5:
        found.append(
            f"The halves agree unequally well in different directions (cFAR {directional['cfar']:.2f}): {WRONG}."
        )
    if data.run.halves is None and data.run.observed is None:
        found.append("The input maps were not there when this page was made: what needs them is missing.")
    if "doubts" in record and not record["doubts"] and record.get("algorithm", {}).get("iterations", 8) < 8:
        found.append("Fewer than 8 steps leave much undone: the checks are not made then.")
    if data.run.uncertainty is None:
        does = ": --samples 4 does" if "samples" in record.get("settings", {}) else ""
        found.append(f"No samples were drawn, so nothing shows how much of the map is the prior's word{does}.")
    return found


# Figures


def _curves(data: _Data) -> list[dict[str, Any]]:
    """FSC of the data, and of the results."""
    figures, run, voxel_size = [], data.run, data.run.restored.voxel_size
    if data.unmasked is not None:
        curves = {"halves": data.unmasked}
        if (inside := data.inside) is not None:
            which = "an automatic mask" if run.mask is None else "your mask"
            curves |= {
                f"inside {which}": inside.masked,
                "the same, phases randomised": inside.randomised,
                "corrected": inside.corrected,
            }
        figures.append(halves_figure(curves, ["the same, phases randomised"]))
    against = {name: curve for name, curve in run.curves.items() if name != "half maps"}
    if run.linear is not None:
        against["restored against linear"] = curve_of_sums(data.results, run.restored.shape, voxel_size)
    if against:
        figures.append(
            fsc_figure(
                "fsc-results",
                "What the restoration made of them",
                "Against a truth, where one is known, 0.5 is where as much is right as wrong. Restored halves agree "
                "because they share the prior: that is self-consistency and no resolution, never report it.",
                against,
                [name for name in against if "self-consistency" in name or name == "restored against linear"],
            )
        )
    return figures


def halves_figure(curves: Mapping[str, FscCurve], dashed: Sequence[str]) -> dict[str, Any]:
    """FSC of raw halves, with and without a mask."""
    return fsc_figure(
        "fsc-data",
        "How far the data reach",
        "FSC between the half maps as measured. 0.143 is where the mean of the halves correlates by 0.5 with a perfect "
        "map: the resolution that one reports. A mask makes maps alike by itself; what it makes of random phases is "
        "taken off again (corrected).",
        curves,
        dashed,
    )


def directions_figure(cones: ConicalFsc) -> dict[str, Any]:
    """FSC by direction; folded where all are alike."""
    area = cones.auc
    worst, best = int(area.argmin()), int(area.argmax())
    names = {"along x": 0, "along y": 1, "along z": 2, f"worst, {_axis(cones.directions[worst])}": worst}
    names[f"best, {_axis(cones.directions[best])}"] = best
    matters = cones.cfar < _ALIKE
    made = fsc_figure(
        "fsc-directions",
        f"By direction: cFAR {cones.cfar:.2f}",
        "FSC between the halves in cones of 20° about directions. "
        + ("They differ: " + WRONG + "." if matters else "They are alike: no direction is missing.")
        + " cFAR is the smallest area over the largest; below 0.5 it is a warning.",
        {name: cones.curve(i) for name, i in names.items()},
    )
    return made | {"cfar": cones.cfar, "folded": not matters}


def _axis(direction: Floats) -> str:
    return "(" + ", ".join(f"{x:.2f}" for x in direction) + ")"


def _wilson(data: _Data) -> dict[str, Any]:
    _, linear, restored, count = data.results
    powers = {RESTORED: restored} if data.run.linear is None else {LINEAR: linear, RESTORED: restored}
    if data.sums is not None:
        cross, power1, power2, _ = data.sums
        powers = {INPUT: (2 * cross + power1 + power2) / 4} | powers
    elif data.mean is not None:
        spectrum = transform(data.mean)
        powers = {INPUT: shell_sums(spectrum, spectrum, data.run.restored.shape)[1]} | powers
    frequency = frequencies(data.run.restored)
    with np.errstate(divide="ignore"):
        series = {label: (frequency**2, np.log(power / np.maximum(count, 1))) for label, power in powers.items()}
    return wilson_figure(series, _seen([y for label, (_, y) in series.items() if label != LINEAR]))


def wilson_figure(series: Mapping[str, tuple[Floats, Floats]], ylim: tuple[float, float] | None) -> dict[str, Any]:
    """Ln power against squared frequency."""
    return figure(
        "wilson",
        "Wilson plot",
        "Logarithm of the power against the square of the frequency. A straight fall is an envelope, exp(−B ν²/2); "
        "what rises at the end of the input is noise. A restored map should fall gently and not end in a tail.",
        series,
        xlabel="resolution (Å)",
        ylabel="ln power",
        ticks=of_resolution(max(float(x[-1]) for x, _ in series.values()) ** 0.5, squared=True),
        ylim=ylim,
    )


def _noise(data: _Data) -> dict[str, Any] | None:
    if data.sums is None:
        return None
    cross, power1, power2, count = data.sums
    noise = np.maximum(power1 + power2 - 2 * cross, 0) / count / 4  # of the mean
    signal = cross / count
    frequency = frequencies(data.run.restored)
    with np.errstate(divide="ignore", invalid="ignore"):
        series = {
            "signal": (frequency, np.log10(np.where(signal > 0, signal, np.nan))),
            "noise of the mean": (frequency, np.log10(noise)),
        }
    return figure(
        "noise",
        "Signal and noise in the input",
        "What the halves share, and a quarter of the power of their difference. Where the lines cross, the mean of the "
        "halves is as much noise as signal.",
        series,
        xlabel="resolution (Å)",
        ylabel="log₁₀ power",
        ticks=of_resolution(float(frequency[-1])),
    )


def _densities(data: _Data) -> dict[str, Any]:
    maps = {RESTORED: data.run.restored.data}
    if data.run.linear is not None:
        maps = {LINEAR: data.run.linear.data} | maps
    if data.mean is not None:
        maps = {INPUT: data.mean} | maps
    return histogram(maps, *data.widest)


# What changed


def _reach(data: _Data) -> float | None:
    """Å that the data reach; where they reach Nyquist, that."""
    return None if data.unmasked is None else _reach_of(data.unmasked, data.run.restored.voxel_size)


def _reach_of(curve: FscCurve, voxel_size: float) -> float | None:
    found = curve.resolution(0.143)
    return max(found, 2 * voxel_size) if found < math.inf else None


# Maps


def _volumes(data: _Data) -> dict[str, Any]:
    run = data.run
    maps: dict[str, Floats] = {}
    if data.mean is not None:
        maps[INPUT] = data.mean
    if run.linear is not None:
        maps[LINEAR] = run.linear.data
    maps[RESTORED] = run.restored.data
    packing: dict[str, tuple[Floats, float, float]] = {name: (x, *data.widest) for name, x in maps.items()}
    if run.uncertainty is not None:
        packing[SPREAD] = (run.uncertainty.data, 0.0, float(np.percentile(run.uncertainty.data, 99.95)))
    if data.z is not None:
        packing["change"] = (data.z, -8.0, 8.0)
    window = Window(run.restored, data.mask)
    shown = {name: (window.show(x), first, last) for name, (x, first, last) in packing.items()}
    inside = None if data.mask is None else window.show(data.mask) > 0.5
    return {
        "volumes": [
            {"name": name, "low": first, "high": last, "data": packed(x, first, last)}
            for name, (x, first, last) in shown.items()
        ],
        "grid": {
            "shape": list(window.shape),
            "voxel_size": window.voxel_size,
            "position": list(window.position),
            "coarser": window.voxel_size > 1.001 * run.restored.voxel_size,
            "cut": any(part.stop - part.start < n for part, n in zip(window.box, run.restored.shape, strict=True)),
        },
        "contrast": list(data.shown),
        "level": level(shown[RESTORED][0], inside),
    }


def contrast(data: Floats, *, widest: bool = False) -> tuple[float, float]:
    """From the darkest to the brightest that a picture shows; ``widest`` for surfaces, whose levels lie higher."""
    return _some(*np.percentile(data, _WIDEST if widest else _SHOWN))


def _some(low: float, high: float) -> tuple[float, float]:
    return float(low), float(max(high, low + 1e-12))


def level(data: Floats, inside: NDArray[np.bool_] | None) -> float:
    """Where a surface encloses a fifth of what a soft mask does, or less, lest it be the solvent's."""
    fifth = np.percentile(data if inside is None or not inside.any() else data[inside], 80)
    solvent, bright = np.percentile(data, [50, 99.9])
    return float(max(fifth, solvent + _DENSE * (bright - solvent)))


def frequencies(map: DensityMap) -> Floats:
    """Of the shells, 1/Å."""
    longest = max(map.shape)
    return np.arange(1, longest // 2 + 1) / (longest * map.voxel_size)


def _seen(values: list[Floats]) -> tuple[float, float]:
    """From the least to the most that is finite."""
    every = np.concatenate([y[np.isfinite(y)] for y in values])
    margin = 0.04 * (float(every.max()) - float(every.min()))
    return float(every.min()) - margin, float(every.max()) + margin


# Where it comes from


def listed_provenance(record: dict[str, Any]) -> dict[str, Any]:
    """Command, time, memory, versions, sums and settings of a ``run.json``."""
    took = record.get("took", {})
    rows = [["command", record["command"]]] if "command" in record else []
    if "seconds" in took:
        rows.append(["time", f"{took['seconds']:.0f} s, of which processors worked {took['cpu_seconds']:.0f} s"])
    if took.get("peak_memory_gib"):
        rows.append(["memory at most", f"{took['peak_memory_gib']:.2f} GiB"])
    rows += [["versions", ", ".join(f"{name} {value}" for name, value in record.get("versions", {}).items())]]
    rows += [[f"SHA-256 of {name}", value] for name, value in record.get("inputs_sha256", {}).items()]
    rows += [[name, _listed(record[name])] for name in ("settings", "algorithm") if record.get(name)]
    return {"rows": rows, "repeat": record.get("command")}


def _listed(values: dict[str, Any]) -> str:
    """What is set, numbers no longer than one reads."""

    def short(value: Any) -> str:
        if isinstance(value, list):
            return " ".join(map(short, value))
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    told = {name: value for name, value in values.items() if value is not None and value is not False}
    return "; ".join(f"{name}: {short(value)}" for name, value in told.items())
