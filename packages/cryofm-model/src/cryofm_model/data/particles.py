"""Whole particles in a small box: what a prior of global shape is trained on (needs scipy, extra ``[train]``)."""

import numpy as np
from numpy.typing import NDArray

from cryofm_model._kinds import positive, whole
from cryofm_model.errors import CryoFMError

__all__ = ["FILLED", "LOW_PASS", "whole_particle", "working_voxel_size"]

FILLED = 26 / 32
"""How much of the box's side a particle may fill."""
LOW_PASS = 2.4
"""Resolution, in voxels: the spectrum falls from 1 to 0 over the last 10 % before it."""
_LEVEL = 0.1  # of the highest density: where a particle ends


def working_voxel_size(diameter: float, box: int, finest: float) -> float:
    """The voxel size, in Å, at which a particle of that diameter fills 26/32 of a box, or ``finest`` if it is smaller.

    >>> working_voxel_size(100.0, 32, finest=5.0), working_voxel_size(208.0, 32, finest=5.0)
    (5.0, 8.0)
    """
    return max(finest, diameter / (FILLED * box))


def whole_particle(
    density: NDArray[np.floating],
    voxel_size: float,
    box: int,
    *,
    finest: float,
    rotation: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float32], float]:
    """A map turned, low-passed and resampled to a box that holds the whole particle, centre of mass in voxel n // 2.

    Args:
        density: (z, y, x), protein positive, solvent 0.
        voxel_size: of the map, Å.
        box: side of the result, voxels.
        finest: least voxel size of the result, Å.
        rotation: 3 × 3, object to view, vectors (x, y, z).

    Returns:
        The particle (box, box, box), low-passed at `LOW_PASS` voxels, and its voxel size in Å (`working_voxel_size`).

    Raises:
        CryoFMError: no density, or a voxel size or a side that is none.
    """
    positive.check("voxel_size", voxel_size)
    positive.check("finest", finest)
    whole(1, 2**12).check("box", box)
    from scipy.fft import irfftn, rfftn
    from scipy.ndimage import map_coordinates

    solid = np.maximum(density, 0)
    if not np.isfinite(solid).all() or (top := float(np.percentile(solid, 99.9))) == 0:
        raise CryoFMError("no density: a particle is where a map is positive, and finite everywhere")
    voxels = np.argwhere(solid > _LEVEL * top)
    masses = solid[tuple(voxels.T)].astype(np.float64)
    centre = masses @ voxels / masses.sum()
    diameter = 2 * voxel_size * float(np.sqrt(((voxels - centre) ** 2).sum(1).max()))
    coarse = working_voxel_size(diameter, box, finest)

    z, y, x = density.shape
    k2 = np.fft.fftfreq(z)[:, None, None] ** 2 + np.fft.fftfreq(y)[:, None] ** 2 + np.fft.rfftfreq(x) ** 2
    edge = np.clip((np.sqrt(k2) * LOW_PASS * coarse / voxel_size - 0.9) / 0.1, 0, 1)
    smooth = irfftn(np.asarray(rfftn(density)) * (0.5 * (1 + np.cos(np.pi * edge))), s=density.shape)

    step = coarse / voxel_size
    offsets = step * (np.stack(np.meshgrid(*3 * [np.arange(box)], indexing="ij")) - box // 2)
    if rotation is not None:  # p = R x, so the density at p in the view is the object's at Rᵀ p; (z, y, x) here
        offsets = np.einsum("ij,j...->i...", rotation[::-1, ::-1].T, offsets)
    at = offsets + centre[:, None, None, None]
    particle = map_coordinates(np.asarray(smooth), at, order=3, mode="constant")
    return np.asarray(particle, np.float32), coarse
