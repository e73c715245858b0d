"""Conjugate gradients (Hestenes & Stiefel 1952) for a batch of systems with one symmetric positive matrix."""

from collections.abc import Callable

import torch
from torch import Tensor

from cryofm_ops.errors import ConvergenceError, OperatorError

_ROUNDED = 4  # units in the last place


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor],
    b: Tensor,
    batch_ndim: int,
    tolerance: float,
    max_iterations: int,
    of: Tensor | None = None,
) -> Tensor:
    """Solve matrix(u) = b, `(*batch, ...)`; every batch element stops by itself when it is done.

    `of`, shaped like b: what b is a difference of. Its rounding is in b, and no more is asked for than that: a matrix
    that is singular has no solution for it.
    """
    axes = tuple(range(batch_ndim, b.ndim))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=axes, keepdim=True)

    u, r, p = torch.zeros_like(b), b, b
    rho = dot(r, r)
    target = tolerance**2 * rho
    if of is not None:
        target = torch.maximum(target, (_ROUNDED * torch.finfo(b.dtype).eps) ** 2 * dot(of, of))
    for _ in range(max_iterations):
        open_ = rho > target
        if not open_.any():
            return u
        q = matrix(p)
        curvature = dot(p, q)
        if not (curvature > 0)[open_].all():
            raise OperatorError(
                "the system is not positive definite: is `adjoint` the exact transpose of the operator, "
                "`precision` positive, and data without noise free of contradiction?"
            )
        alpha = torch.where(open_, rho / curvature, 0)
        u, r = u + alpha * p, r - alpha * q
        new = dot(r, r)
        p = r + torch.where(open_, new / rho, 0) * p
        rho = new
    if (rho <= target).all():
        return u
    worst = (rho / target).max().sqrt().item() * tolerance
    raise ConvergenceError(
        f"conjugate gradients stopped after {max_iterations} iterations "
        f"at a relative residual of {worst:.2e}, wanted {tolerance:.2e}; raise max_iterations or tolerance"
    )
