"""A prior for data of another scale, or computed in another precision; whatever else it is, it stays."""

from collections.abc import Callable
from typing import cast

import attrs
import torch
from torch import Tensor

from cryofm_ops import Normalization
from cryofm_sampling._common import Oriented, copy_attributes
from cryofm_sampling.protocols import ConditionalVelocityField, VelocityField

__all__ = ["Autocast", "Rescaled"]

_CARRIED = ("signal_power", "denoising_error", "denoising_spectrum", "group", "region", "evaluations")


@attrs.frozen(eq=False, slots=False)
class Rescaled:
    """A velocity field in the units of another normalisation; itself a `VelocityField`.

    `Calibrated` exactly if the wrapped field is, and of its group of ranks if it has one.

    Attributes:
        velocity: the field, in model units.
        normalization: between model units and the data's, such as `fit_scale(...).normalization`.
        evaluated: is told, after every evaluation, of how many volumes it was; for progress bars.

    >>> from types import SimpleNamespace
    >>> rescaled = Rescaled(lambda x, t: 2 * x, SimpleNamespace(mean=0.0, std=3.0))
    >>> rescaled(torch.ones(4, 4, 4), torch.tensor(0.5)).mean()
    tensor(2.)
    """

    velocity: VelocityField
    normalization: Normalization
    evaluated: Callable[[int], object] | None = None

    def __attrs_post_init__(self) -> None:
        copy_attributes(self.velocity, self, *_CARRIED)
        if isinstance(self.velocity, Oriented):
            object.__setattr__(self, "turned", self._turned)

    def _turned(self, turn: Callable[[Tensor], Tensor], /) -> "Rescaled":
        return attrs.evolve(self, velocity=cast(Oriented, self.velocity).turned(turn))

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """The velocity at x `(*batch, z, y, x)` and t, a scalar or `(batch,)`."""
        velocity = self.velocity(x, t)
        if self.evaluated is not None:
            self.evaluated(x.shape[:-3].numel())
        return velocity


@attrs.frozen(eq=False, slots=False)
class Autocast:
    """A velocity field whose network computes in a lower precision; volumes, data and transforms keep theirs.

    Attributes:
        velocity: the field.
        dtype: such as `torch.bfloat16`, fast on processors with units for it and far slower on others.

    >>> Autocast(lambda x, t: x, torch.bfloat16)(torch.ones(4, 4, 4), torch.tensor(0.5)).dtype
    torch.float32
    """

    velocity: VelocityField
    dtype: torch.dtype

    def __attrs_post_init__(self) -> None:
        copy_attributes(self.velocity, self, *_CARRIED, "normalization", "tag", "weight")
        if isinstance(self.velocity, ConditionalVelocityField):
            object.__setattr__(self, "given", self._given)

    def _given(self, x: Tensor, t: Tensor, volume: Tensor | None, tag: int | None, /) -> Tensor:
        with torch.autocast(x.device.type, self.dtype):
            return cast(ConditionalVelocityField, self.velocity).given(x, t, volume, tag)

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """The velocity at x `(*batch, z, y, x)` and t, a scalar or `(batch,)`."""
        with torch.autocast(x.device.type, self.dtype):
            return self.velocity(x, t)
