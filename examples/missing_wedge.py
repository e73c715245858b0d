"""Fill the missing wedge of a tomogram or of an average of subtomograms.

    python examples/missing_wedge.py map.mrc --tilt-min -60 --tilt-max 60 --out DIR

What was measured is taken as free of noise and kept as it is. With the other half map, ``--half2``, its noise is
estimated where something was measured, and denoised as the wedge is filled. Protein must be positive (tomograms often
show it dark: invert them first). Tilts that are not those of the map, whose wedge has edges, are told: the result is
then not to be trusted (status 3).

Without a map it restores the example in examples/data: EMD-3488 without what tilts beyond ±60° would measure. What is
in the wedge then is the prior's word alone, and the result for looking and for building models only.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import _first  # noqa: F401
import attrs
import torch
from _command_line import (
    add_algorithm_flags,
    add_envelope_flags,
    add_flags,
    add_map_flags,
    checkpoint,
    chosen_prior,
    chosen_sampler,
    exit_code,
    in_tiles,
    progress_bar,
    provenance,
    run_script,
    with_plain_numbers,
)
from _maps import DEMO_MAP, Measured, PriorGrid, check_room, demo_map, fitting_prior, read_half_maps, read_one_map
from _results import result_names, write_half_map_results, write_results

from cryofm_ops import MissingWedge
from cryofm_sampling import (
    Guided,
    RestoredHalfMaps,
    RestoredMap,
    everyone,
    is_first,
    restore_half_maps,
    restore_missing_wedge,
    wedge_model,
)


def run(args: argparse.Namespace, folder: Path) -> RestoredMap:
    """The whole job, from the files that ``args`` name to those in ``folder``."""
    tilts = MissingWedge(args.tilt_min, args.tilt_max, args.tilt_axis)
    prior = chosen_prior(args)
    sampler = chosen_sampler(args, prior, noiseless=args.half2 is None)
    check_room(args, args.half1 or DEMO_MAP, prior, names(args), gradients=isinstance(sampler, Guided))
    given = measured(args, tilts)
    prior = fitting_prior(args.prior, prior, given)
    grid = PriorGrid.of(given.maps[0], prior, args.mask)
    tiled = in_tiles(prior, grid.transform.target, args.precision)

    first, *other = grid.tensors(given)
    restored: Callable[..., RestoredMap] = partial(restore_missing_wedge, tiled, first, tilts)
    if other:
        [second] = other
        noisy = wedge_model(grid.forward(first), grid.forward(second), tilts, band=grid.band)
        restored = partial(
            restore_half_maps,
            tiled,
            first,
            second,
            observe=noisy,
            voxel_size=grid.like.voxel_size,
            b_factor=args.b_factor,
        )
    with progress_bar() as progress:
        result = restored(
            generator=torch.Generator(grid.device).manual_seed(args.seed),
            grid=grid,
            sampler=sampler,
            scale=args.scale,
            samples=args.samples,
            where=grid.where,
            checkpoint=checkpoint(args),
            group=everyone(),
            callback=progress,
        )
    if is_first():
        record = provenance(args, *([] if args.half1 else [DEMO_MAP]))
        if isinstance(result, RestoredHalfMaps):
            write_half_map_results(folder, result, given, grid, record)
        else:
            write_results(folder, result, given, grid, record)
    return result


def measured(args: argparse.Namespace, tilts: MissingWedge) -> Measured:
    """What the command line names, or the example."""
    if args.half2 is not None:
        return read_half_maps(args.half1, args.half2, voxel_size=args.voxel_size, allow_masked=args.allow_masked)
    if args.half1 is not None:
        return read_one_map(args.half1, voxel_size=args.voxel_size)
    truth = demo_map()
    print(f"example: {DEMO_MAP.name} (human haemoglobin), tilts {args.tilt_min:g} to {args.tilt_max:g} degrees kept")
    return Measured((attrs.evolve(truth, data=tilts(torch.from_numpy(truth.data)).numpy()),), truth=truth)


def names(args: argparse.Namespace) -> list[str]:
    """Of the results."""
    return result_names(args.samples, halves=args.halves, linear=args.half2 is not None)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("half1", type=Path, nargs="?", metavar="map", help="map with the wedge (MRC/CCP4, .gz too); none: the example")
    add("--half2", type=Path, help="the other raw half map, on the same grid, where map is one of two halves")
    add("--tilt-min", type=float, default=-60.0, help="in degrees (default -60)")
    add("--tilt-max", type=float, default=60.0, help="in degrees (default 60)")
    add("--tilt-axis", choices=("x", "y"), default="y", help="the beam is along z (default y)")
    add_map_flags(parser, "map")
    add_envelope_flags(parser)
    add("--allow-masked", action="store_true", help="take masked half maps; noise is then underestimated")
    of = "network evaluations for each restored map, 2 or more; 8 with --half2; 1000 of the paper's"
    add_flags(parser, steps=20, of=of)
    add_algorithm_flags(parser, "Alg. 2, or Alg. 1 with --half2")
    args = parser.parse_args(with_plain_numbers(arguments))
    if args.half1 is None and args.half2 is not None:
        parser.error("give the first half map as well")
    if args.half2 is None and (args.b_factor is not None or args.keep_envelope or args.halves):
        parser.error("--b-factor, --keep-envelope and --halves go with --half2")
    if args.steps is not None and args.steps < 2:
        parser.error("--steps must be at least 2")
    return args


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    run_script(args, names(args), run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
