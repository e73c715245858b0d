"""Score maps, whichever program made them, against the truth or an atomic model.

    python examples/score.py restored.mrc other.mrc --truth truth.mrc
    python examples/score.py restored.mrc --model 1abc.cif --mask mask.mrc

FSC_AUC is the mean FSC over the shells to --to, FSC_0.5 where as much is right as wrong. The error is over the truth's
squares, both less their means and the map at its best scale, for other programs have units and a background of their
own; benchmarks/score.py, which adds the paper's failure rates, takes maps as they stand, for ours claim the truth's
units, and an error in these counts. All maps lie on one grid.
"""

import argparse
import csv
import sys
from pathlib import Path

from _first import check_line
from _flags import add_report_flag, length


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("maps", type=Path, nargs="+", help="maps to score")
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--truth", type=Path, help="a map")
    truth.add_argument("--model", type=Path, help="an atomic model (PDB, mmCIF), fitted into the maps")
    add("--mask", type=Path, help="soft mask, on the maps' grid")
    add("--to", type=length, help="Å, the finest that counts (default Nyquist)")
    add("--out", type=Path, help=".csv file for the numbers")
    add("--voxel-size", type=length, help="Å, where the headers are wrong")
    add("--overwrite", action="store_true", help="replace files that exist")
    add_report_flag(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

import attrs
from _command_line import exit_code
from _pages import page

import cryofm_io as io
from cryofm_io.report import scores_content


def main() -> None:
    """Score, print, write."""
    args = parse()
    maps = [io.read_map(path, voxel_size=args.voxel_size) for path in args.maps]
    first = maps[0]
    if args.truth is not None:
        truth = io.read_map(args.truth, voxel_size=args.voxel_size)
    else:
        truth = attrs.evolve(first, data=io.density_of_model(args.model, first))
    mask = None if args.mask is None else io.read_mask(args.mask, first, voxel_size=args.voxel_size)
    for path, map in zip(args.maps, maps, strict=True):
        io.check_same_grid(truth, map, f"{path} and the truth")
    rows, curves = [], []
    wide = max(len(str(path)) for path in args.maps)
    print(f"{'':{wide}} FSC_AUC      FSC_0.5  error")
    for path, map in zip(args.maps, maps, strict=True):
        score = io.score_map(map, truth, mask, finest=args.to)
        row = {"fsc_auc": score.fsc.auc, "fsc_0.5_angstrom": score.fsc.resolution(0.5)}
        rows.append({"map": str(path)} | row | {"error_at_best_scale": score.error})
        print(f"{path!s:{wide}} {score.fsc.auc:7.4f}  {score.fsc.told(0.5):>11}  {score.error:.4f}")
        curves.append(score.fsc)
    with page(args.report, args, overwrite=args.overwrite) as show:
        show(scores_content, truth, maps, rows, curves, mask)
    if args.out is not None:
        with io.atomic_write(args.out, args.overwrite) as temporary, temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    sys.exit(exit_code(main))
