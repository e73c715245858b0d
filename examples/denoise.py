"""Restore a map from its two half maps with the bundled prior.

    python examples/denoise.py half1.mrc half2.mrc --out DIR

Without half maps it restores the example in examples/data: EMD-3488 with noise of the paper's level 4.3 Å.
The result is for looking at and for building models, never a target of refinement nor a claim of resolution.
"""

import argparse
import csv
import logging
import math
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import attrs
import numpy as np
import torch
from _script import WithProgress, check_memory, choose_device, exit_code, output_folder, sha256, write_run
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cryofm_io import (
    VIEWING_NOTE,
    DensityMap,
    FscCurve,
    check_half_maps,
    fsc,
    normalise_clean,
    plot_fsc,
    plot_slices,
    read_map,
    read_mask,
    to_grid,
    write_fsc_csv,
    write_map,
)
from cryofm_model import CalibratedPrior, WeightsError, load_prior
from cryofm_ops import (
    FourierGaussian,
    Identity,
    NoiseEstimate,
    SpectralNoise,
    estimate_noise_power,
    fourier_filter,
    gaussian_likelihood,
    radial,
    radial_mean,
    rfft,
)
from cryofm_sampling import Guided, PlugAndPlay, Tiled, fit_scale, restore

DATA = Path(__file__).parent / "data"
DEMO_MAP, DEMO_CURVES, DEMO_LEVEL = DATA / "EMD-3488.mrc.gz", DATA / "fsc_curves.csv", "4.3A"
SAMPLE_STEPS = 50  # of the flow, for a posterior sample
INPUT, WIENER, RESTORED = "input (mean of the halves)", "best linear filter (Wiener)", "restored"
HALVES, SELF = "half maps", "restored halves: self-consistency, not resolution"


class Input(NamedTuple):
    """Two half maps, the truth where it is known, and the SHA-256 sums of the files by name."""

    half1: DensityMap
    half2: DensityMap
    truth: DensityMap | None
    files: dict[str, str]


def run(args: argparse.Namespace, folder: Path) -> None:
    """The whole job, from the files that ``args`` name to those in ``folder``."""
    device = choose_device(args.device)
    prior = load_prior(args.prior).to(device)
    if not isinstance(prior, CalibratedPrior):
        raise WeightsError(
            f"the prior {args.prior} has no measured statistics, which its noise level is chosen by: add them with "
            f"prior.with_statistics(cryofm_sampling.calibrate(prior, examples, generator=...)) and save it, once"
        )
    half1, half2, truth, files = read_input(args)
    mask = None if args.mask is None else read_mask(args.mask, half1)
    if args.mask is not None:
        files[str(args.mask)] = sha256(args.mask)
    # The prior's voxel size and not a voxel more: padding would break the noise's independent Fourier coefficients.
    first, grid = to_grid(half1, prior.voxel_size)
    shape = grid.target
    finest = 2 * max(grid.voxel_size, half1.voxel_size)
    print(f"map {by(half1.shape)} voxels of {half1.voxel_size:.4g} Å; prior {args.prior} on {device}")
    print(f"grid {by(shape)} voxels of {grid.voxel_size:.4g} Å: nothing finer than {finest:.2f} Å is restored")
    tile = min(prior.box, math.ceil(max(shape) / prior.multiple) * prior.multiple)
    # A box that is no multiple of what the network takes is mirrored to one.
    velocity = Tiled(prior, tile, tile // 4 if tile < max(shape) else 0)
    check_memory(shape, velocity, device, gradients=args.samples > 0)

    # How the data came about: the map plus noise, whose power the halves show. Their mean has half of it.
    halves = [torch.from_numpy(h).to(device) for h in (first, grid.forward(half2.data))]
    noise = noise_of(halves[0].cpu(), halves[1].cpu(), grid.voxel_size / half1.voxel_size)
    mean = (halves[0] + halves[1]) / 2
    solvent = mean.median()  # the prior knows solvent as 0
    likelihoods = [observed(half - solvent, noise.noise_power) for half in halves]
    likelihood = observed(mean - solvent, noise.noise_power / 2)
    linear_filtered = fourier_filter(mean - solvent, radial(wiener_gain(noise).to(device), shape))

    sampler = plan(args.steps)

    def generator() -> torch.Generator:  # every restoration has the same random numbers
        return torch.Generator(device).manual_seed(args.seed)

    with tqdm(unit=" evaluations", file=sys.stdout, leave=False, desc="scale") as bar:
        fit = fit_scale(
            WithProgress(velocity, prior, prior.normalization, bar),
            likelihoods[0],
            halves[1] - solvent,
            noise.fsc,
            generator=generator(),
            guess=1 / float(np.percentile(linear_filtered.cpu(), 99.999)),
        )
        units = WithProgress(velocity, prior, fit.normalization, bar)
        bar.reset(total=3 * args.steps + args.samples * SAMPLE_STEPS)
        bar.set_description("restoring")
        draw, *restored_halves = (
            restore(units, data, shape=shape, generator=generator(), sampler=sampler)
            for data in (likelihood, *likelihoods)
        )
        numbers, flow = generator(), Guided(SAMPLE_STEPS)
        samples = [
            restore(units, likelihood, shape=shape, generator=numbers, estimate="samples", samples=1, sampler=flow).x[0]
            for _ in range(args.samples)
        ]
    print(f"scale {fit.normalization.scale:.3g}, found by cross-validation in {fit.nfe} network evaluations")
    print(f"restored by {draw.settings['algorithm']} (the posterior mean) in {draw.nfe} network evaluations")

    def back(x: Tensor) -> NDArray[np.floating]:
        result = grid.inverse((x + solvent).cpu().numpy())
        return result if mask is None else result * mask

    restored = back(draw.x)
    label = VIEWING_NOTE
    write_map(folder / "restored.mrc", attrs.evolve(half1, data=restored, labels=(label,)))
    for name, sample in zip(sample_names(args.samples), samples, strict=True):
        write_map(folder / name, attrs.evolve(half1, data=back(sample), labels=(label,)))

    def compare(a: NDArray[np.floating], b: NDArray[np.floating]) -> FscCurve:
        return fsc(grid.forward(a), grid.forward(b), grid.voxel_size, None if mask is None else grid.forward(mask))

    raw = back(mean - solvent)
    curves = {
        HALVES: compare(half1.data, half2.data),
        SELF: compare(*(back(half.x) for half in restored_halves)),
    }
    linear = back(linear_filtered)
    pictures = {"input": raw, "Wiener": linear, "restored": restored}
    results: dict[str, dict[str, float]] = {}
    if truth is not None:
        candidates = {INPUT: raw, WIENER: linear, RESTORED: restored}
        curves = {name: compare(x, truth.data) for name, x in candidates.items()} | curves
        pictures["truth"] = truth.data
        results = {name: score(x, truth.data, curves[name]) for name, x in candidates.items()}
    write_fsc_csv(folder / "fsc.csv", curves)
    where = "" if mask is None else ", inside the mask"
    title = "between halves" if truth is None else "against the truth, and between halves"
    plot_fsc(curves, folder / "fsc.png", title=title + where)
    plot_slices(pictures, folder / "slices.png", half1.voxel_size)
    record = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "algorithm": dict(draw.settings),
        "scale": fit.normalization.scale,
        "scale_trials": fit.trials,
        "solvent": float(solvent),
        "grid": attrs.asdict(grid),
        "noise_power_of_one_half": noise.noise_power.tolist(),
        "self_consistency_fsc_auc": curves[SELF].auc,
        "half_map_fsc_auc": curves[HALVES].auc,
        "against_the_truth": results,
        "note": label,
    }
    write_run(folder / "run.json", files, record)
    report(curves, results, grid.voxel_size, where)


def report(curves: dict[str, FscCurve], results: dict[str, dict[str, float]], voxel_size: float, where: str) -> None:
    """What was gained, in the last lines on screen."""
    resolution = curves[HALVES].resolution(0.143)
    print(f"half maps: FSC_0.143 at {resolution:.2f} Å{where}; a restored map has no resolution of its own")
    if results:
        print(
            f"{f'against the truth, shells to {2 * voxel_size:.1f} Å':42}{'FSC_AUC':>9}{'FSC_0.5 (Å)':>13}{'error':>10}"
        )
        for name, row in results.items():
            print(f"{name:42}{row['fsc_auc']:9.3f}{row['fsc_0.5_angstrom']:13.2f}{row['relative_error']:10.3f}")


def noise_of(half1: Tensor, half2: Tensor, finer: float) -> NoiseEstimate:
    """Noise of half maps on a grid whose voxels are ``finer`` times the measured ones.

    Whether they are raw has been judged on their own grid. Beyond the Nyquist frequency of that grid nothing was
    measured, which is noise without end.
    """
    noise = estimate_noise_power(half1, half2, allow_masked=True)
    measured = torch.linspace(0, 1, len(noise.noise_power)) <= finer
    endless = 1e6 * noise.noise_power.max()
    return attrs.evolve(
        noise,
        noise_power=torch.where(measured, noise.noise_power, endless),
        signal_power=torch.where(measured, noise.signal_power, 0),
    )


def observed(x: Tensor, noise_power: Tensor) -> FourierGaussian:
    """The likelihood of a map that is the truth plus noise of a radial power."""
    return gaussian_likelihood(Identity(), SpectralNoise(noise_power.to(x)), x)


def wiener_gain(noise: NoiseEstimate) -> Tensor:
    """Radial gain of the best linear filter of the mean of both halves."""
    return noise.signal_power / (noise.signal_power + noise.noise_power / 2)


def plan(evaluations: int) -> PlugAndPlay:
    """The plug-and-play plan that spends about so many network evaluations."""
    if evaluations < 4:
        return PlugAndPlay(iterations=evaluations, pairs=0, dither=0.0)
    iterations = 3 if evaluations >= 48 else 2
    return PlugAndPlay(iterations=iterations, pairs=evaluations // (2 * iterations))


def score(x: NDArray[np.floating], truth: NDArray[np.floating], curve: FscCurve) -> dict[str, float]:
    """FSC_AUC and FSC_0.5 of a curve, and |x − truth|² / |truth|²."""
    error = float(np.square(x - truth).sum() / np.square(truth).sum())
    return {"fsc_auc": curve.auc, "fsc_0.5_angstrom": curve.resolution(0.5), "relative_error": error}


def read_input(args: argparse.Namespace) -> Input:
    """The two half maps that the command line names, or the example."""
    if args.half1 is None:
        return demo_input(args.seed)
    half1, half2 = (read_map(path, voxel_size=args.voxel_size) for path in (args.half1, args.half2))
    check_half_maps(half1, half2, allow_masked=args.allow_masked)
    return Input(half1, half2, None, {str(path): sha256(path) for path in (args.half1, args.half2)})


def demo_input(seed: int) -> Input:
    """EMD-3488 as the truth, and two halves with the noise of the paper's 4.3 Å level (section 5.1)."""
    deposited = read_map(DEMO_MAP)
    clean, scale = normalise_clean(deposited.data)
    truth = attrs.evolve(deposited, data=scale.inverse(clean))
    x = torch.from_numpy(truth.data)
    with DEMO_CURVES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    signal = radial_mean(rfft(x).abs() ** 2, truth.shape)
    frequency = np.linspace(0, 0.5 / truth.voxel_size, len(signal))
    # The last entries repeat beyond the curve's 3 Å, and its largest value at frequency 0.
    correlation = np.interp(frequency, [float(r["freq"]) for r in rows], [float(r[DEMO_LEVEL]) for r in rows])
    f = torch.from_numpy(correlation).clamp(1e-4, 1 - 1e-6).to(x)
    noise = SpectralNoise(signal * (1 - f) / f)
    generator = torch.Generator().manual_seed(seed)
    half1, half2 = (attrs.evolve(truth, data=noise.sample(x, generator=generator).numpy()) for _ in range(2))
    print(f"example: {DEMO_MAP.name} (human haemoglobin), in two halves with noise of the paper's level {DEMO_LEVEL}")
    return Input(half1, half2, truth, {path.name: sha256(path) for path in (DEMO_MAP, DEMO_CURVES)})


def sample_names(samples: int) -> list[str]:
    """Files of the posterior samples."""
    return [f"sample_{i + 1:02d}.mrc" for i in range(samples)]


def by(shape: tuple[int, ...]) -> str:
    """A box as x × y × z."""
    return " × ".join(map(str, reversed(shape)))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("half1", type=Path, nargs="?", help="first raw half map (MRC/CCP4, .gz too); none: the example")
    add("half2", type=Path, nargs="?", help="second raw half map, on the same grid")
    add("--out", type=Path, required=True, help="folder for the results; made if need be")
    add("--mask", type=Path, help="soft mask, 0..1, on the half maps' grid: applied to the result and the FSC")
    add("--voxel-size", type=float, help="of the half maps, Å, where their headers are wrong")
    add(
        "--allow-masked",
        action="store_true",
        help="take masked or filtered half maps; noise is then underestimated",
    )
    add(
        "--steps",
        type=int,
        default=8,
        help="network evaluations for each restored map, 2 or more (default 8)",
    )
    add(
        "--samples",
        type=int,
        default=0,
        help=f"posterior samples to draw as well, {2 * SAMPLE_STEPS - 1} evaluations each (default 0)",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="of all random numbers; the same seed gives the same files (default 0)",
    )
    add("--prior", default="cryofm-tiny", help="name, file or folder of a prior (default cryofm-tiny)")
    add("--device", default="cpu", help="torch device: cpu, cuda or cuda:1, … (default cpu)")
    add("--overwrite", action="store_true", help="replace results that exist")
    args = parser.parse_args(arguments)
    if (args.half1 is None) != (args.half2 is None):
        parser.error("give both half maps, or none for the example")
    if args.steps < 2 or args.samples < 0:
        parser.error("--steps must be at least 2 and --samples at least 0")
    return args


def main() -> None:
    """Parse the command line and run; nothing appears in the output folder unless everything went well."""
    args = parse()
    logging.basicConfig(format="note: %(message)s")
    logging.getLogger("cryofm_io").setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    names = ["restored.mrc", "fsc.csv", "fsc.png", "slices.png", "run.json", *sample_names(args.samples)]
    with output_folder(args.out, names, args.overwrite) as folder:
        run(args, folder)
    print(f"results in {args.out}: {', '.join(names)}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
