"""Averages of subtomograms, and what is told of their wedge: ``python benchmarks/subtomograms.py MAPS... --out CSV``.

A map is turned into each of K particles' poses (cubic splines), loses what its tilt series did not measure, ±60° about
y, and gets white noise in what is left; turned back and weighted by what each measured, the particles of either half
are averaged. Their normals are within --normal degrees of the beam, as in a membrane, or anywhere. Restored are

- linear: the best linear filter, told the poses
- wedge told: as if the average had the plain wedge of ±60° (`missing_wedge.py --half2`)
- found: noise by direction, as the halves show it (`denoise.py`)
- poses told: by how many particles measured each voxel (`missing_wedge.py --half2 --poses`)

Leaves CSV: a line for every map, kind of poses and kind of restoration, and their means.
"""

import argparse
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import torch
from _inputs import calibrated_prior, clean
from _protocol import BOX, VOXEL, WEDGE, Score, crop
from _table import means_of_maps, write_csv
from scipy.ndimage import affine_transform
from torch import Tensor

from cryofm_ops import coverage_from_tilts, fourier_filter, irfft, random_rotations, rfft
from cryofm_sampling import PlugAndPlay, coverage_model, directional_model, restore, wedge_model

KINDS = ("mean", "linear", "wedge told", "found", "poses told")
SCORES = ("auc", "fsc05", "error")
STEPS = 8  # evaluations, as missing_wedge.py --half2 takes
LEVEL = 0.1  # of FSC .143: about 4.5 Å in an average of 100


def poses(count: int, normal_deg: float, generator: torch.Generator) -> Tensor:
    """Rotations of particles whose z axis is within an angle of the beam."""
    found = random_rotations(200 * count, generator=generator)
    return found[found[:, 2, 2] >= np.cos(np.radians(normal_deg))][:count].double()


def turned(x: Tensor, rotation: Tensor) -> Tensor:
    """The density at R⁻¹ p for every voxel p, about the middle of the box."""
    back = rotation.T.flip(0, 1).numpy()  # of (z, y, x)
    middle = (np.array(x.shape) - 1) / 2
    return torch.from_numpy(affine_transform(x.numpy(), back, middle - back @ middle, order=3).astype(np.float32))


def average(truth: Tensor, rotations: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Of noisy subtomograms of these poses."""
    added, transfer = torch.zeros_like(rfft(truth)), WEDGE.transfer(BOX).float()
    for R in rotations:
        noisy = turned(truth, R) + sigma * torch.randn(BOX, generator=generator)
        added += rfft(turned(fourier_filter(noisy, transfer), R.T)) * coverage_from_tilts(R[None], WEDGE, BOX)
    return irfft(added / coverage_from_tilts(rotations, WEDGE, BOX).clamp(min=1), BOX).float()


def main() -> None:
    """Parse the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("maps", type=Path, nargs="+", help="maps that the prior was not trained on")
    add("--prior", default="cryofm-tiny", help="(default cryofm-tiny)")
    add("--particles", type=int, default=100, help="in both halves together (default 100)")
    add("--normal", type=float, nargs="+", default=[25.0, 180.0], help="degrees (default 25, and 180: anywhere)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    add("--out", type=Path, required=True, help="CSV file")
    args = parser.parse_args()
    prior = calibrated_prior(args.prior)
    lines: list[dict[str, object]] = []
    for seed, path in enumerate(args.maps):
        truth = torch.from_numpy(crop(clean(path, VOXEL), BOX[0]))
        sigma = LEVEL * float(np.sqrt(args.particles))
        for normal in args.normal:
            generator = torch.Generator().manual_seed(seed)
            rotations = poses(args.particles, normal, generator)
            one, two = (average(truth, rotations[i::2], sigma, generator) for i in range(2))
            told = coverage_model(one, two, partial(coverage_from_tilts, rotations, WEDGE))
            models = {
                "wedge told": wedge_model(one, two, WEDGE),
                "found": directional_model(one, two),
                "poses told": told,
            }
            found: dict[str, Tensor] = {"mean": (one + two) / 2}
            found["linear"] = fourier_filter(found["mean"], told.gain.float())
            for kind, model in models.items():
                data, same = model.observe(found["mean"], 1 / 2), torch.Generator().manual_seed(seed)
                with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
                    draw = restore(prior, data, shape=BOX, generator=same, sampler=PlugAndPlay(STEPS))
                found[kind] = draw.x.float()
            for kind in KINDS:
                score = attrs.asdict(Score.of(found[kind], truth, VOXEL))
                first: dict[str, object] = {"map": path.name.split(".")[0], "normal_deg": normal, "kind": kind}
                lines.append(first | {key: round(score[key], 4) for key in SCORES})
                print(*lines[-1].values(), sep="  ", flush=True)
            write_csv(args.out, lines + means_of_maps(lines, SCORES))


if __name__ == "__main__":
    main()
