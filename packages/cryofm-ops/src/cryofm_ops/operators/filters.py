"""Fourier filters: a low pass, any radial transfer function, any Fourier mask, all but the mean."""

import math
import warnings
from typing import Self

import attrs
import torch
from torch import Tensor

from cryofm_ops._checks import check_tensor
from cryofm_ops.errors import GridMismatchError, OperatorError
from cryofm_ops.fourier.grid import Shape, frequencies, half_shape, hermitian, radial
from cryofm_ops.operators.fourier import FourierOperator

__all__ = ["FourierMask", "LowPass", "RadialFilter", "RemoveMean", "WithoutMean"]


def _check_positive(_: object, field: "attrs.Attribute[float]", value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise OperatorError(f"{field.name} of a low pass must be finite and positive, in Å, got {value}")


def _check_edge(_: object, __: object, edge: float) -> None:
    if not 0 <= edge <= 2:
        raise OperatorError(f"edge_fraction must be from 0 (hard) to 2 (the edge starts at frequency 0), got {edge}")


def _check_table(_: object, __: object, table: Tensor) -> None:
    if table.ndim != 1 or len(table) < 2 or not table.is_floating_point():
        raise OperatorError(
            f"a radial filter is a real floating-point table of at least 2 entries, "
            f"got {table.dtype} of shape {tuple(table.shape)}"
        )
    wrong = ~table.isfinite()
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise OperatorError(f"a radial filter must be finite, got {table[first]} at entry {first}")


def _as_numbers(mask: Tensor) -> Tensor:
    check_tensor(mask, "a mask", OperatorError)
    return mask if mask.is_floating_point() or mask.is_complex() else mask.double()


@attrs.frozen
class LowPass(FourierOperator):
    """A low pass with a raised-cosine edge (Tukey's taper) about the frequency 1/resolution.

    A resolution finer than Nyquist is no error: the edge then lies in the corners of the box, and beyond
    √3 times Nyquist the filter is the identity.

    Attributes:
        resolution: in Å; the amplitude is 1/2 there, so the power 1/4.
        voxel_size: in Å.
        edge_fraction: full width of the edge over 1/resolution. 0 is a hard edge, which rings, and which
            keeps what lies on it.

    Raises `OperatorError`.

    >>> LowPass(6.0, voxel_size=1.5, edge_fraction=0).transfer((8, 8, 8))[0, 0]
    tensor([1., 1., 1., 0., 0.], dtype=torch.float64)
    """

    resolution: float = attrs.field(converter=float, validator=_check_positive)
    voxel_size: float = attrs.field(converter=float, validator=_check_positive)
    edge_fraction: float = attrs.field(default=0.2, converter=float, validator=_check_edge)

    def transfer(self, shape: Shape, /) -> Tensor:
        """From 1 to 0, on the half grid of `shape`, float64."""
        beyond = frequencies(shape) * self.resolution / self.voxel_size - 1  # the cutoff's distance over the cutoff
        if self.edge_fraction == 0:
            return (beyond <= 1e-9).double()  # rounding must not decide on what lies on the edge
        return 0.5 - 0.5 * torch.sin(math.pi * (beyond / self.edge_fraction).clamp(-0.5, 0.5))


@attrs.frozen(eq=False)
class RadialFilter(FourierOperator):
    """A real transfer that depends on the length of the frequency only.

    Attributes:
        table: a radial table `(n,)`: even steps from 0 to Nyquist inclusive; the corners take its last value.

    Raises `OperatorError`.

    >>> RadialFilter(torch.tensor([1.0, 0.0])).transfer((4, 4, 4))[0, 0]
    tensor([1.0000, 0.5000, 0.0000])
    """

    table: Tensor = attrs.field(validator=_check_table)

    def transfer(self, shape: Shape, /) -> Tensor:
        """The table at |k|, on the half grid of `shape`."""
        return radial(self.table, shape)


@attrs.frozen(eq=False)
class FourierMask(FourierOperator):
    """Any transfer, real or complex, for one box: a sampling mask, a shift, another operator's transfer.

    Attributes:
        mask: m(k) on the half grid `(..., z, y, x // 2 + 1)`; its columns kx = 0 and, in an even box, Nyquist
            hold both k and −k, and must have m(−k) = m(k)*. Booleans become 0 and 1.
        shape: the box (z, y, x), which the half grid alone does not tell.

    Raises:
        GridMismatchError: the mask is not on the half grid of `shape`, or meets another box.
        OperatorError: values that are not finite, or not Hermitian: A x would not be real.

    >>> mask = FourierMask(torch.ones(4, 4, 3), (4, 4, 4))
    >>> FourierMask.from_full_grid(torch.ones(4, 4, 4)).transfer((4, 4, 4)).equal(mask.mask)
    True
    """

    mask: Tensor = attrs.field(converter=_as_numbers)
    shape: Shape

    def __attrs_post_init__(self) -> None:
        if tuple(self.mask.shape[-3:]) != half_shape(self.shape):
            raise GridMismatchError(
                f"mask of shape {tuple(self.mask.shape)} is not on the half grid {half_shape(self.shape)} "
                f"of a box {self.shape}; for a mask on the full grid use from_full_grid"
            )
        _check_mates(self.mask, hermitian(self.mask, self.shape))

    @classmethod
    def from_full_grid(cls, mask: Tensor) -> Self:
        """Of a mask `(..., z, y, x)` in the order of `torch.fft.fftn`, frequency 0 first."""
        depth, height, width = mask.shape[-3:]
        full = _as_numbers(mask)
        mate = full.flip(-3, -2, -1).roll((1, 1, 1), (-3, -2, -1)).conj()
        _check_mates(full, (full + mate) / 2)
        return cls(full[..., : width // 2 + 1], (depth, height, width))

    def transfer(self, shape: Shape, /) -> Tensor:
        """The mask; `GridMismatchError` for any box but its own."""
        if tuple(shape) != self.shape:
            raise GridMismatchError(f"the Fourier mask is for a box {self.shape}, got a box {tuple(shape)}")
        return self.mask


@attrs.frozen
class RemoveMean(FourierOperator):
    """x less its mean, frequency 0: what a map shows that came on an unknown constant.

    So half maps do, and tomograms: their mean depends on how images were normalised, and what a prior knows as 0,
    solvent, is at any value. With this operator, alone or after another one (`compose`), nothing is said of the mean,
    and the prior fills it in. (A map less its median is no substitute where density fills much of the box.)

    >>> RemoveMean()(torch.tensor([[[3.0, 5.0]]]))
    tensor([[[-1.0000,  1.0000]]])
    """

    def transfer(self, shape: Shape, /) -> Tensor:
        """1 but for frequency 0; float64."""
        m = torch.ones(half_shape(shape), dtype=torch.float64)
        m[0, 0, 0] = 0
        return m


class WithoutMean(RemoveMean):
    """The former name of `RemoveMean`; it goes in version 0.3."""

    def __init__(self) -> None:
        warnings.warn("WithoutMean is now called RemoveMean", DeprecationWarning, stacklevel=2)


def _check_mates(mask: Tensor, symmetric: Tensor) -> None:
    if not mask.isfinite().all():
        raise OperatorError(f"a Fourier mask must be finite, got {(~mask.isfinite()).sum()} values that are not")
    deviation = (mask - symmetric).abs()
    wrong = deviation > 100 * torch.finfo(mask.dtype).eps * mask.abs().max()
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise OperatorError(
            f"the Fourier mask is not Hermitian: at index {first} it is {mask[first].item():.6g}, and the mean of "
            f"that with the conjugate of its Friedel mate is {symmetric[first].item():.6g}. A real operator needs "
            f"m(−k) = m(k)*; at the Nyquist frequency of an even axis use the mean of both signs"
        )
