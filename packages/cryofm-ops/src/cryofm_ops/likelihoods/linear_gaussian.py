"""Gaussian likelihoods of operators that are not diagonal in Fourier space; conjugate gradients.

Posterior of x ~ N(μ, V) given y = A x + n (the linear-Gaussian model), whitened by x = μ + V^½ u:
(I + V^½ Aᵀ Σ⁻¹ A V^½) u = V^½ Aᵀ Σ⁻¹ (y − A μ), whose matrix has no eigenvalue below 1 and needs no V⁻¹.
Where a stationary W is near Aᵀ Σ⁻¹ A the same is solved for v with u = (I + V W)^−½ v: that system's eigenvalues are
those of the two against one another.
Data without noise have no Σ⁻¹: then A V Aᵀ + Σ is solved instead, in the space of the data.
A draw solves the same system for perturbed data (perturb-and-solve: Papandreou & Yuille, NeurIPS 2010).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from cryofm_ops._checks import check_observation, check_variance, writes_of
from cryofm_ops.errors import GridMismatchError, OperatorError
from cryofm_ops.fourier.grid import fourier_filter, standard_normal
from cryofm_ops.likelihoods._conjugate_gradients import conjugate_gradients
from cryofm_ops.likelihoods._summable import Summable
from cryofm_ops.normal import Deviations, Generators, Normal, drawn
from cryofm_ops.operators.fourier import transfer_for
from cryofm_ops.protocols import FourierMultiplier, LinearOperator, Noise, Operator, SpectralPower

__all__ = ["Gaussian", "LinearGaussian"]

_Made = Callable[[Tensor], Tensor]


@attrs.frozen(eq=False)
class Gaussian(Summable):
    """Likelihood of y = A x + n for any operator: a `Likelihood` and nothing more.

    The observation has the shape that the operator makes of one volume, or leading batch axes that broadcast
    against those of x.
    """

    operator: Operator
    noise: Noise
    observation: Tensor = attrs.field(validator=check_observation)

    def log_prob(self, x: Tensor, /) -> Tensor:
        """−½ (A x − y)ᵀ Σ⁻¹ (A x − y), `(*batch,)`, for x `(*batch, z, y, x)`; no −½ ln det 2πΣ."""
        return -0.5 * self.deviance(x)[0]

    @property
    def dtype(self) -> torch.dtype:
        """That of the observation."""
        return self.observation.dtype

    def deviance(self, x: Tensor, /) -> tuple[Tensor, int]:
        """χ² = (A x − y)ᵀ Σ⁻¹ (A x − y), `(*batch,)`, and how many numbers were observed."""
        r, axes = self._residual(x)
        chi_squared = (r * self.noise.precision(r)).reshape(*r.shape[: r.ndim - axes], -1).sum(-1)
        return chi_squared, math.prod(r.shape[r.ndim - axes :])

    def _residual(self, x: Tensor) -> tuple[Tensor, int]:
        """A x − y, whose batch may be that of y, and how many axes one observation has."""
        name, written = type(self.operator).__name__, writes_of(x)
        made = self.operator(x)
        if not isinstance(made, Tensor) or not made.is_floating_point():
            found = made.dtype if isinstance(made, Tensor) else type(made).__name__
            raise OperatorError(f"{name} must make a real tensor of a volume, it made {found}")
        if made.dtype.itemsize < 4:
            raise OperatorError(f"{name} must make float32 or float64 of a volume, it made {made.dtype}")
        if writes_of(x) != written:
            raise OperatorError(f"{name} writes into the volume that it is given: let it make a new one")
        one = made.shape[x.ndim - 3 :]
        if self.observation.shape[-len(one) :] != one:
            raise GridMismatchError(
                f"the operator makes {tuple(one)} of a volume {tuple(x.shape[-3:])}, "
                f"but the observation has shape {tuple(self.observation.shape)}"
            )
        return made - self.observation, len(one)


@attrs.frozen(eq=False)
class LinearGaussian(Gaussian):
    """Likelihood of y = A x + n for a linear operator: a `Likelihood` and a `Conjugate`.

    Attributes:
        operator: A, with its exact adjoint.
        noise: a stationary one may be silent in some or all coefficients; that of others needs a `precision`.
        observation: y.
        tolerance: conjugate gradients stop at this residual, relative to the right-hand side.
        max_iterations: a system that needs more raises `ConvergenceError`.
        circulant: W on the half grid, near Aᵀ Σ⁻¹ A, by which conjugate gradients are preconditioned; of any quality,
            the result is the same. None: they are not.
    """

    operator: LinearOperator
    noise: Noise
    observation: Tensor = attrs.field(validator=check_observation)
    tolerance: float = 1e-5
    max_iterations: int = 1000
    circulant: Tensor | None = None
    batched: ClassVar[bool] = True

    def condition(self, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """N(mean, variance) given the observation, by conjugate gradients.

        `mean` is `(*batch, z, y, x)`; `variance` is a number (white) or per coefficient (half grid), or such for each
        volume: `(*batch, 1, 1, 1)` or `(*batch, z, y, x // 2 + 1)`.

        The covariance of the result has no simple form, so its `variance` is a function that draws a
        deviation, by one more solve. Autocast, under which a network beside this may run, does not reach the operator.
        Raises `ConvergenceError`.
        """
        check_variance(variance, mean)
        with torch.autocast(mean.device.type, enabled=False):
            return self._condition(mean, variance)

    def _condition(self, mean: Tensor, variance: Tensor | float) -> Normal:
        spread = torch.as_tensor(variance, dtype=mean.dtype, device=mean.device).sqrt()
        data = -self._residual(mean)[0]  # (*batch, *shape of y)
        left = spread.new_ones(())  # 1 / (1 + V W)
        if self.circulant is not None:
            left = 1 / (1 + spread.square() * self.circulant.to(spread))
        through, across = self._coloured(spread * left.sqrt(), mean)  # A S and S Aᵀ, S = (V left)^½

        def colour(u: Tensor) -> Tensor:  # V^½ u
            return _filtered(u, spread)

        def back(r: Tensor) -> Tensor:  # S Aᵀ Σ⁻¹ r
            return across(self.noise.precision(r))

        def solve(r: Tensor, u: Tensor) -> Tensor:  # S (left + S Aᵀ Σ⁻¹ A S)⁻¹ (left^½ u + S Aᵀ Σ⁻¹ r)
            b = _filtered(u, left.sqrt()) + back(r)
            v = cg(u.ndim - 3, lambda p: _filtered(p, left) + back(through(p)), b)
            return _filtered(v, spread * left.sqrt())

        def solve_hard(covariance: Callable[[Tensor], Tensor], r: Tensor, u: Tensor) -> Tensor:
            # the same without Σ⁻¹: x + V Aᵀ (A V Aᵀ + Σ)⁻¹ (r − A x) with x = V^½ u
            def v_adjoint(p: Tensor) -> Tensor:
                return colour(colour(self.operator.adjoint(p)))

            x = colour(u)
            y = self.observation.expand_as(r) if r is data else None  # a draw is no difference of theirs
            b = r - self.operator(x)
            return x + v_adjoint(cg(u.ndim - 3, lambda p: self.operator(v_adjoint(p)) + covariance(p), b, y))

        def cg(batch: int, matrix: Callable[[Tensor], Tensor], b: Tensor, of: Tensor | None = None) -> Tensor:
            return conjugate_gradients(matrix, b, batch, self.tolerance, self.max_iterations, of)

        sigma = self._covariance_of_silent_noise()
        update = solve if sigma is None else partial(solve_hard, sigma)

        def deviation(generators: Generators) -> Tensor:
            with torch.autocast(mean.device.type, enabled=False):
                epsilon = drawn(lambda generator: standard_normal(posterior_mean, generator), generators)
                nothing = torch.zeros_like(data)
                n = drawn(lambda generator: self.noise.sample(nothing, generator=generator), generators)
                return update(n, epsilon)

        posterior_mean = mean + update(data, torch.zeros_like(mean))
        return Normal(posterior_mean, Deviations(deviation))

    def _coloured(self, root: Tensor, mean: Tensor) -> tuple[_Made, _Made]:
        """A S and its transpose, S of a root spectrum; of an operator that is a filter, one filter."""
        A = self.operator
        if isinstance(A, FourierMultiplier):
            made = root * transfer_for(A, mean)
            return partial(fourier_filter, transfer=made), partial(fourier_filter, transfer=made.conj())

        def across(r: Tensor) -> Tensor:
            back = A.adjoint(r)
            if not isinstance(back, Tensor) or back.shape[-3:] != mean.shape[-3:]:
                found = tuple(back.shape) if isinstance(back, Tensor) else type(back).__name__
                raise GridMismatchError(
                    f"the adjoint of {type(A).__name__} makes {found} of data of volumes {tuple(mean.shape[-3:])}"
                )
            return _filtered(back, root)

        return lambda u: A(_filtered(u, root)), across

    def _covariance_of_silent_noise(self) -> Callable[[Tensor], Tensor] | None:
        """Σ, where the noise has no power in some coefficient of the observation, and thus no Σ⁻¹."""
        if not isinstance(self.noise, SpectralPower):
            return None
        z, y, x = (1, 1, 1, *self.observation.shape)[-3:]
        power = self.noise.power((z, y, x)).to(self.observation)
        if bool((power > 0).all()):
            return None
        return lambda r: fourier_filter(r.reshape(-1, z, y, x), power).reshape(r.shape)


def _filtered(u: Tensor, transfer: Tensor) -> Tensor:
    """Times a number, or one for each volume; or coefficient by coefficient."""
    return transfer * u if transfer.shape[-3:] in ((), (1, 1, 1)) else fourier_filter(u, transfer)
