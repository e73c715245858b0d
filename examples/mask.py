"""Make a soft mask of a map, or of two half maps.

    python examples/mask.py map.mrc --threshold 0.02 --out mask.mrc
    python examples/mask.py half1.mrc half2.mrc --out mask.mrc

As in RELION's MaskCreate: low pass, threshold, wider by some Å, a soft edge; but in Å. Without a threshold it
takes the part of the highest density after the low pass that ``--level`` says, which suits most maps; look at it.
"""

import argparse
import sys
from pathlib import Path

from _first import check_line
from _flags import add_report_flag, length, number, part, width


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("maps", type=Path, nargs="+", help="one map, or two half maps, whose mean is taken")
    add("--out", type=Path, required=True, help="the mask, .mrc")
    add("--threshold", type=number, help="density after the low pass; RELION's initial threshold (default by --level)")
    add("--level", type=part, default=0.2, help="threshold, of the highest density (default 0.2)")
    add("--low-pass", type=length, help="Å (default 10, of coarse voxels 4 of them)")
    add("--extend", type=width, help="Å by which it is wider than the threshold says (default 3, or a voxel)")
    add("--soft-edge", type=width, help="Å over which it then falls to 0 (default 6, or 3 voxels)")
    add("--voxel-size", type=length, help="Å, where the headers are wrong")
    add("--overwrite", action="store_true", help="replace files that exist")
    add_report_flag(parser)
    args = parser.parse_args(arguments)
    if len(args.maps) > 2:
        parser.error("give one map or two half maps")
    return args


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

import attrs
import numpy as np
from _command_line import exit_code
from _pages import page

from cryofm_io import (
    MaskError,
    check_same_grid,
    low_pass,
    mask_doubts,
    mask_lengths,
    read_map,
    refuse_to_lose,
    soft_mask,
    write_map,
)
from cryofm_io.report import mask_content


def run(args: argparse.Namespace) -> None:
    """Read, make the mask, write."""
    refuse_to_lose(args.maps, [args.out] + ([args.report] if args.report else []))
    first, *others = (read_map(path, voxel_size=args.voxel_size) for path in args.maps)
    for path, other in zip(args.maps[1:], others, strict=True):
        check_same_grid(first, other, f"{args.maps[0]} and {path}")
    data = sum((other.data for other in others), first.data) / len(args.maps)
    told = (args.low_pass, args.extend, args.soft_edge)
    low, extend, edge = (u if x is None else x for x, u in zip(told, mask_lengths(first.voxel_size), strict=True))
    smooth, threshold = low_pass(data, low, first.voxel_size), args.threshold
    if threshold is None:  # as automatic_mask
        ground, top = np.median(data), np.percentile(smooth, 99.9)
        if top <= ground:
            raise MaskError("nothing stands out of the map at that low pass; give a --threshold")
        threshold = float(ground + args.level * (top - ground))
    mask = soft_mask(smooth, threshold, extend, edge, first.voxel_size)
    with page(args.report, args, overwrite=args.overwrite) as show:
        show(mask_content, attrs.evolve(first, data=data), smooth, mask, threshold)
        write_map(args.out, attrs.evolve(first, data=mask, labels=("Soft mask.",)), overwrite=args.overwrite)
    print(f"{args.out}: {np.mean(mask == 1):.1%} of the box inside, {np.mean(mask > 0):.1%} with the edge")
    print(
        f"threshold {threshold:.4g} after a low pass to {low:.3g} Å"
        + (f"; look at {args.report}" if args.report else "")
    )
    for doubt in mask_doubts(mask):
        print(f"warning: {doubt}", file=sys.stderr)


def main() -> None:
    """Parse the command line and run."""
    run(parse())


if __name__ == "__main__":
    sys.exit(exit_code(main))
