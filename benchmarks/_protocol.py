"""The paper's protocol (sections 5.1 to 5.3 and C.1): one definition of data, failures and scores for every benchmark.

A crop of a clean map is the truth. Two halves get independent noise; of the missing wedge there is one map, without
noise. The noise is estimated from the halves. The scale is the truth's. A restoration has failed if it ends in an
error, if it is not finite, or if its FSC_0.5 is worse than 30 Å.

Noise levels are the paper's five half-map FSC curves: noise power = signal power (1 − F) / F, shell by shell, with F
from 1e-5 on: half of the shells of the level 15 Å have F = 0, and 1e-4 there would make .005 more of its FSC_AUC. The
anisotropic rows have 50 times the noise power of the level 3.2 Å outside the wedge. The paper does not say which level
and factor it took; these give its three degraded FSC_AUC (.6623, .6324, .6111) within .003.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryofm_io import fsc
from cryofm_ops import (
    AnisotropicNoise,
    FourierGaussian,
    FourierMask,
    MissingWedge,
    SpectralNoise,
    StationaryNoise,
    WhiteNoise,
    estimate_directional_noise,
    gaussian_likelihood,
    irfft,
    radial,
    radial_mean,
    rfft,
    wedge_alpha,
)

CURVES = Path(__file__).parents[1] / "examples" / "data" / "fsc_curves.csv"
VOXEL = 1.5  # Å, of the curves
BOX = (64, 64, 64)
LEVELS = ("3.2A", "4.3A", "6.1A", "8.5A", "15A")
TILTS = (45, 30, 15)  # degrees either way
WEDGE_ROW = "wedge ±60°"
SPECTRAL = tuple(f"spectral {level}" for level in LEVELS)
ANISOTROPIC = tuple(f"anisotropic ±{tilt}°" for tilt in TILTS)
ROWS = (*SPECTRAL, *ANISOTROPIC, WEDGE_ROW)
ALPHA = 50**0.5  # of the amplitude
WEDGE = MissingWedge(-60, 60)
FAILED = 30.0  # Å
DENSITY = 0.15  # where 1 is the brightest
Alpha = Literal["told", "estimated"]


def sides(volume: Tensor) -> tuple[int, int, int]:
    """The sides of a volume."""
    z, y, x = volume.shape
    return z, y, x


def corner(density: NDArray[np.float32], side: int = 64) -> NDArray[np.int_]:
    """Where the cube around the centre of mass begins, in voxels, within a map that is at least as large."""
    centre = np.argwhere(density > 0.13).mean(0).round().astype(int)
    return np.asarray(np.clip(centre - side // 2, 0, np.array(density.shape) - side), dtype=np.int_)


def crop(density: NDArray[np.float32], side: int = 64) -> NDArray[np.float32]:
    """The cube around the centre of mass of the density, padded with zeros where the map is smaller."""
    density = np.pad(density, [(max(0, (side - n + 1) // 2),) * 2 for n in density.shape])
    z, y, x = (slice(s, s + side) for s in corner(density, side))
    return np.ascontiguousarray(density[z, y, x])


def noise_power(truth: Tensor, level: str) -> Tensor:
    """Radial power of one half map's noise at a level: signal power (1 − F) / F, shell by shell."""
    with CURVES.open(newline="") as file:
        curve = [1.0] + [float(row[level]) for row in csv.DictReader(file)]
    signal = radial_mean(rfft(truth).abs() ** 2, sides(truth))
    at_shells = np.interp(np.linspace(0, 1, len(signal)), np.linspace(0, 1, len(curve)), curve)
    f = torch.from_numpy(at_shells).to(truth).clamp(1e-5, 1 - 1e-6)
    return signal * (1 - f) / f


@attrs.frozen(eq=False)
class Degraded:
    """The data of one map in one row.

    Attributes:
        maps: two halves, or the one map of the wedge.
        likelihoods: of each, its noise as the halves tell it.
        of_mean: the likelihood of their mean.
    """

    maps: tuple[Tensor, ...]
    likelihoods: tuple[FourierGaussian, ...]
    of_mean: FourierGaussian

    @property
    def mean(self) -> Tensor:
        """What a restoration has to improve on."""
        return sum(self.maps[1:], self.maps[0]) / len(self.maps)


def degraded(row: str, truth: Tensor, generator: torch.Generator, alpha: Alpha = "told") -> Degraded:
    """The data of a row of `ROWS`, and what is told or estimated of their noise."""
    if row == WEDGE_ROW:
        y = WEDGE(truth)
        likelihood = gaussian_likelihood(WEDGE, WhiteNoise(0.0), y)
        return Degraded((y,), (likelihood,), likelihood)
    noise: StationaryNoise
    if row in SPECTRAL:
        noise = SpectralNoise(noise_power(truth, row.removeprefix("spectral ")))
    else:
        tilt = TILTS[ANISOTROPIC.index(row)]
        direction = wedge_alpha(-tilt, tilt, ALPHA)
        noise = AnisotropicNoise(noise_power(truth, LEVELS[0]), direction)
    one, two = (noise.sample(truth, generator=generator) for _ in range(2))
    if row in SPECTRAL:
        W = 1 / SpectralNoise.from_half_maps(one, two).power(sides(truth))
    elif alpha == "told":
        W = 1 / AnisotropicNoise.from_half_maps(one, two, direction).power(sides(truth))
    else:
        power, measured = estimate_directional_noise(one, two).on_grid(sides(truth))
        W = (measured.square() / power).to(truth)
    halves = (FourierGaussian(W, rfft(half), sides(truth)) for half in (one, two))
    return Degraded((one, two), tuple(halves), FourierGaussian(2 * W, rfft((one + two) / 2), sides(truth)))


def wiener(likelihood: FourierGaussian, truth: Tensor) -> Tensor:
    """The best linear filter per shell, told the truth's own power."""
    signal = radial_mean(rfft(truth).abs() ** 2, sides(truth))
    W, y, P = likelihood.spectral_precision(), likelihood.spectral_data(), radial(signal, likelihood.shape)
    return irfft(torch.where(W > 0, P / (P + 1 / W) * y, 0), likelihood.shape)


@attrs.frozen
class Score:
    """What is said of one estimate.

    Attributes:
        auc: FSC_AUC, the mean FSC against the truth.
        fsc05: FSC_0.5, Å; infinite where no shell reaches 0.5.
        auc_gap: FSC_AUC of the missing region; NaN where nothing is missing.
        error: squared error over the truth's squares.
        recall: part of the truth's density where the estimate has density too.
        precision: part of the estimate's density where the truth has density too.
    """

    auc: float
    fsc05: float
    auc_gap: float = math.nan
    error: float = math.nan
    recall: float = math.nan
    precision: float = math.nan

    @classmethod
    def of(cls, x: Tensor | None, truth: Tensor, voxel_size: float, wedge: MissingWedge | None = None) -> "Score":
        """Of an estimate; None is one that does not exist."""
        if x is None or not x.isfinite().all():
            return NO_RESULT
        curve = fsc(x.numpy(), truth.numpy(), voxel_size)
        gap = math.nan
        if wedge is not None:
            missing = FourierMask(1 - wedge.transfer(sides(truth)).to(truth), sides(truth))
            gap = fsc(missing(x).numpy(), missing(truth).numpy(), voxel_size).auc
        true, found = truth > DENSITY, x > DENSITY
        both = (true & found).sum()
        return cls(
            auc=curve.auc,
            fsc05=curve.resolution(0.5),
            auc_gap=gap,
            error=float((x - truth).square().sum() / truth.square().sum()),
            recall=float(both / true.sum().clamp(min=1)),
            precision=float(both / found.sum().clamp(min=1)),
        )

    @property
    def failed(self) -> bool:
        """The paper's criterion (C.1)."""
        return not self.fsc05 <= FAILED


NO_RESULT = Score(0.0, math.inf)


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation of the population that they are a sample of (n − 1); NaN where there is none."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return float(np.mean(values)) if len(values) else math.nan, sd


@attrs.frozen
class Summary:
    """What a table of the paper says of several maps; each (mean, standard deviation).

    Attributes:
        n: maps.
        fail_rate: FR.
        auc, fsc05, auc_gap: without the failed ones, as in the paper.
        auc_of_all, fsc05_of_all, auc_gap_of_all: with them; what does not exist has an FSC of 0, and a resolution that
            does not exist counts as the side of the box.
    """

    n: int
    fail_rate: float
    auc: tuple[float, float]
    fsc05: tuple[float, float]
    auc_gap: tuple[float, float]
    auc_of_all: tuple[float, float]
    fsc05_of_all: tuple[float, float]
    auc_gap_of_all: tuple[float, float]

    @classmethod
    def of(cls, scores: Sequence[Score], side: float) -> "Summary":
        """Of every map's score; the side of the box in Å."""
        good = [score for score in scores if not score.failed]
        gaps = any(not math.isnan(score.auc_gap) for score in scores)
        return cls(
            n=len(scores),
            fail_rate=1 - len(good) / len(scores),
            auc=mean_sd([score.auc for score in good]),
            fsc05=mean_sd([score.fsc05 for score in good]),
            auc_gap=mean_sd([score.auc_gap for score in good]),
            auc_of_all=mean_sd([score.auc for score in scores]),
            fsc05_of_all=mean_sd([min(score.fsc05, side) for score in scores]),
            auc_gap_of_all=mean_sd([np.nan_to_num(score.auc_gap) if gaps else math.nan for score in scores]),
        )
