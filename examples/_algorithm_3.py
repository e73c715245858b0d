"""The paper's Algorithm 3 (appendix E.2) for abinitio.py: hard poses, searched in every estimate or given."""

import argparse
import sys
from functools import partial

import torch
from _ranked import Ranked
from _script import tiles
from tqdm import tqdm

from cryofm_io import CryoFMError, PreparedImages
from cryofm_model import Prior
from cryofm_ops import BlindProjections, PoseLikelihood, in_model_units
from cryofm_sampling import BlindGuided, Guided


def algorithm_3(args: argparse.Namespace, prior: Prior, prepared: PreparedImages) -> Ranked:
    """Models of the prepared images from `args.tries` chains, of which the `args.keep` with the least loss stay."""
    images = prepared.images
    box, units = (prior.box,) * 3, prior.normalization
    y = torch.from_numpy(images.data).to(next(prior.network.parameters()).device)
    # Neither loss knows the images' scale; ψ_bg knows that of the projections, which is the prior's.
    blind = BlindProjections(
        y, args.offset_range / images.voxel_size, stop_gradient=args.loss == "sg", background=args.background
    )
    velocity = tiles(prior, box, args.precision)
    known = at_given_poses(blind, prepared) if args.poses == "given" else None
    if known is None:
        sample = partial(BlindGuided(args.steps, max_push=args.max_push), velocity, in_model_units(blind, units))
    else:
        sample = partial(Guided(args.steps, "paper", args.max_push), velocity, in_model_units(known, units))

    generator = torch.Generator(y.device).manual_seed(args.seed)
    draws = []
    with tqdm(total=args.tries * args.steps, unit=" steps", file=sys.stdout, leave=False) as bar:
        for _ in range(args.tries):  # one by one, as the gradient of one box may fill the memory
            draws.append(sample(shape=(1, *box), generator=generator, callback=lambda *_: bar.update()))
    x = units.std * torch.cat([draw.x for draw in draws]) + units.mean
    found = blind.refine(x) if known is None else known
    loss = -found.log_prob(x)
    best = loss.argsort()[: args.keep]
    rotations, shifts = found.projector.rotations, found.projector.shifts_px
    if known is not None:  # the same in all models
        rotations, shifts = rotations.expand(len(x), -1, -1, -1), shifts.expand(len(x), -1, -1)
    return Ranked(x[best], rotations[best], shifts[best], {"loss": loss[best]}, sum(draw.nfe for draw in draws))


def at_given_poses(blind: BlindProjections, prepared: PreparedImages) -> PoseLikelihood:
    """The likelihood at the poses that the images came with; those of the prepared images, which were moved."""
    poses = prepared.images.poses
    if poses is None:
        raise CryoFMError(
            "--poses given: the images come without poses; give a STAR file with rlnAngleRot, rlnAngleTilt, "
            "rlnAnglePsi and the origins, or leave --poses out to search them"
        )
    rotations, shifts = (torch.from_numpy(part).to(blind.images) for part in (poses.rotations, poses.shifts))
    return blind.at(rotations, shifts / prepared.images.voxel_size)


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
    add("--background", type=float, default=0.0, help="q of ψ_bg; 0: not at all (default 0)")
    add("--max-push", type=float, default=0.6, help="λ_max in 64³; published with 5 (default 0.6)")


def settle_algorithm_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What each algorithm has for chains and steps that were not given; flags that would do nothing are refused."""
    paper = args.algorithm == "paper"
    tries, steps = (3, 100) if paper else (8, 20)
    args.tries, args.steps = args.tries or tries, args.steps or steps
    own = ("poses", "loss", "background", "max_push")
    changed = [name for name in own if vars(args)[name] != parser.get_default(name)]
    if changed and not paper:
        parser.error(f"--{changed[0].replace('_', '-')} belongs to --algorithm paper")
    if (args.sym != "C1" or args.ctf) and paper:
        parser.error("--algorithm paper knows neither --sym nor --ctf")
    if args.max_push <= 0:
        parser.error("--max-push must be positive")
