"""Checkpoints: one folder ``checkpoint-STEP`` of safetensors files in the folder of the run, complete or not there.

One process (or one of many equal copies) writes one file; the shards of FSDP2 go through
``torch.distributed.checkpoint``, each process writing its own file. Its usual format has a pickle in ``.metadata``,
which could run code when it is read; its safetensors format has none. Either is read by any number of processes.
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from cryofm_model.errors import CryoFMError
from cryofm_model.train.config import Step, TrainConfig
from cryofm_model.train.distributed import rank_and_world, wait

__all__ = ["differences", "resume", "save"]

_PROGRESS = "progress.json"


def save(
    folder: Path,
    config: TrainConfig,
    done: Step,
    network: nn.Module,
    averaged: nn.Module,
    optimisers: Sequence[Optimizer],
) -> None:
    """Write the state after step ``done``; the checkpoint before it goes when this one is complete."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_shards
    from torch.distributed.tensor import DTensor

    rank, _ = rank_and_world()
    final = folder / f"checkpoint-{done.number + 1:08d}"
    partial = folder / "checkpoint.partial"
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        progress = {"step": done.number + 1, "seen": done.seen + done.voxels, "config": attrs.asdict(config)}
        (partial / _PROGRESS).write_text(json.dumps(progress, indent=2) + "\n")
    wait()
    state = _state(network, averaged, optimisers)
    if any(isinstance(value, DTensor) for value in state.values()):
        save_shards(state, storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True))
    elif rank == 0:
        save_file({name: value.cpu().contiguous() for name, value in state.items()}, partial / "state.safetensors")
    wait()
    if rank == 0:
        older = _checkpoints(folder)
        os.replace(partial, final)
        for path in older:
            shutil.rmtree(path)
    wait()


def resume(
    folder: Path, config: TrainConfig, network: nn.Module, averaged: nn.Module, optimisers: Sequence[Optimizer]
) -> tuple[int, int]:
    """Take up the last checkpoint, if there is one; the steps and the voxels that it has behind it.

    Raises:
        CryoFMError: it belongs to another configuration (the differences are listed) or to another network.
    """
    if not (found := _checkpoints(folder)):
        return 0, 0
    progress = json.loads((found[-1] / _PROGRESS).read_text())
    if differs := differences(progress["config"], attrs.asdict(config)):
        raise CryoFMError(f"{found[-1]} belongs to a run with other settings ({differs}); use another folder")
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    _fill(optimisers)
    state = _state(network, averaged, optimisers)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each process reads by itself
            load(state, storage_reader=HuggingFaceStorageReader(str(found[-1])), no_dist=True)
    except (CheckpointException, RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise CryoFMError(f"{found[-1]} does not fit this network or this optimiser ({reason})") from error
    return progress["step"], progress["seen"]


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


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"))


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
