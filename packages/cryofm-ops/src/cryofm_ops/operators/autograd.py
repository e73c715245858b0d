"""A linear function as an operator whose adjoint autograd finds."""

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import GridMismatchError, OperatorError
from cryofm_ops.fourier.grid import Shape
from cryofm_ops.operators._algebra import Algebra

__all__ = ["adjoint_of"]


@attrs.frozen(eq=False)
class _Differentiated(Algebra):
    """A `LinearOperator` for volumes of one box."""

    function: Callable[[Tensor], Tensor]
    shape: Shape

    def __call__(self, x: Tensor, /) -> Tensor:
        """A x."""
        return self.function(x)

    def adjoint(self, y: Tensor, /) -> Tensor:
        """Aᵀ y: the vector-Jacobian product at 0, which of a linear function is that at any x."""
        with torch.enable_grad(), torch.inference_mode(False):
            one = self.function(y.new_zeros(self.shape))
            depth = y.ndim - one.ndim
            if depth < 0 or y.shape[depth:] != one.shape:
                raise GridMismatchError(f"the function makes {tuple(one.shape)} of a volume, got {tuple(y.shape)}")
            x = y.new_zeros(*y.shape[:depth], *self.shape).requires_grad_()
            made = self.function(x)
            if made.shape != y.shape:
                raise OperatorError(
                    f"the function makes {tuple(made.shape)} of volumes {tuple(x.shape)}: it must keep leading axes"
                )
            if not made.requires_grad:
                raise OperatorError("no gradient passes through the function: compute it without no_grad and detach")
            (back,) = torch.autograd.grad(made, x, y.clone(), create_graph=y.requires_grad)
        return back


def adjoint_of(function: Callable[[Tensor], Tensor], shape: Shape) -> _Differentiated:
    """A linear function of volumes as a `LinearOperator`; its adjoint is found by autograd.

    `check_operator(adjoint_of(f, shape), shapes=[shape])` tells whether it is linear; an affine or nonlinear one has no
    adjoint, and what this gives of it is the derivative at 0.

    Args:
        function: (*batch, z, y, x) -> (*batch, ...), of torch's differentiable functions; any number of batch axes.
        shape: the box (z, y, x) of x.

    Raises `OperatorError` where no gradient passes, and `GridMismatchError` for a y that the function does not make.

    >>> difference = adjoint_of(lambda x: x[..., 1:] - x[..., :-1], (1, 1, 3))
    >>> difference.adjoint(torch.tensor([[[1.0, 0.0]]]))
    tensor([[[-1.,  1.,  0.]]])
    """
    z, y, x = shape
    return _Differentiated(function, (z, y, x))
