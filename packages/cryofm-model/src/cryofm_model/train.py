"""The training loop of a prior (extra ``[train]``); ``examples/train_prior.py`` is the program around it.

Flow matching on density-weighted crops that grow during training (small early batches of small crops pay most),
AdamW with a cosine schedule, an exponential moving average of the weights, a checkpoint every few minutes from
which a killed run goes on exactly, and a CSV log.
"""

import csv
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .data import MapSet
from .errors import CryoFMError
from .flow import flow_matching_loss

__all__ = ["VALIDATION_TIMES", "TrainConfig", "train", "validation_loss"]

VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


@attrs.frozen
class TrainConfig:
    """Everything that determines a run.

    Attributes:
        crops: length of the run, in crops of 32³ voxels (larger crops count by their voxels).
        stages: (fraction of the run at which it ends, side of the crops, batch).
        lr: peak learning rate of AdamW(0.9, 0.98), reached after ``warmup`` steps, then cosine to 0.
        weight_decay: of AdamW.
        clip: largest gradient norm.
        ema: decay of the averaged weights, per step.
        warmup: steps.
        seed: of weights, crops, times and noise.
    """

    crops: int = 14_000
    stages: tuple[tuple[float, int, int], ...] = ((0.4, 32, 4), (0.75, 48, 2), (1.0, 64, 2))
    lr: float = 2e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.99
    warmup: int = 60
    seed: int = 0

    def stage(self, progress: float) -> tuple[int, int]:
        """Side and batch at ``progress`` in [0, 1)."""
        return next((side, batch) for end, side, batch in self.stages if progress < end)

    def rate(self, progress: float, step: int) -> float:
        """Learning rate."""
        return self.lr * min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def train(
    network: nn.Module,
    maps: MapSet,
    validation: Tensor,
    config: TrainConfig,
    folder: Path,
    *,
    checkpoint_seconds: float = 180.0,
) -> nn.Module:
    """Train ``network`` in place on one device; returns the averaged network.

    ``folder`` gets ``log.csv`` and ``checkpoint.safetensors``; where a checkpoint of the same configuration is
    found there, the run goes on from it and ends as if it had never stopped.

    Args:
        network: velocity network, called as (x (batch, z, y, x), t (batch,)).
        maps: where the crops come from.
        validation: crops in model units (n, z, y, x) for the loss at fixed times; never trained on.
        config: the run.
        folder: of the run.
        checkpoint_seconds: between two checkpoints.

    Raises:
        CryoFMError: the checkpoint belongs to another configuration; the differences are listed.
    """
    from tqdm import tqdm

    device = next(network.parameters()).device
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema))  # type: ignore[no-untyped-call]
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    total = config.crops * 32**3
    step = seen = 0
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    if checkpoint.exists():
        step, seen = _resume(checkpoint, network, averaged, optimiser, config)
    saved, recent = time.monotonic(), []
    with (
        (folder / "log.csv").open("a", newline="") as file,
        tqdm(total=config.crops, initial=seen // 32**3, unit="crop", smoothing=0.05, mininterval=10) as bar,
    ):
        log = csv.writer(file)
        if step == 0:
            log.writerow(["step", "crops", "rate", "loss", *(f"v_mse_t{t}" for t in VALIDATION_TIMES)])
        while seen < total:
            progress = seen / total
            side, batch = config.stage(progress)
            rng = np.random.default_rng([config.seed, step])  # a step depends on its number alone
            x_0 = maps.crops(batch, side, rng)
            t = torch.from_numpy(((rng.permutation(batch) + rng.random(batch)) / batch).astype(np.float32))
            x_1 = torch.from_numpy(rng.standard_normal(x_0.shape, np.float32))
            for group in optimiser.param_groups:
                group["lr"] = config.rate(progress, step)
            loss = flow_matching_loss(network, x_0.to(device), t.to(device), x_1.to(device)).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), config.clip)
            optimiser.step()
            averaged.update_parameters(network)
            step, seen = step + 1, seen + x_0.numel()
            recent.append(loss.item())
            bar.update(x_0.numel() / 32**3)
            bar.set_postfix(loss=f"{np.mean(recent):.3f}", side=side, refresh=False)
            if not math.isfinite(recent[-1]):
                raise CryoFMError(f"the loss became {recent[-1]} at step {step}; lower the rate {config.lr}")
            if time.monotonic() - saved > checkpoint_seconds or seen >= total:
                scores = [f"{s:.4f}" for s in validation_loss(averaged.module, validation)]
                log.writerow(
                    [
                        step,
                        seen // 32**3,
                        f"{config.rate(progress, step):.2e}",
                        f"{np.mean(recent):.4f}",
                        *scores,
                    ]
                )
                file.flush()
                _save(checkpoint, network, averaged, optimiser, config, step, seen)
                saved, recent = time.monotonic(), []
    return averaged.module


@torch.no_grad()
def validation_loss(network: nn.Module, crops: Tensor, times: Sequence[float] = VALIDATION_TIMES) -> list[float]:
    """Mean v-MSE over ``crops`` at each of ``times``, with the same noise every time it is called."""
    generator = torch.Generator().manual_seed(0)
    device = next(network.parameters()).device
    noise = torch.randn((len(times), *crops.shape), generator=generator)

    def loss(crop: Tensor, t: float, x_1: Tensor) -> float:
        return flow_matching_loss(
            network, crop[None].to(device), torch.tensor([t], device=device), x_1[None].to(device)
        ).item()

    return [
        float(np.mean([loss(c, t, n) for c, n in zip(crops, ns, strict=True)]))
        for t, ns in zip(times, noise, strict=True)
    ]


def _state(network: nn.Module, averaged: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = {f"network.{k}": v for k, v in network.state_dict().items()}
    state |= {f"averaged.{k}": v for k, v in averaged.state_dict().items()}
    for index, slots in optimiser.state_dict()["state"].items():
        state |= {f"optimiser.{index}.{k}": v for k, v in slots.items()}
    return {k: v.contiguous() for k, v in state.items()}


def _save(
    path: Path,
    network: nn.Module,
    averaged: nn.Module,
    optimiser: torch.optim.Optimizer,
    config: TrainConfig,
    step: int,
    seen: int,
) -> None:
    metadata = {"config": json.dumps(attrs.asdict(config)), "step": str(step), "seen": str(seen)}
    partial = path.with_suffix(".partial")
    save_file(_state(network, averaged, optimiser), partial, metadata)
    os.replace(partial, path)


def _resume(
    path: Path, network: nn.Module, averaged: nn.Module, optimiser: torch.optim.Optimizer, config: TrainConfig
) -> tuple[int, int]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    theirs, ours = json.loads(metadata["config"]), json.loads(json.dumps(attrs.asdict(config)))
    differences = [f"{k}: {theirs.get(k)} there, {v} here" for k, v in ours.items() if theirs.get(k) != v]
    if differences:
        raise CryoFMError(f"{path} belongs to a run with other settings ({'; '.join(differences)}); use another folder")
    state = load_file(path)
    network.load_state_dict(_under(state, "network."))
    averaged.load_state_dict(_under(state, "averaged."))
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in _under(state, "optimiser.").items():
        index, name = key.split(".")
        slots.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
    return int(metadata["step"]), int(metadata["seen"])


def _under(state: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
