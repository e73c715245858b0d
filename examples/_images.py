"""Images in, models out: which images are taken, what is known of them, and what is written of their models."""

import argparse
import csv
import warnings
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from _command_line import point_group
from _record import cost, provenance, write_run
from torch import Tensor

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
    symmetrised,
    write_map,
    write_poses,
    write_report,
)
from cryofm_ops import CTF, BlindProjections, PoseLikelihood, prepared_noise_power
from cryofm_sampling import Assessment, RankedModels

FEWEST_AVERAGES, MOST_AVERAGES, FEWEST_PARTICLES, MOST_PARTICLES = 6, 100, 100, 1000
NOTE = "The hand of a model is not in its images: its mirror image fits as well."


def chosen(args: argparse.Namespace, images: ImageStack) -> tuple[ImageStack, dict[str, str]]:
    """The class averages to use: those of the most particles, where a STAR file tells how many each has; and why not
    the others."""
    if images.shares is None:
        if args.classes is not None:
            raise CryoFMError(
                f"{args.images}: --classes needs to know how many particles each class has (rlnClassDistribution); "
                "give RELION's *_model.star in place of the stack"
            )
        return images, {}
    full = images if args.strict else images.largest()
    empty = sorted(set(images.names) - set(full.names))
    if len(full) < len(images):
        print(f"{len(images) - len(full)} of {len(images)} classes have hardly any particles, and are left out")
    best = full.largest(args.classes, least=0)
    assert best.shares is not None
    print(f"{len(best)} classes with {best.shares.sum():.0%} of the particles, the largest first")
    smaller = sorted(set(full.names) - set(best.names))
    why = dict.fromkeys(empty, "it has hardly any particles") | dict.fromkeys(smaller, "--classes takes larger ones")
    return best, why


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


def noise_of(args: argparse.Namespace, images: ImageStack, prepared: PreparedImages, radius: int) -> Tensor:
    """Power of the prepared images' noise, from the background of the images as they came."""
    try:
        return prepared_noise_power(
            torch.from_numpy(images.data),
            radius,
            diameter=args.mask_diameter,
            voxel_size=images.voxel_size,
            box=prepared.images.data.shape[-1],
            box_voxel_size=prepared.images.voxel_size,
            scale=prepared.scale,
            shifts=None if args.ctf else torch.from_numpy(prepared.shifts),
        )
    except ValueError as error:
        if args.ctf:
            raise
        warnings.warn(f"{error}: taken as free of noise", MapWarning, stacklevel=1)
        return torch.zeros(radius)


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


def ctf_of(images: ImageStack) -> CTF:
    """The CTFs of images that have some, at their pixel size."""
    fields = {name: torch.from_numpy(values) for name, values in attrs.asdict(images.ctf).items()}  # type: ignore[arg-type]
    return CTF(**fields, voxel_size_angstrom=images.voxel_size)


def write_models(
    args: argparse.Namespace,
    folder: Path,
    images: ImageStack,
    prepared: PreparedImages,
    models: RankedModels,
    before: dict[str, str],
) -> None:
    """Write models, poses, pictures and scores, and say how far to trust them; ``before``: why others are not here."""
    size, box, group = prepared.images.voxel_size, models.x.shape[-1], point_group(args.sym)
    volumes = [symmetrised(x, group) for x in models.x.cpu().numpy()]
    names = model_names(len(volumes))
    for name, volume in zip(names, volumes, strict=True):
        origin = (-size * (box // 2),) * 3
        write_map(folder / name, DensityMap(volume, size, origin, labels=(VIEWING_NOTE, NOTE)))
    found = Assessment.of(
        models,
        torch.from_numpy(prepared.images.data),
        best=torch.from_numpy(volumes[0]),
        voxel_size=size,
        symmetry=torch.from_numpy(group),
        ctf=ctf_of(prepared.images) if args.ctf else None,
    )
    used, left_out = list(found.used), [one.number for one in found.left_out]
    of_used = attrs.evolve(prepared, images=prepared.images.chosen(used), shifts=prepared.shifts[used])
    poses = Poses.nearest(models.rotations[0].cpu(), size * models.shifts_px[0].cpu().double())
    # The results are written in a folder within the one where they will be read.
    write_poses(folder / "poses.star", images.chosen(used), of_used.original_poses(poses), read_in=folder.parent)
    projections = found.projections.numpy()
    shown, blank = [*used, *left_out], np.zeros((len(left_out), box, box), np.float32)
    marked = [k for k, i in enumerate(shown) if i in (*left_out, *found.doubtful)]
    both = prepared.images.data[shown], np.concatenate((projections, blank))
    plot_pairs(*both, folder / "pairs.png", marked=marked)
    rows = [
        {
            "model": name,
            **{score: float(f"{float(values[i]):.5g}") for score, values in models.scores.items()},
            "poses_from_the_best_deg": round(float(found.differences_deg[i]), 1),
        }
        for i, name in enumerate(names)
    ]
    with atomic_write(folder / "scores.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    record: dict[str, Any] = {"voxel_size_angstrom": size, "network_evaluations": models.nfe, "models": rows}
    name_of = images.names or [f"image {i + 1}" for i in range(len(images))]
    score = next(iter(models.scores))
    print(f"best model: {score} {rows[0][score]}, correlation with the images {found.correlations.mean():.3f}; {NOTE}")
    if args.poses == "searched":
        print(*found.lines(name_of), sep="\n")
    record |= found.record(name_of)
    if before:
        record["left_out_because"] = before | record.get("left_out_because", {})
    write_run(folder / "run.json", provenance(args) | record | {"note": NOTE, "took": cost()})
    write_report(folder, pairs=(of_used.images.data, projections))


def model_names(count: int) -> list[str]:
    """File names of the models, best first."""
    return [f"model_{i:02d}.mrc" for i in range(1, count + 1)]
