"""The contract of a likelihood, check by check; what `condition` gives is in `_conditions`."""

from typing import Any

import torch
from torch import Tensor

from cryofm_ops.fourier.grid import half_shape, irfft, rfft
from cryofm_ops.protocols import FourierDiagonal, Likelihood
from cryofm_ops.testing._arithmetic import sees_small_steps
from cryofm_ops.testing._case import Case
from cryofm_ops.testing._expect import call, each_alone, expect, expect_close, fail, norm, unchanged
from cryofm_ops.testing._multipliers import mate

__all__: list[str] = []


def noiseless(likelihood: Any) -> bool:
    """Whether some coefficients are known without noise, so that there is no density."""
    return isinstance(likelihood, FourierDiagonal) and bool(likelihood.spectral_precision().isinf().any())


def log_prob_contract(likelihood: Any, case: Case) -> None:
    """`(*batch, z, y, x)` gives `(*batch,)`, each volume by itself, the same bits every time; x is left alone."""
    x = case.volume()
    whole = unchanged(lambda: likelihood.log_prob(x), x, "log p(y | x)", case)
    _expect_one_each(whole, case.batch, case)
    _expect_one_each(log_prob(likelihood, x.reshape(-1, *case.shape)[0], case), (), case)
    expect(torch.equal(whole, log_prob(likelihood, x, case)), "the same log p twice", "another, by chance", case)
    alone = each_alone(lambda v: log_prob(likelihood, v, case), x, "log p(y | x)", case)
    fault = "the volumes of a batch mixed by log_prob"
    expect_close(whole, alone, norm(alone), "log p of a batch equal to that of each alone", case, fault=fault)


def log_prob_gradient(likelihood: Any, case: Case) -> None:
    """Autograd's gradient of log p is its slope by central differences."""
    x = case.volume()
    d, h = case.normal(x.shape, 1), 1e-4 * case.unit
    with torch.no_grad():
        slope = (log_prob(likelihood, x + h * d, case) - log_prob(likelihood, x - h * d, case)) / (2 * h)
        noise = float(log_prob(likelihood, x, case).abs().max()) * 1e-9 / h  # what rounding leaves of the slope
    gradient = score(likelihood, x, case)
    found = (gradient * d).flatten(-3).sum(-1)
    size = max(float(norm(found)), 0.1 * float(norm(gradient)), noise)  # d may lie across the gradient
    expect_close(found, slope, size, "the slope of log p", case, rtol=1e-3)


def log_prob_keeps_float64(likelihood: Any, case: Case) -> None:
    """A float64 x gives a float64 log p with a float64 gradient, and the arithmetic between them is that too."""
    x = case.volume()
    found = log_prob(likelihood, x, case).dtype
    expect(found == torch.float64, "log p of dtype torch.float64, as x", f"a lost dtype: {found}", case)
    sees_small_steps(lambda v: score(likelihood, v, case), "∇ log p", case)


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
    found = score(likelihood, x.detach(), case)
    expect_close(found, expected, norm(expected), "∇ log p equal to Aᵀ Σ⁻¹ (y − A x)", case, rtol=1e-6)


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
    found = score(likelihood, x, case)
    expect_close(found, expected, norm(expected), "∇ log p equal to W (ỹ − x̃)", case, rtol=1e-6)


def refines_to_a_likelihood(likelihood: Any, case: Case) -> None:
    """`refine(x)` gives a `Likelihood` of x, the same one each time, and leaves x alone."""
    x = case.volume()
    value = unchanged(lambda: _refined(likelihood, x, case), x, "refine(x)", case)
    _expect_one_each(value, case.batch, case)
    expect(torch.equal(value, _refined(likelihood, x, case)), "the same log p twice", "another", case)


def refines_each_alone(likelihood: Any, case: Case) -> None:
    """`refine` finds the unknown parameters of every volume of a batch by itself."""
    x = case.volume()
    alone = each_alone(lambda v: _refined(likelihood, v, case), x, "log p at what refine found", case)
    whole, fault = _refined(likelihood, x, case), "a refine that mixes the volumes of a batch"
    expect_close(whole, alone, norm(alone), "log p after refining a batch, as alone", case, rtol=1e-6, fault=fault)


def log_prob(likelihood: Any, x: Tensor, case: Case) -> Tensor:
    """Log p, of a copy of x."""
    return call(lambda: likelihood.log_prob(x.clone()), "log p(y | x)", case, infinite=True).clone()


def score(likelihood: Any, x: Tensor, case: Case) -> Tensor:
    """∇ log p by autograd."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = log_prob(likelihood, x, case)
        expect(value.requires_grad, "log p to be differentiable by autograd", "a result without a graph", case)
        return call(lambda: torch.autograd.grad(value.sum(), x)[0], "∇ log p", case)


def _refined(likelihood: Any, x: Tensor, case: Case) -> Tensor:
    """Log p of x at what `refine` finds in it."""
    refined = likelihood.refine(x)
    if not isinstance(refined, Likelihood):
        fail("refine to return an object with log_prob", type(refined).__name__, case)
    return log_prob(refined, x, case)


def _expect_one_each(found: Tensor, batch: tuple[int, ...], case: Case) -> None:
    expected = f"one log p for every volume, of shape {batch}"
    expect(found.shape == batch, expected, f"shape {tuple(found.shape)}", case)
