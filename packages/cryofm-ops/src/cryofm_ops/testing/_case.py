"""What a check is run on, and how its inputs are drawn."""

import math
from collections.abc import Sequence
from typing import Literal

import attrs
import torch
from torch import Tensor

from cryofm_ops.fourier.grid import Shape

__all__ = ["KINDS", "SHAPES", "Case", "ContractError"]

SHAPES: tuple[Shape, ...] = ((4, 4, 4), (5, 5, 5), (3, 4, 5))

Kind = Literal["normal", "zero", "delta", "constant", "checkerboard"]
KINDS: tuple[Kind, ...] = ("normal", "zero", "delta", "constant", "checkerboard")


class ContractError(AssertionError):
    """An object broke its contract: names the check, what was expected, what came, and the case."""


@attrs.frozen
class Case:
    """One input of a check; the same case always makes the same tensors.

    Attributes:
        shape: the box (z, y, x).
        batch: leading axes.
        kind: the volume: white noise, zero, one voxel, a constant, or ±1 alternating (the Nyquist corner).
        scale: its magnitude, in units of `unit`.
        seed: of every random tensor of the case.
        device: where the tensors are made.
        unit: the magnitude of the data that the object is made for.

    >>> Case((4, 4, 4), batch=(2,), kind="constant", scale=3.0).volume()[0, 0, 0]
    tensor([3., 3., 3., 3.], dtype=torch.float64)
    """

    shape: Shape
    batch: tuple[int, ...] = ()
    kind: Kind = "normal"
    scale: float = 1.0
    seed: int = 0
    device: str = "cpu"
    unit: float = 1.0

    @property
    def magnitude(self) -> float:
        """Of the volume."""
        return self.scale * self.unit

    def volume(self) -> Tensor:
        """The input, `(*batch, z, y, x)`, float64. The first of a batch is of `kind`, the others are white noise."""
        x = self.normal((*self.batch, *self.shape), 0) * self.magnitude
        x.view(-1, *self.shape)[0] = self._first(x)
        return x

    def _first(self, x: Tensor) -> Tensor | float:
        if self.kind == "normal":
            return x.view(-1, *self.shape)[0].clone()
        if self.kind == "constant":
            return self.magnitude
        first = torch.zeros(self.shape, dtype=x.dtype, device=x.device)
        if self.kind == "delta":
            first.view(-1)[self.seed % math.prod(self.shape)] = self.magnitude
        elif self.kind == "checkerboard":
            z, y, width = (torch.arange(n, device=self.device) for n in self.shape)
            first += self.magnitude * (1 - 2 * ((z[:, None, None] + y[:, None] + width) % 2))
        return first

    def normal(self, size: Sequence[int], stream: int) -> Tensor:
        """White noise of unit variance; another `stream` is independent noise."""
        generator = torch.Generator().manual_seed(self.seed * 1009 + stream)
        return torch.randn(tuple(size), generator=generator, dtype=torch.float64).to(self.device)

    def drawn(self, size: Sequence[int], stream: int) -> Tensor:
        """White noise of the magnitude `unit`."""
        return self.normal(size, stream) * self.unit
