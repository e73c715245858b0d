"""What measured maps show and maps simulated from atoms lack, put on top of simulated crops (extra ``[train]``)."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["MARGIN", "imitate_measured"]

MARGIN = 4  # voxels around a crop that the filters, which are periodic, may spoil


def imitate_measured(density: NDArray[np.float32], voxel_size: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A simulated density as an experiment might have shown it; every effect is drawn anew.

    Beside deposited maps, maps made from atoms have too little power below 1/8 Å (the molecule's contrast with the
    ice) for their power beyond 1/6 Å, too weak a bump at 4 to 5 Å, one resolution everywhere, and empty solvent.
    So, in this order: a radial filter (B factor, contrast, bump); a blur that comes and goes over 20 Å (half of the
    crops); the highest value back to what it was, within 10 %; a halo of correlated noise, strongest within
    6 Å of the molecule (half of the crops); negative values set to 0.

    Args:
        density: (z, y, x), solvent 0 and the densest atoms about 1, with `MARGIN` voxels to spare on every side.
        voxel_size: Å.
        rng: draws the effects.

    Returns:
        An array of the same shape.

    >>> blob = np.zeros((24, 24, 24), np.float32); blob[9:15, 9:15, 9:15] = 1
    >>> imitate_measured(blob, 1.5, np.random.default_rng(0)).min() >= 0
    np.True_
    """
    s = _frequency(density.shape, voxel_size)
    spectrum = _forward(density)
    contrast, bump, b = rng.uniform(0, 1), rng.uniform(0, 0.5), rng.uniform(-10, 90)
    gain = 1 + contrast / (1 + (8 * s) ** 6) + bump * np.exp(-(((s - 1 / 4.6) / 0.03) ** 2) / 2)
    spectrum_measured = spectrum * gain * _b_factor(s, b)
    measured = _inverse(spectrum_measured, density.shape)
    if rng.random() < 0.5:
        disorder = np.clip(1.5 * _correlated(s, 20.0, density.shape, rng), 0, 1)
        blurred = _inverse(spectrum_measured * _b_factor(s, rng.uniform(50, 200)), density.shape)
        measured += disorder * (blurred - measured)
    measured *= rng.uniform(0.9, 1.1) * density.max() / max(float(measured.max()), 1e-6)
    if rng.random() < 0.5:
        core = _forward(np.minimum(density, 0.5))
        near = np.clip(4 * _inverse(core * _gaussian(s, 5.0), density.shape), 0, 1)
        solvent = 1 - np.clip(4 * _inverse(spectrum * _gaussian(s, 1.5), density.shape), 0, 1)
        strength = rng.uniform(0, 0.02) + rng.uniform(0, 0.05) * near
        measured += solvent * strength * _correlated(s, rng.uniform(4, 10), density.shape, rng)
    np.maximum(measured, 0, out=measured)
    return measured


def _correlated(
    s: NDArray[np.float32], length: float, shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Gaussian noise of unit variance whose amplitude falls by e^-½ at the frequency 1/``length``, Å."""
    white = _forward(rng.standard_normal(shape, np.float32))
    noise = _inverse(white * np.exp(-((s * length) ** 2) / 2), shape)
    return noise / max(float(noise.std()), 1e-6)


def _b_factor(s: NDArray[np.float32], b: float) -> NDArray[np.float32]:
    return np.asarray(np.exp(-b / 4 * s**2))


def _gaussian(s: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """The transform of a blur with a standard deviation of ``sigma``, Å."""
    return np.asarray(np.exp(-((2 * np.pi * sigma * s) ** 2) / 2))


def _forward(volume: NDArray[np.float32]) -> NDArray[np.complex64]:
    from scipy.fft import rfftn

    return np.asarray(rfftn(volume), dtype=np.complex64)


def _inverse(spectrum: NDArray[np.complex64], shape: tuple[int, ...]) -> NDArray[np.float32]:
    from scipy.fft import irfftn

    return np.asarray(irfftn(spectrum, s=shape), dtype=np.float32)


@lru_cache(maxsize=16)  # of a run's few sizes of crops
def _frequency(shape: tuple[int, int, int], voxel_size: float) -> NDArray[np.float32]:
    """|s| on the half grid, 1/Å."""
    z, y = (np.fft.fftfreq(n, voxel_size) for n in shape[:2])
    x = np.fft.rfftfreq(shape[2], voxel_size)
    return np.asarray(np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2), dtype=np.float32)
