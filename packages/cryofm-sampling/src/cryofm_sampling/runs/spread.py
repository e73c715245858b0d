"""Runs that know nothing of each other, such as posterior samples or the two halves, on several processes."""

from collections.abc import Callable, Sequence

import attrs
import torch.distributed as dist

from cryofm_sampling.protocols import Draw
from cryofm_sampling.runs._ranks import rank_and_size

__all__ = ["spread"]


def spread(jobs: Sequence[Callable[[], Draw]], group: "dist.ProcessGroup | None" = None, /) -> list[Draw]:
    """Do every job, job i on rank i modulo their number, and give every rank all the results.

    Args:
        jobs: without arguments, the same ones in the same order on every rank; each with random numbers of its own
            (a generator that two of them draw from would make a result depend on who did the other).
        group: `torch.distributed` processes, such as `torch.distributed.group.WORLD` under torchrun; None: this
            process does all of them.

    >>> import torch
    >>> halves = [torch.zeros(4, 4, 4), torch.ones(4, 4, 4)]
    >>> [float(draw.x.mean()) for draw in spread([lambda x=x: Draw(x, 1, {}) for x in halves])]
    [0.0, 1.0]
    """
    rank, size = rank_and_size(group)
    own = {i: jobs[i]() for i in range(rank, len(jobs), size)}
    return [own[i] if group is None else _broadcast(own.get(i), i % size, group) for i in range(len(jobs))]


def _broadcast(draw: Draw | None, rank: int, group: "dist.ProcessGroup") -> Draw:
    content = [None if draw is None else (draw.x.device.type, attrs.evolve(draw, x=draw.x.cpu()))]
    dist.broadcast_object_list(content, src=dist.get_global_rank(group, rank), group=group)
    assert content[0] is not None
    device, found = content[0]
    return draw or attrs.evolve(found, x=found.x.to(device))
