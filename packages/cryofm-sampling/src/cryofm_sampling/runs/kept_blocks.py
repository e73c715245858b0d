"""Finished blocks in files, from which a killed run goes on."""

import hashlib
import math
import os
from pathlib import Path
from typing import Any, Self

import attrs
import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from cryofm_sampling.errors import CheckpointError
from cryofm_sampling.runs._beside import partial_of
from cryofm_sampling.runs._ranks import rank_and_size
from cryofm_sampling.runs.blocks import ArrayLike, Blocks

__all__ = ["KeptBlocks"]

_FILES = ("blocks", "sums")


@attrs.frozen(eq=False)
class KeptBlocks:
    """What `Blocks.solve` keeps, in two files that all processes see, and from which another call goes on.

    A block is done if its SHA-256 sum says so: one that was damaged since is restored again.

    Attributes:
        folder: where the files lie.
        kept: `(blocks, *block)`, single precision.
        done: `(blocks,)`, whether each is there.

    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> blocks, x = Blocks((40, 24, 16), side=16, margin=2, fade=4), np.ones((40, 24, 16), np.float32)
    >>> state = KeptBlocks.in_folder(Path(mkdtemp()), blocks)
    >>> blocks.solve(lambda part: 2 * part, [x], state.kept, state.done)
    >>> state.kept[7, 0, 0, 0] = 5  # as a disk may
    >>> [number for number in range(8) if not KeptBlocks.in_folder(state.folder, blocks).done[number]]
    [7]
    >>> state.remove()
    """

    folder: Path
    kept: NDArray[np.float32]
    done: ArrayLike

    @classmethod
    def in_folder(cls, folder: Path, blocks: Blocks, *, group: "dist.ProcessGroup | None" = None) -> Self:
        """Those in a folder, or none yet; room for all of them is taken now.

        Args:
            folder: is there, and seen by all processes.
            blocks: of the volume.
            group: the processes.

        Raises `CheckpointError` where the files are of another size: they are of another volume.
        """
        n = len(blocks)
        kept = _shared(folder / _FILES[0], np.dtype(np.float32), (n, *blocks.block), group)
        return cls(folder, kept, _Whole(kept, _shared(folder / _FILES[1], np.dtype(np.uint8), (n, 32), group)))

    def remove(self) -> None:
        """The files; one process alone does, when nobody needs them."""
        for name in _FILES:
            (self.folder / name).unlink()


@attrs.frozen(eq=False)
class _Whole:
    """Which blocks are there as they were written."""

    kept: NDArray[np.float32]
    sums: NDArray[np.uint8]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.kept.shape[:1]

    def __getitem__(self, number: Any) -> bool:
        return bytes(self.sums[number]) == self._sum(number)

    def __setitem__(self, number: Any, value: object) -> None:
        self.sums[number] = np.frombuffer(self._sum(number), np.uint8)

    def _sum(self, number: Any) -> bytes:
        return hashlib.sha256(self.kept[number].data).digest()


def _shared(path: Path, kind: "np.dtype[Any]", shape: tuple[int, ...], group: "dist.ProcessGroup | None") -> Any:
    """An array in a file that all processes see, at first of zeros."""
    size = math.prod(shape) * kind.itemsize
    rank, _ = rank_and_size(group)
    if rank == 0 and not path.exists():
        partial = partial_of(path)
        try:
            with partial.open("xb") as file:
                if hasattr(os, "posix_fallocate"):  # a write to a map of a file without room would be the end
                    os.posix_fallocate(file.fileno(), 0, size)
                file.truncate(size)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    if group is not None:
        dist.barrier(group)
    if path.stat().st_size != size:
        raise CheckpointError(f"{path} is of another size than its blocks; remove {path.parent} to start anew")
    return np.memmap(path, kind, "r+", shape=shape)
