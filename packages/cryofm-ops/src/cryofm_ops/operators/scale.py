"""A factor, such as the one between a prior's densities and a map's, or an inverted contrast."""

import math

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import OperatorError
from cryofm_ops.fourier.grid import Shape, half_shape
from cryofm_ops.operators._algebra import Algebra

__all__ = ["Scale"]


def _check_factor(_: object, __: object, factor: float) -> None:
    if not math.isfinite(factor):
        raise OperatorError(f"the factor of a scale must be finite, got {factor}")


@attrs.frozen
class Scale(Algebra):
    """A x = factor · x; what `2 * A` is made of. A `LinearOperator`, `PseudoInvertible` and `FourierMultiplier`.

    Attributes:
        factor: finite; −1 inverts the contrast.

    >>> from cryofm_ops import LowPass
    >>> blurred = -2 * LowPass(6.0, voxel_size=1.5)
    >>> blurred.transfer((4, 4, 4))[0, 0, 0]
    tensor(-2., dtype=torch.float64)
    """

    factor: float = attrs.field(converter=float, validator=_check_factor)

    def __call__(self, x: Tensor, /) -> Tensor:
        """The factor times x, of any shape."""
        return self.factor * x

    def adjoint(self, y: Tensor, /) -> Tensor:
        """The same of y."""
        return self.factor * y

    def pinv(self, y: Tensor, /) -> Tensor:
        """Y over the factor; 0 where that is 0."""
        return y / self.factor if self.factor else torch.zeros_like(y)

    def transfer(self, shape: Shape, /) -> Tensor:
        """The factor everywhere on the half grid of `shape`, float64."""
        return torch.full(half_shape(shape), self.factor, dtype=torch.float64)
