"""The contract of a likelihood, check by check.

The oracle is dense: −log p(y | x) of a Gaussian likelihood is quadratic, so its gradients at zero and at the unit
vectors are its whole Hessian H, and N(μ, V) × likelihood has covariance (V⁻¹ + H)⁻¹.
"""

import math
from typing import Any

import torch
from torch import Tensor

from cryofm_ops.fourier.grid import fourier_filter, frequencies, half_shape, irfft, rfft
from cryofm_ops.normal import Normal
from cryofm_ops.protocols import FourierDiagonal, Likelihood
from cryofm_ops.testing._case import Case, call, expect, expect_close, fail, norm
from cryofm_ops.testing._noises import chi_square
from cryofm_ops.testing._operators import mate

__all__: list[str] = []

_RTOL = 1e-3  # conditioning may stop conjugate gradients at a tolerance of its own
_DRAWS = 200  # each is a solve


def noiseless(likelihood: Any) -> bool:
    """Whether some coefficients are known without noise, so that there is no density."""
    return isinstance(likelihood, FourierDiagonal) and bool(likelihood.spectral_precision().isinf().any())


def log_prob_contract(likelihood: Any, case: Case) -> None:
    """`(*batch, z, y, x)` gives `(*batch,)`, each volume by itself, the same bits every time; x is left alone."""
    x = case.volume()
    before = x.clone()
    whole = _log_prob(likelihood, x, case)
    expect(torch.equal(x, before), "log_prob to leave x alone", "a changed x", case)
    expect(whole.shape == case.batch, f"log p of shape {case.batch}", f"{tuple(whole.shape)}", case)
    expect(torch.equal(whole, _log_prob(likelihood, x, case)), "the same log p twice", "another", case)
    depth = len(case.batch)
    flat = x.flatten(0, depth - 1) if depth else x[None]
    alone = torch.stack([_log_prob(likelihood, v, case) for v in flat]).reshape(case.batch)
    expect_close(whole, alone, norm(alone), "log p of a batch equal to that of each volume alone", case)


def log_prob_gradient(likelihood: Any, case: Case) -> None:
    """Autograd's gradient of log p is its slope by central differences."""
    x = case.volume()
    d, h = case.normal(x.shape, 1), 1e-4
    slope = (_log_prob(likelihood, x + h * d, case) - _log_prob(likelihood, x - h * d, case)) / (2 * h)
    found = (_gradient(likelihood, x, case) * d).flatten(-3).sum(-1)
    noise = float(_log_prob(likelihood, x, case).abs().max()) * 1e-9 / h  # what rounding leaves of the slope
    expect_close(found, slope, max(float(norm(found)), noise), "the slope of log p", case, rtol=1e-3)


def noiseless_is_no_nan(likelihood: Any, case: Case) -> None:
    """Where coefficients are known without noise there is no density: log_prob raises, or is −∞, never NaN."""
    try:
        found = likelihood.log_prob(case.volume())
    except ValueError:
        return
    expect(not bool(found.isnan().any()), "log p to raise or to be −inf", "NaN", case)


def gradient_is_weighted_residual(likelihood: Any, case: Case) -> None:
    """∇ log p = Aᵀ Σ⁻¹ (y − A x), of a likelihood that shows its operator, noise and observation."""
    x = case.volume().requires_grad_()
    made = call(lambda: likelihood.operator(x), "A x", case)
    weighted = likelihood.noise.precision(likelihood.observation - made.detach())
    (expected,) = torch.autograd.grad(made, x, weighted.expand_as(made))
    found = _gradient(likelihood, x.detach(), case)
    expect_close(found, expected, norm(expected), "∇ log p equal to Aᵀ Σ⁻¹ (y − A x)", case, rtol=1e-6)


def condition_contract(likelihood: Any, case: Case) -> None:
    """The posterior mean has the shape of the prior's, element by element; the arguments are left alone."""
    mean = case.volume()
    before = mean.clone()
    posterior = _condition(likelihood, mean, 0.5, case)
    expect(torch.equal(mean, before), "condition to leave the mean alone", "a changed mean", case)
    depth = len(case.batch)
    flat = mean.flatten(0, depth - 1) if depth else mean[None]
    alone = torch.stack([_condition(likelihood, v, 0.5, case).mean for v in flat]).reshape(mean.shape)
    expect_close(posterior.mean, alone, norm(alone - mean), "condition of a batch, each alone", case, rtol=_RTOL)
    draw = call(lambda: posterior.sample(torch.Generator(mean.device).manual_seed(0)), "a draw", case)
    expect(draw.shape == mean.shape, f"a draw of shape {tuple(mean.shape)}", f"{tuple(draw.shape)}", case)


def condition_is_stationary(likelihood: Any, case: Case) -> None:
    """At the posterior mean x*, V ∇ log p(y | x*) = x* − μ."""
    mean = case.volume()
    for variance in _variances(case):
        found = _condition(likelihood, mean, variance, case).mean
        pull = _gradient(likelihood, found, case)
        moved = fourier_filter(pull, variance) if isinstance(variance, Tensor) else variance * pull
        start = _gradient(likelihood, mean, case)  # before conditioning: what there was to be solved
        scale = max(float(norm(found - mean)), float(norm(start)) * float(torch.as_tensor(variance).min()))
        expect_close(moved, found - mean, scale, "V ∇ log p equal to x* − μ", case, rtol=_RTOL)


def condition_is_dense_solve(likelihood: Any, case: Case) -> None:
    """Mean and covariance of the posterior are those of a dense solve. Draws: statistical, false alarm 1e-6."""
    n = math.prod(case.shape)
    unit = torch.eye(n, dtype=torch.float64, device=case.device).reshape(-1, *case.shape)
    base = _gradient(likelihood, torch.zeros_like(unit[0]), case).flatten()
    hessian = base - _gradient(likelihood, unit, case).flatten(1)  # of −log p
    mean = case.volume()
    for variance in _variances(case):
        v = fourier_filter(unit, variance).flatten(1) if isinstance(variance, Tensor) else variance * unit.flatten(1)
        posterior = torch.linalg.inv(torch.linalg.inv(v) + hessian)
        step = (base - mean.flatten(-3) @ hessian.T) @ posterior.T
        found = _condition(likelihood, mean, variance, case)
        moved = (found.mean - mean).flatten(-3)
        expect_close(moved, step, norm(step), "the posterior mean's step from μ by a dense solve", case, rtol=_RTOL)
        _check_spread(likelihood, found, posterior, variance, case)


def spectral_grid(likelihood: Any, case: Case) -> None:
    """W(k) ≥ 0 and ỹ(k) are on the half grid of the box and Hermitian; ỹ is finite where W > 0."""
    w, data = likelihood.spectral_precision(), likelihood.spectral_data()
    half = half_shape(case.shape)
    for name, found in (("spectral_precision", w), ("spectral_data", data)):
        expect(tuple(found.shape[-3:]) == half, f"{name} on the half grid {half}", f"{tuple(found.shape)}", case)
    expect(w.is_floating_point() and bool((w >= 0).all()), "a real W of at least 0", "another", case)
    expect(bool(data[(w > 0).expand(data.shape)].isfinite().all()), "finite ỹ where W > 0", "other values", case)
    finite = torch.where(w.isinf(), -1, w)
    expect_close(finite, mate(finite, case), 0, "W(−k) = W(k)", case)
    known = torch.where(w > 0, data, 0)
    expect_close(known, mate(known, case), norm(known), "ỹ(−k) = ỹ(k)*", case, rtol=1e-5)


def spectral_gradient(likelihood: Any, case: Case) -> None:
    """∇ log p has the Fourier coefficients W (ỹ − x̃)."""
    x = case.volume()
    w, data = likelihood.spectral_precision(), likelihood.spectral_data()
    expected = irfft(w * (torch.where(w > 0, data, 0) - rfft(x)), case.shape)
    found = _gradient(likelihood, x, case)
    expect_close(found, expected, norm(expected), "∇ log p equal to W (ỹ − x̃)", case, rtol=1e-6)


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


def refines_to_a_likelihood(likelihood: Any, case: Case) -> None:
    """`refine(x)` gives a `Likelihood` of x, the same one each time, and leaves x alone."""
    x = case.volume()
    before = x.clone()
    refined = likelihood.refine(x)
    expect(torch.equal(x, before), "refine to leave x alone", "a changed x", case)
    if not isinstance(refined, Likelihood):
        fail("refine to return an object with log_prob", type(refined).__name__, case)
    value = _log_prob(refined, x, case)
    expect(value.shape == case.batch, f"log p of shape {case.batch}", f"{tuple(value.shape)}", case)
    expect(torch.equal(value, _log_prob(likelihood.refine(x), x, case)), "the same log p twice", "another", case)


def _log_prob(likelihood: Any, x: Tensor, case: Case) -> Tensor:
    return call(lambda: likelihood.log_prob(x), "log p(y | x)", case)


def _gradient(likelihood: Any, x: Tensor, case: Case) -> Tensor:
    x = x.detach().requires_grad_()
    value = _log_prob(likelihood, x, case)
    expect(value.requires_grad, "log p to be differentiable by autograd", "a result without a graph", case)
    (g,) = torch.autograd.grad(value.sum(), x)
    return g


def _condition(likelihood: Any, mean: Tensor, variance: Tensor | float, case: Case) -> Normal:
    posterior: list[Normal] = []

    def mean_of() -> Tensor:
        posterior.append(likelihood.condition(mean, variance))
        return posterior[0].mean

    found = call(mean_of, "condition(mean, variance)", case)
    expect(found.shape == mean.shape, f"a mean of shape {tuple(mean.shape)}", f"{tuple(found.shape)}", case)
    return posterior[0]


def _variances(case: Case) -> tuple[Tensor | float, ...]:
    """White, and one that falls with frequency."""
    falling = 0.2 + 2 / (1 + 20 * frequencies(case.shape, device=case.device) ** 2)
    return 0.7, falling


def _check_spread(likelihood: Any, found: Normal, posterior: Tensor, variance: Tensor | float, case: Case) -> None:
    """The posterior's covariance: by its number or spectrum where it has one, by draws otherwise."""
    w = case.normal((8, *case.shape), 5)
    expected = (w.flatten(1) @ posterior).reshape(-1, *case.shape)
    v = found.variance
    if not callable(v):
        spectral = isinstance(v, Tensor) and v.ndim >= 3
        made = fourier_filter(w, v) if isinstance(v, Tensor) and spectral else w * v
        expect_close(made, expected, norm(expected), "the posterior covariance by a dense solve", case, rtol=_RTOL)
        return
    zeros = torch.zeros(_DRAWS, *case.shape, dtype=torch.float64, device=case.device)
    many = likelihood.condition(zeros, variance)
    draws = many.sample(torch.Generator(case.device).manual_seed(case.seed)) - many.mean
    along = (draws.flatten(1) @ w.flatten(1).T).square().sum(0)
    chi_square(along / (w * expected).flatten(1).sum(1), _DRAWS, "the variance of posterior draws along w", case)
