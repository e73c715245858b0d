"""How often a run asks the operator, or `log_prob`, of its data."""

from typing import Any

import attrs
from torch import Tensor

from cryofm_ops import Conjugate, FourierDiagonal, Gaussian, Joint, Likelihood, LinearOperator, Proximal

__all__ = ["Tally", "counted"]


@attrs.define(eq=False)
class Tally:
    """A number that goes up."""

    calls: int = 0


def counted(likelihood: Any, tally: Tally) -> Any:
    """The same likelihood, which counts the calls of its operator, or of its `log_prob` where that is all it has.

    What is diagonal in Fourier space has nothing to count, and a `Conjugate` of another kind shows nothing.
    """
    if getattr(likelihood, "normalization", None) is not None:  # in model units, which `in_model_units` refuses
        return likelihood
    if isinstance(likelihood, Gaussian):
        adjoint = {"adjoint": _adjoint} if isinstance(likelihood.operator, LinearOperator) else {}
        return attrs.evolve(likelihood, operator=_named(likelihood.operator, tally, {"__call__": _call, **adjoint}))
    if isinstance(likelihood, Joint):
        return attrs.evolve(likelihood, others=tuple(counted(part, tally) for part in likelihood.others))
    if isinstance(likelihood, Proximal):
        return attrs.evolve(likelihood, likelihood=counted(likelihood.likelihood, tally))
    if isinstance(likelihood, Likelihood) and not isinstance(likelihood, Conjugate | FourierDiagonal):
        told = {name: getattr(likelihood, name) for name in ("dtype", "deviance") if hasattr(likelihood, name)}
        return _named(likelihood, tally, {"log_prob": _log_prob, **told})
    return likelihood


@attrs.frozen(eq=False)
class _Counted:
    inner: Any
    tally: Tally


def _named(inner: Any, tally: Tally, methods: dict[str, Any]) -> Any:
    """An object with these methods alone, and with the name of what it counts, for messages."""
    return type(type(inner).__name__, (_Counted,), {**methods, "__slots__": ()})(inner, tally)


def _call(self: _Counted, x: Tensor, /) -> Tensor:
    self.tally.calls += 1
    made: Tensor = self.inner(x)
    return made


def _adjoint(self: _Counted, y: Tensor, /) -> Tensor:
    back: Tensor = self.inner.adjoint(y)
    return back


def _log_prob(self: _Counted, x: Tensor, /) -> Tensor:
    self.tally.calls += 1
    found: Tensor = self.inner.log_prob(x)
    return found
