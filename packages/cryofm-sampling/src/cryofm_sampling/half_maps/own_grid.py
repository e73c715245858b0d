"""From the prior's grid back to the halves' own, and on with the data where restoring ends."""

import attrs
import torch
from torch import Tensor

from cryofm_ops import fourier_filter
from cryofm_sampling.half_maps.fine import FineFilter
from cryofm_sampling.half_maps.join import joined
from cryofm_sampling.half_maps.model import FourierModel, ObservedModel
from cryofm_sampling.half_maps.result import Grid

__all__ = ["OwnGrid"]


@attrs.frozen(eq=False)
class OwnGrid:
    """What becomes of volumes on the prior's grid: of y, data, of x, what was restored of them, and of samples.

    Attributes:
        grid: the way back.
        model: how the halves came about, on the prior's grid.
        amplitude: what all that was restored is multiplied by.
        centre: `(z, y, x)`, the restored mean, about which samples are spread.
        fine: what the best linear filter makes of data on their own grid; None where nothing is left to it.
        end: where restoring ends, a part of the halves' Nyquist frequency.
        nowhere: whether that is at 0: the linear filter's map is taken whole, samples aside, which then still say the
            least that is not known.
    """

    grid: Grid
    model: FourierModel | ObservedModel
    amplitude: float
    centre: Tensor
    fine: FineFilter | None
    end: float
    nowhere: bool

    def linear(self, y: Tensor, data: Tensor) -> Tensor:
        """The best linear filter of y, the data on the prior's grid; beyond that of the data themselves."""
        x = fourier_filter(y, self.model.gain.to(y))
        x = self.grid.inverse(x - (x.mean() - self.amplitude * self._in_solvent(self.centre).mean()))
        return x if self.fine is None else self._joined(x, self.fine(data))

    def restored(self, x: Tensor, y: Tensor, data: Tensor) -> Tensor:
        """X, joined with what the linear filter makes of the data beyond."""
        if self.nowhere:
            return self.linear(y, data)
        x = self._inverse(x)
        return x if self.fine is None else self._joined(x, self.fine(data, x))

    def sample(self, x: Tensor, data: Tensor, *, widening: float, generator: torch.Generator) -> Tensor:
        """A sample x, `widening` times as far from the mean, joined with a draw of what the filter leaves open."""
        x = self._inverse(torch.lerp(self.centre, x, widening))
        if self.fine is None or self.nowhere:
            return x
        return self._joined(x, self.fine(data, x, generator))

    def _inverse(self, x: Tensor) -> Tensor:
        return self.amplitude * self.grid.inverse(self._in_solvent(x))

    def _in_solvent(self, x: Tensor) -> Tensor:
        """With the contrast that the data have, and the prior's maps have not."""
        return self.model.in_solvent(x) if isinstance(self.model, FourierModel) else x

    def _joined(self, x: Tensor, fine: Tensor) -> Tensor:
        return joined(x, fine, self.end, min(1 / self.grid.band, 1.0))
