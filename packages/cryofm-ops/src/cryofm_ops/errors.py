"""The errors of this package; every one is a `CryoFMError`, which is a `ValueError`."""

__all__ = [
    "ConvergenceError",
    "CryoFMError",
    "GeometryError",
    "GridMismatchError",
    "HalfMapError",
    "NoiseError",
    "ObservationError",
    "OperatorError",
]


class CryoFMError(ValueError):
    """Root of all errors: the message says what was found, where, and what to do."""


class GeometryError(CryoFMError):
    """Angles, rotations or sizes that no measurement can have."""


class GridMismatchError(CryoFMError):
    """Two arrays that must share a grid do not."""


class HalfMapError(CryoFMError):
    """Two half maps from which no noise can be estimated."""


class ObservationError(CryoFMError):
    """An observation that is not a finite real tensor."""


class OperatorError(CryoFMError):
    """An operator or a likelihood with impossible parameters, without a method, or that returns what it must not."""


class NoiseError(CryoFMError):
    """A noise model with impossible parameters, or asked for a density that it does not have."""


class ConvergenceError(CryoFMError):
    """An iterative solver that stopped before its tolerance was met."""
