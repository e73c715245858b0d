"""How a check says what it expected and what came."""

import math
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

from cryofm_ops.testing._case import Case, ContractError

__all__ = ["RTOL", "call", "each_alone", "expect", "expect_close", "expect_finite", "fail", "norm", "pick", "unchanged"]

RTOL = 1e-8
"""Relative error that float64 arithmetic may leave."""


def expect(holds: bool, expected: str, came: str, case: Case) -> None:
    """Raise a `ContractError` unless `holds`."""
    if not holds:
        fail(expected, came, case)


def fail(expected: str, came: str, case: Case) -> NoReturn:
    """Raise a `ContractError`."""
    raise ContractError(f"expected {expected}; came {came}\n  reproduce with {case}")


def call(function: Callable[[], Tensor], what: str, case: Case, *, infinite: bool = False) -> Tensor:
    """The finite tensor that `function` returns; anything else that happens is a `ContractError`.

    `infinite` allows infinity, but no NaN.
    """
    try:
        result = function()
    except ContractError:
        raise
    except Exception as error:
        raise ContractError(
            f"expected {what} on a box {case.shape} with batch {case.batch}; "
            f"came {type(error).__name__}: {error}\n  reproduce with {case}\n"
            f"  (an object made for certain boxes is checked with shapes=[(z, y, x), ...])"
        ) from error
    expect(isinstance(result, Tensor), f"{what} to return a tensor", type(result).__name__, case)
    expect_finite(result, what, case, infinite=infinite)
    return result


def expect_finite(x: Tensor, what: str, case: Case, *, infinite: bool = False) -> None:
    """No value is NaN, nor infinite unless that is allowed."""
    wrong = x.isnan() if infinite else ~x.isfinite()
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        fail(
            f"{what} {'without NaN' if infinite else 'finite'} at values of magnitude {case.magnitude:g}",
            f"{'NaN' if x.isnan().any() else 'infinity'} in {int(wrong.sum())} of {x.numel()} values, "
            f"the first {x[first].item()} at index {first} (data of another magnitude are checked with scale=)",
            case,
        )


def expect_close(
    actual: Tensor,
    expected: Tensor,
    scale: Tensor | float,
    what: str,
    case: Case,
    rtol: float = RTOL,
    fault: str = "",
) -> None:
    """Both tensors agree within `rtol` of the larger of their own norm and `scale`; `fault` names it if they do not."""
    expect(
        actual.shape == expected.shape,
        f"{what} of shape {tuple(expected.shape)}",
        f"shape {tuple(actual.shape)}",
        case,
    )
    size = max(float(norm(expected)), float(scale))
    difference = torch.where(actual == expected, 0, actual - expected)  # infinity equals itself
    error = float(difference.abs().square().sum().sqrt())
    expect(
        error <= rtol * size,  # NaN fails
        f"{what} within {rtol:.0e} of {size:.3g} in norm",
        f"{fault}{': ' if fault else ''}a difference of {error:.3g}{_worst(actual, expected)}",
        case,
    )


def norm(x: Tensor) -> Tensor:
    """Euclidean norm over all axes, of what is finite."""
    return torch.where(x.isfinite(), x, 0).abs().square().sum().sqrt()


def each_alone(function: Callable[[Tensor], Tensor], x: Tensor, what: str, case: Case) -> Tensor:
    """`function` of every element of the batch of x by itself, with the batch back in front."""
    depth = len(case.batch)
    flat = x.flatten(0, depth - 1) if depth else x[None]
    alone = [call(lambda v=v: function(v.clone()), what, case, infinite=True) for v in flat]  # type: ignore[misc]
    expect(
        all(a.shape == alone[0].shape for a in alone),
        f"{what} of one shape",
        ", ".join(sorted({str(tuple(a.shape)) for a in alone})),
        case,
    )
    return torch.stack(alone).reshape((*case.batch, *alone[0].shape))


def unchanged(function: Callable[[], Tensor], argument: Tensor, what: str, case: Case) -> Tensor:
    """The result of a function that must not write into `argument`."""
    before = argument.detach().clone()
    result = call(function, what, case, infinite=True)
    if not torch.equal(argument, before):
        fail(f"{what} to leave its argument alone", "a changed input: it is written into", case)
    return result


def pick(n: int, most: int, case: Case, stream: int) -> Tensor:
    """At most `most` of n indices, at random."""
    if n <= most:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(case.seed + stream))[:most]


def _worst(actual: Tensor, expected: Tensor) -> str:
    """Where the difference is largest, and what was found there."""
    if actual.numel() == 0:
        return ""
    distance = torch.where(actual == expected, 0, actual - expected).abs().nan_to_num(nan=math.inf)
    index = tuple(int(i) for i in torch.unravel_index(distance.argmax(), distance.shape))
    where = f", largest at index {index}" if index else ""
    return f"{where}: {actual[index].item():.6g} instead of {expected[index].item():.6g}"
