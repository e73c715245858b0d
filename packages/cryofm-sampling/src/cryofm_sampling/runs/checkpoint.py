"""Long runs that go on where they were killed, and end with the same bits."""

import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from cryofm_sampling._common import within
from cryofm_sampling.errors import CheckpointError
from cryofm_sampling.protocols import Callback
from cryofm_sampling.runs._identity import Fingerprint, Run, differences
from cryofm_sampling.runs._ranks import rank_and_size

__all__ = ["Checkpoint", "Run", "iterate"]

_HEADER = "run"  # the tensor that holds, as bytes, what the file belongs to

Step = Callable[[int, Tensor], tuple[Tensor, Tensor]]  # (i, state) -> next state, estimate of x_0


@attrs.frozen
class Checkpoint:
    """Where a run leaves its state; the same call finds it there and goes on.

    The file is written beside and renamed, so it is whole whenever the run dies, and removed when the run has ended.
    Settings and seeds are compared with those of the run that left it; data and prior too, but for rounding: in a box
    of 256³ one voxel of the data tells if it differs by some hundredths of their root mean square. To recognise the
    prior takes one network evaluation, which no `nfe` counts.

    Attributes:
        path: of the file.
        every_seconds: between two checkpoints; 0: after every step.
        group: of processes that all do this run, such as those that share the tiles of `Tiled`: the first alone
            writes and reads, and tells the others. Their machines need no common disk. `restore` sees to it, given
            its own group or that of `Tiled`.
        keep: leave the file after the last step, with the result: for a part of something longer.

    >>> Checkpoint("run.safetensors", every_seconds=300.0).path.name
    'run.safetensors'
    """

    path: Path = attrs.field(converter=Path)
    every_seconds: float = attrs.field(default=60.0, validator=within(attrs.validators.ge(0)))
    group: "dist.ProcessGroup | None" = attrs.field(default=None, kw_only=True)
    keep: bool = attrs.field(default=False, kw_only=True)

    def part(self, number: int) -> "Checkpoint":
        """That of part `number` of this run, in a file of its own that stays until `remove`."""
        return attrs.evolve(self, path=self.path.with_stem(f"{self.path.stem}-{number}"), keep=True)

    def remove(self) -> None:
        """Delete the file, if there is one; nothing but a checkpoint."""
        if self._is_first():
            if _is_checkpoint(self.path):
                self.path.unlink(missing_ok=True)  # ranks may do so together
            self._partial().unlink(missing_ok=True)  # of a run that was killed while it wrote

    def remove_parts(self, count: int = 0) -> None:
        """Delete the files of all parts: the first `count`, there or not, and those that follow without a gap."""
        for k in itertools.count():
            part = self.part(k)
            if k >= count and not part.path.exists():
                return
            part.remove()

    def _partial(self) -> Path:
        return self.path.with_name(f"{self.path.name}.partial")

    def _is_first(self) -> bool:
        return rank_and_size(self.group)[0] == 0

    def _write(self, tensors: dict[str, Tensor]) -> None:
        if self._is_first():
            try:
                with self._partial().open("wb") as file:
                    file.write(save(tensors))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(self._partial(), self.path)
            except OSError as error:
                raise CheckpointError(f"{self.path} cannot be written: {error}") from None

    def _read(self) -> bytes | None:
        if self._is_first() and (self.path.is_dir() or not self.path.parent.is_dir()):
            raise CheckpointError(f"{self.path} cannot be written: it is a folder, or in a folder that does not exist")
        if self._is_first():
            try:  # now, and not after a minute's work
                self._partial().touch()
                self._partial().unlink()
            except OSError as error:
                raise CheckpointError(f"{self.path} cannot be written: {error}") from None
        content = [self.path.read_bytes() if self._is_first() and self.path.exists() else None]
        if self.group is not None:
            dist.broadcast_object_list(content, src=dist.get_global_rank(self.group, 0), group=self.group)
        return content[0]


def iterate(
    step: Step,
    state: Tensor,
    total: int,
    /,
    *,
    run: Run,
    streams: Sequence[torch.Generator],
    callback: Callback | None,
    checkpoint: Checkpoint | None,
) -> Tensor:
    """The loop of a sampler: `total` steps from `state`, or what is left of them after the checkpoint.

    Args:
        step: (i, state) -> next state, estimate of x_0; a pure function but for the `streams`.
        state: at the start; one tensor, real or complex.
        total: number of steps.
        run: what the steps compute.
        streams: all generators that the steps draw from; their states are part of the checkpoint.
        callback: is told of every step.
        checkpoint: where to, or None.

    Raises `CheckpointError` if the file there is none, belongs to another run, whose differences are listed, or could
    not be written.
    """
    first = 0
    fingerprint: Fingerprint = {}
    if checkpoint is not None:
        fingerprint = run.fingerprint(state, streams)
        content = checkpoint._read()
        if content is not None:
            first, state = _restored(checkpoint.path, content, fingerprint, state, streams)
    saved = time.monotonic()
    for i in range(first, total):
        state, x_0 = step(i, state)
        if checkpoint is not None:
            over = i + 1 == total
            if checkpoint.keep if over else time.monotonic() - saved >= checkpoint.every_seconds:
                checkpoint._write(_tensors(i + 1, state, streams, fingerprint))
                saved = time.monotonic()
        if callback is not None:
            callback(i + 1, total, x_0)
    if checkpoint is not None and not checkpoint.keep:
        checkpoint.remove()
    return state


def _is_checkpoint(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return _HEADER in file.keys()  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, RuntimeError):  # the last where another rank removes it meanwhile
        return False


def _tensors(
    step: int, state: Tensor, streams: Sequence[torch.Generator], fingerprint: Fingerprint
) -> dict[str, Tensor]:
    header = json.dumps({"step": step, "fingerprint": fingerprint}).encode()
    real = torch.view_as_real(state) if state.is_complex() else state
    numbers = {f"stream.{i}": stream.get_state() for i, stream in enumerate(streams)}
    return {"state": real.contiguous(), **numbers, _HEADER: torch.frombuffer(bytearray(header), dtype=torch.uint8)}


def _restored(
    path: Path, content: bytes, fingerprint: Fingerprint, state: Tensor, streams: Sequence[torch.Generator]
) -> tuple[int, Tensor]:
    try:
        tensors = load(content)
        header = json.loads(tensors[_HEADER].numpy().tobytes())
        found = differences(header["fingerprint"], fingerprint)
        step, real = int(header["step"]), tensors["state"].to(state.device)
        numbers = [tensors[f"stream.{i}"] for i in range(0 if found else len(streams))]  # another run has others
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path} is no checkpoint of a sampler; choose another path or remove it") from None
    if found:
        raise CheckpointError(f"{path} belongs to another run ({'; '.join(found)}); remove it to start anew")
    for stream, number in zip(streams, numbers, strict=True):
        stream.set_state(number)
    return step, torch.view_as_complex(real) if state.is_complex() else real
