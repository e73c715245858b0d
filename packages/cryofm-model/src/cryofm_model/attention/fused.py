"""Neighbourhood attention by NATTEN's fused CUDA kernels (``pip install 'cryofm-model[natten]'``).

A. Hassani et al., "Faster Neighborhood Attention: Reducing the O(n²) Cost of Self Attention at the Threadblock
Level", NeurIPS 2024 (arXiv 2403.04690). https://natten.org, version 0.21 or later.
"""

import functools
import importlib
import importlib.util

import torch
from torch import Tensor

from cryofm_model.attention.once import differentiable_once

__all__ = ["natten_attention", "natten_supports"]


def natten_supports(q: Tensor, kernel: int) -> bool:
    """Whether NATTEN is installed with its kernels, and these take such queries."""
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    return q.is_cuda and q.dtype in dtypes and q.shape[-1] % 8 == 0 and kernel > 1 and _has_kernels()


def natten_attention(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> Tensor:
    """Neighbourhood attention of q, k, v (batch, z, y, x, heads, head width); a second derivative raises."""
    natten = importlib.import_module("natten")
    q, k, v = differentiable_once(q, k, v)
    out: Tensor = natten.na3d(q, k, v, kernel_size=kernel, scale=1.0)
    return out


@functools.cache
def _has_kernels() -> bool:
    if importlib.util.find_spec("natten") is None:
        return False
    return bool(getattr(importlib.import_module("natten"), "HAS_LIBNATTEN", False))
