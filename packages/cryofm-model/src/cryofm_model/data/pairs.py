"""Pairs to train a conditional prior on: a crop, and what an experiment might have made of it."""

from typing import Protocol, runtime_checkable

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryofm_model._kinds import fraction
from cryofm_model.data.mixture import CropSource
from cryofm_model.prior import Normalization
from cryofm_model.weights._settings import settings_of_its_kind

__all__ = ["Degraded", "PairSource", "degraded", "drawn"]

_WEDGE, _DIRECTIONAL = 0.15, 0.3  # of the crops: nothing measured in a wedge, or more noise there
_TOP = 99.999  # percentile that is full density
_JITTER = 0.15  # of the scale, for the percentile of a map is not that of a crop


@runtime_checkable
class PairSource(Protocol):
    """What the training of a conditional network draws from."""

    def pairs(self, batch: int, side: int, rng: np.random.Generator, /) -> tuple[Tensor, Tensor]:
        """Crops `(batch, z, y, x)` and their conditions `(batch, 2, z, y, x)`, both in model units; draws from ``rng``
        alone."""
        ...


def drawn(source: CropSource, batch: int, side: int, rng: np.random.Generator) -> tuple[Tensor, Tensor | None]:
    """Crops, and their conditions where the source has any."""
    return source.pairs(batch, side, rng) if isinstance(source, PairSource) else (source.crops(batch, side, rng), None)


@attrs.frozen
class Degraded:
    """Crops of another source, each beside a volume `degraded` from it and a flag that says so.

    Attributes:
        clean: the crops.
        normalization: of them.
        dropped: fraction of the crops beside which nothing is shown, that is zeros.
    """

    clean: CropSource
    normalization: Normalization = attrs.field(validator=settings_of_its_kind)
    dropped: float = attrs.field(default=0.1, validator=fraction)

    def crops(self, batch: int, side: int, rng: np.random.Generator) -> Tensor:
        """The crops alone."""
        return self.clean.crops(batch, side, rng)

    def pairs(self, batch: int, side: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """As `PairSource.pairs`."""
        mean, std = self.normalization.mean, self.normalization.std
        crops, conditions = [], torch.zeros(batch, 2, side, side, side)
        for condition in conditions:
            crop = self.clean.crops(1, side, rng)[0]
            crops.append(crop)
            if rng.random() >= self.dropped:
                seen = degraded((crop * std + mean).numpy(), rng)
                condition[0] = (torch.from_numpy(seen) - mean) / std
                condition[1] = 1
        return torch.stack(crops), conditions


def degraded(density: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A map with noise, filter and blur, as half maps average to and as people deposit; every effect is drawn anew.

    The noise is about as strong as the signal at a frequency between 1/20 and 1/3 of the voxels' inverse size, flat
    below it and steep beyond, and on some crops stronger in a wedge of directions, or nothing was measured there. The
    filter is a power of the Wiener filter for it, from its square root to itself; the blur exp(-B s²/4).

    Args:
        density: (z, y, x), full density 1.
        rng: draws the effects.

    Returns:
        An array of the same shape, whose 99.999th percentile is about 1; values below 0 are kept.

    >>> blob = np.zeros((16, 16, 16), np.float32); blob[5:11, 5:11, 5:11] = 1
    >>> seen = degraded(blob, np.random.default_rng(0))
    >>> seen.shape, bool(seen.min() < 0)
    ((16, 16, 16), True)
    """
    from scipy.fft import irfftn, rfftn

    shape = density.shape
    k, tilt_deg = _frequency(shape)
    y = np.asarray(rfftn(density, norm="ortho"), np.complex64)
    last = min(shape) // 2
    shell = np.minimum((2 * last * k).round().astype(int), last)
    radial = np.bincount(shell.ravel(), np.abs(y).ravel() ** 2) / np.bincount(shell.ravel()) + 1e-12
    power = radial[shell]

    cut = np.exp(rng.uniform(np.log(0.05), np.log(0.5)))
    level = radial[round(2 * last * cut)] * np.exp(rng.uniform(-2, 1))
    noise = level * (1 + np.minimum((k / cut) ** np.exp(rng.uniform(np.log(2), np.log(24))), 10 ** rng.uniform(0, 3.5)))
    kind, tilt = rng.random(), rng.uniform(15, 65)
    within = tilt_deg > tilt
    if _WEDGE <= kind < _WEDGE + _DIRECTIONAL:
        noise = np.where(within, noise * rng.uniform(4, 100), noise)
    gain = (power / (power + noise)) ** rng.uniform(0.5, 1)
    gain *= np.exp(-rng.uniform(0, 12) * (rng.random() < 0.5) * k**2)  # B in units of the voxel's area
    white = np.asarray(rfftn(rng.standard_normal(shape, np.float32), norm="ortho"), np.complex64)
    if kind < _WEDGE:
        noise, gain = noise * 10 ** rng.uniform(-4, 0), np.where(within, 0, gain ** rng.integers(2))
    seen = np.asarray(irfftn((y + white * np.sqrt(noise)) * gain, s=shape, norm="ortho"), np.float32)
    top = float(np.percentile(seen, _TOP)) * np.exp(rng.uniform(-_JITTER, _JITTER))
    return seen / np.float32(max(top, 1e-6))


def _frequency(shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """|k| in cycles a voxel and the angle of ±k about the axis y, degrees from the plane z = 0, on the half grid."""
    z, y = np.fft.fftfreq(shape[0])[:, None, None], np.fft.fftfreq(shape[1])[:, None]
    x = np.fft.rfftfreq(shape[2])
    k = np.sqrt(z**2 + y**2 + x**2)
    angle = np.degrees(np.arctan2(np.abs(z), np.abs(x))) + 0 * y
    return k.astype(np.float32), angle.astype(np.float32)
