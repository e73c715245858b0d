"""The contract of pseudo-inverses and transfer functions, check by check."""

from typing import Any

import torch
from torch import Tensor

from cryofm_ops.fourier.grid import fourier_filter, half_shape
from cryofm_ops.testing._case import Case
from cryofm_ops.testing._expect import call, expect, expect_close, norm
from cryofm_ops.testing._operators import forward

__all__: list[str] = []


def moore_penrose(op: Any, case: Case) -> None:
    """A A⁺ A = A, A⁺ A A⁺ = A⁺, and A A⁺ and A⁺ A are symmetric (Penrose 1955)."""

    def pinv(y: Tensor) -> Tensor:
        return call(lambda: op.pinv(y.clone()), "A⁺ y", case).clone()

    x = case.volume()
    ax = forward(op, x, case)
    y, y2, x2 = case.drawn(ax.shape, 1), case.drawn(ax.shape, 2), case.drawn(x.shape, 3)
    py = pinv(y)
    expect_close(forward(op, pinv(ax), case), ax, 0, "A A⁺ A x equal to A x", case, rtol=1e-6)
    expect_close(pinv(forward(op, py, case)), py, 0, "A⁺ A A⁺ y equal to A⁺ y", case, rtol=1e-6)
    for what, u, fu, v, fv in (
        ("A A⁺ symmetric", y, forward(op, py, case), y2, forward(op, pinv(y2), case)),
        ("A⁺ A symmetric", x, pinv(ax), x2, pinv(forward(op, x2, case))),
    ):
        scale = norm(fu) * norm(v) + norm(u) * norm(fv)
        expect_close((fu * v).sum(), (u * fv).sum(), scale, what, case, rtol=1e-6)


def transfer_grid(op: Any, case: Case) -> None:
    """The transfer is finite and on the half grid of the box."""
    _transfer(op, case)


def transfer_hermitian(op: Any, case: Case) -> None:
    """m(−k) = m(k)*, without which A x is complex."""
    m = _transfer(op, case).to(torch.complex128)
    expect_close(m, mate(m, case), 0, "m(−k) = m(k)* where k and −k are both on the half grid", case)


def transfer_is_operator(op: Any, case: Case) -> None:
    """A x multiplies the Fourier coefficients of x by the transfer."""
    x = case.volume()
    m = _transfer(op, case)
    expected = fourier_filter(x, m.to(torch.complex128 if m.is_complex() else torch.float64))
    made = forward(op, x, case)
    expect_close(made, expected, norm(x) * float(m.abs().max()), "A x by its transfer", case, rtol=1e-6)


def mate(half: Tensor, case: Case) -> Tensor:
    """The conjugate at −k where that lies on the half grid; itself elsewhere."""
    flipped = half.conj().flip(-3, -2).roll((1, 1), (-3, -2))
    out = half.clone()
    columns = [0] if case.shape[2] % 2 else [0, half.shape[-1] - 1]
    out[..., columns] = flipped[..., columns]
    return out


def _transfer(op: Any, case: Case) -> Tensor:
    m = call(lambda: op.transfer(case.shape), "transfer(shape)", case)
    half = half_shape(case.shape)
    expect(tuple(m.shape[-3:]) == half, f"a transfer on the half grid {half}", f"shape {tuple(m.shape)}", case)
    return m.to(case.device)
