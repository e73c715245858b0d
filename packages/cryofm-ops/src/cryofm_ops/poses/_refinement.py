"""Gauss–Newton refinement of many poses at once, on the coefficients of central slices."""

import math

import torch
from torch import Tensor

from cryofm_ops.poses._central_slices import CentralSlices
from cryofm_ops.rotations.conversions import rotation_from_vector

TINY = 1e-30


def refine(
    slices: CentralSlices,
    y: Tensor,
    m: Tensor,
    k: Tensor,
    n: int,
    rotations: Tensor,
    shifts: Tensor,
    max_shift: float,
    iterations: int = 2,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss–Newton steps from poses `(K, T)` towards the best correlation with y `(K, m)`, of unit norm.

    Least squares of a p(pose) against y with the amplitude a projected out: the derivatives J of the unit slice p are
    made orthogonal to it, and (J Jᵀ) δ = J y / ⟨p, y⟩.
    """
    frequency = 2j * math.pi / n * k.to(rotations).mT[:, None]  # (2, 1, m): ∂/∂shift

    def evaluate(rotations: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, derivative = slices.with_gradient(rotations, k)
        moved = m[:, None] * phase(shifts, k, n)
        value, derivative = value * moved, derivative * moved[..., None, :]
        norm = torch.linalg.vector_norm(value, dim=-1, keepdim=True).clamp(min=TINY)
        p = value / norm
        j = torch.cat((derivative / norm[..., None], *(f * p[..., None, :] for f in frequency)), -2)
        p, j = columns(p), columns(j)
        return (p * columns(y)[:, None]).sum(-1), p, j

    score, p, j = evaluate(rotations, shifts)
    damping = torch.full_like(score, 1e-3)
    for _ in range(iterations):
        along = j @ p[..., None]
        normal = j @ j.mT - along @ along.mT
        right = (j @ columns(y)[:, None, :, None] - along * score[..., None, None]).squeeze(-1)
        diagonal = normal.diagonal(dim1=-2, dim2=-1)
        normal = normal + torch.diag_embed(damping[..., None] * diagonal + TINY)
        step = torch.linalg.solve(normal, right / score.clamp(min=0.05)[..., None])
        new_rotations = rotation_from_vector(step[..., :3].rad2deg()) @ rotations
        new_shifts = (shifts + step[..., 3:]).clamp(-max_shift, max_shift)
        new_score, new_p, new_j = evaluate(new_rotations, new_shifts)
        better = new_score > score
        rotations = torch.where(better[..., None, None], new_rotations, rotations)
        shifts = torch.where(better[..., None], new_shifts, shifts)
        p = torch.where(better[..., None], new_p, p)
        j = torch.where(better[..., None, None], new_j, j)
        score = torch.maximum(score, new_score)
        damping = torch.where(better, damping / 4, damping * 16)
    return rotations, shifts, score


def phase(shifts: Tensor, k: Tensor, n: int) -> Tensor:
    """exp(2πi k·s/n): what moves an image by minus s, `(..., m)`."""
    angle = 2 * math.pi / n * (shifts @ k.to(shifts).mT)
    return torch.polar(torch.ones_like(angle), angle)


def columns(c: Tensor) -> Tensor:
    """Complex `(..., m)` as real `(..., 2 m)`, so that a product is Re⟨a, b⟩."""
    return torch.view_as_real(c).flatten(-2)
