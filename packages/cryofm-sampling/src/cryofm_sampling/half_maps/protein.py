"""The Wilson plot of halves against the spectrum that all proteins have: log S = level + log P − B ν² / 2.

Beyond 6 Å the power P of proteins differs little from one to the other, so that the halves' signal power S tells B.

What two halves agree about need not be signal. The interpolation of a reconstruction program leaves a ten-thousandth
of the strong, coarse shells in the fine ones, in both halves alike (measured with RELION: above the signal beyond 2.5 Å
where B is 150 Å²). There S leaves the line upwards, and there the line ends; what is above it is no signal. It falls
slowly, so that what is left of it in the shells of the line is known, and taken from S.
"""

from typing import Self

import attrs
import torch
from torch import Tensor

from cryofm_ops import NoiseEstimate, shell_sizes
from cryofm_sampling._common import Box

__all__ = ["PROTEINS_FROM", "ProteinPlot", "log_power", "weighted_line"]

_AGREE = 0.15  # least FSC
PROTEINS_FROM, _STEP = 0.16, 0.03  # 1/Å
# Mean log power of 28 maps of training structures, 1.0 Å voxels, atoms of 20 Å² and more (5th percentile); with it B
# of such a map is 0 with an sd of 3 Å², or of 4 to 2.8 Å.
_PROTEIN = (1.81, 2.0, 2.05, 1.64, 1.1, 0.53, 0.0, -0.45, -0.79, -1.1)
_TOLD_TO = 0.28  # 1/Å, to which B is told at least
_ABOVE = 0.2  # in log S over the line of the shells before, that is no signal any more
_FEWEST = 3  # shells of a line
_ROUNDS, _MOST = 3, 0.5  # of line and what is above it; part of a shell of the line


@attrs.frozen
class ProteinPlot:
    """A line through (ν², log S − log P), in squared units of the data.

    Attributes:
        b_factor: B in Å².
        middle: the weighted mean of ν², 1/Å².
        height: of log S − log P, likewise.
        end: the last frequency at which the halves agree about what can be signal, 1/Å.
        beyond: whether they agree beyond it, about what is none.
    """

    b_factor: float
    middle: float
    height: float
    end: float
    beyond: bool

    @classmethod
    def of(cls, noise: NoiseEstimate, shape: Box, voxel_size: float) -> Self | None:
        """Of halves of that shape and voxel size (Å); None where they agree about nothing finer than 6 Å."""
        fsc, n = noise.fsc.double().cpu().nan_to_num(0), len(noise.fsc)
        nu = torch.linspace(0, 0.5 / voxel_size, n, dtype=torch.float64)
        first = int((nu < PROTEINS_FROM).sum())
        apart = (fsc[first:] < _AGREE).nonzero()
        last = first + int(apart[0]) if len(apart) else n
        if last - first < _FEWEST:
            return None
        power = noise.signal_power.double().cpu().clamp(min=1e-30)
        y = power.log() - log_power(nu)
        weight = shell_sizes(shape, n) * fsc

        def line(end: int) -> tuple[float, float, float]:
            return weighted_line(nu[first:end] ** 2, y[first:end], weight[first:end])

        end = min(last, max(first + _FEWEST, int((nu <= _TOLD_TO).sum())))
        while end < last:
            middle, height, slope = line(end)
            if y[end] > height + slope * (float(nu[end]) ** 2 - middle) + _ABOVE:
                break
            end += 1
        middle, height, slope = line(end)
        for _ in range(_ROUNDS if last - end >= _FEWEST else 0):
            above = (power - (log_power(nu) + height + slope * (nu**2 - middle)).exp()).clamp(min=1e-30).log()
            at, level, fall = weighted_line(nu[end:last], above[end:last], weight[end:last])
            other = torch.minimum((level + fall * (nu - at)).exp(), _MOST * power)
            y = (power - other).log() - log_power(nu)
            middle, height, slope = line(end)
        return cls(-2 * slope, middle, height, float(nu[end - 1]), end < last)

    @property
    def told(self) -> bool:
        """Whether the line is long enough for its slope to mean something."""
        return self.end >= _TOLD_TO

    def highest(self, nu: Tensor) -> Tensor:
        """The power at frequencies in 1/Å above which nothing is signal; infinite where nothing is known."""
        line = self.height - self.b_factor / 2 * (nu**2 - self.middle)
        return torch.where((nu < PROTEINS_FROM) | (not self.told), torch.inf, (log_power(nu) + line + _ABOVE).exp())

    def sharp(self, nu: Tensor, b_factor: float) -> Tensor:
        """The power of the density itself, where B is that; beyond 6 Å."""
        return (log_power(nu) + self.height + b_factor / 2 * self.middle).exp()


def log_power(nu: Tensor) -> Tensor:
    """Of proteins, at frequencies in 1/Å; linear between and beyond the entries of the table."""
    place, table = (nu - PROTEINS_FROM) / _STEP, torch.tensor(_PROTEIN, dtype=nu.dtype, device=nu.device)
    low = place.floor().clamp(0, len(table) - 2).long()
    return torch.lerp(table[low], table[low + 1], place - low)


def weighted_line(x: Tensor, y: Tensor, weight: Tensor) -> tuple[float, float, float]:
    """Means of x and y, and the slope of y on x, weighted."""

    def mean(q: Tensor) -> float:
        return float((weight * q).sum() / weight.sum())

    x0, y0 = mean(x), mean(y)
    return x0, y0, mean((x - x0) * (y - y0)) / max(mean((x - x0) ** 2), 1e-12)
