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
import json
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import _first  # noqa: F401
import attrs
import mrcfile
import numpy as np
import torch
import torch.distributed as dist
from _command_line import (
    RESULT,
    above_zero,
    add_flags,
    by,
    calibrated_prior,
    exit_code,
    in_tiles,
    named_files,
    named_folder,
    positive,
    progress_bar,
    provenance,
    seal,
    silent_unless_first,
    with_plain_numbers,
    write_run,
)
from _maps import COARSE, PriorGrid
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
    check_contrast,
    check_half_maps,
    held_folder,
    output_folder,
)
from cryofm_model import CalibratedPrior
from cryofm_ops import MissingWedge
from cryofm_sampling import (
    Alike,
    Blocks,
    CheckpointError,
    Common,
    PlugAndPlay,
    Tiled,
    WedgeAlike,
    check_memory,
    everyone,
    is_first,
    joined,
    restore_half_maps,
    restore_missing_wedge,
    wedge_model,
)

FILES = ["restored.mrc", "run.json"]
BLOCK = 160  # voxels of the prior's grid: one tile
SPARSE = 4  # every so many voxels along each axis the median sees


class Mapped(NamedTuple):
    """A map that stays on disk."""

    data: NDArray[Any]
    voxel_size: float
    header: Any
    median: float


def mapped(path: Path, voxel_size: float | None) -> Mapped:
    """An uncompressed MRC file; of its values a few are looked at."""
    try:
        file = mrcfile.mmap(path, mode="r")
    except (ValueError, OSError) as error:
        raise InputFileError(f"{path}: not an uncompressed MRC file ({error})") from None
    data: Any = file.data
    header: Any = file.header
    axes = tuple(int(header[name]) for name in ("mapc", "mapr", "maps"))
    if data.ndim != 3 or axes != (1, 2, 3) or data.dtype.kind == "c":
        raise InputFileError(f"{path}: expected a volume stored as (z, y, x), found {data.shape} in order {axes}")
    size = float(file.voxel_size.x) if voxel_size is None else voxel_size
    if not 0 < size < np.inf:
        raise InputFileError(f"{path}: the header tells no voxel size; give --voxel-size")
    few = np.asarray(data[::SPARSE, ::SPARSE, ::SPARSE], np.float32)
    if not np.isfinite(few).all() or few.min() == few.max():
        raise InputFileError(f"{path}: values that are not finite, or all the same")
    return Mapped(data, size, header, float(np.median(few)))


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
        if len({(*one.data.shape, round(one.voxel_size, 4)) for one in maps}) > 1:
            raise InputFileError(f"the halves differ in shape or voxel size: {[one.data.shape for one in maps]}")
        prior, size = calibrated_prior(args), maps[0].voxel_size
        if size > COARSE:
            raise CryoFMError(f"{args.prior} knows voxels of up to {COARSE:g} Å, these have {size:.3g} Å")
        blocks = Blocks(maps[0].data.shape, int(args.block * max(prior.voxel_size / size, 1)))
        like = DensityMap(np.zeros(blocks.block, np.float32), size)
        transform = GridTransform.of(like, prior.voxel_size)
        grid = PriorGrid(like, None, transform, prior.signal_power.device)
        tilts = None if args.tilt_min is None else MissingWedge(args.tilt_min, args.tilt_max, args.tilt_axis)
        print(f"map {by(blocks.shape)} voxels of {size:.4g} Å, {len(blocks)} blocks of {by(blocks.block)}")
        return cls(args, maps, blocks, prior, grid, tilts)

    def read(self, number: int) -> list[Tensor]:
        """A block of each map, less the map's median."""
        parts = self.blocks.read([one.data for one in self.maps], number)
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

    def solved(self, restore: Callable[..., Tensor], state: Path) -> NDArray[np.float32]:
        """All blocks, kept in a file until the map is written."""

        def shared(name: str, kind: type, shape: tuple[int, ...]) -> NDArray[Any]:
            path = state / name
            if is_first() and not path.exists():
                np.lib.format.open_memmap(path, "w+", kind, shape)  # sparse, and so no larger than what is in it
            wait()
            return np.lib.format.open_memmap(path, "r+")

        n = len(self.blocks)
        kept = shared("blocks.npy", np.float32, (n, *self.blocks.block))
        done = shared("done.npy", np.bool_, (n,))

        def less_median(*parts: Tensor) -> Tensor:
            given = zip(parts, self.maps, strict=True)
            return restore(*((part - one.median).to(self.grid.device) for part, one in given))

        with bar(desc="restoring", unit=" blocks", total=int(n)) as shown:
            self.blocks.solve(
                less_median,
                [one.data for one in self.maps],
                kept,
                done,
                group=everyone(),
                callback=lambda number: shown.update(number + 1 - shown.n),
            )
        return kept

    def write(self, path: Path, kept: NDArray[np.float32], offset: float) -> None:
        """The blended map in its solvent, in the place of the first one, and the statistics of its header."""
        like, median = self.maps[0].header, sum(one.median for one in self.maps) / len(self.maps)
        with mrcfile.new_mmap(path, self.blocks.shape, mrc_mode=2, overwrite=True) as file:
            header: Any = file.header
            for name in ("cella", "cellb", "origin", "nxstart", "nystart", "nzstart", "mx", "my", "mz", "ispg"):
                header[name] = like[name]
            written: Any = file.data
            file.voxel_size = self.grid.like.voxel_size
            file.add_label(VIEWING_NOTE)
            low, high, total, squares = np.inf, -np.inf, 0.0, 0.0
            for z, slab in self.blocks.blended(kept):
                slab += np.float32(median + offset)
                written[z] = slab
                low, high = min(low, float(slab.min())), max(high, float(slab.max()))
                total += float(slab.sum(dtype=np.float64))
                squares += float(np.square(slab, dtype=np.float64).sum())
            mean = total / written.size
            header["dmin"], header["dmax"], header["dmean"] = low, high, mean
            header["rms"] = max(squares / written.size - mean**2, 0.0) ** 0.5


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


def refuse_another(path: Path, record: dict[str, Any]) -> None:
    """A state of another run, whose blocks are not this one's."""
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if other := sorted(name for name in record if before.get(name) != record[name]):
            raise CheckpointError(f"{path.parent} belongs to another run ({', '.join(other)}); remove it to start anew")
    else:
        write_run(path, record)


def identity(args: argparse.Namespace) -> dict[str, Any]:
    """Settings and inputs on which the blocks depend."""
    record = provenance(args)
    settings = {k: v for k, v in record["settings"].items() if k not in ("out", "overwrite", "state", "device")}
    return {"settings": settings, "inputs_sha256": record["inputs_sha256"]}


def run(args: argparse.Namespace, folder: Path, state: Path) -> None:
    """The whole job, from the files that ``args`` name to those in ``folder``."""
    if is_first():
        refuse_another(state / "identity.json", identity(args))
    wait()
    job = Job.of(args)
    check_memory(job.grid.transform.target, tile=job.tiled.tile, device=job.grid.device)
    path = state / "found.json"
    found = agreed(json.loads(path.read_text(encoding="utf-8")) if path.exists() else None)
    if found is None:
        found = agreed(job.found())
        if is_first():
            write_run(path, found)
    kept = job.solved(job.alike(found), state)
    if is_first():
        job.write(folder / "restored.mrc", kept, found["offset"])
        write_run(folder / "run.json", provenance(args) | found | {"blocks": len(job.blocks), "note": VIEWING_NOTE})
        print(f"scale {found.get('scale') or found['common']['scale']:.3g}, found on block {found['block']}")
        for doubt in found.get("checked", {}).get("doubts", []):
            warnings.warn(f"{doubt}: do not trust this map", stacklevel=1)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("half1", type=Path, metavar="map", help="the map, or the first of two raw half maps (MRC, not compressed)")
    add("half2", type=Path, nargs="?", help="the other half map, on the same grid")
    add("--state", type=named_folder, required=True, help="folder where finished blocks are kept; removed at the end")
    add("--tilt-min", type=float, help="degrees, where there is a missing wedge")
    add("--tilt-max", type=float, help="degrees")
    add("--tilt-axis", choices=("x", "y"), default="y", help="the beam is along z (default y)")
    add("--voxel-size", type=above_zero, help="of the maps, Å, where the headers are wrong")
    add("--scale", type=above_zero, help="what the density is multiplied by to be the prior's; found if not given")
    add("--b-factor", type=float, help="of the halves' envelope, Å²; found if not given")
    add("--allow-masked", action="store_true", help="take masked half maps; noise is then underestimated")
    add("--block", type=positive, default=BLOCK, help=f"side of a block, voxels of the prior's grid (default {BLOCK})")
    add_flags(parser, steps=8, of="network evaluations for each block; 20 without halves")
    parser.set_defaults(steps=None)
    args = parser.parse_args(with_plain_numbers(arguments))
    if (args.tilt_min is None) != (args.tilt_max is None):
        parser.error("give both --tilt-min and --tilt-max, or neither")
    if args.half2 is None and (args.tilt_min is None or args.b_factor is not None):
        parser.error("give both half maps, or one map and its tilts; --b-factor goes with halves")
    if args.steps is not None and args.steps < 2:
        parser.error("--steps must be at least 2")
    return args


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    with joined(args.device), silent_unless_first():
        results = output_folder(args.out, FILES, overwrite=args.overwrite, read=named_files(args), former=RESULT)
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(results) if is_first() else args.out
            if is_first():
                args.state.mkdir(parents=True, exist_ok=True)
                stack.enter_context(held_folder(args.state))
            wait()
            run(args, folder, args.state)
            if is_first():
                seal(folder)
        if is_first():
            for name in ("blocks.npy", "done.npy", "found.json", "identity.json"):
                (args.state / name).unlink()
            with contextlib.suppress(OSError):
                args.state.rmdir()
            print(f"results in {args.out}: {', '.join(FILES)}")


if __name__ == "__main__":
    sys.exit(exit_code(main, "finished blocks are in --state; the same line goes on from there"))
