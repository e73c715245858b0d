"""The contract of an operator, check by check."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cryofm_ops.fourier.grid import fourier_filter, half_shape
from cryofm_ops.testing._case import Case, call, expect, expect_close, fail, norm

__all__: list[str] = []

_DENSE = 256  # unit vectors of larger spaces are drawn at random


def shape_and_batch(op: Any, case: Case) -> None:
    """`(*batch, z, y, x)` gives `(*batch, ...)`, and every volume of a batch is treated by itself."""
    _batched(op, case.volume(), case, "A x")


def dtype_and_device(op: Any, case: Case) -> None:
    """Real in, real out, in the dtype and on the device of the input."""
    for dtype in (torch.float64, torch.float32):
        x = case.volume().to(dtype)
        y = _a(op, x, case)
        expect(not y.is_complex(), "a real A x", f"{y.dtype}", case)
        expect(y.dtype == dtype, f"A x of dtype {dtype}, as x", f"{y.dtype}", case)
        expect(y.device == x.device, f"A x on device {x.device}, as x", f"{y.device}", case)


def input_unchanged(op: Any, case: Case) -> None:
    """No method writes into its argument."""
    x = case.volume()
    _unchanged(lambda: op(x), x, "A x", case)
    y = case.normal(_a(op, x, case).shape, 1)
    for name in ("adjoint", "pinv"):
        method = getattr(op, name, None)
        if method is not None:
            _unchanged(lambda method=method: method(y), y, f"{name}(y)", case)  # type: ignore[misc]


def deterministic(op: Any, case: Case) -> None:
    """The same x gives the same bits, whatever the global random state; noise is not the operator's business."""
    x = case.volume()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        first = _a(op, x, case).clone()
        torch.manual_seed(case.seed + 1)
        second = _a(op, x, case)
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
        _a(op, x, case)
        same = torch.equal(before, torch.random.get_rng_state())
    expect(same, "A x to leave torch's global random state alone", "a changed state", case)


def gradient(op: Any, case: Case) -> None:
    """⟨∇⟨w, A x⟩, d⟩ is the slope of ⟨w, A(x + h d)⟩ by central differences."""
    x = case.volume().requires_grad_()
    y = _a(op, x, case)
    expect(y.requires_grad, "A x to be differentiable by autograd", "a result without a graph", case)
    w, d, h = case.normal(y.shape, 1), case.normal(x.shape, 2), 1e-5
    (g,) = torch.autograd.grad((w * y).sum(), x)
    with torch.no_grad():
        rise = (_a(op, x + h * d, case) - _a(op, x - h * d, case)) / (2 * h)
    expect_close((g * d).sum(), (w * rise).sum(), norm(w) * norm(rise), "the slope of A", case, rtol=1e-5)


def linearity(op: Any, case: Case) -> None:
    """A(a x + b u) = a A x + b A u, and A 0 = 0."""
    x = case.volume()
    u = case.normal(x.shape, 1) * case.scale
    a, b = 1.5, -0.25
    ax, au = _a(op, x, case), _a(op, u, case)
    expect_close(_a(op, a * x + b * u, case), a * ax + b * au, norm(ax) + norm(au), "A(1.5 x − 0.25 u)", case)
    zero = _a(op, torch.zeros_like(x), case)
    expect_close(zero, torch.zeros_like(zero), 0, "A 0", case)


def dot_test(op: Any, case: Case) -> None:
    """|⟨A x, y⟩ − ⟨x, Aᵀ y⟩| / (‖A x‖ ‖y‖ + ‖x‖ ‖Aᵀ y‖) is rounding."""
    x = case.volume()
    ax = _a(op, x, case)
    y = case.normal(ax.shape, 1)
    aty = _adjoint(op, y, case)
    expect(aty.shape == x.shape, f"Aᵀ y of shape {tuple(x.shape)}", f"{tuple(aty.shape)}", case)
    scale = norm(ax) * norm(y) + norm(x) * norm(aty)
    expect_close((x * aty).sum(), (ax * y).sum(), scale, "⟨x, Aᵀ y⟩ equal to ⟨A x, y⟩", case)


def adjoint_contract(op: Any, case: Case) -> None:
    """Aᵀ treats every element of a batch by itself, in the dtype of y."""
    y = case.normal(_a(op, case.volume(), case).shape, 1)
    _batched(op.adjoint, y, case, "Aᵀ y")
    for dtype in (torch.float64, torch.float32):
        found = _adjoint(op, y.to(dtype), case).dtype
        expect(found == dtype, f"Aᵀ y of dtype {dtype}, as y", f"{found}", case)


def adjoint_is_autograd(op: Any, case: Case) -> None:
    """Aᵀ y is the vector-Jacobian product of A."""
    x = case.volume().requires_grad_()
    ax = _a(op, x, case)
    expect(ax.requires_grad, "A x to be differentiable by autograd", "a result without a graph", case)
    y = case.normal(ax.shape, 1)
    (vjp,) = torch.autograd.grad(ax, x, y)
    expect_close(_adjoint(op, y, case), vjp, norm(vjp), "Aᵀ y equal to the vector-Jacobian product", case)


def dense_matrix(op: Any, case: Case) -> None:
    """With M the matrix of A column by column: Aᵀ makes Mᵀ, and A x = M x."""
    n = math.prod(case.shape)
    one = _a(op, torch.zeros(case.shape, dtype=torch.float64, device=case.device), case).shape
    m = math.prod(one)
    columns, rows = _pick(n, case, 1), _pick(m, case, 2)
    forward = _a(op, _units(columns, n, case).reshape(-1, *case.shape), case).flatten(1)  # (columns, m)
    backward = _adjoint(op, _units(rows, m, case).reshape(-1, *one), case).flatten(1)  # (rows, n)
    size = norm(forward[:, rows])
    expect_close(backward[:, columns], forward[:, rows].T, size, "the matrix of Aᵀ equal to Mᵀ", case)
    weights = case.normal((len(columns),), 3)
    x = (weights @ _units(columns, n, case)).reshape(case.shape)
    expect_close(_a(op, x, case).flatten(), weights @ forward, norm(forward), "A x equal to M x", case)


def composition(op: Any, case: Case) -> None:
    """(A D)ᵀ = D Aᵀ for a diagonal D: the adjoint survives in a product."""
    x = case.volume()
    d = case.normal(case.shape, 2)
    adx = _a(op, d * x, case)
    y = case.normal(adx.shape, 1)
    back = d * _adjoint(op, y, case)
    scale = norm(adx) * norm(y) + norm(x) * norm(back)
    expect_close((x * back).sum(), (adx * y).sum(), scale, "⟨x, D Aᵀ y⟩ equal to ⟨A D x, y⟩", case)


def moore_penrose(op: Any, case: Case) -> None:
    """A A⁺ A = A, A⁺ A A⁺ = A⁺, and A A⁺ and A⁺ A are symmetric (Penrose 1955)."""

    def pinv(y: Tensor) -> Tensor:
        return call(lambda: op.pinv(y), "A⁺ y", case)

    x = case.normal((*case.batch, *case.shape), 0)
    ax = _a(op, x, case)
    y, y2, x2 = case.normal(ax.shape, 1), case.normal(ax.shape, 2), case.normal(x.shape, 3)
    py = pinv(y)
    expect_close(_a(op, pinv(ax), case), ax, 0, "A A⁺ A x equal to A x", case, rtol=1e-6)
    expect_close(pinv(_a(op, py, case)), py, 0, "A⁺ A A⁺ y equal to A⁺ y", case, rtol=1e-6)
    for what, u, fu, v, fv in (
        ("A A⁺ symmetric", y, _a(op, py, case), y2, _a(op, pinv(y2), case)),
        ("A⁺ A symmetric", x, pinv(ax), x2, pinv(_a(op, x2, case))),
    ):
        scale = norm(fu) * norm(v) + norm(u) * norm(fv)
        expect_close((fu * v).sum(), (u * fv).sum(), scale, what, case, rtol=1e-6)


def transfer_grid(op: Any, case: Case) -> None:
    """The transfer is finite and on the half grid of the box."""
    m = _transfer(op, case)
    expect(bool(m.isfinite().all()), "a finite transfer", "values that are not", case)


def transfer_hermitian(op: Any, case: Case) -> None:
    """m(−k) = m(k)*, without which A x is complex."""
    m = _transfer(op, case).to(torch.complex128)
    expect_close(m, mate(m, case), 0, "m(−k) = m(k)* where k and −k are both on the half grid", case)


def transfer_is_operator(op: Any, case: Case) -> None:
    """A x multiplies the Fourier coefficients of x by the transfer."""
    x = case.normal((*case.batch, *case.shape), 0)
    m = _transfer(op, case)
    expected = fourier_filter(x, m.to(torch.complex128 if m.is_complex() else torch.float64))
    expect_close(_a(op, x, case), expected, norm(x) * float(m.abs().max()), "A x by its transfer", case, rtol=1e-6)


def mate(half: Tensor, case: Case) -> Tensor:
    """The conjugate at −k where that lies on the half grid; itself elsewhere."""
    flipped = half.conj().flip(-3, -2).roll((1, 1), (-3, -2))
    out = half.clone()
    columns = [0] if case.shape[2] % 2 else [0, half.shape[-1] - 1]
    out[..., columns] = flipped[..., columns]
    return out


def _a(op: Any, x: Tensor, case: Case) -> Tensor:
    return call(lambda: op(x), "A x", case)


def _adjoint(op: Any, y: Tensor, case: Case) -> Tensor:
    return call(lambda: op.adjoint(y), "Aᵀ y", case)


def _transfer(op: Any, case: Case) -> Tensor:
    m = call(lambda: op.transfer(case.shape), "transfer(shape)", case)
    half = half_shape(case.shape)
    expect(tuple(m.shape[-3:]) == half, f"a transfer on the half grid {half}", f"shape {tuple(m.shape)}", case)
    return m.to(case.device)


def _batched(function: Callable[[Tensor], Tensor], x: Tensor, case: Case, what: str) -> None:
    whole = call(lambda: function(x), what, case)
    depth = len(case.batch)
    flat = x.flatten(0, depth - 1) if depth else x[None]
    alone = torch.stack([call(lambda v=v: function(v), what, case) for v in flat])  # type: ignore[misc]
    alone = alone.reshape(*case.batch, *alone.shape[1:])
    expect_close(whole, alone, norm(alone), f"{what} of a batch equal to that of each volume alone", case)


def _unchanged(function: Callable[[], Tensor], argument: Tensor, what: str, case: Case) -> None:
    before = argument.clone()
    call(function, what, case)
    if not torch.equal(argument, before):
        fail(f"{what} to leave its argument alone", "a changed argument", case)


def _pick(n: int, case: Case, stream: int) -> Tensor:
    everything = torch.arange(n)
    if n <= _DENSE:
        return everything
    return torch.randperm(n, generator=torch.Generator().manual_seed(case.seed + stream))[:_DENSE]


def _units(indices: Tensor, n: int, case: Case) -> Tensor:
    return (indices[:, None] == torch.arange(n)).double().to(case.device)
