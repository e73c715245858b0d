"""Long runs that go on where they were killed, and end with the same bits."""

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from cryofm_sampling._common import within
from cryofm_sampling.errors import CheckpointError
from cryofm_sampling.protocols import Callback
from cryofm_sampling.runs._beside import held, partial_of, sweep, write_whole
from cryofm_sampling.runs._identity import Fingerprint, Run, differences
from cryofm_sampling.runs._ranks import rank_and_size

__all__ = ["Checkpoint", "Run", "iterate"]

_HEADER = "run"  # the tensor that holds, as bytes, what the file belongs to
_CHECKSUM = "sha256"  # that of all others: names, kinds, shapes and values

Step = Callable[[int, Tensor], tuple[Tensor, Tensor]]  # (i, state) -> next state, estimate of x_0


@attrs.frozen
class Checkpoint:
    """Where a run leaves its state; the same call finds it there and goes on.

    The file is written beside and renamed, so it is whole whenever the run dies, and removed when the run has ended.
    It has a checksum over all that it holds: one that was damaged is refused. A lock beside it keeps a second run out.
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
        """Delete the file, if there is one: nothing but a checkpoint, and none that another run has."""
        if self._is_first() and _is_checkpoint(self.path):  # ranks may do so together
            with suppress(CheckpointError), held(self.path):
                self._delete()

    def remove_parts(self, count: int = 0) -> None:
        """Delete the files of all parts: the first `count`, there or not, and those that follow without a gap."""
        for k in itertools.count():
            part = self.part(k)
            if k >= count and not part.path.exists():
                return
            part.remove()

    def _is_first(self) -> bool:
        return rank_and_size(self.group)[0] == 0

    def _delete(self) -> None:
        if self._is_first() and _is_checkpoint(self.path):
            self.path.unlink(missing_ok=True)

    def _write(self, tensors: dict[str, Tensor]) -> None:
        if self._is_first():
            try:
                write_whole(self.path, save(tensors))
            except OSError as error:
                raise CheckpointError(f"{self.path} cannot be written: {error}") from None

    @contextmanager
    def _taken(self) -> Iterator[bytes | None]:
        """What the file holds, if it is there, on all ranks; no other run has it until the block is left."""
        with ExitStack() as stack:
            content: list[bytes | CheckpointError | None] = [None]
            if self._is_first():
                try:
                    content = [self._content(stack)]
                except CheckpointError as error:  # for all ranks, which would wait
                    content = [error]
            if self.group is not None:
                dist.broadcast_object_list(content, src=dist.get_global_rank(self.group, 0), group=self.group)
            (found,) = content
            if isinstance(found, CheckpointError):
                raise found
            yield found

    def _content(self, stack: ExitStack) -> bytes | None:
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise CheckpointError(f"{self.path} cannot be written: it is a folder, or in a folder that does not exist")
        stack.enter_context(held(self.path))
        try:  # now, and not after a minute's work
            sweep(self.path)
            trial = partial_of(self.path)
            trial.touch(exist_ok=False)
            trial.unlink()
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written: {error}") from None
        try:
            return self.path.read_bytes() if self.path.exists() else None
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error}") from None


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
    with ExitStack() as stack:
        first = 0
        fingerprint: Fingerprint = {}
        if checkpoint is not None:
            fingerprint = run.fingerprint(state, streams)
            content = stack.enter_context(checkpoint._taken())
            if content is not None:
                first, state = _restored(checkpoint.path, content, fingerprint, state, streams, total)
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
            checkpoint._delete()
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
    numbers = {f"stream.{i}": stream.get_state() for i, stream in enumerate(streams)}
    tensors = {
        "state": _real(state).contiguous(),
        **numbers,
        _HEADER: torch.frombuffer(bytearray(header), dtype=torch.uint8),
    }
    return {**tensors, _CHECKSUM: torch.frombuffer(bytearray(_checksum(tensors)), dtype=torch.uint8)}


def _checksum(tensors: Mapping[str, Tensor]) -> bytes:
    """SHA-256 of tensors, their names, kinds and shapes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].cpu().contiguous()
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _restored(
    path: Path,
    content: bytes,
    fingerprint: Fingerprint,
    state: Tensor,
    streams: Sequence[torch.Generator],
    total: int,
) -> tuple[int, Tensor]:
    """Steps done and the state after them; sets the streams."""
    header, tensors = _parsed(path, content)
    try:
        found = differences(header["fingerprint"], fingerprint)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError):
        raise CheckpointError(f"{path} is no checkpoint of a sampler; choose another path or remove it") from None
    if found:
        raise CheckpointError(f"{path} belongs to another run ({'; '.join(found)}); remove it to start anew")
    step, real = header.get("step"), tensors.get("state")
    if type(step) is not int or not 1 <= step <= total:
        raise CheckpointError(f"{path} says that {step} of {total} steps are done; remove it to start anew")
    expected = {"state": _real(state)} | {f"stream.{i}": stream.get_state() for i, stream in enumerate(streams)}
    wrong = [name for name, like in expected.items() if not _alike(tensors.get(name), like)]
    if wrong or real is None:
        raise CheckpointError(f"{path} is of other sizes ({', '.join(wrong)}); remove it to start anew")
    try:
        for i, stream in enumerate(streams):
            stream.set_state(tensors[f"stream.{i}"])
    except RuntimeError as error:
        raise CheckpointError(f"{path} holds no random numbers ({error}); remove it to start anew") from None
    real = real.to(state.device)
    return step, torch.view_as_complex(real) if state.is_complex() else real


def _parsed(path: Path, content: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file that is as it was written."""
    try:
        tensors = load(content)
    except Exception:  # of every kind, for a header that somebody made up
        raise CheckpointError(f"{path} is no checkpoint of a sampler; choose another path or remove it") from None
    said = tensors.pop(_CHECKSUM, None)
    if _HEADER not in tensors or said is None:
        older = " of this version" if _HEADER in tensors else ""
        raise CheckpointError(f"{path} is no checkpoint of a sampler{older}; choose another path or remove it")
    if said.dtype != torch.uint8 or bytes(said.flatten().tolist()) != _checksum(tensors):
        raise CheckpointError(
            f"{path} is no checkpoint of a sampler any more: it was damaged or changed after it was written "
            "(its checksum differs); remove it to start anew"
        )
    try:
        header = json.loads(tensors[_HEADER].numpy().tobytes())
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is no checkpoint of a sampler; choose another path or remove it")
    return header, tensors


def _real(state: Tensor) -> Tensor:
    return torch.view_as_real(state) if state.is_complex() else state


def _alike(value: Tensor | None, like: Tensor) -> bool:
    return value is not None and value.shape == like.shape and value.dtype == like.dtype
