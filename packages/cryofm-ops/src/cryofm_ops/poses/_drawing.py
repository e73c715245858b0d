"""Poses drawn from what each image says of them, given a volume: Gibbs sampling, first the rotation, then the shift."""

import math

import torch
from torch import Tensor

from cryofm_ops.poses._central_slices import CentralSlices
from cryofm_ops.poses._refinement import columns, phase
from cryofm_ops.rotations.conversions import random_rotations
from cryofm_ops.rotations.so3_grid import so3_grid

_ORDER = 2  # 4608 rotations, 7 degrees from any
_STEP_PX = 0.5
_SAMPLES = 2**16  # interpolated at a time, so that they stay in the cache


def draw(
    slices: CentralSlices,
    y: Tensor,
    m: Tensor,
    precision: Tensor,
    k: Tensor,
    n: int,
    shifts: Tensor,
    max_shift: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Poses `(K, 3, 3)`, `(K, 2)` with probability ∝ exp(−Σ precision |y − m p(pose)|²), for y `(K, m)`.

    Rotations are drawn at the given shifts, of a grid that is turned at random as a whole; shifts at those rotations,
    of all within max_shift along each axis, half a pixel apart.
    """
    frame = random_rotations(1, generator=generator, dtype=torch.float64)[0].to(y.device)
    grid = (so3_grid(_ORDER, device=y.device) @ frame).to(y.real)
    p = torch.cat([slices(some, k) for some in torch.split(grid, max(1, _SAMPLES // len(k)))])
    weighed = precision * m * y
    fit = 2 * columns(weighed * phase(-shifts, k, n)) @ columns(p).mT - (precision * m**2) @ p.abs().square().mT
    rotations = grid[_choose(fit, generator)]
    steps = math.floor(max_shift / _STEP_PX)
    side = _STEP_PX * torch.arange(-steps, steps + 1).to(grid)
    moves = torch.cartesian_prod(side, side)
    p = slices(rotations[:, None], k)[:, 0]
    return rotations, moves[_choose(2 * columns(weighed * p.conj()) @ columns(phase(moves, k, n)).mT, generator)]


def _choose(weight: Tensor, generator: torch.Generator) -> Tensor:
    """An index of each row, drawn with probability ∝ exp(weight)."""
    u = torch.rand(len(weight), generator=generator, dtype=torch.float64, device=generator.device).to(weight.device)
    total = (weight - weight.amax(-1, keepdim=True)).double().exp().cumsum(-1)
    return torch.searchsorted(total, u[:, None] * total[:, -1:]).squeeze(-1).clamp(max=weight.shape[-1] - 1)
