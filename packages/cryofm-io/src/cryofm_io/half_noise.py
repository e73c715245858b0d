"""What the noise of two half maps looks like, voxel by voxel and shell by shell.

The halves of one data set differ by noise alone, and it has three marks: there is some in every part of the box, there
is some at every frequency, and that of one half says nothing of that of the other.
"""

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.filters import multiplied
from cryofm_io.fsc import shell_sums, transform

__all__ = ["Places", "least_at_nyquist", "places", "unequal_at_nyquist"]

_BLOCK = 6  # voxels, side of the cubes of local averages: of 216 values a correlation is known to 0.1
_EDGE = 0.3  # of the band
_NOTHING = 1e-7  # of the strongest shell's power
# Where halves agree by more, they differ by what is wrong with the molecule as well, of views that are few or of poses,
# and that lies where the molecule lies; where less than this part of all frequencies is left, all count.
_AGREE, _LEFT = 0.7, 0.1
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


def places(a: Spectrum, b: Spectrum, power: tuple[NDArray[np.float64], ...], shape: tuple[int, ...]) -> Places:
    """Look at two halves, scaled alike, place by place.

    Args:
        a: Transform of one half.
        b: Of the other.
        power: By shell the mean power of both, and of their difference.
        shape: Of the halves.
    """
    of_a, of_b, of_noise = map(_amplitude, power)
    of_noise = np.where(_of_noise_alone(power), of_noise, np.inf)
    # White, so that many values of a place are independent.
    one, two = (_filtered(spectrum, of_noise, shape) for spectrum in (a, b))
    halves, noise = [_variance(one), _variance(two)], _variance(one - two)
    # For what they share each by its own filter, as one may be sharpened.
    one, two = _filtered(a, of_a, shape), _filtered(b, of_b, shape)
    covariance = _blocks(one * two) - _blocks(one) * _blocks(two)
    with np.errstate(all="ignore"):
        correlation = np.nan_to_num(covariance / np.sqrt(_variance(one) * _variance(two)))
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


def least_at_nyquist(difference: Floats, spectrum: Spectrum) -> float:
    """The power of the noise at the highest frequencies of an axis, relative to that at lower ones.

    Halves that were resampled to finer voxels have none there, and others about as much.  The least of three axes; of
    the whole box, whose transform is known, and of one that fades out, where what a filter or an interpolation makes at
    its edges is not seen.
    """
    z, y, x = (np.sin(np.pi * (np.arange(n, dtype=np.float32) + 0.5) / n) ** 2 for n in difference.shape)
    faded = transform(difference * z[:, None, None] * (y[:, None] * x))
    return min(_least_at_nyquist(q, difference.shape) for q in (spectrum, faded))


def _least_at_nyquist(spectrum: Spectrum, shape: tuple[int, ...]) -> float:
    lateral = [np.abs(np.fft.fftfreq(n)) for n in shape[:2]] + [np.fft.rfftfreq(shape[2])]
    _, power_of, _, count = shell_sums(spectrum, spectrum, shape)
    profile = power_of / count
    overall = float(power_of.sum() / count.sum())
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
        end, *others = (float(np.mean(np.abs(np.take(spectrum, k, axis)[disc]) ** 2)) for k, disc in discs)
        if np.median(others) > 1e-5 * overall:  # nor has a missing wedge, along some axis
            found.append(end / float(np.median(others)))
    nothing = profile[-1] < _NOTHING * profile.max()  # not even a smooth filter's tail, only rounding errors
    return 0.0 if nothing else min(*found, float(profile[-1] / np.median(profile)))


def unequal_at_nyquist(a: Spectrum, b: Spectrum, shape: tuple[int, ...]) -> float:
    """The power of one half at the highest frequencies of an axis over that of the other, where they differ most."""

    def power(x: Spectrum, axis: int, k: int) -> float:
        plane = np.take(x, k, axis)
        return float(np.mean(plane.real**2 + plane.imag**2))

    ratios = [1.0]
    for axis, n in enumerate(shape):
        one, two = (power(x, axis, n // 2) for x in (a, b))
        if max(one, two) > _NOTHING * max(power(x, axis, n // 4) for x in (a, b)):
            ratios.append(max(one, 1e-12 * two) / max(two, 1e-12 * one))
    return max(ratios, key=lambda ratio: max(ratio, 1 / ratio))


def _amplitude(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """By shell, and never so small that what is divided by it is all there is."""
    amplitude = np.sqrt(power)
    return np.asarray(np.maximum(amplitude, 1e-4 * amplitude.max()))


def _of_noise_alone(power: tuple[NDArray[np.float64], ...]) -> NDArray[np.bool_]:
    """The shells where halves differ by noise alone, by their mean powers and that of their difference."""
    of_a, of_b, of_difference = power
    with np.errstate(all="ignore"):
        fsc = np.nan_to_num((of_a + of_b - of_difference) / (2 * np.sqrt(of_a * of_b)))
    alone = fsc <= _AGREE
    sizes = np.arange(1, len(fsc) + 1) ** 2
    return alone if sizes[alone].sum() > _LEFT * sizes.sum() else np.ones_like(alone)


def _filtered(spectrum: Spectrum, amplitude: NDArray[np.float64], shape: tuple[int, ...]) -> Floats:
    """Back to voxels, the shells divided by these amplitudes, without the corners of the spectrum."""
    shells = np.arange(1, len(amplitude) + 2)
    edge = np.clip((len(amplitude) + 0.5 - shells) / (_EDGE * len(amplitude)), 0, 1)  # soft, or it would ring
    gain = np.sin(np.pi / 2 * edge) ** 2 / np.append(amplitude, amplitude[-1])
    white = spectrum.copy()
    white[0, 0, 0] = 0
    return multiplied(white, lambda radius: np.interp(max(shape) * radius, shells, gain), shape)


def _blocks(values: Floats) -> NDArray[np.float64]:
    """Averages over cubes, about the centre of the box."""
    cut = tuple(slice((n % _BLOCK) // 2, (n % _BLOCK) // 2 + n // _BLOCK * _BLOCK) for n in values.shape)
    nz, ny, nx = (n // _BLOCK for n in values.shape)
    planes = values[cut].reshape(nz, _BLOCK, ny * _BLOCK, nx * _BLOCK).sum(axis=1, dtype=np.float64)
    return np.asarray(planes.reshape(nz, ny, _BLOCK, nx, _BLOCK).sum(axis=(2, 4)) / _BLOCK**3)


def _variance(values: Floats) -> NDArray[np.float64]:
    """In cubes, about the mean of each: what is constant or slow, as the tails of a filter are, says nothing."""
    return np.asarray(_blocks(values**2) - _blocks(values) ** 2)


def _centres(n: int) -> NDArray[np.float64]:
    """Where the cubes are, from the centre of the box, of its side."""
    return ((n % _BLOCK) // 2 + _BLOCK * np.arange(n // _BLOCK) + (_BLOCK - 1) / 2 - n // 2) / n
