"""A model of unknown orientation, position and hand beside the truth: FSC after the best alignment, and pose errors."""

import math

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from cryofm_io import fsc
from cryofm_ops import rotation_from_vector, so3_grid

RADIUS, COARSE = 9, 4  # frequencies, in units of 1/n, at which models are compared
MIRROR = torch.diag(torch.tensor([1.0, 1.0, -1.0]))


def transform(x: Tensor, radius: int) -> Tensor:
    """The transform of a cube about voxel n // 2 on half-integer frequencies, for linear interpolation up to radius."""
    n, reach = x.shape[-1], 2 * radius + 2
    p = (torch.arange(n, dtype=torch.float64) - n // 2) / (2 * n)
    k = torch.arange(-reach, reach + 1, dtype=torch.float64)
    dft = torch.polar(1 / torch.sinc(p) ** 2, -2 * math.pi * k[:, None] * p).to(torch.complex64)
    return torch.einsum("Zz,zYX->ZYX", dft, dft @ (x.to(dft.dtype) @ dft.mT))


def sample(table: Tensor, points: Tensor) -> Tensor:
    """The transform at frequencies `(..., 3)`, (x, y, z) in units of 1/n."""
    q = 2 * points + len(table) // 2
    first = q.floor()
    f, at = q - first, first.long()
    total = torch.zeros(points.shape[:-1], dtype=table.dtype)
    for corner in torch.cartesian_prod(*3 * [torch.arange(2)]):
        weight = torch.where(corner.bool(), f, 1 - f).prod(-1)
        x, y, z = (at + corner).unbind(-1)
        total += weight * table[z, y, x]
    return total


def ball(radius: int) -> Tensor:
    """Frequencies 0 < |k| ≤ radius `(m, 3)`, one of each pair k and −k."""
    side = torch.arange(-radius, radius + 1)
    p = torch.cartesian_prod(torch.arange(radius + 1), side, side)
    first = (p[:, 0] > 0) | (p[:, 1] > 0) | ((p[:, 1] == 0) & (p[:, 2] > 0))
    return p[(p.square().sum(-1) <= radius**2) & first].float()


def moved(x: Tensor, rotation: Tensor, shift: Tensor) -> Tensor:
    """The cube whose transform is x̃(Rᵀ k) exp(2πi k·s/n), up to 15/16 of Nyquist."""
    n = x.shape[-1]
    limit = n // 2 - 1
    k, half = torch.fft.fftfreq(n, 1 / n), torch.arange(n // 2 + 1).float()
    z, y, x_ = torch.meshgrid(k, k, half, indexing="ij")
    p = torch.stack((x_, y, z), -1)
    inside = p.norm(dim=-1) <= limit
    p = torch.where(inside[..., None], p, 0)
    phase = 2 * math.pi / n * (p @ shift - n // 2 * p.sum(-1))
    values = sample(transform(x, limit), p @ rotation) * inside * torch.polar(torch.ones_like(phase), phase)
    rotated: Tensor = torch.fft.irfftn(values, s=(n, n, n))
    return rotated


def aligned(x: Tensor, truth: Tensor, rotations: Tensor | None = None, true_rotations: Tensor | None = None) -> Tensor:
    """A model `(n, n, n)` brought onto the truth.

    Candidates are a grid of rotations and, where the images' poses are known, what turns the model's into the true
    ones, image by image; the best are refined in rotation and shift. Both hands are tried.
    """
    n = x.shape[-1]
    points, low = ball(RADIUS), ball(COARSE)
    table = transform(truth, RADIUS + 1)
    target, target_low = sample(table, points), sample(table, low)
    grid = so3_grid(2, dtype=torch.float32)
    best = (math.inf, x, torch.eye(3), torch.zeros(3))
    for hand in (x, x.flip(0).roll(1 - n % 2, 0)):
        own = transform(hand, RADIUS + 1)

        def score(rotation: Tensor, shift: Tensor, own: Tensor = own) -> float:
            phase = 2 * math.pi / n * (points @ shift)
            made = sample(own, points @ rotation) * torch.polar(torch.ones_like(phase), phase)
            product = (target.conj() * made).real.sum() / (target.norm() * made.norm()).clamp(min=1e-9)
            return float(product)

        candidates = grid[(target_low.conj() * sample(own, low @ grid)).real.sum(-1).topk(6).indices]
        if rotations is not None and true_rotations is not None:
            seen = rotations if hand is x else MIRROR @ rotations @ MIRROR
            candidates = torch.cat((candidates, true_rotations.mT @ seen))
        scores = torch.tensor([score(rotation, torch.zeros(3)) for rotation in candidates])
        for start in candidates[scores.topk(2).indices]:

            def pose(u: np.ndarray, start: Tensor = start) -> tuple[Tensor, Tensor]:
                v = torch.from_numpy(u).float()
                return rotation_from_vector(10 * v[:3]) @ start, v[3:]

            options = {"maxiter": 4, "xtol": 1e-2, "ftol": 1e-4}
            found = minimize(lambda u: -score(*pose(u)), np.zeros(6), method="Powell", options=options)
            if found.fun < best[0]:
                best = (found.fun, hand, *pose(found.x))
    return moved(*best[1:])


def resolution(x: Tensor, truth: Tensor, voxel_size: float) -> float:
    """Where FSC falls below 0.5, Å."""
    return float(fsc(x.numpy(), truth.numpy(), voxel_size).resolution(0.5))
