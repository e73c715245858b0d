"""Checks that several classes share."""

import math
from typing import Any

from torch import Tensor

from cryofm_ops.errors import CryoFMError, GridMismatchError, NoiseError, ObservationError, OperatorError
from cryofm_ops.fourier.grid import half_shape


def check_tensor(value: Any, what: str, error: type[CryoFMError]) -> None:
    """A tensor, where a numpy array is what people have."""
    if not isinstance(value, Tensor):
        how = "; torch.from_numpy makes one of it" if hasattr(value, "__array__") else ""
        raise error(f"{what} must be a tensor, got {type(value).__name__}{how}")


def check_object(value: Any, what: str) -> None:
    """An object, where the class itself is what people forget to call."""
    if isinstance(value, type):
        raise OperatorError(f"{what} is the class {value.__name__}; give an object of it, {value.__name__}(...)")


def writes_of(x: Tensor) -> int:
    """How often a tensor was written into; of one that does not count them, 0."""
    return 0 if x.is_inference() else x._version


def check_observation(_: Any, __: Any, y: Any) -> None:
    """An observation is a real, finite tensor (an attrs validator)."""
    check_tensor(y, "the observation", ObservationError)
    if not y.is_floating_point():
        raise ObservationError(f"the observation must be real floating point, got {y.dtype}")
    if y.dtype.itemsize < 4:
        raise ObservationError(f"the observation must be float32 or float64, got {y.dtype}")
    if not y.numel():
        raise ObservationError(f"the observation is empty, of shape {tuple(y.shape)}")
    check_finite(y, "the observation has")


def check_spectral_data(_: Any, __: Any, y: Tensor) -> None:
    """The data of a spectrum are finite, also where nothing was measured (an attrs validator)."""
    check_finite(y, "the spectral data have")


def check_finite(y: Tensor, has: str) -> None:
    """All values of y are finite; otherwise the message begins with what `has` those that are not."""
    wrong = ~y.isfinite()
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise ObservationError(
            f"{has} {int(wrong.sum())} values that are not finite, the first ({y[first].item()}) at index {first}"
        )


def check_variance(variance: Tensor | float, mean: Tensor) -> None:
    """A variance is finite, not negative, and white or on the half grid of the mean."""
    if isinstance(variance, Tensor):
        z, y, x = mean.shape[-3:]
        half = half_shape((z, y, x))
        if variance.ndim and (
            variance.ndim < 3 or any(v not in (1, h) for v, h in zip(variance.shape[-3:], half, strict=True))
        ):
            raise GridMismatchError(
                f"variance of shape {tuple(variance.shape)} is not on the half grid {half} "
                f"of a mean of shape {tuple(mean.shape)}"
            )
        low, high = (float(v) for v in variance.aminmax())
    else:
        low = high = float(variance)
    if not 0 <= low <= high < math.inf:  # NaN fails
        raise NoiseError(f"variance must be finite and not negative, got {variance}")


def check_precision(_: Any, __: Any, w: Tensor) -> None:
    """A spectral precision is real and not negative; infinite is allowed (an attrs validator)."""
    if not w.is_floating_point():
        raise NoiseError(f"spectral precision must be real floating point, got {w.dtype}")
    wrong = ~(w >= 0)
    if wrong.any():
        raise NoiseError(f"spectral precision must not be negative or NaN, got {w[wrong][0]}")
