"""What a mask does to the FSC, and the part of it that the mask itself makes.

Chen et al., Ultramicroscopy 135:24, 2013: the phases of both halves are made random beyond a resolution; what the
masked halves then still share is the mask's doing, and comes off.
"""

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import scipy  # its parts load when they are needed
from numpy.typing import NDArray

from cryofm_io.checks import positive
from cryofm_io.errors import GridMismatchError
from cryofm_io.filters import multiply
from cryofm_io.fsc import FscCurve, curve_of_sums, shell_sums, something_in, transform, unit

__all__ = ["MaskedFsc", "masked_fsc"]

_TRUE_UP_TO = 0.8  # of the unmasked FSC: phases coarser than that stay
_FAINT = 1e-8  # of the strongest shell's power, that is brought to one with the others
_BEYOND = 2  # shells from there on, where the correction begins, as in RELION


Spectrum = NDArray[np.complexfloating[Any, Any]]


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
        GeometryError: The maps are not three-dimensional, a value is not finite, or the voxel size is not positive.
        MaskError: The mask is 0 throughout, or a value of it is not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> mask = np.zeros((24, 24, 24))
        >>> mask[9:15, 9:15, 9:15] = 1
        >>> bump = 30 * scipy.ndimage.gaussian_filter(mask, 2)
        >>> curves = masked_fsc(bump + rng.normal(size=mask.shape), bump + rng.normal(size=mask.shape), 1.5, mask)
        >>> bool(abs(curves.corrected.correlation[-6:]).mean() < 0.3), round(curves.randomised_from)
        (True, 9)
    """
    if not half1.shape == half2.shape == mask.shape or half1.ndim != 3:
        shapes = f"{half1.shape} and {half2.shape} inside a mask of {mask.shape}"
        raise GridMismatchError(f"FSC of shapes {shapes}: they must be (z, y, x), and alike")
    positive("voxel size", voxel_size, "Å")
    something_in(mask)
    return masked_fsc_of(transform(unit(half1)), transform(unit(half2)), voxel_size, mask, seed=seed)


def masked_fsc_of(
    a: Spectrum, b: Spectrum, voxel_size: float, mask: NDArray[Any], *, white: bool = False, seed: int = 0
) -> MaskedFsc:
    """The same of the halves' transforms, which are lost; ``white``: every shell of either brought to one power."""
    shape = mask.shape
    sums = shell_sums(a, b, shape)
    unmasked = curve_of_sums(sums, shape, voxel_size)
    if white:
        _whiten(a, sums[1] / sums[3], shape)
        _whiten(b, sums[2] / sums[3], shape)

    def inside() -> FscCurve:
        return curve_of_sums(shell_sums(_masked(a, mask), _masked(b, mask), shape), shape, voxel_size)

    masked = inside()
    below = np.flatnonzero(np.nan_to_num(unmasked.correlation) < _TRUE_UP_TO)
    if not below.size:
        return MaskedFsc(unmasked, masked, masked, masked, None)
    first = int(below[0])
    rng = np.random.default_rng(seed)
    for half in (a, b):
        _random_phases(half, (first + 1 - 0.5) / max(shape), shape, rng)
    randomised = inside()
    with np.errstate(divide="ignore", invalid="ignore"):
        true = (masked.correlation - randomised.correlation) / (1 - randomised.correlation)
    corrected = np.where(np.arange(len(true)) >= first + _BEYOND, true, masked.correlation)
    curve = attrs.evolve(masked, correlation=np.where(np.isfinite(corrected), corrected, np.nan))
    return MaskedFsc(unmasked, masked, randomised, curve, float(1 / unmasked.frequency[first]))


def _masked(spectrum: Spectrum, mask: NDArray[Any]) -> Spectrum:
    """Of what is left inside; plane by plane, so that a large map takes no more memory than its transform."""
    inside = scipy.fft.ifftn(spectrum.copy(), axes=(0, 1), norm="ortho", overwrite_x=True)
    for plane, weight in zip(inside, mask, strict=True):
        plane[:] = scipy.fft.rfft(weight * scipy.fft.irfft(plane, mask.shape[2], norm="ortho"), norm="ortho")
    return np.asarray(scipy.fft.fftn(inside, axes=(0, 1), norm="ortho", overwrite_x=True))


def _whiten(spectrum: Spectrum, power: NDArray[np.float64], shape: tuple[int, ...]) -> None:
    """Divide by the amplitude, linear between shells."""
    gain, longest = 1 / np.sqrt(np.maximum(power, _FAINT * power.max())), max(shape)
    multiply(spectrum, lambda radius: np.interp(longest * radius, np.arange(1, len(gain) + 1), gain), shape)


def _random_phases(spectrum: Spectrum, least: float, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """Give it random phases from that frequency on, in cycles a voxel; amplitudes stay."""
    width = spectrum.shape[2]
    # Where the half transform holds both k and -k, their phases are opposite: that of k less that of -k.
    mirrored = {}
    for column in {0, width - 1} if shape[2] % 2 == 0 else {0}:
        turns = rng.random(shape[:2], np.float32)
        mirrored[column] = turns - np.roll(np.flip(turns), 1, (0, 1))
    for i, (plane, radius) in enumerate(zip(spectrum, _radii(shape), strict=True)):
        turns = rng.random((shape[1], width), np.float32)
        for column, both in mirrored.items():
            turns[:, column] = both[i]
        beyond = radius >= least
        plane[beyond] = np.abs(plane[beyond]) * np.exp(np.complex64(2j * np.pi) * turns[beyond])


def _radii(shape: tuple[int, ...]) -> Iterator[NDArray[np.float64]]:
    """Lengths of the frequencies, in cycles a voxel, plane by plane to spare memory."""
    y, x = np.fft.fftfreq(shape[1]), np.fft.rfftfreq(shape[2])
    lateral = y[:, None] ** 2 + x**2
    return (np.sqrt(kz**2 + lateral) for kz in np.fft.fftfreq(shape[0]))
