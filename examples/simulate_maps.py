"""Simulate training maps from atomic models: ``python examples/simulate_maps.py MODELS... --out FOLDER``.

Each model becomes ``--variants`` maps with its own random orientation, resolution, B factors and ice contrast.
"""

import argparse
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from _first import check_line
from _flags import length, positive, processes


def stem(model: Path) -> str:
    """The name without .gz and the last suffix: 1abc.assembly1 of 1abc.assembly1.pdb.gz."""
    return Path(model.name.removesuffix(".gz")).stem


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="PDB or mmCIF files, .gz too")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .mrc maps; existing maps are kept")
    parser.add_argument("--voxel-size", type=length, default=1.5, help="Å (default 1.5)")
    parser.add_argument("--variants", type=positive, default=2, help="maps of each model (default 2)")
    parser.add_argument("--jobs", type=processes, default=2, help="processes (default 2)")
    parser.add_argument("--strict", action="store_true", help="stop at the first model that cannot be simulated")
    args = parser.parse_args(arguments)
    if twice := [name for name, count in Counter(map(stem, args.models)).items() if count > 1]:
        parser.error(f"several models would make the same maps: {', '.join(twice)}; rename them, or take one at a time")
    return args


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

from _command_line import ERRORS, disk_is_full, exit_code, one_line
from _many import failures
from _pages import page

from cryofm_io import DensityMap, held_folder, read_map, write_map
from cryofm_io.report import made_maps_content
from cryofm_model.data.simulated import simulate_variant


def simulate(job: tuple[Path, int], voxel_size: float, out: Path) -> str:
    """One map; returns what went wrong, or nothing. A map that exists is left alone, so a run can be resumed."""
    model, variant = job
    path = out / f"{stem(model)}_{variant}.mrc"
    try:
        if path.exists():
            found = float(read_map(path).voxel_size)
            kept = abs(found - voxel_size) < 1e-3 * voxel_size
            return "" if kept else f"{path} exists, with {found:.3g} Å a voxel; give another --out"
        write_map(path, DensityMap(simulate_variant(model, variant, voxel_size), voxel_size))
    except (*ERRORS, OSError, MemoryError, RuntimeError) as error:
        if disk_is_full(error):
            raise
        return f"{model.name} is left out: {one_line(error) or error}"
    return ""


def main() -> int:
    """Parse the command line, simulate, report what could not be simulated; status 1 if anything could not."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [(model, variant) for variant in range(args.variants) for model in args.models]
    with held_folder(args.out):
        job = partial(simulate, voxel_size=args.voxel_size, out=args.out)
        failed = failures(job, jobs, args.jobs, strict=args.strict, unit="map")
        made = [path for m, v in jobs if (path := args.out / f"{stem(m)}_{v}.mrc").exists()]
        with page(args.out / "report.html", args, overwrite=True) as show:
            show(made_maps_content, made, failed)
    for message in dict.fromkeys(failed):
        print(message, file=sys.stderr)
    print(f"{len(jobs) - len(failed)} maps in {args.out}, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(exit_code(main, left="maps that were made stay; the same line goes on"))
