"""The contract of a velocity field, check by check, on small boxes of noise."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cryofm_ops import radial_mean, rfft
from cryofm_sampling._common import Box
from cryofm_sampling.protocols import Calibrated, VelocityField
from cryofm_sampling.testing._run import run_all

__all__ = ["PriorError", "check_prior"]

_TIMES = (0.02, 0.4, 0.9)
_BETTER = 1.05  # of what a denoiser must not exceed, for few examples
_TABLES = 4.0  # the factor within which statistics hold of a few examples


class PriorError(AssertionError):
    """A prior is not what it claims to be."""


def _require(holds: bool, claim: str) -> None:
    if not holds:
        raise PriorError(claim)


class _Case:
    def __init__(self, prior: VelocityField, box: Box, dtype: torch.dtype, tolerance: float, examples: Tensor | None):
        self.prior, self.box, self.dtype, self.tolerance, self.examples = prior, box, dtype, tolerance, examples

    def noise(self, *batch: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*batch, *self.box, generator=generator, dtype=torch.float64).to(self.dtype)

    def at(self, x: Tensor, t: Tensor | float) -> Tensor:
        with torch.no_grad():
            v = self.prior(x, torch.as_tensor(t, dtype=self.dtype))
        _require(isinstance(v, Tensor), f"it gives {type(v).__name__}, no tensor")
        return v

    def same(self, a: Tensor, b: Tensor, claim: str) -> None:
        apart = float((a - b).norm() / b.norm().clamp(min=1e-30))
        _require(apart <= self.tolerance, f"{claim}: {apart:.1e} apart, {self.tolerance:.0e} is let pass")


def shape_and_dtype(case: _Case) -> None:
    """V is shaped as x, for any batch axes, in its dtype, without a gradient under no_grad; finite from t = 0 to 1."""
    for batch in ((), (1,), (2,)):
        x = case.noise(*batch)
        for t in (0.0, *_TIMES, 1.0):
            v = case.at(x, t)
            _require(v.shape == x.shape, f"of x {tuple(x.shape)} it makes v {tuple(v.shape)}")
            _require(v.dtype == x.dtype, f"of x in {x.dtype} it makes v in {v.dtype}")
            _require(bool(v.isfinite().all()), f"v is not finite at t = {t}")


def leaves_its_input(case: _Case) -> None:
    """Neither x nor t is written into, and a result stays as it is when the prior is called again."""
    x, t = case.noise(2), torch.tensor(0.5, dtype=case.dtype)
    before, when = x.clone(), t.clone()
    first = case.at(x, t)
    kept = first.clone()
    _require(torch.equal(x, before) and torch.equal(t, when), "x or t is written into")
    case.at(case.noise(2, seed=1), 0.1)
    _require(torch.equal(first, kept), "the next call writes into the result of this one")


def deterministic(case: _Case) -> None:
    """The same v every time: no dropout, no statistics of a batch that are kept, no global random state."""
    x, state = case.noise(2), torch.get_rng_state()
    first = case.at(x, 0.5)
    case.at(100 * case.noise(2, seed=1), 0.5)
    case.same(case.at(x, 0.5), first, "another v at the same x and t (dropout, or a state?)")
    _require(torch.equal(state, torch.get_rng_state()), "it uses the global random state")


def each_alone(case: _Case) -> None:
    """Every volume of a batch by itself."""
    x = case.noise(3) * torch.tensor([1.0, 3.0, 0.2], dtype=case.dtype)[:, None, None, None]
    alone = torch.stack([case.at(one, 0.5) for one in x])
    case.same(case.at(x, 0.5), alone, "the volumes of a batch are mixed")


def times_of_a_batch(case: _Case) -> None:
    """T may be one for all, or one for each volume."""
    x, times = case.noise(len(_TIMES)), torch.tensor(_TIMES, dtype=case.dtype)
    each = torch.stack([case.at(one, t) for one, t in zip(x, times, strict=True)])
    case.same(case.at(x, times), each, "times of a batch are not each volume's own")
    case.same(case.at(x, torch.full((len(x),), 0.5, dtype=case.dtype)), case.at(x, 0.5), "t of a batch, all the same")


def noise_says_nothing(case: _Case) -> None:
    """At t = 1 there is noise alone: x̂_0 = x − v is the prior's mean, whatever x."""
    a, b = case.noise(4), case.noise(4, seed=1)
    moved = float(((a - case.at(a, 1.0)) - (b - case.at(b, 1.0))).norm() / (a - b).norm())
    claim = f"at t = 1 the estimate x − t v moves by {moved:.2f} of what the noise does, not by about 0: "
    _require(moved < 0.3, claim + "is v = x_1 − x_0, and t = 1 noise?")


def carries_gradients(case: _Case) -> None:
    """Guidance differentiates v in x: autograd's slope is that of central differences."""
    x = case.noise().requires_grad_()
    d, h = case.noise(seed=1), 1e-2
    t = torch.tensor(0.5, dtype=case.dtype)
    with torch.enable_grad():
        v = case.prior(x, t)
    _require(v.requires_grad, "no gradient passes through v: compute it without no_grad and detach")
    (g,) = torch.autograd.grad((v * v.detach()).sum(), x)
    rise = (case.at(x.detach() + h * d, 0.5) - case.at(x.detach() - h * d, 0.5)) / (2 * h)
    slope, found = float((v.detach() * rise).sum()), float((g * d).sum())
    size = max(abs(slope), 0.1 * float(v.detach().norm() * rise.norm()))
    _require(abs(found - slope) < 0.05 * size, f"autograd's slope of v is {found:.3g}, that by differences {slope:.3g}")


def denoises(case: _Case) -> None:
    """Of examples, x − t v is nearer to x_0 than their mean is, and than x_t / (1 − t)."""
    if case.examples is None:
        return
    x_0 = case.examples.to(case.dtype)
    mean = float((x_0 - x_0.mean()).square().mean())
    for t in (0.1, 0.5, 0.9):
        noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(case.dtype)
        x = (1 - t) * x_0 + t * noise
        error = float((x - t * case.at(x, t) - x_0).square().mean())
        best = min(mean, (t / (1 - t)) ** 2)
        claim = f"at t = {t} the estimate x − t v of the examples has the squared error {error:.3g}; "
        _require(error <= _BETTER * best, f"{claim}that of their mean, or of the noise itself, is {best:.3g}")


def statistics(case: _Case) -> None:
    """What a `Calibrated` prior carries: tables of the right shape, and true of the examples within a factor of 4."""
    if not isinstance(case.prior, Calibrated):
        return
    power, table = case.prior.signal_power, case.prior.denoising_error
    fine = power.ndim == 1 and len(power) > 1 and bool((power.isfinite() & (power >= 0)).all()) and bool(power.any())
    _require(fine, f"signal_power is no radial table of powers: shape {tuple(power.shape)}")
    fine = table.ndim == 2 and table.shape[1] == 2 and bool(table.isfinite().all()) and bool((table[:, 1] >= 0).all())
    _require(fine, f"denoising_error is no table of t and errors, (k, 2): shape {tuple(table.shape)}")
    times = table[:, 0]
    rising = bool((times.diff() > 0).all() and times[0] >= 0 and times[-1] <= 1)
    _require(rising, "the times of denoising_error do not rise within 0 and 1")
    if case.examples is None:
        return
    x_0 = case.examples.double()
    z, y, width = x_0.shape[-3:]
    measured = radial_mean(rfft(x_0).abs().square().reshape(-1, z, y, width // 2 + 1).mean(0), (z, y, width))[1:]
    at = torch.linspace(0, 1, len(measured) + 1, dtype=torch.float64)[1:] * (len(power) - 1)
    low = at.floor().clamp(max=len(power) - 2).long()
    said = torch.lerp(power.double().cpu()[low], power.double().cpu()[low + 1], at - low)
    factor = math.exp(float((measured / said.clamp(min=1e-30)).clamp(min=1e-30).log().median()))
    claim = f"the examples have {factor:.3g} times the signal_power, in the median shell; is it in model units?"
    _require(1 / _TABLES < factor < _TABLES, claim)


_CHECKS: tuple[Callable[[_Case], None], ...] = (
    shape_and_dtype,
    leaves_its_input,
    deterministic,
    each_alone,
    times_of_a_batch,
    noise_says_nothing,
    carries_gradients,
    denoises,
    statistics,
)


def check_prior(
    prior: VelocityField,
    *,
    box: Box = (8, 8, 8),
    examples: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 1e-4,
    expected_failures: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Run every check of a velocity field; return the names of those that passed.

    Args:
        prior: a `VelocityField`, `Calibrated` or not.
        box: that it serves.
        examples: `(n, z, y, x)`, what it is a prior of, in model units; without them nothing tells whether it denoises.
        dtype: that it computes in.
        tolerance: relative, for rounding between batch sizes.
        expected_failures: names of checks that cannot pass, with the reason.

    Raises `PriorError` with every failure in one message, and with every expected one that did not come.

    >>> from cryofm_sampling.testing import GaussianPrior
    >>> prior = GaussianPrior(2.0, (8, 8, 8))
    >>> examples = 2**0.5 * torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> check_prior(prior, examples=examples)[-2:]
    ('denoises', 'statistics')
    """
    case = _Case(prior, box, dtype, tolerance, examples)
    checks = {check.__name__: lambda check=check: check(case) for check in _CHECKS}
    return run_all(prior, checks, expected_failures, PriorError)
