"""Neighbourhood attention by PyTorch's flex attention, compiled into one kernel on a GPU.

J. Dong et al., "Flex Attention: A Programming Model for Generating Optimized Attention Kernels" (arXiv
2412.05496). The kernel leaves out whole blocks of queries × keys that are masked, so the tokens are first put
into an order in which a block is a compact box, as the tiles of A. Hassani et al., "Generalized Neighborhood
Attention" (arXiv 2504.16922) are.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from cryofm_model.attention.once import differentiable_once
from cryofm_model.attention.window import starts

__all__ = ["block_mask", "flex_neighborhood_attention", "flex_supports"]

_BOX = (4, 4, 8)  # tokens along z, y, x: a block of 128


def flex_supports(q: Tensor) -> bool:
    """Whether flex attention can be compiled for these queries."""
    halves_too = (torch.float32, torch.float16, torch.bfloat16)
    return q.is_cuda and q.dtype in halves_too and q.shape[-1] >= 16 and importlib.util.find_spec("triton") is not None


def flex_neighborhood_attention(q: Tensor, k: Tensor, v: Tensor, kernel: int, *, compiled: bool = True) -> Tensor:
    """Neighbourhood attention of q, k, v (batch, z, y, x, heads, head width); a second derivative raises.

    The first call for a shape compiles, which takes some seconds. Without `compiled` every score is
    materialised, and on a CPU there is no backward pass: that is for tests.
    """
    shape, grid = q.shape, tuple(q.shape[1:4])
    order, place = _order(grid, q.device)
    mask = block_mask(grid, kernel, q.device, compiled)
    q, k, v = (a.flatten(1, 3)[:, order].transpose(1, 2) for a in differentiable_once(q, k, v))
    out: Tensor = _flex(compiled)(q, k, v, block_mask=mask, scale=1.0)
    return out.transpose(1, 2)[:, place].reshape(shape)


@functools.cache
def _flex(compiled: bool) -> Callable[..., Any]:
    attend: Callable[..., Any] = flex_attention
    return torch.compile(attend) if compiled else attend


@functools.lru_cache(maxsize=16)
def _order(grid: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The tokens, box after box, and the place of each token in that order; both (tokens,)."""
    box = torch.zeros(grid, dtype=torch.long)
    for axis, (n, side) in enumerate(zip(grid, _BOX, strict=True)):
        along = torch.arange(n) // side
        box = box * (n // side + 1) + along.view(-1, *[1] * (2 - axis))
    order = box.flatten().argsort(stable=True)
    return order.to(device), order.argsort().to(device)


@functools.lru_cache(maxsize=16)
def block_mask(grid: tuple[int, ...], kernel: int, device: torch.device, compiled: bool) -> BlockMask:
    """Which blocks of the ordered tokens see each other, and within a block which tokens."""
    order, _ = _order(grid, device)
    coordinates = torch.unravel_index(order, grid)
    z, y, x = coordinates
    z_start, y_start, x_start = (
        torch.tensor(starts(n, kernel), device=device)[c] for n, c in zip(grid, coordinates, strict=True)
    )

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        inside = torch.ones_like(query, dtype=torch.bool)
        for start, c in ((z_start, z), (y_start, y), (x_start, x)):
            offset = c[key] - start[query]
            inside = inside & (offset >= 0) & (offset < kernel)
        return inside

    create = torch.compile(create_block_mask) if compiled else create_block_mask
    mask: BlockMask = create(sees, None, None, len(order), len(order), device=str(device))
    return mask
