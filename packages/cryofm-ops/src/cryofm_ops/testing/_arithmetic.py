"""What an operator does to memory and to precision, check by check (level 0.2)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cryofm_ops.testing._case import Case
from cryofm_ops.testing._expect import call, expect, expect_close, norm
from cryofm_ops.testing._operators import forward

__all__: list[str] = []

_STEPS = (3e-8, 1e-4)  # finer than what float32 and float16 resolve


def result_is_own(op: Any, case: Case) -> None:
    """A result stays as it is when the operator is called again."""
    x = case.volume()
    first = call(lambda: op(x.clone()), "A x", case)
    kept = first.clone()
    call(lambda: op(case.drawn(x.shape, 1)), "A x", case)
    expect(torch.equal(first, kept), "A x to stay as it is", "a result that the next call writes into", case)


def any_layout(op: Any, case: Case) -> None:
    """A x does not depend on how x lies in memory: a transposed or sliced volume is a volume."""
    x = case.volume()
    turned = x.mT.contiguous().mT
    sparse = torch.stack((x, torch.full_like(x, 7 * case.unit)), -1)[..., 0]
    expected = forward(op, x, case)
    for what, other in (("transposed", turned), ("sliced", sparse)):
        found = call(lambda other=other: op(other), f"A x of an x that is {what} in memory", case)  # type: ignore[misc]
        fault = "another result for the same values in another layout"
        expect_close(found, expected, norm(expected), f"A x of an x that is {what} in memory", case, fault=fault)


def float64_kept(op: Any, case: Case) -> None:
    """Twice a step of any size makes twice the change: the arithmetic is that of float64 (nonlinear operators too)."""
    sees_small_steps(lambda v: forward(op, v, case), "A x", case)


def sees_small_steps(function: Callable[[Tensor], Tensor], what: str, case: Case) -> None:
    """A function of float64 changes twice as much for a step twice as large, also for tiny ones."""
    with torch.no_grad():
        x = case.volume()
        d, start = case.drawn(x.shape, 1), function(x)
        for h in _STEPS:
            one, two = function(x + h * d) - start, function(x + 2 * h * d) - start
            floor = 1e-11 * float(norm(start))  # float64's rounding, and far from float32's
            fault = f"float64 lost inside {what}, which works in lower precision"
            expect_close(two, 2 * one, floor, f"the change of {what} over steps of {h:g}", case, rtol=0.1, fault=fault)
