"""A likelihood in data units, seen from a prior that works in model units: x = std · z + mean."""

import math
from typing import Protocol, overload

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import OperatorError
from cryofm_ops.normal import Normal
from cryofm_ops.protocols import Blind, Conjugate, FourierDiagonal, Likelihood, Normalization
from cryofm_ops.spectral import Shape, irfft, rfft

__all__ = ["in_model_units"]


class _FourierLikelihood(Likelihood, FourierDiagonal, Protocol): ...


class _ConjugateLikelihood(Likelihood, Conjugate, Protocol): ...


class _FullLikelihood(_FourierLikelihood, _ConjugateLikelihood, Protocol): ...


@attrs.frozen(eq=False)
class ModelUnits:
    """A `Likelihood` of z."""

    likelihood: Likelihood
    normalization: Normalization

    def log_prob(self, z: Tensor, /) -> Tensor:
        """Log p(y | std · z + mean), `(*batch,)`."""
        return self.likelihood.log_prob(self.normalization.std * z + self.normalization.mean)


@attrs.frozen(eq=False)
class ConjugateModelUnits(ModelUnits):
    """A `Likelihood` and `Conjugate` of z."""

    likelihood: _ConjugateLikelihood
    normalization: Normalization

    def condition(self, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """N(mean, variance) given the data, mean and variance in model units."""
        m, s = self.normalization.mean, self.normalization.std
        posterior = self.likelihood.condition(s * mean + m, s**2 * variance)
        v = posterior.variance
        return Normal((posterior.mean - m) / s, (lambda g: v(g) / s) if callable(v) else v / s**2)


@attrs.frozen(eq=False)
class FourierModelUnits(ModelUnits):
    """A `Likelihood` and `FourierDiagonal` of z."""

    likelihood: _FourierLikelihood
    normalization: Normalization

    def spectral_precision(self) -> Tensor:
        """W · std²."""
        return self.likelihood.spectral_precision() * self.normalization.std**2

    def spectral_data(self) -> Tensor:
        """(ỹ − the transform of the constant `mean`) / std."""
        m, s = self.normalization.mean, self.normalization.std
        data = self.likelihood.spectral_data().clone()
        data[..., 0, 0, 0] -= m * math.prod(self._box()) ** 0.5  # orthonormal transform of a constant
        return data / s

    def _box(self) -> Shape:
        """The likelihood's own `shape`, if it tells; otherwise the even or odd width that fits its data."""
        own: Shape | None = getattr(self.likelihood, "shape", None)
        if own is not None:
            return own
        w, data = self.likelihood.spectral_precision(), self.likelihood.spectral_data()
        data = torch.where(w > 0, data, 0)
        z, y, half = data.shape[-3:]
        even = (z, y, 2 * half - 2)
        # In an even width the last column is its own Friedel mate, and survives the inverse transform.
        if half > 1 and torch.allclose(rfft(irfft(data, even))[..., -1], data[..., -1], rtol=1e-3, atol=1e-6):
            return even
        return z, y, 2 * half - 1


@attrs.frozen(eq=False)
class FullModelUnits(FourierModelUnits, ConjugateModelUnits):
    """A `Likelihood`, `Conjugate` and `FourierDiagonal` of z."""

    likelihood: _FullLikelihood
    normalization: Normalization


@attrs.frozen(eq=False)
class BlindModelUnits:
    """A `Blind` of z."""

    likelihood: Blind
    normalization: Normalization

    def refine(self, z: Tensor, /) -> ModelUnits:
        """The likelihood refined at std · z + mean, in model units too."""
        x = self.normalization.std * z + self.normalization.mean
        return in_model_units(self.likelihood.refine(x), self.normalization)


@overload
def in_model_units(likelihood: _FullLikelihood, normalization: Normalization) -> FullModelUnits: ...
@overload
def in_model_units(likelihood: _FourierLikelihood, normalization: Normalization) -> FourierModelUnits: ...
@overload
def in_model_units(likelihood: _ConjugateLikelihood, normalization: Normalization) -> ConjugateModelUnits: ...
@overload
def in_model_units(likelihood: Likelihood, normalization: Normalization) -> ModelUnits: ...
@overload
def in_model_units(likelihood: Blind, normalization: Normalization) -> BlindModelUnits: ...
def in_model_units(likelihood: Likelihood | Blind, normalization: Normalization) -> ModelUnits | BlindModelUnits:
    """See a likelihood of x, in data units, as one of z, in model units: x = std · z + mean.

    Args:
        likelihood: anything with `log_prob`; the result has `condition`, and `spectral_precision` with
            `spectral_data`, where this has them. Or a `Blind`: then the result has `refine`, which gives
            likelihoods in model units.
        normalization: anything with `.mean` and a positive `.std`, both in data units.

    >>> import attrs, torch
    >>> from cryofm_ops import Conjugate, FourierDiagonal, Identity, WhiteNoise, gaussian_likelihood
    >>> Normalization = attrs.make_class("Normalization", ["mean", "std"], frozen=True)
    >>> data = gaussian_likelihood(Identity(), WhiteNoise(0.09), torch.full((4, 4, 4), 0.13))
    >>> model = in_model_units(data, Normalization(0.04, 0.09))
    >>> isinstance(model, Conjugate), isinstance(model, FourierDiagonal)
    (True, True)
    >>> model.condition(torch.zeros(4, 4, 4), 1.0).mean[0, 0]
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    if not isinstance(likelihood, Likelihood | Blind):
        raise OperatorError(
            f"{type(likelihood).__name__} has no log_prob, and is thus no Likelihood; nor has it refine, as a Blind has"
        )
    if not normalization.std > 0:
        raise OperatorError(f"the std of a normalization must be positive, got {normalization.std}")
    if not isinstance(likelihood, Likelihood):
        return BlindModelUnits(likelihood, normalization)
    if isinstance(likelihood, FourierDiagonal):
        if isinstance(likelihood, Conjugate):
            return FullModelUnits(likelihood, normalization)
        return FourierModelUnits(likelihood, normalization)
    if isinstance(likelihood, Conjugate):
        return ConjugateModelUnits(likelihood, normalization)
    return ModelUnits(likelihood, normalization)
