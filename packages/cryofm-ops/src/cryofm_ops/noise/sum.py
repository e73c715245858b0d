"""The sum of independent stationary noises: the powers add."""

from collections.abc import Iterable

import attrs
from torch import Tensor

from cryofm_ops.errors import NoiseError
from cryofm_ops.fourier.grid import Shape
from cryofm_ops.noise.stationary import StationaryNoise
from cryofm_ops.protocols import SpectralPower

__all__ = ["NoiseSum"]


def _parts(noises: Iterable[SpectralPower]) -> tuple[SpectralPower, ...]:
    return tuple(noises)


def _check_parts(_: object, __: object, noises: tuple[SpectralPower, ...]) -> None:
    if not noises:
        raise NoiseError("a sum of noises needs at least one noise")
    for noise in noises:
        if not isinstance(noise, SpectralPower):
            raise NoiseError(f"only stationary noises can be summed: {type(noise).__name__} has no power(shape)")


@attrs.frozen(eq=False)
class NoiseSum(StationaryNoise):
    """n = n₁ + n₂ + …, independent: a stationary noise of the summed power. A `Noise` and `SpectralPower`.

    Attributes:
        noises: each a `SpectralPower`; anything else is a `NoiseError`.

    >>> import torch
    >>> from cryofm_ops import WhiteNoise
    >>> NoiseSum([WhiteNoise(0.3), WhiteNoise(0.4)]).precision(torch.ones(1, 1, 1))
    tensor([[[4.]]])
    """

    noises: tuple[SpectralPower, ...] = attrs.field(converter=_parts, validator=_check_parts)

    def power(self, shape: Shape, /) -> Tensor:
        """The sum of the powers on the half grid of `shape`."""
        first, *others = (noise.power(shape) for noise in self.noises)
        for power in others:
            first = first + power.to(first.device)
        return first
