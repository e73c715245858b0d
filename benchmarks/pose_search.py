"""Pose search against projecting every pose: ``python benchmarks/pose_search.py --out CSV``.

100 images of 64² against a volume of 64³. The object is a random walk of 400 Gaussians within 20 voxels; volume and
projections are computed from it in closed form, so no projector of anybody takes part in making the data. Rotations are
uniform, shifts uniform within ±4 px; SNR is the variance of the image over that of white noise.

The peer projects the 4608 rotations of a grid (7 degrees from a random one, on average) with torch-fourier-slice and
correlates each projection with every image at all whole-pixel shifts within ±4 px by FFT. ``batched`` projects 128
rotations at a time and correlates with all images at once; ``loop`` goes one rotation and one image at a time.

What is counted: a rotation scored against an image, once for all its shifts, over the whole time, the preparation of
the volume included. For ours the rotations are the 4608 of its first stage: the refinements that follow count for
nothing, though their time does. So ``seconds`` is the time to solution, ours being the median of three runs; ``loop``
stops after ``--seconds``, and ``seconds_for_4608`` is what the whole grid would take.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from _table import write_csv
from torch import Tensor
from torch_fourier_slice import project_3d_to_2d

from cryofm_ops import angular_distance_deg, random_rotations, search_poses, so3_grid

N, ATOMS, SIGMA, RADIUS, SHIFT, GRID = 64, 400, 1.5, 20.0, 4, 4608

Row = dict[str, object]
Found = tuple[Tensor, Tensor]  # rotations and shifts
Method = Callable[[Tensor, Tensor], tuple[Found, int]]  # of volume and images; and how many rotations it scored


def walk(generator: torch.Generator) -> Tensor:
    """Positions (x, y, z) of a random walk with a memory, turned back at the edge of a ball."""
    position, direction = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    positions = []
    for _ in range(ATOMS):
        direction = 0.7 * direction + torch.randn(3, generator=generator, dtype=torch.float64)
        step = 2 * direction / direction.norm()
        if (position + step).norm() > RADIUS:
            direction, step = -direction, -step
        position = position + step
        position = position * min(1.0, RADIUS / float(position.norm()))
        positions.append(position)
    cloud = torch.stack(positions)
    return cloud - cloud.mean(0)


def gaussians(centres: Tensor) -> Tensor:
    pixels = torch.arange(N, dtype=torch.float64) - N // 2
    return torch.exp(-((pixels - centres[..., None]) ** 2) / (2 * SIGMA**2))


def volume_of(positions: Tensor) -> Tensor:
    x, y, z = (gaussians(positions[:, axis]) for axis in range(3))
    return torch.einsum("az,ay,ax->zyx", z, y, x).float()


def images_of(positions: Tensor, rotations: Tensor, shifts: Tensor) -> Tensor:
    seen = torch.einsum("kij,aj->kai", rotations.double(), positions)[..., :2] - shifts.double()[:, None]
    x, y = (gaussians(seen[..., axis]) for axis in range(2))
    return (math.sqrt(2 * math.pi) * SIGMA * torch.einsum("kay,kax->kyx", y, x)).float()


def ours(volume: Tensor, images: Tensor) -> tuple[Found, int]:
    found = search_poses(volume, images, max_shift_px=SHIFT)
    return (found.rotations, found.shifts_px), GRID


def exhaustive(volume: Tensor, images: Tensor, at_a_time: int, seconds: float) -> tuple[Found, int]:
    """The best of the grid's rotations for each image; `at_a_time` is 0 for the loop."""
    grid = so3_grid(2, dtype=torch.float32)
    spectra = torch.fft.rfft2(images - images.mean((-2, -1), keepdim=True))
    side = torch.arange(-SHIFT, SHIFT + 1)
    best = torch.full((len(images),), -math.inf)
    which, where = torch.zeros(2, len(images), dtype=torch.long)
    start, done = time.perf_counter(), 0
    while done < GRID and time.perf_counter() - start < seconds:
        p = project_3d_to_2d(volume, grid[done : done + max(1, at_a_time)].mT)  # its matrices take view to object
        p = p - p.mean((-2, -1), keepdim=True)
        p = torch.fft.rfft2(p / torch.linalg.vector_norm(p, dim=(-2, -1), keepdim=True))
        for i in range(len(p) if at_a_time else len(images)):  # batched: all images; loop: one image
            rows = slice(None) if at_a_time else slice(i, i + 1)
            one = p[i] if at_a_time else p[0]
            # p moved by −s correlates with y as p does with y moved by s.
            c = torch.fft.irfft2(one.conj() * spectra[rows], s=(N, N))[:, -side[:, None], -side].flatten(1)
            value, shift = c.max(1)
            better = value > best[rows]
            best[rows] = torch.where(better, value, best[rows])
            which[rows] = torch.where(better, done + i * bool(at_a_time), which[rows])
            where[rows] = torch.where(better, shift, where[rows])
        done += len(p)
    offsets = torch.stack((side[where % len(side)], side[where // len(side)]), -1)
    return (grid[which], offsets.float()), done


def errors(found: Found, rotations: Tensor, shifts: Tensor) -> Row:
    angle = angular_distance_deg(found[0], rotations)
    shift = (found[1] - shifts).norm(dim=1)
    return {
        "angle_median_deg": round(float(angle.median()), 3),
        "angle_90%_deg": round(float(angle.quantile(0.9)), 3),
        "fraction_over_10deg": round(float((angle > 10).double().mean()), 3),
        "shift_median_px": round(float(shift.median()), 3),
        "shift_90%_px": round(float(shift.quantile(0.9)), 3),
    }


def timed(name: str, method: Method, volume: Tensor, images: Tensor) -> tuple[Row, Found]:
    start = time.perf_counter()
    found, scored = method(volume, images)
    seconds = time.perf_counter() - start
    row: Row = {
        "method": name,
        "images": len(images),
        "rotations_scored": scored,
        "seconds": round(seconds, 3),
        "seconds_for_4608": round(seconds * GRID / scored, 3),
        "scored_per_second": round(scored * len(images) / seconds),
    }
    return row, found


def main() -> None:
    """Parse the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the loop may take")
    parser.add_argument("--out", type=Path, required=True, help=".csv file")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    positions = walk(generator)
    volume = volume_of(positions)
    rotations = random_rotations(args.images, generator=generator)
    shifts = SHIFT * (2 * torch.rand(args.images, 2, generator=generator) - 1)
    clean = images_of(positions, rotations, shifts)
    search_poses(volume, clean[:4], max_shift_px=SHIFT)  # warm up
    rows: list[Row] = []
    for snr in (math.inf, 1.0, 0.1):
        std = (clean.var((-2, -1), keepdim=True) / snr).sqrt()
        images = clean + std * torch.randn(clean.shape, generator=generator)
        runs = [timed("search_poses", ours, volume, images) for _ in range(3)]
        peers = [timed("batched", partial(exhaustive, at_a_time=128, seconds=math.inf), volume, images)]
        if snr == math.inf:
            peers.append(timed("loop", partial(exhaustive, at_a_time=0, seconds=args.seconds), volume, images))
        for row, found in (sorted(runs, key=lambda run: float(str(run[0]["seconds"])))[1], *peers):
            rows.append(
                {"snr": snr} | row | (errors(found, rotations, shifts) if row["rotations_scored"] == GRID else {})
            )
            print(rows[-1], flush=True)
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
