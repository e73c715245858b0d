"""Fourier shell correlation (Harauz and van Heel, Optik 73:146, 1986)."""

import csv
import math
import os
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import scipy  # its parts load when they are needed, which spares a third of a second at import
from numpy.typing import NDArray

from cryofm_io.atomic import atomic_write
from cryofm_io.checks import all_finite, positive
from cryofm_io.errors import GeometryError, GridMismatchError, MaskError

__all__ = ["FscCurve", "fsc", "write_fsc_csv"]

_MANY = 10**6  # voxels, of which a part has the same median
_AT_ONCE = 2**16  # coefficients: few, to spare memory, and not too few, to spare time


@attrs.frozen(eq=False)
class FscCurve:
    """Fourier shell correlation over the shells 1..N//2, N the box's longest side.

    Args:
        frequency: Of each shell, 1/Å.
        correlation: Of each shell; NaN where a map has no power.
        n_voxels: Number of voxels of the full transform in each shell.  As half of them mirror the other
            half, this is the number of independent real values; noise alone gives an FSC of 0 ± 1/√n_voxels.
    """

    frequency: NDArray[np.float64]
    correlation: NDArray[np.float64]
    n_voxels: NDArray[np.int64]

    @property
    def auc(self) -> float:
        """Area under the curve: the mean over all shells, NaN counting as 0 (FSC_AUC; paper, section C.1)."""
        return float(np.nan_to_num(self.correlation).mean())

    def crosses(self, threshold: float) -> bool:
        """Whether the curve falls from at least the threshold to below it anywhere before Nyquist."""
        return self._crossing(threshold) is not None

    def resolution(self, threshold: float = 0.143) -> float:
        """Resolution in Å at the first downward crossing of the threshold, linear in frequency.

        A curve that stays above gives the last shell's (Nyquist; `crosses` is then false), one that is never
        as high gives infinity.
        """
        i = self._crossing(threshold)
        if i is None:
            reaches = bool((self.correlation >= threshold).any())
            return float(1 / self.frequency[-1]) if reaches else math.inf
        above, below = np.nan_to_num(self.correlation[i : i + 2])
        step = (above - threshold) / (above - below)
        return float(1 / (self.frequency[i] + step * (self.frequency[i + 1] - self.frequency[i])))

    def told(self, threshold: float = 0.143) -> str:
        """The same in words; ≤ where the curve stays above, "nowhere" where it is never as high."""
        at = self.resolution(threshold)
        if at == math.inf:
            return "nowhere"
        return f"{at:.2f} Å" if self.crosses(threshold) else f"≤ {at:.2f} Å"

    def _crossing(self, threshold: float) -> int | None:
        above = np.nan_to_num(self.correlation) >= threshold
        falls = np.flatnonzero(above[:-1] & ~above[1:])
        return int(falls[0]) if falls.size else None


def fsc(a: NDArray[Any], b: NDArray[Any], voxel_size: float, mask: NDArray[Any] | None = None) -> FscCurve:
    """Correlate two maps shell by shell.

    Shell s holds the voxels of the full transform with round(N · voxel_size · |k|) = s, for |k| in 1/Å and N
    the longest side, so in a cube s = round(|k|) in units of the box; its frequency is s / (N · voxel_size).
    FSC(s) = Re Σ A(k) B(k)* / √(Σ|A|² Σ|B|²).  The origin and the corners beyond shell N//2 are left out.
    The scales of the maps do not matter, however large or small.

    A restored map has learnt from other maps: its FSC against another restored map shows self-consistency,
    and is no measure of resolution.  A mask raises the curve by itself.

    Args:
        a: ``(z, y, x)``.
        b: ``(z, y, x)``.
        voxel_size: Å.
        mask: Multiplied with both maps if given, ``(z, y, x)``.

    Raises:
        GridMismatchError: The shapes differ.
        GeometryError: The maps are not three-dimensional, a value is not finite, or the voxel size is not positive.
        MaskError: The mask is 0 throughout, or a value of it is not finite.

    Example:
        >>> a, noise = np.random.default_rng(0).normal(size=(2, 24, 24, 24))
        >>> curve = fsc(a, a + noise, voxel_size=1.5)
        >>> len(curve.frequency), round(curve.auc, 1), curve.crosses(0.143), round(curve.resolution(0.143), 2)
        (12, 0.7, False, 3.0)
    """
    shapes = [x.shape for x in (a, b, mask) if x is not None]
    if len(set(shapes)) > 1:
        raise GridMismatchError(f"FSC of maps with different shapes: {', '.join(map(str, shapes))}")
    if a.ndim != 3:
        raise GeometryError(f"FSC needs 3-D maps, got shape {a.shape}")
    positive("voxel size", voxel_size, "Å")
    if mask is not None:
        something_in(mask)
    return curve_of_sums(shell_sums(transform(unit(a), mask), transform(unit(b), mask), a.shape), a.shape, voxel_size)


def curve_of_sums(sums: NDArray[np.float64], shape: tuple[int, ...], voxel_size: float) -> FscCurve:
    """The curve by what `shell_sums` found in a box."""
    cross, power_a, power_b, count = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = cross / np.sqrt(power_a * power_b)
    correlation[~np.isfinite(correlation)] = np.nan
    frequency = np.arange(1, len(count) + 1) / (max(shape) * voxel_size)
    return FscCurve(frequency, correlation, count.astype(np.int64))


def write_fsc_csv(path: str | os.PathLike[str], curves: Mapping[str, FscCurve], overwrite: bool = False) -> None:
    """Write curves as columns beside frequency (1/Å), resolution (Å) and the voxels per shell.

    Args:
        path: The .csv file; it appears only when complete.
        curves: By label; all over the same shells.
        overwrite: Whether an existing file may be replaced.

    Raises:
        GridMismatchError: The curves have different shells.
        OutputExistsError: The file exists and ``overwrite`` is false.

    Example:
        >>> curve = FscCurve(np.array([0.1]), np.array([0.5]), np.array([18]))
        >>> write_fsc_csv("fsc.csv", {"restored": curve})
        >>> from pathlib import Path
        >>> print(Path("fsc.csv").read_text())
        frequency_per_angstrom,resolution_angstrom,n_voxels,restored
        0.1,10,18,0.5
    """
    first = next(iter(curves.values()))
    for label, curve in curves.items():
        if not np.array_equal(curve.frequency, first.frequency):
            raise GridMismatchError(f"the curve '{label}' has other shells than the first; compute all on one grid")
    with atomic_write(path, overwrite) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["frequency_per_angstrom", "resolution_angstrom", "n_voxels", *curves])
        for i, (frequency, count) in enumerate(zip(first.frequency, first.n_voxels, strict=True)):
            values = [f"{curve.correlation[i]:.6g}" for curve in curves.values()]
            rows.writerow([f"{frequency:.7g}", f"{1 / frequency:.5g}", count, *values])


def middle_value(data: NDArray[Any]) -> Any:
    """About the median, exactly in small boxes: of every third voxel along each axis."""
    step = 3 if data.size > _MANY else 1
    return np.asarray(np.median(data[::step, ::step, ::step]), data.dtype)[()]


def something_in(mask: NDArray[Any]) -> None:
    """Refuse a mask that is not finite, or 0 throughout."""
    all_finite("a mask's values", mask, MaskError)
    if not mask.any():
        raise MaskError("the mask is 0 everywhere: it shows nothing of the map")


def unit(x: NDArray[Any]) -> NDArray[Any]:
    """The map times a power of two, so that its largest value is near 1 and squares neither over- nor underflow."""
    largest = max(abs(float(x.max())), abs(float(x.min()))) if x.size else 0.0
    if not math.isfinite(largest):
        all_finite("a map's values", x)
    if largest == 0:
        return x
    exponent = math.frexp(largest)[1]
    real = x.astype(np.float64 if x.dtype == np.float64 else np.float32, copy=False)
    first = -exponent // 2  # the whole power may be beyond single precision; ldexp would do, slowly
    scaled: NDArray[Any] = np.multiply(real, real.dtype.type(2.0**first))
    np.multiply(scaled, real.dtype.type(2.0 ** (-exponent - first)), out=scaled)
    return scaled


def transform(x: NDArray[Any], mask: NDArray[Any] | None = None) -> NDArray[Any]:
    """The half transform of a map, under a mask if given."""
    x = x if mask is None else x * mask
    x = x.astype(np.float64 if x.dtype == np.float64 else np.float32, copy=False)
    return np.asarray(scipy.fft.rfftn(x, norm="ortho"))


def shell_sums(a: NDArray[Any], b: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Rows: cross power, power of a, power of b, number of voxels; columns: shells 1..N//2."""
    z, y, x = shape
    longest = max(shape)
    ky, kx = np.fft.fftfreq(y)[:, None], np.fft.rfftfreq(x)
    friedel = np.full(len(kx), 2.0)  # the half transform stands for k and -k ...
    friedel[0] = 1  # ... except on the planes that are their own mirror image
    if x % 2 == 0:
        friedel[-1] = 1
    lateral = ky**2 + kx**2
    pairs = [(a, b), (a, a), (b, b)] if b is not a else [(a, a)]
    sums = np.zeros((len(pairs) + 1, longest + 2))
    thick = max(1, _AT_ONCE // lateral.size)
    for planes in (slice(i, i + thick) for i in range(0, z, thick)):
        shell = np.rint(longest * np.sqrt(np.fft.fftfreq(z)[planes, None, None] ** 2 + lateral)).astype(np.intp)
        parts: list[tuple[NDArray[Any], NDArray[Any]]] = [(p[planes], q[planes]) for p, q in pairs]
        values = [np.real(p) * np.real(q) + np.imag(p) * np.imag(q) for p, q in parts]
        for row, value in zip(sums, [*values, np.broadcast_to(1.0, shell.shape)], strict=True):
            row += np.bincount(shell.ravel(), (friedel * value).ravel(), minlength=len(row))
    return sums[[0, 0, 0, 1] if b is a else [0, 1, 2, 3], 1 : longest // 2 + 1]
