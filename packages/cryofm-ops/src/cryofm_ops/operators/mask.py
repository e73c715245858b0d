"""A mask in real space: what lies outside of it was not seen."""

import attrs
import torch
from torch import Tensor

from cryofm_ops._checks import check_tensor
from cryofm_ops.errors import GridMismatchError, OperatorError
from cryofm_ops.operators._algebra import Algebra

__all__ = ["Mask"]

_ROUNDING = 1e-6  # of the largest weight, under which a voxel was not seen


def _as_numbers(mask: Tensor) -> Tensor:
    check_tensor(mask, "a mask", OperatorError)
    return mask if mask.is_floating_point() else mask.float()


def _check_mask(_: object, __: object, mask: Tensor) -> None:
    if mask.ndim != 3:
        raise OperatorError(f"a mask is a volume (z, y, x), got shape {tuple(mask.shape)}")
    if not mask.isfinite().all() or not mask.any():
        raise OperatorError("a mask must be finite, and not 0 everywhere")


@attrs.frozen(eq=False)
class Mask(Algebra):
    """A x = w x, voxel by voxel. A `LinearOperator` and `PseudoInvertible`; for Fourier space take `FourierMask`.

    Data under a soft mask are w x + n where noise came after the mask; where it came before, as in a masked
    reconstruction, it is under the mask too: take `Identity`, and a `VoxelNoise` that is large outside.

    Attributes:
        weights: w, `(z, y, x)`, any real numbers; booleans become 0 and 1.

    Raises `OperatorError`, and `GridMismatchError` for volumes of another box.

    >>> seen = torch.zeros(1, 1, 4)
    >>> seen[..., :2] = 1
    >>> Mask(seen)(torch.tensor([[[3.0, 4.0, 5.0, 6.0]]]))
    tensor([[[3., 4., 0., 0.]]])
    """

    weights: Tensor = attrs.field(converter=_as_numbers, validator=_check_mask)

    def __call__(self, x: Tensor, /) -> Tensor:
        """W x, for x `(*batch, z, y, x)`."""
        return self._for(x) * x

    def adjoint(self, y: Tensor, /) -> Tensor:
        """W y."""
        return self._for(y) * y

    def pinv(self, y: Tensor, /) -> Tensor:
        """Y / w, and 0 where w is 0 or nothing beside its largest value."""
        w = self._for(y)
        seen = w.abs() > _ROUNDING * w.abs().max()
        return torch.where(seen, y / torch.where(seen, w, 1), 0)

    def _for(self, x: Tensor) -> Tensor:
        if x.shape[-3:] != self.weights.shape:
            raise GridMismatchError(f"the mask has box {tuple(self.weights.shape)}, got shape {tuple(x.shape)}")
        return self.weights.to(x)
