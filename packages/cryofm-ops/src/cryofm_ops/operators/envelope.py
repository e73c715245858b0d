"""The envelope of a reconstruction: what motion, errors of the poses and flexibility leave of its high frequencies."""

import math

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import OperatorError
from cryofm_ops.fourier.grid import Shape, frequencies
from cryofm_ops.operators.fourier import FourierOperator

__all__ = ["Envelope"]


def _check_finite(_: object, field: "attrs.Attribute[float]", value: float) -> None:
    if not math.isfinite(value):
        raise OperatorError(f"{field.name} of an envelope must be finite, in Å², got {value}")


def _check_positive(_: object, field: "attrs.Attribute[float]", value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise OperatorError(f"{field.name} of an envelope must be finite and positive, in Å, got {value}")


@attrs.frozen
class Envelope(FourierOperator):
    """Multiplies amplitudes by exp(−B ν² / 4), ν in 1/Å, as RELION and EMDB count B: power falls as exp(−B ν² / 2).

    Attributes:
        b_factor: B in Å²; 50 to 200 for unsharpened reconstructions. Below 0 it sharpens.
        voxel_size: in Å.

    Raises `OperatorError`.

    >>> Envelope(100.0, voxel_size=1.5).transfer((4, 4, 4))[0, 0]
    tensor([1.0000, 0.4994, 0.0622], dtype=torch.float64)
    """

    b_factor: float = attrs.field(converter=float, validator=_check_finite)
    voxel_size: float = attrs.field(converter=float, validator=_check_positive)

    def transfer(self, shape: Shape, /) -> Tensor:
        """From 1, on the half grid of `shape`, float64."""
        return torch.exp(-self.b_factor / 4 * (frequencies(shape) / self.voxel_size).square())

    def table(self, n: int, /) -> Tensor:
        """The same as a radial table of n entries, from frequency 0 to Nyquist; float64.

        >>> Envelope(100.0, voxel_size=1.5).table(3)
        tensor([1.0000, 0.4994, 0.0622], dtype=torch.float64)
        """
        frequency = torch.linspace(0, 0.5 / self.voxel_size, n, dtype=torch.float64)
        return torch.exp(-self.b_factor / 4 * frequency.square())
