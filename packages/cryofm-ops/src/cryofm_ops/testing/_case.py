"""What a check is run on, how its inputs are drawn, and how it says what it found."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Literal, NoReturn

import attrs
import hypothesis
import torch
from hypothesis import Phase
from hypothesis import strategies as st
from torch import Tensor

from cryofm_ops.fourier.grid import Shape

__all__ = ["RTOL", "SHAPES", "Case", "ContractError", "call", "expect", "expect_close", "fail", "norm", "run"]

SHAPES: tuple[Shape, ...] = ((4, 4, 4), (5, 5, 5), (3, 4, 5))
RTOL = 1e-8
"""Relative error that float64 arithmetic may leave."""

Kind = Literal["normal", "zero", "delta", "constant", "checkerboard"]
KINDS: tuple[Kind, ...] = ("normal", "zero", "delta", "constant", "checkerboard")


class ContractError(AssertionError):
    """An object broke its contract: names the check, what was expected, what came, and the case."""


@attrs.frozen
class Case:
    """One input of a check; the same case always makes the same tensors.

    Attributes:
        shape: the box (z, y, x).
        batch: leading axes.
        kind: the volume: white noise, zero, one voxel, a constant, or ±1 alternating (the Nyquist corner).
        scale: its magnitude.
        seed: of every random tensor of the case.
        device: where the tensors are made.

    >>> Case((4, 4, 4), batch=(2,), kind="constant", scale=3.0).volume()[0, 0, 0]
    tensor([3., 3., 3., 3.], dtype=torch.float64)
    """

    shape: Shape
    batch: tuple[int, ...] = ()
    kind: Kind = "normal"
    scale: float = 1.0
    seed: int = 0
    device: str = "cpu"

    def volume(self) -> Tensor:
        """The input, `(*batch, z, y, x)`, float64. The first of a batch is of `kind`, the others are white noise."""
        x = self.normal((*self.batch, *self.shape), 0) * self.scale
        x.view(-1, *self.shape)[0] = self._first(x)
        return x

    def _first(self, x: Tensor) -> Tensor | float:
        if self.kind == "normal":
            return x.view(-1, *self.shape)[0].clone()
        if self.kind == "constant":
            return self.scale
        first = torch.zeros(self.shape, dtype=x.dtype, device=x.device)
        if self.kind == "delta":
            first.view(-1)[self.seed % math.prod(self.shape)] = self.scale
        elif self.kind == "checkerboard":
            z, y, width = (torch.arange(n, device=self.device) for n in self.shape)
            first += self.scale * (1 - 2 * ((z[:, None, None] + y[:, None] + width) % 2))
        return first

    def normal(self, size: Sequence[int], stream: int) -> Tensor:
        """White noise of unit variance; another `stream` is independent noise."""
        generator = torch.Generator().manual_seed(self.seed * 1009 + stream)
        return torch.randn(tuple(size), generator=generator, dtype=torch.float64).to(self.device)


def run(
    check: Callable[[Case], None], shapes: Sequence[Shape], device: str, *, plain: bool = False, examples: int = 12
) -> None:
    """Run a check on two volumes of every box, and on cases that Hypothesis draws.

    These are the same ones every time where CI is set. `plain` keeps to white noise of unit scale.
    """
    cases = st.builds(
        Case,
        shape=st.sampled_from(tuple(shapes)),
        batch=st.sampled_from(((), (1,), (2,), (2, 3))),
        kind=st.just("normal") if plain else st.sampled_from(KINDS),
        scale=st.just(1.0) if plain else st.sampled_from((1.0, 1e-3, 1e3)),
        seed=st.integers(0, 2**20),
        device=st.just(device),
    )
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=bool(os.environ.get("CI")),
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if examples > 6 else [])],  # the rare ones are slow
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    test = settings(hypothesis.given(cases)(check))
    for shape in shapes:
        test = hypothesis.example(Case(shape, batch=(2,), device=device))(test)
    test()


def expect(holds: bool, expected: str, came: str, case: Case) -> None:
    """Raise a `ContractError` unless `holds`."""
    if not holds:
        fail(expected, came, case)


def fail(expected: str, came: str, case: Case) -> NoReturn:
    """Raise a `ContractError`."""
    raise ContractError(f"expected {expected}; came {came}\n  reproduce with {case}")


def call(function: Callable[[], Tensor], what: str, case: Case) -> Tensor:
    """The tensor that `function` returns; anything else that happens is a `ContractError`."""
    try:
        result = function()
    except Exception as error:
        raise ContractError(
            f"expected {what} on a box {case.shape} with batch {case.batch}; "
            f"came {type(error).__name__}: {error}\n  reproduce with {case}\n"
            f"  (an object made for certain boxes is checked with shapes=[(z, y, x), ...])"
        ) from error
    expect(isinstance(result, Tensor), f"{what} to return a tensor", type(result).__name__, case)
    return result


def expect_close(
    actual: Tensor, expected: Tensor, scale: Tensor | float, what: str, case: Case, rtol: float = RTOL
) -> None:
    """Both tensors agree within `rtol` of the larger of their own norm and `scale`."""
    expect(
        actual.shape == expected.shape,
        f"{what} of shape {tuple(expected.shape)}",
        f"shape {tuple(actual.shape)}",
        case,
    )
    size = max(float(norm(expected)), float(scale))
    error = float(norm(actual - expected))
    expect(
        error <= rtol * size,  # NaN fails
        f"{what} within {rtol:.0e} of {size:.3g} in norm",
        f"a difference of {error:.3g}{_worst(actual, expected)}",
        case,
    )


def norm(x: Tensor) -> Tensor:
    """Euclidean norm over all axes."""
    return x.abs().square().sum().sqrt()


def _worst(actual: Tensor, expected: Tensor) -> str:
    """Where the difference is largest, and what was found there."""
    if actual.numel() == 0:
        return ""
    distance = (actual - expected).abs().nan_to_num(nan=math.inf)
    index = tuple(int(i) for i in torch.unravel_index(distance.argmax(), distance.shape))
    where = f", largest at index {index}" if index else ""
    return f"{where}: {actual[index].item():.6g} instead of {expected[index].item():.6g}"
