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

_BLOCK = 6  # voxels, side of the cubes of local averages: of 216 values a correlation is known to 0.1
_EDGE = 0.3  # of the band
_NOTHING = 1e-7  # of the strongest shell's power
_INSIDE, _CORE, _RIM, _CORNERS = 0.45, 0.35, (0.42, 0.47), 0.58  # distances from the centre, of the sides

Floats = NDArray[np.floating]
Spectrum = NDArray[np.complexfloating]


@attrs.frozen
class Places:
    """What differs from place to place.

    Args:
        evenness: Mean square of the noise where there is least of it (2 %), relative to where there is most (99 %),
            within the ellipsoid that every reconstruction fills.
        alone: Mean square of one half where it is least (2 %), relative to that of the difference there: half of it is
            this half's own noise.
        rim: Mean square of the noise at the rim of that ellipsoid, relative to that in its core.
        corners: Mean square of the noise in the box's corners, relative to that in the core.
        shared: Correlation of the halves where it is least (5 %): without a molecule that of their noise.
    """

    evenness: float
    alone: float
    rim: float
    corners: float
    shared: float


def places(first: Floats, second: Floats) -> Places:
    """Look at two halves, scaled alike, place by place."""
    shape = first.shape
    a, b = transform(first), transform(second)
    # White, so that many values of a place are independent.
    amplitude = _amplitude(a - b, shape)
    noise, *halves = (_variance(_filtered(spectrum, amplitude, shape)) for spectrum in (a - b, a, b))
    # For what they share each by its own filter, as one may be sharpened.
    white = [_filtered(spectrum, _amplitude(spectrum, shape), shape) for spectrum in (a, b)]
    covariance = _blocks(white[0] * white[1]) - _blocks(white[0]) * _blocks(white[1])
    with np.errstate(all="ignore"):
        correlation = np.nan_to_num(covariance / np.sqrt(_variance(white[0]) * _variance(white[1])))
        alone = [np.nan_to_num(half / noise) for half in halves]
    radius = np.sqrt(sum(x**2 for x in np.meshgrid(*(_centres(n) for n in shape), indexing="ij")))
    inside, core = noise[radius < _INSIDE], noise[radius < _CORE]
    rim = noise[(radius >= _RIM[0]) & (radius < _RIM[1])]
    corners = noise[radius > _CORNERS]
    least, most = np.percentile(inside, [2, 99])
    return Places(
        evenness=float(least / most),
        alone=float(min(np.percentile(x[radius < _INSIDE], 2) for x in alone)),
        rim=float(rim.mean() / core.mean()) if rim.size else 1.0,
        corners=float(corners.mean() / core.mean()) if corners.size else 1.0,
        shared=float(min(np.percentile(x, 5) for x in (correlation, correlation[radius < _INSIDE]))),
    )


def least_at_nyquist(difference: Floats) -> float:
    """The power of the noise at the highest frequencies of an axis, relative to that at lower ones.

    Halves that were resampled to finer voxels have none there, and others about as much.  The least of three axes; of
    the whole box, and of one that fades out, where what a filter or an interpolation makes at its edges is not seen.
    """
    windows = np.ix_(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in difference.shape))
    return min(_least_at_nyquist(x) for x in (difference, difference * windows[0] * windows[1] * windows[2]))


def _least_at_nyquist(difference: Floats) -> float:
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
        wide = max((0.5 + 0.5 / n) ** 2 - (last / n) ** 2, (1.5 / n) ** 2) ** 0.5
        # Lower ones within the same cone of directions, and away from its edge, which fading out blurs: where views
        # leave a cone without any power, none of them has some.
        radii = [(last, wide), *((k, max(wide * k / last - 1.5 / n, 1.1 / n)) for k in planes)]
        discs = [(k, distance <= radius**2) for k, radius in radii]
        end, *others = (float(np.mean(np.abs(spectrum.take(k, axis)[disc]) ** 2)) for k, disc in discs)
        if np.median(others) > 1e-5 * overall:  # nor has a missing wedge, along some axis
            found.append(end / float(np.median(others)))
    _, power_of, _, count = shell_sums(spectrum, spectrum, shape)
    profile = power_of / count
    nothing = profile[-1] < _NOTHING * profile.max()  # not even a smooth filter's tail, only rounding errors
    return 0.0 if nothing else min(*found, float(profile[-1] / np.median(profile)))


def _amplitude(spectrum: Spectrum, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """By shell, and never so small that what is divided by it is all there is."""
    _, power, _, count = shell_sums(spectrum, spectrum, shape)
    amplitude = np.sqrt(power / count)
    return np.asarray(np.maximum(amplitude, 1e-4 * amplitude.max()))


def _filtered(spectrum: Spectrum, amplitude: NDArray[np.float64], shape: tuple[int, ...]) -> Floats:
    """Back to voxels, the shells divided by these amplitudes, without the corners of the spectrum."""
    z, y, x = np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), np.fft.rfftfreq(shape[2])
    shells = np.arange(1, len(amplitude) + 1)
    white = np.empty_like(spectrum)
    for i, kz in enumerate(z):  # by planes, to spare memory
        radius = max(shape) * np.sqrt(kz**2 + y[:, None] ** 2 + x**2)
        edge = np.clip((len(amplitude) + 0.5 - radius) / (_EDGE * len(amplitude)), 0, 1)  # soft, or it would ring
        white[i] = spectrum[i] / np.interp(radius, shells, amplitude) * np.sin(np.pi / 2 * edge) ** 2
    white[0, 0, 0] = 0
    return np.asarray(scipy.fft.irfftn(white, s=shape, norm="ortho"))


def _blocks(values: Floats) -> NDArray[np.float64]:
    """Averages over cubes, about the centre of the box."""
    cut = tuple(slice((n % _BLOCK) // 2, (n % _BLOCK) // 2 + n // _BLOCK * _BLOCK) for n in values.shape)
    nz, ny, nx = (n // _BLOCK for n in values.shape)
    cubes = values[cut].reshape(nz, _BLOCK, ny, _BLOCK, nx, _BLOCK)
    return np.asarray(cubes.mean(axis=(1, 3, 5), dtype=np.float64))


def _variance(values: Floats) -> NDArray[np.float64]:
    """In cubes, about the mean of each: what is constant or slow, as the tails of a filter are, says nothing."""
    return np.asarray(_blocks(values**2) - _blocks(values) ** 2)


def _centres(n: int) -> NDArray[np.float64]:
    """Where the cubes are, from the centre of the box, of its side."""
    return ((n % _BLOCK) // 2 + _BLOCK * np.arange(n // _BLOCK) + (_BLOCK - 1) / 2 - n // 2) / n
