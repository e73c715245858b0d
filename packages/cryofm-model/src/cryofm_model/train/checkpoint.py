"""Checkpoints: one folder ``checkpoint-STEP`` of safetensors files in the folder of the run, complete or not there.

One process (or one of many equal copies) writes one file; the shards of FSDP2 go through
``torch.distributed.checkpoint``, each process writing its own file. Its usual format has a pickle in ``.metadata``,
which could run code when it is read; its safetensors format has none. Either is read by any number of processes.

``progress.json`` beside them has the checksums of the others and one of its own, so that a file that was damaged is not
believed.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from cryofm_model.errors import CryoFMError
from cryofm_model.train.config import Step, TrainConfig
from cryofm_model.train.distributed import from_first, rank_and_world, wait

__all__ = ["differences", "resume", "save", "taken"]

_PROGRESS = "progress.json"
_CHECKSUM = "sha256"
_NAME = re.compile(r"checkpoint-([0-9]{8,18})")


@contextmanager
def taken(folder: Path) -> Iterator[None]:
    """The folder of a run, made if need be and kept from other runs until the block is left.

    Raises:
        CryoFMError: another run has it, or nothing can be written there.
    """
    with ExitStack() as stack:
        from_first(lambda: _take(folder, stack))
        yield
        wait()  # the lock is the first process's, and the others write too


def save(
    folder: Path,
    config: TrainConfig,
    done: Step,
    network: nn.Module,
    averaged: nn.Module,
    optimisers: Sequence[Optimizer],
) -> None:
    """Write the state after step ``done``; the run's checkpoints before it go when this one is complete.

    Raises:
        CryoFMError: it cannot be written.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_shards
    from torch.distributed.tensor import DTensor

    first = rank_and_world()[0] == 0
    final = folder / f"checkpoint-{done.number + 1:08d}"
    partial = from_first(lambda: _begun(final))
    try:
        state = _state(network, averaged, optimisers)
        if any(isinstance(value, DTensor) for value in state.values()):
            save_shards(state, storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True))
        elif first:
            save_file({name: value.cpu().contiguous() for name, value in state.items()}, partial / "state.safetensors")
        wait()
        progress = {"step": done.number + 1, "seen": done.seen + done.voxels, "config": attrs.asdict(config)}
        from_first(lambda: _finish(partial, final, progress))
    except (OSError, SafetensorError, CheckpointException) as error:
        raise CryoFMError(f"{final} cannot be written: {error}") from error
    finally:
        if first:
            shutil.rmtree(partial, ignore_errors=True)  # it is there no more, unless something failed


def resume(
    folder: Path, config: TrainConfig, network: nn.Module, averaged: nn.Module, optimisers: Sequence[Optimizer]
) -> tuple[int, int]:
    """Take up the last checkpoint, if there is one; the steps and the voxels that it has behind it.

    Raises:
        CryoFMError: it was damaged, or belongs to another configuration (the differences are listed) or to another
            network.
    """
    found, step, seen = from_first(lambda: _last(folder, config))
    if found is None:
        return 0, 0
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    _fill(optimisers)
    state = _state(network, averaged, optimisers)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each process reads by itself
            load(state, storage_reader=HuggingFaceStorageReader(str(found)), no_dist=True)
    except (
        *(CheckpointException, SafetensorError, RuntimeError, OSError, AssertionError),
        *(ValueError, TypeError, KeyError, AttributeError, OverflowError),
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise CryoFMError(f"{found} does not fit this network or this optimiser ({reason})") from error
    return step, seen


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """The entries in which two settings differ, as a line; empty where they are the same.

    >>> differences({"lr": 0.1, "data": {"seed": 0}}, {"lr": 0.1, "data": {"seed": 1}})
    'data.seed: 0 there, 1 here'
    """
    before, now = (_flat(json.loads(json.dumps(settings))) for settings in (theirs, ours))  # tuples become lists
    keys = dict.fromkeys([*before, *now])
    return "; ".join(f"{k}: {before.get(k)} there, {now.get(k)} here" for k in keys if before.get(k) != now.get(k))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _take(folder: Path, stack: ExitStack) -> None:
    from cryofm_io import OutputExistsError, held_folder

    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(held_folder(folder))
    except OutputExistsError as error:
        raise CryoFMError(str(error)) from None
    except OSError as error:
        raise CryoFMError(f"{folder} cannot be written: {error}") from None


def _begun(final: Path) -> Path:
    """A new folder for what will be ``final``."""
    if os.path.lexists(final):
        raise CryoFMError(f"{final} is in the way of the next checkpoint, and none of this run; move it elsewhere")
    from cryofm_io import partial_path

    try:
        partial = partial_path(final)
        partial.mkdir()
        return partial
    except OSError as error:
        raise CryoFMError(f"{final} cannot be written: {error}") from None


def _finish(partial: Path, final: Path, progress: Mapping[str, Any]) -> None:
    """Seal a folder whose tensors are written, give it its name and remove the run's checkpoints before it."""
    try:
        files = {path.name: _file_checksum(path, to_disk=True) for path in sorted(partial.iterdir())}
        sealed = {**progress, "files": files}
        with (partial / _PROGRESS).open("x", encoding="utf-8") as file:
            json.dump({**sealed, _CHECKSUM: _checksum(sealed)}, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        older = _checkpoints(final.parent)
        os.replace(partial, final)
    except OSError as error:
        raise CryoFMError(f"{final} cannot be written: {error}") from None
    for path in older:
        _remove(path, progress["config"])


def _remove(path: Path, config: Mapping[str, Any]) -> None:
    """Delete the files of a checkpoint of this run, each by its name; whatever else is in the folder stays there."""
    with suppress(CryoFMError, OSError):
        progress = _progress(path)
        if not differences(progress["config"], config):
            for name in progress["files"]:
                (path / name).unlink(missing_ok=True)
            (path / _PROGRESS).unlink()  # the last, so that one who is killed here can be followed
            path.rmdir()


def _last(folder: Path, config: TrainConfig) -> tuple[Path | None, int, int]:
    """The last checkpoint, whole and of this configuration, and the steps and voxels that it has behind it."""
    if not (found := _checkpoints(folder)):
        return None, 0, 0
    path = found[-1]
    progress = _progress(path)
    if differs := differences(progress["config"], attrs.asdict(config)):
        raise CryoFMError(f"{path} belongs to a run with other settings ({differs}); use another folder")
    step, seen = progress["step"], progress["seen"]
    if path.name != f"checkpoint-{step:08d}" or not any(
        (planned.number + 1, planned.seen + planned.voxels) == (step, seen) for planned in config.plan()
    ):
        raise CryoFMError(f"{path} says {step} steps and {seen} voxels, which no run of these settings has; remove it")
    there = {entry.name for entry in path.glob("*.safetensors")}
    if there != set(progress["files"]):
        raise CryoFMError(
            f"{path} holds {sorted(there)}, expected {sorted(progress['files'])}; remove it to start anew"
        )
    for name, checksum in progress["files"].items():
        try:
            if _file_checksum(path / name) != checksum:
                raise CryoFMError(f"{path / name} was damaged or changed (its checksum differs); remove {path}")
        except OSError as error:
            raise CryoFMError(f"{path / name} cannot be read: {error}") from None
    return path, step, seen


def _progress(path: Path) -> dict[str, Any]:
    """What ``progress.json`` says, as it was written."""
    said = path / _PROGRESS
    try:
        progress: Any = json.loads(said.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CryoFMError(f"{said} was damaged ({error}); remove {path} to start anew") from None
    checksum = progress.pop(_CHECKSUM, None) if isinstance(progress, dict) else None
    if checksum is None or checksum != _checksum(progress):
        raise CryoFMError(
            f"{said} was damaged or changed, or is of an older version (its checksum is missing or differs); remove "
            f"{path} to start anew"
        )
    known: dict[str, Any] = progress
    files = known.get("files")
    if (
        not all(type(known.get(key)) is int for key in ("step", "seen"))
        or not isinstance(known.get("config"), dict)
        or not isinstance(files, dict)
        or any(re.fullmatch(r"[\w.-]+\.safetensors", name) is None for name in files)
    ):
        raise CryoFMError(f"{said} is no file of a checkpoint; remove {path} to start anew")
    return known


def _checkpoints(folder: Path) -> list[Path]:
    """The folders that are named as checkpoints are and have a ``progress.json``, in the order of their steps."""
    named = [(int(found[1]), path) for path in folder.iterdir() if (found := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(named) if (path / _PROGRESS).is_file() and not path.is_symlink()]


def _checksum(progress: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(progress, sort_keys=True).encode()).hexdigest()


def _file_checksum(path: Path, *, to_disk: bool = False) -> str:
    """SHA-256 of a file, which is on the disk afterwards where that is asked for."""
    with path.open("rb") as file:
        if to_disk:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(network: nn.Module, averaged: nn.Module, optimisers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """The tensors of a run by name, not copies of them."""
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    state |= {f"averaged.{name}": value for name, value in averaged.state_dict().items()}
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    for optimiser in optimisers:
        for parameter, slots in optimiser.state.items():
            state |= {f"optimiser.{names[parameter]}.{slot}": value for slot, value in slots.items()}
    return state


def _fill(optimisers: Sequence[Optimizer]) -> None:
    """Give optimisers their tensors, to be read into, by a step of length 0."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
        optimiser.zero_grad()
