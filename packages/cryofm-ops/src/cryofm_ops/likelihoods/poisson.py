"""Counts: data whose noise is that of single events."""

import math

import attrs
import torch
from torch import Tensor

from cryofm_ops._checks import check_observation
from cryofm_ops.errors import GridMismatchError, ObservationError, OperatorError
from cryofm_ops.protocols import Operator

__all__ = ["PoissonLikelihood"]


def _check_counts(_: object, __: object, counts: Tensor) -> None:
    check_observation(None, None, counts)
    if (counts < 0).any():
        raise ObservationError(f"counts must not be negative, got {float(counts.min()):g}")


def _check_least(_: object, __: object, least: float) -> None:
    if not (least > 0 and math.isfinite(least)):
        raise OperatorError(f"least must be positive and finite, got {least}")


@attrs.frozen(eq=False)
class PoissonLikelihood:
    """y ~ Poisson(λ), λ = A x + background: log p = Σ y log λ − λ + const. A `Likelihood`.

    No x may be forbidden, not even one whose λ is negative: below `least` the logarithm goes on as its parabola there,
    so that log p stays concave where A is linear (as in emission tomography: Fessler & Hero, IEEE Trans. Image Process.
    4, 1995).

    Attributes:
        operator: A, in counts: `dose * A`, for instance.
        counts: y, not negative, of the shape that the operator makes of one volume, or with leading batch axes.
        background: counts that are there without the object, a number or of the shape of the counts.
        least: the rate, in counts, below which the parabola begins.

    Raises `ObservationError`, `OperatorError`, and `GridMismatchError` for a volume of another box.

    >>> from cryofm_ops import Identity
    >>> counts = PoissonLikelihood(Identity(), torch.full((2, 2, 2), 9.0), background=4.0)
    >>> x = torch.full((2, 2, 2), 5.0, requires_grad=True)
    >>> counts.log_prob(x).backward()
    >>> x.grad.any()  # the rate is the count
    tensor(False)
    """

    operator: Operator
    counts: Tensor = attrs.field(validator=_check_counts)
    background: Tensor | float = 0.0
    least: float = attrs.field(default=0.5, converter=float, validator=_check_least)

    @property
    def dtype(self) -> torch.dtype:
        """That of the counts."""
        return self.counts.dtype

    def log_prob(self, x: Tensor, /) -> Tensor:
        """Σ y log λ − λ less its largest value for each y, `(*batch,)`, for x `(*batch, z, y, x)`."""
        made = self.operator(x)
        one = made.shape[x.ndim - 3 :]
        if self.counts.shape[-len(one) :] != one:
            raise GridMismatchError(
                f"the operator makes {tuple(one)} of a volume {tuple(x.shape[-3:])}, but the counts have shape "
                f"{tuple(self.counts.shape)}"
            )
        y, background = self.counts.to(made), torch.as_tensor(self.background).to(made)
        rate = made + background
        above = rate.clamp(min=self.least)
        below = (rate - above) / self.least  # 0 where the rate is above
        log = above.log() + below - below.square() / 2
        deviance = y * log - rate - torch.xlogy(y, y) + y
        return deviance.reshape(*deviance.shape[: deviance.ndim - len(one)], -1).sum(-1)
