"""Poses of a few images of an unknown object, from nothing but these, by annealed Gibbs sampling.

Every chain starts from random poses. A sweep draws the pose of one image after the other from what its common lines
with all others say of it: for each of a grid of directions and in-plane angles, the sum over the other images of the
log likelihood ratio that the two lines in which the slices cross are one (`CommonLines`). The likelihood sharpens, and
takes in higher frequencies, from stage to stage; in the last stage the best pose is taken. Shifts are drawn in turn.
The poses of each chain are then refined by their evidence (`pose_log_evidence`), which counts nothing twice, and which
tells what chains to believe. Where the best two have come to different poses, as with noise they mostly do, each image
of the best chains can be drawn anew from what the field says of it (`drawn_from_field`), and refined again.

Poses are up to a rotation of all, and a mirror: the hand of an object is not in its projections.
"""

import math

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import GeometryError
from cryofm_ops.poses._grids import choose, spread_views
from cryofm_ops.poses.common_lines import CommonLines, directions, polar_transform
from cryofm_ops.poses.evidence import pose_log_evidence, refine_by_evidence
from cryofm_ops.poses.field_sampling import drawn_from_field
from cryofm_ops.rotations.conversions import pose_difference_deg, random_rotations

__all__ = ["PoseSamples", "sample_poses"]

_ANGLES = 120  # lines of an image, 3 degrees apart
_ANCHORS = 10
_DIRECTIONS, _FINE_DIRECTIONS = 400, 1200
_STAGES, _SWEEPS, _POLISH = 8, 3, 2
_ALPHA = (1.0, 0.06)
_RADIUS = (4 / 13, 12 / 13)  # of the highest frequency
_STEP_PX = 0.5
_SAME_LINE_DEG = 12.0
_LOWEST, _LOW = 6 / 13, 8 / 13  # of the highest frequency, likewise: for the evidence
_BEST = 3  # chains that are refined on more frequencies
_AGREE_DEG = 5.0  # the best two, if common lines have told the poses


@attrs.frozen(eq=False)
class PoseSamples:
    """Poses of K images from C chains, the best first.

    Attributes:
        rotations: object to view, `(C, K, 3, 3)`.
        shifts_px: what centres the images, (x, y), `(C, K, 2)`.
        log_evidence: of the poses (`pose_log_evidence`), up to a constant, `(C,)`.
    """

    rotations: Tensor
    shifts_px: Tensor
    log_evidence: Tensor


@torch.no_grad()
def sample_poses(
    images: Tensor,
    *,
    chains: int,
    generator: torch.Generator,
    diameter_px: float,
    noise: Tensor,
    max_shift_px: float = 0.0,
    symmetry: Tensor | None = None,
    transfer: Tensor | None = None,
    from_field: bool = False,
) -> PoseSamples:
    """Sample the poses of images of one object of which nothing else is known.

    Of more than 10 images, 10 are sampled and the others placed among them: those that tell most where each has a noise
    of its own, otherwise evenly from first to last.

    Args:
        images: `(K, n, n)`, background 0, all of one scale, K at least 2 (three for their poses to be determined).
        chains: number of independent chains.
        generator: of all random numbers; every chain has a stream of its own.
        diameter_px: of the object.
        noise: power of the images' noise at the frequencies 1, 2, …, in units of 1/n, that the images resolve; of
            the transform, not normalised; `(radius,)`, or of each image `(K, radius)`.
        max_shift_px: how far off centre an image may be, along each axis.
        symmetry: rotations `(G, 3, 3)` of the object's point group.
        transfer: what each image was multiplied by, ring by ring, `(K, radius)`. None: 1.
        from_field: draw the images of the best chains anew where those differ, as above: about three times as long.

    Raises:
        GeometryError: images that are not square, or fewer than 2.
    """
    K, n = images.shape[0], images.shape[-1]
    if images.ndim != 3 or images.shape[-2] != n or K < 2:
        raise GeometryError(f"poses are sampled of at least 2 square images (K, n, n), got {tuple(images.shape)}")
    radius, own = noise.shape[-1], noise.ndim > 1 or transfer is not None
    noise = noise.to(images).expand(K, -1)
    transfer = noise.new_ones(K, radius) if transfer is None else transfer.to(images)
    lines = polar_transform(images, _ANGLES, radius)
    group = (torch.eye(3)[None] if symmetry is None else symmetry).to(images)
    reach = math.ceil(2 * math.sqrt(2) * max_shift_px / _STEP_PX)
    offsets = _STEP_PX * torch.arange(-reach, reach + 1).to(images)
    device = generator.device
    seeds = [int(torch.randint(2**62, (), generator=generator, device=device)) for _ in range(chains)]
    streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    grids = torch.Generator().manual_seed(0)  # the same for all chains

    drawn = [random_rotations(K, generator=stream, dtype=torch.float32) for stream in streams]
    rotations = torch.stack(drawn).to(images)
    shifts = torch.zeros(chains, K, 2).to(images)
    anchors = torch.linspace(0, K - 1, min(K, _ANCHORS)).round().long().tolist()
    if own and K > _ANCHORS:
        power = lines.abs().square().mean(1)
        telling = ((power - noise).clamp(min=0) / power.clamp(min=1e-9 * power.max())) @ torch.arange(
            1.0, radius + 1
        ).to(power)
        anchors = sorted(telling.topk(_ANCHORS).indices.tolist())

    def compare(some: list[int], stage: int) -> CommonLines:
        s = stage / (_STAGES - 1)
        alpha = _ALPHA[0] * (_ALPHA[1] / _ALPHA[0]) ** s
        used = max(2, round(radius * (_RADIUS[0] + s * (_RADIUS[1] - _RADIUS[0]))))
        others = lines[anchors, :, :used]
        ours = others if some == anchors else lines[some, :, :used]
        N, m = ((part[some, :used], part[anchors, :used]) for part in (noise, transfer))
        return CommonLines.of(ours, others, n, N, alpha, offsets, _STEP_PX * (3 - 2 * s), m)

    def draw(common: CommonLines, row: int, k: int, count: int, greedy: bool) -> None:
        partners = _Partners.of(k, anchors, rotations, shifts, group)
        table = common.table[row][partners.index]
        frames = spread_views(count, grids, images)
        rotations[:, k] = _draw_rotation(table, shifts[:, k], partners, frames, streams, greedy)
        if max_shift_px > 0:
            shifts[:, k] = _draw_shift(table, rotations[:, k], partners, max_shift_px, streams, greedy)

    def place_others() -> None:
        for k in sorted(set(range(K)) - set(anchors)):
            common = compare([k], _STAGES - 1)
            for _ in range(_POLISH):
                draw(common, 0, k, _FINE_DIRECTIONS, greedy=True)

    for stage in range(_STAGES):
        common, last = compare(anchors, stage), stage == _STAGES - 1
        sweeps = [_DIRECTIONS] * _SWEEPS + [_FINE_DIRECTIONS] * (_POLISH if last else 0)
        for count in sweeps:
            for row, k in enumerate(anchors):
                draw(common, row, k, count, greedy=last)

    place_others()

    # All chains on the lowest frequencies, which is cheap; the best on more.
    low, lowest = math.ceil(_LOW * radius), math.ceil(_LOWEST * radius)

    def scored(R: Tensor, s: Tensor) -> Tensor:
        return pose_log_evidence(
            images[anchors],
            R,
            s,
            diameter_px=diameter_px,
            noise=noise[anchors, :low],
            symmetry=symmetry,
            transfer=transfer[anchors, :low],
        )

    def refined(R: Tensor, s: Tensor, used: int) -> tuple[Tensor, Tensor]:
        R, s = refine_by_evidence(
            images[anchors],
            R,
            s,
            diameter_px=diameter_px,
            noise=noise[anchors, :used],
            spread_px=max_shift_px / 2,
            symmetry=symmetry,
            transfer=transfer[anchors, :used],
        )
        return R, s.clamp(-max_shift_px, max_shift_px)

    R, s = refined(rotations[:, anchors], shifts[:, anchors], lowest)
    rotations[:, anchors], shifts[:, anchors] = R, s
    log_evidence = scored(R, s)
    order = log_evidence.argsort(descending=True)
    rotations, shifts, log_evidence = rotations[order], shifts[order], log_evidence[order]
    best = min(chains, _BEST)
    R, s = refined(rotations[:best, anchors], shifts[:best, anchors], low)
    value = scored(R, s)
    first, second = value.argsort(descending=True).tolist()[:2] if best > 1 else (0, 0)
    redrawn = from_field and float(pose_difference_deg(R[first], R[second], symmetry)) > _AGREE_DEG
    if redrawn:
        moved = drawn_from_field(
            images[anchors],
            R,
            s,
            diameter_px=diameter_px,
            noise=noise[anchors, :low],
            transfer=transfer[anchors, :low],
            max_shift_px=max_shift_px,
            streams=[streams[i] for i in order[:best].tolist()],
            symmetry=symmetry,
        )
        moved = refined(*refined(*moved, lowest), low)
        new = scored(*moved)
        better = new > value
        value = torch.where(better, new, value)
        R, s = (torch.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(moved, (R, s), strict=True))
    rotations[:best, anchors], shifts[:best, anchors], log_evidence[:best] = R, s, value
    order = log_evidence.argsort(descending=True)
    rotations, shifts, log_evidence = rotations[order], shifts[order], log_evidence[order]
    if redrawn:
        place_others()
    return PoseSamples(rotations, shifts, log_evidence)


@attrs.frozen(eq=False)
class _Partners:
    """The images that image k is compared with, each in all its symmetric views."""

    index: Tensor  # (J,), among the anchors
    rotations: Tensor  # (C, J, 3, 3)
    shifts: Tensor  # (C, J, 2)

    @classmethod
    def of(cls, k: int, anchors: list[int], rotations: Tensor, shifts: Tensor, group: Tensor) -> "_Partners":
        at = [i for i, j in enumerate(anchors) if j != k]
        others = [anchors[i] for i in at]
        views = (rotations[:, others, None] @ group).flatten(1, 2)
        index = torch.tensor(at, device=rotations.device).repeat_interleave(len(group))
        return cls(index, views, shifts[:, others].repeat_interleave(len(group), 1))


def _crossing(views: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Where the planes of two views cross: bins of the line's angle in each of them."""
    line = torch.linalg.cross(views[..., 2, :], others[..., 2, :])
    return _bin(views, line), _bin(others, line)


def _bin(views: Tensor, line: Tensor) -> Tensor:
    x, y = (views[..., :2, :] @ line[..., None]).squeeze(-1).unbind(-1)
    return (torch.atan2(y, x) * (_ANGLES / (2 * math.pi))).round().long() % _ANGLES


def _novelty(a: Tensor) -> Tensor:
    """What line by line the comparisons of an image are worth, for lines at the bins a `(..., J)`.

    n lines that fall on one place of the image compare it with n copies of the same: if they agree, that is worth one
    comparison with their average, whose noise is (1 + 1/n)/2 of that with one of them. Without this weight the images
    would rather share a single line, all views in one plane, than be right.
    """
    half = _ANGLES // 2  # lines are the same after half a turn
    place, bins = a % half, torch.arange(half, device=a.device)
    turn = (bins[:, None] - bins) % half
    degrees = 360 / _ANGLES * torch.minimum(turn, half - turn)
    near = (-0.5 * (degrees / _SAME_LINE_DEG) ** 2).exp()
    count = near.new_zeros(*a.shape[:-1], half).scatter_add(-1, place, near.new_ones(()).expand(a.shape))
    return 2 / (1 + (count @ near).gather(-1, place))  # by bins: a point group makes J large


def _draw_rotation(
    table: Tensor,
    shift: Tensor,
    partners: _Partners,
    frames: Tensor,
    streams: list[torch.Generator],
    greedy: bool,
) -> Tensor:
    """Of one image, in each chain `(C, 3, 3)`; `table` `(J, b, a, offsets)` compares it with its partners."""
    C, J = partners.rotations.shape[:2]
    table = _at_shifts(table, shift, partners)  # (C, J, b, a)
    a, b = _crossing(frames[None, :, None], partners.rotations[:, None])  # (C, D, J)
    rows = torch.cat((table, table), -1).unfold(-1, _ANGLES, 1)  # (C, J, b, first a, turn)
    c, j = torch.arange(C)[:, None, None], torch.arange(J)
    weight = (_novelty(a)[..., None] * rows[c, j, b, a]).sum(-2).flatten(1)  # (C, D · turn): in-plane turns move a
    chosen = choose(weight, streams, greedy)
    turn = (chosen % _ANGLES).to(frames) * (2 * math.pi / _ANGLES)
    cos, sin, zero = turn.cos(), turn.sin(), torch.zeros_like(turn)
    in_plane = torch.stack((cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1), -1).reshape(C, 3, 3)
    return in_plane @ frames[chosen // _ANGLES]


def _at_shifts(table: Tensor, shift: Tensor, partners: _Partners) -> Tensor:
    """The table for the shifts that the images have, `(C, J, b, a)`."""
    if table.shape[-1] == 1:
        return table[..., 0].expand(len(shift), -1, -1, -1)
    u = directions(_ANGLES, table)
    along_k, along_j = shift @ u.mT, partners.shifts @ u.mT  # (C, a), (C, J, b)
    offset = _offset_bin(along_k[:, None, None] - along_j[..., None], table)  # (C, J, b, a)
    return table.expand(len(shift), *table.shape).gather(-1, offset[..., None]).squeeze(-1)


def _offset_bin(offset: Tensor, table: Tensor) -> Tensor:
    half = table.shape[-1] // 2
    return (offset / _STEP_PX).round().long().clamp(-half, half) + half


def _draw_shift(
    table: Tensor,
    views: Tensor,
    partners: _Partners,
    largest: float,
    streams: list[torch.Generator],
    greedy: bool,
) -> Tensor:
    """Likewise, `(C, 2)`."""
    a, b = _crossing(views[:, None], partners.rotations)  # (C, J)
    table = table[torch.arange(len(table)), b, a]  # (C, J, offsets)
    side = torch.arange(-largest, largest + 1e-6, _STEP_PX / 2).to(table)
    grid = torch.cartesian_prod(side, side)
    u = directions(_ANGLES, table)
    along_k = u[a] @ grid.mT  # (C, J, shifts)
    along_j = (partners.shifts * u[b]).sum(-1, keepdim=True)
    weight = (_novelty(a)[..., None] * table.gather(-1, _offset_bin(along_k - along_j, table))).sum(1)
    weight = weight - grid.square().sum(-1) / (2 * (largest / 2) ** 2)  # images are centred well rather than badly
    return grid[choose(weight, streams, greedy)]
