"""FSC by direction: in double cones about directions spread over the sphere (Tan et al., Nat. Methods 14:793, 2017)."""

import math
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.checks import positive
from cryofm_io.errors import GeometryError, GridMismatchError
from cryofm_io.fsc import FscCurve, something_in, transform, unit

__all__ = ["ConicalFsc", "conical_fsc"]

Spectrum = NDArray[np.complexfloating[Any, Any]]

_GOLDEN = (1 + math.sqrt(5)) / 2


@attrs.frozen(eq=False)
class ConicalFsc:
    """The FSC in cones.

    Args:
        directions: Their axes, unit vectors (x, y, z), ``(n, 3)``.
        frequency: Of each shell, 1/Å.
        correlation: ``(n, shells)``; NaN where a cone has no coefficient of a shell.
        n_voxels: The same of their numbers.
    """

    directions: NDArray[np.float64]
    frequency: NDArray[np.float64]
    correlation: NDArray[np.float64]
    n_voxels: NDArray[np.int64]

    def curve(self, i: int) -> FscCurve:
        """Of one cone."""
        return FscCurve(self.frequency, self.correlation[i], self.n_voxels[i])

    @property
    def auc(self) -> NDArray[np.float64]:
        """Area under each cone's curve: its mean over the shells that every cone has, not below 0."""
        common = (self.n_voxels > 0).all(axis=0)
        area: NDArray[np.float64] = np.nan_to_num(self.correlation[:, common]).mean(axis=1).clip(0)
        return area

    @property
    def cfar(self) -> float:
        """Smallest over largest area: 1 where all directions are alike; below 0.5 views are missing."""
        area = self.auc
        return float(area.min() / area.max()) if area.max() > 0 else 0.0


def conical_fsc(
    a: NDArray[Any],
    b: NDArray[Any],
    voxel_size: float,
    mask: NDArray[Any] | None = None,
    *,
    half_angle_deg: float = 20.0,
    directions: int = 40,
) -> ConicalFsc:
    """Correlate two maps shell by shell, in double cones.

    The first three cones are those about x, y and z; the others are spread evenly over the half sphere.

    Args:
        a: ``(z, y, x)``.
        b: ``(z, y, x)``.
        voxel_size: Å.
        mask: Multiplied with both maps if given.
        half_angle_deg: Of the cones.
        directions: Number of the other cones.

    Raises:
        GridMismatchError: The shapes differ.
        GeometryError: An impossible half-angle, a box too small for it, or a value that is not finite.
        MaskError: The mask is 0 throughout, or a value of it is not finite.

    Example:
        >>> a, noise = np.random.default_rng(0).normal(size=(2, 24, 24, 24))
        >>> bool(conical_fsc(a, a + noise, voxel_size=1.5).cfar > 0.6)
        True
    """
    if len({x.shape for x in (a, b, mask) if x is not None}) > 1 or a.ndim != 3:
        raise GridMismatchError(f"FSC of maps with shapes {a.shape} and {b.shape}: both must be (z, y, x), and alike")
    if not 5 <= half_angle_deg <= 90:
        raise GeometryError(f"cones of half-angle {half_angle_deg:g} degrees: it must lie between 5 and 90")
    positive("voxel size", voxel_size, "Å")
    if mask is not None:
        something_in(mask)
    spectra = transform(unit(a), mask), transform(unit(b), mask)
    return conical_fsc_of(*spectra, a.shape, voxel_size, half_angle_deg=half_angle_deg, directions=directions)


def conical_fsc_of(
    a: Spectrum,
    b: Spectrum,
    shape: tuple[int, ...],
    voxel_size: float,
    *,
    half_angle_deg: float = 20.0,
    directions: int = 40,
) -> ConicalFsc:
    """The same of two maps' transforms."""
    axes, cosine = np.concatenate([np.eye(3), _half_sphere(directions)]), math.cos(math.radians(half_angle_deg))
    z, y, x = shape
    longest = max(shape)
    ky, kx = np.fft.fftfreq(y)[:, None], np.fft.rfftfreq(x)
    friedel = np.full(len(kx), 2.0)  # the half transform stands for k and -k ...
    friedel[0] = 1  # ... except on the planes that are their own mirror image
    if x % 2 == 0:
        friedel[-1] = 1
    friedel = np.broadcast_to(friedel, (y, len(kx))).ravel()
    last = longest // 2
    sums = np.zeros((4, len(axes), last + 1))
    for kz, plane_a, plane_b in zip(np.fft.fftfreq(z), a, b, strict=True):
        radius = np.sqrt(kz**2 + ky**2 + kx**2).ravel()
        shell = np.rint(longest * radius).astype(np.intp)
        inside = np.flatnonzero((shell >= 1) & (shell <= last))
        k = np.stack([np.broadcast_to(part, (y, len(kx))).ravel()[inside] for part in (kx, ky, np.asarray(kz))])
        values = (plane_a * plane_b.conj()).real, np.abs(plane_a) ** 2, np.abs(plane_b) ** 2, np.ones(plane_a.shape)
        weighted = [(friedel * value.ravel())[inside] for value in values]
        near = np.abs(axes @ k) >= (cosine - 1e-9) * radius[inside]
        for cone, part in enumerate(near):
            which = np.flatnonzero(part)
            for row, value in zip(sums, weighted, strict=True):
                row[cone] += np.bincount(shell[inside[which]], value[which], minlength=last + 1)
    cross, power_a, power_b, count = sums[:, :, 1:]
    if not (count > 0).all(axis=0).any():
        raise GeometryError(f"a box of shape {shape} is too small for cones of {half_angle_deg:g} degrees")
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = cross / np.sqrt(power_a * power_b)
    correlation[~np.isfinite(correlation)] = np.nan
    frequency = np.arange(1, last + 1) / (longest * voxel_size)
    return ConicalFsc(axes, frequency, correlation, np.rint(count).astype(np.int64))


def _half_sphere(n: int) -> NDArray[np.float64]:
    """Directions (x, y, z) spread evenly, as Fibonacci's spiral does it."""
    i = np.arange(n)
    z, angle = (i + 0.5) / max(n, 1), 2 * math.pi * i / _GOLDEN
    ring = np.sqrt(1 - z**2)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1)
