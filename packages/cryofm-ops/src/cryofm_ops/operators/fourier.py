"""What every operator that multiplies Fourier coefficients by numbers has in common."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from cryofm_ops.errors import GridMismatchError
from cryofm_ops.fourier.grid import Shape, fourier_filter, half_shape
from cryofm_ops.operators._algebra import Algebra
from cryofm_ops.protocols import FourierMultiplier

__all__ = ["FourierOperator"]


class FourierOperator(Algebra, ABC):
    """Makes an operator of a transfer function: subclasses give `transfer`, this class the rest.

    A `LinearOperator`, `PseudoInvertible` and `FourierMultiplier`. Volumes are `(*batch, z, y, x)` of any
    box; results have their dtype and device. The transfer is computed at every call; to compute it once for
    a box, `FourierMask(operator.transfer(shape), shape)`.

    >>> from cryofm_ops import frequencies
    >>> class Blur(FourierOperator):
    ...     def transfer(self, shape, /):
    ...         return torch.exp(-((3 * frequencies(shape)) ** 2))
    >>> x = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> torch.allclose(Blur().pinv(Blur()(x)), x)
    True
    """

    __slots__ = ()

    @abstractmethod
    def transfer(self, shape: Shape, /) -> Tensor:
        """m(k) on the half grid of the box `shape`; real or complex, with m(−k) = m(k)*.

        Leading axes, if any, are for the batch axes of the volumes, which they must not outnumber.
        """

    def __call__(self, x: Tensor, /) -> Tensor:
        """A x = F⁻¹ m F x; `GridMismatchError` where the transfer does not fit x."""
        return fourier_filter(x, transfer_for(self, x))

    def adjoint(self, y: Tensor, /) -> Tensor:
        """Aᵀ y = F⁻¹ m* F y."""
        return fourier_filter(y, transfer_for(self, y).conj())

    def pinv(self, y: Tensor, /) -> Tensor:
        """A⁺ y: divided by m, and 0 where |m| ≤ rtol · max|m|.

        As in `torch.linalg.pinv`, rtol is a size times the precision of y's dtype; the size is the longest
        axis, since that of the matrix, the number of voxels, would reject everything in a large float32 box.
        """
        m = transfer_for(self, y)
        keep = significant(m.abs(), max(y.shape[-3:]))
        return fourier_filter(y, torch.where(keep, 1 / torch.where(keep, m, 1), 0))


def transfer_for(operator: FourierMultiplier, x: Tensor) -> Tensor:
    """The operator's transfer for the box of x `(*batch, z, y, x)`, with x's precision and device."""
    if x.ndim < 3:
        raise GridMismatchError(f"a volume is (*batch, z, y, x), got shape {tuple(x.shape)}")
    depth, height, width = x.shape[-3:]
    m = operator.transfer((depth, height, width))
    half = half_shape((depth, height, width))
    batch, own = tuple(x.shape[:-3]), tuple(m.shape[:-3])
    if tuple(m.shape[-3:]) != half:
        raise GridMismatchError(
            f"{type(operator).__name__} has a transfer of shape {tuple(m.shape)} "
            f"for a volume of shape {tuple(x.shape)}, whose half grid is {half}"
        )
    # A transfer that made a larger batch would need an adjoint that sums over it.
    if len(own) > len(batch) or any(n not in (1, b) for n, b in zip(own[::-1], batch[::-1], strict=False)):
        raise GridMismatchError(
            f"{type(operator).__name__} has a transfer for each of a batch {own}, "
            f"but the volume of shape {tuple(x.shape)} has batch axes {batch}; expand the volume"
        )
    dtype = torch.result_type(x, 0.5)
    return m.to(device=x.device, dtype=dtype.to_complex() if m.is_complex() else dtype)


def significant(magnitude: Tensor, size: int) -> Tensor:
    """Which singular values on a half grid `(..., z, y, x // 2 + 1)` are more than rounding."""
    rtol = size * torch.finfo(magnitude.dtype).eps
    return magnitude > rtol * magnitude.amax((-3, -2, -1), keepdim=True)
