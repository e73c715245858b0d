"""The Gaussian likelihood of data that are diagonal in Fourier space, with conditioning in closed form."""

from typing import Self

import attrs
import torch
from torch import Tensor

from cryofm_ops._checks import check_observation, check_precision, check_spectral_data, check_variance
from cryofm_ops.errors import GridMismatchError, NoiseError, OperatorError
from cryofm_ops.fourier.grid import friedel_weights, half_shape, irfft, rfft
from cryofm_ops.likelihoods._summable import Summable
from cryofm_ops.normal import Normal
from cryofm_ops.operators.fourier import significant
from cryofm_ops.protocols import FourierMultiplier, Normalization, SpectralPower

__all__ = ["FourierGaussian"]

Shape = tuple[int, int, int]

_ROUNDING = 1e-3  # by which W(−k) and W(k) may differ, of W


@attrs.frozen(eq=False)
class FourierGaussian(Summable):
    """p(y | x) ∝ exp(−½ Σ W |x̃ − ỹ|²): a `Likelihood`, `Conjugate` and `FourierDiagonal`.

    The sum is over the full transform.

    Attributes:
        precision: W on the half grid `(..., z, y, x // 2 + 1)`: 0 unmeasured, infinite noiseless. W(−k) = W(k), where
            the half grid holds both.
        data: ỹ on the half grid, on the scale of x; finite.
        shape: the box (z, y, x), which the half grid alone does not tell.
        normalization: of the model units that these data are in (`in_model_units`); None for data units.

    >>> from cryofm_ops import Identity, WhiteNoise
    >>> y = FourierGaussian.observed(Identity(), WhiteNoise(1.0), torch.ones(4, 4, 4))
    >>> posterior = y.condition(torch.zeros(4, 4, 4), 1.0)
    >>> posterior.mean[0, 0]
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    precision: Tensor = attrs.field(validator=check_precision)
    data: Tensor = attrs.field(validator=check_spectral_data)
    shape: Shape
    normalization: Normalization | None = attrs.field(default=None, kw_only=True, repr=False)

    def __attrs_post_init__(self) -> None:
        for name, spectrum in (("precision", self.precision), ("data", self.data)):
            if tuple(spectrum.shape[-3:]) != half_shape(self.shape):
                raise GridMismatchError(
                    f"{name} of shape {tuple(spectrum.shape)} is not on the half grid "
                    f"{half_shape(self.shape)} of a box {self.shape}"
                )
        _check_mates(self.precision)

    @classmethod
    def observed(cls, operator: FourierMultiplier, noise: SpectralPower, observation: Tensor) -> Self:
        """The likelihood of ỹ_observed = m x̃ + ñ: W = |m|²/N and ỹ = ỹ_observed / m (0 where m is)."""
        check_observation(None, None, observation)
        z, y, x = observation.shape[-3:]
        shape = (z, y, x)
        spectrum = rfft(observation)
        m = operator.transfer(shape).to(observation.device)
        m = m.to(spectrum.dtype if m.is_complex() else observation.dtype)
        n = noise.power(shape).to(observation)
        for name, found in (("transfer", m), ("power", n)):
            if tuple(found.shape[-3:]) != half_shape(shape):
                raise GridMismatchError(
                    f"{name} gave shape {tuple(found.shape)} for an observation of shape "
                    f"{tuple(observation.shape)}, whose half grid is {half_shape(shape)}"
                )
        if not m.isfinite().all():
            raise OperatorError("transfer gave values that are not finite")
        if not (n >= 0).all():
            raise NoiseError("power gave negative or NaN values")
        gain = m.abs() ** 2
        # Without noise even rounding in m would be data, divided by it.
        measured = (gain > 0) & ((n > 0) | significant(m.abs(), max(shape)))
        w = torch.where(measured, gain / n, 0)
        return cls(w, torch.where(measured, spectrum / torch.where(measured, m, 1), 0), shape)

    def spectral_precision(self) -> Tensor:
        """W, `(..., z, y, x // 2 + 1)`."""
        return self.precision

    def spectral_data(self) -> Tensor:
        """ỹ, `(..., z, y, x // 2 + 1)`."""
        return self.data

    def log_prob(self, x: Tensor, /) -> Tensor:
        """−½ Σ W |x̃ − ỹ|² for x `(*batch, z, y, x)`, as `(*batch,)`; terms without x are left out.

        Noiseless coefficients have no density: a `NoiseError` (`condition` takes them).
        """
        self._check_box(x)
        if self.precision.isinf().any():
            raise NoiseError("noiseless coefficients have no density: use condition, or give the noise some power")
        r = self.precision.sqrt() * (rfft(x) - self.data)
        weights = friedel_weights(self.shape, device=x.device).to(r.real.dtype)
        return -0.5 * (weights * (r.real**2 + r.imag**2)).flatten(-3).sum(-1)

    @property
    def dtype(self) -> torch.dtype:
        """Of volumes with the precision of the data."""
        return self.data.real.dtype

    def deviance(self, x: Tensor, /) -> tuple[Tensor, int]:
        """χ² = Σ W |x̃ − ỹ|², `(*batch,)`, and how many coefficients were measured; of those with noise."""
        self._check_box(x)
        counted = (self.precision > 0) & self.precision.isfinite()
        weights = friedel_weights(self.shape, device=x.device).to(x)
        r = torch.where(counted, self.precision, 0) * (rfft(x) - self.data).abs().square()
        numbers = (weights * counted).sum((-3, -2, -1))
        return (weights * r).sum((-3, -2, -1)), round(float(numbers.double().mean()))

    def condition(self, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """N(mean, variance) given the data, exactly.

        `mean` is `(*batch, z, y, x)`; `variance` is a number (white) or per coefficient (half grid).

        Where W is infinite the data hold, even against a variance of 0; where W is 0 nothing changes.
        """
        self._check_box(mean)
        check_variance(variance, mean)
        v = torch.as_tensor(variance, dtype=mean.dtype, device=mean.device)
        prior = rfft(mean)
        slabs = (q.split(_slab(self.shape), -3) for q in torch.broadcast_tensors(prior, self.data, self.precision, v))  # type: ignore[no-untyped-call]
        posterior = torch.cat([_mix(*parts) for parts in zip(*slabs, strict=True)], -3)
        return Normal(irfft(posterior, self.shape), (self.precision + v.reciprocal()).reciprocal_())

    def _check_box(self, x: Tensor) -> None:
        if tuple(x.shape[-3:]) != self.shape:
            raise GridMismatchError(f"the data have box {self.shape}, got a volume of shape {tuple(x.shape)}")


def _check_mates(w: Tensor) -> None:
    """W(−k) = W(k) at kx = 0; Nyquist left out, where formulas in k give either sign's. A volume has one value of both,
    and would get the mean of what the two say.
    """
    plane = w[..., 0]
    mate = plane.flip(-2, -1).roll((1, 1), (-2, -1))
    least = 1e-6 * torch.where(plane.isfinite(), plane, 0).amax()
    wrong = (plane - mate).abs() > _ROUNDING * torch.minimum(plane, mate).clamp(min=least)  # both infinite: NaN
    for axis in (-2, -1):
        if plane.shape[axis] % 2 == 0:
            wrong.select(axis, plane.shape[axis] // 2).fill_(False)
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise NoiseError(
            f"spectral precision must be the same at k and −k: at index {(*first, 0)} it is {plane[first]:.6g}, and at "
            f"that frequency's Friedel mate {mate[first]:.6g}"
        )


def _mix(prior: Tensor, data: Tensor, w: Tensor, v: Tensor) -> Tensor:
    """The posterior mean's coefficients, prior + V W / (1 + V W) · (data − prior).

    The gain as 1 / (1 + (1/W)/V) is right at W = 0 and ∞. V = 0 counts as tiny: noiseless data hold against it.
    """
    gain = (w.reciprocal() / v.clamp(min=torch.finfo(v.dtype).tiny)).add_(1).reciprocal_()
    return prior + gain * (data - prior)


def _slab(shape: Shape) -> int:
    """Planes of a half grid to be worked on at a time: all of their temporaries stay in the cache."""
    return max(1, 2**18 // (shape[1] * (shape[2] // 2 + 1)))
