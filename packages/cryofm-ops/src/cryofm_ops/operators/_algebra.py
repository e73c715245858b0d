"""Operators written as they are on paper: `2 * A`, `A @ B`, `A + B`, `A - B`, `-A`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryofm_ops.protocols import Operator

__all__ = ["Algebra"]


class Algebra:
    """What `compose`, `add` and `Scale` make, by operators of Python; one of the two may be a stranger's.

    The result has the capabilities that both parts have.
    """

    __slots__ = ()

    def __matmul__(self, other: "Operator", /) -> Any:
        """A B: x ↦ A(B(x))."""
        return _compose(self, other) if callable(other) else NotImplemented

    def __rmatmul__(self, other: "Operator", /) -> Any:
        """B A, where B is a stranger's."""
        return _compose(other, self) if callable(other) else NotImplemented

    def __add__(self, other: "Operator", /) -> Any:
        """A + B: x ↦ A(x) + B(x)."""
        return _add(self, other) if callable(other) else NotImplemented

    def __radd__(self, other: "Operator", /) -> Any:
        """B + A, where B is a stranger's."""
        return _add(other, self) if callable(other) else NotImplemented

    def __sub__(self, other: "Operator", /) -> Any:
        """A − B."""
        return _add(self, _compose(_scale(-1.0), other)) if callable(other) else NotImplemented

    def __rsub__(self, other: "Operator", /) -> Any:
        """B − A, where B is a stranger's."""
        return _add(other, -self) if callable(other) else NotImplemented

    def __mul__(self, factor: float, /) -> Any:
        """The factor times A."""
        return _compose(_scale(float(factor)), self) if isinstance(factor, int | float) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> Any:
        """−A."""
        return _compose(_scale(-1.0), self)


# `compose` makes operators that have this algebra, and so comes later.
def _compose(*operators: Any) -> Any:
    from cryofm_ops.operators.compose import compose

    return compose(*operators)


def _add(*operators: Any) -> Any:
    from cryofm_ops.operators.compose import add

    return add(*operators)


def _scale(factor: float) -> Any:
    from cryofm_ops.operators.scale import Scale

    return Scale(factor)
