"""Score maps against the truth: ``python benchmarks/score.py TRUTH RESULT...``.

FSC_AUC and FSC_0.5 (Å) as `cryofm_io.fsc` has them, the squared error over the truth's squares of maps as they stand
(`examples/score.py` takes off what is only scale and background), and whether the paper would count the result as
failed (FSC_0.5 worse than 30 Å, or a file that is not there or holds no map; C.1). With ``--tilts -60 60`` also FSC_AUC
inside the missing wedge. Several results get FR, means and standard deviations (n − 1), failures excluded and included.
All maps on one grid.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from _protocol import NO_RESULT, Score, Summary
from _table import write_csv

from cryofm_io import CryoFMError, DensityMap, InputFileError, check_same_grid, read_map
from cryofm_ops import MissingWedge


def score_of(path: Path, truth: DensityMap, wedge: MissingWedge | None) -> Score:
    """Of a file; one that cannot be read is a result that does not exist."""
    try:
        result = read_map(path)
    except InputFileError as error:
        print(error, file=sys.stderr)
        return NO_RESULT
    check_same_grid(truth, result, f"{path} and the truth")
    x, y = (torch.from_numpy(np.asarray(density.data, np.float32)) for density in (result, truth))
    return Score.of(x, y, truth.voxel_size, wedge)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("truth", type=Path)
    add("results", type=Path, nargs="+", metavar="RESULT")
    add("--tilts", type=float, nargs=2, metavar=("MIN", "MAX"), help="that were measured, degrees; the beam is along z")
    add("--tilt-axis", choices=("x", "y"), default="y", help="of --tilts (default y)")
    add("--out", type=Path, help=".csv file")
    args = parser.parse_args(arguments)
    truth = read_map(args.truth)
    low, high = args.tilts or (0.0, 0.0)
    wedge = None if args.tilts is None else MissingWedge(low, high, args.tilt_axis)
    scores, rows = [], []
    for path in args.results:
        score = score_of(path, truth, wedge)
        scores.append(score)
        gap = "" if wedge is None else f"{score.auc_gap:.6g}"
        rows.append(
            {
                "map": str(path),
                "auc": f"{score.auc:.6g}",
                "fsc05": f"{score.fsc05:.6g}",
                "auc_gap": gap,
                "error": f"{score.error:.6g}",
                "failed": int(score.failed),
            }
        )
        inside = "" if wedge is None else f"  in the wedge {score.auc_gap:.4f}"
        failed = "  FAILED" if score.failed else ""
        print(f"{path}: FSC_AUC {score.auc:.4f}  FSC_0.5 {score.fsc05:.2f} Å{inside}  error {score.error:.4f}{failed}")
    if len(scores) > 1:
        found = Summary.of(scores, max(truth.shape) * truth.voxel_size)
        for label, auc, fsc05 in (
            ("failures excluded", found.auc, found.fsc05),
            ("failures included", found.auc_of_all, found.fsc05_of_all),
        ):
            print(f"{label}: FSC_AUC {auc[0]:.4f} ± {auc[1]:.4f}  FSC_0.5 {fsc05[0]:.2f} ± {fsc05[1]:.2f} Å")
        print(f"FR {found.fail_rate:.2f} of {found.n}")
    if args.out is not None:
        write_csv(args.out, rows)


if __name__ == "__main__":
    try:
        main()
    except CryoFMError as error:
        sys.exit(f"error: {error}")
