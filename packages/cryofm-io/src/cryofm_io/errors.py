"""Everything this package raises or warns with.  Each message says what was found, where, and what to do."""

__all__ = [
    "CryoFMError",
    "GeometryError",
    "GridMismatchError",
    "HalfMapError",
    "InUseError",
    "InputFileError",
    "MapWarning",
    "MaskError",
    "MissingExtraError",
    "OutputExistsError",
]


class CryoFMError(ValueError):
    """Root of the errors of this package."""


class InputFileError(CryoFMError):
    """A file is missing, damaged, of another kind, or holds values that no map has."""


class GeometryError(CryoFMError):
    """Shapes, voxel sizes, cell angles or lengths that cannot be worked with."""


class GridMismatchError(CryoFMError):
    """Two maps that should lie on one grid differ in shape, voxel size or position."""


class HalfMapError(CryoFMError):
    """Two half maps from which the noise cannot be estimated."""


class MaskError(CryoFMError):
    """A mask off the map's grid, outside [0, 1], or empty."""


class OutputExistsError(CryoFMError):
    """The output is there already and overwriting was not asked for."""


class InUseError(OutputExistsError):
    """Another run writes there at this moment."""


class MissingExtraError(CryoFMError, ImportError):
    """An optional dependency is not installed."""


class MapWarning(UserWarning):
    """Something about a map that is suspicious but can be worked with."""
