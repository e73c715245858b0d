"""Where the restoration ends and the data go on: nothing that was measured is lost.

Beyond the prior's band, and where one half restored predicts the other worse than that half itself, the map is what
the best linear filter makes of the data, with the same envelope removed. The two are joined by a raised cosine.
"""

import math

import torch
from torch import Tensor

from cryofm_ops import frequencies, irfft, rfft, shell_sizes
from cryofm_sampling._common import Box, split_shape
from cryofm_sampling.half_maps._fsc import correlation

__all__ = ["joined", "last_trusted"]

_WIDTH = 4  # shells of the join
_SLACK = 0.5  # standard errors by which restored shells together may predict the other half worse than the data do


def last_trusted(predicted: Tensor, half1: Tensor, half2: Tensor) -> float:
    """Up to which part of the Nyquist frequency half 1, restored, predicts half 2 no worse than half 1 itself does.

    Both correlations share half 2, so their difference is judged by its own error, (1 − F²) √(2 / n). Shells are
    trusted to where most has been gained, and on from there to where all of those together lose no more than half of
    their error.

    >>> x = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> last_trusted(x, x, x)
    1.0
    """
    _, shape = split_shape(half1.shape)
    got, had = (correlation(x, half2).double() for x in (predicted, half1))
    sizes = shell_sizes(shape, device=had.device)
    gained = ((got - had + 1e-9) * sizes.sqrt())[1:].cumsum(0)
    variance = (2 * (1 - had.clamp(0, 1).square()).square())[1:].cumsum(0)
    most = int(gained.argmax())
    lost, error = gained[most] - gained[most:], (variance[most:] - variance[most]).sqrt()
    last = most + int((lost <= _SLACK * error).nonzero().max())
    return (last + 1) / len(gained)


def joined(restored: Tensor, linear: Tensor, end: float, limit: float = 1.0) -> Tensor:
    """`restored` below a part of the Nyquist frequency, `linear` above it; `(z, y, x)`, on one grid.

    Args:
        restored: without anything beyond `limit`.
        linear: on the same grid.
        end: where the two have equal weight. The join is four shells wide, less where `limit` is near, and hard at it.
        limit: of the Nyquist frequency.

    >>> round(float(joined(torch.ones(8, 8, 8), torch.zeros(8, 8, 8), 0.5).mean()), 4)
    1.0
    """
    if end >= 1:
        return restored
    _, shape = split_shape(restored.shape)
    weight = _weight(shape, end, limit, restored.device, restored.dtype)
    fine, spectrum = rfft(linear), rfft(restored)
    spectrum.sub_(fine).mul_(weight).add_(fine)
    del fine
    return irfft(spectrum, shape)


def _weight(shape: Box, end: float, limit: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Of what is restored, on the half grid."""
    n = max(shape) // 2 + 1
    last = end * (n - 1)
    half = max(min(_WIDTH / 2, limit * (n - 1) - last), 0.5)
    shell = frequencies(shape, device=device).mul_(2).mul_(n - 1)
    across = shell.sub_(last).sub_(0.5).div_(half).clamp_(-1, 1)  # in place: of large maps it is a large array
    return across.mul_(math.pi / 2).sin_().mul_(-0.5).add_(0.5).to(dtype)
