"""Tell what a person asks of map files before anything is done with them.

    python examples/inspect_map.py map.mrc
    python examples/inspect_map.py half1.mrc half2.mrc

Size, place, sign, solvent, mask, filter and sharpening; of two files also whether they are halves that can tell their
noise. Then what denoise.py would do with them and what that takes. The exit status is 1 where something has to be put
right first.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from _first import check_line
from _flags import add_report_flag, length


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="maps (MRC/CCP4, .gz too); two may be half maps")
    parser.add_argument("--voxel-size", type=length, help="Å, where the headers are wrong")
    fits = "name, file or folder of a prior (default the bundled one that fits the data)"
    parser.add_argument("--prior", help=fits)
    parser.add_argument("--overwrite", action="store_true", help="replace a page that exists")
    add_report_flag(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

import torch
from _command_line import by, exit_code, has_bf16, in_tiles, time_of_one
from _maps import SIDE, TRIALS, Measured, evaluations, fitting_prior
from _pages import page

from cryofm_io import (
    CryoFMError,
    DensityMap,
    FscCurve,
    GridTransform,
    Inspection,
    MapWarning,
    check_half_maps,
    fsc,
    inspect_map,
)
from cryofm_io.report import inspection_content
from cryofm_model import load_prior
from cryofm_sampling import PlugAndPlay, check_memory

CPU = torch.device("cpu")


def halves(one: DensityMap, two: DensityMap, found: dict[str, str]) -> tuple[list[str], FscCurve | None]:
    """Find what two maps are to each other; what is wrong with them as halves, and their FSC."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MapWarning)
        try:
            check_half_maps(one, two)
        except CryoFMError as error:
            found["halves"] = "no"
            return [str(error)], None
    curve = fsc(one.data, two.data, one.voxel_size)
    reach = f"agree to {curve.resolution(0.143):.2f} Å (FSC 0.143, whole box)"
    found["halves"] = f"yes, two raw halves; they {reach}"
    return [str(warning.message) for warning in caught], curve


def plan(maps: Sequence[DensityMap], prior: str | None, found: dict[str, str]) -> list[str]:
    """Find what denoise.py would do; why it would not."""
    try:
        args = argparse.Namespace(prior=prior)
        network = fitting_prior(args, load_prior(prior or "cryofm-tiny"), Measured(tuple(maps)), lambda _: None)
        target = GridTransform.of(maps[0], network.voxel_size).target
        tiled = in_tiles(network, target, "bf16" if has_bf16(CPU) else "fp32")
        memory = check_memory(target, tiled, device=CPU, own=maps[0].shape)
    except ValueError as error:
        return [f"denoise.py: {error}"]
    pair = len(maps) == 2
    finding = pair * TRIALS * min(1.0, SIDE**3 / math.prod(target))  # scale and envelope
    minutes = (evaluations(PlugAndPlay(8), halves=pair, samples=0) + finding) * time_of_one(tiled, target, CPU) / 60
    found["denoise.py"] = (
        f"a grid of {by(target)} voxels of {network.voxel_size:.3g} Å, {memory} of memory, about {minutes:.2g} min "
        "here and now, less where much is solvent"
    )
    return []


def run(args: argparse.Namespace) -> int:
    """Look at every file."""
    trouble: list[str] = []
    every: list[tuple[str, Inspection]] = []
    for path in args.files:
        every.append((str(path), seen := inspect_map(path, voxel_size=args.voxel_size)))
        print(path)
        say(seen.found)
        trouble += [what if what.startswith(f"{path}: ") else f"{path}: {what}" for what in seen.trouble]
    maps, found = [seen.map for _, seen in every if seen.map is not None], dict[str, str]()
    curve = None
    if len(args.files) == len(maps) == 2:
        wrong, curve = halves(maps[0], maps[1], found)
        trouble += wrong
    if maps:
        pair = len(maps) == 2 and maps[0].shape == maps[1].shape
        trouble += plan(maps if pair else maps[:1], args.prior, found)
    say(found)
    for what in trouble:
        print(f"trouble: {what}")
    with page(args.report, args, overwrite=args.overwrite) as show:
        show(inspection_content, every, trouble, found, curve)
    return 1 if trouble else 0


def say(found: dict[str, str]) -> None:
    """In a column."""
    for name, said in found.items():
        print(f"{name:10} {said}")


def main() -> int:
    """Parse the command line and run."""
    return run(parse())


if __name__ == "__main__":
    sys.exit(exit_code(main))
