"""One run on several devices: copies that average their gradients (DDP), or shards (FSDP2, `fully_shard`).

Nothing here imports the parts of ``torch.distributed`` that take time unless ``torchrun`` started the process.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from cryofm_model.errors import CryoFMError
from cryofm_model.networks.blocks import Block
from cryofm_model.networks.hourglass import Hourglass

__all__ = ["from_first", "gathered", "mean", "processes", "rank_and_world", "shard", "wait", "whole"]

T = TypeVar("T")


@contextmanager
def processes(device: str | None = None) -> Iterator[torch.device]:
    """Join the processes that ``torchrun`` started, if it did; the device of this one.

    Args:
        device: torch's name of it. By default each process takes a GPU of its own where there are any.

    Raises:
        CryoFMError: more processes than GPUs on this machine.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if "LOCAL_RANK" not in os.environ:
        yield torch.device(kind)
        return
    index, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if kind == "cuda":
        if index >= there:
            raise CryoFMError(f"process {index} finds {there} GPUs; start no more with --nproc-per-node")
        torch.cuda.set_device(index)
        kind = f"cuda:{index}"
    distributed.init_process_group("nccl" if kind.startswith("cuda") else "gloo")
    try:
        yield torch.device(kind)
    finally:
        distributed.destroy_process_group()


def rank_and_world() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` returns on the first process, which alone calls it, on all of them.

    Raises:
        CryoFMError: on all of them, what it raised there.
    """
    rank, world = rank_and_world()
    if world == 1:
        return make()
    told: list[Any] = [None]
    if rank == 0:
        try:
            told = [make()]
        except CryoFMError as error:
            told = [error]
    distributed.broadcast_object_list(told)
    if isinstance(told[0], CryoFMError):
        raise told[0]
    made: T = told[0]
    return made


def shard(network: nn.Module) -> None:
    """Divide the weights of an `Hourglass` among the processes, block by block, in place.

    Raises:
        CryoFMError: another network.
    """
    if not isinstance(network, Hourglass):
        raise CryoFMError(f"only an Hourglass can be divided among processes; found a {type(network).__name__}")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # FSDP2 warns that volumes reshaped from tokens are views; nothing here writes into a velocity.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(next(network.parameters()).device.type, (rank_and_world()[1],))
    for module in [m for m in network.modules() if isinstance(m, Block)]:
        fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh)


def gathered(network: nn.Module) -> nn.Module:
    """A network as it was before `shard`, whole on every process; any other as it is."""
    state = network.state_dict()
    if not isinstance(network, Hourglass) or all(whole(value) is value for value in state.values()):
        return network
    with torch.device("meta"):
        complete = Hourglass(network.config)
    complete.load_state_dict({name: whole(value) for name, value in state.items()}, assign=True)
    return complete


def whole(value: Tensor) -> Tensor:
    """A tensor put together from its shards; any other as it is."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def mean(value: Tensor) -> float:
    """Mean of a scalar over the processes, the same on each."""
    if rank_and_world()[1] > 1:
        distributed.all_reduce(value)
    return value.item() / rank_and_world()[1]


def wait() -> None:
    """Until every process is here."""
    if rank_and_world()[1] > 1:
        distributed.barrier()
