"""What the noise of two half maps looks like, voxel by voxel and shell by shell.

The halves of one data set differ by noise alone, and it has three marks: there is some in every part of the box, there
is some at every frequency, and that of one half says nothing of that of the other.
"""

import attrs
import numpy as np
import scipy  # its parts load when they are needed
from numpy.typing import NDArray

from cryofm_io.fsc import shell_sums, transform

__all__ = ["Places", "least_at_nyquist", "places"]

_BLOCK = 6  # voxels, side of the cubes of local averages: of 216 values a correlation is known to 0.07
_NOTHING = 1e-7  # of the strongest shell's power
_INSIDE, _CORE, _RIM, _CORNERS = 0.45, 0.35, (0.42, 0.47), 0.58  # distances from the centre, of the sides

Floats = NDArray[np.floating]
Spectrum = NDArray[np.complexfloating]


@attrs.frozen
class Places:
    """What differs from place to place.

    Args:
        evenness: Mean square of the noise where there is least of it (2 %), relative to where there is most (95 %),
            within the ellipsoid that every reconstruction fills.
        rim: Mean square of the noise at the rim of that ellipsoid, relative to that in its core.
        corners: Mean square of the noise in the box's corners, relative to that in the core.
        shared: Correlation of the halves where it is least (5 %): without a molecule that of their noise.
    """

    evenness: float
    rim: float
    corners: float
    shared: float


def places(first: Floats, second: Floats) -> Places:
    """Look at two halves, scaled alike, place by place."""
    shape = first.shape
    a, b = transform(first), transform(second)
    # White, so that many values of a place are independent; the halves each by its own filter, as one may be sharpened.
    noise = _blocks(_whitened(a - b, shape) ** 2)
    white = [_whitened(spectrum, shape) for spectrum in (a, b)]
    means = [_blocks(x) for x in white]
    squares = [_blocks(x**2) - mean**2 for x, mean in zip(white, means, strict=True)]
    with np.errstate(all="ignore"):
        correlation = np.nan_to_num((_blocks(white[0] * white[1]) - means[0] * means[1]) / np.sqrt(np.prod(squares, 0)))
    radius = np.sqrt(sum(x**2 for x in np.meshgrid(*(_centres(n) for n in shape), indexing="ij")))
    inside, core = noise[radius < _INSIDE], noise[radius < _CORE]
    rim = noise[(radius >= _RIM[0]) & (radius < _RIM[1])]
    corners = noise[radius > _CORNERS]
    least, most = np.percentile(inside, [2, 95])
    return Places(
        evenness=float(least / most),
        rim=float(rim.mean() / core.mean()) if rim.size else 1.0,
        corners=float(corners.mean() / core.mean()) if corners.size else 1.0,
        shared=float(min(np.percentile(x, 5) for x in (correlation, correlation[radius < _INSIDE]))),
    )


def least_at_nyquist(difference: Floats) -> float:
    """The power of the noise at the highest frequencies of an axis, relative to that at lower ones.

    Halves that were resampled to finer voxels have none there, and others about as much.  The least of three axes.
    """
    spectrum = transform(difference)
    shape = difference.shape
    lateral = [np.abs(np.fft.fftfreq(n)) for n in shape[:2]] + [np.fft.rfftfreq(shape[2])]
    overall = float(np.mean(np.abs(spectrum) ** 2))
    found = [1.0]
    for axis, n in enumerate(shape):
        planes = [max(1, round(part * n)) for part in (0.1, 0.25, 0.4)]
        last = n // 2
        one, two = (x for i, x in enumerate(lateral) if i != axis)
        distance = one[:, None] ** 2 + two**2
        disc = distance <= max((0.5 + 0.5 / n) ** 2 - (last / n) ** 2, (1.5 / n) ** 2)
        end, *others = (float(np.mean(np.abs(spectrum.take(k, axis)[disc]) ** 2)) for k in (last, *planes))
        if np.median(others) > 1e-5 * overall:  # a missing wedge leaves some axis without any
            found.append(end / float(np.median(others)))
    _, power_of, _, count = shell_sums(spectrum, spectrum, shape)
    profile = power_of / count
    nothing = profile[-1] < _NOTHING * profile.max()  # not even a smooth filter's tail, only rounding errors
    return 0.0 if nothing else min(*found, float(profile[-1] / np.median(profile)))


def _whitened(spectrum: Spectrum, shape: tuple[int, ...]) -> Floats:
    """Back to voxels, with the same power in every shell; the corners of the spectrum follow the last one."""
    _, power, _, count = shell_sums(spectrum, spectrum, shape)
    amplitude = np.sqrt(power / count)
    amplitude = np.maximum(amplitude, 1e-4 * amplitude.max())
    z, y, x = np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), np.fft.rfftfreq(shape[2])
    shells = np.arange(1, len(amplitude) + 1)
    white = np.empty_like(spectrum)
    for i, kz in enumerate(z):  # by planes, to spare memory
        white[i] = spectrum[i] / np.interp(max(shape) * np.sqrt(kz**2 + y[:, None] ** 2 + x**2), shells, amplitude)
    white[0, 0, 0] = 0
    return np.asarray(scipy.fft.irfftn(white, s=shape, norm="ortho"))


def _blocks(values: Floats) -> NDArray[np.float64]:
    """Averages over cubes, about the centre of the box."""
    cut = tuple(slice((n % _BLOCK) // 2, (n % _BLOCK) // 2 + n // _BLOCK * _BLOCK) for n in values.shape)
    nz, ny, nx = (n // _BLOCK for n in values.shape)
    cubes = values[cut].reshape(nz, _BLOCK, ny, _BLOCK, nx, _BLOCK)
    return np.asarray(cubes.mean(axis=(1, 3, 5), dtype=np.float64))


def _centres(n: int) -> NDArray[np.float64]:
    """Where the cubes are, from the centre of the box, of its side."""
    return ((n % _BLOCK) // 2 + _BLOCK * np.arange(n // _BLOCK) + (_BLOCK - 1) / 2 - n // 2) / n
