"""Ab initio: from a few class averages to a ranked set of 3-D models.

    python examples/abinitio.py classes.mrcs --voxel-size 1.3 --mask-diameter 140 --out DIR

The images (2 to 100, a stack or a STAR file) are centred, masked, low-passed and resampled so that the particle fills
the prior's box. Poses come from their common lines, in --tries chains. The prior fills in what the images leave open
and refines the poses: briefly in all chains, then at all --steps in the --keep that fit best. Leaves model_01.mrc (the
best fit), model_02.mrc, …, poses.star (of the best, in RELION's columns), pairs.png (each image beside the projection
of the best model), scores.csv and run.json.

--algorithm paper does the same by Algorithm 3 of CryoFM instead (appendix E.2): --tries chains of the flow, guided by
the projections' loss, with poses searched in every estimate or given. It takes priors without statistics, such as the
published CryoFM-L in its own box.

With --ctf the images are particles, 1000 at most, whose CTFs the STAR file tells. Nothing centres or masks them, and
their poses begin anywhere: in each chain they are drawn in the model while it forms, and those of the best chains are
refined.

What no projection tells: the hand (a model and its mirror image fit alike), the orientation, and the origin, which is
near the centre of mass. Models that disagree about the poses mean that the images do not determine them.
"""

import argparse
import csv
import math
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from _algorithm_3 import add_algorithm_flags, algorithm_3, settle_algorithm_flags
from _particles import ctf_of, particles, prepared_noise
from _ranked import Ranked
from _script import WithProgress, add_flags, exit_code, launch, positive, prior_sum, settings, sha256, tiles, write_run
from _site import calibrated_prior, chosen_prior
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation
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
    read_images,
    write_map,
    write_poses,
)
from cryofm_model import CalibratedPrior
from cryofm_model.particles import FILLED, LOW_PASS, working_voxel_size
from cryofm_ops import FourierProjector, ImagesInBand, background_power, pose_difference_deg, sample_poses
from cryofm_sampling import AbInitio, Models, SettingError

FILES = ["poses.star", "pairs.png", "scores.csv", "run.json"]
MOST, SEARCHED = 100, 13  # images; highest frequency of the pose search, in units of 1/box
SHORT = 8  # levels of noise that choose among the chains
AGREE_DEG = 15.0  # between models that tell the same story
NOTE = "The hand of a model is not in its images: its mirror image fits as well."


def run(args: argparse.Namespace, folder: Path) -> None:
    """The whole job."""
    images = read_images(args.images, voxel_size=args.voxel_size)
    if args.ctf:
        return leave(args, folder, images, *particles(args, images, calibrated_prior(args), point_group(args.sym)))
    if len(images) > MOST:
        raise CryoFMError(f"{args.images}: {len(images)} images; give class averages, {MOST} at most")
    if len(images) < 6:
        message = f"{len(images)} images hardly determine a model; from 6 or 8 different views on it is worth a look"
        warnings.warn(message, MapWarning, stacklevel=1)
    paper = args.algorithm == "paper"
    prior = chosen_prior(args) if paper else calibrated_prior(args, "choose --algorithm paper, which needs none")
    prepared = prepare_images(
        images,
        mask_diameter=args.mask_diameter,
        voxel_size=working_voxel_size(args.mask_diameter, prior.box, prior.voxel_size),
        box=prior.box,
        resolution=LOW_PASS * working_voxel_size(args.mask_diameter, prior.box, prior.voxel_size),
        invert=args.invert,
    )
    size = prepared.images.voxel_size
    finest = LOW_PASS * size
    print(f"{len(images)} images of {images.data.shape[-1]}² pixels; box {prior.box}³ of {size:.4g} Å, {finest:.3g} Å")
    if not args.offset_range < prior.box * size / 2:
        raise SettingError(
            f"--offset-range {args.offset_range:g} Å ends outside of the images of {prior.box * size:.0f} Å"
        )
    if paper or not isinstance(prior, CalibratedPrior):
        return leave(args, folder, images, prepared, algorithm_3(args, prior, prepared))

    device = prior.signal_power.device
    y = torch.from_numpy(prepared.images.data).to(device)
    radius = int(prior.box / LOW_PASS)
    noise = noise_of(images, prepared, args.mask_diameter, radius).to(device)
    reach = args.offset_range / size
    group = None if args.sym == "C1" else torch.from_numpy(point_group(args.sym)).to(y)
    generator = torch.Generator(device).manual_seed(args.seed)
    poses = sample_poses(
        y,
        chains=args.tries,
        generator=generator,
        diameter_px=FILLED * prior.box,
        noise=noise[:SEARCHED],
        max_shift_px=reach,
        symmetry=group,
    )
    velocity = tiles(prior, (prior.box,) * 3, args.precision)
    data = ImagesInBand.of(y, radius, noise, symmetry=group)
    keep, short = min(args.keep, args.tries), min(SHORT, args.steps)
    evaluations = (short + 3) * args.tries + (args.steps + 3) * keep
    with tqdm(total=evaluations, unit=" evaluations", file=sys.stdout, leave=False) as bar:

        def through_prior(levels: int, rotations: Tensor, shifts_px: Tensor) -> Models:
            return AbInitio(levels, max_shift_px=reach)(
                WithProgress(velocity, prior, prior.normalization, bar),
                data,
                normalization=prior.normalization,
                rotations=rotations,
                shifts_px=shifts_px,
                generator=generator,
            )

        screened = through_prior(short, poses.rotations, poses.shifts_px)
        models = through_prior(args.steps, screened.rotations[:keep], screened.shifts_px[:keep])
    log_evidence = poses.log_evidence[screened.chain][models.chain]
    scores = {"misfit": models.misfit, "log_evidence_of_first_poses": log_evidence}
    ranked = Ranked(models.x, models.rotations, models.shifts_px, scores, evaluations)
    return leave(args, folder, images, prepared, ranked)


def leave(args: argparse.Namespace, folder: Path, images: ImageStack, prepared: PreparedImages, models: Ranked) -> None:
    """Write models, poses, pictures and scores, and say how far to trust them."""
    size, box = prepared.images.voxel_size, models.x.shape[-1]
    volumes = [symmetrised(x, args.sym) for x in models.x.cpu().numpy()]
    for name, volume in zip(model_names(len(volumes)), volumes, strict=True):
        origin = (-size * (box // 2),) * 3
        write_map(folder / name, DensityMap(volume, size, origin, labels=(VIEWING_NOTE, NOTE)))
    shifts = size * models.shifts_px.cpu().double().numpy()
    found = Poses(orthonormal(models.rotations[0]), shifts[0])
    write_poses(folder / "poses.star", images, prepared.original_poses(found))

    ctf = ctf_of(prepared.images) if args.ctf else None
    project = FourierProjector(models.rotations[0].cpu(), models.shifts_px[0].cpu(), (box, box, box), ctf)
    projections = project(torch.from_numpy(volumes[0])).numpy()
    plot_pairs(prepared.images.data, projections, folder / "pairs.png")
    correlations = [
        float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in zip(prepared.images.data, projections, strict=True)
    ]
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
    with atomic_write(folder / "scores.csv") as temporary, temporary.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    content = {
        "settings": settings(args),
        "voxel_size_angstrom": size,
        "network_evaluations": models.evaluations,
        "models": rows,
        "correlations_of_the_best": [round(c, 4) for c in correlations],
        "note": NOTE,
    }
    files = {str(args.images): sha256(args.images)} | prior_sum(args.prior)
    write_run(folder / "run.json", files, content)
    score = next(iter(models.scores))
    print(f"best model: {score} {rows[0][score]}, correlation with the images {np.mean(correlations):.3f}; {NOTE}")
    if len(differences) > 1 and args.poses == "searched":
        agree = sum(difference < AGREE_DEG for difference in differences[1:])
        verdict = "the images determine them" if agree else "they are in doubt, and so is the model"
        print(f"{agree} of {len(differences) - 1} other models have the same poses within {AGREE_DEG:g}°: {verdict}")


def model_names(count: int) -> list[str]:
    """File names of the models, best first."""
    return [f"model_{i:02d}.mrc" for i in range(1, count + 1)]


def noise_of(images: ImageStack, prepared: PreparedImages, mask_diameter: float, radius: int) -> Tensor:
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


def point_group(name: str) -> NDArray[np.float64]:
    """Rotations of a point group, its main axis along z (of T and I a twofold one), `(G, 3, 3)`."""
    return np.asarray(Rotation.create_group(name).as_matrix())


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


def symmetry(text: str) -> str:
    """A point group's name, or what argparse makes a message of."""
    if not re.fullmatch(r"[CD][1-9]\d?|T|O|I", text.upper()):
        raise argparse.ArgumentTypeError("must be a point group: C1, C4, D7, T, O or I")
    return text.upper()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("images", type=Path, help="class averages: a stack (.mrcs) or a STAR file; with --ctf particles")
    add("--voxel-size", type=float, help="of the images, Å per pixel (default: what the file says)")
    add("--mask-diameter", type=float, required=True, help="Å; a little more than the particle's longest side")
    add("--sym", type=symmetry, default="C1", help="point group, axis along z: C1, C4, D7, T, O, I (default C1)")
    add("--tries", type=positive, help="chains of the pose search (default 8; Algorithm 3: 3)")
    add("--keep", type=positive, default=3, help="models to make of the best of them (default 3)")
    add("--offset-range", type=float, default=5.0, help="Å that images may be off centre, once prepared (default 5)")
    add("--ctf", action="store_true", help="the images are noisy particles; a STAR file tells their CTFs")
    add("--invert", action="store_true", help="the particle is dark in the images")
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
    if args.steps == 1:
        parser.error("--steps must be at least 2")
    return args


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    launch(args, [*model_names(min(args.keep, args.tries)), *FILES], run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
