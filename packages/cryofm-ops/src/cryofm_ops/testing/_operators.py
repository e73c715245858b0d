"""The contract of an operator, check by check."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cryofm_ops.testing._case import Case, ContractError
from cryofm_ops.testing._expect import RTOL, call, each_alone, expect, expect_close, fail, norm, pick, unchanged

__all__: list[str] = []

_DENSE = 256  # unit vectors of larger spaces are drawn at random
_SINGLE = 3e-6  # relative error that float32 arithmetic leaves, and few mistakes do


def shape_and_batch(op: Any, case: Case) -> None:
    """`(*batch, z, y, x)` gives `(*batch, ...)`, and every volume of a batch is treated by itself."""
    _batched(op, case.volume(), "A x", case)


def dtype_and_device(op: Any, case: Case) -> None:
    """Real in, real out, in the dtype and on the device of the input."""
    for dtype in (torch.float64, torch.float32):
        x = case.volume().to(dtype)
        y = forward(op, x, case)
        expect(not y.is_complex(), "a real A x", f"{y.dtype}", case)
        expect(y.dtype == dtype, f"A x of dtype {dtype}, as x", f"a lost dtype: {y.dtype}", case)
        expect(y.device == x.device, f"A x on device {x.device}, as x", f"{y.device}", case)


def input_unchanged(op: Any, case: Case) -> None:
    """No method writes into its argument."""
    x = case.volume()
    unchanged(lambda: op(x), x, "A x", case)
    y = case.drawn(forward(op, x, case).shape, 1)
    for name in ("adjoint", "pinv"):
        method = getattr(op, name, None)
        if method is not None:
            unchanged(lambda method=method: method(y), y, f"{name}(y)", case)  # type: ignore[misc]


def deterministic(op: Any, case: Case) -> None:
    """The same x gives the same bits, whatever the global random state; noise is not the operator's business."""
    x = case.volume()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        first = forward(op, x, case)
        torch.manual_seed(case.seed + 1)
        second = forward(op, x, case)
    expect(
        torch.equal(first, second),
        "the same bits from two calls of A x",
        f"a difference of {float(norm(first - second)):.3g}: does the operator add noise, or keep state?",
        case,
    )


def global_random_state(op: Any, case: Case) -> None:
    """The global random state is neither read nor written."""
    x = case.volume()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        before = torch.random.get_rng_state()
        forward(op, x, case)
        same = torch.equal(before, torch.random.get_rng_state())
    expect(same, "A x to leave torch's global random state alone", "a changed state", case)


def gradient(op: Any, case: Case) -> None:
    """⟨∇⟨w, A x⟩, d⟩ is the slope of ⟨w, A(x + h d)⟩ by central differences."""
    x = case.volume().requires_grad_()
    y = forward(op, x, case)
    expect(y.requires_grad, "A x to be differentiable by autograd", "a result without a graph", case)
    w, d, h = case.normal(y.shape, 1), case.normal(x.shape, 2), 1e-5 * case.unit
    (g,) = torch.autograd.grad((w * y).sum(), x)
    with torch.no_grad():
        rise = (forward(op, x + h * d, case) - forward(op, x - h * d, case)) / (2 * h)
    expect_close((g * d).sum(), (w * rise).sum(), norm(w) * norm(rise), "the slope of A", case, rtol=1e-5)


def linearity(op: Any, case: Case) -> None:
    """A(a x + b u) = a A x + b A u, and A 0 = 0."""
    x = case.volume()
    u = case.drawn(x.shape, 1) * case.scale
    a, b = 1.5, -0.25
    ax, au, zero = (forward(op, v, case) for v in (x, u, torch.zeros_like(x)))
    size = norm(ax) + norm(au)
    made, expected = forward(op, a * x + b * u, case), a * ax + b * au
    offset = float(norm(zero)) > RTOL * float(size)
    rest = float(norm(made - expected - (1 - a - b) * zero)) if zero.shape == made.shape == ax.shape else math.inf
    if not torch.equal(forward(op, x, case), ax):
        fault = "another A x at every call, random or with a state"
    elif offset and rest <= RTOL * float(size + norm(zero)):
        fault = "an affine operator, which is not linear, since A 0 ≠ 0"
    elif rest <= _SINGLE * float(size):
        fault = "float64 lost inside A, whose error is that of single precision (or a weak nonlinearity)"
    else:
        fault = "a nonlinear operator that poses as linear, by its `adjoint`"
    what = "A(1.5 x − 0.25 u) equal to 1.5 A x − 0.25 A u"
    expect_close(made, expected, size, what, case, fault=fault)
    expect_close(zero, torch.zeros_like(zero), size, "A 0 equal to 0", case, fault=fault)


def _of_linear(check: Callable[[Any, Case], None]) -> Callable[[Any, Case], None]:
    """A check that names an operator's want of linearity rather than what follows from it."""

    @functools.wraps(check)
    def named(op: Any, case: Case) -> None:
        try:
            check(op, case)
        except ContractError:
            linearity(op, case)
            raise

    return named


@_of_linear
def dot_test(op: Any, case: Case) -> None:
    """|⟨A x, y⟩ − ⟨x, Aᵀ y⟩| / (‖A x‖ ‖y‖ + ‖x‖ ‖Aᵀ y‖) is rounding."""
    x = case.volume()
    ax = forward(op, x, case)
    y = case.drawn(ax.shape, 1)
    aty = transpose(op, y, case)
    expect(aty.shape == x.shape, f"Aᵀ y of shape {tuple(x.shape)}", f"{tuple(aty.shape)}", case)
    scale = norm(ax) * norm(y) + norm(x) * norm(aty)
    expect_close((x * aty).sum(), (ax * y).sum(), scale, "⟨x, Aᵀ y⟩ equal to ⟨A x, y⟩", case)


def adjoint_contract(op: Any, case: Case) -> None:
    """Aᵀ treats every element of a batch by itself, in the dtype of y."""
    y = case.drawn(forward(op, case.volume(), case).shape, 1)
    _batched(op.adjoint, y, "Aᵀ y", case)
    for dtype in (torch.float64, torch.float32):
        found = transpose(op, y.to(dtype), case).dtype
        expect(found == dtype, f"Aᵀ y of dtype {dtype}, as y", f"a lost dtype: {found}", case)


@_of_linear
def adjoint_is_autograd(op: Any, case: Case) -> None:
    """Aᵀ y is the vector-Jacobian product of A."""
    x = case.volume().requires_grad_()
    ax = forward(op, x, case)
    expect(ax.requires_grad, "A x to be differentiable by autograd", "a result without a graph", case)
    y = case.drawn(ax.shape, 1)
    (vjp,) = torch.autograd.grad(ax, x, y)
    expect_close(transpose(op, y, case), vjp, norm(vjp), "Aᵀ y equal to the vector-Jacobian product", case)


@_of_linear
def dense_matrix(op: Any, case: Case) -> None:
    """With M the matrix of A column by column: Aᵀ makes Mᵀ, and A x = M x."""
    n = math.prod(case.shape)
    one = forward(op, torch.zeros(case.shape, dtype=torch.float64, device=case.device), case).shape
    m = math.prod(one)
    columns, rows = pick(n, _DENSE, case, 1), pick(m, _DENSE, case, 2)
    across = forward(op, _units(columns, n, case).reshape(-1, *case.shape), case).flatten(1)  # (columns, m)
    back = transpose(op, _units(rows, m, case).reshape(-1, *one), case).flatten(1)  # (rows, n)
    size = norm(across[:, rows])
    expect_close(back[:, columns], across[:, rows].T, size, "the matrix of Aᵀ equal to Mᵀ", case)
    weights = case.normal((len(columns),), 3)
    x = (weights @ _units(columns, n, case)).reshape(case.shape)
    expect_close(forward(op, x, case).flatten(), weights @ across, norm(across), "A x equal to M x", case)


@_of_linear
def composition(op: Any, case: Case) -> None:
    """(A D)ᵀ = D Aᵀ for a diagonal D: the adjoint survives in a product."""
    x = case.volume()
    d = case.normal(case.shape, 2)
    adx = forward(op, d * x, case)
    y = case.drawn(adx.shape, 1)
    back = d * transpose(op, y, case)
    scale = norm(adx) * norm(y) + norm(x) * norm(back)
    expect_close((x * back).sum(), (adx * y).sum(), scale, "⟨x, D Aᵀ y⟩ equal to ⟨A D x, y⟩", case)


def forward(op: Any, x: Tensor, case: Case) -> Tensor:
    """A x, of a copy of x and as a copy, so that what an operator does to them is seen where it is looked for."""
    return call(lambda: op(x.clone()), "A x", case).clone()


def transpose(op: Any, y: Tensor, case: Case) -> Tensor:
    """Aᵀ y, in the same way."""
    return call(lambda: op.adjoint(y.clone()), "Aᵀ y", case).clone()


def _batched(function: Callable[[Tensor], Tensor], x: Tensor, what: str, case: Case) -> None:
    def copied(v: Tensor) -> Tensor:
        return call(lambda: function(v.clone()), what, case).clone()

    whole = copied(x)
    if not torch.equal(whole, copied(x)):
        fail(f"the same {what} twice", "another, random or with a state", case)
    alone = each_alone(copied, x, what, case)
    fault = f"the volumes of a batch mixed by {what}"
    expect_close(whole, alone, norm(alone), f"{what} of a batch equal to that of each alone", case, fault=fault)


def _units(indices: Tensor, n: int, case: Case) -> Tensor:
    return (indices[:, None] == torch.arange(n)).double().to(case.device) * case.unit
