"""Particles at known poses: ``python benchmarks/particles.py MAP --out CSV [--number 2000] [--side 64]``.

The map stands in a box, and is seen by random poses, shifts and CTFs with white noise (SNR 0.1 within a pixel), by
`FourierProjector` at padding 2. Measured are

- `one pass, N`: `ToeplitzGaussian.from_images` on N images of random numbers, CPU seconds and the peak of memory;
- `one pass` and `conjugate gradients` on the same few images, of a sphere in the map: squared error of `restore` at the
  noise level that the first finds, relative to the truth's, the mean of several sets of images;
- `linear, …`: the same of the posterior mean for the Gaussian prior of the same power, without a network, at the sides
  of `--linear`: what the pass itself costs;
- `particles.py` on all of them as its user runs it, from a STAR file, and `relion_reconstruct --ctf` on the same file
  where there is one: the error after the best factor, FSC_AUC and FSC_0.5 against the truth, all within a soft sphere.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from _inputs import calibrated_prior, clean
from _peak import peak_resident_mib
from _protocol import crop, sides
from _table import write_csv
from torch import Tensor

from cryofm_io import DensityMap, ImageCtf, ImageStack, Poses, fsc, read_map, write_map, write_poses
from cryofm_model import CalibratedPrior
from cryofm_ops import (
    CTF,
    Conjugate,
    FourierProjector,
    LinearGaussian,
    ToeplitzGaussian,
    WhiteNoise,
    gaussian_likelihood,
    radial,
    random_rotations,
)
from cryofm_sampling import PlugAndPlay, restore

SCRIPT = Path(__file__).parents[1] / "examples" / "particles.py"
SNR = 0.1
BATCH = 100
FEW, SETS = 40, 4  # what conjugate gradients are asked for


class Seen:
    """Random poses and CTFs of a truth."""

    def __init__(self, truth: Tensor, number: int, voxel_size: float, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.truth, self.voxel_size = truth, voxel_size
        self.rotations = random_rotations(number, generator=g)
        self.shifts = len(truth) / 32 * torch.randn(number, 2, generator=g)
        self.defocus = 8000 + 10000 * torch.rand(number, generator=g)
        self.noise = torch.Generator().manual_seed(seed + 1)
        self.std = float((self.projector(slice(0, BATCH))(truth)).std() / SNR**0.5)

    def projector(self, some: slice) -> FourierProjector:
        """Of some of the images."""
        ctf = CTF(defocus_u_angstrom=self.defocus[some], voxel_size_angstrom=self.voxel_size)
        return FourierProjector(self.rotations[some], self.shifts[some], sides(self.truth), ctf)

    def batches(self, number: int | None = None) -> Iterator[tuple[FourierProjector, Tensor]]:
        """Projectors, and the images that they made."""
        number = len(self.shifts) if number is None else number
        for k in range(0, number, BATCH):
            project = self.projector(slice(k, min(k + BATCH, number)))
            y = project(self.truth)
            yield project, y + self.std * torch.randn(y.shape, generator=self.noise)

    def write(self, folder: Path) -> Path:
        """A STAR file, and a stack; background of standard deviation 1."""
        number, (_, n, _) = len(self.shifts), sides(self.truth)
        data = np.concatenate([(y / self.std).numpy() for _, y in self.batches()])
        write_map(folder / "particles.mrcs", DensityMap(data, self.voxel_size))
        one, names = np.ones(number), [f"{k + 1:06d}@{folder / 'particles.mrcs'}" for k in range(number)]
        u = self.defocus.double().numpy()
        ctf = ImageCtf(u, u, 0 * one, 300 * one, 2.7 * one, 0.1 * one, 0 * one)
        stack = ImageStack(np.zeros((number, n, n), np.float32), self.voxel_size, names, ctf)
        poses = Poses(self.rotations.double().numpy(), self.shifts.double().numpy() * self.voxel_size)
        write_poses(folder / "particles.star", stack, poses)
        return folder / "particles.star"


def random_images(number: int, side: int) -> Iterator[tuple[FourierProjector, Tensor]]:
    """Images of nothing, for the time that they take."""
    g = torch.Generator().manual_seed(0)
    for _ in range(0, number, BATCH):
        rotations, shifts = random_rotations(BATCH, generator=g), torch.randn(BATCH, 2, generator=g)
        ctf = CTF(defocus_u_angstrom=8000 + 8000 * torch.rand(BATCH, generator=g), voxel_size_angstrom=1.5)
        yield FourierProjector(rotations, shifts, (side,) * 3, ctf), torch.randn(BATCH, side, side, generator=g)


def round_particle(x: Tensor) -> Tensor:
    """What of a crop lies within a soft sphere, as a particle lies within its images."""
    axes = [torch.arange(n) - n // 2 for n in x.shape]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    return x * torch.sigmoid(0.42 * x.shape[-1] - radius)


def cpu_of_children(command: list[str]) -> float:
    """CPU seconds of a program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)


def scored(path: Path, truth: Tensor, voxel_size: float) -> dict[str, Any]:
    """Of a map, in whatever units."""
    x, t = (round_particle(v).numpy() for v in (torch.from_numpy(read_map(path).data), truth))
    curve, factor = fsc(x, t, voxel_size), float((x * t).sum() / (x * x).sum())
    error = float(((factor * x - t) ** 2).sum() / (t**2).sum())
    return {"error": round(error, 4), "auc": round(curve.auc, 4), "fsc05": round(curve.resolution(0.5), 2)}


def linear(density: Any, side: int, prior: CalibratedPrior) -> Iterator[dict[str, Any]]:
    """The error of the mean for a Gaussian prior, in one pass and by conjugate gradients, the mean of two sets."""
    truth = round_particle(torch.from_numpy(crop(density, side)))
    power = radial(prior.signal_power, sides(truth)) * float(prior.normalization.std) ** 2
    errors: dict[str, list[float]] = {"one pass": [], "conjugate gradients": []}
    for seed in range(2):
        seen = Seen(truth, FEW, prior.voxel_size, seed)
        (project, images), noise = next(seen.batches()), WhiteNoise(seen.std)
        data: dict[str, Conjugate] = {
            "one pass": ToeplitzGaussian.from_images([(project, images)], noise, shape=sides(truth)),
            "conjugate gradients": LinearGaussian(project, noise, images, tolerance=1e-3),
        }
        for name, one in data.items():
            x = one.condition(torch.zeros_like(truth), power).mean
            errors[name].append(float((x - truth).square().sum() / truth.square().sum()))
    for name, found in errors.items():
        what = f"linear, {name}"
        yield {"what": what, "images": FEW, "side": side, "error": round(sum(found) / 2, 4), "auc": "", "fsc05": ""}


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Row by row."""
    empty = {"cpu_s": "", "peak_mib": "", "error": "", "auc": "", "fsc05": ""}
    for number in args.passes:
        start = time.process_time()
        ToeplitzGaussian.from_images(random_images(number, args.side), WhiteNoise(1.0), shape=(args.side,) * 3)
        found = {"cpu_s": round(time.process_time() - start, 1), "peak_mib": peak_resident_mib()}
        yield {"what": "one pass", "images": number, "side": args.side} | empty | found

    prior = calibrated_prior(args.prior)
    density = clean(args.map, prior.voxel_size)
    small = round_particle(torch.from_numpy(crop(density, args.small)))
    for side in args.linear:
        yield from (row | {"cpu_s": "", "peak_mib": ""} for row in linear(density, side, prior))
    spent: dict[str, list[float]] = {"one pass": [], "conjugate gradients": []}
    errors: dict[str, list[float]] = {name: [] for name in spent}
    for seed in range(SETS):
        seen = Seen(small, FEW, prior.voxel_size, seed)
        level: float | None = None
        (project, images), noise = next(seen.batches()), WhiteNoise(seen.std)
        for name in spent:
            start = time.process_time()
            data: Conjugate
            if name == "one pass":
                data = ToeplitzGaussian.from_images([(project, images)], noise, shape=sides(small))
            else:
                data = gaussian_likelihood(project, noise, images)
            generator = torch.Generator().manual_seed(seed)
            draw = restore(prior, data, shape=sides(small), generator=generator, sampler=PlugAndPlay(time=level))
            (level,) = cast("list[float]", draw.settings["time"])
            spent[name].append(time.process_time() - start)
            errors[name].append(float((draw.x - small).square().sum() / small.square().sum()))
    for name in spent:
        found = {"cpu_s": round(sum(spent[name]) / SETS, 1), "error": round(sum(errors[name]) / SETS, 4)}
        yield {"what": f"restore, {name}", "images": FEW, "side": args.small} | empty | found

    truth = torch.from_numpy(crop(density, args.side))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        star = Seen(truth, args.number, prior.voxel_size, 1).write(folder)
        programs: dict[str, list[Any]] = {}
        programs["relion_reconstruct"] = ["relion_reconstruct", "--i", star, "--o", folder / "relion.mrc", "--ctf"]
        ours = [sys.executable, SCRIPT, star, "--mask-diameter", args.side * prior.voxel_size * 0.7]
        programs["particles.py"] = [*ours, "--out", folder / "ours", "--prior", args.prior]
        results = {
            "relion_reconstruct": ["relion.mrc"],
            "particles.py": ["ours/reconstruction.mrc", "ours/restored.mrc"],
        }
        for program, command in programs.items():
            if shutil.which(str(command[0])) is None:
                print(f"{program} is not there", flush=True)
                continue
            seconds = cpu_of_children([str(part) for part in command])
            for result in results[program]:
                what = program if program.startswith("relion") else f"{program}, {Path(result).name}"
                found = {"cpu_s": seconds} | scored(folder / result, truth, prior.voxel_size)
                yield {"what": what, "images": args.number, "side": args.side} | empty | found


def main() -> None:
    """Parse the command line, and write every row as it is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("map", type=Path, help="a clean map")
    parser.add_argument("--prior", default="cryofm-tiny")
    parser.add_argument("--side", type=int, default=64, help="of the images")
    parser.add_argument("--small", type=int, default=16, help="of those that conjugate gradients are asked for")
    parser.add_argument("--number", type=int, default=2000, help="of particles")
    parser.add_argument("--passes", type=int, nargs="*", default=[1000, 5000], help="numbers of images to time")
    parser.add_argument("--linear", type=int, nargs="*", default=[24, 32], help="sides for a Gaussian prior")
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    args = parser.parse_args()
    rows = []
    for row in measure(args):
        rows.append(row)
        print(*(f"{key} {value}" for key, value in row.items() if value != ""), flush=True)
        write_csv(args.out, rows)


if __name__ == "__main__":
    main()
