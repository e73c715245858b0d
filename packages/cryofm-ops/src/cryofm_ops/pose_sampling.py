"""Poses of a few images of an unknown object, from their common lines alone, by annealed Gibbs sampling.

Every chain starts from random poses. A sweep draws the pose of one image after the other from what its common lines
with all others say of it: for each of a grid of directions and in-plane angles, the sum over the other images of the
log likelihood ratio that the two lines in which the slices cross are one (`CommonLines`). The likelihood sharpens, and
takes in higher frequencies, from stage to stage; in the last sweeps the best pose is taken. Shifts are drawn in turn.

Poses are up to a rotation of all, and a mirror: the hand of an object is not in its projections.
"""

import math

import attrs
import torch
from torch import Tensor

from cryofm_ops.common_lines import CommonLines, directions, polar_transform
from cryofm_ops.errors import GeometryError
from cryofm_ops.rotations import random_rotations

__all__ = ["PoseSamples", "sample_poses"]

_ANGLES = 120  # lines of an image, 3 degrees apart
_DIRECTIONS, _FINE_DIRECTIONS = 400, 1200
_STAGES, _SWEEPS, _GREEDY = 8, 3, 3
_ALPHA = (1.0, 0.06)
_RADIUS = (4 / 13, 12 / 13)  # of the highest frequency
_STEP_PX = 0.5
_RADIUS_OF_ALL = 13


@attrs.frozen(eq=False)
class PoseSamples:
    """Poses of K images from C chains, the best first.

    Attributes:
        rotations: object to view, `(C, K, 3, 3)`.
        shifts_px: what centres the images, (x, y), `(C, K, 2)`.
        score: sum of the log likelihood ratios of all pairs of images, `(C,)`.
    """

    rotations: Tensor
    shifts_px: Tensor
    score: Tensor


@torch.no_grad()
def sample_poses(
    images: Tensor,
    *,
    chains: int,
    generator: torch.Generator,
    noise: Tensor | None = None,
    max_shift_px: float = 0.0,
    radius: int | None = None,
    symmetry: Tensor | None = None,
) -> PoseSamples:
    """Sample the poses of images of one object of which nothing else is known.

    Args:
        images: `(K, n, n)`, background 0, all of one scale, K at least 2 (three for their poses to be determined).
        chains: number of independent chains.
        generator: of all random numbers; every chain has a stream of its own.
        noise: power of the images' noise at frequencies 1, 2, … of the transform that is not normalised, for
            `radius` of them. None: no noise.
        max_shift_px: how far off centre an image may be.
        radius: highest frequency to use, in units of 1/n; 0.8 of Nyquist by default.
        symmetry: rotations `(G, 3, 3)` of the object's point group.
    """
    K, n = images.shape[0], images.shape[-1]
    if images.ndim != 3 or images.shape[-2] != n or K < 2:
        raise GeometryError(f"poses are sampled for at least 2 square images (K, n, n), got {tuple(images.shape)}")
    radius = int(0.8 * n / 2) if radius is None else radius
    lines = polar_transform(images, _ANGLES, radius)
    noise = torch.zeros(radius).to(images) if noise is None else noise.to(images)
    group = torch.eye(3).to(images)[None] if symmetry is None else symmetry.to(images)
    reach = math.ceil(2 * math.sqrt(2) * max_shift_px / _STEP_PX)
    offsets = _STEP_PX * torch.arange(-reach, reach + 1).to(images)
    streams = [torch.Generator(generator.device).manual_seed(int(torch.randint(2**62, (), generator=generator))) for _ in range(chains)]
    turns = torch.Generator().manual_seed(0)  # of the grids, which all chains share

    rotations = torch.stack([random_rotations(K, generator=stream) for stream in streams]).to(images)
    shifts = torch.zeros(chains, K, 2).to(images)
    for stage in range(_STAGES):
        s = stage / (_STAGES - 1)
        alpha = _ALPHA[0] * (_ALPHA[1] / _ALPHA[0]) ** s
        used = max(2, round(radius * (_RADIUS[0] + s * (_RADIUS[1] - _RADIUS[0]))))
        common = CommonLines.of(lines[..., :used], n, noise[:used], alpha, offsets, _STEP_PX * (3 - 2 * s))
        for sweep in range(_SWEEPS):
            greedy = stage == _STAGES - 1 and sweep >= _SWEEPS - _GREEDY
            frames = _frames(_DIRECTIONS, turns, images)
            for k in range(K):
                partners = _Partners.of(k, rotations, shifts, group)
                rotations[:, k] = _draw_rotation(common, k, shifts[:, k], partners, frames, streams, greedy)
                if max_shift_px > 0:
                    shifts[:, k] = _draw_shift(common, k, rotations[:, k], partners, max_shift_px, streams, greedy)
    for _ in range(2):
        frames = _frames(_FINE_DIRECTIONS, turns, images)
        for k in range(K):
            partners = _Partners.of(k, rotations, shifts, group)
            rotations[:, k] = _draw_rotation(common, k, shifts[:, k], partners, frames, streams, True)
            if max_shift_px > 0:
                shifts[:, k] = _draw_shift(common, k, rotations[:, k], partners, max_shift_px, streams, True)
    score = sum(_scores(common, k, rotations, shifts, group) for k in range(K)) / 2
    order = score.argsort(descending=True)
    return PoseSamples(rotations[order], shifts[order], score[order])


@attrs.frozen(eq=False)
class _Partners:
    """The images that image k is compared with, each in all its symmetric views."""

    index: Tensor  # (J,)
    rotations: Tensor  # (C, J, 3, 3)
    shifts: Tensor  # (C, J, 2)

    @classmethod
    def of(cls, k: int, rotations: Tensor, shifts: Tensor, group: Tensor) -> "_Partners":
        K, G = rotations.shape[1], len(group)
        others = torch.tensor([j for j in range(K) if j != k], device=rotations.device)
        views = (rotations[:, others, None] @ group).flatten(1, 2)
        return cls(others.repeat_interleave(G), views, shifts[:, others].repeat_interleave(G, 1))


def _frames(count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Views `(count, 3, 3)` whose directions are spread evenly, turned at random as a whole."""
    i = torch.arange(count, dtype=torch.float64) + 0.5
    z, phi = 1 - 2 * i / count, math.pi * (3 - math.sqrt(5)) * i
    sin = (1 - z**2).sqrt()
    cos_phi, sin_phi, zero = phi.cos(), phi.sin(), torch.zeros_like(z)
    rows = (cos_phi * z, sin_phi * z, -sin, -sin_phi, cos_phi, zero, cos_phi * sin, sin_phi * sin, z)
    whole = random_rotations(1, generator=generator, dtype=torch.float64)
    return (torch.stack(rows, -1).reshape(count, 3, 3) @ whole).to(like)


def _crossing(views: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Where the planes of two views cross: bins of the line's angle in each of them."""
    line = torch.linalg.cross(views[..., 2, :], others[..., 2, :])
    return _bin(views, line), _bin(others, line)


def _bin(views: Tensor, line: Tensor) -> Tensor:
    x, y = (views[..., :2, :] @ line[..., None]).squeeze(-1).unbind(-1)
    return (torch.atan2(y, x) * (_ANGLES / (2 * math.pi))).round().long() % _ANGLES


def _draw_rotation(
    common: CommonLines, k: int, shift: Tensor, partners: _Partners, frames: Tensor, streams: list[torch.Generator], greedy: bool
) -> Tensor:
    C, J = partners.rotations.shape[:2]
    table = _at_shifts(common, k, shift, partners)  # (C, J, b, a)
    a, b = _crossing(frames[None, :, None], partners.rotations[:, None])  # (C, D, J)
    rows = torch.cat((table, table), -1).unfold(-1, _ANGLES, 1)  # (C, J, b, first a, turn)
    c, j = torch.arange(C)[:, None, None], torch.arange(J)
    weight = rows[c, j, b, a].sum(-2).flatten(1)  # (C, D · turn): in-plane turns move a
    chosen = _choose(weight, streams, greedy)
    turn = (chosen % _ANGLES).to(frames) * (2 * math.pi / _ANGLES)
    cos, sin, zero = turn.cos(), turn.sin(), torch.zeros_like(turn)
    in_plane = torch.stack((cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1), -1).reshape(C, 3, 3)
    return in_plane @ frames[chosen // _ANGLES]


def _at_shifts(common: CommonLines, k: int, shift: Tensor, partners: _Partners) -> Tensor:
    """The tables of image k and its partners for the shifts that they have, `(C, J, b, a)`."""
    table = common.table[k][partners.index]  # (J, b, a, offsets)
    if table.shape[-1] == 1:
        return table[..., 0].expand(len(shift), -1, -1, -1)
    u = directions(_ANGLES, table)
    along_k, along_j = shift @ u.mT, partners.shifts @ u.mT  # (C, a), (C, J, b)
    offset = _offset_bin(common, along_k[:, None, None] - along_j[..., None])  # (C, J, b, a)
    return table.expand(len(shift), *table.shape).gather(-1, offset[..., None]).squeeze(-1)


def _offset_bin(common: CommonLines, offset: Tensor) -> Tensor:
    half = len(common.offsets_px) // 2
    return (offset / _STEP_PX).round().long().clamp(-half, half) + half


def _draw_shift(
    common: CommonLines, k: int, views: Tensor, partners: _Partners, largest: float, streams: list[torch.Generator], greedy: bool
) -> Tensor:
    a, b = _crossing(views[:, None], partners.rotations)  # (C, J)
    table = common.table[k, partners.index, b, a]  # (C, J, offsets)
    side = torch.arange(-largest, largest + 1e-6, _STEP_PX / 2).to(table)
    grid = torch.cartesian_prod(side, side)
    u = directions(_ANGLES, table)
    along_k = u[a] @ grid.mT  # (C, J, shifts)
    along_j = (partners.shifts * u[b]).sum(-1, keepdim=True)
    weight = table.gather(-1, _offset_bin(common, along_k - along_j)).sum(1)
    weight = weight - grid.square().sum(-1) / (2 * (largest / 2) ** 2)  # images are centred well rather than badly
    return grid[_choose(weight, streams, greedy)]


def _choose(weight: Tensor, streams: list[torch.Generator], greedy: bool) -> Tensor:
    """An index of each row, drawn with probability ∝ exp(weight), or the largest's."""
    if greedy:
        return weight.argmax(-1)
    total = (weight - weight.amax(-1, keepdim=True)).double().exp().cumsum(-1)
    u = torch.stack([torch.rand((), generator=stream, dtype=torch.float64, device=stream.device) for stream in streams])
    return torch.searchsorted(total, (u.to(total) * total[:, -1])[:, None]).squeeze(-1).clamp(max=weight.shape[-1] - 1)


def _scores(common: CommonLines, k: int, rotations: Tensor, shifts: Tensor, group: Tensor) -> Tensor:
    """Log likelihood ratios of image k with all others, `(C,)`."""
    partners = _Partners.of(k, rotations, shifts, group)
    a, b = _crossing(rotations[:, k, None], partners.rotations)
    u = directions(_ANGLES, rotations)
    offset = (shifts[:, k, None] * u[a]).sum(-1) - (partners.shifts * u[b]).sum(-1)
    return common.table[k, partners.index, b, a, _offset_bin(common, offset)].sum(-1)
