"""Work shared by the processes ("ranks") of a `torch.distributed` group, all of which hold the same volume."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cryofm_sampling.errors import SettingError

__all__ = ["check_same", "gathered", "rank_and_size", "replicated"]

_SUMS = 64


def rank_and_size(group: "dist.ProcessGroup | None") -> tuple[int, int]:
    """Which rank of how many this is; (0, 1) without a group."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def gathered(part: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """The parts `(n, ...)` of all ranks, as many from each, one after another: `(ranks · n, ...)` on all of them.

    Whatever is computed from the result is computed by every rank alike, so a gradient with respect to it is known to
    all, and each takes the rows that were its own.
    """
    return part if group is None else _Gathered.apply(part, group)  # type: ignore[no-untyped-call]


def replicated(x: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """x, of whose gradient every rank makes a part: backward, their sum."""
    return x if group is None else _Replicated.apply(x, group)  # type: ignore[no-untyped-call]


def check_same(x: Tensor, group: "dist.ProcessGroup | None") -> None:
    """Raise `SettingError`, on every rank, where the ranks hold different volumes; sums of voxels times signs tell."""
    if group is not None:
        v = x.detach().flatten().float()
        v = torch.nn.functional.pad(v, (0, -len(v) % _SUMS))
        signs = 2 * (torch.arange(len(v), device=v.device) * 2654435761 >> 16 & 1) - 1  # as good as random (Knuth)
        sums = (v * signs).reshape(-1, _SUMS).sum(0)
        all_of_them = torch.stack(_all_gather(sums, group))
        if (all_of_them - all_of_them[0]).norm(dim=-1).max() > 1e-2 * all_of_them.norm(dim=-1).max():
            raise SettingError("the ranks that share tiles hold different volumes: give each the same seed and data")


def _all_gather(part: Tensor, group: "dist.ProcessGroup") -> list[Tensor]:
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, part.contiguous(), group=group)
    return parts


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: "dist.ProcessGroup") -> Tensor:
        ctx.rows, ctx.rank = len(part), dist.get_rank(group)
        return torch.cat(_all_gather(part, group))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (g,) = gradients
        return g[ctx.rank * ctx.rows : (ctx.rank + 1) * ctx.rows], None


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: "dist.ProcessGroup") -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        # Not all_reduce: the parts are added in the order of the ranks, so that all get the same bits every time.
        total, *others = _all_gather(gradients[0], ctx.group)
        for part in others:
            total += part
        return total, None
