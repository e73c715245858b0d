"""The noise of several data sets side by side, each of its own kind."""

import math
from collections.abc import Iterable

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import GridMismatchError, NoiseError
from cryofm_ops.protocols import Noise

__all__ = ["BlockNoise"]


def _noises(noises: Iterable[Noise]) -> tuple[Noise, ...]:
    return tuple(noises)


def _shapes(shapes: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for shape in shapes)


@attrs.frozen(eq=False)
class BlockNoise:
    """Independent noises of the parts of one vector. A `Noise`.

    Attributes:
        noises: one for each part.
        shapes: of one observation of each part; they may differ.

    A vector is `(*batch, n)`: the parts, flattened, one after the other. Raises `NoiseError` for parts without a shape,
    `GridMismatchError` for a vector of another length.

    >>> from cryofm_ops import WhiteNoise
    >>> BlockNoise([WhiteNoise(1.0), WhiteNoise(0.5)], [(1, 1, 2), (1, 1, 1)]).precision(torch.ones(3))
    tensor([1., 1., 4.])
    """

    noises: tuple[Noise, ...] = attrs.field(converter=_noises)
    shapes: tuple[tuple[int, ...], ...] = attrs.field(converter=_shapes)

    def __attrs_post_init__(self) -> None:
        if not self.noises or len(self.noises) != len(self.shapes):
            raise NoiseError(f"every noise needs the shape of its data: {len(self.noises)} and {len(self.shapes)}")

    def sample(self, y: Tensor, /, *, generator: torch.Generator) -> Tensor:
        """Y + n, `(*batch, n)`; one part after the other."""
        parts = zip(self.noises, self.split(y), strict=True)
        return self.joined([noise.sample(part, generator=generator) for noise, part in parts])

    def precision(self, r: Tensor, /) -> Tensor:
        """Σ⁻¹ r, part by part."""
        return self.joined([noise.precision(part) for noise, part in zip(self.noises, self.split(r), strict=True)])

    def split(self, y: Tensor) -> list[Tensor]:
        """The parts `(*batch, *shape)` of a vector."""
        sizes = [math.prod(shape) for shape in self.shapes]
        if y.shape[-1] != sum(sizes):
            raise GridMismatchError(f"parts of shapes {self.shapes} make {sum(sizes)} numbers, got {tuple(y.shape)}")
        pieces = y.split(sizes, -1)  # type: ignore[no-untyped-call]
        return [piece.unflatten(-1, shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def joined(self, parts: Iterable[Tensor]) -> Tensor:
        """The vector of these parts."""
        flat = [part.flatten(-len(shape)) for part, shape in zip(parts, self.shapes, strict=True)]
        return torch.cat(flat, -1)
