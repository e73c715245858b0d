"""The half grid of `torch.fft.rfftn(norm="ortho")` over the last three axes, and radial tables.

A radial table is a 1-D tensor sampled evenly from frequency 0 to Nyquist inclusive: entry i of n stands
at i / (2 (n − 1)) cycles/voxel. It is interpolated linearly, and its last value holds beyond Nyquist (the
corners of the box). So it belongs to no box, and serves every box of the same voxel size.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from cryofm_ops.errors import CryoFMError, GridMismatchError, OperatorError

__all__ = [
    "fourier_filter",
    "frequencies",
    "friedel_weights",
    "half_shape",
    "irfft",
    "radial",
    "radial_mean",
    "rfft",
    "shell_sizes",
    "standard_normal",
]

Shape = tuple[int, int, int]
_AXES = (-3, -2, -1)


def half_shape(shape: Shape) -> Shape:
    """Shape of the half grid of a box.

    >>> half_shape((3, 4, 5))
    (3, 4, 3)
    """
    z, y, x = shape
    return z, y, x // 2 + 1


def rfft(x: Tensor) -> Tensor:
    """Orthonormal FFT of `(..., z, y, x)`, on the half grid."""
    spectrum: Tensor = torch.fft.rfftn(x.contiguous(), dim=_AXES, norm="ortho")  # torch 2.6 knows no strides of 0
    return spectrum


def irfft(spectrum: Tensor, shape: Shape) -> Tensor:
    """Inverse of `rfft`; the box `shape` is needed because odd and even widths share a half grid."""
    x: Tensor = torch.fft.irfftn(spectrum, s=shape, dim=_AXES, norm="ortho")
    return x


def fourier_filter(x: Tensor, transfer: Tensor) -> Tensor:
    """Multiply the Fourier coefficients of x `(..., z, y, x)` by `transfer` `(..., z, y, x // 2 + 1)`.

    >>> x = torch.arange(8.0).reshape(2, 2, 2)
    >>> torch.allclose(fourier_filter(x, 2 * torch.ones(2, 2, 2)), 2 * x, atol=1e-5)
    True
    """
    z, y, width = x.shape[-3:]
    return irfft(transfer * rfft(x), (z, y, width))


def frequencies(
    shape: Shape, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Length of the frequency vector, in cycles/voxel, on the half grid.

    >>> frequencies((4, 4, 4))[0, 0]
    tensor([0.0000, 0.2500, 0.5000], dtype=torch.float64)
    """
    return _unfolded(_octant(shape, device, dtype), shape)


def _octant(shape: Shape, device: torch.device | str | None, dtype: torch.dtype = torch.float64) -> Tensor:
    """Length of the frequency vector where none of its components is negative."""
    kz, ky, kx = (torch.fft.rfftfreq(n, device=device, dtype=dtype) for n in shape)
    squared: Tensor = kz[:, None, None] ** 2 + ky[:, None] ** 2 + kx**2
    return squared.sqrt()


def _unfolded(octant: Tensor, shape: Shape) -> Tensor:
    """A function of the length on the half grid, from a quarter of it."""
    z, y = (torch.arange(n, device=octant.device) for n in shape[:2])
    z, y = torch.minimum(z, shape[0] - z), torch.minimum(y, shape[1] - y)
    return octant[z[:, None], y]


def friedel_weights(shape: Shape, *, device: torch.device | str | None = None) -> Tensor:
    """Coefficients of the full transform that a column of the half grid stands for, `(x // 2 + 1,)`.

    >>> friedel_weights((4, 4, 4)), friedel_weights((5, 5, 5))
    (tensor([1., 2., 1.]), tensor([1., 2., 2.]))
    """
    x = shape[2]
    weights = torch.full((x // 2 + 1,), 2.0, device=device)
    weights[0] = 1
    if x % 2 == 0:
        weights[-1] = 1
    return weights


def hermitian(spectrum: Tensor, shape: Shape) -> Tensor:
    """Replace m(k) by (m(k) + m(−k)*) / 2 in the columns of the half grid that hold both k and −k."""
    mate = spectrum.flip(-3, -2).roll((1, 1), (-3, -2)).conj()
    both = friedel_weights(shape, device=spectrum.device) == 1
    return torch.where(both, (spectrum + mate) / 2, spectrum)


def radial(table: Tensor, shape: Shape) -> Tensor:
    """Evaluate a radial table `(n,)`, n ≥ 2, on the half grid of `shape`.

    >>> radial(torch.tensor([0.0, 1.0]), (4, 4, 4))[0, 0]
    tensor([0.0000, 0.5000, 1.0000])
    """
    if table.ndim != 1 or len(table) < 2:
        raise CryoFMError(f"a radial table is 1-D with at least 2 entries, got shape {tuple(table.shape)}")
    last = len(table) - 1
    position = (_octant(shape, table.device) * (2 * last)).clamp(max=last)
    lower = position.floor().clamp(max=last - 1)
    fraction = (position - lower).to(table.dtype)
    below = lower.long()
    return _unfolded(torch.lerp(table[below], table[below + 1], fraction), shape)


def radial_mean(spectrum: Tensor, shape: Shape, n: int | None = None) -> Tensor:
    """Shell means of a real spectrum `(..., z, y, x // 2 + 1)`, as radial tables `(..., n)`.

    Each coefficient of the full transform counts once and belongs to the nearest table entry; the corners
    beyond the last shell belong to none. `n` is `max(shape) // 2 + 1` unless given, and at most that, so that
    no shell is empty.

    >>> radial_mean(torch.ones(4, 4, 3), (4, 4, 4))
    tensor([1., 1., 1.])
    """
    if tuple(spectrum.shape[-3:]) != half_shape(shape):
        raise GridMismatchError(
            f"spectrum of shape {tuple(spectrum.shape)} is not on the half grid {half_shape(shape)} of a box {shape}"
        )
    sizes = shell_sizes(shape, n, device=spectrum.device).to(spectrum.dtype)  # first: it needs memory of its own
    n, shell = _shell_numbers(shape, n, spectrum.device)
    weighted = spectrum * friedel_weights(shape, device=spectrum.device).to(spectrum.dtype)
    sums = spectrum.new_zeros(*spectrum.shape[:-3], n + 1).index_add(-1, shell, weighted.flatten(-3))
    return sums[..., :n] / sizes


def cross_power(a: Tensor, b: Tensor) -> Tensor:
    """Re a b*, without what complex products take besides.

    >>> cross_power(torch.tensor(3 + 4j), torch.tensor(3 + 4j))
    tensor(25.)
    """
    return (a.real * b.real).addcmul_(a.imag, b.imag)


def shell_sizes(shape: Shape, n: int | None = None, *, device: torch.device | str | None = None) -> Tensor:
    """How many coefficients of the full transform each shell of `radial_mean` holds, `(n,)`, float64.

    >>> shell_sizes((4, 4, 4))
    tensor([ 1., 18., 35.], dtype=torch.float64)
    """
    z, y, x = shape
    sizes = torch.tensor(_shell_sizes((z, y, x), n), dtype=torch.float64)
    return sizes if device is None else sizes.to(device)


@lru_cache(maxsize=64)  # of a few numbers each
def _shell_sizes(shape: Shape, n: int | None) -> tuple[float, ...]:
    n, shell, weight = shells(shape, n, None)
    return tuple(weight.new_zeros(n + 1).index_add(0, shell, weight)[:n].tolist())


def shells(shape: Shape, n: int | None, device: torch.device | str | None) -> tuple[int, Tensor, Tensor]:
    """Number of shells; shell (n for the corners) and Friedel weight of every half-grid coefficient, flat."""
    n, shell = _shell_numbers(shape, n, device)
    z, y, x = shape
    return n, shell, friedel_weights(shape, device=device).double().expand(z, y, x // 2 + 1).flatten()


def _shell_numbers(shape: Shape, n: int | None, device: torch.device | str | None) -> tuple[int, Tensor]:
    full = max(shape) // 2 + 1
    n = full if n is None else n
    if not 2 <= n <= full:
        raise CryoFMError(f"a box of {shape} has between 2 and {full} shells, asked for {n}")
    return n, _unfolded((_octant(shape, device) * (2 * (n - 1))).round().long().clamp(max=n), shape).flatten()


def standard_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """White noise of unit variance, shaped as `like` `(*batch, z, y, x)`, one batch element after another.

    So the i-th element is the i-th draw whatever the batch size; one large `torch.randn` would not do that.

    >>> a = standard_normal(torch.zeros(2, 3, 3, 3), torch.Generator().manual_seed(1))
    >>> b = standard_normal(torch.zeros(3, 3, 3), torch.Generator().manual_seed(1))
    >>> bool(torch.equal(a[0], b))
    True
    """
    if not isinstance(generator, torch.Generator):
        raise OperatorError(f"generator must be a torch.Generator, got {generator!r}")
    draws = [
        torch.randn(like.shape[-3:], generator=generator, dtype=like.dtype, device=generator.device)
        for _ in range(math.prod(like.shape[:-3]))
    ]
    return torch.stack(draws).reshape(like.shape).to(like.device) if draws else torch.zeros_like(like)
