"""A normal distribution over volumes: what conditioning returns."""

import math
from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor

from cryofm_ops.fourier.grid import fourier_filter, standard_normal

__all__ = ["Deviations", "Normal"]

Generators = torch.Generator | Sequence[torch.Generator]


@attrs.frozen(eq=False)
class Deviations:
    """The covariance of a `Normal` that is known by its draws alone, where many are drawn as one batch.

    Attributes:
        draw: from a generator to a deviation from the mean, `(*batch, z, y, x)`; from n generators to n of them.
    """

    draw: Callable[[Generators], Tensor]

    def __call__(self, generator: torch.Generator, /) -> Tensor:
        """One deviation."""
        return self.draw(generator)


def drawn(draw: Callable[[torch.Generator], Tensor], generators: Generators) -> Tensor:
    """What `draw` makes of a generator, or of each of n, `(n, ...)`."""
    if isinstance(generators, torch.Generator):
        return draw(generators)
    return torch.stack([draw(generator) for generator in generators])


@attrs.frozen(eq=False)
class Normal:
    """A normal distribution over volumes.

    Attributes:
        mean: `(*batch, z, y, x)`.
        variance: the covariance, in one of three forms: a number (white); variances per coefficient of the
            orthonormal FFT, on the half grid `(..., z, y, x // 2 + 1)` (stationary); or, where it is known
            only by its draws, a function from a generator to a deviation from the mean.
        note: what there is to say about how it was found, such as that there are several modes; mostly nothing.
        several: whether other modes were found that are about as probable.

    >>> import torch
    >>> normal = Normal(torch.zeros(4, 4, 4), 0.0)
    >>> bool(torch.equal(normal.sample(torch.Generator().manual_seed(0)), normal.mean))
    True
    """

    mean: Tensor
    variance: Tensor | float | Callable[[torch.Generator], Tensor]
    note: str = ""
    several: bool = False

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

    def deviations(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draws less the mean, one for each of n generators, `(n, *batch, z, y, x)`."""
        if isinstance(self.variance, Deviations):
            return self.mean + self.variance.draw(generators) - self.mean
        return torch.stack([self.sample(generator) - self.mean for generator in generators])
