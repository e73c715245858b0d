"""The loop: flow matching (paper 3.1), AdamW or Muon, clipping, and an average of the weights."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cryofm_model.data.mixture import CropSource
from cryofm_model.errors import CryoFMError
from cryofm_model.flow import flow_matching_loss
from cryofm_model.networks.hourglass import Hourglass
from cryofm_model.train.batches import Batch, batches
from cryofm_model.train.checkpoint import resume, save, taken
from cryofm_model.train.config import UNIT, Machine, TrainConfig
from cryofm_model.train.distributed import gathered, mean, rank_and_world, shard, whole
from cryofm_model.train.muon import Muon, inner_weights
from cryofm_model.train.report import FlowValidation, Report, Validation

__all__ = ["Loss", "train"]

Loss = Callable[..., Tensor]
"""(network, x_0, t, x_1) -> loss of each sample, as `flow_matching_loss`; of pairs with the condition behind x_1."""


def train(
    network: nn.Module,
    maps: CropSource,
    validation: Tensor | Validation,
    config: TrainConfig,
    folder: Path,
    *,
    machine: Machine = Machine(),  # noqa: B008  (frozen)
    loss: Loss = flow_matching_loss,
    shown: Tensor | None = None,
) -> nn.Module:
    """Train ``network`` in place on its device, together with the other processes of a group if there is one.

    Its weights become float32 if they are not.

    ``folder`` gets ``log.csv``, ``samples/`` and a checkpoint every ``config.report_every`` steps; where it has a
    checkpoint of the same configuration, the run goes on from it and ends as if it had never stopped, also with
    another number of processes (then to rounding).

    Args:
        network: velocity network, called as (x (batch, z, y, x), t (batch,)); the same on every process.
        maps: where the crops come from, a `PairSource` for a conditional network; the same on every process.
        validation: crops in model units (n, z, y, x) for the loss at fixed times, never trained on; or what else is to
            be measured.
        config: the run.
        folder: of the run; all processes see it.
        machine: how to carry it out.
        loss: what is minimised; where it evaluates the network more than once, ``machine.shard`` is not for it.
        shown: what a conditional network is shown of the validation crops, (n, conditions, z, y, x).

    Returns:
        The averaged network, whole on every process.

    Raises:
        CryoFMError: the checkpoint was damaged or belongs to another configuration, another run has the folder, a
            batch cannot be divided among the processes, the network cannot be sharded or recompute, or the loss is no
            longer finite.
    """
    checks = FlowValidation(validation, shown) if isinstance(validation, Tensor) else validation
    _check(network, config, machine, checks.crops)
    with taken(folder):
        return _trained(network.float(), maps, checks, config, folder, machine, loss)


def _trained(
    network: nn.Module,
    maps: CropSource,
    validation: Validation,
    config: TrainConfig,
    folder: Path,
    machine: Machine,
    loss: Loss,
) -> nn.Module:
    rank, world = rank_and_world()
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema))  # type: ignore[no-untyped-call]
    parallel = network
    if machine.shard and world > 1:
        shard(network)
        shard(averaged.module)
    elif world > 1:
        parallel = DistributedDataParallel(network, broadcast_buffers=False)
    optimisers, peaks = _optimisers(network, config)
    number, seen = resume(folder, config, network, averaged, optimisers)

    report = Report(folder, validation, config, number, seen, network)
    steps = batches(maps, config, config.plan(number, seen), rank, world)
    with report, closing(steps):  # type: ignore[type-var]
        for step, batch in steps:
            rate = config.rate(step)
            for optimiser, peak in zip(optimisers, peaks, strict=True):
                for group in optimiser.param_groups:
                    group["lr"] = peak * rate
            value = mean(_backward(parallel, batch, config, machine.micro_batch, loss))
            norm = float(whole(nn.utils.clip_grad_norm_(network.parameters(), config.clip)))
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise CryoFMError(
                    f"the loss became {value} and its gradient {norm} at step {step.number}; the last checkpoint in "
                    f"{folder} is from before: lower the rate {config.lr} (in another folder)"
                )
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            averaged.update_parameters(network)
            report.step(step, value)
            if (step.number + 1) % config.report_every == 0 or step.seen + step.voxels >= config.crops * UNIT:
                report.row(step, rate * config.lr, norm, averaged.module)
                save(folder, config, step, network, averaged, optimisers)
    return gathered(averaged.module)


def _check(network: nn.Module, config: TrainConfig, machine: Machine, validation: Tensor) -> None:
    _, world = rank_and_world()
    multiple = int(network.config.multiple)  # type: ignore[union-attr, arg-type]
    for side in {*(side for _, side, _ in config.stages), *validation.shape[1:]}:
        if side % multiple:
            raise CryoFMError(f"crops of {side}³ voxels: the side must be a multiple of {multiple}")
    for _, side, batch in config.stages:
        if batch % world:
            raise CryoFMError(f"a batch of {batch} crops of {side}³ cannot be divided among {world} processes")
    if machine.recompute:
        if not isinstance(network, Hourglass):
            raise CryoFMError(f"only an Hourglass can recompute; found a {type(network).__name__}")
        network.recompute = True


def _optimisers(network: nn.Module, config: TrainConfig) -> tuple[list[Optimizer], list[float]]:
    """Optimisers, and the peak rate of each."""
    inner = inner_weights(network) if config.muon_lr else []
    rest = [p for p in network.parameters() if not any(p is q for q in inner)]
    adamw = AdamW(rest, lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    if not config.muon_lr:
        return [adamw], [config.lr]
    dtype = torch.bfloat16 if config.precision == "bf16" else None
    muon = Muon(inner, lr=config.muon_lr, weight_decay=config.weight_decay, dtype=dtype)
    return [muon, adamw], [config.muon_lr, config.lr]


def _backward(network: nn.Module, batch: Batch, config: TrainConfig, most: int | None, loss: Loss) -> Tensor:
    """Add up the gradients of the mean loss over this process's share, a part of it at a time; that loss."""
    device = next(network.parameters()).device
    count = len(batch[0])
    parts = list(zip(*(torch.split(tensor, most or count) for tensor in batch), strict=True))
    total = torch.zeros((), device=device)
    for index, part in enumerate(parts):
        with _gradients_shared(network, index == len(parts) - 1):
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                there = [tensor.to(device, non_blocking=True) for tensor in part]
                part_loss = loss(network, *there).sum() / count
            part_loss.backward()  # type: ignore[no-untyped-call]
        total += part_loss.detach()
    return total


def _gradients_shared(network: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Average gradients over the processes once a step, with the last part."""
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    if hasattr(network, "set_requires_gradient_sync"):  # FSDP2
        network.set_requires_gradient_sync(last)  # type: ignore[operator]
    return nullcontext()
