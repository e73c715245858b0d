"""Neighbourhood attention in three dimensions, and the choice of what computes it.

A. Hassani, S. Walton, J. Li, S. Li, H. Shi, "Neighborhood Attention Transformer", CVPR 2023 (arXiv
2204.07143), with the border rule of NATTEN: a window that would leave the box is shifted inside, so
every query attends to the same number of keys.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from cryofm_model.attention.flex import flex_neighborhood_attention, flex_supports
from cryofm_model.attention.fused import natten_attention, natten_supports
from cryofm_model.attention.tiled import tiled_attention
from cryofm_model.errors import CryoFMError

__all__ = ["AttentionBackend", "attention_backend", "neighborhood_attention_3d"]

AttentionBackend = Literal["natten", "flex", "tiled"]
_forced: contextvars.ContextVar[AttentionBackend | None] = contextvars.ContextVar("attention backend", default=None)


def neighborhood_attention_3d(q: Tensor, k: Tensor, v: Tensor, kernel_size: int) -> Tensor:
    """Softmax attention of every query over its `kernel_size`³ window of keys, forward and backward exact.

    Along an axis of n tokens, query i attends to the keys start, …, start + kernel_size − 1 with
    start = clamp(i − kernel_size // 2, 0, n − kernel_size). The logits are plain products q · k: scale the
    queries beforehand (by (head width)^−½, or by the learned scale of cosine similarity).

    Computed by the first of these that can: NATTEN's kernels on CUDA, compiled flex attention on CUDA, and
    everywhere else (CPU, float64, narrow heads) tile by tile in plain PyTorch. `attention_backend` overrides
    the choice. Memory grows linearly with the tokens. Only the last differentiates twice; the others raise.

    Args:
        q: queries (batch, z, y, x, heads, head width).
        k: keys, of the same shape, dtype and device.
        v: values, likewise.
        kernel_size: side of the window in tokens, from 1 up to the shortest side of the grid.

    Returns:
        (batch, z, y, x, heads, head width), of the dtype of q.

    Raises:
        CryoFMError: shapes, dtypes or devices that differ; tensors that are not 6-dimensional; a window that
            does not fit into the grid (it is never narrowed silently); a forced backend that cannot do it.

    >>> q, k, v = torch.randn(3, 1, 4, 5, 6, 2, 8, generator=torch.Generator().manual_seed(0))
    >>> neighborhood_attention_3d(q, k, v, kernel_size=3).shape
    torch.Size([1, 4, 5, 6, 2, 8])
    """
    if q.ndim != 6 or not q.shape == k.shape == v.shape:
        raise CryoFMError(
            "neighborhood_attention_3d needs q, k and v of one shape (batch, z, y, x, heads, head width); "
            f"found {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if len({(a.dtype, a.device) for a in (q, k, v)}) > 1:
        found = ", ".join(f"{a.dtype} on {a.device}" for a in (q, k, v))
        raise CryoFMError(f"neighborhood_attention_3d needs q, k and v of one dtype on one device; found {found}")
    grid = q.shape[1:4]
    if not 1 <= kernel_size <= min(grid):
        raise CryoFMError(
            f"kernel_size {kernel_size} does not fit into a grid of {tuple(grid)} tokens (z, y, x): "
            f"use a kernel_size from 1 to {min(grid)}, or pad the volume"
        )
    able: list[AttentionBackend] = ["tiled"]
    if flex_supports(q):
        able.insert(0, "flex")
    if natten_supports(q, kernel_size):
        able.insert(0, "natten")
    backend = _forced.get() or able[0]
    if backend not in able:
        raise CryoFMError(
            f"the attention backend {backend!r} cannot take {q.dtype} on {q.device} with head width {q.shape[-1]}, "
            f"or is not installed: choose from {', '.join(able)}"
        )
    with torch.autocast(q.device.type, enabled=False):  # the precision is that of the inputs
        if backend == "natten":
            return natten_attention(q, k, v, kernel_size)
        if backend == "flex":
            return flex_neighborhood_attention(q, k, v, kernel_size)
        return tiled_attention(q, k, v, kernel_size)


@contextlib.contextmanager
def attention_backend(backend: AttentionBackend) -> Iterator[None]:
    """Make `neighborhood_attention_3d` use one backend within the block, whatever network calls it.

    Args:
        backend: "natten", "flex" or "tiled".

    Raises:
        CryoFMError: no such backend; when attention is called, one that cannot compute it.

    >>> q, k, v = torch.randn(3, 1, 4, 5, 6, 2, 8, generator=torch.Generator().manual_seed(0))
    >>> with attention_backend("tiled"):
    ...     out = neighborhood_attention_3d(q, k, v, kernel_size=3)
    """
    if backend not in get_args(AttentionBackend):
        raise CryoFMError(f"attention backend {backend!r} is not one of {', '.join(get_args(AttentionBackend))}")
    token = _forced.set(backend)
    try:
        yield
    finally:
        _forced.reset(token)
