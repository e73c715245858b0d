"""What the scripts that restore a map leave behind: the map, FSC curves, pictures, ``run.json``, and the last lines."""

import argparse
import math
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from _script import prior_sum, settings, sha256, write_run
from _site import Site, Volume
from scipy.ndimage import center_of_mass

from cryofm_io import VIEWING_NOTE, DensityMap, FscCurve, plot_fsc, plot_slices, write_fsc_csv, write_map
from cryofm_ops import FourierOperator
from cryofm_sampling import Draw, ScaleFit

FILES = ["restored.mrc", "fsc.csv", "fsc.png", "slices.png", "run.json"]
INPUT, WIENER, RESTORED = "input (mean of the halves)", "best linear filter (Wiener)", "restored"
HALVES, SELF = "half maps", "restored halves: self-consistency, not resolution"


def leave(
    args: argparse.Namespace,
    folder: Path,
    site: Site,
    files: dict[str, str],
    truth: DensityMap | None,
    candidates: dict[str, Volume],
    curves: dict[str, FscCurve],
    draw: Draw,
    fit: ScaleFit | None,
    record: dict[str, Any],
    *,
    missing: FourierOperator | None = None,
    uncertainty: Volume | None = None,
) -> None:
    """Write the restored map, curves, pictures and ``run.json``, and say what was gained."""
    write_map(folder / "restored.mrc", attrs.evolve(site.like, data=candidates[RESTORED], labels=(VIEWING_NOTE,)))
    spread: dict[str, Volume] = {}
    if uncertainty is not None:  # errors are small beside density, and all columns share a grey scale
        ground = float(np.median(candidates[RESTORED]))
        times = max(1, int((candidates[RESTORED].max() - ground) / uncertainty.max()))
        spread = {f"samples' spread × {times}": ground + times * uncertainty}
    short = {INPUT: "input", WIENER: "Wiener"}
    pictures = {short.get(name, name): x for name, x in candidates.items() if name != RESTORED}
    pictures |= spread | {RESTORED: candidates[RESTORED]}
    results: dict[str, dict[str, float]] = {}
    if truth is not None:
        against = {name: site.compare(x, truth.data) for name, x in candidates.items()}
        pictures["truth"] = truth.data
        results = {name: score(x, truth.data, against[name]) for name, x in candidates.items()}
        if missing is not None:
            inside = {name: site.compare(x, truth.data, missing) for name, x in candidates.items()}
            for name, curve in inside.items():
                results[name]["fsc_auc_missing"] = curve.auc
            against[f"{RESTORED}, only what was missing"] = inside[RESTORED]
        curves = against | curves
    write_fsc_csv(folder / "fsc.csv", curves)
    mask = vars(args).get("mask")
    where = "" if mask is None else ", inside the mask"
    compared = (["against the truth"] if truth else []) + (["between halves"] if HALVES in curves else [])
    title = ", and ".join(compared) or "with the input"
    plot_fsc(curves, folder / "fsc.png", title=title + where)
    middle = None if site.mask is None else np.rint(center_of_mass(site.mask)).astype(int).tolist()
    plot_slices(pictures, folder / "slices.png", site.like.voxel_size, through=middle)
    content = {
        "settings": settings(args),
        "algorithm": dict(draw.settings),
        **({} if fit is None else {"scale": fit.normalization.scale, "scale_trials": fit.trials}),
        **record,
        "against_the_truth": results,
        "note": VIEWING_NOTE,
    }
    masks = {} if mask is None else {str(mask): sha256(mask)}
    write_run(folder / "run.json", files | masks | prior_sum(args.prior), content)
    report(curves, results, site.grid.voxel_size, where)


def report(curves: dict[str, FscCurve], results: dict[str, dict[str, float]], voxel_size: float, where: str) -> None:
    """What was gained, in the last lines on screen."""
    if HALVES in curves:
        print(f"half maps: FSC_0.143 {crossing(curves[HALVES])}{where}; a restored map has no resolution of its own")
    if results:
        inside = any("fsc_auc_missing" in row for row in results.values())
        print(
            f"{f'against the truth, shells to {2 * voxel_size:.1f} Å':42}{'FSC_AUC':>9}{'FSC_0.5 (Å)':>13}{'error':>10}"
            + (f"{'FSC_AUC of what was missing':>30}" if inside else "")
        )
        for name, row in results.items():
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
