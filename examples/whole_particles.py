"""Whole particles for a prior of global shape: ``python examples/whole_particles.py MAPS... --out FOLDER``.

Each map is low-passed and resampled so that the whole particle is in a box of 32³ voxels, its centre of mass in the
middle, in ``--orientations`` random orientations. A voxel is 5 Å, or as large as the particle needs; the files say 5 Å
all the same, since the prior that is trained on them (recipes/cryofm-tiny-particles.toml) measures in voxels.
"""

import argparse
import sys
import warnings
import zlib
from collections import Counter
from functools import partial
from pathlib import Path

from _first import check_line
from _flags import length, positive, processes, side


def stem(path: Path) -> str:
    """The name without .gz and the last suffix."""
    return Path(path.name.removesuffix(".gz")).stem


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", nargs="+", type=Path, help="maps, such as those of simulate_maps.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .mrc maps; existing maps are kept")
    parser.add_argument("--orientations", type=positive, default=4, help="random orientations of each map (default 4)")
    parser.add_argument("--box", type=side, default=32, help="side of the box, voxels (default 32)")
    parser.add_argument("--voxel-size", type=length, default=5.0, help="the finest, Å (default 5)")
    parser.add_argument("--jobs", type=processes, default=2, help="processes (default 2)")
    parser.add_argument("--strict", action="store_true", help="stop at the first map that cannot be used")
    args = parser.parse_args(arguments)
    if twice := [name for name, count in Counter(map(stem, args.maps)).items() if count > 1]:
        parser.error(f"several maps would make the same particles: {', '.join(twice)}; rename them")
    return args


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

import numpy as np
from _command_line import ERRORS, disk_is_full, exit_code, one_line
from _many import failures
from _pages import page

import cryofm_io
from cryofm_io import DensityMap, held_folder, read_map, write_map
from cryofm_io.report import made_maps_content
from cryofm_model.data.augment import random_rotation
from cryofm_model.data.particles import whole_particle


def particles(path: Path, orientations: int, box: int, finest: float, out: Path) -> str:
    """The files of one map; returns what went wrong, or nothing. Files that exist are left alone."""
    warnings.simplefilter("ignore", cryofm_io.MapWarning)
    for k in range(orientations):
        target = out / f"{stem(path)}_{k}.mrc"
        if target.exists():
            continue
        rotation = random_rotation(np.random.default_rng(zlib.crc32(target.name.encode())))
        try:
            density = read_map(path)
            particle, _ = whole_particle(density.data, density.voxel_size, box, finest=finest, rotation=rotation)
            write_map(target, DensityMap(particle, finest))
        except (*ERRORS, OSError, MemoryError, RuntimeError) as error:
            if disk_is_full(error):
                raise
            return f"{path.name} is left out: {one_line(error) or error}"
    return ""


def main() -> None:
    """Parse the command line, resample, report what could not be used; status 1 if anything could not."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    job = partial(particles, orientations=args.orientations, box=args.box, finest=args.voxel_size, out=args.out)
    with held_folder(args.out):
        failed = failures(job, args.maps, args.jobs, strict=args.strict, unit="map")
        names = [f"{stem(path)}_{k}.mrc" for path in args.maps for k in range(args.orientations)]
        with page(args.out / "report.html", args, overwrite=True) as show:
            show(made_maps_content, [args.out / name for name in names if (args.out / name).exists()], failed)
    for message in failed:
        print(message, file=sys.stderr)
    print(f"{len(args.maps) - len(failed)} particles in {args.out}, {len(failed)} failed")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(exit_code(main, left="particles that were made stay; the same line goes on"))
