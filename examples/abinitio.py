"""Ab initio: from a few class averages to a ranked set of 3-D models.

    python examples/abinitio.py classes.mrcs --voxel-size 1.3 --mask-diameter 140 --out DIR
    python examples/abinitio.py Class2D/job012/run_it025_model.star --classes 12 --mask-diameter 140 --out DIR

The images (2 to 100, a stack or a STAR file; of RELION's *_model.star the classes that are not empty) are centred,
masked, low-passed and resampled so that the particle fills the prior's box. Poses come from their common lines, in
--tries chains. The prior fills in what the images leave open and refines the poses: briefly in all chains, then at all
--steps in the --keep that fit best. Leaves model_01.mrc (the best fit), model_02.mrc, …, poses.star (of the best, in
RELION's columns), pairs.png (each image beside the projection of the best model; one that fits none is in a red frame),
scores.csv and run.json.

--algorithm paper does the same by Algorithm 3 of CryoFM instead (appendix E.2): --tries chains of the flow, guided by
the projections' loss, with poses searched in every estimate or given. It takes priors without statistics, such as the
published CryoFM-L in its own box.

With --ctf the images are particles, 1000 at most, whose CTFs the STAR file tells. Nothing centres or masks them, and
their poses begin anywhere: in each chain they are drawn in the model while it forms, and those of the best chains are
refined.

What no projection tells: the hand (a model and its mirror image fit alike), the orientation, and the origin, which is
near the centre of mass.

Whether the images determine the model is said only where two other chains found the same poses and where images that
were left out, each once, are predicted by the model of the others to four voxels. Averages that a program filtered and
masked are taken as such: how far the power of each falls tells its noise and its blur. One that is inverted or of
another scale is put right; one that the others do not predict is named and left out.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from _first import check_line
from _flags import above_zero, add_flags, add_symmetry_flag, fraction, from_zero, length, positive, width


def add_algorithm_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that choose the algorithm, and those of Algorithm 3 alone."""
    choices = ("common-lines", "paper")
    parser.add_argument("--algorithm", choices=choices, default="common-lines", help="paper: Algorithm 3 (see above)")
    add = parser.add_argument_group(
        "with --algorithm paper; Table 6 has cor with 0.7 twice, and sg with 0"
    ).add_argument
    given = "given: by the STAR file, their origin the particle's centre"
    add("--poses", choices=("searched", "given"), default="searched", help=given)
    add("--loss", choices=("cor", "sg"), default="cor", help="ψ_cor, or ψ_sg, which stops gradients (default cor)")
    add("--background", type=fraction, default=0.0, help="q of ψ_bg; 0: not at all (default 0)")
    weight = "of ψ_bg beside the other loss, of which 1 is the most there is (default 1, as published)"
    add("--background-weight", type=from_zero, default=1.0, help=weight)
    add("--max-push", type=above_zero, default=0.6, help="λ_max in 64³; published with 5 (default 0.6)")


def settle_algorithm_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What each algorithm has for chains and steps that were not given; flags that would do nothing are refused."""
    paper = args.algorithm == "paper"
    tries, steps = (3, 100) if paper else (8, 20)
    args.tries, args.steps = args.tries or tries, args.steps or steps
    own = ("poses", "loss", "background", "background_weight", "max_push")
    changed = [name for name in own if vars(args)[name] != parser.get_default(name)]
    if changed and not paper:
        parser.error(f"--{changed[0].replace('_', '-')} belongs to --algorithm paper")
    if (args.sym != "C1" or args.ctf) and paper:
        parser.error("--algorithm paper knows neither --sym nor --ctf")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("images", type=Path, help="class averages: a stack (.mrcs), a STAR file or a .cs; with --ctf particles")
    add("--voxel-size", type=length, help="of the images, Å per pixel (default: what the file says)")
    add("--mask-diameter", type=length, required=True, help="Å; a little more than the particle's longest side")
    add_symmetry_flag(parser)
    add("--tries", type=positive, help="chains of the pose search (default 8; Algorithm 3: 3)")
    add("--keep", type=positive, default=3, help="models to make of the best of them (default 3)")
    add("--offset-range", type=width, default=5.0, help="Å that images may be off centre, once prepared (default 5)")
    add("--ctf", action="store_true", help="the images are noisy particles; a STAR file tells their CTFs")
    add("--invert", action="store_true", help="the particle is dark in the images")
    add("--classes", type=positive, help="use as many classes, those of the most particles (RELION's *_model.star)")
    add("--strict", action="store_true", help="refuse empty or damaged images, which otherwise are left out")
    add_algorithm_flags(parser)
    levels = "levels of noise, one network evaluation each and model"
    add_flags(
        parser, steps=20, of=f"{levels}; Algorithm 3: N, two evaluations each, 100 by default, published with 1000"
    )
    parser.set_defaults(prior="cryofm-tiny-particles", steps=None)
    args = parser.parse_args(arguments)
    settle_algorithm_flags(parser, args)
    args.offset_range = round(args.offset_range, 6)  # less is nothing
    if args.steps == 1:
        parser.error("--steps must be at least 2")
    return args


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

import torch
from _command_line import (
    calibrated_prior,
    check_disk,
    choose_device,
    chosen_prior,
    exit_code,
    in_tiles,
    point_group,
    run_script,
    tell_plan,
)
from _images import at_given_poses, check_number, chosen, ctf_of, model_names, noise_of, write_models
from _maps import device_of
from _streams import bar

from cryofm_io import (
    prepare_images,
    prepare_particles,
    read_images,
)
from cryofm_model.data.particles import FILLED, LOW_PASS, working_voxel_size
from cryofm_ops import BlindProjections, ImagesInBand
from cryofm_sampling import (
    SettingError,
    check_memory,
    models_by_algorithm_3,
    models_of_class_averages,
    models_of_particles,
)
from cryofm_sampling.models.class_averages import evaluations as of_averages
from cryofm_sampling.models.particles import evaluations as of_particles

FILES = ["poses.star", "pairs.png", "scores.csv", "report.html", "open.cxc", "run.json"]
LINES = 300 * 2**20  # bytes, of the search for poses of 12 class averages, and of torch's compiler, which LBFGS loads


def run(args: argparse.Namespace, folder: Path) -> None:
    """The whole job."""
    images, others = chosen(args, read_images(args.images, voxel_size=args.voxel_size, strict=args.strict))
    paper, kind = args.algorithm == "paper", "particles" if args.ctf else "images"
    check_number(args.images, images, particles=args.ctf)
    otherwise = None if args.ctf else "choose --algorithm paper, which needs none"
    prior = chosen_prior(args) if paper else calibrated_prior(args, otherwise)
    n, radius = prior.box, int(prior.box / LOW_PASS)
    velocity = in_tiles(prior, (n, n, n), args.precision)
    need = check_memory((n, n, n), velocity, device=device_of(prior), gradients=paper, beside=0 if paper else LINES)
    chains, disk = (args.tries, args.keep, args.steps), check_disk(args.out, args.keep * 4 * n**3, 4 * n**3)
    if paper:
        count, told = args.tries * (2 * args.steps - 1), ""
    elif args.ctf:
        count, told = of_particles(*chains), ""
    else:
        count, told = of_averages(len(images), *chains), ", more where images are left out"
    told = f"{count} evaluations{told}, beside the poses, which may take several times as long"
    tell_plan(args, need, disk, velocity, (n, n, n), count, told, gradients=paper)
    size = working_voxel_size(args.mask_diameter, n, prior.voxel_size)
    prepare = prepare_particles if args.ctf else partial(prepare_images, resolution=LOW_PASS * size)
    prepared = prepare(images, mask_diameter=args.mask_diameter, voxel_size=size, box=n, invert=args.invert)
    size = prepared.images.voxel_size
    finest = n * size / radius if args.ctf else LOW_PASS * size
    print(f"{len(images)} {kind} of {images.data.shape[-1]}² pixels; box {n}³ of {size:.4g} Å, {finest:.3g} Å")
    if not args.offset_range < n * size / 2:
        raise SettingError(f"--offset-range {args.offset_range:g} Å ends outside of the images of {n * size:.0f} Å")
    with bar(total=args.tries * args.steps if paper else None, unit=" steps" if paper else " evaluations") as shown:
        how: dict[str, Any] = {
            "generator": torch.Generator(choose_device(args.device)).manual_seed(args.seed),
            "chains": args.tries,
            "keep": args.keep,
            "callback": shown.update,
        }
        y = torch.from_numpy(prepared.images.data).to(how["generator"].device)
        shift_px, box, group = args.offset_range / size, (n, n, n), None
        if args.sym != "C1":
            group = torch.from_numpy(point_group(args.sym)).to(y)
        if paper:
            # Neither loss knows the images' scale; ψ_bg knows that of the projections, which is the prior's.
            losses = {"background": args.background, "background_weight": args.background_weight}
            blind = BlindProjections(y, shift_px, stop_gradient=args.loss == "sg", **losses)
            known = at_given_poses(blind, prepared) if args.poses == "given" else None
            how |= {"known": known, "shape": box, "steps": args.steps, "max_push": args.max_push}
            models = models_by_algorithm_3(velocity, blind, **how)
        else:
            noise = noise_of(args, images, prepared, radius).to(y)
            how |= {"max_shift_px": shift_px, "levels": args.steps}
            if args.ctf:
                data = ImagesInBand.of(y, radius, noise, symmetry=group, ctf=ctf_of(prepared.images))
                models = models_of_particles(velocity, data, **how)
            else:
                how |= {"noise": noise, "diameter_px": FILLED * n, "symmetry": group}
                models = models_of_class_averages(velocity, y, **how)
    write_models(args, folder, images, prepared, models, others)


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    run_script(args, [*model_names(min(args.keep, args.tries)), *FILES], run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
