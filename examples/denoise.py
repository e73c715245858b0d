"""Restore a map from its two half maps with the bundled prior.

    python examples/denoise.py half1.mrc half2.mrc --out DIR
    python examples/denoise.py map.mrc --resolution 3.4 --out DIR       (without halves: weaker, and unchecked)
    python examples/denoise.py EMD-1234 --out DIR                       (an entry of the EMDB, as downloaded)

The noise is measured on the halves, by frequency and direction; so are their scale and their envelope, and the map
comes out sharp (``--keep-envelope`` leaves it as blurred as the data). The prior is the bundled one that the data need:
to 3 Å, to 2 Å where they reach beyond 2.9 Å, or of whole particles. What is finer than it knows is kept, as the best
linear filter makes it of the halves.

Without half maps it restores the example in examples/data: EMD-3488 with noise of the paper's level 4.3 Å.
The result is for looking at and for building models, never a target of refinement nor a claim of resolution.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from _first import check_line
from _flags import WEIGHTED, add_half_map_flags, length, parse_half_maps, positive


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_half_map_flags(parser, prior=None)
    local = "noise may differ from place to place, as where a molecule is flexible; slower"
    parser.add_argument("--local-noise", action="store_true", help=local)
    bands = "the same in each of so many bands of frequencies by itself, as where fine detail alone is lost (default 1)"
    parser.add_argument("--noise-bands", type=positive, default=1, help=bands)
    weighted = f"write {WEIGHTED} as well: every shell times √FSC of the restored halves"
    parser.add_argument("--fsc-weighted", action="store_true", help=weighted)
    one = "of a single map without halves, Å; the result is weaker, and cannot be checked"
    parser.add_argument("--resolution", type=length, help=one)
    return parse_half_maps(parser, arguments)


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
    progress_bar,
    run_script,
)
from _maps import (
    DEMO_CURVES,
    DEMO_MAP,
    PriorGrid,
    check_room,
    demo_half_maps,
    fitting_prior,
    read_half_maps,
    read_one_map,
    take_entry,
)
from _record import provenance
from _results import result_names, write_half_map_results, write_results

from cryofm_sampling import (
    everyone,
    is_first,
    local_model,
    restore_half_maps,
    restore_map,
)

DEMO_LEVEL = "4.3A"


def run(args: argparse.Namespace, folder: Path) -> Written | None:
    """The whole job, from the files that ``args`` name to those in ``folder``."""
    prior = chosen_prior(args)
    sampler = chosen_sampler(args, prior)
    data = args.half1 or DEMO_MAP
    room = partial(check_room, args, data, names=names(args), sampler=sampler, halves=args.resolution is None)
    room(prior)
    if args.half1 is None:
        given = demo_half_maps(DEMO_LEVEL, args.seed)
    elif args.half2 is None:
        given = read_one_map(args.half1, voxel_size=args.voxel_size)
    else:
        given = read_half_maps(args.half1, args.half2, voxel_size=args.voxel_size, allow_masked=args.allow_masked)
    prior = fitting_prior(args, prior, given, room)
    grid = PriorGrid.of(given.maps[0], prior, args.mask)
    tiled = in_tiles(prior, grid.transform.target, args.precision)

    how: dict[str, Any] = {
        "generator": torch.Generator(grid.device).manual_seed(args.seed),
        "voxel_size": grid.like.voxel_size,
        "grid": grid,
        "sampler": sampler,
        "scale": args.scale,
        "samples": args.samples,
        "where": grid.where,
        "checkpoint": checkpoint(args),
        "group": everyone(),
    }
    record = provenance(args, *([] if args.half1 else [DEMO_MAP, DEMO_CURVES]))
    if args.resolution is not None:
        with progress_bar() as progress:
            one = restore_map(
                tiled,
                *grid.tensors(given),
                resolution=args.resolution,
                b_factor=args.b_factor or 0.0,
                solvent_contrast=args.solvent_contrast or 0.0,
                callback=progress,
                **how,
            )
        if is_first():
            print("without halves neither noise nor scale can be checked: believe no more of it than of the map")
            return write_results(folder, one, given, grid, record)
        return None
    half1, half2 = grid.tensors(given)
    local = None
    if args.local_noise or args.noise_bands > 1:
        local = local_model(*map(grid.forward, (half1, half2)), band=grid.band, bands=args.noise_bands)
    with progress_bar() as progress:
        result = restore_half_maps(
            tiled,
            half1,
            half2,
            observe=local,  # None: the map plus noise that depends on direction, if it does
            b_factor=args.b_factor,
            solvent_contrast=args.solvent_contrast,
            callback=progress,
            **how,
        )
    if is_first():
        return write_half_map_results(folder, result, given, grid, record)
    return None


def names(args: argparse.Namespace) -> list[str]:
    """Of the results."""
    linear = args.resolution is None
    return result_names(args.samples, halves=args.halves, linear=linear, weighted=args.fsc_weighted and linear)


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    take_entry(args)
    run_script(args, names(args), run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
