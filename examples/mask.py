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
from _command_line import exit_code
from _pages import page

import cryofm_io as io
from cryofm_io.report import mask_content


def main() -> None:
    """Read, make the mask, write."""
    args = parse()
    io.refuse_to_lose(args.maps, [args.out] + ([args.report] if args.report else []))
    first, *others = (io.read_map(path, voxel_size=args.voxel_size) for path in args.maps)
    for path, other in zip(args.maps[1:], others, strict=True):
        io.check_same_grid(first, other, f"{args.maps[0]} and {path}")
    mean = attrs.evolve(first, data=sum((other.data for other in others), first.data) / len(args.maps))
    said = {"threshold": args.threshold, "level": args.level, "resolution": args.low_pass}
    said |= {"dilate": args.extend, "soft_edge": args.soft_edge}
    made = io.mask_of_map(mean.data, mean.voxel_size, **said)
    with page(args.report, args, overwrite=args.overwrite) as show:
        show(mask_content, mean, made)
        io.write_map(args.out, attrs.evolve(mean, data=made.mask, labels=("Soft mask.",)), overwrite=args.overwrite)
    print(f"{args.out}: {(made.mask == 1).mean():.1%} of the box inside, {(made.mask > 0).mean():.1%} with the edge")
    look = f"; look at {args.report}" if args.report else ""
    print(f"threshold {made.threshold:.4g} after a low pass to {made.low_pass:.3g} Å{look}")
    for doubt in io.mask_doubts(made.mask):
        print(f"warning: {doubt}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(exit_code(main))
