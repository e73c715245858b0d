"""Fill the missing wedge of a tomogram or of an average of subtomograms.

    python examples/missing_wedge.py map.mrc --tilt-min -60 --tilt-max 60 --out DIR
    python examples/missing_wedge.py half1.mrc --half2 half2.mrc --poses particles.star --out DIR

What was measured is taken as free of noise and kept as it is. With the other half map, ``--half2``, its noise is
estimated where something was measured, and denoised as the wedge is filled. Protein must be positive (tomograms often
show it dark: invert them first). Tilts that are not those of the map, whose wedge has edges, are told: the result is
then not to be trusted (status 3).

An average of subtomograms has no plain wedge: the particles lay in their tomograms in many ways. ``--poses``, their
STAR file, tells how many of them measured each voxel of Fourier space, and so how much noise is left there. The limits
of the tilts are --tilt-min and --tilt-max, or those in the file's columns cryofmTiltMin and cryofmTiltMax; of RELION's
optimisation_set.star, in place of the particles', those of the tomograms.

Without a map it restores the example in examples/data: EMD-3488 without what tilts beyond ±60° would measure. What is
in the wedge then is the prior's word alone, and the result for looking and for building models only.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _first import check_line
from _flags import (
    add_algorithm_flags,
    add_envelope_flags,
    add_flags,
    add_map_flags,
    add_symmetry_flag,
    check_tilts,
    tilt,
    with_plain_numbers,
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("half1", type=Path, nargs="?", metavar="map", help="map with the wedge (MRC/CCP4, .gz too); none: the example")
    add("--half2", type=Path, help="the other raw half map, on the same grid, where map is one of two halves")
    add("--tilt-min", type=tilt, default=-60.0, help="in degrees (default -60)")
    add("--tilt-max", type=tilt, default=60.0, help="in degrees (default 60)")
    poses = "STAR file or optimisation set of the particles that two half maps average: what measured each voxel"
    add("--poses", type=Path, help=poses)
    add_symmetry_flag(parser)
    add("--tilt-axis", choices=("x", "y"), default="y", help="the beam is along z (default y)")
    add_map_flags(parser, "map")
    add_envelope_flags(parser)
    add("--allow-masked", action="store_true", help="take masked half maps; noise is then underestimated")
    of = "network evaluations for each restored map, 2 or more; 8 with --half2; 1000 of the paper's"
    add_flags(parser, steps=20, of=of)
    add_algorithm_flags(parser, "Alg. 2, or Alg. 1 with --half2")
    args = parser.parse_args(with_plain_numbers(arguments))
    check_tilts(parser, "--tilt-min and --tilt-max", args.tilt_min, args.tilt_max)
    if args.half1 is None and args.half2 is not None:
        parser.error("give the first half map as well")
    if args.half2 is None and args.poses is not None:
        parser.error("--poses goes with half maps: give the other one as --half2")
    if args.sym != "C1" and args.poses is None:
        parser.error("--sym goes with --poses: it says of which orientations each particle is seen")
    if args.half2 is None and (args.b_factor is not None or args.keep_envelope or args.halves):
        parser.error("--b-factor, --keep-envelope and --halves go with --half2")
    if args.steps is not None and args.steps < 2:
        parser.error("--steps must be at least 2")
    return args


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

import attrs
import torch
from _command_line import (
    Written,
    checkpoint,
    chosen_prior,
    chosen_sampler,
    exit_code,
    in_tiles,
    of_all_copies,
    point_group,
    progress_bar,
    run_script,
)
from _maps import DEMO_MAP, Measured, PriorGrid, check_room, demo_map, fitting_prior, read_half_maps, read_one_map
from _record import provenance
from _results import result_names, write_half_map_results, write_results
from torch import Tensor

from cryofm_io import read_subtomogram_poses
from cryofm_ops import MissingWedge, coverage_from_tilts
from cryofm_sampling import (
    FourierModel,
    RestoredHalfMaps,
    RestoredMap,
    coverage_model,
    everyone,
    is_first,
    restore_half_maps,
    restore_missing_wedge,
    wedge_model,
)


def run(args: argparse.Namespace, folder: Path) -> Written | None:
    """The whole job, from the files that ``args`` name to those in ``folder``."""
    tilts = MissingWedge(args.tilt_min, args.tilt_max, args.tilt_axis)
    counted = None if args.poses is None else coverage_of(args.poses, tilts, args.sym)
    prior = chosen_prior(args)
    sampler = chosen_sampler(args, prior, noiseless=args.half2 is None)
    data = args.half1 or DEMO_MAP
    room = partial(check_room, args, data, names=names(args), sampler=sampler, halves=args.half2 is not None)
    room(prior)
    given = measured(args, tilts)
    prior = fitting_prior(args, prior, given, room)
    grid = PriorGrid.of(given.maps[0], prior, args.mask)
    tiled = in_tiles(prior, grid.transform.target, args.precision)

    first, *other = grid.tensors(given)
    restored: Callable[..., RestoredMap] = partial(restore_missing_wedge, tiled, first, tilts)
    if other:
        [second] = other
        one, two = grid.forward(first), grid.forward(second)
        if counted is None:
            noisy = wedge_model(one, two, tilts, band=grid.band)
        else:
            noisy = coverage_model(one, two, counted, band=grid.band)
            least, most, none = noisy.record.values()
            print(f"every direction was measured by {least:g} to {most:g} of them; {none:.1%} of Fourier space by none")
        restored = partial(
            restore_half_maps,
            tiled,
            first,
            second,
            observe=noisy,
            voxel_size=grid.like.voxel_size,
            b_factor=args.b_factor,
            solvent_contrast=args.solvent_contrast,
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
        if counted is not None and isinstance(result, RestoredHalfMaps) and isinstance(result.model, FourierModel):
            record |= {"particles": result.model.record}
        if isinstance(result, RestoredHalfMaps):
            return write_half_map_results(folder, result, given, grid, record)
        return write_results(folder, result, given, grid, record)
    return None


def measured(args: argparse.Namespace, tilts: MissingWedge) -> Measured:
    """What the command line names, or the example."""
    if args.half2 is not None:
        return read_half_maps(args.half1, args.half2, voxel_size=args.voxel_size, allow_masked=args.allow_masked)
    if args.half1 is not None:
        return read_one_map(args.half1, voxel_size=args.voxel_size)
    truth = demo_map()
    print(f"example: {DEMO_MAP.name} (human haemoglobin), tilts {args.tilt_min:g} to {args.tilt_max:g} degrees kept")
    return Measured((attrs.evolve(truth, data=tilts(torch.from_numpy(truth.data)).numpy()),), truth=truth)


def coverage_of(path: Path, tilts: MissingWedge, group: str) -> Callable[[tuple[int, int, int]], Tensor]:
    """How many particles measured each voxel of a box; at the tilts told, where the file has none."""
    poses = read_subtomogram_poses(path)
    print(f"{len(poses)} particles in {path.name}", end=": ")
    if poses.tilts_deg is None:
        print(f"all tilted from {tilts.tilt_min:g} to {tilts.tilt_max:g} degrees, as told")
        each: MissingWedge | list[MissingWedge] = tilts
    else:
        low, high = poses.tilts_deg[:, 0].min(), poses.tilts_deg[:, 1].max()
        print(f"tilted as the file tells, from {low:.0f} to {high:.0f} degrees at most")
        each = [MissingWedge(low, high, tilts.tilt_axis) for low, high in poses.tilts_deg] * len(point_group(group))
    return partial(coverage_from_tilts, of_all_copies(poses.rotations, group), each)


def names(args: argparse.Namespace) -> list[str]:
    """Of the results."""
    return result_names(args.samples, halves=args.halves, linear=args.half2 is not None)


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    run_script(args, names(args), run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
