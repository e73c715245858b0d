"""What `compose`, `add` and `stack` make, each of three kinds: of any operators, linear or Fourier-diagonal ones."""

from collections.abc import Sequence
from functools import reduce

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import GridMismatchError, OperatorError
from cryofm_ops.fourier.grid import Shape, irfft, rfft
from cryofm_ops.operators._algebra import Algebra
from cryofm_ops.operators.fourier import FourierOperator, significant, transfer_for
from cryofm_ops.protocols import FourierMultiplier, LinearOperator, Operator


@attrs.frozen
class Chain(Algebra):
    """A B …, an `Operator`."""

    parts: tuple[Operator, ...]

    def __call__(self, x: Tensor, /) -> Tensor:
        """A(B(x))."""
        return reduce(lambda made, part: part(made), reversed(self.parts), x)


@attrs.frozen
class LinearChain(Chain):
    """A B …, a `LinearOperator`."""

    parts: tuple[LinearOperator, ...]

    def adjoint(self, y: Tensor, /) -> Tensor:
        """(A B)ᵀ y = Bᵀ(Aᵀ(y))."""
        return reduce(lambda made, part: part.adjoint(made), self.parts, y)


@attrs.frozen
class FourierProduct(FourierOperator):
    """A B …, whose transfer is the product of the parts'."""

    parts: tuple[FourierMultiplier, ...]

    def transfer(self, shape: Shape, /) -> Tensor:
        """The product, on the half grid of `shape`."""
        return reduce(lambda m, n: m * n.to(m.device), (part.transfer(shape) for part in self.parts))


@attrs.frozen
class Sum(Algebra):
    """A + B + …, an `Operator`."""

    parts: tuple[Operator, ...]

    def __call__(self, x: Tensor, /) -> Tensor:
        """A(x) + B(x)."""
        return reduce(torch.add, _of_one_shape([part(x) for part in self.parts], self.parts))


@attrs.frozen
class LinearSum(Sum):
    """A + B + …, a `LinearOperator`."""

    parts: tuple[LinearOperator, ...]

    def adjoint(self, y: Tensor, /) -> Tensor:
        """Aᵀ y + Bᵀ y."""
        return reduce(torch.add, [part.adjoint(y) for part in self.parts])


@attrs.frozen
class FourierSum(FourierOperator):
    """A + B + …, whose transfer is the sum of the parts'."""

    parts: tuple[FourierMultiplier, ...]

    def transfer(self, shape: Shape, /) -> Tensor:
        """The sum, on the half grid of `shape`."""
        return reduce(lambda m, n: m + n.to(m.device), (part.transfer(shape) for part in self.parts))


@attrs.frozen
class Stack(Algebra):
    """The observations of all parts, an `Operator`."""

    parts: tuple[Operator, ...]

    def __call__(self, x: Tensor, /) -> Tensor:
        """Of x `(*batch, z, y, x)`: `(*batch, n, ...)`."""
        made = [part(x) for part in self.parts]
        return torch.stack(_of_one_shape(made, self.parts), x.ndim - 3)


@attrs.frozen
class LinearStack(Stack):
    """The observations of all parts, a `LinearOperator`; one of them has `observation_ndim` axes."""

    parts: tuple[LinearOperator, ...]
    observation_ndim: int

    def __call__(self, x: Tensor, /) -> Tensor:
        """Of x `(*batch, z, y, x)`: `(*batch, n, ...)`."""
        y = super().__call__(x)
        found = y.ndim - 1 - (x.ndim - 3)
        if found != self.observation_ndim:
            raise OperatorError(
                f"{type(self.parts[0]).__name__} makes observations of {found} axes; "
                f"give stack(..., observation_ndim={found}), it was {self.observation_ndim}"
            )
        return y

    def adjoint(self, y: Tensor, /) -> Tensor:
        """The sum of the adjoints, `(*batch, z, y, x)`."""
        each = _observations(y, self.observation_ndim, len(self.parts)).unbind(-1 - self.observation_ndim)
        return reduce(torch.add, [part.adjoint(one) for part, one in zip(self.parts, each, strict=True)])


@attrs.frozen
class FourierStack(Algebra):
    """The observations of all parts, a `LinearOperator` and `PseudoInvertible`."""

    parts: tuple[FourierMultiplier, ...]

    def __call__(self, x: Tensor, /) -> Tensor:
        """Of x `(*batch, z, y, x)`: `(*batch, n, z, y, x)`."""
        spectrum = rfft(x)
        return irfft(torch.stack([transfer_for(part, x) * spectrum for part in self.parts], -4), _box(x))

    def adjoint(self, y: Tensor, /) -> Tensor:
        """Σ m_i* ỹ_i, the sum of the adjoints."""
        back, _ = self._back(y)
        return irfft(back, _box(y))

    def pinv(self, y: Tensor, /) -> Tensor:
        """Least squares: (Σ |m_i|²)⁺ Σ m_i* ỹ_i, cut off as in `FourierOperator.pinv`."""
        back, gain = self._back(y)
        keep = significant(gain.sqrt(), max(_box(y)))
        return irfft(torch.where(keep, back / torch.where(keep, gain, 1), 0), _box(y))

    def _back(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Σ m_i* ỹ_i and Σ |m_i|²."""
        each = _observations(y, 3, len(self.parts)).unbind(-4)
        transfers = [transfer_for(part, one) for part, one in zip(self.parts, each, strict=True)]
        back = reduce(torch.add, [m.conj() * rfft(one) for m, one in zip(transfers, each, strict=True)])
        return back, reduce(torch.add, [m.abs() ** 2 for m in transfers])


def _of_one_shape(made: list[Tensor], parts: Sequence[object]) -> list[Tensor]:
    for one, part in zip(made, parts, strict=True):
        if one.shape != made[0].shape:
            raise GridMismatchError(
                f"the parts make different shapes: {type(parts[0]).__name__} {tuple(made[0].shape)}, "
                f"{type(part).__name__} {tuple(one.shape)}"
            )
    return made


def _observations(y: Tensor, ndim: int, n: int) -> Tensor:
    """The argument y, once it is found to be `(*batch, n, ...)` with `ndim` axes after n."""
    if y.ndim <= ndim or y.shape[-1 - ndim] != n:
        raise GridMismatchError(
            f"a stack of {n} operators makes (*batch, {n}, ...) with {ndim} axes at the end, got {tuple(y.shape)}"
        )
    return y


def _box(x: Tensor) -> Shape:
    z, y, width = x.shape[-3:]
    return z, y, width
