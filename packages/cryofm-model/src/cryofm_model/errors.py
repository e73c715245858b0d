"""The errors of this package: one root, and one class per kind of cause that a caller may want to catch."""

__all__ = ["CryoFMError", "WeightsError"]


class CryoFMError(ValueError):
    """Root of every error that this package raises on purpose; the message says what to do."""


class WeightsError(CryoFMError):
    """A weights file that does not fit: missing or unexpected keys, wrong shapes, not safetensors."""
