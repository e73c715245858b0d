"""The missing wedge of a tilt series (paper E.1): what a tilt series of limited range measures of a volume.

By the central-slice theorem, a projection along z measures the plane k_z = 0 of the tilted volume. So what is
measured depends on the angle of k about the tilt axis alone, and k and −k are measured together: the angle is
that of a line, modulo 180°.
"""

import math
from typing import Literal

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import GeometryError
from cryofm_ops.fourier.grid import Shape
from cryofm_ops.operators.fourier import FourierOperator

__all__ = ["DoubleTilt", "MissingWedge"]


@attrs.frozen
class MissingWedge(FourierOperator):
    """Keeps the Fourier coefficients that lie between two tilts; the beam is along z.

    A tilt by θ turns the specimen by θ about the tilt axis, right-handed, before it is projected (p = R x);
    about y it measures the frequencies with arctan(k_z / k_x) = θ, about x those with arctan(−k_z / k_y) = θ.
    With a hard edge A is an exact projection: 0 or 1. The line of the tilt axis, frequency 0 with it, is in
    every tilt. Where one component is at the Nyquist frequency of an even axis, both signs have a say and the
    one that keeps more wins.

    Attributes:
        tilt_min: in degrees, −90 to 90.
        tilt_max: in degrees. From −60 to 60, two thirds of all directions are kept.
        tilt_axis: "y" or "x".
        edge_deg: full width of a raised-cosine edge about each limit, where the amplitude is 1/2; 0 is hard.

    Raises `GeometryError`.

    >>> MissingWedge(-40, 40).transfer((4, 1, 4))[:, 0]  # k_z down, k_x to the right
    tensor([[1., 1., 1.],
            [0., 0., 1.],
            [0., 0., 0.],
            [0., 0., 1.]], dtype=torch.float64)
    """

    tilt_min: float = attrs.field(converter=float)
    tilt_max: float = attrs.field(converter=float)
    tilt_axis: Literal["x", "y"] = "y"
    edge_deg: float = attrs.field(default=0.0, converter=float)

    def __attrs_post_init__(self) -> None:
        if not -90 <= self.tilt_min < self.tilt_max <= 90:
            raise GeometryError(
                f"tilts must have -90 <= tilt_min < tilt_max <= 90 degrees, got {self.tilt_min} to {self.tilt_max}"
            )
        if self.tilt_axis not in ("x", "y"):
            raise GeometryError(f"tilt_axis must be 'x' or 'y', the beam being along z, got {self.tilt_axis!r}")
        if not 0 <= self.edge_deg <= self.tilt_max - self.tilt_min:
            raise GeometryError(
                f"edge_deg must be from 0 to the range of the tilts, {self.tilt_max - self.tilt_min}, "
                f"got {self.edge_deg}"
            )

    def transfer(self, shape: Shape, /) -> Tensor:
        """From 0 to 1, on the half grid of `shape`, float64."""
        depth, height, width = shape
        kz = torch.fft.fftfreq(depth, dtype=torch.float64)[:, None, None]
        ky = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
        kx = torch.fft.rfftfreq(width, dtype=torch.float64)
        nyquist = 0.5 - 1e-9  # of an even axis, but for rounding
        both_signs = ((kx if self.tilt_axis == "y" else ky).abs() >= nyquist) | (kz.abs() >= nyquist)
        kept = self.weight(kx, ky, kz)
        kept = torch.where(both_signs, torch.maximum(kept, self.weight(kx, ky, -kz)), kept)
        return kept.expand(depth, height, width // 2 + 1)

    def weight(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """From 0 to 1, for frequencies in the directions (x, y, z), of any length; the three broadcast."""
        across, along = (x, z) if self.tilt_axis == "y" else (y, -z)
        kept = self._kept(self.angle_deg(x, y, z))
        return torch.where((across == 0) & (along == 0), 1, kept)

    def angle_deg(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """The tilt that measures frequencies in the directions (x, y, z), in degrees modulo 180."""
        across, along = (x, z) if self.tilt_axis == "y" else (y, -z)
        return torch.rad2deg(torch.atan2(along, across))

    def _kept(self, angle: Tensor) -> Tensor:
        """Weight of the directions at `angle`, in degrees modulo 180."""
        centre, half_range = (self.tilt_min + self.tilt_max) / 2, (self.tilt_max - self.tilt_min) / 2
        if half_range == 90:
            return torch.ones_like(angle)  # nothing is missing, so there is no edge
        inside = half_range - (torch.remainder(angle - centre + 90, 180) - 90).abs()
        if self.edge_deg == 0:
            return (inside >= -1e-9).double()  # rounding must not decide on what lies on the limit
        return 0.5 + 0.5 * torch.sin(math.pi * (inside / self.edge_deg).clamp(-0.5, 0.5))


@attrs.frozen
class DoubleTilt(FourierOperator):
    """Two tilt series of one specimen: keeps what either keeps (the larger weight, where edges are soft).

    >>> pyramid = DoubleTilt(MissingWedge(-60, 60, "y"), MissingWedge(-60, 60, "x"))
    >>> round(pyramid.transfer((64, 64, 64)).mean().item(), 2)
    0.89
    """

    first: MissingWedge
    second: MissingWedge

    def transfer(self, shape: Shape, /) -> Tensor:
        """From 0 to 1, on the half grid of `shape`, float64."""
        return torch.maximum(self.first.transfer(shape), self.second.transfer(shape))
