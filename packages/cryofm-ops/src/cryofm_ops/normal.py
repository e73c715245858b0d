"""A normal distribution over volumes: what conditioning returns."""

import math
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from cryofm_ops.fourier.grid import fourier_filter, standard_normal

__all__ = ["Normal"]


@attrs.frozen(eq=False)
class Normal:
    """A normal distribution over volumes.

    Attributes:
        mean: `(*batch, z, y, x)`.
        variance: the covariance, in one of three forms: a number (white); variances per coefficient of the
            orthonormal FFT, on the half grid `(..., z, y, x // 2 + 1)` (stationary); or, where it is known
            only by its draws, a function from a generator to a deviation from the mean.

    >>> import torch
    >>> normal = Normal(torch.zeros(4, 4, 4), 0.0)
    >>> bool(torch.equal(normal.sample(torch.Generator().manual_seed(0)), normal.mean))
    True
    """

    mean: Tensor
    variance: Tensor | float | Callable[[torch.Generator], Tensor]

    def sample(self, generator: torch.Generator) -> Tensor:
        """One draw for every element of the batch, in order, shaped as `mean`."""
        if callable(self.variance):
            return self.mean + self.variance(generator)
        z = standard_normal(self.mean, generator)
        if not isinstance(self.variance, Tensor):
            return self.mean + math.sqrt(self.variance) * z
        if self.variance.ndim == 0:
            return self.mean + self.variance.sqrt() * z
        return self.mean + fourier_filter(z, self.variance.sqrt())
