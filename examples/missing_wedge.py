"""Fill the missing wedge of a tomogram or of an average of subtomograms.

    python examples/missing_wedge.py map.mrc --tilt-min -60 --tilt-max 60 --out DIR

What was measured is taken as free of noise and kept as it is. With the other half map, ``--half2``, its noise is
estimated where something was measured, and denoised as the wedge is filled. Protein must be positive (tomograms often
show it dark: invert them first).

Without a map it restores the example in examples/data: EMD-3488 without what tilts beyond ±60° would measure. What is
in the wedge then is the prior's word alone, and the result for looking and for building models only.
"""

import argparse
import sys
import warnings
from pathlib import Path

import attrs
import torch
from _input import DEMO_MAP, Input, add_map_flags, demo_truth, noise_of, read_halves, sample_files, without_solvent
from _ranks import agreed, is_first
from _restoration import (
    Judged,
    Model,
    drawn_by,
    given_scale,
    height,
    leave_samples,
    restore_halves,
    restored_and_drawn,
    say_how,
)
from _results import FILES, RESTORED, leave
from _script import WithProgress, add_flags, exit_code, launch, sha256
from _site import Site, Volume, calibrated_prior
from torch import Tensor
from tqdm import tqdm

from cryofm_io import DensityMap, check_contrast, read_map
from cryofm_ops import (
    FourierGaussian,
    FourierMask,
    MissingWedge,
    SpectralNoise,
    WhiteNoise,
    WithoutMean,
    compose,
    friedel_weights,
    gaussian_likelihood,
    radial,
    radial_mean,
    rfft,
)
from cryofm_sampling import PlugAndPlay, PosteriorFlow, fit_scale

HELD_OUT = 0.25  # of the tilts, on either side together, by which the scale is found
LOST = 0.01  # of a map's power, that a wedge of the wrong tilts would take away
AGREEMENT = "restored against the input, missing directions included"


def run(args: argparse.Namespace, folder: Path) -> None:
    """The whole job, from the files that ``args`` name to those in ``folder``."""
    prior = calibrated_prior(args)
    tilts = MissingWedge(args.tilt_min, args.tilt_max, args.tilt_axis)
    sampler = PlugAndPlay(iterations=args.steps)
    if args.half2 is not None:
        given = read_halves(args)
        site = Site.of(args, prior, given.half1)
        restore_halves(args, folder, site, given, noisy(site, given, tilts), sampler)
    else:
        density, solvent, truth = read_input(args, tilts)
        name = args.half1 or DEMO_MAP
        site = Site.of(args, prior, density)
        noiseless(args, folder, site, solvent, truth, {str(name): sha256(name)}, tilts, sampler)


def noisy(site: Site, given: Input, tilts: MissingWedge) -> Model:
    """Noise in what was measured, estimated there."""
    shape = site.grid.target
    kept, wedge = tilts.transfer(shape), compose(WithoutMean(), tilts)
    one, two = site.halves(given.half1, given.half2)
    warn_of_other_tilts(one, two, tilts)
    shells = noise_of(tilts(one), tilts(two), site.finer)  # means over whole shells, of which only a part has any
    measured = radial_mean(kept, shape).to(one)
    noise, signal = shells.noise_power / measured, shells.signal_power / measured
    gain = kept.to(one) * radial(signal / (signal + noise / 2), shape)
    return Model(
        fsc=shells.fsc,
        observe=lambda x, share: gaussian_likelihood(wedge, SpectralNoise(noise.to(x) * share), wedge(x)),
        gain=gain.to(site.device),
        record={"noise_power_of_one_half_where_measured": noise.tolist()},
        measured=FourierMask(kept, shape),
        missing=FourierMask(1 - kept, shape),
    )


def noiseless(
    args: argparse.Namespace,
    folder: Path,
    site: Site,
    solvent: float,
    truth: DensityMap | None,
    files: dict[str, str],
    tilts: MissingWedge,
    sampler: PlugAndPlay,
) -> None:
    """Fill the wedge of one map, which came in a solvent, and leave the results in ``folder``."""
    shape = site.grid.target
    whole = site.forward(site.like.data)
    warn_of_other_tilts(whole, whole, tilts)
    y = tilts(whole)

    # The map's scale is the one at which a narrower range of tilts predicts the rest of them best.
    margin = HELD_OUT / 2 * (tilts.tilt_max - tilts.tilt_min)
    narrower = attrs.evolve(tilts, tilt_min=tilts.tilt_min + margin, tilt_max=tilts.tilt_max - margin)
    held_out = FourierMask(tilts.transfer(shape) - narrower.transfer(shape), shape)

    def data(measured: MissingWedge) -> FourierGaussian:
        return gaussian_likelihood(compose(WithoutMean(), measured), WhiteNoise(0.0), y)

    with tqdm(unit=" evaluations", file=sys.stdout, leave=False, desc="scale") as bar:
        fit = given_scale(args, site) or agreed(
            fit_scale(
                WithProgress(site.velocity, site.prior, site.prior.normalization, bar),
                data(narrower),
                held_out(y),
                torch.ones(max(shape) // 2 + 1),
                generator=site.generator(args.seed),
                guess=1 / height(y),
                sampler=Judged(PlugAndPlay(), held_out),  # fewer passes leave more of the gap to fill
            )
        )
        units = site.in_units(fit.normalization, bar)
        likelihoods = [data(tilts)]
        [draw], samples = restored_and_drawn(args, site, units, likelihoods, sampler, PosteriorFlow(first=sampler))
    if not is_first():
        return
    say_how(fit, draw)

    rest = y.mean() - draw.x.mean()  # of restored density it is 0
    had = solvent + float(rest)

    def back(x: Tensor) -> Volume:
        return site.back(x, had)

    candidates = {"input": back(y - rest), RESTORED: back(draw.x)}
    # With the truth at hand nobody needs to know how much of the map is new.
    curves = {} if truth else {AGREEMENT: site.compare(site.back(y), site.back(draw.x))}
    record = {"solvent": had, "grid": attrs.asdict(site.grid), **drawn_by(samples)}
    missing = FourierMask(1 - tilts.transfer(shape), shape)
    uncertainty = leave_samples(folder, site, [back(sample.x) for sample in samples])
    leave(
        args,
        folder,
        site,
        files,
        truth,
        candidates,
        curves,
        draw,
        fit,
        record,
        missing=missing,
        uncertainty=uncertainty,
    )


def warn_of_other_tilts(one: Tensor, two: Tensor, tilts: MissingWedge) -> None:
    """Warn where much of the power that two maps share, more than by chance, lies where nothing was measured."""
    z, y, x = one.shape
    weights = friedel_weights((z, y, x)).to(one)
    within = weights * (1 - tilts.transfer((z, y, x)).to(one))
    a, b = rfft(one - one.mean()), rfft(two - two.mean())
    shared = (a * b.conj()).real
    lost = float((within * shared).sum() / (weights * shared).sum())
    power, noise = (a.abs().square() + b.abs().square()) / 2, (a - b).abs().square() / 2
    chance = float((2 * within * power * noise).sum().sqrt() / (weights * shared).sum())  # no less than what noise adds
    if lost > max(LOST, 3 * chance) and is_first():
        warnings.warn(
            f"{lost:.0%} of the map's power lies within the wedge, and is left out; are --tilt-min, --tilt-max and "
            "--tilt-axis those of the map?",
            stacklevel=2,
        )


def read_input(args: argparse.Namespace, tilts: MissingWedge) -> tuple[DensityMap, float, DensityMap | None]:
    """The map that the command line names, without solvent, and that; or the example, and its truth."""
    if args.half1 is not None:
        density, solvent = without_solvent(read_map(args.half1, voxel_size=args.voxel_size))
        check_contrast(density.data)
        return density, solvent, None
    truth = demo_truth()
    print(f"example: {DEMO_MAP.name} (human haemoglobin), tilts {args.tilt_min:g} to {args.tilt_max:g} degrees kept")
    return attrs.evolve(truth, data=tilts(torch.from_numpy(truth.data)).numpy()), 0.0, truth


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("half1", type=Path, nargs="?", metavar="map", help="map with the wedge (MRC/CCP4, .gz too); none: the example")
    add("--half2", type=Path, help="the other raw half map, on the same grid, where map is one of two halves")
    add("--tilt-min", type=float, default=-60.0, help="in degrees (default -60)")
    add("--tilt-max", type=float, default=60.0, help="in degrees (default 60)")
    add("--tilt-axis", choices=("x", "y"), default="y", help="the beam is along z (default y)")
    add_map_flags(parser, "map")
    add("--allow-masked", action="store_true", help="take masked half maps; noise is then underestimated")
    add_flags(parser, steps=20, of="network evaluations for each restored map, 2 or more; 8 with --half2")
    parser.set_defaults(steps=None)
    args = parser.parse_args(arguments)
    if args.half1 is None and args.half2 is not None:
        parser.error("give the first half map as well")
    args.steps = args.steps or (20 if args.half2 is None else 8)
    if args.steps < 2:
        parser.error("--steps must be at least 2")
    return args


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    launch(args, [*FILES, *sample_files(args.samples)], run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
