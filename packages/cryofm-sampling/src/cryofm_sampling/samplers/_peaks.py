"""The mean of a posterior with several peaks: of runs that begin at one of them each.

A run of `PlugAndPlay` stays near the mode where it begins. Where others are as probable, further runs begin at those
that are reached from draws of the prior, every second the mirror image of the one before. A run that explains the data
worse than the best one by more than half of what noise leaves is left out.
"""

from collections.abc import Sequence
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from cryofm_ops import Normal, Proximal, fourier_filter
from cryofm_sampling.protocols import Draw

__all__ = ["Elsewhere", "mean_of_peaks"]

_WORSE = 0.25  # nats per voxel: half of what noise leaves


@attrs.frozen(eq=False)
class Elsewhere:
    """Data of which the first mode is sought from a draw of the prior."""

    data: Proximal
    run: int  # from 1
    batched: ClassVar[bool] = True

    @property
    def dtype(self) -> torch.dtype | None:
        return self.data.dtype

    def log_prob(self, x: Tensor, /) -> Tensor:
        return self.data.log_prob(x)

    def condition(self, mean: Tensor, variance: Tensor | float, /) -> Normal:
        generator = torch.Generator(mean.device).manual_seed((self.run + 1) // 2)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        sign = 2 * (self.run % 2) - 1
        start = mean + sign * fourier_filter(noise, torch.as_tensor(variance).to(mean).sqrt())
        return self.data.condition_from(start, mean, variance)

    def condition_from(self, start: Tensor, mean: Tensor, variance: Tensor | float, /) -> Normal:
        return self.data.condition_from(start, mean, variance)

    def mean_from(self, start: Tensor, mean: Tensor, variance: Tensor | float, /) -> Normal:
        return self.data.mean_from(start, mean, variance)


@torch.no_grad()
def mean_of_peaks(draws: Sequence[Draw], data: Proximal) -> Draw:
    """The mean of the runs that explain the data about as well as the best, whose mode is kept; volume by volume."""
    xs = torch.stack([draw.x for draw in draws])
    modes = torch.stack([draw.x if draw.mode is None else draw.mode for draw in draws])
    with torch.autocast(xs.device.type, enabled=False):  # which is meant for the network
        fits = torch.stack([data.log_prob(mode) for mode in modes]).nan_to_num(-torch.inf)[..., None, None, None]
    best = fits.amax(0)
    kept = (fits >= best - _WORSE * xs.shape[-3:].numel()).to(xs)
    mean = (kept * xs).sum(0) / kept.sum(0)
    mode = modes.gather(0, fits.argmax(0)[None].expand(1, *xs.shape[1:]))[0]
    inner = (xs - mean).square().sum((-3, -2, -1)) * kept[..., 0, 0, 0]
    apart = (inner.sum(0) / kept[..., 0, 0, 0].sum(0) / mean.square().sum((-3, -2, -1)).clamp(min=1e-30)).max()
    said = (
        f"x is the mean of {int(kept.sum(0).min())} of {len(draws)} runs that began at different modes and end "
        f"{float(apart.sqrt()):.2g} of its norm from it; mode is the one that fits best"
    )
    first = draws[0]
    settings = {**first.settings, "note": "; ".join(filter(None, [str(first.settings.get("note", "")), said]))}
    return attrs.evolve(first, x=mean, nfe=sum(draw.nfe for draw in draws), settings=settings, mode=mode)
