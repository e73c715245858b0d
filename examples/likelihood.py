"""Ask the prior how likely maps are: bits per voxel, the fewer the likelier, with a standard error.

    python examples/likelihood.py map1.mrc map2.mrc --out DIR

Takes the central cube of every map (``--side``), at the voxel size of the prior. Bits are of a density, and may be
negative. Only maps on one scale, in one box and of one resolution can be compared: the less there is in a map, the
likelier it is. The prior knows maps clipped at 0 and scaled so that their brightest voxels are 1, which ``--normalise``
makes of any.

Without maps it compares the example in examples/data, EMD-3488, with itself blurred and with noise: a little of either
makes it less likely, and much blur more.
"""

import argparse
import csv
import sys
import warnings
from pathlib import Path

from _first import check_line
from _flags import add_flags, length, positive, side


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("maps", type=Path, nargs="*", help="maps (MRC/CCP4, .gz too); none: the example")
    add("--voxel-size", type=length, help="of the maps, Å, where their headers are wrong")
    add("--normalise", action="store_true", help="clip at 0 and scale each map as those that the prior knows")
    add("--side", type=side, default=32, help="of the central cube, in voxels of the prior (default 32)")
    add("--probes", type=positive, default=2, help="for the divergence, 2 or more for a standard error (default 2)")
    rule = "even steps of Runge and Kutta's rule, 4 (1 + probes) network evaluations each"
    add_flags(parser, steps=None, of=f"{rule}, for a prior that rounds its time; few err by far in solvent")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

import attrs
import numpy as np
import torch
from _command_line import by, check_disk, chosen_prior, exit_code, in_tiles, run_script, tell_plan
from _maps import DEMO_MAP, demo_map, device_of
from _record import cost, provenance, write_run
from _streams import bar
from numpy.typing import NDArray
from torch import Tensor

from cryofm_io import (
    DensityMap,
    GridTransform,
    atomic_write,
    check_contrast,
    map_size,
    normalise_clean,
    read_map,
    write_report,
)
from cryofm_ops import LowPass, WhiteNoise
from cryofm_sampling import Rescaled, check_available, check_memory, log_likelihood

FILES = ["likelihood.csv", "report.html", "run.json"]
BENEATH = 0.05  # of the brightest voxels
ADAPTIVE = 150  # calls of the flow, about, where the solver chooses its steps (134 to 164 of the example in 16³)
DEMO_RESOLUTIONS, DEMO_NOISES = (4.0, 8.0), (0.01, 0.05)  # Å; of the brightest voxels


def run(args: argparse.Namespace, folder: Path) -> None:
    """The whole job."""
    args.precision = args.precision or "fp32"  # a log-density is the sum of a million small terms
    prior = chosen_prior(args)
    device, needs = device_of(prior), []
    for path in args.maps or [DEMO_MAP]:
        size = map_size(path, voxel_size=args.voxel_size)
        target = GridTransform.of(size, prior.voxel_size).target
        check_available(target)  # whole maps are resampled, on the CPU
        z, y, x = (min(args.side, n) for n in target)
        tiled = in_tiles(prior, (z, y, x), args.precision)
        needs.append((check_memory((z, y, x), tiled, device=device, gradients=True, own=size.shape), tiled, (z, y, x)))
    need, tiled, shape = max(needs, key=lambda one: one[0].needed)
    each = (4 * args.steps if args.steps else ADAPTIVE) * (1 + args.probes)
    count = each * (len(args.maps) or 1 + len(DEMO_RESOLUTIONS) + len(DEMO_NOISES))
    told = f"{'' if args.steps else 'about '}{count} evaluations, {each} a map"
    tell_plan(args, need, check_disk(args.out, 0, 0), tiled, shape, count, told, gradients=True)
    maps = read_maps(args.maps, args.voxel_size, args.normalise) if args.maps else demo_maps(args.seed)
    grids = {name: GridTransform.of(density, prior.voxel_size) for name, density in maps.items()}
    cubes = {name: central(grids[name].forward(density.data), args.side) for name, density in maps.items()}

    rows, algorithm = [], {}
    print(f"{'map':40}{'voxels':>16}{'bits per voxel':>18}{'standard error':>16}")
    for name, cube in cubes.items():
        with bar(total=args.steps and 4 * args.steps, unit=" evaluations", desc=name) as shown:
            velocity = Rescaled(in_tiles(prior, cube.shape, args.precision), prior.normalization, shown.update)
            found = log_likelihood(
                velocity,
                cube.to(device),
                generator=torch.Generator(device).manual_seed(args.seed),  # the same probes for every map
                probes=args.probes,
                steps=args.steps,
            )
        algorithm = dict(found.settings)
        bits, error = float(found.bits_per_voxel), float(found.bits_per_voxel_error)
        print(f"{name:40}{by(box(cube)):>16}{bits:18.3f}{error:16.3f}")
        rows.append(
            {
                "map": name,
                "voxels": found.voxels,
                "log_p_nats": float(found.nats),
                "standard_error_nats": float(found.standard_error),
                "bits_per_voxel": bits,
                "standard_error_bits_per_voxel": error,
                "network_evaluations": int(found.nfe),
            }
        )
    with (
        atomic_write(folder / "likelihood.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,  # as names of files are
    ):
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    record = provenance(args, *([] if args.maps else [DEMO_MAP]))
    write_run(folder / "run.json", record | {"algorithm": algorithm, "results": rows, "took": cost()})
    write_report(folder, cubes={name: cube.numpy() for name, cube in cubes.items()})


def central(data: NDArray[np.float32], side: int) -> Tensor:
    """The central cube of a map."""
    starts = [max(0, n // 2 - side // 2) for n in data.shape]
    z, y, x = (slice(start, start + side) for start in starts)
    return torch.from_numpy(data[z, y, x].copy())


def box(cube: Tensor) -> tuple[int, int, int]:
    """Its sides."""
    z, y, x = cube.shape
    return z, y, x


def read_maps(paths: list[Path], voxel_size: float | None, normalise: bool) -> dict[str, DensityMap]:
    """Maps by name."""
    maps = {str(path): read_map(path, voxel_size=voxel_size) for path in paths}
    if normalise:
        for name, density in maps.items():
            check_normalised(name, density.data)
        maps = {name: attrs.evolve(density, data=normalise_clean(density.data)[0]) for name, density in maps.items()}
    for name, density in maps.items():
        top = float(np.percentile(density.data, 99.999))
        if not 0.5 < top < 2:
            warnings.warn(
                f"{name} is not on the prior's scale: its brightest voxels are {top:.3g}, not 1; give --normalise",
                stacklevel=1,
            )
    return maps


def check_normalised(name: str, data: NDArray[np.float32]) -> None:
    """Warn of density that clipping at 0 does not make the prior's."""
    check_contrast(data)
    low, high = (float(p) for p in np.percentile(data, [1, 99.999]))
    if low > BENEATH * high:
        warnings.warn(
            f"{name} is nowhere less than {low:.3g}: a constant beneath it? The prior knows solvent as 0", stacklevel=1
        )


def demo_maps(seed: int) -> dict[str, DensityMap]:
    """EMD-3488 on the prior's scale, blurred, and with white noise."""
    truth = demo_map()
    truth = attrs.evolve(truth, data=normalise_clean(truth.data)[0])
    x, generator = torch.from_numpy(truth.data), torch.Generator().manual_seed(seed)
    others = {f"blurred to {r:g} Å": LowPass(r, truth.voxel_size)(x) for r in DEMO_RESOLUTIONS}
    others |= {f"noise of {s:g} added": WhiteNoise(s).sample(x, generator=generator) for s in DEMO_NOISES}
    return {"EMD-3488": truth} | {name: attrs.evolve(truth, data=data.numpy()) for name, data in others.items()}


def main() -> None:
    """Parse the command line and run."""
    run_script(parse(), FILES, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
