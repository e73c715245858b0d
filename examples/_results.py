"""What the scripts that restore a map leave behind: the map, FSC curves, pictures, ``run.json``, and the last lines."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from _command_line import Written
from _flags import UNCERTAINTY, WEIGHTED, sample_names
from _maps import Measured, PriorGrid, Volume
from _record import cost, write_run
from scipy.ndimage import center_of_mass
from torch import Tensor

from cryofm_io import (
    VIEWING_NOTE,
    FscCurve,
    automatic_mask,
    fsc,
    plot_fsc,
    plot_slices,
    write_fsc_csv,
    write_map,
)
from cryofm_ops import fourier_filter, radial, radial_mean, rfft
from cryofm_sampling import RestoredHalfMaps, RestoredMap

FILES = ["restored.mrc", "fsc.csv", "fsc.png", "slices.png", "report.html", "open.cxc", "run.json"]
LINEAR = "linear.mrc"
INPUT, WIENER, RESTORED = "input (mean of the halves)", "best linear filter (Wiener)", "restored"
MASKED = "masked, sharpened mean"
HALVES, SELF = "half maps", "restored halves: self-consistency, not resolution"
AGREEMENT = "restored against the input"
HALF_NAMES = ("restored_half1.mrc", "restored_half2.mrc")
LINEAR_NOTE = "The halves' mean, by the best linear filter; no prior but the power spectrum."
SPREAD_NOTE = "Standard deviation of maps that the data allow; where large, the prior's word."


def result_names(samples: int, *, halves: bool = False, linear: bool = False, weighted: bool = False) -> list[str]:
    """All files that are left; the linear map where there were half maps."""
    return [
        *FILES,
        *([LINEAR] if linear else []),
        *sample_names(samples),
        *([UNCERTAINTY] if samples > 1 else []),
        *(HALF_NAMES if halves else []),
        *([WEIGHTED] if weighted else []),
    ]


def write_half_map_results(
    folder: Path, result: RestoredHalfMaps, given: Measured, grid: PriorGrid, provenance: dict[str, Any]
) -> Written:
    """`write_results`, with the envelope and the halves where the settings ask for them."""
    settings = provenance["settings"]
    if settings["keep_envelope"]:
        result = result.with_envelope(grid.like.voxel_size)
    if settings["halves"]:
        for name, half in zip(HALF_NAMES, result.each_half(), strict=True):
            data = grid.written(half, given.median + result.offset)
            write_map(folder / name, attrs.evolve(grid.like, data=data, labels=(VIEWING_NOTE,)))
    if settings.get("fsc_weighted"):
        data = grid.written(fsc_weighted(result), given.median + result.offset)
        write_map(folder / WEIGHTED, attrs.evolve(grid.like, data=data, labels=(VIEWING_NOTE,)))
    return write_results(folder, result, given, grid, provenance)


def fsc_weighted(result: RestoredHalfMaps) -> Tensor:
    """The restored map, every shell times √FSC of the restored halves: what they do not agree about is attenuated."""
    one, two = (rfft(half.double()) for half in result.halves)
    z, y, x = result.map.shape
    shared, *own = (radial_mean((a * b.conj()).real, (z, y, x)) for a, b in ((one, two), (one, one), (two, two)))
    weight = (shared / (own[0] * own[1]).sqrt().clamp(min=1e-300)).clamp(0, 1).sqrt()
    weight[0] = 1  # of the mean, where halves tell nothing of noise
    return fourier_filter(result.map, radial(weight, (z, y, x)).to(result.map))


def write_results(
    folder: Path, result: RestoredMap, given: Measured, grid: PriorGrid, provenance: dict[str, Any]
) -> Written:
    """Write the restored map, its samples, curves, pictures and ``run.json``; say what was gained; return the rest."""
    solvent = given.median + result.offset
    halves = result if isinstance(result, RestoredHalfMaps) else None
    curves = curves_of(result, given, grid)  # first: of large maps the candidates take much
    own = automatic_mask(halves.linear.cpu().numpy(), grid.like.voxel_size) if halves and grid.mask is None else None
    candidates = {
        name: grid.written(x, 0.0 if name == MASKED else solvent) for name, x in candidates_of(result, own).items()
    }
    write_map(folder / "restored.mrc", attrs.evolve(grid.like, data=candidates[RESTORED], labels=(VIEWING_NOTE,)))
    if halves:
        write_map(folder / LINEAR, attrs.evolve(grid.like, data=candidates[WIENER], labels=(LINEAR_NOTE,)))
    names = sample_names(provenance["settings"]["samples"])
    uncertainty = write_samples(folder, grid, names, (grid.written(x, solvent) for x in result.each_sample()))

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
    doubted = " (DO NOT TRUST)" if result.doubts else ""
    if doubted:
        pictures = {name + (doubted if name == RESTORED else ""): x for name, x in pictures.items()}
    write_fsc_csv(folder / "fsc.csv", curves)
    where = "" if grid.mask is None else ", inside the mask"
    compared = (["against the truth"] if truth else []) + (["between halves"] if HALVES in curves else [])
    plot_fsc(curves, folder / "fsc.png", title=(", and ".join(compared) or "with the input") + where + doubted)
    middle = None if grid.mask is None else np.rint(center_of_mass(grid.mask)).astype(int).tolist()
    plot_slices(pictures, folder / "slices.png", grid.like.voxel_size, through=middle)

    record = provenance | {
        "algorithm": dict(result.settings),
        "scale": result.scale.normalization.scale,
        "scale_trials": result.scale.trials,
        "solvent": solvent,
        "grid": attrs.asdict(grid.transform),
        "against_the_truth": scores,
        "doubts": list(result.doubts),
        "note": VIEWING_NOTE,
    }
    if halves:
        record |= record_of(halves) | {
            "self_consistency_fsc_auc": curves[SELF].auc,
            "half_map_fsc_auc": curves[HALVES].auc,
        }
    if result.sampling:
        record["drawing"] = dict(result.sampling)
    write_run(folder / "run.json", record | {"took": cost()})
    maps = {"restored": candidates[RESTORED]}
    maps |= {"linear": candidates[WIENER]} if halves else {"observed": candidates["input"]}
    del candidates, pictures
    report(result, curves, scores, grid, given, where)
    page: dict[str, Any] = {name: attrs.evolve(grid.like, data=x) for name, x in maps.items()} | {"mask": grid.mask}
    return Written(result.doubts, page | ({"halves": given.maps, "automatic_mask": own} if halves else {}))


def record_of(halves: RestoredHalfMaps) -> dict[str, Any]:
    """What ``run.json`` says of half maps."""
    where_measured = "" if halves.missing is None else "_where_measured"
    return {
        f"noise_power_of_one_half{where_measured}": halves.noise_power.tolist(),
        "b_factor": halves.b_factor,
        "solvent_contrast": halves.solvent_contrast,
        "restored_to_angstrom": halves.restored_to,
        "noise": getattr(halves.model, "record", {}),
        "held_out": attrs.asdict(halves.held_out),
        "amplitude": halves.amplitude,
        "samples_widened_by": halves.widening,
        "slope_of_the_other_half": halves.slope_of_the_other_half,
    }


def candidates_of(result: RestoredMap, mask: Volume | None) -> dict[str, Tensor]:
    """The maps to compare: what was measured, what else one would look at, and the restored one."""
    if not isinstance(result, RestoredHalfMaps):
        return {"input": result.observed, RESTORED: result.map}
    maps = {INPUT: result.observed, WIENER: result.linear}
    if mask is not None:
        maps[MASKED] = result.linear * torch.from_numpy(mask).to(result.linear)
    return maps | {RESTORED: result.map}


def curves_of(result: RestoredMap, given: Measured, grid: PriorGrid) -> dict[str, FscCurve]:
    """FSC between the halves, measured and restored; of one map between what was measured and restored."""
    if isinstance(result, RestoredHalfMaps):
        measured = grid.compare(given.maps[0].data, given.maps[1].data)
        if grid.mask is not None:
            one, two = map(grid.written, result.each_half())
            return {HALVES: measured, SELF: grid.compare(one, two)}
        table = result.self_consistency.cpu().double().numpy()
        at = np.interp(measured.frequency * 2 * grid.voxel_size, np.linspace(0, 1, len(table)), table)
        return {HALVES: measured, SELF: attrs.evolve(measured, correlation=at)}
    # With the truth at hand nobody needs to know how much of the map is new.
    agreement = AGREEMENT + ("" if result.missing is None else ", missing directions included")
    return {} if given.truth else {agreement: grid.compare(grid.written(result.observed), grid.written(result.map))}


def pictures_of(candidates: dict[str, Volume], uncertainty: Volume | None) -> dict[str, Volume]:
    """What `slices.png` shows, in one grey scale: errors are small beside density."""
    short = {INPUT: "input", WIENER: "Wiener"}
    pictures = {short.get(name, name): x for name, x in candidates.items() if name != RESTORED}
    if uncertainty is not None:
        ground = float(np.median(candidates[RESTORED]))
        times = max(1, int((candidates[RESTORED].max() - ground) / uncertainty.max()))
        pictures[f"samples' spread × {times}"] = ground + times * uncertainty
    return pictures | {RESTORED: candidates[RESTORED]}


def write_samples(folder: Path, grid: PriorGrid, names: list[str], samples: Iterable[Volume]) -> Volume | None:
    """Write samples as they come, and their standard deviation, which is returned, where there are two or more."""
    mean, squares = (np.zeros(grid.like.shape) if len(names) > 1 else np.zeros(()) for _ in range(2))
    for count, (name, sample) in enumerate(zip(names, samples, strict=True), 1):
        write_map(folder / name, attrs.evolve(grid.like, data=sample, labels=(VIEWING_NOTE,)))
        if len(names) > 1:  # Welford's sums
            off = sample - mean
            mean += off / count
            off *= sample - mean
            squares += off
    if len(names) < 2:
        return None
    uncertainty: Volume = np.sqrt(squares / (len(names) - 1)).astype(np.float32)
    write_map(folder / UNCERTAINTY, attrs.evolve(grid.like, data=uncertainty, labels=(SPREAD_NOTE,)))
    return uncertainty


def report(
    result: RestoredMap,
    curves: dict[str, FscCurve],
    scores: dict[str, dict[str, float]],
    grid: PriorGrid,
    given: Measured,
    where: str,
) -> None:
    """How it was restored and what was gained, in the last lines on screen."""
    fit = result.scale
    by_itself = isinstance(result, RestoredHalfMaps) or result.missing is not None
    untried = "as given" if by_itself else "as given, or by the brightest voxels"
    found = f"found in {fit.nfe} network evaluations" if fit.trials else untried
    envelope = ""
    if isinstance(result, RestoredHalfMaps):
        envelope = f", envelope B = {result.b_factor:.0f} Å²"
        if result.solvent_contrast:
            envelope += f", solvent contrast {result.solvent_contrast:.2f}"
    print(f"scale {fit.normalization.scale:.3g}{envelope}, {found}")
    estimate = "the posterior mean" if result.settings["estimate"] == "mean" else result.settings["estimate"]
    print(f"restored by {result.settings['algorithm']} ({estimate}) in {result.nfe} network evaluations")
    if HALVES in curves:
        own = given.fsc
        if own is None or grid.mask is not None:
            own = fsc(given.maps[0].data, given.maps[1].data, grid.like.voxel_size, grid.mask)
        print(f"half maps: FSC_0.143 {crossing(own)}{where}; a restored map has no resolution of its own")
        end, finest = getattr(result, "restored_to", 0.0), own.resolution(0.143)
        if end >= max(given.maps[0].shape) * grid.like.voxel_size:
            print("nothing is restored: all of it is your map, Wiener-filtered")
        elif finest < 0.98 * end:
            print(f"restored to {end:.2f} Å; from there to {finest:.2f} Å it is your map, Wiener-filtered")
    if scores:
        inside = any("fsc_auc_missing" in row for row in scores.values())
        print(
            f"{f'against the truth, shells to {2 * grid.voxel_size:.1f} Å':42}{'FSC_AUC':>9}{'FSC_0.5 (Å)':>13}"
            f"{'error':>10}" + (f"{'FSC_AUC of what was missing':>30}" if inside else "")
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
