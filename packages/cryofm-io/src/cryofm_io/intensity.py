"""Density values: between a map's own scale and 0..1."""

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.checks import all_finite, finite
from cryofm_io.errors import CryoFMError, InputFileError

__all__ = ["Affine", "normalise_clean"]


def _not_zero(instance: "Affine", attribute: Any, value: float) -> None:
    if value == 0 or not np.isfinite(value):
        raise CryoFMError(f"a scale of {value} cannot be undone; it must be finite and not zero")


def _finite(instance: "Affine", attribute: Any, value: float) -> None:
    finite("offset", value)


@attrs.frozen
class Affine:
    """``x * scale + offset``, and the way back.

    Args:
        scale: Factor; not zero.
        offset: Added after scaling.

    Raises:
        CryoFMError: The scale is zero, or either is not finite.

    Example:
        >>> to_model = Affine(scale=2.0, offset=-1.0)
        >>> float(to_model.inverse(to_model.forward(0.25)))
        0.25
    """

    scale: float = attrs.field(converter=float, validator=_not_zero)
    offset: float = attrs.field(default=0.0, converter=float, validator=_finite)

    def forward(self, x: Any) -> Any:
        """From the map's scale; arrays, tensors and numbers, of any shape."""
        return x * self.scale + self.offset

    def inverse(self, x: Any) -> Any:
        """Back to the map's scale."""
        return (x - self.offset) / self.scale


def normalise_clean(data: NDArray[Any], *, clip: bool = True) -> tuple[NDArray[np.float32], Affine]:
    """Clip a clean map to [0, p] and scale it to 0..1, where p is its 99.999th percentile.

    For maps without much noise, as CryoFM was trained on (paper, section 4.1).  Clipping a noisy half map
    would bias its noise: scale that with an `Affine` only.

    Args:
        data: Density of any shape, protein positive.
        clip: False scales alone and keeps negative density and outliers, as CryoFM's second generation was trained.

    Returns:
        The scaled density as float32, and the scale, whose ``inverse`` brings results back.

    Raises:
        InputFileError: There is no positive density, or a value is NaN or infinite.

    Example:
        >>> scaled, scale = normalise_clean(np.linspace(-1, 4, 101).reshape(101, 1, 1))
        >>> float(scaled.min()), float(scaled.max()), round(scale.inverse(1.0), 3)
        (0.0, 1.0, 4.0)
    """
    all_finite("a map's values", data, InputFileError)
    top = float(np.percentile(data, 99.999))
    if not top > 0:
        raise InputFileError(f"no positive density (99.999th percentile {top:g}); is the contrast inverted?")
    scale = Affine(1 / top)
    scaled = (np.clip(data, 0, top) if clip else np.array(data)).astype(np.float32, copy=False)
    scaled *= np.float32(scale.scale)
    return scaled, scale
