"""Data with outliers: noise with the heavy tails of Student's t."""

import math

import attrs
from torch import Tensor

from cryofm_ops._checks import check_observation
from cryofm_ops.errors import GridMismatchError, NoiseError
from cryofm_ops.protocols import Operator

__all__ = ["StudentTLikelihood"]


def _check_positive(_: object, field: "attrs.Attribute[float]", value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise NoiseError(f"the {field.name} of Student's t must be positive and finite, got {value}")


@attrs.frozen(eq=False)
class StudentTLikelihood:
    """y = A x + n, n independent of Student's t: log p = −(ν + 1)/2 Σ log(1 + r² / (ν s²)). A `Likelihood`.

    Near 0 it is a normal distribution of standard deviation s √(ν / (ν + 1)); a residual of many s pulls the less the
    larger it is, as a hot pixel or an aligned-away particle should (Lange, Little & Taylor, JASA 84, 1989).

    Attributes:
        operator: A.
        observation: y, of the shape that the operator makes of one volume, or with leading batch axes.
        scale: s, in data units.
        degrees: ν; 4 is robust, and from 30 on it is nearly normal.

    Raises `NoiseError`, `ObservationError`, and `GridMismatchError` for a volume of another box.

    >>> import torch
    >>> from cryofm_ops import Identity
    >>> y = StudentTLikelihood(Identity(), torch.zeros(1, 1, 2), scale=0.1)
    >>> x = torch.tensor([[[0.1, 10.0]]], requires_grad=True)
    >>> y.log_prob(x).backward()
    >>> x.grad  # the outlier pulls less
    tensor([[[-10.0000,  -0.4998]]])
    """

    operator: Operator
    observation: Tensor = attrs.field(validator=check_observation)
    scale: float = attrs.field(converter=float, validator=_check_positive)
    degrees: float = attrs.field(default=4.0, converter=float, validator=_check_positive)

    def log_prob(self, x: Tensor, /) -> Tensor:
        """−(ν + 1)/2 Σ log(1 + (A x − y)² / (ν s²)), `(*batch,)`, for x `(*batch, z, y, x)`."""
        made = self.operator(x)
        one = made.shape[x.ndim - 3 :]
        if self.observation.shape[-len(one) :] != one:
            raise GridMismatchError(
                f"the operator makes {tuple(one)} of a volume {tuple(x.shape[-3:])}, but the observation has shape "
                f"{tuple(self.observation.shape)}"
            )
        r = (made - self.observation.to(made)) / self.scale
        each = -(self.degrees + 1) / 2 * (r.square() / self.degrees).log1p()
        return each.reshape(*each.shape[: each.ndim - len(one)], -1).sum(-1)
