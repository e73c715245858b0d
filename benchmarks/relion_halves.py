"""Half maps by the real RELION: simulated particles of atomic models, reconstructed by ``relion_reconstruct``.

    python benchmarks/relion_halves.py MODELS... --problems 100:3.6 50:4.6 --out FOLDER

A problem B:R blurs the particles by an envelope exp(−B ν² / 4), B in Å², and gives them white noise at which the FSC of
the halves is .143 at R Å. They are seen through CTFs, and reconstructed with poses that are wrong by 0.5° and 0.2 Å
about each axis. ``--views 15`` has all views within so many degrees (sd) of one axis; ``--flexible 6`` lets one half of
the molecule turn about its middle by as many degrees (sd about each axis), differently in each particle.

A problem NAME becomes NAME-half1.mrc, NAME-half2.mrc, NAME-truth.mrc and a row of halves.csv, for
``reconstructions.py --folder``. The reconstruction is linear in the images: signal and noise are reconstructed apart,
so that the noise's level is exact, B and scale of the halves can be measured on what has no noise, and one
reconstruction of noise serves all problems of a model. The truth is in the units of the halves. Problems that are
there are not made again.
"""

import argparse
import csv
import math
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Self

import attrs
import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryofm_io import (
    DensityMap,
    ImageCtf,
    ImageStack,
    Poses,
    normalise_clean,
    read_map,
    simulate_density,
    write_map,
    write_poses,
)
from cryofm_ops import (
    CTF,
    Envelope,
    FourierProjector,
    compose,
    fourier_filter,
    frequencies,
    radial_mean,
    random_rotations,
    rfft,
    rotation_from_relion,
    rotation_from_vector,
    shell_sizes,
)

TOOL = "relion_reconstruct"
WRONG_DEG, WRONG_ANGSTROM = 0.5, 0.2  # sd of the poses' errors
DEFOCUS, ASTIGMATISM = (8000.0, 20000.0), 300.0  # Å
MARGIN = 9.0  # Å around the molecule
EDGE = 4.0  # Å, sd of the border between what turns and what does not


@attrs.frozen(eq=False)
class Particles:
    """Images of a model, through no CTF and without noise, and what is known of them."""

    clean: Tensor  # (K, y, x)
    defocus: Tensor  # (3, K): u, v in Å, angle in degrees
    poses: Poses  # as RELION is told them
    voxel_size: float

    def half(self, k: int) -> Self:
        """Every second one."""
        poses = Poses(self.poses.rotations[k::2], self.poses.shifts[k::2])
        return attrs.evolve(self, clean=self.clean[k::2], defocus=self.defocus[:, k::2], poses=poses)

    def through(self, b_factor: float) -> Tensor:
        """The images, blurred and through their CTFs."""
        u, v, angle = self.defocus
        ctf = CTF(
            defocus_u_angstrom=u, defocus_v_angstrom=v, defocus_angle_deg=angle, voxel_size_angstrom=self.voxel_size
        )
        m = compose(Envelope(b_factor, self.voxel_size), ctf).transfer((1, *self.clean.shape[1:]))
        return fourier_filter(self.clean[:, None], m.float())[:, 0]

    def write(self, images: Tensor, stem: Path) -> None:
        """Such images as RELION reads them, with the microscope's values that `CTF` has by itself."""
        names = [f"{i + 1:06d}@{stem.name}.mrcs" for i in range(len(images))]
        microscope = (np.full(len(images), value) for value in (300.0, 2.7, 0.1, 0.0))
        stack = ImageStack(
            images.numpy(), self.voxel_size, ctf=ImageCtf(*self.defocus.numpy(), *microscope), names=names
        )
        write_map(stem.with_suffix(".mrcs"), DensityMap(images.numpy(), self.voxel_size), overwrite=True)
        write_poses(stem.with_suffix(".star"), stack, self.poses, overwrite=True)


def truth_of(model: Path, voxel_size: float) -> Tensor:
    """The density in a cube, in an orientation of its own, as clean maps are everywhere: solvent 0, top 1."""
    turn = Rotation.random(rng=np.random.default_rng(zlib.crc32(model.name.encode()))).as_matrix()
    density = simulate_density(model, voxel_size, resolution=2.05 * voxel_size, margin=MARGIN, rotation=turn)
    side = max(density.shape)
    edges = [((side - n) // 2, (side - n) - (side - n) // 2) for n in density.shape]
    return torch.from_numpy(np.pad(normalise_clean(density)[0], edges))


def seen(truth: Tensor, voxel_size: float, args: argparse.Namespace, generator: torch.Generator) -> Particles:
    """Projections, CTFs, and the poses that are told of them."""
    n = args.images
    true = random_rotations(n, generator=generator)
    if args.views is not None:
        rot, psi = 360 * torch.rand(2, n, generator=generator) - 180
        true = rotation_from_relion(torch.stack((rot, args.views * torch.randn(n, generator=generator), psi), -1))
    z, y, x = truth.shape
    shape = (z, y, x)
    still = torch.zeros(n, 2)
    if args.flexible is None:
        images = FourierProjector(true, still, shape)(truth)
    else:
        moving, hinge = moving_part(truth, voxel_size)
        turn = rotation_from_vector(args.flexible * torch.randn(n, 3, generator=generator))
        moved = (true @ (hinge - turn @ hinge)[..., None])[:, :2, 0]  # about the hinge, not the middle of the box
        images = FourierProjector(true, still, shape)(truth * (1 - moving))
        images += FourierProjector(true @ turn, -moved, shape)(truth * moving)
    u = DEFOCUS[0] + (DEFOCUS[1] - DEFOCUS[0]) * torch.rand(n, generator=generator)
    defocus = torch.stack(
        (u, u - ASTIGMATISM * torch.rand(n, generator=generator), 180 * torch.rand(n, generator=generator))
    )
    told = rotation_from_vector(WRONG_DEG * torch.randn(n, 3, generator=generator)) @ true
    shifts = WRONG_ANGSTROM * torch.randn(n, 2, generator=generator)
    return Particles(images, defocus, Poses(told.numpy(), shifts.numpy()), voxel_size)


def moving_part(truth: Tensor, voxel_size: float) -> tuple[Tensor, Tensor]:
    """A soft mask of one end of the molecule, and where it turns (x, y, z) in voxels from the middle of the box."""
    x = (
        torch.stack(torch.meshgrid(*(torch.arange(n) - n // 2 for n in truth.shape), indexing="ij"), -1)
        .flip(-1)
        .float()
    )
    weight = truth.clamp(min=0) / truth.clamp(min=0).sum()
    middle = (weight[..., None] * x).sum((0, 1, 2))
    away = x - middle
    spread = torch.einsum("zyx,zyxi,zyxj->ij", weight, away, away)
    axis = torch.linalg.eigh(spread).eigenvectors[:, -1]
    return torch.sigmoid(1.7 * voxel_size / EDGE * (away @ axis)), middle


def reconstructed(particles: Particles, images: Tensor, folder: Path) -> list[Tensor]:
    """Both halves, every second image each."""
    halves = []
    for k in range(2):
        particles.half(k).write(images[k::2], folder / "half")
        line = [TOOL, "--i", "half.star", "--o", "half.mrc", "--ctf", "--verb", "0"]
        subprocess.run(line, cwd=folder, check=True, capture_output=True)
        halves.append(torch.from_numpy(read_map(folder / "half.mrc", voxel_size=particles.voxel_size).data))
    return halves


def level(signal: list[Tensor], noise: list[Tensor], voxel_size: float, resolution: float) -> float:
    """Of the noise at which the FSC is .143 at the resolution; shells around it count."""
    z, y, x = signal[0].shape
    shape = (z, y, x)
    s, n = (radial_mean((rfft(a) * rfft(b).conj()).real, shape) for a, b in (signal, (noise[0], noise[0])))
    at = 2 * voxel_size / resolution * (len(s) - 1)
    near = slice(max(1, round(at) - 1), min(round(at) + 2, len(s)))
    return float(((s[near].log() - n[near].log()).mean().exp() * (1 - 0.143) / 0.143) ** 0.5)


def envelope(
    signal: list[Tensor],
    truth: Tensor,
    voxel_size: float,
    resolution: float,
    views: float | None,
    flexible: float | None = None,
) -> tuple[float, float]:
    """B and scale K of what was reconstructed without noise, K exp(−B ν² / 4) times the truth, to the resolution.

    Of preferred views, where most of them measure: close to the plane across their axis. Of flexible molecules, which
    fall off otherwise, K is that of the first shell, and B the best for it.
    """
    z, y, x = truth.shape
    shape = (z, y, x)
    t = rfft(truth)
    if views is not None:
        highest = math.sin(math.radians(views)) / 2
        t = t * (torch.fft.fftfreq(z)[:, None, None].abs() <= highest * frequencies(shape))
    ratio = radial_mean((rfft(signal[0] + signal[1]) / 2 * t.conj()).real, shape) / radial_mean(t.abs().square(), shape)
    nu = torch.linspace(0, 0.5 / voxel_size, len(ratio), dtype=torch.float64)
    used = (nu > 1 / 15) & (nu < 1 / resolution) & (ratio > 0)
    weight = shell_sizes(shape)[used].double().sqrt()
    squared, logs = nu[used].square(), ratio[used].log()
    if flexible is not None:
        scale = float(ratio[1])
        slope = (weight * squared * (logs - math.log(scale))).sum() / (weight * squared.square()).sum()
        return -4 * float(slope), scale
    slope, log_k = np.polyfit(squared, logs, 1, w=weight.sqrt())
    return -4 * float(slope), math.exp(log_k)


def make(model: Path, args: argparse.Namespace, table: Path) -> None:
    """All problems of one model."""
    kind = "".join(f"-{word}{value:g}" for word, value in (("views", args.views), ("flexible", args.flexible)) if value)
    names = {p: f"{model.name.split('.')[0]}-B{p[0]:g}-{p[1]:g}A{kind}" for p in args.problems}
    with table.open(newline="", encoding="utf-8") as file:
        done = {row["problem"] for row in csv.DictReader(file)}
    todo = [p for p in args.problems if names[p] not in done]
    if not todo:
        return
    truth = truth_of(model, args.voxel_size)
    if len(truth) > args.largest:
        print(f"{model.name}: {len(truth)} voxels a side, more than {args.largest}; left out")
        return
    generator = torch.Generator().manual_seed(zlib.crc32(model.name.encode()))
    particles = seen(truth, args.voxel_size, args, generator)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        noise = reconstructed(particles, torch.randn(particles.clean.shape, generator=generator), folder)
        for (b_factor, resolution), name in ((p, names[p]) for p in todo):
            signal = reconstructed(particles, particles.through(b_factor), folder)
            sigma = level(signal, noise, args.voxel_size, resolution)
            found, scale = envelope(signal, truth, args.voxel_size, resolution, args.views, args.flexible)
            volumes = {f"half{k + 1}": signal[k] + sigma * noise[k] for k in range(2)} | {"truth": scale * truth}
            for part, volume in volumes.items():
                write_map(args.out / f"{name}-{part}.mrc", DensityMap(volume.numpy(), args.voxel_size), overwrite=True)
            row = (name, args.voxel_size, len(truth), b_factor, round(found, 1), resolution, args.views, args.flexible)
            with table.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerow(["" if v is None else v for v in row])
            print(*row, f"sigma {sigma:.3g}", flush=True)


COLUMNS = ("problem", "voxel_size", "side", "b_of_images", "b_factor", "resolution", "views_deg", "flexible_deg")


def problem(text: str) -> tuple[float, float]:
    """B:R."""
    b_factor, resolution = map(float, text.split(":"))
    return b_factor, resolution


def main() -> None:
    """Parse the command line, and make halves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", type=Path, nargs="+", help="PDB or mmCIF files, .gz too")
    add("--problems", type=problem, nargs="+", default=[(100.0, 3.6)], metavar="B:R", help="Å² and Å (default 100:3.6)")
    add("--voxel-size", type=float, default=1.5, help="Å (default 1.5)")
    add("--images", type=int, default=2000, help="particles (default 2000)")
    add("--views", type=float, help="degrees; all around if not given")
    add("--flexible", type=float, help="degrees; rigid if not given")
    add("--largest", type=int, default=64, help="voxels a side, beyond which a model is left out (default 64)")
    add("--out", type=Path, required=True, help="folder; problems are added")
    args = parser.parse_args()
    if shutil.which(TOOL) is None:
        sys.exit(f"{TOOL} of RELION is not on the PATH: nothing was made (Debian: package relion)")
    args.out.mkdir(parents=True, exist_ok=True)
    table = args.out / "halves.csv"
    if not table.exists():
        table.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    for model in args.models:
        make(model, args, table)


if __name__ == "__main__":
    main()
