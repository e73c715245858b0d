"""What an operator, a noise model and a likelihood can do: one capability per Protocol.

Any class with the methods has the capability; it need not import anything from here. Volumes are
`(*batch, z, y, x)`; spectral quantities live on the half grid of `torch.fft.rfftn(norm="ortho")` over the
last three axes, `(..., z, y, x // 2 + 1)`. A shipped Protocol never gains a member.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cryofm_ops.normal import Normal

__all__ = [
    "Averaging",
    "Blind",
    "Conjugate",
    "FourierDiagonal",
    "FourierMultiplier",
    "Iterative",
    "Likelihood",
    "LinearOperator",
    "Noise",
    "Normalization",
    "Operator",
    "PseudoInvertible",
    "SpectralPower",
    "Testable",
]


@runtime_checkable
class Operator(Protocol):
    """A degradation A, without noise."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """A x, for x `(*batch, z, y, x)`; `(*batch, ...)` of whatever shape the operator makes."""
        ...


@runtime_checkable
class LinearOperator(Protocol):
    """A linear degradation A."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """A x, for x `(*batch, z, y, x)`."""
        ...

    def adjoint(self, y: Tensor, /) -> Tensor:
        """Aᵀ y, the exact transpose in the real inner product: ⟨A x, y⟩ = ⟨x, Aᵀ y⟩."""
        ...


@runtime_checkable
class PseudoInvertible(Protocol):
    """A degradation with a Moore–Penrose inverse."""

    def pinv(self, y: Tensor, /) -> Tensor:
        """A⁺ y."""
        ...


@runtime_checkable
class FourierMultiplier(Protocol):
    """An operator that multiplies each Fourier coefficient by a number."""

    def transfer(self, shape: tuple[int, int, int], /) -> Tensor:
        """m(k) on the half grid of the box `shape`; real or complex, with m(−k) = m(k)*."""
        ...


@runtime_checkable
class Noise(Protocol):
    """Additive Gaussian noise of covariance Σ."""

    def sample(self, y: Tensor, /, *, generator: torch.Generator) -> Tensor:
        """Y + n, with n drawn independently for every element of the batch."""
        ...

    def precision(self, r: Tensor, /) -> Tensor:
        """Σ⁻¹ r."""
        ...


@runtime_checkable
class SpectralPower(Protocol):
    """A stationary noise: independent Fourier coefficients."""

    def power(self, shape: tuple[int, int, int], /) -> Tensor:
        """N(k), the noise variance per coefficient of the orthonormal FFT, on the half grid of `shape`."""
        ...


@runtime_checkable
class Likelihood(Protocol):
    """All that guidance needs."""

    def log_prob(self, x: Tensor, /) -> Tensor:
        """Log p(y | x) up to a constant, `(*batch,)`; differentiable in x."""
        ...


@runtime_checkable
class Conjugate(Protocol):
    """A likelihood under which a normal distribution stays normal.

    One whose attribute `batched` is true also takes a variance for each volume of a batch, `(*batch, 1, 1, 1)` or
    `(*batch, z, y, x // 2 + 1)`: samplers then condition a batch at once.
    """

    def condition(self, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """N(mean, variance) × likelihood, normalised.

        `mean` is `(*batch, z, y, x)`; `variance` is white (a number) or per Fourier coefficient (half grid).
        """
        ...


@runtime_checkable
class Iterative(Protocol):
    """A `Conjugate` that searches: sooner from a good start, and perhaps for another mode from a bad one."""

    def condition_from(self, start: Tensor, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """As `condition`, from a volume near the mean of the result, shaped as `mean`."""
        ...


@runtime_checkable
class Averaging(Protocol):
    """A `Conjugate` that finds the mode, and can find the mean, at a price."""

    def mean_from(self, start: Tensor, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """N(mean, variance) given the data, from a volume near the mode, shaped as `mean`."""
        ...


@runtime_checkable
class FourierDiagonal(Protocol):
    """A Gaussian likelihood that is diagonal in Fourier space: −2 log p(y | x) = Σ W |x̃ − ỹ|² + const."""

    def spectral_precision(self) -> Tensor:
        """W(k) = W(−k) on the half grid: 0 where nothing was measured, infinite where there is no noise."""
        ...

    def spectral_data(self) -> Tensor:
        """ỹ(k) on the half grid and on the scale of x (the transfer divided out); meaningful where W > 0."""
        ...


@runtime_checkable
class Testable(Protocol):
    """A likelihood that can tell how well a volume explains the data."""

    def deviance(self, x: Tensor, /) -> tuple[Tensor, int]:
        """Twice what log p(y | x) lacks of its largest value, `(*batch,)`, and how many numbers were observed.

        At the truth the first is about the second: χ², where the noise is Gaussian.
        """
        ...


@runtime_checkable
class Blind(Protocol):
    """A likelihood with unknown nuisance parameters, such as poses."""

    def refine(self, x: Tensor, /) -> Likelihood:
        """The likelihood with its nuisance parameters estimated again at x."""
        ...


@runtime_checkable
class Normalization(Protocol):
    """The affine map between model units z and data units x: x = std · z + mean."""

    @property
    def mean(self) -> float:
        """Offset, in data units."""
        ...

    @property
    def std(self) -> float:
        """Scale, in data units."""
        ...
