"""Simulate training maps from atomic models: ``python examples/simulate_maps.py MODELS... --out FOLDER``.

Each model becomes ``--variants`` maps with its own random orientation, resolution, B factors and ice contrast.
"""

import argparse
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from _command_line import above_zero, exit_code, positive
from tqdm import tqdm

from cryofm_io import CryoFMError, DensityMap, read_map, write_map
from cryofm_model.data.simulated import simulate_variant


def stem(model: Path) -> str:
    """The name without .gz and the last suffix: 1abc.assembly1 of 1abc.assembly1.pdb.gz."""
    return Path(model.name.removesuffix(".gz")).stem


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
    except CryoFMError as error:
        return str(error)
    return ""


def main() -> None:
    """Parse the command line, simulate, report what could not be simulated; status 1 if anything could not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="PDB or mmCIF files, .gz too")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .mrc maps; existing maps are kept")
    parser.add_argument("--voxel-size", type=above_zero, default=1.5, help="Å (default 1.5)")
    parser.add_argument("--variants", type=positive, default=2, help="maps of each model (default 2)")
    parser.add_argument("--jobs", type=positive, default=2, help="processes (default 2)")
    args = parser.parse_args()
    if twice := [name for name, count in Counter(map(stem, args.models)).items() if count > 1]:
        parser.error(f"several models would make the same maps: {', '.join(twice)}; rename them, or take one at a time")
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [(model, variant) for variant in range(args.variants) for model in args.models]
    try:
        with ProcessPoolExecutor(args.jobs) as pool:
            work = pool.map(partial(simulate, voxel_size=args.voxel_size, out=args.out), jobs)
            failed = [message for message in tqdm(work, total=len(jobs), unit="map") if message]
    except KeyboardInterrupt:
        print("interrupted; the same line goes on", file=sys.stderr)
        sys.exit(130)
    for message in failed:
        print(message, file=sys.stderr)
    print(f"{len(jobs) - len(failed)} maps in {args.out}, {len(failed)} failed")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(exit_code(main))
