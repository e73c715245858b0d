"""Poses drawn one after the other from what a Gaussian field says of an image, given all others at their poses.

That is Gibbs sampling of `pose_log_evidence`, on spheres (`Field`). With the others at their poses the field is normal,
and what an image shows of it at a pose is, too: of mean A μ and covariance A Λ⁻¹ Aᵀ + 1, for noise that is white. So
nothing counts twice, and slices that nearly cross count as well. An image is looked for in all planes of a grid, at all
angles, and on either side; then, in the plane that was drawn, at all angles and shifts together.
"""

import math

import attrs
import torch
from torch import Tensor

from cryofm_ops.poses._grids import choose, spread_views
from cryofm_ops.poses.common_lines import directions, polar_transform
from cryofm_ops.poses.field import Field

__all__ = ["drawn_from_field"]

_ANGLES, _TURNS, _PLANES = 64, 72, 150
_STEP_PX = 0.5
_STAGES = (
    (0.75, 0.2),
    (0.75, 0.1),
    (0.875, 0.1),
    (1.0, 0.06),
    (1.0, 0.03),
)  # part of the rings, and model error; in the last the best is taken
_OTHER_SIDE = (1.0, -1.0, -1.0)


def drawn_from_field(
    images: Tensor,
    rotations: Tensor,
    shifts_px: Tensor,
    *,
    diameter_px: float,
    noise: Tensor,
    transfer: Tensor,
    max_shift_px: float,
    streams: list[torch.Generator],
    symmetry: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Poses of C chains, each image's drawn anew at every stage.

    Args:
        images: `(K, n, n)`.
        rotations: to begin with, `(C, K, 3, 3)`.
        shifts_px: likewise, `(C, K, 2)`.
        diameter_px: see `pose_log_evidence`.
        noise: likewise, of each image, `(K, radius)`.
        transfer: likewise.
        max_shift_px: how far off centre an image may be.
        streams: of random numbers, one for each chain.
        symmetry: rotations `(G, 3, 3)` of the object's point group.
    """
    n, radius = images.shape[-1], noise.shape[-1]
    lines = polar_transform(images, _ANGLES, radius)
    reach = math.floor(max_shift_px / _STEP_PX)
    side = _STEP_PX * torch.arange(-reach, reach + 1).to(images)
    grid = torch.cartesian_prod(side, side)
    prior = -grid.square().sum(-1) / (2 * (max_shift_px / 2) ** 2) if reach else grid.sum(-1)
    at = torch.cdist(shifts_px.to(grid), grid).argmin(-1)
    grids = torch.Generator().manual_seed(0)  # the same for all chains
    rotations = rotations.clone()
    for number, (part, alpha) in enumerate(_STAGES):
        used = max(2, round(part * radius))
        seen = _Seen.of(lines[..., :used], noise[:, :used], transfer[:, :used], alpha, grid, n, diameter_px, symmetry)
        views = spread_views(2 * _PLANES, grids, images)[:_PLANES]  # the others are their other sides
        planes = seen.field.planes(views)
        states = [_State.of(seen, R, s) for R, s in zip(rotations, at, strict=True)]
        for k in range(len(images)):
            A = seen.field.slices(planes, k)
            for c, state in enumerate(states):
                greedy = number == len(_STAGES) - 1
                rotations[c, k], at[c, k] = state.redraw(seen, k, A, views, prior, streams[c], greedy)
    return rotations, grid[at]


@attrs.frozen(eq=False)
class _Seen:
    """A field and the images' coefficients of it.

    Attributes:
        field: see there.
        z: of each half and image, at every shift, `(shifts, c)`.
    """

    field: Field
    z: list[list[Tensor]]

    @classmethod
    def of(
        cls,
        lines: Tensor,
        noise: Tensor,
        transfer: Tensor,
        alpha: float,
        grid: Tensor,
        n: int,
        diameter_px: float,
        symmetry: Tensor | None,
    ) -> "_Seen":
        """See `drawn_from_field`; alpha is the part of the images' power that poses need not explain."""
        total = lines.abs().square().mean((0, 1))
        relative = transfer.square() / transfer.square().mean(0)
        signal = torch.maximum(total - noise.mean(0), 1e-3 * total)
        error = noise + alpha * relative * total
        kappa = math.pi * diameter_px / n
        field = Field.of(signal, error, relative.sqrt(), kappa=kappa, angles=_ANGLES, symmetry=symmetry).to(noise)
        r = torch.arange(1, noise.shape[-1] + 1).to(noise)
        phase = -2 * math.pi / n * (grid @ directions(_ANGLES, noise).mT)[..., None] * r  # moves images by the shift
        moves = torch.polar(torch.ones_like(phase), phase)
        z = [field.coefficients(line * moves, k) for k, line in enumerate(lines)]
        return cls(field, [list(half) for half in zip(*z, strict=True)])


@attrs.frozen(eq=False)
class _State:
    """Of one chain: of each half and image, what it sees of the field `(2c, x)`, and what it shows `(2c,)`."""

    A: list[list[Tensor]]
    y: list[list[Tensor]]

    @classmethod
    def of(cls, seen: _Seen, rotations: Tensor, at: Tensor) -> "_State":
        planes = seen.field.planes(rotations)
        A = [seen.field.slices(planes[k : k + 1], k) for k in range(len(rotations))]
        A_of_halves = [[one[h][0] for one in A] for h in (0, 1)]
        return cls(A_of_halves, [[_real(z[s]) for z, s in zip(half, at, strict=True)] for half in seen.z])

    def redraw(
        self, seen: _Seen, k: int, A: list[Tensor], views: Tensor, prior: Tensor, stream: torch.Generator, greedy: bool
    ) -> tuple[Tensor, Tensor]:
        """A pose of image k: its rotation, and the number of its shift. A: what it sees in all planes."""
        own = [part[k].m for part in seen.field.kept]
        predicted = [_Predicted.of(self.A[h], self.y[h], k, A[h]) for h in (0, 1)]
        now = [_turned(_complex(self.y[h][k]), own[h]).flatten(0, 1) for h in (0, 1)]
        weight = sum((p.log_prob(y) for p, y in zip(predicted, now, strict=True)), views.new_zeros(()))
        plane = int(choose(weight.flatten()[None], [stream], greedy)) // (2 * _TURNS)
        turned = [_turned(seen.z[h][k], own[h]) for h in (0, 1)]  # (shifts, 2, turns, 2c)
        there = prior[:, None]
        for p, y in zip(predicted, turned, strict=True):
            there = there + p.at(plane).log_prob(y.flatten(0, 2))[0].reshape(len(prior), -1)
            there = there + y.flatten(1, 2).square().sum(-1) / 2  # what is not kept is noise; all together stays
        shift, turn = divmod(int(choose(there.flatten()[None], [stream], greedy)), 2 * _TURNS)
        side, turn = divmod(turn, _TURNS)
        for h in (0, 1):
            self.A[h][k], self.y[h][k] = A[h][plane], turned[h][shift, side, turn]
        view = views[plane] * views.new_tensor(_OTHER_SIDE)[:, None] if side else views[plane]
        psi = views.new_tensor(2 * math.pi / _TURNS * turn)
        cos, sin, zero = psi.cos(), psi.sin(), torch.zeros_like(psi)
        in_plane = torch.stack((cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1)).reshape(3, 3)
        return in_plane @ view, torch.as_tensor(shift, device=views.device)


@attrs.frozen(eq=False)
class _Predicted:
    """A normal in each of P planes: mean `(P, 2c)`, and the inverse of its covariance's root `(P, 2c, 2c)`."""

    mean: Tensor
    whitens: Tensor

    @classmethod
    def of(cls, A: list[Tensor], y: list[Tensor], k: int, planes: Tensor) -> "_Predicted":
        """Of image k in planes where it sees `(P, 2c, x)`, given what the others see and show."""
        others = [j for j in range(len(A)) if j != k]
        seen, shown = torch.cat([A[j] for j in others]), torch.cat([y[j] for j in others])
        one = torch.eye(planes.shape[-1]).to(planes)
        root = torch.linalg.cholesky(one + seen.mT @ seen)
        inverse = torch.linalg.solve_triangular(root, one, upper=False)
        Z = planes @ inverse.mT
        covariance = Z @ Z.mT + torch.eye(planes.shape[-2]).to(planes)
        identity = torch.eye(planes.shape[-2]).to(planes).expand_as(covariance)
        whitens = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), identity, upper=False)
        return cls(Z @ (inverse @ (seen.mT @ shown)), whitens)

    def at(self, plane: int) -> "_Predicted":
        """In one plane."""
        return _Predicted(self.mean[plane : plane + 1], self.whitens[plane : plane + 1])

    def log_prob(self, y: Tensor) -> Tensor:
        """Of `(Y, 2c)`, up to a constant, `(P, Y)`."""
        white = self.whitens @ y.mT - self.whitens @ self.mean[..., None]
        return self.whitens.diagonal(dim1=-2, dim2=-1).log().sum(-1)[:, None] - white.square().sum(-2) / 2


def _turned(z: Tensor, m: Tensor) -> Tensor:
    """An image at all angles in its plane, and seen from the other side, `(*batch, 2, turns, 2c)`."""
    psi = 2 * math.pi / _TURNS * torch.arange(_TURNS).to(z.real)[:, None] * m
    all_angles = z[..., None, :] * torch.polar(torch.ones_like(psi), psi)
    return torch.stack((_real(all_angles), _real(all_angles.conj())), -3)


def _real(z: Tensor) -> Tensor:
    return torch.cat((z.real, z.imag), -1)


def _complex(y: Tensor) -> Tensor:
    return torch.complex(*y.chunk(2, -1))
