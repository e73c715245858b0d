"""Draws of a normal distribution of known precision, by the Lanczos process.

Parker & Fox, SIAM J. Sci. Comput. 34, 2012; Chow & Saad, SIAM J. Sci. Comput. 36, 2014.

M^−½ ε ≈ ‖ε‖ Q T^−½ e₁, with Q the Lanczos vectors that begin with ε and T = Qᵀ M Q tridiagonal: of covariance M⁻¹ for
white ε. It takes about as many steps as conjugate gradients for M u = ε do, and Q is kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cryofm_ops.errors import ConvergenceError

__all__ = ["inverse_root"]

_EVERY = 3  # steps between two looks at whether it has converged


def inverse_root(matrix: Callable[[Tensor], Tensor], epsilon: Tensor, tolerance: float, max_iterations: int) -> Tensor:
    """M^−½ ε, for one ε of any shape and a symmetric positive M; `ConvergenceError`."""
    size = epsilon.norm()
    if not size:
        return epsilon
    vectors, diagonal, off = [epsilon / size], list[Tensor](), list[Tensor]()
    before = epsilon.new_zeros(0, dtype=torch.float64)
    for step in range(1, max_iterations + 1):
        q = vectors[-1]
        r = matrix(q)
        diagonal.append((r * q).sum())
        r = r - diagonal[-1] * q - (off[-1] * vectors[-2] if off else 0)
        off.append(r.norm())
        done = bool(off[-1] <= tolerance * diagonal[0])  # nothing is left to be found
        if done or step % _EVERY == 0:
            weights = _first_column(torch.stack(diagonal), torch.stack(off[:-1]) if step > 1 else None)
            change = torch.cat((weights[: len(before)] - before, weights[len(before) :])).norm() / weights.norm()
            if done or change <= tolerance:
                scaled = (float(size) * weights).to(epsilon)
                return torch.stack([w * v for w, v in zip(scaled, vectors, strict=True)]).sum(0)
            before = weights
        vectors.append(r / off[-1])
    raise ConvergenceError(f"a draw did not converge within {max_iterations} steps; raise max_iterations or tolerance")


def _first_column(diagonal: Tensor, off: Tensor | None) -> Tensor:
    """T^−½ e₁, float64."""
    t = diagonal.double().diag()
    if off is not None:
        t = t + off.double().diag(1) + off.double().diag(-1)
    values, basis = torch.linalg.eigh(t)
    column: Tensor = basis @ (values.clamp(min=values[-1] * torch.finfo(diagonal.dtype).eps).rsqrt() * basis[0])
    return column
