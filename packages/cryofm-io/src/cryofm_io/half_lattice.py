"""Whether half maps were brought to their grid by interpolation, which leaves the lattice that they were on before.

Between its points interpolated noise is weaker and smoother than on them, so that from plane to plane along an axis its
roughness goes up and down, with the beat of both lattices; that of a reconstruction changes slowly.  (For photographs:
Gallagher, CRV 2005, 65; there, too, it is the variance of the second difference that beats.)
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["beats_of_a_lattice"]

_FEWEST = 12  # planes, in fewer of which nothing beats
_SLOW = 8  # planes; what changes more slowly is the molecule, a mask, a sphere
_LEAST, _BY_CHANCE = (
    0.3,
    12.0,
)  # of 21 good kinds the amplitude is up to 0.17 and 7 times that of chance; from 0.6 and 26

Floats = NDArray[np.floating]


def beats_of_a_lattice(difference: Floats) -> bool:
    """Look for them in the difference of two halves, along every axis."""
    return any(_beats(np.moveaxis(difference, axis, 0)) for axis in range(3))


def _beats(planes: Floats) -> bool:
    if min(planes.shape) < _FEWEST:
        return False
    rough = [float(np.mean((2 * b - a - c) ** 2)) for a, b, c in zip(planes, planes[1:], planes[2:], strict=False)]
    if min(rough) <= 0:  # constant planes are a mask's doing
        return False
    logarithm, window = np.log(rough), np.hanning(len(rough))
    amplitudes = np.abs(np.fft.rfft((logarithm - logarithm.mean()) * window)) / np.sqrt(np.sum(window**2))
    most = float(amplitudes[max(3, len(rough) // _SLOW) :].max())
    return most > _LEAST and most * planes[0].size ** 0.5 > _BY_CHANCE
