"""Directions in Fourier space, as unit vectors `(..., 3)` in (x, y, z) order, and even functions of them.

The power of a real noise obeys N(−k) = N(k), so a function of direction must be even. At the Nyquist index of
an even axis the sign of that component of k is ambiguous, and k and −k may stand at different indices of the same
column; there both take the mean of their values.
"""

import math
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import NoiseError
from cryofm_ops.fourier.grid import Shape, half_shape, hermitian

__all__ = ["DirectionTable", "directional", "directions", "hemisphere"]

_CHUNK = 1 << 13  # directions interpolated at once: their weights fit in a cache


def directions(shape: Shape, *, device: torch.device | str | None = None) -> Tensor:
    """Unit frequency vectors on the half grid, `(z, y, x // 2 + 1, 3)`, float64; 0 at the constant term.

    >>> directions((4, 4, 4))[0, 1, 1]
    tensor([0.7071, 0.7071, 0.0000], dtype=torch.float64)
    """
    z, y, x = shape
    half = half_shape(shape)
    kz = torch.fft.fftfreq(z, device=device, dtype=torch.float64)[:, None, None]
    ky = torch.fft.fftfreq(y, device=device, dtype=torch.float64)[:, None]
    kx = torch.fft.rfftfreq(x, device=device, dtype=torch.float64)
    return torch.nn.functional.normalize(torch.stack([kx.expand(half), ky.expand(half), kz.expand(half)], -1), dim=-1)


def hemisphere(n: int, *, device: torch.device | str | None = None) -> Tensor:
    """`n` directions spread evenly over the hemisphere z > 0, `(n, 3)`, float64 (Fibonacci spiral).

    Neighbours are about √(2π / n) apart. (Swinbank & Purser, Q. J. R. Meteorol. Soc. 132, 1769, 2006.)

    >>> bool((hemisphere(64).T @ hemisphere(64) / 64 - torch.eye(3) / 3).abs().max() < 0.01)
    True
    """
    i = torch.arange(n, device=device, dtype=torch.float64)
    z = (i + 0.5) / n
    azimuth = math.pi * (3 - math.sqrt(5)) * i
    r = (1 - z**2).sqrt()
    return torch.stack([r * azimuth.cos(), r * azimuth.sin(), z], -1)


def directional(
    function: Callable[[Tensor], Tensor], shape: Shape, *, device: torch.device | str | None = None
) -> Tensor:
    """Evaluate an even function of direction on the half grid of `shape`, as `radial` does a radial table.

    The constant term, which has no direction, takes the mean over the sphere (256 directions).

    >>> directional(lambda d: d[..., 0] ** 2, (4, 4, 4))[0, 1]
    tensor([0.0000, 0.5000, 0.8000], dtype=torch.float64)
    """
    d = directions(shape, device=device)
    d[0, 0, 0, 2] = 1  # any direction; replaced below
    values = function(d).clone()
    values[0, 0, 0] = function(hemisphere(256, device=device)).mean()
    return hermitian(values, shape)


@attrs.frozen(eq=False)
class DirectionTable:
    """An even function on the sphere, from its values on some directions.

    Between them, the mean of the values with weights exp(−sin²θ / 2w²) at the angle θ: smooth, even, and never
    outside the range of the values.

    Attributes:
        directions: unit vectors `(n, 3)`, (x, y, z); a direction and its opposite are the same.
        values: `(n,)`, finite and not negative.
        width_deg: w; half of the distance of neighbours keeps most of the detail.

    >>> table = DirectionTable(torch.eye(3), torch.tensor([1.0, 1.0, 4.0]), width_deg=20)
    >>> table(torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]))
    tensor([3.9041, 1.0480])
    """

    directions: Tensor = attrs.field()
    values: Tensor = attrs.field()
    width_deg: float = attrs.field(converter=float)

    def __attrs_post_init__(self) -> None:
        d, v = self.directions, self.values
        if d.ndim != 2 or d.shape[1] != 3 or not torch.allclose(d.norm(dim=-1), d.new_ones(len(d)), atol=1e-3):
            raise NoiseError(f"directions must be unit vectors (n, 3), got shape {tuple(d.shape)}")
        if v.shape != d.shape[:1] or not (v.isfinite() & (v >= 0)).all():
            raise NoiseError(
                f"values must be finite, not negative and one for each of {len(d)} directions, "
                f"got shape {tuple(v.shape)}"
            )
        if not 1 <= self.width_deg <= 90:
            raise NoiseError(f"width_deg must be between 1 and 90, got {self.width_deg}")

    def __call__(self, d: Tensor, /) -> Tensor:
        """The values at unit vectors d `(..., 3)`, as `(...)`, computed in the dtype of the table."""
        concentration = 0.5 / math.radians(self.width_deg) ** 2
        flat = d.reshape(-1, 3).to(self.directions.dtype)
        directions, values = self.directions.to(d.device), self.values.to(flat)

        def mean(part: Tensor) -> Tensor:
            return torch.softmax(concentration * (part @ directions.T) ** 2, -1) @ values

        pieces = [mean(flat[i : i + _CHUNK]) for i in range(0, len(flat), _CHUNK)]
        return torch.cat(pieces).reshape(d.shape[:-1]).to(d.dtype)
