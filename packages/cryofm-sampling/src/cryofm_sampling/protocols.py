"""What the algorithms need of a prior, and what they are and return.

Any class with the methods has the capability; it need not import anything from here. Volumes are
`(*batch, z, y, x)`. Flow times run from 1 (noise) to 0 (data): x_t = (1 − t) x_0 + t x_1, v = x_1 − x_0.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor

from cryofm_ops import Likelihood

__all__ = [
    "Calibrated",
    "Callback",
    "ConditionalVelocityField",
    "Draw",
    "RunCallback",
    "Sampler",
    "SpectrallyCalibrated",
    "VelocityField",
]


@runtime_checkable
class VelocityField(Protocol):
    """A flow prior: the velocity E[x_1 − x_0 | x_t], in model units."""

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """dx/dt at x `(*batch, z, y, x)` and t in [0, 1], a scalar or `(batch,)`; shaped as x."""
        ...


@runtime_checkable
class ConditionalVelocityField(Protocol):
    """A flow prior that may be shown a volume: E[x_1 − x_0 | x_t, y]. `Conditioned` makes a `VelocityField` of it."""

    def given(self, x: Tensor, t: Tensor, volume: Tensor | None, tag: int | None, /) -> Tensor:
        """dx/dt at x `(*batch, z, y, x)` and t in [0, 1], a scalar or `(batch,)`; shaped as x.

        Args:
            x: model units.
            t: 1 is noise.
            volume: what is shown, of a shape that expands to x's, in model units; None shows nothing.
            tag: which kind of volume, of those that it was trained with; None: its own choice.
        """
        ...


@runtime_checkable
class Calibrated(Protocol):
    """Statistics that a prior may carry, in model units; `calibrate` measures them."""

    @property
    def signal_power(self) -> Tensor:
        """P(ν): radial table of the data's mean power per coefficient of the orthonormal FFT."""
        ...

    @property
    def denoising_error(self) -> Tensor:
        """`(k, 2)`: flow time t, increasing, and E|x̂_0 − x_0|² per voxel."""
        ...


@runtime_checkable
class SpectrallyCalibrated(Protocol):
    """A statistic that a `Calibrated` prior may carry besides, in model units; `calibrate` measures it."""

    @property
    def denoising_spectrum(self) -> Tensor:
        """`(k, 1 + n)`: flow time t, increasing, and a radial table of E|x̂_0 − x_0|² per coefficient."""
        ...


@runtime_checkable
class Callback(Protocol):
    """Is told of every step; for progress bars and for watching a run."""

    def __call__(self, step: int, total: int, x_0: Tensor, /) -> object:
        """After step `step` of `total` (from 1), with the current estimate of x_0, in model units.

        `Flow` shows x_t instead, and `AbInitio` x_0 as densities on the prior's scale.
        """
        ...


@runtime_checkable
class RunCallback(Protocol):
    """A `Callback` that is told which of several runs it hears of, where `restore` draws samples one after another."""

    def __call__(self, step: int, total: int, x_0: Tensor, /) -> object:
        """As a `Callback`; of a run that is the only one."""
        ...

    def of_run(self, run: int, runs: int, /) -> Callback:
        """What is told of the steps of run number `run` (from 1) of `runs`."""
        ...


@attrs.frozen(eq=False)
class Draw:
    """What a run returns.

    Attributes:
        x: the volumes, `(*batch, z, y, x)`.
        nfe: network evaluations spent on each volume; a backward pass through the network counts as one more.
        settings: the algorithm and every setting of it, as plain values; `note`, where there is one, is what
            conditioning on the data had to say, such as that there are several modes.
        misfit: how well each volume explains the data, about 1 where it does (see `misfit`); `restore` fills it in, and
            leaves None where nothing can be said.
        calls: of the operator, or of a `log_prob` that has none, in all; counted by `restore`. Data that are diagonal
            in Fourier space need none.
        mode: the most probable volume, where `x` is the mean given data that are not Gaussian. The misfit is then its
            own: the mean of a skewed distribution may lie where no data are explained.
    """

    x: Tensor
    nfe: int
    settings: Mapping[str, object]
    misfit: Tensor | None = None
    calls: int = 0
    mode: Tensor | None = None


@runtime_checkable
class Sampler(Protocol):
    """An algorithm that brings a prior and a likelihood together. Everything is in model units."""

    def __call__(
        self,
        velocity: VelocityField,
        likelihood: Likelihood,
        /,
        *,
        shape: tuple[int, ...],
        generator: torch.Generator,
        callback: Callback | None = None,
    ) -> Draw:
        """Volumes of `shape` `(*batch, z, y, x)`, conditioned on the data that the likelihood holds."""
        ...
