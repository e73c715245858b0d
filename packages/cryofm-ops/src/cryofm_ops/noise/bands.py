"""Noise that differs from place to place, and in every band of frequencies in another way.

Where a part moves, fine detail is lost there and coarse is not: no variance in space times one spectrum has that. The
bands are shells of equal width up to Nyquist, the corners in the last one; P_b keeps those of band b.
"""

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import NoiseError
from cryofm_ops.fourier.grid import Shape, fourier_filter, frequencies, irfft, radial, rfft, standard_normal
from cryofm_ops.noise.local import check_power, estimate_local_variance

__all__ = ["BandNoise", "estimate_band_variances"]

_ITERATIONS, _RESIDUAL = 200, 1e-7  # of conjugate gradients


def _check_variances(_: object, __: object, variances: Tensor) -> None:
    if variances.ndim != 4 or not (variances.isfinite() & (variances > 0)).all():
        raise NoiseError(f"variances are volumes (bands, z, y, x) of positive numbers, got {tuple(variances.shape)}")


@attrs.frozen(eq=False)
class BandNoise:
    """Σ⁻¹ = S^−½ (Σ_b P_b D_b⁻¹ P_b) S^−½: what each band differs by, at each place over its variance there.

    `LinearGaussian` conditions on it by conjugate gradients, by which `sample` solves for a draw, too: it is the
    precision that is known in closed form.

    Attributes:
        variances: D_b, `(bands, z, y, x)`, relative: of mean 1 if `radial_power` is to be about the mean power.
        radial_power: S, radial table of the power in the orthonormal FFT.

    Raises `NoiseError` for values that are not positive.

    >>> noise = BandNoise(torch.ones(3, 8, 8, 8), torch.tensor([2.0, 2.0]))
    >>> bool(torch.allclose(noise.precision(torch.ones(8, 8, 8)), torch.full((8, 8, 8), 0.5)))
    True
    """

    variances: Tensor = attrs.field(validator=_check_variances)
    radial_power: Tensor = attrs.field(validator=check_power)

    def sample(self, y: Tensor, /, *, generator: torch.Generator) -> Tensor:
        """Y + n, for y `(*batch, z, y, x)`: Λ m = Σ_b P_b D_b^−½ e_b has covariance Λ, so that m has Λ⁻¹."""
        shape = _shape(y)
        each = y.unsqueeze(-4).expand(*y.shape[:-3], *self.variances.shape)
        white = standard_normal(each, generator).unbind(-4)  # of the first volume, all bands; then of the second
        pushed = sum(
            fourier_filter(D.rsqrt().to(y) * e, P)
            for D, e, P in zip(self.variances, white, _bands(len(self.variances), shape, y), strict=True)
        )
        return y + fourier_filter(_solved(self._relative, torch.as_tensor(pushed)), self._root(shape, y))

    def precision(self, r: Tensor, /) -> Tensor:
        """Σ⁻¹ r."""
        root = 1 / self._root(_shape(r), r)
        return fourier_filter(self._relative(fourier_filter(r, root)), root)

    def _relative(self, m: Tensor) -> Tensor:
        """Σ_b P_b D_b⁻¹ P_b m."""
        shape = _shape(m)
        spectrum, found = rfft(m), torch.zeros_like(rfft(m))
        for D, P in zip(self.variances.to(m), _bands(len(self.variances), shape, m), strict=True):
            found += P * rfft(irfft(P * spectrum, shape) / D)
        return irfft(found, shape)

    def _root(self, shape: Shape, like: Tensor) -> Tensor:
        return radial(self.radial_power, shape).sqrt().to(like)


def estimate_band_variances(half1: Tensor, half2: Tensor, bands: int, *, width_px: float = 6.0) -> Tensor:
    """How the variance of the halves' noise differs from place to place in each of its bands, `(bands, z, y, x)`.

    That of `estimate_local_variance` of each band: of mean 1, and shrunk to it by what is chance.

    Args:
        half1: `(z, y, x)`.
        half2: likewise.
        bands: shells of equal width, 1 or more.
        width_px: standard deviation of the Gaussian in which a variance is the mean, voxels.

    >>> halves = torch.randn(2, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    >>> bool((estimate_band_variances(*halves, 3) - 1).abs().max() < 0.5)
    True
    """
    if bands < 1:
        raise NoiseError(f"bands must be 1 or more, got {bands}")
    filters = _bands(bands, _shape(half1), half1)
    each = [[fourier_filter(half, P) for half in (half1, half2)] for P in filters]
    return torch.stack([estimate_local_variance(*halves, width_px=width_px) for halves in each])


def _shape(x: Tensor) -> Shape:
    z, y, width = x.shape[-3:]
    return z, y, width


def _bands(count: int, shape: Shape, like: Tensor) -> list[Tensor]:
    """P_b on the half grid, 0 or 1; together 1."""
    band = (2 * count * frequencies(shape, device=like.device)).long().clamp(max=count - 1)
    return [(band == b).to(like) for b in range(count)]


def _solved(matrix: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """A⁻¹ b by conjugate gradients, for every volume of a batch."""
    x, r = torch.zeros_like(b), b.clone()
    p, before = r.clone(), _dot(r, r)
    enough = _RESIDUAL**2 * before
    for _ in range(_ITERATIONS):
        going = before > enough  # each as if it were alone
        if not going.any():
            break
        Ap = matrix(p)
        step = torch.where(going, before / _dot(p, Ap).clamp(min=torch.finfo(b.dtype).tiny), 0)
        x, r = x + step * p, r - step * Ap
        after = _dot(r, r)
        p, before = r + after / before.clamp(min=torch.finfo(b.dtype).tiny) * p, torch.where(going, after, before)
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-3, -2, -1), keepdim=True)
