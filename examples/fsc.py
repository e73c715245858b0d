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
    if len(args.maps) != (2 if args.model is None else 1):
        parser.error("give two half maps, or one map and --model")
    return args


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

import attrs
import numpy as np
from _command_line import exit_code
from _pages import Show, page

import cryofm_io as io
from cryofm_io.report import halves_content, model_content


def against_model(args: argparse.Namespace, map: io.DensityMap, folder: Path, show: Show) -> dict[str, io.FscCurve]:
    """Map against model; 0.5 is where the two agree."""
    model = io.density_of_model(args.model, map)
    mask = None if args.mask is None else io.read_mask(args.mask, map, voxel_size=args.voxel_size)
    curve = io.fsc(map.data, model, map.voxel_size, mask)
    print(f"map against model: FSC 0.5 at {curve.resolution(0.5):.2f} Å")
    io.write_fsc_xml(folder / "fsc.xml", curve, "map against model")
    show(model_content, map, attrs.evolve(map, data=model), curve, mask)
    return {"map against model": curve}


def of_halves(
    args: argparse.Namespace, halves: list[io.DensityMap], folder: Path, show: Show
) -> dict[str, io.FscCurve]:
    """All that two halves tell."""
    one, two = halves
    io.check_same_grid(one, two, "the half maps")
    size, mean = one.voxel_size, (one.data + two.data) / 2
    found = io.automatic_mask(mean - np.median(mean), size)
    mask = found if args.mask is None else io.read_mask(args.mask, one, voxel_size=args.voxel_size)
    if mask is None:
        raise io.MaskError("nothing stands out of the maps; give a --mask")
    curves, cones = io.masked_fsc(one.data, two.data, size, mask), io.conical_fsc(one.data, two.data, size, mask)
    io.write_fsc_star(folder / "fsc.star", curves)
    io.write_fsc_xml(folder / "fsc.xml", curves.corrected, "masked, corrected by random phases")
    for name, curve in (("unmasked", curves.unmasked), ("masked, corrected", curves.corrected)):
        print(f"{name}: FSC 0.143 at {curve.resolution(0.143):.2f} Å, 0.5 at {curve.resolution(0.5):.2f} Å")
    print(f"cFAR {cones.cfar:.2f}" + (": views are missing" if cones.cfar < 0.5 else ""))
    for doubt in io.mask_doubts(mask):
        print(f"warning: {doubt}", file=sys.stderr)
    places = io.local_resolution(one.data, two.data, size, mask) if args.local else None
    if places is not None:
        io.write_map(folder / "local_resolution.mrc", attrs.evolve(one, data=places, labels=("Local resolution, A.",)))
    show(halves_content, attrs.evolve(one, data=mean), curves, cones, mask, places)
    worst, best = (cones.curve(int(which(cones.auc))) for which in (np.argmin, np.argmax))
    named = {"unmasked": curves.unmasked, "masked": curves.masked, "phases randomised": curves.randomised}
    return named | {"corrected": curves.corrected, "worst direction": worst, "best direction": best}


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    names = (
        ["fsc.csv", "fsc.png", "fsc.xml", "report.html"]
        + ([] if args.model else ["fsc.star"])
        + (["local_resolution.mrc"] if args.local else [])
    )
    maps = [io.read_map(path, voxel_size=args.voxel_size) for path in args.maps]
    results = io.output_folder(args.out, names, overwrite=args.overwrite, read=args.maps)
    with results as folder, page(folder / "report.html", args) as show:
        one = args.model is not None
        curves = against_model(args, maps[0], folder, show) if one else of_halves(args, maps, folder, show)
        io.write_fsc_csv(folder / "fsc.csv", curves)
        io.plot_fsc(curves, folder / "fsc.png", title="between halves" if args.model is None else "map against model")


if __name__ == "__main__":
    sys.exit(exit_code(main))
