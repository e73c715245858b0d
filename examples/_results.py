"""What the scripts that restore a map leave behind: the map, FSC curves, pictures, ``run.json``, and the last lines."""

import math
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from _command_line import UNCERTAINTY, sample_names, write_run
from _maps import Measured, PriorGrid, Volume
from scipy.ndimage import center_of_mass

from cryofm_io import VIEWING_NOTE, FscCurve, plot_fsc, plot_slices, write_fsc_csv, write_map
from cryofm_sampling import RestoredHalfMaps, RestoredMap

FILES = ["restored.mrc", "fsc.csv", "fsc.png", "slices.png", "run.json"]
INPUT, WIENER, RESTORED = "input (mean of the halves)", "best linear filter (Wiener)", "restored"
HALVES, SELF = "half maps", "restored halves: self-consistency, not resolution"
AGREEMENT = "restored against the input, missing directions included"
SPREAD_NOTE = "Standard deviation of maps that the data allow; where large, the prior's word."


def result_names(samples: int) -> list[str]:
    """All files that `write_results` leaves."""
    return [*FILES, *sample_names(samples), *([UNCERTAINTY] if samples > 1 else [])]


def write_results(
    folder: Path, result: RestoredMap, given: Measured, grid: PriorGrid, provenance: dict[str, Any]
) -> None:
    """Write the restored map, its samples, curves, pictures and ``run.json``, and say what was gained."""
    solvent = given.median + result.offset
    halves = result if isinstance(result, RestoredHalfMaps) else None
    maps = {INPUT if halves else "input": result.observed, **({WIENER: halves.linear} if halves else {})}
    candidates = {name: grid.back(x, solvent) for name, x in (maps | {RESTORED: result.map}).items()}
    uncertainty = write_samples(folder, grid, [grid.back(x, solvent) for x in result.samples])
    write_map(folder / "restored.mrc", attrs.evolve(grid.like, data=candidates[RESTORED], labels=(VIEWING_NOTE,)))

    curves = curves_of(result, given, grid, candidates)
    pictures = pictures_of(candidates, uncertainty)
    scores: dict[str, dict[str, float]] = {}
    if (truth := given.truth) is not None:
        pictures["truth"] = truth.data
        against = {name: grid.compare(x, truth.data) for name, x in candidates.items()}
        scores = {name: score(x, truth.data, against[name]) for name, x in candidates.items()}
        if result.missing is not None:
            inside = {name: grid.compare(x, truth.data, result.missing) for name, x in candidates.items()}
            for name, curve in inside.items():
                scores[name]["fsc_auc_missing"] = curve.auc
            against[f"{RESTORED}, only what was missing"] = inside[RESTORED]
        curves = against | curves
    write_fsc_csv(folder / "fsc.csv", curves)
    where = "" if grid.mask is None else ", inside the mask"
    compared = (["against the truth"] if truth else []) + (["between halves"] if HALVES in curves else [])
    plot_fsc(curves, folder / "fsc.png", title=(", and ".join(compared) or "with the input") + where)
    middle = None if grid.mask is None else np.rint(center_of_mass(grid.mask)).astype(int).tolist()
    plot_slices(pictures, folder / "slices.png", grid.like.voxel_size, through=middle)

    record = provenance | {
        "algorithm": dict(result.settings),
        "scale": result.scale.normalization.scale,
        "scale_trials": result.scale.trials,
        "solvent": solvent,
        "grid": attrs.asdict(grid.transform),
        "against_the_truth": scores,
        "note": VIEWING_NOTE,
    }
    if halves:
        where_measured = "" if halves.missing is None else "_where_measured"
        record[f"noise_power_of_one_half{where_measured}"] = halves.noise_power.tolist()
        record["slope_of_the_other_half"] = halves.slope_of_the_other_half
        record["self_consistency_fsc_auc"] = curves[SELF].auc
        record["half_map_fsc_auc"] = curves[HALVES].auc
    if result.sampling:
        record["drawing"] = dict(result.sampling)
    write_run(folder / "run.json", record)
    report(result, curves, scores, grid.transform.voxel_size, where)


def curves_of(
    result: RestoredMap, given: Measured, grid: PriorGrid, candidates: dict[str, Volume]
) -> dict[str, FscCurve]:
    """FSC between the halves, measured and restored; of one map between what was measured and restored."""
    if isinstance(result, RestoredHalfMaps):
        one, two = (grid.back(x) for x in result.halves)
        return {HALVES: grid.compare(given.maps[0].data, given.maps[1].data), SELF: grid.compare(one, two)}
    # With the truth at hand nobody needs to know how much of the map is new.
    return {} if given.truth else {AGREEMENT: grid.compare(candidates["input"], candidates[RESTORED])}


def pictures_of(candidates: dict[str, Volume], uncertainty: Volume | None) -> dict[str, Volume]:
    """What `slices.png` shows, in one grey scale: errors are small beside density."""
    short = {INPUT: "input", WIENER: "Wiener"}
    pictures = {short.get(name, name): x for name, x in candidates.items() if name != RESTORED}
    if uncertainty is not None:
        ground = float(np.median(candidates[RESTORED]))
        times = max(1, int((candidates[RESTORED].max() - ground) / uncertainty.max()))
        pictures[f"samples' spread × {times}"] = ground + times * uncertainty
    return pictures | {RESTORED: candidates[RESTORED]}


def write_samples(folder: Path, grid: PriorGrid, samples: list[Volume]) -> Volume | None:
    """Write samples, and their standard deviation, which is returned, where there are two or more."""
    for name, sample in zip(sample_names(len(samples)), samples, strict=True):
        write_map(folder / name, attrs.evolve(grid.like, data=sample, labels=(VIEWING_NOTE,)))
    if len(samples) < 2:
        return None
    uncertainty: Volume = np.std(samples, axis=0, ddof=1)
    write_map(folder / UNCERTAINTY, attrs.evolve(grid.like, data=uncertainty, labels=(SPREAD_NOTE,)))
    return uncertainty


def report(
    result: RestoredMap,
    curves: dict[str, FscCurve],
    scores: dict[str, dict[str, float]],
    voxel_size: float,
    where: str,
) -> None:
    """How it was restored and what was gained, in the last lines on screen."""
    fit = result.scale
    found = f"found by cross-validation in {fit.nfe} network evaluations" if fit.trials else "as given"
    print(f"scale {fit.normalization.scale:.3g}, {found}")
    print(f"restored by {result.settings['algorithm']} (the posterior mean) in {result.nfe} network evaluations")
    if HALVES in curves:
        print(f"half maps: FSC_0.143 {crossing(curves[HALVES])}{where}; a restored map has no resolution of its own")
    if scores:
        inside = any("fsc_auc_missing" in row for row in scores.values())
        print(
            f"{f'against the truth, shells to {2 * voxel_size:.1f} Å':42}{'FSC_AUC':>9}{'FSC_0.5 (Å)':>13}{'error':>10}"
            + (f"{'FSC_AUC of what was missing':>30}" if inside else "")
        )
        for name, row in scores.items():
            print(
                f"{name:42}{row['fsc_auc']:9.3f}{row['fsc_0.5_angstrom']:13.2f}{row['relative_error']:10.3f}"
                + (f"{row['fsc_auc_missing']:30.3f}" if inside else "")
            )


def crossing(curve: FscCurve) -> str:
    """Where a curve falls below 0.143; one that ends above it, as the prior's grid does, tells no resolution."""
    resolution = curve.resolution(0.143)
    if resolution == math.inf:
        return "in no shell"
    return f"at {resolution:.2f} Å" if curve.crosses(0.143) else f"not reached by {resolution:.2f} Å"


def score(x: Volume, truth: Volume, curve: FscCurve) -> dict[str, float]:
    """FSC_AUC and FSC_0.5 of a curve, and |x − truth|² / |truth|²."""
    error = float(np.square(x - truth).sum() / np.square(truth).sum())
    return {"fsc_auc": curve.auc, "fsc_0.5_angstrom": curve.resolution(0.5), "relative_error": error}
