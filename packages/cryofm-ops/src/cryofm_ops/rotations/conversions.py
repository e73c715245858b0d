"""Rotations: matrices R `(..., 3, 3)` that map object to view, p = R x, with vectors in (x, y, z) order.

Every function takes leading batch dimensions and is differentiable, at the identity too. Angles are in degrees.
The other forms are those of `scipy.spatial.transform.Rotation`; RELION's angles are
`Rotation.from_euler("ZYZ", (rot, tilt, psi), degrees=True).as_matrix().T` (Heymann, Chagoyen & Belnap,
J. Struct. Biol. 151, 2005, the 3DEM convention).
"""

import torch
from torch import Tensor

from cryofm_ops.errors import GeometryError

__all__ = [
    "angular_distance_deg",
    "pose_difference_deg",
    "quaternion_from_rotation",
    "random_rotations",
    "relion_from_rotation",
    "rotation_from_quaternion",
    "rotation_from_relion",
    "rotation_from_vector",
    "vector_from_rotation",
]

ORTHONORMAL = 1e-4
"""Largest entry of R Rᵀ − 1 that passes for a rotation: above what float32 arithmetic and files leave."""


def check_rotations(rotations: Tensor) -> None:
    """`GeometryError` unless `(..., 3, 3)`, real, orthonormal within `ORTHONORMAL` and of determinant +1."""
    if rotations.shape[-2:] != (3, 3) or not rotations.is_floating_point():
        raise GeometryError(
            f"rotations must be real matrices (..., 3, 3), got {rotations.dtype} of shape {tuple(rotations.shape)}"
        )
    r = rotations.detach()
    error = (r @ r.mT - torch.eye(3, dtype=r.dtype, device=r.device)).abs().amax((-2, -1))
    wrong = ~(error <= ORTHONORMAL) | (torch.linalg.det(r) < 0)
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise GeometryError(
            f"the rotation at index {first} is none: |R Rᵀ − 1| = {float(error[first]):.1e} "
            f"(at most {ORTHONORMAL:g}), determinant {float(torch.linalg.det(r[first])):+.3f}"
        )


def rotation_from_relion(angles_deg: Tensor) -> Tensor:
    """R `(..., 3, 3)` of RELION's (rot, tilt, psi) `(..., 3)`: R = Rz(−psi) Ry(−tilt) Rz(−rot).

    >>> p = rotation_from_relion(torch.tensor([90.0, 0.0, 0.0])) @ torch.tensor([2.0, 0.0, 5.0])
    >>> p.round().long()  # x has gone to −y
    tensor([ 0, -2,  5])
    """
    _check_last(angles_deg, 3, "angles (rot, tilt, psi)")
    (ca, cb, cc), (sa, sb, sc) = (f(angles_deg.deg2rad()).unbind(-1) for f in (torch.cos, torch.sin))
    rows = (
        (cc * cb * ca - sc * sa, cc * cb * sa + sc * ca, -cc * sb),
        (-sc * cb * ca - cc * sa, -sc * cb * sa + cc * ca, sc * sb),
        (sb * ca, sb * sa, cb),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def relion_from_rotation(rotations: Tensor) -> Tensor:
    """RELION's (rot, tilt, psi) `(..., 3)`, in (−180, 180], [0, 180], (−180, 180].

    At tilt 0 and 180 only one angle is determined: rot is 0 there, and psi carries the rotation.

    >>> relion_from_rotation(rotation_from_relion(torch.tensor([10.0, 20.0, 30.0])))
    tensor([10.0000, 20.0000, 30.0000])
    """
    r = rotations
    squared = r[..., 2, 0] ** 2 + r[..., 2, 1] ** 2  # sin² tilt
    locked = squared < (8 * torch.finfo(r.dtype).eps) ** 2
    sin_tilt = torch.where(locked, 0, torch.where(locked, 1, squared).sqrt())
    cos_rot = torch.where(locked, 1, r[..., 2, 0] / torch.where(locked, 1, sin_tilt))
    sin_rot = torch.where(locked, 0, r[..., 2, 1] / torch.where(locked, 1, sin_tilt))
    # What is left after rot, R Rz(rot) = Rz(−psi) Ry(−tilt), has the y column (sin psi, cos psi, 0) at any tilt.
    psi = torch.atan2(r[..., 0, 1] * cos_rot - r[..., 0, 0] * sin_rot, r[..., 1, 1] * cos_rot - r[..., 1, 0] * sin_rot)
    angles = (torch.atan2(sin_rot, cos_rot), torch.atan2(sin_tilt, r[..., 2, 2]), psi)
    return torch.stack(angles, -1).rad2deg()


def rotation_from_quaternion(quaternions: Tensor) -> Tensor:
    """R `(..., 3, 3)` of quaternions `(..., 4)`, the scalar last; they are normalised first.

    >>> rotation_from_quaternion(torch.tensor([0.0, 0.0, 0.0, 2.0])).diagonal()
    tensor([1., 1., 1.])
    """
    _check_last(quaternions, 4, "quaternions (x, y, z, w)")
    x, y, z, w = (quaternions / torch.linalg.vector_norm(quaternions, dim=-1, keepdim=True)).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def quaternion_from_rotation(rotations: Tensor) -> Tensor:
    """Unit quaternions `(..., 4)`, the scalar last and not negative.

    >>> quaternion_from_rotation(torch.eye(3))
    tensor([0., 0., 0., 1.])
    """
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotations.unbind(-2))
    rows = (  # 4 q qᵀ is linear in R; its row of largest norm is a safe multiple of q
        (1 + a - e - i, b + d, c + g, h - f),
        (b + d, 1 - a + e - i, f + h, c - g),
        (c + g, f + h, 1 - a - e + i, d - b),
        (h - f, c - g, d - b, 1 + a + e + i),
    )
    outer = torch.stack([torch.stack(row, -1) for row in rows], -2)
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(*outer.shape[:-2], 1, 4)
    q = torch.nn.functional.normalize(outer.gather(-2, best).squeeze(-2), dim=-1)
    return torch.where(q[..., 3:] < 0, -q, q)


def rotation_from_vector(vectors_deg: Tensor) -> Tensor:
    """R `(..., 3, 3)` of rotation vectors `(..., 3)`: the axis times the angle in degrees.

    >>> p = rotation_from_vector(torch.tensor([0.0, 0.0, 90.0])) @ torch.tensor([2.0, 0.0, 5.0])
    >>> p.round().long()  # x has gone to y
    tensor([0, 2, 5])
    """
    _check_last(vectors_deg, 3, "rotation vectors")
    u = vectors_deg.deg2rad() / 2
    squared = (u * u).sum(-1, keepdim=True)
    small = squared < 1e-4
    half = torch.where(small, 1, squared).sqrt()
    t = torch.where(small, squared, 0)  # by series, since the root has no derivative at 0
    sinc = torch.where(small, 1 - t / 6 + t**2 / 120 - t**3 / 5040, half.sin() / half)
    cos = torch.where(small, 1 - t / 2 + t**2 / 24 - t**3 / 720, half.cos())
    return rotation_from_quaternion(torch.cat((u * sinc, cos), -1))


def vector_from_rotation(rotations: Tensor) -> Tensor:
    """Rotation vectors `(..., 3)`, in degrees, no longer than 180.

    >>> vector_from_rotation(rotation_from_vector(torch.tensor([10.0, 20.0, 30.0])))
    tensor([10.0000, 20.0000, 30.0000])
    """
    q = quaternion_from_rotation(rotations)
    u, w = q[..., :3], q[..., 3:]
    squared = (u * u).sum(-1, keepdim=True)
    small = squared < 1e-4
    norm = torch.where(small, 1, squared).sqrt()
    t = torch.where(small, squared / torch.where(small, w, 1) ** 2, 0)
    series = (1 - t / 3 + t**2 / 5 - t**3 / 7 + t**4 / 9) / torch.where(small, w, 1)
    return (2 * torch.where(small, series, torch.atan2(norm, w) / norm) * u).rad2deg()


def angular_distance_deg(a: Tensor, b: Tensor) -> Tensor:
    """Angle `(...)` in degrees, 0 to 180, of the rotation that turns a into b; batches broadcast.

    Exact to rounding at 0 and 180. Its gradient where a equals b is taken to be 0.

    >>> angular_distance_deg(torch.eye(3), rotation_from_vector(torch.tensor([0.0, 30.0, 0.0])))
    tensor(30.0000)
    """
    r = a.mT @ b
    skew = torch.stack((r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]), -1)
    squared = (skew * skew).sum(-1)  # (2 sin θ)²
    zero = squared == 0
    sin = torch.where(zero, 0, torch.where(zero, 1, squared).sqrt())
    return torch.atan2(sin, r.diagonal(dim1=-2, dim2=-1).sum(-1) - 1).rad2deg()


def pose_difference_deg(a: Tensor, b: Tensor, symmetry: Tensor | None = None) -> Tensor:
    """How far two sets of views `(K, 3, 3)` are from one another, whatever the object's orientation and hand.

    The median over the K views of the angle between them, in degrees, after one object was turned, and mirrored if
    that is better, as suits one of the views best: projections know neither of the two.

    Args:
        a: object to view.
        b: likewise, of an object in an orientation of its own.
        symmetry: rotations `(G, 3, 3)` of the point group of the second object: each of its views R is as good as
            any R g, and the nearest counts.

    >>> a = random_rotations(5, generator=torch.Generator().manual_seed(0))
    >>> bool(pose_difference_deg(a, a @ a[0]) < 0.1)
    True
    """
    mirror = a.new_tensor([1.0, 1.0, -1.0]).diag()
    same = b[:, None] if symmetry is None else b[:, None] @ symmetry.to(b)  # (K, G, 3, 3)
    best = []
    for seen in (same, mirror @ same @ mirror):
        # One turn for each view is enough: another of its G would only change the order of all the others' G.
        turned = a @ (a.mT @ seen[:, 0])[:, None]  # (K turns, K, 3, 3)
        nearest = angular_distance_deg(turned[:, :, None], seen).amin(-1)
        best.append(nearest.median(-1).values.min())
    return torch.stack(best).min()


def random_rotations(n: int, *, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
    """Rotations `(n, 3, 3)` uniform on SO(3), on the generator's device: normalised Gaussian quaternions.

    In torch's default precision unless a `dtype` is given.

    >>> random_rotations(5, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([5, 3, 3])
    """
    return rotation_from_quaternion(torch.randn(n, 4, generator=generator, dtype=dtype, device=generator.device))


def _check_last(values: Tensor, n: int, name: str) -> None:
    if not values.shape or values.shape[-1] != n or not values.is_floating_point():
        raise GeometryError(f"{name} must be real (..., {n}), got {values.dtype} of shape {tuple(values.shape)}")
