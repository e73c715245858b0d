"""Fourier shell correlation of two half maps, or of a map and an atomic model.

    python examples/fsc.py half1.mrc half2.mrc --out DIR
    python examples/fsc.py map.mrc --model 1abc.cif --out DIR

Of halves: unmasked, masked (--mask, or an automatic one), phase-randomised and corrected for the mask; by direction
with cFAR; with --local the resolution from place to place. It leaves fsc.csv, fsc.star (RELION), fsc.xml (EMDB),
fsc.png and report.html. Give raw halves: between restored ones an FSC is self-consistency and no resolution.
"""

import argparse
import sys
from pathlib import Path

from _first import check_line
from _flags import length, named_folder


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("maps", type=Path, nargs="+", help="two raw half maps, or one map and --model")
    add("--model", type=Path, help="an atomic model (PDB, mmCIF), fitted into the map")
    add("--mask", type=Path, help="soft mask on the maps' grid (of halves default an automatic one)")
    add("--local", action="store_true", help="the resolution from place to place as well: local_resolution.mrc")
    add("--voxel-size", type=length, help="Å, where the headers are wrong")
    add("--out", type=named_folder, required=True, help="folder for the results; made if need be")
    add("--overwrite", action="store_true", help="replace results that exist")
    args = parser.parse_args(arguments)
    if len(args.maps) != (1 if args.model else 2):
        parser.error("give two half maps, or one map and --model")
    return args


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

import attrs
from _command_line import exit_code
from _pages import folder_with_page

import cryofm_io as io
from cryofm_io.report import halves_content, model_content


def main() -> None:
    """Read, correlate, write."""
    args = parse()
    names = ["fsc.csv", "fsc.png", "fsc.xml"]
    names += ["fsc.star"] * (not args.model) + ["local_resolution.mrc"] * args.local
    maps = [io.read_map(path, voxel_size=args.voxel_size) for path in args.maps]
    first, title = maps[0], "map against model" if args.model else "between halves"
    mask = None if args.mask is None else io.read_mask(args.mask, first, voxel_size=args.voxel_size)
    with folder_with_page(args, names) as (folder, show):
        if args.model:
            model = attrs.evolve(first, data=io.density_of_model(args.model, first))
            curves = {title: io.fsc(first.data, model.data, first.voxel_size, mask)}
            show(model_content, first, model, curves[title], mask)
            io.write_fsc_xml(folder / "fsc.xml", curves[title], title)
            print(f"{title}: FSC 0.5: {curves[title].told(0.5)}")
        else:
            found = io.half_map_fsc(first, maps[1], mask, local=args.local)
            curves = found.named()
            show(halves_content, found)
            io.write_fsc_star(folder / "fsc.star", found.curves)
            io.write_fsc_xml(folder / "fsc.xml", curves["corrected"], "masked, corrected by random phases")
            for name, curve in (("unmasked", found.curves.unmasked), ("masked, corrected", found.curves.corrected)):
                print(f"{name}: FSC 0.143: {curve.told(0.143)}, FSC 0.5: {curve.told(0.5)}")
            print(f"cFAR {found.cones.cfar:.2f}{': views are missing' * (found.cones.cfar < 0.5)}")
            for doubt in io.mask_doubts(found.mask):
                print(f"warning: {doubt}", file=sys.stderr)
            if found.local is not None:
                io.write_map(folder / "local_resolution.mrc", found.local)
        io.write_fsc_csv(folder / "fsc.csv", curves)
        io.plot_fsc(curves, folder / "fsc.png", title=title)


if __name__ == "__main__":
    sys.exit(exit_code(main))
