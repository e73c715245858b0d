"""How large a particle is."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryofm_io.checks import all_finite, positive

__all__ = ["particle_diameter"]

_LEVEL = 0.1  # of the highest density: where a particle ends
_CHANCE = 3.0  # standard deviations of the solvent
_HIGHEST, _FARTHEST = 99.9, 99.9  # percentiles


def particle_diameter(data: NDArray[Any], voxel_size: float) -> float:
    """Twice the largest distance from the centre of mass of what is dense, in Å.

    Dense is what exceeds a tenth of the highest density over the solvent, and three standard deviations of the solvent,
    and is connected with the most of it. The solvent is the median outside the largest sphere.

    Args:
        data: Density ``(z, y, x)``, protein positive; filter it first if it is noisy.
        voxel_size: Å.

    Returns:
        The diameter; 0 where nothing is dense.

    Raises:
        GeometryError: The voxel size is not positive, or a value is NaN or infinite.

    Example:
        >>> grid = np.indices((32, 32, 32)) - 16
        >>> round(particle_diameter((np.square(grid).sum(0) <= 8**2).astype(float), 2.0))
        34
    """
    from scipy.ndimage import gaussian_filter, label

    positive("voxel size", voxel_size, "Å")
    all_finite("a map's values", data)
    axes = np.meshgrid(*(np.arange(n) - n // 2 for n in data.shape), indexing="ij")
    outside = data[np.square(axes).sum(0) > (min(data.shape) / 2 - 1) ** 2]
    solvent = float(np.median(outside))
    chance = _CHANCE * 1.4826 * float(np.median(np.abs(outside - solvent)))
    density = data - solvent
    dense = density > max(_LEVEL * float(np.percentile(density, _HIGHEST)), chance)
    if not dense.any():
        return 0.0
    labelled: Any = label(dense, np.ones((3, 3, 3)))
    parts: NDArray[np.int32] = labelled[0]
    seed = np.unravel_index(np.where(dense, gaussian_filter(density, 2), -np.inf).argmax(), data.shape)
    part = parts == parts[seed]
    centre = [float((density * axis)[part].sum() / density[part].sum()) for axis in axes]
    squared = np.square([axis[part] - c for axis, c in zip(axes, centre, strict=True)]).sum(0)
    return voxel_size * (2 * math.sqrt(float(np.percentile(squared, _FARTHEST))) + 1)
