"""The errors of this package; the root is the one of cryofm-ops."""

from cryofm_ops import CryoFMError, GridMismatchError

__all__ = ["CapabilityError", "CheckpointError", "CryoFMError", "GridMismatchError", "MisfitWarning", "SettingError"]


class CapabilityError(CryoFMError):
    """A likelihood or a velocity field lacks what an algorithm needs."""


class CheckpointError(CryoFMError):
    """A checkpoint cannot be gone on from."""


class SettingError(CryoFMError):
    """An algorithm was given a setting outside its range."""


class MisfitWarning(UserWarning):
    """A result explains its data worse than it should."""
