"""One program in several processes, as torchrun starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from cryofm_sampling.errors import SettingError

__all__ = ["everyone", "is_first", "joined"]


def everyone() -> "dist.ProcessGroup | None":
    """The processes of this program, where there are several.

    >>> everyone() is None
    True
    """
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


def is_first() -> bool:
    """Whether this is the process that speaks and writes for all.

    >>> is_first()
    True
    """
    return everyone() is None or dist.get_rank() == 0


@contextmanager
def joined(device: str, /) -> Iterator[None]:
    """Join the processes that torchrun started, if it did. Of those that fail one says why; torchrun ends the others.

    Args:
        device: what they compute on: `"cpu"`, or `"cuda"`, a GPU for each.

    Raises `SettingError` where there is no GPU for this one, and `SystemExit` where another was heard.

    >>> with joined("cpu"):
    ...     everyone() is None
    True
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    from torch.distributed.rendezvous import rendezvous

    backend = "nccl" if device.startswith("cuda") else "gloo"
    if backend == "nccl":
        index, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if device != "cuda" or index >= there:
            raise SettingError(f"{there} GPUs here: give --nproc-per-node={there} at most, and --device cuda")
        torch.cuda.set_device(index)
    store, rank, size = next(rendezvous("env://"))
    slow = timedelta(days=1)  # such as the first one when it writes
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=slow)
    try:
        yield
        dist.barrier()
    except BaseException:
        if store.add("failed", 1) > 1:  # another did, and was heard
            raise SystemExit(2) from None
        raise
    dist.destroy_process_group()  # which, where one has failed, would wait for it
