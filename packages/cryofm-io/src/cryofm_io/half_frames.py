"""Whether two half maps lie in one frame: neither shifted against each other, nor mirrored, nor turned.

Judged by what one half says about the other, in nats: the sum over the shells of the Fourier shell correlation F of
-½ log(1 - F²) for every independent value.  In the frame that is right it is the largest by far; where the halves hold
nothing but noise it is small in every frame.
"""

import itertools
from collections.abc import Iterator

import attrs
import numpy as np
import scipy  # its parts load when they are needed
from numpy.typing import NDArray

from cryofm_io.fsc import shell_sums, transform
from cryofm_io.resample import fourier_resample

__all__ = ["Frame", "other_frame"]

_COARSE = 32  # voxels; enough to tell a hand from its mirror image
# What a frame must gain, in standard deviations of what the halves say: a molecule can be symmetric, so that it fits as
# well when it is turned, and which of its frames wins is chance; no molecule is the same one voxel farther on.
_SHIFTED, _TURNED = 1.5, 4.0
_PART = 0.4  # voxels; two refinements of one molecule may differ by less
_LEAST_ABOUT = 8.0  # nats, of the best of 47 frames about the centre: of noise it was less
_EMPTY = 1e-9  # of the strongest shell's power
_MOST_F = 0.98  # the few values of the first shells would weigh too much

Floats = NDArray[np.floating]
Spectrum = NDArray[np.complexfloating]


@attrs.frozen
class Frame:
    """How the second half must be changed to fit the first.

    Args:
        order: The axes (z, y, x) of the second half that go along z, y, x.
        flips: Which of them run backwards then.
        shift: Voxels (z, y, x) by which it must be moved, of a part of one to a tenth; 0 where axes change, since those
            are found on a coarse grid.
    """

    order: tuple[int, ...] = (0, 1, 2)
    flips: tuple[bool, ...] = (False, False, False)
    shift: tuple[float, ...] = (0, 0, 0)

    def __str__(self) -> str:
        names = np.array(list("zyx"))
        if self.order != (0, 1, 2):
            flipped = f", with {' and '.join(names[list(self.flips)])} backwards" if any(self.flips) else ""
            return f"with its axes in the order {', '.join(names[list(self.order)])} instead of z, y, x{flipped}"
        if sum(self.flips) == 2:
            return f"turned by 180° about {names[self.flips.index(False)]}"
        if any(self.flips):
            return f"mirrored along {' and '.join(names[list(self.flips)])}"
        x, y, z = reversed(self.shift)
        return f"moved by {x:g}, {y:g}, {z:g} voxels (x, y, z)"


def other_frame(first: Floats, second: Floats, a: Spectrum, b: Spectrum) -> Frame | None:
    """The frame in which the halves fit far better than as they are; none where there is none.

    Args:
        first: ``(z, y, x)``.
        second: Of the same shape.
        a: Transform of the first.
        b: Of the second.
    """
    count = _independent(a, first.shape)
    here, chance = _information(a, b, count, first.shape)
    there, shift = _best_shift(a, b, count, first.shape)
    moved = Frame(shift=shift) if there - here > _least_gain(shift, first.shape, chance) else None

    small = [min(n, _COARSE) for n in first.shape]
    one, two = (fourier_resample(x, small) for x in (first, second))
    a, b = transform(one), transform(two)
    count = _independent(a, one.shape)
    # As it is, too, a shift may help: otherwise a flip, which moves the centre by a voxel, would be compared unfairly.
    shifted = _best_shift(a, b, count, one.shape)[0]
    here, chance = _information(a, b, count, one.shape)
    if moved is None:
        part = _part_of_a_voxel(a, b, one.shape)
        whole = tuple(round(s * n / m, 1) + 0.0 for s, n, m in zip(part, first.shape, small, strict=True))
        gain = _information(a, _moved(b, part, one.shape), count, one.shape)[0] - here
        if max(map(abs, whole)) >= _PART and gain > _least_gain((0, 0, 0), first.shape, chance):
            moved = Frame(shift=whole)
    here = here if moved is None else shifted
    best, most = moved, 0.0
    for frame in _frames(second.shape):
        turned = np.flip(two.transpose(frame.order), tuple(np.flatnonzero(frame.flips).tolist()))
        c = transform(np.ascontiguousarray(turned))
        # About the centre there are few frames to choose from: far less is needed to tell.
        centre = tuple(int(flip) for flip in frame.flips)
        about = max(_information(a, _moved(c, shift, one.shape), count, one.shape)[0] for shift in {(0, 0, 0), centre})
        gain = max(
            about - here - _LEAST_ABOUT,
            _best_shift(a, c, count, one.shape, small=False)[0] - shifted - _by_chance(one.shape),
        )
        if gain > _TURNED * chance and gain > most:
            best, most = frame, gain
    return best


def _least_gain(shift: tuple[int, ...], shape: tuple[int, ...], chance: float) -> float:
    if max(map(abs, shift)) <= 2:  # few places to choose from
        return 14 + 0.4 * chance  # of noise up to 11.5 was seen in 130 pairs
    return _by_chance(shape) + _SHIFTED * chance


def _by_chance(shape: tuple[int, ...]) -> float:
    """Nats beyond what noise gains where there are so many places to choose from; 10 less was seen in 130 pairs."""
    return 3 + 2 * float(np.log(np.prod(shape)))


def _frames(shape: tuple[int, ...]) -> Iterator[Frame]:
    """The 47 others that a cube has, or as many as the shape allows."""
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            frame = Frame(order, flips)
            if frame != Frame() and tuple(shape[axis] for axis in order) == shape:
                yield frame


def _independent(a: Spectrum, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """By shell the number of independent values: fewer where a filter left few of a shell's coefficients."""
    power = a.real**2 + a.imag**2
    largest = float(power.max())
    power /= largest
    _, squares, _, count = shell_sums(power, power, shape)
    total = shell_sums(a, a, shape)[1] / largest
    with np.errstate(all="ignore"):  # of what is as random as noise the mean square is twice the squared mean
        return np.asarray(count * np.nan_to_num(2 * total**2 / (count * squares)).clip(0, 1))


def _correlation(a: Spectrum, b: Spectrum, shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """By shell: that of the halves, clipped, and the root of their powers' product per coefficient."""
    cross, power_a, power_b, count = shell_sums(a, b, shape)
    amplitude = np.sqrt(power_a * power_b)
    with np.errstate(all="ignore"):
        f = np.nan_to_num(cross / amplitude).clip(0, _MOST_F)
    density = amplitude / count
    f[density < _EMPTY * density.max()] = 0  # rounding errors of filtered halves
    return f, density


def _information(a: Spectrum, b: Spectrum, count: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[float, float]:
    """What one half says about the other, in nats, and the standard deviation that noise gives this number."""
    f, _ = _correlation(a, b, shape)
    return float(np.sum(-0.5 * count * np.log1p(-(f**2)))), float(np.sqrt(np.sum(count * f**2)))


def _best_shift(
    a: Spectrum, b: Spectrum, count: NDArray[np.float64], shape: tuple[int, ...], *, small: bool = True
) -> tuple[float, tuple[int, ...]]:
    """The most that one half says about the other after a shift of whole voxels, and that shift (z, y, x).

    Args:
        a: Transform of one half.
        b: Of the other.
        count: Independent values by shell.
        shape: Of the halves.
        small: Whether to look for small shifts with care.
    """
    product = a * b.conj()
    tiny = float(np.finfo(product.real.dtype).tiny)
    # Peaks of the cross-correlation: with the amplitudes as they are, which is safe, and all alike, which is sharp.
    found = {_peak(spectrum, shape) for spectrum in (product, product / np.maximum(np.abs(product), tiny))}
    best = max((_information(a, _moved(b, shift, shape), count, shape)[0], shift) for shift in found)
    for start in {(0, 0, 0), best[1]} if small else ():
        # Weighted by what the shells are worth, which finds what is near even where the halves agree in few of them.
        f, density = _correlation(a, _moved(b, start, shape), shape)
        shift = _peak(product * _by_shell(f / (1 - f**2) / np.maximum(density, tiny), shape), shape)
        best = max(best, (_information(a, _moved(b, shift, shape), count, shape)[0], shift))
    while small and any(best[1]):  # uphill, for the number that is told; halves in one frame do not come here
        near = [tuple(int(i) for i in best[1] + step) for step in np.concatenate([np.eye(3), -np.eye(3)]).astype(int)]
        higher = max((_information(a, _moved(b, shift, shape), count, shape)[0], shift) for shift in near)
        if higher[0] <= best[0]:
            break
        best = higher
    return best


def _peak(spectrum: Spectrum, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shift (z, y, x) at which a cross-correlation of this spectrum is largest."""
    spectrum[0, 0, 0] = 0
    peak = np.unravel_index(int(np.argmax(scipy.fft.irfftn(spectrum, s=shape))), shape)
    return tuple(int(i) if i <= n // 2 else int(i) - n for i, n in zip(peak, shape, strict=True))


def _by_shell(values: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The half transform's coefficients, each with its shell's value; 0 in the corners."""
    padded = np.concatenate([[0.0], values, np.zeros(max(shape))]).astype(np.float32)
    z, y, x = np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), np.fft.rfftfreq(shape[2])
    made = [padded[np.rint(max(shape) * np.sqrt(kz**2 + y[:, None] ** 2 + x**2)).astype(np.intp)] for kz in z]
    return np.stack(made)


def _part_of_a_voxel(a: Spectrum, b: Spectrum, shape: tuple[int, ...]) -> tuple[float, ...]:
    """By how much the second half lies off the first, by the slope of the phases (two of Newton's steps)."""
    z, y, x = (np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), np.fft.rfftfreq(shape[2]))
    k = 2 * np.pi * np.stack(np.broadcast_arrays(z[:, None, None], y[:, None], x))
    shift = np.zeros(3)
    for _ in range(2):
        moved = _moved(b, tuple(shift), shape)
        f, density = _correlation(a, moved, shape)
        weight = f / (1 - f**2) / np.maximum(density, float(np.finfo(a.real.dtype).tiny))
        product = a * moved.conj() * _by_shell(weight, shape)
        bend = np.einsum("izyx,jzyx,zyx->ij", k, k, product.real)
        shift -= np.linalg.lstsq(bend, np.einsum("izyx,zyx->i", k, product.imag), rcond=None)[0]
    return tuple(shift.tolist())


def _moved(spectrum: Spectrum, shift: tuple[float, ...], shape: tuple[int, ...]) -> Spectrum:
    if not any(shift):
        return spectrum
    z, y, x = (np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1]), np.fft.rfftfreq(shape[2]))
    ramps = [np.exp(-2j * np.pi * f * s).astype(spectrum.dtype) for f, s in zip((z, y, x), shift, strict=True)]
    return np.asarray(spectrum * ramps[0][:, None, None] * ramps[1][:, None] * ramps[2])
