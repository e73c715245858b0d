"""How likely images are at given poses, whatever the object: the evidence of poses under a Gaussian field.

If the object is a random field of power P(ν) within a ball of radius ρ, the coefficients of its slices are normal, with
E[X(p) X(q)*] = √(P(p) P(q)) w(|p − q|), where w is the transform of the ball. Common lines are where two slices have
p = q, but slices near each other count too, and what several images say of one place is counted once.
"""

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cryofm_ops.poses._central_slices import band
from cryofm_ops.poses._refinement import phase
from cryofm_ops.rotations.conversions import rotation_from_vector

__all__ = ["pose_log_evidence", "refine_by_evidence"]


_TURN_DEG = 10.0


def pose_log_evidence(
    images: Tensor,
    rotations: Tensor,
    shifts_px: Tensor,
    *,
    diameter_px: float,
    noise: Tensor,
    symmetry: Tensor | None = None,
    model_error: float = 0.02,
    transfer: Tensor | None = None,
) -> Tensor:
    """Log p(images | poses) up to a constant, `(C,)`.

    Args:
        images: `(K, n, n)`.
        rotations: object to view, `(C, K, 3, 3)`.
        shifts_px: what centres the images, `(C, K, 2)`.
        diameter_px: of the object.
        noise: power of the images' noise at the frequencies 1, 2, … that are to be used; of the transform, not
            normalised; `(radius,)`, or of each image `(K, radius)`.
        symmetry: rotations `(G, 3, 3)` of the object's point group.
        model_error: part of the images' power, ring by ring, that the poses need not explain.
        transfer: what each image was multiplied by, ring by ring, `(K, radius)`. None: 1.
    """
    n, radius = images.shape[-1], noise.shape[-1]
    k = band(radius, images.device)
    y: Tensor = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))[..., k[:, 1], k[:, 0]]
    ring = k.to(images).norm(dim=-1).round().long().clamp(1, radius) - 1
    total = images.new_zeros(radius).index_add(0, ring, y.abs().square().mean(0)) / torch.bincount(
        ring, minlength=radius
    )
    noise = noise.to(total).expand(len(images), -1)
    part = total.new_ones(len(images), radius) if transfer is None else transfer.to(total).square()
    part = part / part.mean(0)
    signal = (part * torch.maximum(total - noise.mean(0), 1e-3 * total))[:, ring].flatten().double()
    error = (noise + model_error * part * total)[:, ring].flatten().double()
    group = (torch.eye(3)[None] if symmetry is None else symmetry).to(images).double()
    evidence = []
    for R, s in zip(rotations, shifts_px, strict=True):
        data = (y * phase(-s, k, n)).flatten().to(torch.complex128)
        points = (k.to(R) @ R[:, :2, :]).flatten(0, 1).double()
        amplitude = signal.sqrt()[:, None] * signal.sqrt()
        near, far = (
            sum(_kernel(points, sign * g, math.pi * diameter_px / n, len(group)) for g in group) for sign in (1, -1)
        )
        log = points.new_zeros(())
        for kernel, y_part in ((near + far, data.real), (near - far, data.imag)):
            covariance = amplitude * kernel / 2 + torch.diag(error / 2)
            cholesky = torch.linalg.cholesky(covariance)
            white = torch.linalg.solve_triangular(cholesky, y_part[:, None], upper=False)
            log = log - white.square().sum() / 2 - cholesky.diagonal().log().sum()
        evidence.append(log)
    return torch.stack(evidence)


@torch.enable_grad()
def refine_by_evidence(
    images: Tensor,
    rotations: Tensor,
    shifts_px: Tensor,
    *,
    diameter_px: float,
    noise: Tensor,
    spread_px: float,
    symmetry: Tensor | None = None,
    iterations: int = 8,
    transfer: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Poses moved to where their evidence is larger, by L-BFGS (Liu & Nocedal, Math. Program. 45, 1989).

    As no model takes part, no pose holds on to a model that its own image has bent. Every chain goes by itself.

    Args:
        images: `(K, n, n)`.
        rotations: to begin with, `(C, K, 3, 3)`.
        shifts_px: likewise, `(C, K, 2)`.
        diameter_px: see `pose_log_evidence`.
        noise: likewise.
        spread_px: standard deviation of the shifts; 0 keeps them as they are.
        symmetry: see there.
        iterations: at most.
        transfer: see there.
    """
    found = []
    for R, s in zip(rotations.detach().double(), shifts_px.detach().double(), strict=True):
        turn, move = torch.zeros_like(s[:, [0, 0, 0]], requires_grad=True), torch.zeros_like(s, requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [turn, move] if spread_px else [turn], max_iter=iterations, line_search_fn="strong_wolfe"
        )

        def poses(R: Tensor = R, s: Tensor = s, turn: Tensor = turn, move: Tensor = move) -> tuple[Tensor, Tensor]:
            return rotation_from_vector(_TURN_DEG * turn) @ R, s + move  # units in which both are as steep

        def loss(poses=poses, optimiser=optimiser):  # type: ignore[no-untyped-def]
            optimiser.zero_grad()
            R, s = poses()
            evidence = pose_log_evidence(
                images.double(),
                R[None],
                s[None],
                diameter_px=diameter_px,
                noise=noise.double(),
                symmetry=symmetry,
                transfer=transfer,
            )
            value = -evidence.sum() + (s.square().sum() / (2 * spread_px**2) if spread_px else 0)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        found.append([part.detach() for part in poses()])
    R, s = (torch.stack(parts) for parts in zip(*found, strict=True))
    return R.to(rotations), s.to(shifts_px)


def _kernel(points: Tensor, g: Tensor, scale: float, views: int) -> Tensor:
    """The kernel w between points and those that g makes of them; of several views made again in the backward pass."""

    def kernel(points: Tensor, g: Tensor) -> Tensor:
        return _ball(_distance(points, points @ g) * scale)

    if views == 1:
        return kernel(points, g)
    made: Tensor = checkpoint(kernel, points, g, use_reentrant=False)  # together they would fill the memory
    return made


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Between all points; its gradient at 0 is 0."""
    squared = (a.square().sum(-1)[:, None] + b.square().sum(-1) - 2 * a @ b.mT).clamp(min=0)
    zero = squared < 1e-12
    return torch.where(zero, 0, torch.where(zero, 1, squared).sqrt())


def _ball(x: Tensor) -> Tensor:
    """The transform of a ball at x = 2π ρ |k|, 1 at 0."""
    safe = x.clamp(min=1e-2)
    return torch.where(x < 1e-2, 1 - x**2 / 10, 3 * (safe.sin() - safe * safe.cos()) / safe**3)
