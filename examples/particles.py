"""Restore a volume from single particles at known poses: what `relion_reconstruct` does, with a prior.

    python examples/particles.py particles.star --mask-diameter 180 --out DIR

The STAR file is RELION's, or the poses.star of `abinitio.py`; a refinement's .cs of cryoSPARC does as well: angles,
origins, CTFs, and stacks that are found from its folder or from one above it. Images are read batch by batch, so that
any number of them takes the memory of a few boxes.
Their pixels have the size of the prior's voxels, within 0.5 % (1.5 Å of the bundled one; `relion_preprocess
--rescale_angpix 1.5` makes such).

Noise is taken for white to the background's spectrum, poses for right and amplitudes for what the CTFs say: no B factor
is sought. The half maps are of every second particle each, and unfiltered, so that `denoise.py` can seek one.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _first import check_line
from _flags import add_flags, images, length


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("particles", type=Path, help="particles with angles: a STAR file, or cryoSPARC's data set (.cs)")
    add("--mask-diameter", type=length, required=True, help="of the particle, Å; beyond 1.3 times it is background")
    add("--invert", action="store_true", help="the particle is dark in the images")
    add("--limit", type=images, help="so many particles only, from the first on")
    add_flags(parser, steps=None, of="passes of denoiser and data")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

import attrs
import numpy as np
import torch
from _command_line import by, check_disk, choose_device, exit_code, in_tiles, run_script, tell_plan
from _command_line import calibrated_prior as chosen_prior
from _record import cost, provenance, write_run
from _streams import bar
from numpy.typing import NDArray
from torch import Tensor

from cryofm_io import (
    DensityMap,
    ImagesOnDisk,
    InputFileError,
    fsc,
    images_on_disk,
    plot_slices,
    write_fsc_csv,
    write_map,
    write_report,
)
from cryofm_ops import (
    CTF,
    FourierProjector,
    SpectralNoise,
    ToeplitzGaussian,
    background_power,
)
from cryofm_sampling import PlugAndPlay, check_memory, restore_images

FILES = [
    "restored.mrc",
    "linear.mrc",
    "reconstruction.mrc",
    "reconstruction_half1.mrc",
    "reconstruction_half2.mrc",
    "fsc.csv",
    "slices.png",
    "report.html",
    "open.cxc",
    "run.json",
]
BATCH, NOISE_FROM = 100, 1000  # images
TRIALS = 24  # evaluations, about (`fit_scale`)
LEVEL = 4  # shells of the background
SAME_SIZE = 0.005


def centred(images: ImagesOnDisk, some: NDArray[np.int64], diameter_px: float, sign: int) -> Tensor:
    """Some of the images `(k, y, x)`, protein bright; the mean of what lies outside of a disc is 0."""
    data = sign * torch.from_numpy(images.read(some.tolist()))
    axis = torch.arange(images.side) - images.side // 2
    outside = axis.square() + axis[:, None].square() > (diameter_px / 2) ** 2
    level = data[:, outside].mean(-1) if outside.any() else data.new_zeros(len(data))
    return data - level[:, None, None]


def batches(
    images: ImagesOnDisk, some: NDArray[np.int64], diameter_px: float, sign: int, progress: Any
) -> Iterator[tuple[FourierProjector, Tensor]]:
    """Projectors with the images that they make."""
    assert images.poses is not None
    size, shape = images.voxel_size, (images.side, images.side, images.side)
    fields = {} if images.ctf is None else attrs.asdict(images.ctf)
    for part in np.array_split(some, -(-len(some) // BATCH)):
        rotations = torch.from_numpy(images.poses.rotations[part]).float()
        shifts = torch.from_numpy(images.poses.shifts[part] / size).float()
        own = {name: torch.from_numpy(values[part]) for name, values in fields.items()}
        ctf = CTF(**own, voxel_size_angstrom=size) if own else None
        yield FourierProjector(rotations, shifts, shape, ctf), centred(images, part, diameter_px, sign)
        progress.update(len(part))


def run(args: argparse.Namespace, folder: Path) -> None:
    """The whole job."""
    prior, device = chosen_prior(args), choose_device(args.device)
    particles, sign = images_on_disk(args.particles), -1 if args.invert else 1
    if particles.poses is None:
        raise InputFileError(f"{args.particles}: the images have no angles (rlnAngleRot, rlnAngleTilt, rlnAnglePsi)")
    size, shape = particles.voxel_size, (particles.side, particles.side, particles.side)
    if abs(size / prior.voxel_size - 1) > SAME_SIZE:
        raise InputFileError(
            f"{args.particles}: pixels of {size:.4g} Å; the prior {args.prior} knows voxels of {prior.voxel_size:g} Å: "
            f"relion_preprocess --rescale_angpix {prior.voxel_size:g}"
        )
    chosen = np.arange(len(particles))[: args.limit]
    if len(chosen) < 2:
        raise InputFileError(f"{args.particles}: two images at least, one for each half")
    tiled = in_tiles(prior, shape, args.precision)
    need = check_memory(shape, tiled, device=device)
    volume = 4 * particles.side**3
    sampler = PlugAndPlay(args.steps or 8)
    told = f"{sampler.iterations} evaluations that restore, and some {TRIALS} that find the scale, beside the images"
    disk = check_disk(args.out, 5 * volume, volume)
    tell_plan(args, need, disk, tiled, shape, sampler.iterations + TRIALS, told)
    print(f"{len(chosen)} particles of {by(shape[:2])} pixels of {size:g} Å; prior {args.prior} on {device}")

    diameter = args.mask_diameter / size
    spread = chosen[:: max(1, len(chosen) // NOISE_FROM)]
    background = background_power(centred(particles, spread, diameter, sign), diameter).float()
    background[:LEVEL] = background[LEVEL]  # whose mean was taken off, so that it seems to have no noise there
    noise = SpectralNoise(background)
    with bar(total=len(chosen), unit=" images") as shown:
        halves = [
            ToeplitzGaussian.from_images(batches(particles, half, diameter, sign, shown), noise, shape=shape)
            for half in (chosen[::2], chosen[1::2])
        ]
    with bar(total=None, unit=" steps") as shown:
        found = restore_images(
            tiled,
            *halves,
            generator=torch.Generator(device).manual_seed(args.seed),
            sampler=sampler,
            callback=lambda *_: shown.update(),
        )

    (one, two), both, misfit = found.halves, found.reconstruction, found.draw.misfit
    restored, linear = found.map.cpu(), found.linear
    made = {"reconstruction": both, "reconstruction_half1": one, "reconstruction_half2": two}
    for name, x in ({"restored": restored, "linear": linear} | made).items():
        write_map(folder / f"{name}.mrc", DensityMap(x.numpy(), size))
    curves = {
        "half maps": fsc(one.numpy(), two.numpy(), size),
        "reconstruction and restored": fsc(both.numpy(), restored.numpy(), size),
    }
    write_fsc_csv(folder / "fsc.csv", curves)
    pictures = {"reconstruction": linear.numpy(), "restored": restored.numpy()}
    plot_slices(pictures, folder / "slices.png", size)
    resolution = curves["half maps"].resolution(0.143)
    record = {
        "particles": len(chosen),
        "voxel_size_angstrom": size,
        "resolution_of_the_halves_angstrom": resolution,
        "scale": found.fit.normalization.scale,
        "misfit": None if misfit is None else float(misfit),
    }
    write_run(folder / "run.json", provenance(args) | record | {"took": cost()})
    write_report(folder)
    print(f"halves agree to {resolution:.3g} Å (no mask); misfit {record['misfit']:.3g}, where about 1 is expected")


def main() -> None:
    """Parse the command line and run."""
    run_script(parse(), FILES, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
