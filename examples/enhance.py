"""Enhance a map with a conditional prior, one that was trained to make of a map what it should look like.

    python examples/enhance.py map.mrc --prior cryofm2-emhancer --out DIR
    python examples/enhance.py half1.mrc half2.mrc --prior cryofm2-emhancer --out DIR      (held to the data)

The prior is a published folder, cryofm2-emhancer or cryofm2-emready, or what train_prior.py made of a recipe with
conditions. Of one map it is the published recipe: the flow from noise with the map shown, in even Euler steps; nothing
but what was shown keeps the result to the map, and no noise is known. Of two half maps the filtered mean is shown, and
the halves' likelihood keeps the result to the data, as in denoise.py.

A map larger than the prior's box is evaluated in tiles inside every step. What is finer than the prior knows is lost.
The result is for looking at and for building models, never a target of refinement nor a claim of resolution.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _first import check_line
from _flags import add_enhancement_flags, with_plain_numbers

STEPS = 200  # published


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_enhancement_flags(parser, STEPS)
    return parser.parse_args(with_plain_numbers(arguments))


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

import _command_line as line
import torch
from _maps import PriorGrid, check_room, read_half_maps, read_one_map
from _record import provenance
from _results import FILES, write_results

from cryofm_sampling import Flow, RestoredMap, enhance_half_maps, enhance_map, everyone, is_first


def run(args: argparse.Namespace, folder: Path) -> line.Written | None:
    """The whole job, from the files that ``args`` name to those in ``folder``."""
    prior = line.chosen_conditional_prior(args)
    sampler = line.chosen_sampler(args, prior) if args.half2 else None
    flow = Flow(args.steps or STEPS, "euler", "even")  # of one map
    guided = prior.weight if args.weight is None else args.weight
    check_room(args, args.half1, prior, FILES, sampler or flow, halves=False, each=2 if guided else 1)
    if sampler is not None:
        enhanced: Callable[..., RestoredMap] = partial(enhance_half_maps, sampler=sampler, b_factor=args.b_factor)
        given = read_half_maps(args.half1, args.half2, voxel_size=args.voxel_size, allow_masked=args.allow_masked)
    else:
        enhanced = partial(enhance_map, steps=flow.steps)
        given = read_one_map(args.half1, voxel_size=args.voxel_size)
    grid = PriorGrid.of(given.maps[0], prior, args.mask)
    with line.progress_bar() as progress:
        result = enhanced(
            line.conditional_in_tiles(prior, grid.transform.target, args.precision),
            *grid.tensors(given),
            voxel_size=grid.like.voxel_size,
            generator=torch.Generator(grid.device).manual_seed(args.seed),
            tag=args.tag,
            weight=args.weight,
            grid=grid,
            checkpoint=line.checkpoint(args),
            group=everyone(),
            callback=progress,
        )
    if is_first():
        written = write_results(folder, result, given, grid, provenance(args))
        shown = "the filtered mean of the halves" if args.half2 else "the map alone, with no data to keep it"
        how = f"tag {result.settings['tag']}, guidance {result.settings['weight']:g}"
        print(f"shown {shown}; {how}: what it adds is the prior's word")
        return written
    return None


def main() -> None:
    """Parse the command line and run."""
    line.run_script(parse(), FILES, run)


if __name__ == "__main__":
    sys.exit(line.exit_code(main))
