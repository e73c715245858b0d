"""Gaussian likelihoods of operators that are not diagonal in Fourier space; conjugate gradients.

Posterior of x ~ N(μ, V) given y = A x + n (the linear-Gaussian model), whitened by x = μ + V^½ u:
(I + V^½ Aᵀ Σ⁻¹ A V^½) u = V^½ Aᵀ Σ⁻¹ (y − A μ), whose matrix has no eigenvalue below 1 and needs no V⁻¹.
A draw solves the same system for perturbed data (perturb-and-solve: Papandreou & Yuille, NeurIPS 2010).
"""

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from cryofm_ops._checks import check_observation, check_variance
from cryofm_ops.errors import ConvergenceError, GridMismatchError, OperatorError
from cryofm_ops.normal import Normal
from cryofm_ops.protocols import LinearOperator, Noise, Operator
from cryofm_ops.spectral import fourier_filter, standard_normal

__all__ = ["Gaussian", "LinearGaussian"]


@attrs.frozen(eq=False)
class Gaussian:
    """Likelihood of y = A x + n for any operator: a `Likelihood` and nothing more.

    The observation has the shape that the operator makes of one volume, or leading batch axes that broadcast
    against those of x.
    """

    operator: Operator
    noise: Noise
    observation: Tensor = attrs.field(validator=check_observation)

    def log_prob(self, x: Tensor, /) -> Tensor:
        """−½ (A x − y)ᵀ Σ⁻¹ (A x − y), `(*batch,)`, for x `(*batch, z, y, x)`; no −½ ln det 2πΣ."""
        r = self._residual(x)
        return -0.5 * (r * self.noise.precision(r)).flatten(x.ndim - 3 - r.ndim).sum(-1)

    def _residual(self, x: Tensor) -> Tensor:
        made = self.operator(x)
        one = made.shape[x.ndim - 3 :]
        if self.observation.shape[-len(one) :] != one:
            raise GridMismatchError(
                f"the operator makes {tuple(one)} of a volume {tuple(x.shape[-3:])}, "
                f"but the observation has shape {tuple(self.observation.shape)}"
            )
        return made - self.observation


@attrs.frozen(eq=False)
class LinearGaussian(Gaussian):
    """Likelihood of y = A x + n for a linear operator: a `Likelihood` and a `Conjugate`.

    Attributes:
        operator: A, with its exact adjoint.
        noise: its `precision` must be finite.
        observation: y.
        tolerance: conjugate gradients stop at this residual, relative to the right-hand side.
        max_iterations: a system that needs more raises `ConvergenceError`.
    """

    operator: LinearOperator
    noise: Noise
    observation: Tensor = attrs.field(validator=check_observation)
    tolerance: float = 1e-5
    max_iterations: int = 1000

    def condition(self, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """N(mean, variance) given the observation, by conjugate gradients.

        `mean` is `(*batch, z, y, x)`; `variance` is a number (white) or per coefficient (half grid).

        The covariance of the result has no simple form, so its `variance` is a function that draws a
        deviation, by one more solve. Raises `ConvergenceError`.
        """
        check_variance(variance, mean)
        spread = torch.as_tensor(variance, dtype=mean.dtype, device=mean.device).sqrt()

        def colour(u: Tensor) -> Tensor:  # V^½ u
            return spread * u if spread.ndim == 0 else fourier_filter(u, spread)

        def back(r: Tensor) -> Tensor:  # V^½ Aᵀ Σ⁻¹ r
            return colour(self.operator.adjoint(self.noise.precision(r)))

        def matrix(u: Tensor) -> Tensor:
            return u + back(self.operator(colour(u)))

        def solve(b: Tensor) -> Tensor:
            return colour(_conjugate_gradients(matrix, b, self.tolerance, self.max_iterations))

        def deviation(generator: torch.Generator) -> Tensor:
            epsilon = standard_normal(posterior_mean, generator)
            n = self.noise.sample(torch.zeros_like(data), generator=generator)
            return solve(epsilon + back(n))

        data = -self._residual(mean)  # (*batch, *shape of y)
        posterior_mean = mean + solve(back(data))
        return Normal(posterior_mean, deviation)


def _conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], b: Tensor, tolerance: float, max_iterations: int
) -> Tensor:
    """Solve matrix(u) = b, `(*batch, z, y, x)`; every batch element stops by itself when it is done."""
    u, r, p = torch.zeros_like(b), b, b
    rho = _dot(r, r)
    target = tolerance**2 * rho
    for _ in range(max_iterations):
        open_ = rho > target
        if not open_.any():
            return u
        q = matrix(p)
        curvature = _dot(p, q)
        if not (curvature > 0)[open_].all():
            raise OperatorError(
                "the system is not positive definite: "
                "is `adjoint` the exact transpose of the operator, and `precision` positive?"
            )
        alpha = torch.where(open_, rho / curvature, 0)
        u, r = u + alpha * p, r - alpha * q
        new = _dot(r, r)
        p = r + torch.where(open_, new / rho, 0) * p
        rho = new
    if (rho <= target).all():
        return u
    worst = (rho / target).max().sqrt().item() * tolerance
    raise ConvergenceError(
        f"conjugate gradients stopped after {max_iterations} iterations "
        f"at a relative residual of {worst:.2e}, wanted {tolerance:.2e}; raise max_iterations or tolerance"
    )


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(-3, -2, -1), keepdim=True)
