"""Which of the priors that ship fits the data."""

import math
from collections.abc import Sequence

import attrs

from cryofm_model._kinds import positive
from cryofm_model.data.particles import FILLED, working_voxel_size
from cryofm_model.errors import CryoFMError
from cryofm_model.prior import Prior

__all__ = ["COARSE", "FINE", "bundled_prior_for", "fitted_to_particle"]

COARSE = 3.5
"""Å a voxel, beyond which a prior of details has nothing to hold on to."""
FINE = 2.9
"""Å; data that reach further show what ``cryofm-tiny``, to 3 Å, does not know."""
_LEAST_FILLED = 1 / 3  # of the box of a prior of whole particles
_COARSENED = 2.0  # by which voxels may become coarser for a particle to fit


def bundled_prior_for(voxel_size: float, *, resolution: float = math.inf) -> str:
    """The name of the bundled prior that fits data of that voxel size and resolution.

    Args:
        voxel_size: of the maps, Å.
        resolution: to which they hold signal, Å: of half maps, where their FSC falls below 0.143; infinite where it is
            not known.

    Raises:
        CryoFMError: a number is not positive.

    >>> bundled_prior_for(1.06, resolution=3.4), bundled_prior_for(1.0, resolution=2.1), bundled_prior_for(8.0)
    ('cryofm-tiny', 'cryofm-tiny-fine', 'cryofm-tiny-particles')
    """
    positive.check("voxel_size", voxel_size)
    if not resolution > 0:
        raise CryoFMError(f"resolution must be positive, not {resolution}")
    if voxel_size > COARSE:
        return "cryofm-tiny-particles"
    return "cryofm-tiny-fine" if resolution < FINE else "cryofm-tiny"


def fitted_to_particle(prior: Prior, diameter: float, *, voxel_size: float, shape: Sequence[int]) -> Prior:
    """A prior of whole particles, its voxels set so that one of that size fills its box as those of its training did.

    Args:
        prior: ``cryofm-tiny-particles``, or one that was trained likewise.
        diameter: of the particle, Å (`cryofm_io.particle_diameter`).
        voxel_size: of the maps, Å.
        shape: of the maps, voxels.

    Returns:
        The prior, whose box holds all of a map at once, for global shape is seen in one piece.

    Raises:
        CryoFMError: the particle is too large or too small for it.

    >>> from cryofm_model import load_prior
    >>> fitted_to_particle(load_prior("cryofm-tiny-particles"), 208.0, voxel_size=6.0, shape=(48, 48, 48)).voxel_size
    8.0
    """
    working = working_voxel_size(diameter, prior.box, voxel_size)
    least = _LEAST_FILLED * prior.box * voxel_size
    side = min(shape) * voxel_size
    if not least < diameter < side or working > _COARSENED * voxel_size:
        largest = _COARSENED * FILLED * prior.box * voxel_size
        raise CryoFMError(
            f"no bundled prior fits voxels of {voxel_size:.3g} Å: cryofm-tiny takes up to {COARSE:g} Å, and "
            f"cryofm-tiny-particles one whole particle of {least:.0f} to {largest:.0f} Å; what is dense here is "
            f"{diameter:.0f} Å across, in a box of {side:.0f} Å; it takes another prior"
        )
    return attrs.evolve(prior, voxel_size=working, box=max(prior.box, 2 * max(shape)))
