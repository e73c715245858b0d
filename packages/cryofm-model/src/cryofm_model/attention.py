"""Neighbourhood attention in three dimensions.

A. Hassani, S. Walton, J. Li, S. Li, H. Shi, "Neighborhood Attention Transformer", CVPR 2023 (arXiv
2204.07143), with the border rule of NATTEN: a window that would leave the box is shifted inside, so
every query attends to the same number of keys.
"""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .errors import CryoFMError

__all__ = ["neighborhood_attention_3d"]


def neighborhood_attention_3d(q: Tensor, k: Tensor, v: Tensor, kernel_size: int) -> Tensor:
    """Softmax attention of every query over its `kernel_size`³ window of keys, forward and backward exact.

    Along an axis of n tokens, query i attends to the keys start, …, start + kernel_size − 1 with
    start = clamp(i − kernel_size // 2, 0, n − kernel_size). The logits are plain products q · k: scale the
    queries beforehand (by (head width)^−½, or by the learned scale of cosine similarity).

    Args:
        q: queries (batch, z, y, x, heads, head width).
        k: keys, of the same shape, dtype and device.
        v: values, likewise.
        kernel_size: side of the window in tokens, from 1 up to the shortest side of the grid.

    Returns:
        (batch, z, y, x, heads, head width).

    Raises:
        CryoFMError: shapes that differ or are not 6-dimensional; a window that does not fit into the
            grid. It is never narrowed silently.

    >>> q, k, v = torch.randn(3, 1, 4, 5, 6, 2, 8, generator=torch.Generator().manual_seed(0))
    >>> neighborhood_attention_3d(q, k, v, kernel_size=3).shape
    torch.Size([1, 4, 5, 6, 2, 8])
    """
    if q.ndim != 6 or not q.shape == k.shape == v.shape:
        raise CryoFMError(
            "neighborhood_attention_3d needs q, k and v of one shape (batch, z, y, x, heads, head width); "
            f"found {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    grid = q.shape[1:4]
    if not 1 <= kernel_size <= min(grid):
        raise CryoFMError(
            f"kernel_size {kernel_size} does not fit into a grid of {tuple(grid)} tokens (z, y, x): "
            f"use a kernel_size from 1 to {min(grid)}, or pad the volume"
        )
    depth, height, width = grid
    in_plane = (
        _members(height, kernel_size, q.device)[:, None, :, None]
        & (_members(width, kernel_size, q.device)[None, :, None, :])
    )
    # (y·x, kernel·y·x): the keys of every plane of a window are masked alike.
    mask = rearrange(in_plane, "y x j i -> (y x) (j i)").repeat(1, kernel_size)
    # Additive, since a boolean mask would be converted, and kept for the backward pass, once per plane.
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -torch.inf)

    # One plane of queries against the contiguous planes of its window: views only, no gather, and the
    # logits of one plane are all that exists at a time.
    q, k, v = (rearrange(a, "b z y x h d -> b h z (y x) d") for a in (q, k, v))
    planes = []
    for z, start in enumerate(_starts(depth, kernel_size).tolist()):
        window = slice(start, start + kernel_size)
        keys, values = (a[:, :, window].flatten(2, 3) for a in (k, v))
        planes.append(scaled_dot_product_attention(q[:, :, z], keys, values, attn_mask=bias, scale=1.0))
    return rearrange(torch.stack(planes, 2), "b h z (y x) d -> b z y x h d", y=height)


def _starts(n: int, kernel_size: int, device: torch.device | None = None) -> Tensor:
    """First key of the window of each of n queries, (n,)."""
    return (torch.arange(n, device=device) - kernel_size // 2).clamp(0, n - kernel_size)


def _members(n: int, kernel_size: int, device: torch.device) -> Tensor:
    """Whether key j is in the window of query i along an axis of n tokens, boolean (n, n) [i, j]."""
    offset = torch.arange(n, device=device) - _starts(n, kernel_size, device)[:, None]
    return (offset >= 0) & (offset < kernel_size)
