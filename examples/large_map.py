"""Restore a map or a tomogram that is larger than memory, block by block.

    python examples/large_map.py half1.mrc half2.mrc --out DIR --state DIR
    python examples/large_map.py half1.mrc half2.mrc --tilt-min -60 --tilt-max 60 --out DIR --state DIR
    python examples/large_map.py tomogram.mrc --tilt-min -60 --tilt-max 60 --out DIR --state DIR

Files are read and written as memory maps, in blocks that overlap; each is a problem of its own. Noise, envelope and
scale are found on the block with most density and hold for all of them. Blocks where the halves agree nowhere cost no
network evaluation. Without halves what was measured is kept as it is. What is checked is that one block; the others
are not. Protein must be positive.

Finished blocks are kept in ``--state``: after a kill the same line goes on from there, to the same bits. Under torchrun
processes share the blocks, and need to see the same files.
"""

import argparse
import contextlib
import hashlib
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _first import check_line
from _flags import above_zero, add_flags, b_factor, check_tilts, length, named_folder, side, tilt, with_plain_numbers

BLOCK = 160  # voxels of the prior's grid: one tile
SHARED = 32  # of a block's voxels at each side, which are its neighbour's too (`Blocks`)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("half1", type=Path, metavar="map", help="the map, or the first of two raw half maps (MRC, not compressed)")
    add("half2", type=Path, nargs="?", help="the other half map, on the same grid")
    add("--state", type=named_folder, required=True, help="folder where finished blocks are kept; removed at the end")
    add("--tilt-min", type=tilt, help="degrees, where there is a missing wedge")
    add("--tilt-max", type=tilt, help="degrees")
    add("--tilt-axis", choices=("x", "y"), default="y", help="the beam is along z (default y)")
    add("--voxel-size", type=length, help="of the maps, Å, where the headers are wrong")
    add("--scale", type=above_zero, help="what the density is multiplied by to be the prior's; found if not given")
    add("--b-factor", type=b_factor, help="of the halves' envelope, Å²; found if not given")
    add("--allow-masked", action="store_true", help="take masked half maps; noise is then underestimated")
    add("--block", type=side, default=BLOCK, help=f"side of a block, voxels of the prior's grid (default {BLOCK})")
    add_flags(parser, steps=8, of="network evaluations for each block; 20 without halves")
    parser.set_defaults(steps=None)
    args = parser.parse_args(with_plain_numbers(arguments))
    if (args.tilt_min is None) != (args.tilt_max is None):
        parser.error("give both --tilt-min and --tilt-max, or neither")
    if args.tilt_min is not None:
        check_tilts(parser, "--tilt-min and --tilt-max", args.tilt_min, args.tilt_max)
    if args.half2 is None and (args.tilt_min is None or args.b_factor is not None):
        parser.error("give both half maps, or one map and its tilts; --b-factor goes with halves")
    if args.steps is not None and args.steps < 2:
        parser.error("--steps must be at least 2")
    return args


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

import attrs
import numpy as np
import torch
import torch.distributed as dist
from _command_line import (
    by,
    calibrated_prior,
    check_disk,
    exit_code,
    folder_of,
    in_tiles,
    progress_bar,
    tell_plan,
    together,
)
from _maps import PriorGrid, evaluations, trials
from _record import cost, named_files, provenance, seal, write_run
from _results import record_of
from _streams import bar
from numpy.typing import NDArray
from torch import Tensor

from cryofm_io import (
    VIEWING_NOTE,
    CryoFMError,
    DensityMap,
    GridTransform,
    InputFileError,
    MapOnDisk,
    check_contrast,
    check_half_maps,
    check_same_grid,
    held_folder,
    map_on_disk,
    output_folder,
    write_report,
    write_sections,
)
from cryofm_model import CalibratedPrior
from cryofm_model.weights.choice import COARSE
from cryofm_ops import MissingWedge
from cryofm_sampling import (
    Alike,
    Blocks,
    CheckpointError,
    Common,
    KeptBlocks,
    PlugAndPlay,
    Tiled,
    WedgeAlike,
    check_memory,
    everyone,
    is_first,
    restore_half_maps,
    restore_missing_wedge,
    wedge_model,
)

FILES = ["restored.mrc", "report.html", "open.cxc", "run.json"]
SPARSE = 4  # every so many voxels along each axis the median sees


class Mapped(NamedTuple):
    """A map that stays on disk."""

    path: Path
    file: MapOnDisk
    median: float


def mapped(path: Path, voxel_size: float | None) -> Mapped:
    """An uncompressed MRC file; of its values a few are looked at."""
    if path.suffix.lower() in (".gz", ".bz2"):
        raise InputFileError(f"{path}: compressed, and so read as a whole; decompress it first")
    found = map_on_disk(path, voxel_size=voxel_size)
    few = np.asarray(found.data[::SPARSE, ::SPARSE, ::SPARSE], np.float32)
    if not np.isfinite(few).all() or few.min() == few.max():
        raise InputFileError(f"{path}: values that are not finite, or all the same")
    return Mapped(path, found, float(np.median(few)))


@attrs.frozen(eq=False)
class Job:
    """What is known before anything is restored."""

    args: argparse.Namespace
    maps: list[Mapped]
    blocks: Blocks
    prior: CalibratedPrior
    grid: PriorGrid
    tilts: MissingWedge | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Job":
        """From the command line."""
        maps = [mapped(path, args.voxel_size) for path in (args.half1, args.half2) if path is not None]
        for other in maps[1:]:
            check_same_grid(maps[0].file, other.file, what="the half maps")
        prior, size = calibrated_prior(args), maps[0].file.voxel_size
        if size > COARSE:
            raise CryoFMError(f"{args.prior} knows voxels of up to {COARSE:g} Å, these have {size:.3g} Å")
        side = int(args.block * max(prior.voxel_size / size, 1))
        if side <= 2 * SHARED:
            raise CryoFMError(
                f"--block {args.block} is {side} voxels of the map, of which {SHARED} at each side are its neighbour's "
                f"too; give more, such as {BLOCK}; a map smaller than that is one block"
            )
        blocks = Blocks(maps[0].file.shape, side)
        like = DensityMap(np.zeros(blocks.block, np.float32), size)
        transform = GridTransform.of(like, prior.voxel_size)
        grid = PriorGrid(like, None, transform, prior.signal_power.device)
        tilts = None if args.tilt_min is None else MissingWedge(args.tilt_min, args.tilt_max, args.tilt_axis)
        print(f"map {by(blocks.shape)} voxels of {size:.4g} Å, {len(blocks)} blocks of {by(blocks.block)}")
        return cls(args, maps, blocks, prior, grid, tilts)

    def read(self, number: int) -> list[Tensor]:
        """A block of each map, less the map's median."""
        return self.less_median(self.blocks.read([one.file.data for one in self.maps], number))

    def less_median(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Parts of each map less the map's median; `InputFileError` where a value is none."""
        for part, one in zip(parts, self.maps, strict=True):
            if not part.isfinite().all():
                raise InputFileError(f"{one.path}: values that are not finite; repair the map or choose another")
        return [(part - one.median).to(self.grid.device) for part, one in zip(parts, self.maps, strict=True)]

    def densest(self) -> int:
        """The block with most density: where the halves' product, or a map's variance, is largest."""

        def power(number: int) -> float:
            first, *_, last = (part - part.mean() for part in self.read(number) * 2)
            return float((first * last).sum())

        numbers: Iterable[int] = bar(range(len(self.blocks)), desc="looking", unit=" blocks")
        return max(numbers, key=power)

    @property
    def tiled(self) -> Tiled:
        """The prior, evaluated by one process alone."""
        return attrs.evolve(in_tiles(self.prior, self.grid.transform.target, self.args.precision), group=None)

    @property
    def how(self) -> dict[str, Any]:
        """What all restorations are told."""
        return {
            "generator": torch.Generator(self.grid.device).manual_seed(self.args.seed),
            "grid": self.grid,
            "sampler": PlugAndPlay(iterations=self.args.steps or (20 if len(self.maps) == 1 else 8)),
        }

    def model(self, half1: Tensor, half2: Tensor) -> dict[str, Any]:
        """Of the noise of halves with a wedge."""
        if self.tilts is None:
            return {}
        one, two = map(self.grid.forward, (half1, half2))
        return {"observe": wedge_model(one, two, self.tilts, band=self.grid.band)}

    def found(self) -> dict[str, Any]:
        """Restore the densest block, for what all have in common."""
        number = self.densest()
        parts = self.read(number)
        dense = [attrs.evolve(self.grid.like, data=part.numpy(force=True)) for part in parts]
        with progress_bar() as progress:
            if self.tilts is not None and len(parts) == 1:
                check_contrast(dense[0].data)
                one = restore_missing_wedge(
                    self.tiled,
                    parts[0],
                    self.tilts,
                    scale=self.args.scale,
                    group=everyone(),
                    callback=progress,
                    **self.how,
                )
                return {"block": number, "offset": one.offset, "scale": one.scale.normalization.scale}
            check_half_maps(*dense, allow_masked=self.args.allow_masked)
            result = restore_half_maps(
                self.tiled,
                parts[0],
                parts[1],
                voxel_size=self.grid.like.voxel_size,
                b_factor=self.args.b_factor,
                scale=self.args.scale,
                group=everyone(),
                callback=progress,
                **self.model(*parts),
                **self.how,
            )
        return {
            "block": number,
            "offset": result.offset,
            "common": attrs.asdict(Common.of(result)),
            "checked": record_of(result),
        }

    def alike(self, found: dict[str, Any]) -> Callable[..., Tensor]:
        """Restores any block as the densest."""
        first = self.read(found["block"])
        if "scale" in found:
            assert self.tilts is not None
            return WedgeAlike(self.tiled, first[0], self.tilts, found["scale"], found["offset"], **self.how)
        [model] = self.model(*first).values() or [None]
        size = self.grid.like.voxel_size
        common = Common(**found["common"])
        return Alike.of(self.tiled, first[0], first[1], common, voxel_size=size, model=model, **self.how)

    def solved(self, restore: Callable[..., Tensor], state: Path) -> KeptBlocks:
        """All blocks, kept in files until the map is written."""
        finished = KeptBlocks.in_folder(state, self.blocks, group=everyone())

        def less_median(*parts: Tensor) -> Tensor:
            return restore(*self.less_median(parts))

        with bar(desc="restoring", unit=" blocks", total=len(self.blocks)) as shown:
            self.blocks.solve(
                less_median,
                [one.file.data for one in self.maps],
                finished.kept,
                finished.done,
                group=everyone(),
                callback=lambda number: shown.update(number + 1 - shown.n),
            )
        return finished

    def write(self, path: Path, kept: NDArray[np.float32], offset: float) -> None:
        """The blended map in its solvent, in the place of the first one."""
        solvent = np.float32(sum(one.median for one in self.maps) / len(self.maps) + offset)
        slabs = (slab + solvent for _, slab in self.blocks.blended(kept))
        write_sections(path, slabs, self.maps[0].file, labels=[VIEWING_NOTE])


def wait() -> None:
    """For all processes."""
    if (group := everyone()) is not None:
        dist.barrier(group)


def agreed(value: Any) -> Any:
    """What the first process has, for all."""
    content = [value]
    if (group := everyone()) is not None:
        dist.broadcast_object_list(content, src=0, group=group)
    return content[0]


def refuse_another(path: Path, record: dict[str, Any], *, keep: bool) -> None:
    """A state of another run, whose blocks are not this one's; where there is none it becomes this one's, if kept."""
    if path.exists():
        before = kept_record(path)
        if other := sorted(name for name in record if before.get(name) != record[name]):
            raise CheckpointError(f"{path.parent} belongs to another run ({', '.join(other)}); remove it to start anew")
    elif keep:
        keep_record(path, record)


def keep_record(path: Path, record: dict[str, Any]) -> None:
    """Write it with its sum."""
    plain = json.loads(json.dumps(record))
    write_run(path, {"record": plain, "sha256": record_sum(plain)})


def kept_record(path: Path) -> dict[str, Any]:
    """What `keep_record` wrote; `CheckpointError` if it was damaged since."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record = content["record"]
        if content["sha256"] == record_sum(record):
            return dict(record)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise CheckpointError(f"{path} was damaged after it was written; remove {path.parent} to start anew")


def record_sum(record: object) -> str:
    """Of what it says."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def identity(args: argparse.Namespace) -> dict[str, Any]:
    """Settings and inputs on which the blocks depend."""
    record = provenance(args)
    free = ("out", "overwrite", "state", "device", "dry_run")
    settings = {k: v for k, v in record["settings"].items() if k not in free}
    return {"settings": settings, "inputs_sha256": record["inputs_sha256"]}


def run(args: argparse.Namespace, folder: Path, state: Path) -> KeptBlocks:
    """The whole job, from the files that ``args`` name to those in ``folder``."""
    if is_first():
        refuse_another(state / "identity.json", identity(args), keep=not args.dry_run)
    wait()
    job = Job.of(args)
    check_room(job, state)
    path = state / "found.json"
    found = agreed(kept_record(path) if path.exists() else None)
    if found is None:
        found = agreed(job.found())
        if is_first():
            keep_record(path, found)
    finished = job.solved(job.alike(found), state)
    if is_first():
        job.write(folder / "restored.mrc", finished.kept, found["offset"])
        checked = [[place.start, place.stop] for place in job.blocks[found["block"]]]
        record = {"blocks": len(job.blocks), "checked_voxels": checked, "note": VIEWING_NOTE, "took": cost()}
        write_run(folder / "run.json", provenance(args) | found | record)
        write_report(folder, measured=[one.file for one in job.maps])
        print(f"scale {found.get('scale') or found['common']['scale']:.3g}, found on block {found['block']}")
        for doubt in found.get("checked", {}).get("doubts", []):
            warnings.warn(f"{doubt}: do not trust this map", stacklevel=1)
    return finished


def check_room(job: Job, state: Path) -> None:
    """Refuse a job for which there is too little memory or disk; say what it needs."""
    block = job.blocks.block
    need = check_memory(job.grid.transform.target, job.tiled, device=job.grid.device, own=block)
    result, kept = 4 * math.prod(job.blocks.shape), 4 * math.prod(block) * len(job.blocks)
    if (state / "blocks").exists():  # their room is taken already
        kept = 0
    check_disk(state, 0, kept, kept)
    together = kept if folder_of(state).stat().st_dev == folder_of(job.args.out).stat().st_dev else 0
    disk = check_disk(job.args.out, result, result, together)
    target, sampler, halves = job.grid.transform.target, job.how["sampler"], len(job.maps) == 2
    words, more = trials(job.args, job.prior, target, halves=halves)
    first = evaluations(sampler, halves=halves, samples=0)  # of the block where these are found
    count = first + sampler.iterations * len(job.blocks)
    told = f"{count} evaluations of a block at most{words}, less where much is solvent"
    tell_plan(job.args, need, disk, job.tiled, target, count + more, told)


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    with together(args.device):
        results = output_folder(args.out, FILES, overwrite=args.overwrite, read=named_files(args))
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(results) if is_first() else args.out
            if is_first() and not args.dry_run:
                args.state.mkdir(parents=True, exist_ok=True)
                stack.enter_context(held_folder(args.state))
            wait()
            finished = run(args, folder, args.state)
            if is_first():
                seal(folder)
        if is_first():
            finished.remove()
            for name in ("found.json", "identity.json"):
                (args.state / name).unlink()
            with contextlib.suppress(OSError):
                args.state.rmdir()
            print(f"results in {args.out}: {', '.join(FILES)}")


if __name__ == "__main__":
    sys.exit(exit_code(main, "finished blocks are in --state; the same line goes on from there"))
