"""Restore a map whose noise depends on direction, as preferred orientations and tilted data make it.

    python examples/anisotropic.py half1.mrc half2.mrc --out DIR

How the noise depends on direction is measured on the halves, in cones (``--half-angle-deg``). Where it is known that
only what tilts between two limits see has little noise, say so: ``--kept -45 45 --amplitude 7``. Better still,
``--poses particles.star`` tells how many of the particles measured each voxel of Fourier space, which no cone blurs.

Without half maps it restores the example in examples/data: EMD-3488 with noise of the paper's level 3.2 Å between
tilts of ±45°, and 50 times its power elsewhere (section 5.2). The result is for looking and for building models.
"""

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from _first import check_line
from _flags import above_zero, add_half_map_flags, add_symmetry_flag, check_tilts, half_angle, parse_half_maps, tilt


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_half_map_flags(parser)
    add = parser.add_argument
    cone = "of the cones, degrees, 5 to 45 (default 10); wider for small boxes"
    add("--half-angle-deg", "--cone", type=half_angle, default=10.0, help=cone)
    poses = "STAR file or .cs of the particles that the halves are made of: noise by how many measured each voxel"
    add("--poses", type=Path, help=poses)
    add_symmetry_flag(parser)
    add("--kept", type=tilt, nargs=2, metavar=("MIN", "MAX"), help="tilts in degrees between which noise is low")
    add("--amplitude", type=above_zero, help="of the noise elsewhere over that between them; goes with --kept")
    add("--tilt-axis", choices=("x", "y"), default="y", help="of --kept; the beam is along z (default y)")
    args = parse_half_maps(parser, arguments)
    if (args.kept is None) != (args.amplitude is None):
        parser.error("--kept and --amplitude go together")
    if args.kept is not None:
        check_tilts(parser, "--kept", *args.kept)
    if args.poses is not None and (args.kept is not None or args.half1 is None):
        parser.error("--poses goes with half maps, and without --kept")
    if args.sym != "C1" and args.poses is None:
        parser.error("--sym goes with --poses: it says of which orientations each particle is seen")
    return args


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

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
from _maps import (
    DEMO_CURVES,
    DEMO_MAP,
    Measured,
    PriorGrid,
    check_room,
    demo_half_maps,
    fitting_prior,
    read_half_maps,
    take_entry,
)
from _record import provenance
from _results import result_names, write_half_map_results
from torch import Tensor

from cryofm_io import read_poses
from cryofm_ops import coverage_from_poses, estimate_alpha, wedge_alpha
from cryofm_sampling import (
    coverage_model,
    directional_model,
    everyone,
    is_first,
    restore_half_maps,
)

COUNTED = 10_000  # particles, by which a coverage is known within some per cent
DEMO_LEVEL, DEMO_TILT, DEMO_AMPLITUDE = "3.2A", 45.0, math.sqrt(50)


def run(args: argparse.Namespace, folder: Path) -> Written | None:
    """The whole job, from the files that ``args`` name to those in ``folder``."""
    prior = chosen_prior(args)
    sampler = chosen_sampler(args, prior)
    data = args.half1 or DEMO_MAP
    room = partial(check_room, args, data, names=names(args), sampler=sampler, halves=True)
    room(prior)
    if args.half1 is None:
        given = demo(args.seed)
    else:
        given = read_half_maps(args.half1, args.half2, voxel_size=args.voxel_size, allow_masked=args.allow_masked)
    prior = fitting_prior(args, prior, given, room)
    grid = PriorGrid.of(given.maps[0], prior, args.mask)
    tiled = in_tiles(prior, grid.transform.target, args.precision)

    half1, half2 = grid.tensors(given)
    one, two = grid.forward(half1), grid.forward(half2)
    if args.poses is not None:
        model = coverage_model(one, two, counted(args.poses, args.sym), band=grid.band)
        least, most, none = model.record.values()
        print(f"frequencies were measured by {least:.3g} to {most:.3g} images, {none:.0%} of them by none")
        cones: dict[str, Any] = {"alpha": "by the poses", "not_measured": none, "particles": model.record}
    elif args.kept is not None:
        low, high = args.kept
        model = directional_model(one, two, wedge_alpha(low, high, args.amplitude, args.tilt_axis), band=grid.band)
        cones = {"alpha": "as given"}
    else:
        model = directional_model(one, two, half_angle_deg=args.half_angle_deg, band=grid.band)
        # A finer grid than the halves' own has shells without noise; directions are the same on either.
        measured = (one, two) if grid.band >= 1 else (half1, half2)
        found = estimate_alpha(*measured, half_angle_deg=args.half_angle_deg, allow_masked=True)  # that has been judged
        alpha, values = found.alpha_variance, found.alpha_variance.values
        least, most = values.min(), values.max()
        print(f"noise power between {least:.2g} and {most:.2g} of the mean over directions; cFAR {found.cfar:.2f}")
        table = {"directions_xyz": alpha.directions.tolist(), "alpha_variance": values.tolist()}
        cones = {"alpha": table, "cfar": found.cfar}
    with progress_bar() as progress:
        result = restore_half_maps(
            tiled,
            half1,
            half2,
            generator=torch.Generator(grid.device).manual_seed(args.seed),
            voxel_size=grid.like.voxel_size,
            grid=grid,
            observe=model,
            sampler=sampler,
            b_factor=args.b_factor,
            solvent_contrast=args.solvent_contrast,
            scale=args.scale,
            samples=args.samples,
            where=grid.where,
            checkpoint=checkpoint(args),
            group=everyone(),
            callback=progress,
        )
    if is_first():
        record = provenance(args, *([] if args.half1 else [DEMO_MAP, DEMO_CURVES])) | cones
        return write_half_map_results(folder, result, given, grid, record)
    return None


def counted(path: Path, group: str = "C1") -> Callable[[tuple[int, int, int]], Tensor]:
    """How many of the particles' images measured each Fourier voxel of a box; of very many, every n-th is counted."""
    poses = read_poses(path)
    every = math.ceil(len(poses) * len(point_group(group)) / COUNTED)
    print(f"{len(poses)} poses" + (f", of which one in {every} is counted" if every > 1 else ""))
    return partial(coverage_from_poses, of_all_copies(poses.rotations[::every], group))


def demo(seed: int) -> Measured:
    """The example of section 5.2."""
    stronger = f"noise (50 times its power beyond ±{DEMO_TILT:g}°)"
    return demo_half_maps(DEMO_LEVEL, seed, stronger, wedge_alpha(-DEMO_TILT, DEMO_TILT, DEMO_AMPLITUDE))


def names(args: argparse.Namespace) -> list[str]:
    """Of the results."""
    return result_names(args.samples, halves=args.halves, linear=True)


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    take_entry(args)
    run_script(args, names(args), run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
