"""A prior that is shown a volume, with classifier-free guidance (Ho and Salimans, 2022); itself a velocity field.

A network that was trained with and without the volume y knows both v(x_t, t | y) and v(x_t, t). Guidance of weight w
goes beyond the first, away from the second:

    v = (1 + w) v(x_t, t | y) − w v(x_t, t).

With w > 0 that is the flow of no data at all, so that samples of it, and what a likelihood makes of it, are sharper
than the posterior and not calibrated.
"""

import math
from collections.abc import Callable
from typing import Self

import attrs
import torch
from torch import Tensor

from cryofm_sampling._common import copy_attributes, missing
from cryofm_sampling.errors import CapabilityError, GridMismatchError, SettingError
from cryofm_sampling.protocols import ConditionalVelocityField

__all__ = ["Conditioned"]

_CARRIED = ("signal_power", "denoising_error", "denoising_spectrum", "normalization", "group")


def _conditional(instance: object, attribute: object, prior: ConditionalVelocityField) -> None:
    if not isinstance(prior, ConditionalVelocityField):
        raise CapabilityError(f"Conditioned needs a ConditionalVelocityField; {missing(prior, 'given')}")


def _weight(instance: object, attribute: object, weight: float | None) -> None:
    if weight is not None and not 0 <= weight < math.inf:
        raise SettingError(f"weight must be a finite number from 0, got {weight!r}")


@attrs.frozen(eq=False, slots=False)
class Conditioned:
    """A conditional prior and the volume that it is shown; itself a `VelocityField`.

    `Calibrated` exactly if the prior is, and with its normalisation. For a box larger than the prior's own give it
    `Tiled`: every tile is shown its part of the volume. What is restored with it has seen the volume: halves that are
    shown the same one, such as their mean, cannot check each other.

    Attributes:
        prior: a velocity field that may be shown a volume.
        volume: `(z, y, x)`, in the prior's model units; the same beside every x of a batch.
        tag: of the kind of volume, where the prior knows several; None: the prior's own.
        weight: w of guidance; above 0 a call is two evaluations, and counted as two. None: as the prior's `.weight`
            advises, 0 if it has none.

    >>> class Shown:  # data that are the volume, and nothing else known of them: white
    ...     def given(self, x, t, volume, tag):
    ...         return x / (2 * t * t - 2 * t + 1) * (2 * t - 1) if volume is None else (x - volume) / t
    >>> prior = Conditioned(Shown(), torch.ones(8, 8, 8))
    >>> from cryofm_sampling import Flow
    >>> Flow(4)(prior, shape=(8, 8, 8), generator=torch.Generator().manual_seed(0)).x.mean()
    tensor(1.)
    """

    prior: ConditionalVelocityField = attrs.field(validator=_conditional)
    volume: Tensor = attrs.field(repr=False)
    tag: int | None = attrs.field(default=None, kw_only=True)
    weight: float | None = attrs.field(default=None, kw_only=True, validator=_weight)

    def __attrs_post_init__(self) -> None:
        if self.volume.ndim != 3 or not self.volume.isfinite().all():
            raise SettingError(f"volume must be (z, y, x) and finite, got {tuple(self.volume.shape)}")
        if self.weight is None:
            object.__setattr__(self, "weight", float(getattr(self.prior, "weight", 0.0)))
        copy_attributes(self.prior, self, *_CARRIED)

    @property
    def evaluations(self) -> int:
        """Of the network, in a call."""
        return 2 if self.weight else 1

    def turned(self, turn: Callable[[Tensor], Tensor], /) -> Self:
        """The same where everything is turned, x and the volume."""
        return attrs.evolve(self, volume=turn(self.volume[None])[0])

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """The velocity at x `(*batch, z, y, x)` and t, a scalar or `(batch,)`."""
        try:
            volume = self.volume.to(x).expand(x.shape)
        except RuntimeError:
            raise GridMismatchError(f"the volume shown is {tuple(self.volume.shape)}, x {tuple(x.shape)}") from None
        v = self.prior.given(x, t, volume, self.tag)
        if not self.weight:
            return v
        return torch.lerp(self.prior.given(x, t, None, self.tag), v, 1 + self.weight)
