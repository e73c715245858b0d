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
import math
import sys
from pathlib import Path
from typing import Any

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
import numpy as np
from _command_line import exit_code
from _pages import page

from cryofm_io import (
    DensityMap,
    FscCurve,
    atomic_write,
    check_same_grid,
    density_of_model,
    fsc,
    read_map,
    read_mask,
)
from cryofm_io.report import scores_content


def score(map: DensityMap, truth: DensityMap, mask: Any, to: float | None) -> tuple[dict[str, float], FscCurve]:
    """Of one map, and its FSC."""
    curve = fsc(map.data, truth.data, truth.voxel_size, mask)
    if to is not None:
        used = curve.frequency <= 1 / to + 1e-9
        curve = FscCurve(curve.frequency[used], curve.correlation[used], curve.n_voxels[used])
    x, y = ((m.data if mask is None else m.data * mask).astype(np.float64) for m in (map, truth))
    x, y = x - x.mean(), y - y.mean()
    power = float((x * x).sum())
    scale = float((x * y).sum()) / power if power else 0.0
    error = float(np.square(scale * x - y).sum() / np.square(y).sum())
    return {"fsc_auc": curve.auc, "fsc_0.5_angstrom": curve.resolution(0.5), "error_at_best_scale": error}, curve


def run(args: argparse.Namespace) -> None:
    """Score, print, write."""
    maps = [read_map(path, voxel_size=args.voxel_size) for path in args.maps]
    first = maps[0]
    if args.truth is not None:
        truth = read_map(args.truth, voxel_size=args.voxel_size)
    else:
        truth = attrs.evolve(first, data=density_of_model(args.model, first))
    mask = None if args.mask is None else read_mask(args.mask, first, voxel_size=args.voxel_size)
    rows, curves = list[dict[str, Any]](), list[FscCurve]()
    wide = max(len(str(path)) for path in args.maps)
    print(f"{'':{wide}} FSC_AUC  FSC_0.5 (Å)  error")
    for path, map in zip(args.maps, maps, strict=True):
        check_same_grid(truth, map, f"{path} and the truth")
        row, curve = score(map, truth, mask, args.to)
        curves.append(curve)
        at = f"{row['fsc_0.5_angstrom']:.2f}" if row["fsc_0.5_angstrom"] < math.inf else "none"
        print(f"{path!s:{wide}} {row['fsc_auc']:7.4f}  {at:>11}  {row['error_at_best_scale']:.4f}")
        rows.append({"map": str(path)} | row)
    with page(args.report, args, overwrite=args.overwrite) as show:
        show(scores_content, truth, maps, rows, curves, mask)
    if args.out is not None:
        with atomic_write(args.out, args.overwrite) as temporary, temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)


def main() -> None:
    """Parse the command line and run."""
    run(parse())


if __name__ == "__main__":
    sys.exit(exit_code(main))
