"""The contract of `condition`, check by check.

The oracle is dense: −log p(y | x) of a Gaussian likelihood is quadratic, so its gradients at zero and at the unit
vectors are its whole Hessian H, and N(μ, V) × likelihood has covariance (V⁻¹ + H)⁻¹. Where it is not quadratic the
normal is held to the mode and the curvature there (Laplace's approximation).
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from cryofm_ops.fourier.grid import fourier_filter, frequencies, rfft
from cryofm_ops.normal import Normal
from cryofm_ops.protocols import Iterative, LinearOperator
from cryofm_ops.testing._case import Case
from cryofm_ops.testing._expect import call, each_alone, expect, expect_close, norm
from cryofm_ops.testing._likelihoods import score
from cryofm_ops.testing._operators import dot_test, linearity
from cryofm_ops.testing._statistics import chi_square

__all__: list[str] = []

_RTOL = 1e-3  # conditioning may stop conjugate gradients at a tolerance of its own
_RTOL_OF_MODE = 3e-2  # a search stops when it is a small part of a standard deviation from the mode
_SMALL = 1e-3  # step over which the curvature at a mode is felt
_OFF_MODE = 0.1  # root mean square of what a mode may miss, in standard deviations of the posterior
_BENT = 1e-4  # relative change of the curvature of log p, from which on it is not quadratic
_DRAWS = (3, 32)  # each may be a solve: at least so many, and at most so many while there is time
_SECONDS = 0.5  # of CPU time for the draws
_TOGETHER = 16  # of the whitened components of a draw, whose squares are summed


def operator_is_linear(likelihood: Any, case: Case) -> None:
    """The operator that the likelihood shows is linear, and its adjoint the transpose: else it has no `condition`."""
    operator = getattr(likelihood, "operator", None)
    if isinstance(operator, LinearOperator):
        linearity(operator, case)
        dot_test(operator, case)


def _of_linear(check: Callable[[Any, Case], None]) -> Callable[[Any, Case], None]:
    """A check that looks at the operator before it solves a system that may have no solution."""

    @functools.wraps(check)
    def named(likelihood: Any, case: Case) -> None:
        operator_is_linear(likelihood, case)
        check(likelihood, case)

    return named


@_of_linear
def condition_contract(likelihood: Any, case: Case) -> None:
    """The posterior has the shape of its prior, each of a batch by itself, and draws; the arguments are left alone."""
    mean, variance, what = case.volume() / case.scale, 0.5 * case.unit**2, "condition(mean, variance)"  # as wide as far
    before = mean.clone()
    posterior = _condition(likelihood, mean, variance, case)
    expect(torch.equal(mean, before), f"{what} to leave the mean alone", "a changed input: it is written into", case)
    if not case.batch:
        return
    alone = each_alone(lambda v: _condition(likelihood, v, variance, case).mean, mean, what, case)
    fault = "the volumes of a batch mixed by condition"
    expect_close(posterior.mean, alone, norm(alone - mean), f"{what} of a batch, each alone", case, _RTOL, fault)
    apart = (_draw(posterior, case) - posterior.mean).reshape(-1, *case.shape)
    same = len(apart) > 1 and float(norm(apart[0] - apart[1])) <= 1e-6 * float(norm(apart))
    expect(not (same and apart.any()), "a draw for each of a batch", "the same twice", case)


@_of_linear
def posterior_contract(likelihood: Any, case: Case) -> None:
    """A posterior is in the dtype of its prior, and draws from its generator alone."""
    mean = case.volume().reshape(-1, *case.shape)[0]
    posterior = _condition(likelihood, mean, 0.5 * case.unit**2, case)
    found = posterior.mean.dtype
    expect(found == mean.dtype, f"a posterior mean of dtype {mean.dtype}, as μ", f"a lost dtype: {found}", case)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        first = _draw(posterior, case)
        torch.manual_seed(case.seed + 1)
        again = _draw(posterior, case)
    expect(first.dtype == mean.dtype, f"a draw of dtype {mean.dtype}, as μ", f"a lost dtype: {first.dtype}", case)
    expect(torch.equal(first, again), "the same draw from the same generator state", "another one", case)


@_of_linear
def condition_is_stationary(likelihood: Any, case: Case) -> None:
    """At the posterior mean x*, V ∇ log p(y | x*) = x* − μ."""
    several = case.volume()
    white, falling = _variances(case)
    for mean, variance in ((several.reshape(-1, *case.shape)[0], white), (several, falling)):
        found = _condition(likelihood, mean, variance, case).mean
        pull = score(likelihood, found, case)
        moved = fourier_filter(pull, variance) if isinstance(variance, Tensor) else variance * pull
        start = score(likelihood, mean, case)  # before conditioning: what there was to be solved
        scale = max(float(norm(found - mean)), float(norm(start)) * float(torch.as_tensor(variance).min()))
        solved = not isinstance(likelihood, Iterative) and _is_quadratic(likelihood, mean, case)  # and not searched
        rtol = _RTOL if solved else _RTOL_OF_MODE
        expect_close(moved, found - mean, scale, "V ∇ log p equal to x* − μ", case, rtol=rtol)


@_of_linear
def condition_is_dense_solve(likelihood: Any, case: Case) -> None:
    """Mean and covariance of the posterior are those of a dense solve, at the mode where log p is not quadratic. A mode
    that is searched may be missed a little. Draws: statistical, false alarm 1e-6.
    """
    mean = case.normal(case.shape, 0) * case.magnitude
    quadratic = _is_quadratic(likelihood, mean, case)
    for variance in reversed(_variances(case)):
        found = _condition(likelihood, mean, variance, case)
        v = _dense(variance, case)
        at = torch.zeros_like(mean) if quadratic else found.mean
        pull = score(likelihood, at, case).flatten()
        hessian = _hessian(likelihood, at, pull, case.unit if quadratic else _SMALL * case.unit, case)
        if not quadratic:
            hessian = _bent_downwards(hessian, v)
        posterior = torch.linalg.inv(torch.linalg.inv(v) + hessian)
        if quadratic and not isinstance(likelihood, Iterative):
            step = posterior @ (pull - hessian @ mean.flatten())
            moved = (found.mean - mean).flatten()
            expect_close(moved, step, norm(step), "the posterior mean's step from μ by a dense solve", case, rtol=_RTOL)
        else:
            pull = score(likelihood, found.mean, case).flatten()
            slope = pull - torch.linalg.solve(v, (found.mean - mean).flatten())
            off = float((slope @ posterior @ slope / len(slope)).sqrt())  # Newton's step, in standard deviations
            expect(off <= _OFF_MODE, "the mode, by a dense Newton step", f"{off:.2g} standard deviations beside", case)
        if callable(found.variance):
            _check_draws(found, v, posterior, case)
            return  # as slow as it may be
        _check_covariance(found.variance, posterior, case)


def _dense(variance: Tensor | float, case: Case) -> Tensor:
    """The prior's covariance, voxel by voxel."""
    n = math.prod(case.shape)
    unit = torch.eye(n, dtype=torch.float64, device=case.device)
    if not isinstance(variance, Tensor):
        return variance * unit
    return fourier_filter(unit.reshape(-1, *case.shape), variance).flatten(1)


def _hessian(likelihood: Any, x: Tensor, pull: Tensor, step: float, case: Case) -> Tensor:
    """−∇² log p at x, voxel by voxel, from the gradients at x, `(n,)`, and a step beside it."""
    beside = step * torch.eye(len(pull), dtype=torch.float64, device=case.device).reshape(-1, *case.shape)
    return (pull - score(likelihood, x + beside, case).flatten(1)) / step


def _bent_downwards(hessian: Tensor, v: Tensor) -> Tensor:
    """What of it makes a volume more certain than the prior's covariance v: no data make it less so."""
    root = torch.linalg.cholesky(v)
    values, vectors = torch.linalg.eigh(root.mT @ (hessian + hessian.mT) @ root / 2)
    left = torch.linalg.solve_triangular(root.mT, vectors, upper=True)
    certain: Tensor = (left * values.clamp(min=0)) @ left.mT
    return certain


def _is_quadratic(likelihood: Any, x: Tensor, case: Case) -> bool:
    """Whether ∇ log p changes by as much on either side of x."""
    step = case.drawn(x.shape, 6)
    here, above, below = (score(likelihood, v, case) for v in (x, x + step, x - step))
    return float(norm(above + below - 2 * here)) <= _BENT * float(norm(above - below)) + 1e-9 * float(norm(here))


def spectral_condition(likelihood: Any, case: Case) -> None:
    """The posterior mean has the coefficients (μ̃/V + W ỹ) / (1/V + W): ỹ where W = ∞ and μ̃ where W = 0."""
    w, data = likelihood.spectral_precision(), likelihood.spectral_data()
    mean = case.volume()
    for variance in _variances(case):
        found = rfft(_condition(likelihood, mean, variance, case).mean)
        prior = rfft(mean)
        finite = torch.where(w.isinf(), 0, w)
        mixed = (prior / variance + finite * torch.where(w > 0, data, 0)) / (1 / variance + finite)
        expected = torch.where(w.isinf(), data, mixed)
        expect_close(found, expected, norm(expected), "the posterior mean, per coefficient", case, rtol=1e-6)


def _condition(likelihood: Any, mean: Tensor, variance: Tensor | float, case: Case) -> Normal:
    posterior: list[Normal] = []

    def mean_of() -> Tensor:
        posterior.append(likelihood.condition(mean, variance))
        return posterior[0].mean

    found = call(mean_of, "condition(mean, variance)", case)
    expect(found.shape == mean.shape, f"a mean of shape {tuple(mean.shape)}", f"{tuple(found.shape)}", case)
    return posterior[0]


def _draw(posterior: Normal, case: Case) -> Tensor:
    draw = call(lambda: posterior.sample(torch.Generator(case.device).manual_seed(case.seed)), "a draw", case)
    shape = posterior.mean.shape
    expect(draw.shape == shape, f"a draw of shape {tuple(shape)}", f"{tuple(draw.shape)}", case)
    return draw


def _variances(case: Case) -> tuple[Tensor | float, ...]:
    """White, and one that falls with frequency."""
    falling = 0.2 + 2 / (1 + 20 * frequencies(case.shape, device=case.device) ** 2)
    return 0.7 * case.unit**2, falling * case.unit**2


def _check_covariance(variance: Tensor | float, posterior: Tensor, case: Case) -> None:
    """A covariance that is told as a number or as a spectrum."""
    w = case.normal((8, *case.shape), 5)
    expected = (w.flatten(1) @ posterior).reshape(-1, *case.shape)
    spectral = isinstance(variance, Tensor) and variance.ndim >= 3
    made = fourier_filter(w, variance) if isinstance(variance, Tensor) and spectral else w * variance
    expect_close(made, expected, norm(expected), "the posterior covariance by a dense solve", case, rtol=_RTOL)


def _check_draws(found: Normal, prior: Tensor, posterior: Tensor, case: Case) -> None:
    """A covariance that is known by its draws: these are whitened, and the components that the data tell most about
    come first.
    """
    draws = torch.stack(list(_deviations(found, case)))
    root = torch.linalg.cholesky(prior)

    def whitened(columns: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(root, columns, upper=False)
        return solved

    left, basis = torch.linalg.eigh(whitened(whitened(posterior).T))  # of the prior's variance, along each component
    components = whitened(draws.flatten(1).T).T @ basis / left.sqrt()
    parts = components.square().sum(0).split(_TOGETHER)
    degrees = torch.tensor([len(draws) * len(part) for part in parts], dtype=torch.float64, device=draws.device)
    sums = torch.stack([part.sum() for part in parts])
    chi_square(sums, degrees, "the variance of posterior draws over that of a dense solve", case)


def _deviations(posterior: Normal, case: Case) -> Iterator[Tensor]:
    generator = torch.Generator(case.device).manual_seed(case.seed)
    start, (least, most) = time.process_time(), _DRAWS
    for i in range(most):
        if i < least or time.process_time() - start < _SECONDS:
            yield call(lambda: posterior.sample(generator), "a draw", case) - posterior.mean
