"""Whether to believe a result: one half, restored, has to predict the other as well as it should.

Its error is seen there as well, since the noise of the other half is its own: E|y₂ − A x̂₁|² = N + |A(x − x̂₁)|². A
sample of what the first half leaves open, s₁, should be as far from x̂₁ as x is. Where a prior is too sure of itself it
is nearer, and the same factor widens the samples of both halves.
"""

import math

import attrs
import torch
from torch import Tensor

from cryofm_ops import fourier_filter, radial_mean, rfft, shell_sizes
from cryofm_sampling._common import split_shape
from cryofm_sampling.half_maps._fsc import correlation

__all__ = ["HeldOut", "held_out", "widening"]

_AGREE = 0.05  # least FSC of shells where the halves say something of each other
_SLOPE = (0.8, 1.3)
_WIDENED = (0.5, 3.0)
_LOST, _UNEXPLAINED = 0.005, 0.01  # of the mean FSC, and of the explained share


@attrs.frozen
class HeldOut:
    """What the first half, restored, says of the second, over the shells where the halves agree (FSC above 0.05).

    Attributes:
        slope: what the prediction has to be multiplied by; about 1.
        gain: mean FSC of restored half 1 with half 2, less that of half 1 itself (which no radial filter changes).
        explained: mean share of half 2 that is explained, less the F² that the best linear filter explains.
    """

    slope: float
    gain: float
    explained: float

    @property
    def worse(self) -> bool:
        """Whether half 2 is better told by half 1 itself."""
        return self.gain < -_LOST

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the result, in plain words; nothing where it is to be believed."""
        doubts = []
        if not _SLOPE[0] <= self.slope <= _SLOPE[1]:
            doubts.append(
                f"one half, restored, has to be multiplied by {self.slope:.2g} to predict the other where they agree "
                f"(right results: {_SLOPE[0]} to {_SLOPE[1]})"
            )
        if self.worse:
            doubts.append(
                f"one half, restored, predicts the other worse than the half itself does (FSC {self.gain:+.3f})"
            )
        elif self.explained < -_UNEXPLAINED:
            doubts.append(
                "one half, restored, explains less of the other than the best linear filter does "
                f"({self.explained:+.3f} of its power)"
            )
        return tuple(doubts)


def held_out(predicted: Tensor, half1: Tensor, half2: Tensor) -> HeldOut:
    """Judge what half 1, restored, predicts of half 2; all `(z, y, x)`, in the units of the data.

    >>> one, two = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0)) + torch.arange(16.0).sin()
    >>> held_out(one, one, two).gain
    0.0
    """
    _, shape = split_shape(half1.shape)
    had = correlation(half1, half2).double()
    used = had > _AGREE
    used[0] = False
    if not used.any():
        used[1:] = True
    p, s = rfft(predicted.double()), rfft(half2.double())
    pairs = (p, s), (p, p), (s, s)
    cross, power, seen = (radial_mean(a.real * b.real + a.imag * b.imag, shape) for a, b in pairs)
    sizes = shell_sizes(shape, device=had.device)
    tiny = torch.finfo(torch.float64).tiny
    slope = float((sizes * cross)[used].sum() / (sizes * power)[used].sum().clamp(min=tiny))
    gain = float((correlation(predicted, half2).double() - had)[used].mean())
    explained = float(((2 * cross - power) / seen.clamp(min=tiny) - had.square())[used].mean())
    return HeldOut(slope, gain, explained)


def widening(predicted: Tensor, drawn: Tensor, half1: Tensor, half2: Tensor, gain: Tensor) -> float:
    """By what samples have to be farther from the mean, for the error that is seen in the other half.

    Args:
        predicted: `(z, y, x)`, what half 1, restored, says of half 2.
        drawn: likewise, what a sample says that was drawn by half 1 alone.
        half1: likewise.
        half2: likewise.
        gain: of the best linear filter, on the half grid, by which all are compared.

    Returns: 0.5 to 3.

    >>> x, *n = torch.randn(4, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> gain = torch.ones(32, 32, 17)
    >>> round(widening(x + n[0], x + n[0] + n[2] / 2, x + n[0], x + n[1], gain), 1)  # 1 is taken for ½
    2.0
    """

    def size(x: Tensor) -> float:
        return float(fourier_filter(x, gain.to(x)).double().square().sum())

    error = size(half2 - predicted) - size(half2 - half1) / 2
    found = max(error, 0) / max(size(drawn - predicted), torch.finfo(torch.float64).tiny)
    return min(max(math.sqrt(found), _WIDENED[0]), _WIDENED[1])
