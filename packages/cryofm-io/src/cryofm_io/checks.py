"""Numbers that must be what they are taken for; NaN passes none of these, as it passes comparisons."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryofm_io.errors import CryoFMError, GeometryError

__all__ = ["all_finite", "finite", "not_negative", "positive"]


def finite(name: str, value: float, unit: str = "") -> float:
    """The number, if it is neither NaN nor infinite."""
    return _checked(name, value, unit, "finite", math.isfinite)


def positive(name: str, value: float, unit: str = "") -> float:
    """The number, if it is finite and above 0.

    Example:
        >>> positive("voxel size", float("nan"), "Å")
        Traceback (most recent call last):
        cryofm_io.errors.GeometryError: voxel size nan Å: it must be positive
    """
    return _checked(name, value, unit, "positive", lambda x: math.isfinite(x) and x > 0)


def not_negative(name: str, value: float, unit: str = "") -> float:
    """The number, if it is finite and not below 0."""
    return _checked(name, value, unit, "positive or 0", lambda x: math.isfinite(x) and x >= 0)


def _checked(name: str, value: Any, unit: str, what: str, good: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise GeometryError(f"{name} {value!r} is no number; it must be {what}") from None
    if not good(number):
        raise GeometryError(f"{name} {number:g}{' ' * bool(unit)}{unit}: it must be {what}")
    return number


def all_finite(name: str, data: NDArray[Any], error: type[CryoFMError] = GeometryError) -> None:
    """Refuse values that are NaN or infinite."""
    if data.size and np.isfinite(data.min()) and np.isfinite(data.max()):  # no array of its own
        return
    if not data.size:
        raise error(f"{name}: no values at all (shape {data.shape})")
    index = tuple(int(i) for i in np.unravel_index(int(np.isfinite(data).argmin()), data.shape))
    raise error(f"{name}: a value of {data[index]} at {index}; every value must be finite")
