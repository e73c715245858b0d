"""What is finer than the prior knows: the best linear filter of the data, plain, or with regard to where the signal is.

With S and N the power of signal and noise in a shell, a box's mean of the signal, the best filter is S / (S + N). But a
molecule fills a part of its box, with a signal that is v(r) times the mean in the place r (1 in the mean), and so does
every atom. The filter v S / (v S + N) of that place keeps more within, and nothing where there is nothing. v is the
local mean of the squared density that the prior restored: it holds nothing of the noise of finer shells. This is the
masked map that a microscopist would look at, but for a mask that is told by the data, and softer where they say less.
"""

from collections.abc import Iterator
from typing import Self

import attrs
import torch
from torch import Tensor

from cryofm_ops import Envelope, NoiseEstimate, irfft, radial, rfft, shell_sizes
from cryofm_sampling._common import Box, split_shape, white_noise
from cryofm_sampling.half_maps.protein import PROTEINS_FROM, ProteinPlot

__all__ = ["FineFilter"]

_LEVELS = 4.0 ** torch.arange(-3, 4)  # of v; the filter is interpolated between them in log v
_CHANCE = 2.0  # standard errors of an FSC that may be chance (of 1, 1.5, 2 and 3 the best on two training structures)
_KEPT = 1e-3  # of one, that is kept of every shell
_SLAB = 16  # sections that are transformed at a time


@attrs.frozen(eq=False)
class FineFilter:
    """The best linear filter of the mean of two halves on their own grid, an envelope removed.

    Attributes:
        signal: radial table of the power S that is kept.
        common: likewise, of what the halves agree about that is no signal.
        noise: likewise, N of the mean of both halves.
        expected: likewise, of the signal that proteins have there, whether the halves show it or not.
        sharpening: 1 / ĥ, likewise.
        width: sd in voxels, over which v is a mean.
    """

    signal: Tensor
    common: Tensor
    noise: Tensor
    expected: Tensor
    sharpening: Tensor
    width: float

    @classmethod
    def of(cls, found: NoiseEstimate, shape: Box, *, voxel_size: float, b_factor: float, width: float) -> Self:
        """By what was found of halves of that shape (z, y, x); voxel size and width in Å."""
        n, device = len(found.fsc), found.fsc.device
        total = (found.signal_power + found.noise_power).double()
        agreed = total * _sure(found.fsc.double().nan_to_num(0), shell_sizes(shape, n, device=device))
        envelope = Envelope(b_factor, voxel_size).table(n).to(device)
        plot = ProteinPlot.of(found, shape, voxel_size)
        signal = expected = agreed
        if plot is not None:
            nu = torch.linspace(0, 0.5 / voxel_size, n, dtype=torch.float64, device=device)
            signal = torch.minimum(agreed, plot.highest(nu))
            fine = plot.sharp(nu, b_factor) * envelope.square()
            expected = torch.where(nu < PROTEINS_FROM, signal, fine)
        return cls(signal, agreed - signal, (total - agreed) / 2, expected, 1 / envelope, width / voxel_size)

    def __call__(
        self, data: Tensor, restored: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The data `(z, y, x)` filtered, with regard to where what was restored of them has density, if that is given.

        With a generator, a sample: what the filter leaves open is drawn.

        >>> from cryofm_ops import estimate_noise_power
        >>> halves = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> found = estimate_noise_power(*halves)
        >>> fine = FineFilter.of(found, (16, 16, 16), voxel_size=1.0, b_factor=0.0, width=1.5)
        >>> bool((fine(halves[0], torch.zeros(16, 16, 16)).abs() < 1e-3).all())
        True
        """
        _, shape = split_shape(data.shape)
        if restored is None:
            return torch.cat(list(self._filtered(rfft(data), shape, self._gain(1.0))), -3).to(data)
        v, levels = self._where(restored), _LEVELS.to(data)
        x, logs = v.log_(), levels.log().tolist()
        step, lowest, highest = logs[1] - logs[0], float(x.min()), float(x.max())
        out, open_ = torch.zeros_like(data), torch.zeros(())
        parts = [(out, rfft(data), self._gain)]
        if generator is not None:
            open_ = torch.zeros_like(data)
            parts.append((open_, rfft(white_noise(shape, generator, data)), lambda v: self._error(v).sqrt()))
        for level, log in zip(levels.tolist(), logs, strict=True):
            if (log > logs[0] and highest <= log - step) or (log < logs[-1] and lowest >= log + step):
                continue  # no place is near it
            for total, spectrum, table in parts:
                slabs = (torch.split(total, _SLAB, -3), torch.split(x, _SLAB, -3))
                for sum_, at, filtered in zip(*slabs, self._filtered(spectrum, shape, table(level)), strict=True):
                    near = at.clamp(logs[0], logs[-1]).sub_(log).abs_().div_(-step).add_(1).clamp_(min=0)
                    sum_.addcmul_(near, filtered)
        faint = x.sub_(logs[0]).exp_().clamp_(max=1)
        out *= faint
        return out if generator is None else out.addcmul_(open_, faint.sqrt_())

    @staticmethod
    def _filtered(spectrum: Tensor, shape: Box, table: Tensor) -> Iterator[Tensor]:
        """Slabs of sections z, one after another: of large maps this filter takes most of a run's memory."""
        filtered = radial(table.to(spectrum.real), shape) * spectrum
        for columns in torch.split(filtered, _SLAB, -1):
            columns.copy_(torch.fft.ifftn(columns, dim=(-3, -2), norm="ortho"))
        for sections in torch.split(filtered, _SLAB, -3):
            yield torch.fft.irfft(sections, shape[-1], norm="ortho")

    def _gain(self, v: float) -> Tensor:
        """Radial table, 1 / ĥ in it."""
        total = v * (self.signal + self.common) + self.noise
        return v * self.signal / total.clamp(min=1e-30) * self.sharpening

    def _error(self, v: float) -> Tensor:
        """The filter's mean squared error, likewise: of the signal that it takes away, and of what it leaves."""
        gain = self._gain(v) / self.sharpening
        lost = (1 - gain).square() * v * self.expected
        return (lost + gain.square() * (v * self.common + self.noise)) * self.sharpening.square()

    def _where(self, restored: Tensor) -> Tensor:
        """V: 1 in the mean."""
        _, shape = split_shape(restored.shape)
        spectrum = rfft(restored.square())
        for axis, n in enumerate(shape):
            nu = torch.fft.fftfreq(n, dtype=torch.float64)[: spectrum.shape[axis]]
            smooth = torch.exp(-2 * (torch.pi * self.width * nu).square()).to(spectrum.real)
            spectrum *= smooth.reshape(-1, *[1] * (2 - axis))
        v = irfft(spectrum, shape).clamp_(min=0)
        return v.div_(v.mean().clamp(min=torch.finfo(v.dtype).tiny))


def _sure(fsc: Tensor, sizes: Tensor) -> Tensor:
    """The FSC less what chance adds to it; next to nothing, but more, where it may be chance alone.

    Where the signal is, v is far above 1, and what chance made of the noise would be taken for a signal. A shell's FSC
    with the truth does not hang on how little of it is kept.
    """
    chance = (2 / sizes).sqrt()
    return torch.maximum(fsc - (_CHANCE * chance).square() / fsc.clamp(min=1e-9), _KEPT * chance).clamp(max=1)
