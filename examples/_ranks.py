"""One run in several processes, as torchrun starts them: the first one speaks and writes for all."""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from cryofm_io import CryoFMError

T = TypeVar("T")


def everyone() -> "dist.ProcessGroup | None":
    """The processes of this run, where there are several."""
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


def is_first() -> bool:
    """Whether this is the one that writes."""
    return everyone() is None or dist.get_rank() == 0


def agreed(value: T) -> T:
    """That of the first, for all: where machines differ the last bits do."""
    content = [value]
    if everyone() is not None:
        dist.broadcast_object_list(content)
    return content[0]


@contextmanager
def dropped() -> Iterator[Path]:
    """A folder for what the first one keeps."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def ranks(device: str) -> Iterator[None]:
    """Join the processes that torchrun started, if it did. Of those that fail one says why; torchrun ends the others.

    Raises:
        CryoFMError: there is no GPU for this one.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    from torch.distributed.rendezvous import rendezvous

    backend = "nccl" if device.startswith("cuda") else "gloo"
    if backend == "nccl":
        index, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if device != "cuda" or index >= there:
            raise CryoFMError(f"{there} GPUs here: give --nproc-per-node={there} at most, and --device cuda")
        torch.cuda.set_device(index)
    store, rank, size = next(rendezvous("env://"))
    slow = timedelta(days=1)  # such as the first one when it writes
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=slow)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if is_first() else nowhere):
            if not is_first():
                warnings.showwarning = lambda *_, **__: None
                logging.disable()
            yield
        dist.barrier()
    except BaseException:
        if store.add("failed", 1) > 1:  # another did, and was heard
            raise SystemExit(2) from None
        raise
    dist.destroy_process_group()  # which, where one has failed, would wait for it
