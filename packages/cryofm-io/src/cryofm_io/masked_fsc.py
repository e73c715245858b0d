"""What a mask does to the FSC, and the part of it that the mask itself makes.

Chen et al., Ultramicroscopy 135:24, 2013: the phases of both halves are made random beyond a resolution; what the
masked halves then still share is the mask's doing, and comes off.
"""

from typing import Any

import attrs
import numpy as np
import scipy  # its parts load when they are needed
from numpy.typing import NDArray

from cryofm_io.checks import positive
from cryofm_io.fsc import FscCurve, fsc, transform

__all__ = ["MaskedFsc", "masked_fsc"]

_TRUE_UP_TO = 0.8  # of the unmasked FSC: phases coarser than that stay
_BEYOND = 2  # shells from there on, where the correction begins, as in RELION


@attrs.frozen(eq=False)
class MaskedFsc:
    """FSC between halves without mask, with it, and with it after its own part is taken off.

    Args:
        unmasked: Of the halves as they are.
        masked: Of the halves times the mask.
        randomised: Of the halves times the mask, their phases random beyond ``randomised_from``.
        corrected: (masked − randomised) / (1 − randomised) from two shells beyond there; coarser, the masked one.
        randomised_from: Å; None where the unmasked FSC never falls below 0.8, so that nothing can be corrected.
    """

    unmasked: FscCurve
    masked: FscCurve
    randomised: FscCurve
    corrected: FscCurve
    randomised_from: float | None


def masked_fsc(
    half1: NDArray[Any], half2: NDArray[Any], voxel_size: float, mask: NDArray[Any], *, seed: int = 0
) -> MaskedFsc:
    """FSC between two halves inside a mask, corrected for what the mask adds.

    Args:
        half1: ``(z, y, x)``, raw.
        half2: ``(z, y, x)``, raw.
        voxel_size: Å.
        mask: ``(z, y, x)``, soft.
        seed: Of the random phases.

    Raises:
        GridMismatchError: The shapes differ.
        GeometryError: The maps are not three-dimensional or the voxel size is not positive.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> mask = np.zeros((24, 24, 24))
        >>> mask[9:15, 9:15, 9:15] = 1
        >>> bump = 30 * scipy.ndimage.gaussian_filter(mask, 2)
        >>> curves = masked_fsc(bump + rng.normal(size=mask.shape), bump + rng.normal(size=mask.shape), 1.5, mask)
        >>> bool(abs(curves.corrected.correlation[-6:]).mean() < 0.3), round(curves.randomised_from)
        (True, 9)
    """
    unmasked, masked = fsc(half1, half2, voxel_size), fsc(half1, half2, voxel_size, mask)
    below = np.flatnonzero(np.nan_to_num(unmasked.correlation) < _TRUE_UP_TO)
    if not below.size:
        return MaskedFsc(unmasked, masked, masked, masked, None)
    first = int(below[0])
    rng = np.random.default_rng(seed)
    least = (first + 1 - 0.5) / (max(half1.shape) * positive("voxel size", voxel_size, "Å"))
    one, two = (_random_phases(half, least * voxel_size, rng) for half in (half1, half2))
    randomised = fsc(one, two, voxel_size, mask)
    with np.errstate(divide="ignore", invalid="ignore"):
        true = (masked.correlation - randomised.correlation) / (1 - randomised.correlation)
    corrected = np.where(np.arange(len(true)) >= first + _BEYOND, true, masked.correlation)
    curve = attrs.evolve(masked, correlation=np.where(np.isfinite(corrected), corrected, np.nan))
    return MaskedFsc(unmasked, masked, randomised, curve, float(1 / unmasked.frequency[first]))


def _random_phases(data: NDArray[Any], least: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Random phases from that frequency on, in cycles a voxel; amplitudes stay."""
    spectrum = transform(data)
    # White noise has phases with the symmetry of a real map; any others would change amplitudes on the way back.
    phases = transform(rng.standard_normal(data.shape, dtype=np.float32))
    z, y, x = np.fft.fftfreq(data.shape[0]), np.fft.fftfreq(data.shape[1]), np.fft.rfftfreq(data.shape[2])
    lateral = y[:, None] ** 2 + x**2
    for plane, phase, kz in zip(spectrum, phases, z, strict=True):
        beyond = np.sqrt(kz**2 + lateral) >= least
        plane[beyond] = np.abs(plane[beyond]) * phase[beyond] / np.abs(phase[beyond]).clip(1e-30)
    return np.asarray(scipy.fft.irfftn(spectrum, s=data.shape, norm="ortho"), dtype=np.float32)
