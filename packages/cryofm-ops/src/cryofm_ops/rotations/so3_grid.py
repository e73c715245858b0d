"""Equal-volume grids on SO(3): HEALPix directions × in-plane angles.

Directions: HEALPix (Górski et al., ApJ 622:759, 2005), nested scheme, in the plane of Calabretta & Roukema
(MNRAS 381:865, 2007), where its 12 base pixels are squares. In-plane angles: the Hopf fibration of Yershova
et al. (Int. J. Robot. Res. 29:801, 2010). Where the angles of a direction start is a free choice; here they are
carried along the great circle from the centre of the base pixel, so that a cell contains the centres of the
eight that it is divided into, at the poles too.
"""

import math

import torch
from torch import Tensor

from cryofm_ops.errors import GeometryError

__all__ = ["so3_grid", "subdivide"]


def so3_grid(
    order: int,
    index: Tensor | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Rotation matrices (object to view) of the grid of an order, `(72 · 8^order, 3, 3)`.

    Orders 0 to 3 have 72, 576, 4608 and 36864 rotations; a random one is on average 28, 14, 7 and 3.6 degrees
    from the nearest, and at most about 55, 27, 13 and 6.5.

    Args:
        order: 0 or more; HEALPix with nside = 2^order.
        index: only these cells, `(*index)` → `(*index, 3, 3)`.
        device: of the result; that of `index` where this is given.
        dtype: of the result.

    Raises:
        GeometryError: a negative order, or an index outside the grid.

    >>> so3_grid(1).shape, so3_grid(5, torch.tensor([7, 8])).shape
    (torch.Size([576, 3, 3]), torch.Size([2, 3, 3]))
    """
    if order < 0:
        raise GeometryError(f"the order of a rotation grid is 0 or more, got {order}")
    cells = 72 * 8**order
    if index is None:
        index = torch.arange(cells, device=device)
    elif len(index.flatten()) and not 0 <= int(index.min()) <= int(index.max()) < cells:
        raise GeometryError(
            f"the rotation grid of order {order} has cells 0 to {cells - 1}, "
            f"asked for {int(index.min())} to {int(index.max())}"
        )
    angles = _angles(order)
    pixel = index // angles
    face = _direction(0, pixel // 4**order)
    transport = _shortest_rotation(_direction(order, pixel), face)  # direction → centre of its base pixel
    upright = _shortest_rotation(face, face.new_tensor([0, 0, 1]).expand_as(face))  # that centre → z
    psi = 2 * math.pi / angles * ((index % angles).double() + 0.5)
    cos, sin, zero = psi.cos(), psi.sin(), torch.zeros_like(psi)
    rows = (cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1)
    in_plane = torch.stack(rows, -1).reshape(*index.shape, 3, 3)
    return (in_plane @ upright @ transport).to(dtype)


def subdivide(index: Tensor, order: int) -> Tensor:
    """The 8 cells of order + 1 that each cell of an order is divided into: 4 pixels × 2 angles, `(*index, 8)`.

    >>> subdivide(torch.tensor([0]), 0)
    tensor([[ 0,  1, 12, 13, 24, 25, 36, 37]])
    """
    angles = _angles(order)
    pixel, angle = index // angles, index % angles
    child = torch.arange(8, device=index.device)
    return (4 * pixel[..., None] + child // 2) * (2 * angles) + 2 * angle[..., None] + child % 2


def _angles(order: int) -> int:
    """In-plane angles, so that their step is closest to that of the directions."""
    return 6 << order


def _direction(order: int, pixel: Tensor) -> Tensor:
    """Unit vectors `(..., 3)` to the centres of nested HEALPix pixels, nside = 2^order; float64."""
    side = 2**order
    face, within = pixel // side**2, pixel % side**2
    row, column = face // 4, face % 4
    u = sum(((within >> 2 * bit & 1) << bit for bit in range(order)), start=torch.zeros_like(pixel))  # even bits
    v = sum(((within >> 2 * bit + 1 & 1) << bit for bit in range(order)), start=torch.zeros_like(pixel))  # odd bits
    a, b = (u + 0.5).double() / side, (v + 0.5).double() / side
    # The plane, in units of π/4 (equation 1 of Calabretta & Roukema): base pixels are squares on their tips.
    centre = 2 * column.double() + (row != 1)
    x, y = centre + a - b, 1.0 - row + a + b - 1
    # Latitude: z = 2y/3 between the caps; in a cap, where a pixel's meridians converge, 1 − |z| = σ²/3.
    sigma = (2 - y.abs()).clamp(max=1)
    z = torch.where(y.abs() < 1, 2 / 3 * y, y.sign() * (1 - sigma**2 / 3))
    phi = math.pi / 4 * (centre + (x - centre) / sigma)
    radius = (1 - z**2).sqrt()
    return torch.stack((radius * phi.cos(), radius * phi.sin(), z), -1)


def _shortest_rotation(a: Tensor, b: Tensor) -> Tensor:
    """The rotation `(..., 3, 3)` that takes the unit vector a to b along their great circle; a ≠ −b."""
    s = a + b
    eye = torch.eye(3, dtype=a.dtype, device=a.device)
    # Two reflections: x → x − s (s·x)/(1 + a·b) + 2 b (a·x).
    return (
        eye
        - s[..., :, None] * s[..., None, :] / (1 + (a * b).sum(-1))[..., None, None]
        + 2 * b[..., :, None] * a[..., None, :]
    )
