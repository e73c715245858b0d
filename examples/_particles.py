"""Ab initio from noisy particles with CTFs: their poses are drawn in the models while these form."""

import argparse
import sys
import warnings
from typing import Any

import attrs
import numpy as np
import torch
from _ranked import Ranked
from _script import WithProgress, tiles
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cryofm_io import CryoFMError, ImageStack, MapWarning, PreparedImages, prepare_particles
from cryofm_model import CalibratedPrior
from cryofm_model.particles import LOW_PASS, working_voxel_size
from cryofm_ops import CTF, ImagesInBand, background_power, random_rotations
from cryofm_sampling import AbInitio, Models

MOST, FEW = 1000, 100  # images
DRAWING: dict[str, Any] = {"ratios": (10.0, 0.4), "draw_above": 0.0}  # the levels at which poses and model settle


def particles(
    args: argparse.Namespace, images: ImageStack, prior: CalibratedPrior, group: NDArray[np.float64]
) -> tuple[PreparedImages, Ranked]:
    """The images as they were used, and models of them."""
    if images.ctf is None:
        raise CryoFMError(f"{args.images}: --ctf needs a STAR file that tells the CTFs (rlnDefocusU, …); it has none")
    if len(images) > MOST:
        raise CryoFMError(f"{args.images}: {len(images)} particles; give {MOST} at most")
    if len(images) < FEW:
        message = f"{len(images)} particles hardly determine a model; from a few hundred on it is worth a look"
        warnings.warn(message, MapWarning, stacklevel=2)
    device = prior.signal_power.device
    voxel_size = working_voxel_size(args.mask_diameter, prior.box, prior.voxel_size)
    prepared = prepare_particles(
        images, mask_diameter=args.mask_diameter, voxel_size=voxel_size, box=prior.box, invert=args.invert
    )
    size, radius = prepared.images.voxel_size, int(prior.box / LOW_PASS)
    print(
        f"{len(images)} particles of {images.data.shape[-1]}² pixels; "
        f"box {prior.box}³ of {size:.4g} Å, {prior.box * size / radius:.3g} Å"
    )
    data = ImagesInBand.of(
        torch.from_numpy(prepared.images.data).to(device),
        radius,
        noise_of(images, prepared, args.mask_diameter, radius),
        symmetry=None if len(group) == 1 else torch.from_numpy(group).to(prior.signal_power),
        ctf=ctf_of(prepared.images),
    )
    generator = torch.Generator(device).manual_seed(args.seed)
    velocity, levels = tiles(prior, (prior.box,) * 3, args.precision), 2 * args.steps
    K, keep = len(images), min(args.keep, args.tries)
    anywhere = random_rotations(args.tries * K, generator=generator).reshape(args.tries, K, 3, 3)
    evaluations = (levels + 3) * args.tries + (args.steps + 3) * keep
    with tqdm(total=evaluations, unit=" evaluations", file=sys.stdout, leave=False) as bar:

        def through_prior(rotations: Tensor, shifts_px: Tensor, **how: Any) -> Models:
            return AbInitio(max_shift_px=args.offset_range / size, **how)(
                WithProgress(velocity, prior, prior.normalization, bar),
                data,
                normalization=prior.normalization,
                rotations=rotations,
                shifts_px=shifts_px,
                generator=generator,
            )

        drawn = through_prior(anywhere, anywhere.new_zeros(args.tries, K, 2), levels=levels, **DRAWING)
        models = through_prior(drawn.rotations[:keep], drawn.shifts_px[:keep], levels=args.steps)
    return prepared, Ranked(models.x, models.rotations, models.shifts_px, {"misfit": models.misfit}, evaluations)


def ctf_of(images: ImageStack) -> CTF:
    """The CTFs of images that have some, at their pixel size."""
    fields = {name: torch.from_numpy(values) for name, values in attrs.asdict(images.ctf).items()}  # type: ignore[arg-type]
    return CTF(**fields, voxel_size_angstrom=images.voxel_size)


def noise_of(images: ImageStack, prepared: PreparedImages, mask_diameter: float, radius: int) -> Tensor:
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
