"""Operators made of operators: one after another, side by side, added up.

The result has the capabilities that all of its parts have: Fourier-diagonal parts make a `FourierOperator`,
linear ones a `LinearOperator`, others an `Operator`. A part that only has a `transfer` counts as linear too.
"""

from collections.abc import Callable
from typing import Any, TypeVar, overload

from cryofm_ops.errors import OperatorError
from cryofm_ops.operators._combined import (
    Chain,
    FourierProduct,
    FourierStack,
    FourierSum,
    LinearChain,
    LinearStack,
    LinearSum,
    Stack,
    Sum,
)
from cryofm_ops.operators.fourier import FourierOperator
from cryofm_ops.operators.identity import Identity
from cryofm_ops.protocols import FourierMultiplier, LinearOperator, Operator

__all__ = ["add", "compose", "stack"]

L = TypeVar("L", bound=LinearOperator)


@overload
def compose(*operators: FourierMultiplier) -> FourierOperator: ...
@overload
def compose(first: Identity, second: L, /) -> L: ...
@overload
def compose(first: L, second: Identity, /) -> L: ...
@overload
def compose(*operators: LinearOperator | FourierMultiplier) -> LinearOperator: ...
@overload
def compose(*operators: Operator | FourierMultiplier) -> Operator: ...
def compose(*operators: Operator | FourierMultiplier) -> Operator:
    """A B …: the last is applied first, x ↦ A(B(x)).

    Fourier-diagonal parts keep a pseudo-inverse, that of their product; and `Identity` is left out, so that any
    other operator keeps its own. Otherwise there is none: in general (A B)⁺ ≠ B⁺ A⁺.

    Raises `OperatorError` where there is no part, or one without any capability.

    >>> from cryofm_ops import LowPass, MissingWedge, PseudoInvertible
    >>> blurred_wedge = compose(LowPass(8.0, voxel_size=1.5), MissingWedge(-60, 60))
    >>> isinstance(blurred_wedge, PseudoInvertible), blurred_wedge.transfer((8, 8, 8)).shape
    (True, torch.Size([8, 8, 5]))
    """
    kept = tuple(operator for operator in operators if not isinstance(operator, Identity)) or operators
    if len(kept) == 1 and not isinstance(kept[0], FourierMultiplier):
        return _as_operator(kept[0])
    return _made_of(kept, FourierProduct, LinearChain, Chain)


@overload
def add(*operators: FourierMultiplier) -> FourierOperator: ...
@overload
def add(*operators: LinearOperator | FourierMultiplier) -> LinearOperator: ...
@overload
def add(*operators: Operator | FourierMultiplier) -> Operator: ...
def add(*operators: Operator | FourierMultiplier) -> Operator:
    """A + B + …: x ↦ A(x) + B(x).

    Raises `OperatorError` as `compose` does, and `GridMismatchError` where the parts make different shapes.

    >>> add(Identity(), Identity()).transfer((1, 1, 2))
    tensor([[[2., 2.]]])
    """
    return _made_of(operators, FourierSum, LinearSum, Sum)


@overload
def stack(*operators: FourierMultiplier) -> FourierStack: ...
@overload
def stack(*operators: LinearOperator | FourierMultiplier, observation_ndim: int = 3) -> LinearOperator: ...
@overload
def stack(*operators: Operator | FourierMultiplier, observation_ndim: int = 3) -> Operator: ...
def stack(*operators: Operator | FourierMultiplier, observation_ndim: int = 3) -> Operator:
    """Several observations of one volume: x ↦ (A(x), B(x), …), `(*batch, n, ...)`.

    Fourier-diagonal parts make a linear operator with a pseudo-inverse: the least-squares volume. (It is no
    `FourierMultiplier`: it has several numbers for each coefficient.)

    Args:
        operators: n of them, which make observations of one shape.
        observation_ndim: axes of one part's observation of one volume. An adjoint needs it to find the axis of
            the observations.

    Raises `OperatorError` as `compose` does, and `GridMismatchError` where the observations do not fit.

    >>> import torch
    >>> from cryofm_ops import MissingWedge
    >>> two = stack(MissingWedge(-60, 60, "y"), MissingWedge(-60, 60, "x"))
    >>> two(torch.zeros(5, 8, 8, 8)).shape, two.pinv(torch.zeros(5, 2, 8, 8, 8)).shape
    (torch.Size([5, 2, 8, 8, 8]), torch.Size([5, 8, 8, 8]))
    """
    return _made_of(operators, FourierStack, lambda parts: LinearStack(parts, observation_ndim), Stack)


def _made_of(
    parts: tuple[Any, ...],
    fourier: Callable[[tuple[Any, ...]], Operator],
    linear: Callable[[tuple[Any, ...]], Operator],
    general: Callable[[tuple[Any, ...]], Operator],
) -> Operator:
    """The strongest of three kinds that all the parts allow."""
    if not parts:
        raise OperatorError("there is no operator to make one of; give at least one")
    if all(isinstance(part, FourierMultiplier) for part in parts):
        return fourier(parts)
    parts = tuple(_as_operator(part) for part in parts)
    if all(isinstance(part, LinearOperator) for part in parts):
        return linear(parts)
    return general(parts)


def _as_operator(part: Any) -> Operator:
    """The part itself, or with the methods that its transfer gives it."""
    if isinstance(part, FourierMultiplier) and not isinstance(part, LinearOperator):
        return FourierProduct((part,))
    if isinstance(part, Operator):
        return part
    raise OperatorError(f"{type(part).__name__} has neither __call__(x) nor transfer(shape), and is thus no Operator")
