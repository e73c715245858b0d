"""Degradation operators."""

import attrs
import torch
from torch import Tensor

from cryofm_ops.fourier.grid import half_shape
from cryofm_ops.operators._algebra import Algebra

__all__ = ["Identity"]


@attrs.frozen
class Identity(Algebra):
    """No degradation: A x = x. A `LinearOperator`, `PseudoInvertible` and `FourierMultiplier`.

    >>> Identity().transfer((4, 4, 4)).shape
    torch.Size([4, 4, 3])
    """

    def __call__(self, x: Tensor, /) -> Tensor:
        """A x = x, `(*batch, z, y, x)`."""
        return x

    def adjoint(self, y: Tensor, /) -> Tensor:
        """The same y."""
        return y

    def pinv(self, y: Tensor, /) -> Tensor:
        """The same y."""
        return y

    def transfer(self, shape: tuple[int, int, int], /) -> Tensor:
        """Ones on the half grid of `shape`."""
        return torch.ones(half_shape(shape))
