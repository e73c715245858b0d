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
from pathlib import Path
from typing import cast

import _first  # noqa: F401
import attrs
import numpy as np
import torch
from _command_line import (
    above_zero,
    add_algorithm_flags,
    add_checkpoint_flag,
    add_flags,
    checkpoint,
    chosen_prior,
    chosen_sampler,
    exit_code,
    in_tiles,
    natural,
    progress_bar,
    provenance,
    run_script,
    with_plain_numbers,
)
from _maps import Measured, PriorGrid, check_room, read_half_maps, read_one_map
from _results import FILES, write_results
from torch import Tensor

from cryofm_io import normalise_clean
from cryofm_model import ConditionalPrior, WeightsError
from cryofm_ops import Envelope, fourier_filter
from cryofm_sampling import (
    Checkpoint,
    ConditionalVelocityField,
    Conditioned,
    Draw,
    Flow,
    FourierModel,
    Guided,
    Progress,
    Rescaled,
    RestoredMap,
    Sampler,
    ScaledNormalization,
    ScaleFit,
    directional_model,
    everyone,
    is_first,
    restore,
)

STEPS = 200  # published
COARSE, ALIKE = 10.0, 0.7  # Å, to which every map is good, and its FSC with what is made of it


def run(args: argparse.Namespace, folder: Path) -> RestoredMap:
    """The whole job, from the files that ``args`` name to those in ``folder``."""
    prior = chosen_prior(args)
    if not isinstance(prior, ConditionalPrior):
        raise WeightsError(
            f"the prior {args.prior} cannot be shown a map; give --prior the folder cryofm2-emhancer or "
            "cryofm2-emready, or what train_prior.py made of a recipe with conditions"
        )
    sampler = chosen_sampler(args, prior) if args.half2 else None
    check_room(args, args.half1, prior, FILES, gradients=isinstance(sampler, Guided))
    if args.half2:
        given = read_half_maps(args.half1, args.half2, voxel_size=args.voxel_size, allow_masked=args.allow_masked)
    else:
        given = read_one_map(args.half1, voxel_size=args.voxel_size)
    grid = PriorGrid.of(given.maps[0], prior, args.mask)
    tiled = in_tiles(prior, grid.transform.target, args.precision)
    maps = [grid.forward(half) for half in grid.tensors(given)]
    mean = sum(maps[1:], maps[0]) / len(maps)
    model = directional_model(maps[0], maps[1], band=grid.band) if args.half2 else None
    if model is not None:
        model = model.blurred(Envelope(args.b_factor, grid.voxel_size))
    shown = mean if model is None else filtered(mean, model)
    density, scale = normalise_clean(shown.cpu().numpy(), clip=False)
    units = ScaledNormalization(prior.normalization, scale.scale)
    z = (torch.from_numpy(density).to(mean) - prior.normalization.mean) / prior.normalization.std
    conditioned = Conditioned(cast(ConditionalVelocityField, tiled), z, tag=args.tag, weight=args.weight)

    with progress_bar() as progress:
        if model is None or sampler is None:
            draw = enhanced(conditioned, units, mean, args, progress)
        else:
            draw = held_to(model, mean, conditioned, units, sampler, args, progress)
    settings = {**draw.settings, "tag": prior.tag if args.tag is None else args.tag, "weight": conditioned.weight}
    result = RestoredMap.of(attrs.evolve(draw, settings=settings), shown, ScaleFit(units, (), 0), grid=grid)
    doubts = (*(() if model is None else model.doubts), *unlike(result, given, grid))
    result = attrs.evolve(result, doubts_of_data=doubts)
    result.warn_of_doubts()
    if is_first():
        write_results(folder, result, given, grid, provenance(args))
        print(
            f"shown {'the filtered mean of the halves' if args.half2 else 'the map alone, with no data to keep it'}; "
            f"tag {settings['tag']}, guidance {conditioned.weight:g}: what it adds is the prior's word"
        )
    return result


def filtered(mean: Tensor, model: FourierModel) -> Tensor:
    """What the best linear filter makes of the mean of two halves."""
    linear = fourier_filter(mean, model.gain.to(mean))
    return linear + (mean.mean() - linear.mean())


def enhanced(
    conditioned: Conditioned,
    units: ScaledNormalization,
    mean: Tensor,
    args: argparse.Namespace,
    progress: Progress,
) -> Draw:
    """The published recipe: one sample of the flow, in data units."""
    flow, state = Flow(args.steps or STEPS, "euler", "even"), shared(args)
    numbers = torch.Generator(mean.device).manual_seed(args.seed)
    draw = flow(
        conditioned,
        shape=tuple(mean.shape),
        generator=numbers,
        callback=lambda step, total, _: progress("enhancing", step, total),
        checkpoint=None if state is None else state.part(0),
    )
    settings = {**draw.settings, "algorithm": "Flow", "estimate": "one sample, with the map shown"}
    return attrs.evolve(draw, x=draw.x * units.std + units.mean, settings=settings)


def held_to(
    model: FourierModel,
    mean: Tensor,
    conditioned: Conditioned,
    units: ScaledNormalization,
    sampler: Sampler,
    args: argparse.Namespace,
    progress: Progress,
) -> Draw:
    """The posterior with the volume shown and the likelihood of both halves."""
    state = shared(args)
    return restore(
        Rescaled(conditioned, units),
        model.observe(mean, 1 / 2),
        shape=tuple(mean.shape),
        generator=torch.Generator(mean.device).manual_seed(args.seed),
        sampler=sampler,
        samples=1,
        checkpoint=None if state is None else state.part(0),
        callback=lambda step, total, _: progress("enhancing", step, total),
    )


def shared(args: argparse.Namespace) -> Checkpoint | None:
    """Where the state is kept; ranks that share the tiles share the file."""
    state = checkpoint(args)
    return None if state is None else attrs.evolve(state, group=everyone())


def unlike(result: RestoredMap, given: Measured, grid: PriorGrid) -> tuple[str, ...]:
    """A doubt where the result is not the map at resolutions where every map is good."""
    data = [map.data for map in given.maps]
    curve = grid.compare(sum(data[1:], data[0]) / len(data), result.map.cpu().numpy())
    coarse = (curve.frequency > 0) & (curve.frequency < 1 / COARSE)
    alike = float(np.mean(curve.correlation[coarse])) if coarse.any() else 1.0
    if alike >= ALIKE:
        return ()
    return (f"down to {COARSE:g} Å, where every map is good, its FSC with the input is {alike:.2f}",)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("half1", metavar="map", type=Path, help="map, or first raw half map (MRC/CCP4, .gz too)")
    add("half2", type=Path, nargs="?", help="second raw half map, on the same grid")
    add("--tag", type=natural, help="kind of enhancement, of a network that knows several (default the prior's own)")
    more = "w of guidance, v = (1 + w) v(x | map) - w v(x); above 0 it takes two evaluations (default the prior's own)"
    add("--weight", type=guidance, help=more)
    add("--mask", type=Path, help="soft mask, 0..1, on the grid of the map: applied to the FSC and the result")
    add("--voxel-size", type=above_zero, help="of the map and the mask, Å, where the headers are wrong")
    add("--b-factor", type=float, default=0.0, help="of the half maps' envelope, Å²; denoise.py finds it (default 0)")
    add("--allow-masked", action="store_true", help="take masked or filtered half maps")
    add_checkpoint_flag(parser, "the run")
    add_flags(parser, steps=None, of=f"of one map {STEPS} unless told, of half maps those of denoise.py")
    add_algorithm_flags(parser, "Alg. 1, of half maps")
    parser.set_defaults(samples=0)
    return parser.parse_args(with_plain_numbers(arguments))


def guidance(text: str) -> float:
    """A finite number from 0 on, or what argparse makes a message of."""
    return 0.0 if float(text) == 0 else above_zero(text)


def main() -> None:
    """Parse the command line and run."""
    run_script(parse(), FILES, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
