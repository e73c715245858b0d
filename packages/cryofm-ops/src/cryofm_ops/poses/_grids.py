"""Views spread evenly, and how one of a grid is drawn."""

import math

import torch
from torch import Tensor

from cryofm_ops.rotations.conversions import random_rotations


def spread_views(count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Views `(count, 3, 3)` whose directions are spread evenly, turned at random as a whole."""
    i = torch.arange(count, dtype=torch.float64) + 0.5
    z, phi = 1 - 2 * i / count, math.pi * (3 - math.sqrt(5)) * i
    sin = (1 - z**2).sqrt()
    cos_phi, sin_phi, zero = phi.cos(), phi.sin(), torch.zeros_like(z)
    rows = (cos_phi * z, sin_phi * z, -sin, -sin_phi, cos_phi, zero, cos_phi * sin, sin_phi * sin, z)
    whole = random_rotations(1, generator=generator, dtype=torch.float64)
    return (torch.stack(rows, -1).reshape(count, 3, 3) @ whole).to(like)


def choose(weight: Tensor, streams: list[torch.Generator], greedy: bool) -> Tensor:
    """An index of each row, drawn with probability ∝ exp(weight), or the largest's."""
    if greedy:
        return weight.argmax(-1)
    total = (weight - weight.amax(-1, keepdim=True)).double().exp().cumsum(-1)
    u = torch.stack([torch.rand((), generator=stream, dtype=torch.float64, device=stream.device) for stream in streams])
    return torch.searchsorted(total, (u.to(total) * total[:, -1])[:, None]).squeeze(-1).clamp(max=weight.shape[-1] - 1)
