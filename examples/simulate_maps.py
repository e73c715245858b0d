"""Simulate training maps from atomic models: ``python examples/simulate_maps.py MODELS... --out FOLDER``.

Each model becomes ``--variants`` maps with its own random orientation, resolution, B factors and ice contrast.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from cryofm_io import CryoFMError, DensityMap, write_map
from cryofm_model.simulated import simulate_variant


def simulate(job: tuple[Path, int], voxel_size: float, out: Path) -> str:
    """One map; returns what went wrong, or nothing. A map that exists is left alone, so a run can be resumed."""
    model, variant = job
    name = f"{model.name.split('.')[0]}_{variant}"
    path = out / f"{name}.mrc"
    if path.exists():
        return ""
    try:
        density = simulate_variant(model, variant, voxel_size)
    except CryoFMError as error:
        return str(error)
    write_map(path, DensityMap(density, voxel_size))
    return ""


def main() -> int:
    """Parse the command line, simulate, report what could not be simulated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="PDB or mmCIF files, .gz too")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .mrc maps; existing maps are kept")
    parser.add_argument("--voxel-size", type=float, default=1.5, help="Å (default 1.5)")
    parser.add_argument("--variants", type=int, default=2, help="maps of each model (default 2)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [(model, variant) for variant in range(args.variants) for model in args.models]
    with ProcessPoolExecutor(args.jobs) as pool:
        work = pool.map(partial(simulate, voxel_size=args.voxel_size, out=args.out), jobs)
        failed = [message for message in tqdm(work, total=len(jobs), unit="map") if message]
    for message in failed:
        print(message, file=sys.stderr)
    print(f"{len(jobs) - len(failed)} maps in {args.out}, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
