"""Tell what a person asks of map files before anything is done with them.

    python examples/inspect_map.py map.mrc
    python examples/inspect_map.py half1.mrc half2.mrc

Size, place, sign, solvent, mask, filter and sharpening; of two files also whether they are halves that can tell their
noise. Then what denoise.py would do with them and what that takes. The exit status is 1 where something has to be put
right first.
"""

import argparse
import sys
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

from _command_line import exit_code
from _maps import plan_to_denoise
from _pages import page

from cryofm_io import inspect_halves, inspect_map
from cryofm_io.report import inspection_content


def main() -> int:
    """Look at every file."""
    args = parse()
    trouble, every, found, curve = list[str](), [], dict[str, str](), None
    for path in args.files:
        every.append((str(path), seen := inspect_map(path, voxel_size=args.voxel_size)))
        print(path)
        say(seen.found)
        trouble += [what if what.startswith(f"{path}: ") else f"{path}: {what}" for what in seen.trouble]
    maps = [seen.map for _, seen in every if seen.map is not None]
    if len(args.files) == len(maps) == 2:
        halves = inspect_halves(*maps)
        found["halves"], curve = halves.found, halves.fsc
        trouble += halves.trouble
    if maps:
        pair = len(maps) == 2 and maps[0].shape == maps[1].shape
        try:
            found["denoise.py"] = plan_to_denoise(maps if pair else maps[:1], args.prior)
        except ValueError as error:
            trouble.append(f"denoise.py: {error}")
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


if __name__ == "__main__":
    sys.exit(exit_code(main))
