"""A likelihood in data units, seen from a prior that works in model units: x = std · z + mean."""

import math
from typing import Any, Protocol, overload

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import GridMismatchError, OperatorError
from cryofm_ops.fourier.grid import Shape, irfft, rfft
from cryofm_ops.likelihoods.fourier_gaussian import FourierGaussian
from cryofm_ops.normal import Deviations, Normal
from cryofm_ops.protocols import Averaging, Blind, Conjugate, FourierDiagonal, Iterative, Likelihood, Normalization

__all__ = ["in_model_units"]


class _FourierLikelihood(Likelihood, FourierDiagonal, Protocol): ...


_EXTREME = 1e15  # of numbers that are squared in single precision


class _ConjugateLikelihood(Likelihood, Conjugate, Protocol): ...


class _FullLikelihood(_FourierLikelihood, _ConjugateLikelihood, Protocol): ...


@attrs.frozen(eq=False)
class _ModelUnits:
    likelihood: Any  # with the methods of the subclass, in data units
    normalization: Normalization
    shape: Shape | None

    def _in_data_units(self, z: Tensor) -> Tensor:
        return self.normalization.std * z + self.normalization.mean

    def _in_model_units(self, posterior: Normal) -> Normal:
        m, s, v = self.normalization.mean, self.normalization.std, posterior.variance
        variance: Any = v / s**2 if not callable(v) else lambda g: v(g) / s
        if isinstance(v, Deviations):
            draw = v.draw
            variance = Deviations(lambda generators: draw(generators) / s)
        return Normal(
            (posterior.mean - m) / s, variance, getattr(posterior, "note", ""), getattr(posterior, "several", False)
        )

    @property
    def dtype(self) -> torch.dtype | None:
        """That of the data, if they tell one."""
        return getattr(self.likelihood, "dtype", None)

    @property
    def batched(self) -> bool:
        """Whether the likelihood conditions a batch at once."""
        return bool(getattr(self.likelihood, "batched", False))


class _Likelihood(_ModelUnits):
    __slots__ = ()

    def log_prob(self, z: Tensor, /) -> Tensor:
        """Log p(y | std · z + mean), `(*batch,)`."""
        found: Tensor = self.likelihood.log_prob(self._in_data_units(z))
        return found


class _Conjugate(_ModelUnits):
    __slots__ = ()

    def condition(self, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """N(mean, variance) given the data, mean and variance in model units."""
        s = self.normalization.std
        return self._in_model_units(self.likelihood.condition(self._in_data_units(mean), s**2 * variance))


class _Iterative(_ModelUnits):
    __slots__ = ()

    def condition_from(self, start: Tensor, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """N(mean, variance) given the data, from `start`, all in model units."""
        s = self.normalization.std
        found = self.likelihood.condition_from(self._in_data_units(start), self._in_data_units(mean), s**2 * variance)
        return self._in_model_units(found)


class _Averaging(_ModelUnits):
    __slots__ = ()

    def mean_from(self, start: Tensor, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """The mean of N(mean, variance) given the data, from `start`, all in model units."""
        s = self.normalization.std
        found = self.likelihood.mean_from(self._in_data_units(start), self._in_data_units(mean), s**2 * variance)
        return self._in_model_units(found)


class _FourierDiagonal(_ModelUnits):
    __slots__ = ()

    def spectral_precision(self) -> Tensor:
        """W · std²."""
        W: Tensor = self.likelihood.spectral_precision() * self.normalization.std**2
        return W

    def spectral_data(self) -> Tensor:
        """(ỹ − the transform of the constant `mean`) / std."""
        m, s = self.normalization.mean, self.normalization.std
        data: Tensor = self.likelihood.spectral_data().clone()
        if m:
            data[..., 0, 0, 0] -= m * math.prod(self._box()) ** 0.5  # orthonormal transform of a constant
        return data / s

    def _box(self) -> Shape:
        """The box, if it is known; otherwise the even or odd width that fits the data."""
        if self.shape is not None:
            return self.shape
        data = torch.where(self.likelihood.spectral_precision() > 0, self.likelihood.spectral_data(), 0)
        z, y, half = data.shape[-3:]
        even, odd, last = (z, y, 2 * half - 2), (z, y, 2 * half - 1), data[..., -1]
        if half == 1:
            return odd
        if not last.any():
            raise OperatorError(
                f"the data of {type(self.likelihood).__name__} do not tell whether their box is {even} or {odd}; "
                "give in_model_units(..., shape=)"
            )
        # In an even width the last column is its own Friedel mate, and survives the inverse transform.
        lost = (rfft(irfft(data, even))[..., -1] - last).abs().max()
        return even if lost < 1e-3 * last.abs().max() else odd


class _Blind(_ModelUnits):
    __slots__ = ()

    def refine(self, z: Tensor, /) -> Likelihood:
        """The likelihood refined at std · z + mean, in model units too."""
        refined: Likelihood = self.likelihood.refine(self._in_data_units(z))
        return in_model_units(refined, self.normalization, shape=self.shape)


_PARTS: dict[type, type[_ModelUnits]] = {
    Likelihood: _Likelihood,
    Conjugate: _Conjugate,
    Iterative: _Iterative,
    Averaging: _Averaging,
    FourierDiagonal: _FourierDiagonal,
    Blind: _Blind,
}


def in_units_of(likelihood: object) -> Normalization | None:
    """The normalisation that a likelihood in model units was made with; None of one in data units."""
    ours = isinstance(likelihood, FourierGaussian | _ModelUnits)
    found: Normalization | None = getattr(likelihood, "normalization", None) if ours else None
    return found


@overload
def in_model_units(
    likelihood: _FullLikelihood, normalization: Normalization, *, shape: Shape | None = None
) -> _FullLikelihood: ...
@overload
def in_model_units(
    likelihood: _FourierLikelihood, normalization: Normalization, *, shape: Shape | None = None
) -> _FourierLikelihood: ...
@overload
def in_model_units(
    likelihood: _ConjugateLikelihood, normalization: Normalization, *, shape: Shape | None = None
) -> _ConjugateLikelihood: ...
@overload
def in_model_units(
    likelihood: Likelihood, normalization: Normalization, *, shape: Shape | None = None
) -> Likelihood: ...
@overload
def in_model_units(likelihood: Conjugate, normalization: Normalization, *, shape: Shape | None = None) -> Conjugate: ...
@overload
def in_model_units(
    likelihood: FourierDiagonal, normalization: Normalization, *, shape: Shape | None = None
) -> FourierDiagonal: ...
@overload
def in_model_units(likelihood: Blind, normalization: Normalization, *, shape: Shape | None = None) -> Blind: ...
def in_model_units(
    likelihood: Likelihood | Conjugate | FourierDiagonal | Blind,
    normalization: Normalization,
    *,
    shape: Shape | None = None,
) -> Any:
    """See a likelihood of x, in data units, as one of z, in model units: x = std · z + mean.

    Args:
        likelihood: a `Likelihood`, `Conjugate`, `FourierDiagonal` or `Blind`, or several of them: the result is what
            this is. Its `refine` gives likelihoods in model units.
        normalization: anything with `.mean` and a positive `.std`, both in data units.
        shape: the box (z, y, x), which a `FourierDiagonal` likelihood of your own does not tell: without it the width
            is read from the symmetry of the data, an `OperatorError` where the highest frequencies have none.

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
    parts = tuple(part for capability, part in _PARTS.items() if isinstance(likelihood, capability))
    if not parts:
        raise OperatorError(
            f"{type(likelihood).__name__} has no log_prob, condition, refine, or spectral_precision with "
            "spectral_data: it is no likelihood"
        )
    already = in_units_of(likelihood)
    if already is not None:
        raise OperatorError(
            f"the likelihood is in model units already ({already}): it would be converted twice. Give "
            "the one in data units; `restore` converts it"
        )
    if not (hasattr(normalization, "mean") and hasattr(normalization, "std")):
        raise OperatorError(f"a normalization has a mean and a std; {type(normalization).__name__} has not")
    if not 1 / _EXTREME < normalization.std < _EXTREME:  # whose square is a number
        raise OperatorError(
            f"the std of a normalization must be positive, got {normalization.std}, and its square a number"
        )
    if isinstance(likelihood, FourierGaussian):
        if shape is not None and tuple(shape) != likelihood.shape:
            raise GridMismatchError(f"the data have box {likelihood.shape}, the volumes asked for {tuple(shape)}")
        shape = likelihood.shape
    # A class of its own for every set of capabilities, since that is what `isinstance` looks at.
    model: Any = type("ModelUnits", parts, {"__slots__": ()})(likelihood, normalization, shape)
    if type(likelihood) is FourierGaussian:  # which it is in any units, and knows its box
        return attrs.evolve(
            likelihood,
            precision=model.spectral_precision(),
            data=model.spectral_data(),
            normalization=normalization,
        )
    return model
