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
import csv
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import _first  # noqa: F401
import attrs
import numpy as np
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
)
from _flags import add_flags, add_symmetry_flag, positive
from _maps import device_of
from _record import cost, provenance, write_run
from _streams import bar
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from torch import Tensor
from tqdm import tqdm

from cryofm_io import (
    VIEWING_NOTE,
    CryoFMError,
    DensityMap,
    ImageStack,
    MapWarning,
    Poses,
    PreparedImages,
    atomic_write,
    plot_pairs,
    prepare_images,
    prepare_particles,
    read_images,
    write_map,
    write_poses,
    write_report,
)
from cryofm_model import CalibratedPrior
from cryofm_model.data.particles import FILLED, LOW_PASS, working_voxel_size
from cryofm_ops import (
    CTF,
    BlindProjections,
    FourierProjector,
    ImagesInBand,
    PoseLikelihood,
    background_power,
    pose_difference_deg,
)
from cryofm_sampling import (
    RankedModels,
    SettingError,
    Tiled,
    Trust,
    check_memory,
    models_by_algorithm_3,
    models_of_class_averages,
    models_of_particles,
)

FILES = ["poses.star", "pairs.png", "scores.csv", "report.html", "open.cxc", "run.json"]
FEWEST_AVERAGES, MOST_AVERAGES, FEWEST_PARTICLES, MOST_PARTICLES = 6, 100, 100, 1000
LINES = 300 * 2**20  # bytes, of the search for poses of 12 class averages, and of torch's compiler, which LBFGS loads
AGREE_DEG = 15.0  # between models that tell the same story
SMALLEST = 0.1  # of a class's fair share of the particles, below which it is taken as empty
NOTE = "The hand of a model is not in its images: its mirror image fits as well."


def run(args: argparse.Namespace, folder: Path) -> None:
    """The whole job."""
    images = chosen(args, read_images(args.images, voxel_size=args.voxel_size, strict=args.strict))
    paper, kind = args.algorithm == "paper", "particles" if args.ctf else "images"
    check_number(args.images, images, particles=args.ctf)
    otherwise = None if args.ctf else "choose --algorithm paper, which needs none"
    prior = chosen_prior(args) if paper else calibrated_prior(args, otherwise)
    box = (prior.box, prior.box, prior.box)
    velocity = in_tiles(prior, box, args.precision)
    need = check_memory(box, velocity, device=device_of(prior), gradients=paper, beside=0 if paper else LINES)
    volume = 4 * prior.box**3
    print(f"needs about {need} of memory, {check_disk(args.out, args.keep * volume, volume)}")
    size = working_voxel_size(args.mask_diameter, prior.box, prior.voxel_size)
    how: dict[str, Any] = {"mask_diameter": args.mask_diameter, "voxel_size": size, "box": prior.box}
    if args.ctf:
        prepared = prepare_particles(images, **how, invert=args.invert)
    else:
        prepared = prepare_images(images, **how, resolution=LOW_PASS * size, invert=args.invert)
    size = prepared.images.voxel_size
    finest = prior.box * size / int(prior.box / LOW_PASS) if args.ctf else LOW_PASS * size
    pixels = images.data.shape[-1]
    print(f"{len(images)} {kind} of {pixels}² pixels; box {prior.box}³ of {size:.4g} Å, {finest:.3g} Å")
    if not args.offset_range < prior.box * size / 2:
        raise SettingError(
            f"--offset-range {args.offset_range:g} Å ends outside of the images of {prior.box * size:.0f} Å"
        )
    unit = " steps" if paper else " evaluations"
    total = args.tries * args.steps if paper else None
    with bar(total=total, unit=unit) as shown:
        if paper or not isinstance(prior, CalibratedPrior):
            models = by_algorithm_3(args, velocity, prior.box, prepared, shown)
        else:
            models = by_common_lines_or_drawing(args, images, prepared, prior, velocity, shown)
    write_models(args, folder, images, prepared, models)


def chosen(args: argparse.Namespace, images: ImageStack) -> ImageStack:
    """The class averages to use: those of the most particles, where a STAR file tells how many each has."""
    shares = images.shares
    if shares is None:
        if args.classes is not None:
            raise CryoFMError(
                f"{args.images}: --classes needs to know how many particles each class has (rlnClassDistribution); "
                "give RELION's *_model.star in place of the stack"
            )
        return images
    enough = shares >= SMALLEST / len(shares)
    if not enough.all() and not args.strict:
        print(f"{np.sum(~enough)} of {len(images)} classes have hardly any particles, and are left out")
    else:
        enough[:] = True
    best = [i for i in np.argsort(-shares, kind="stable") if enough[i]][: args.classes]
    print(f"{len(best)} classes with {shares[best].sum():.0%} of the particles, the largest first")
    return images.chosen(best)


def check_number(path: Path, images: ImageStack, *, particles: bool) -> None:
    """Refuse too many images, and particles without CTFs; warn of few."""
    n = len(images)
    if particles and images.ctf is None:
        raise CryoFMError(f"{path}: --ctf needs a STAR file that tells the CTFs (rlnDefocusU, …); it has none")
    if particles and n > MOST_PARTICLES:
        raise CryoFMError(f"{path}: {n} particles; give {MOST_PARTICLES} at most")
    if not particles and n > MOST_AVERAGES:
        raise CryoFMError(f"{path}: {n} images; give class averages, {MOST_AVERAGES} at most")
    if n < (FEWEST_PARTICLES if particles else FEWEST_AVERAGES):
        enough = "from a few hundred on" if particles else "from 6 or 8 different views on"
        kind = "particles" if particles else "images"
        warnings.warn(f"{n} {kind} hardly determine a model; {enough} it is worth a look", MapWarning, stacklevel=1)


def by_common_lines_or_drawing(
    args: argparse.Namespace,
    images: ImageStack,
    prepared: PreparedImages,
    prior: CalibratedPrior,
    velocity: Tiled,
    shown: "tqdm[Any]",
) -> RankedModels:
    """Models of class averages, whose common lines tell their poses, or of particles, whose poses are drawn."""
    device = prior.signal_power.device
    y, radius = torch.from_numpy(prepared.images.data).to(device), int(prior.box / LOW_PASS)
    group = None if args.sym == "C1" else torch.from_numpy(point_group(args.sym)).to(prior.signal_power)
    how: dict[str, Any] = {
        "max_shift_px": args.offset_range / prepared.images.voxel_size,
        "generator": torch.Generator(device).manual_seed(args.seed),
        "chains": args.tries,
        "keep": args.keep,
        "levels": args.steps,
        "callback": shown.update,
    }
    if args.ctf:
        noise = noise_of_particles(images, prepared, args.mask_diameter, radius)
        data = ImagesInBand.of(y, radius, noise, symmetry=group, ctf=ctf_of(prepared.images))
        return models_of_particles(velocity, data, **how)
    noise = noise_of_averages(images, prepared, args.mask_diameter, radius).to(device)
    return models_of_class_averages(velocity, y, noise=noise, diameter_px=FILLED * prior.box, symmetry=group, **how)


def by_algorithm_3(
    args: argparse.Namespace, velocity: Tiled, side: int, prepared: PreparedImages, shown: "tqdm[Any]"
) -> RankedModels:
    """Models by the paper's Algorithm 3; its poses searched, or those that the prepared images came with."""
    images = prepared.images
    y = torch.from_numpy(images.data).to(choose_device(args.device))
    # Neither loss knows the images' scale; ψ_bg knows that of the projections, which is the prior's.
    blind = BlindProjections(
        y,
        args.offset_range / images.voxel_size,
        stop_gradient=args.loss == "sg",
        background=args.background,
        background_weight=args.background_weight,
    )
    return models_by_algorithm_3(
        velocity,
        blind,
        known=at_given_poses(blind, prepared) if args.poses == "given" else None,
        shape=(side, side, side),
        generator=torch.Generator(y.device).manual_seed(args.seed),
        chains=args.tries,
        keep=args.keep,
        steps=args.steps,
        max_push=args.max_push,
        callback=shown.update,
    )


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


def write_models(
    args: argparse.Namespace, folder: Path, images: ImageStack, prepared: PreparedImages, models: RankedModels
) -> None:
    """Write models, poses, pictures and scores, and say how far to trust them."""
    size, box = prepared.images.voxel_size, models.x.shape[-1]
    volumes = [symmetrised(x, args.sym) for x in models.x.cpu().numpy()]
    for name, volume in zip(model_names(len(volumes)), volumes, strict=True):
        origin = (-size * (box // 2),) * 3
        write_map(folder / name, DensityMap(volume, size, origin, labels=(VIEWING_NOTE, NOTE)))
    used = np.arange(len(images)) if models.used is None else models.used.cpu().numpy()
    left_out = sorted(set(range(len(images))) - set(used.tolist()))
    shown = prepared.images.chosen([*used, *left_out])
    prepared = attrs.evolve(prepared, images=prepared.images.chosen(used), shifts=prepared.shifts[used])
    shifts = size * models.shifts_px.cpu().double().numpy()
    found = Poses(orthonormal(models.rotations[0]), shifts[0])
    # The results are written in a folder within the one where they will be read.
    write_poses(folder / "poses.star", images.chosen(used), prepared.original_poses(found), read_in=folder.parent)

    ctf = ctf_of(prepared.images) if args.ctf else None
    project = FourierProjector(models.rotations[0].cpu(), models.shifts_px[0].cpu(), (box, box, box), ctf)
    projections = project(torch.from_numpy(volumes[0])).numpy()
    correlations = [
        float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in zip(prepared.images.data, projections, strict=True)
    ]
    doubtful = [] if models.trust is None else [used.tolist()[i] for i in models.trust.outliers]
    marked = [k for k, i in enumerate([*used.tolist(), *left_out]) if i in [*left_out, *doubtful]]
    blank = np.zeros((len(left_out), box, box), np.float32)
    plot_pairs(shown.data, np.concatenate((projections, blank)), folder / "pairs.png", marked=marked)
    group = torch.from_numpy(point_group(args.sym))
    differences = [float(pose_difference_deg(models.rotations[0], R, group)) for R in models.rotations]
    rows = [
        {
            "model": name,
            **{score: float(f"{float(values[i]):.5g}") for score, values in models.scores.items()},
            "poses_from_the_best_deg": round(differences[i], 1),
        }
        for i, name in enumerate(model_names(len(volumes)))
    ]
    with atomic_write(folder / "scores.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    record: dict[str, Any] = {
        "voxel_size_angstrom": size,
        "network_evaluations": models.nfe,
        "models": rows,
        "correlations_of_the_best": [round(c, 4) for c in correlations],
        "note": NOTE,
    }
    score = next(iter(models.scores))
    print(f"best model: {score} {rows[0][score]}, correlation with the images {np.mean(correlations):.3f}; {NOTE}")
    if models.trust is not None and models.image_scales is not None:
        name_of = dict(enumerate(images.names or [f"image {i + 1}" for i in range(len(images))]))
        say_what_was_done(models.image_scales.tolist(), left_out, doubtful, name_of)
        record |= verdict(models.trust, box * size, size)
        record["left_out"] = [name_of[i] for i in left_out]
        record["image_scales"] = [round(scale, 3) for scale in models.image_scales.tolist()]
        record["predicted_when_left_out"] = [round(p, 3) for p in models.trust.predicted.tolist()]
    elif len(differences) > 1 and args.poses == "searched":
        agree = sum(difference < AGREE_DEG for difference in differences[1:])
        verdict_of = "which speaks for them" if agree else "they are in doubt, and so is the model"
        print(f"{agree} of {len(differences) - 1} other models have the same poses within {AGREE_DEG:g}°: {verdict_of}")
    write_run(folder / "run.json", provenance(args) | record | {"took": cost()})
    write_report(folder, pairs=(prepared.images.data, projections))


def say_what_was_done(scales: list[float], left_out: list[int], doubtful: list[int], names: dict[int, str]) -> None:
    """A line for every image that was put right or left out."""
    for i, scale in enumerate(scales):
        if scale != 1:
            what = "inverted" if scale == -1 else f"{abs(scale):.2g} times as intense{' and inverted' * (scale < 0)}"
            print(f"{names[i]} is {what} beside the others; it was put right")
    for i in left_out:
        print(f"{names[i]} fits none of the others; it was left out")
    for i in doubtful:
        print(f"{names[i]} is hardly predicted by the others; look at it in pairs.png")


def verdict(trust: Trust, side: float, voxel_size: float) -> dict[str, Any]:
    """Whether the images determine their poses and the model, said and returned."""
    chains, agree = len(trust.differences_deg), trust.agreeing(AGREE_DEG)
    finest = side / trust.frequency if trust.frequency else math.inf
    determined = trust.determines(round(side / voxel_size), AGREE_DEG)
    print(
        f"{agree} of {chains} other chains came to the same poses within {AGREE_DEG:g}°; images that are left out are "
        f"predicted to {finest:.1f} Å: " + ("the images determine the model" if determined else "the model is in doubt")
    )
    return {
        "chains_that_agree": agree,
        "chains": chains,
        "predicted_to_angstrom": None if math.isinf(finest) else round(finest, 2),
        "determined": determined,
    }


def model_names(count: int) -> list[str]:
    """File names of the models, best first."""
    return [f"model_{i:02d}.mrc" for i in range(1, count + 1)]


def noise_of_averages(images: ImageStack, prepared: PreparedImages, mask_diameter: float, radius: int) -> Tensor:
    """See `prepared_noise`; of images that were centred and masked."""
    old, new = images.voxel_size, prepared.images.voxel_size
    shifts = np.round(prepared.shifts / old).astype(int)
    centred = np.stack([np.roll(image, s[::-1], (0, 1)) for image, s in zip(images.data, shifts, strict=True)])
    try:
        power = background_power(torch.from_numpy(centred), mask_diameter / old)
    except ValueError as error:
        warnings.warn(f"{error}: taken as free of noise", MapWarning, stacklevel=1)
        return torch.zeros(radius)
    return prepared_noise(power, np.pi / 4 * (mask_diameter / new) ** 2, images, prepared, radius)


def noise_of_particles(images: ImageStack, prepared: PreparedImages, mask_diameter: float, radius: int) -> Tensor:
    """See `prepared_noise`; of images that were cut out as they are."""
    power = background_power(torch.from_numpy(images.data), mask_diameter / images.voxel_size)
    pixels = min(prepared.images.data.shape[-1], images.data.shape[-1] * images.voxel_size / prepared.images.voxel_size)
    return prepared_noise(power, pixels**2, images, prepared, radius)


def prepared_noise(power: Tensor, pixels: float, images: ImageStack, prepared: PreparedImages, radius: int) -> Tensor:
    """Power of the prepared images' noise in their transforms, not normalised, at the frequencies 1..radius.

    Args:
        power: of the images' own noise, as `background_power` has it.
        pixels: of a prepared image that have noise.
        images: as they came.
        prepared: what was made of them.
        radius: in units of 1/box.
    """
    n, box = images.data.shape[-1], prepared.images.data.shape[-1]
    old, new = images.voxel_size, prepared.images.voxel_size
    at = np.arange(1, radius + 1) * (n * old) / (box * new)
    table = np.interp(at, np.arange(len(power)), power.numpy())
    return torch.from_numpy(prepared.scale**2 * (old / new) ** 2 * pixels * table).float()


def ctf_of(images: ImageStack) -> CTF:
    """The CTFs of images that have some, at their pixel size."""
    fields = {name: torch.from_numpy(values) for name, values in attrs.asdict(images.ctf).items()}  # type: ignore[arg-type]
    return CTF(**fields, voxel_size_angstrom=images.voxel_size)


def symmetrised(x: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """The mean of a volume over its point group."""
    if name == "C1":
        return x
    middle = np.full(3, x.shape[-1] // 2)
    turned = [
        affine_transform(x, R[::-1, ::-1], middle - R[::-1, ::-1] @ middle, order=3, mode="grid-constant")
        for R in point_group(name)
    ]
    return np.asarray(np.mean(turned, 0), np.float32)


def orthonormal(rotations: Tensor) -> NDArray[np.float64]:
    """The nearest rotations in double precision."""
    u, _, v = np.linalg.svd(rotations.cpu().double().numpy())
    return np.asarray(u @ v)


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
    weight = "of ψ_bg beside the other loss, of which 1 is the most there is (default 1, as published)"
    add("--background-weight", type=float, default=1.0, help=weight)
    add("--max-push", type=float, default=0.6, help="λ_max in 64³; published with 5 (default 0.6)")


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
    if args.max_push <= 0:
        parser.error("--max-push must be positive")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("images", type=Path, help="class averages: a stack (.mrcs), a STAR file or a .cs; with --ctf particles")
    add("--voxel-size", type=float, help="of the images, Å per pixel (default: what the file says)")
    add("--mask-diameter", type=float, required=True, help="Å; a little more than the particle's longest side")
    add_symmetry_flag(parser)
    add("--tries", type=positive, help="chains of the pose search (default 8; Algorithm 3: 3)")
    add("--keep", type=positive, default=3, help="models to make of the best of them (default 3)")
    add("--offset-range", type=float, default=5.0, help="Å that images may be off centre, once prepared (default 5)")
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
    if not (0 < args.mask_diameter < math.inf and 0 <= args.offset_range < math.inf):
        parser.error("--mask-diameter must be positive, and --offset-range not negative")
    args.offset_range = round(args.offset_range, 6)  # less is nothing
    if args.steps == 1:
        parser.error("--steps must be at least 2")
    return args


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    run_script(args, [*model_names(min(args.keep, args.tries)), *FILES], run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
