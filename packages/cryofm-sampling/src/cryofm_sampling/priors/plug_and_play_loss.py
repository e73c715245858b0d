"""Flow matching, and on a share of the crops the same loss for what plug-and-play shows its denoiser.

Flow matching teaches x̂_0 at x_t = (1 − t) x_0 + t x_1 from white noise x_1. Plug-and-play shows its denoiser something
else wherever the noise of the data has a colour: r + n, with little noise where the data are good, and, where they are
hidden, an estimate in place of the signal. A network that has learnt white noise alone may restore worse the better it
has learnt it. Here a crop is observed with noise of a random colour, one to four passes are made over it, and what the
last shows takes the place of x_t:

    x_t = (1 − t) (r + n),    x_1' = (x_t − (1 − t) x_0) / t,    loss |v(x_t, t) − (x_1' − x_0)|² / max(1, |x_1'|²),

means over voxels. The loss is smallest where x̂_0 = x_t − t v is E[x_0 | x_t]. Data with white noise are shown as they
are, so that there this IS flow matching.

A pass at level τ splits the precision W of the data in two (those of `PlugAndPlay` and `PosteriorFlow` keep a dual
variable instead; what a network learns here serves them too):

- min(W, 1/τ) enters BEFORE the denoiser, r = x + g (y − x) with g = min(τ W, 1): the noise of the observation itself is
  (part of) the noise that the denoiser expects.
- W' = max(W − 1/τ, 0), what the denoiser has not used, enters AFTER it: x = x̂ + e W' / (1 + e W') (y − x̂), with
  e(ν, t) the denoiser's own error.

Reference for training a denoiser as the solver uses it: Gilton, Ongie and Willett, IEEE Trans. Comput. Imaging 7, 2021.
"""

import math
from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor

from cryofm_ops import AnisotropicNoise, fourier_filter, frequencies, irfft, radial_mean, rfft, wedge_alpha
from cryofm_sampling._common import Box, split_shape, white_noise, within
from cryofm_sampling.protocols import Calibrated
from cryofm_sampling.samplers._denoising_error import DenoisingError
from cryofm_sampling.samplers.plug_and_play import automatic_tau

__all__ = ["PlugAndPlayLoss"]

_WHITE, _WEDGE = 0.25, 0.35  # fractions of the observed crops
_AGAIN = 0.5  # probability of one more pass, up to _PASSES
_PASSES = 4
_LEAST = 0.05  # t, and 1 − t
_JITTER = (-0.5, 0.7)  # of ln √τ
_DITHER = (-0.6, 0.6)  # below 0: none


def _between(a: float, b: float, stream: torch.Generator) -> float:
    return a + (b - a) * float(torch.rand((), generator=stream, dtype=torch.float64))


def _observed(x_0: Tensor, noise: Tensor, box: Box, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """W and y of a crop seen through noise of a random colour: flat up to a frequency where it is about as strong as
    the signal, and steep beyond, with or without a direction in which it is weaker."""
    power = radial_mean(rfft(x_0).abs().square(), box)
    cut = math.exp(_between(math.log(0.075), math.log(0.5), stream))  # cycles/voxel: 20 to 3 Å at 1.5 Å
    level = float(power[round(2 * cut * (len(power) - 1))]) * math.exp(_between(-1.9, 0.7, stream))
    nu = frequencies(box, device=x_0.device).to(x_0)
    if _between(0, 1, stream) < _WHITE:
        N = torch.full_like(nu, level * math.exp(_between(-1, 3, stream)))
    else:
        steepness, most = math.exp(_between(math.log(4), math.log(24), stream)), 10 ** _between(1, 3.5, stream)
        N = level * (1 + (nu / cut).pow(steepness).clamp(max=most))
    if _between(0, 1, stream) < _WEDGE:
        tilt = _between(10, 60, stream)
        alpha = wedge_alpha(-tilt, tilt, math.exp(_between(math.log(2), math.log(10), stream)))
        N = N * AnisotropicNoise(torch.ones_like(power), alpha).power(box).to(N)
    N = N.clamp(min=1e-9)
    return 1 / N, rfft(x_0) + N.sqrt() * rfft(noise)


def _before(x: Tensor, y: Tensor, W: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """r, what the denoiser of level τ is shown, and the variance that may be added to it, on the half grid."""
    g = (tau * W).clamp(max=1)
    return x + g * (y - x), torch.where(W > 0, (tau - g**2 / W).clamp(min=0), 0)


def _after(x_hat: Tensor, y: Tensor, W: Tensor, e: Tensor, tau: float) -> Tensor:
    """The denoiser's answer, and what it has not used of the data, on the half grid; where W = 0 the answer alone."""
    unused = (W - 1 / tau).clamp(min=0)
    return x_hat + e / (e + 1 / unused) * (y - x_hat)


@attrs.frozen(eq=False)
class PlugAndPlayLoss:
    """The loss of each crop of a batch, for training loops that call it as (network, x_0, t, x_1).

    Attributes:
        prior: signal power and denoising error, for the levels, the first estimate and the share of the data after a
            pass; that of the network from which training starts.
        fraction: of the crops that are observed; the others are flow matching's.

    >>> from cryofm_sampling.testing import GaussianPrior
    >>> prior = GaussianPrior(1.0)
    >>> x_0, x_1 = torch.randn(2, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> PlugAndPlayLoss(prior, 0.5)(prior, x_0, torch.full((4,), 0.5), x_1).shape
    torch.Size([4])
    """

    prior: Calibrated
    fraction: float = attrs.field(validator=within(attrs.validators.ge(0), attrs.validators.le(1)))

    def __call__(
        self, network: Callable[..., Tensor], x_0: Tensor, t: Tensor, x_1: Tensor, *condition: Tensor
    ) -> Tensor:
        """Weighted mean square error of the velocity, `(batch,)`.

        Args:
            network: velocity field `(x, t)`, or `(x, t, *condition)`.
            x_0: data `(batch, z, y, x)`, model units.
            t: flow times of the crops that are not observed, `(batch,)`; the others get the level that plug-and-play
                would choose, times e^−0.5 to e^0.7.
            x_1: white noise like x_0. What is drawn besides depends on its bits alone: a crop's loss is the same
                in any batch.
            condition: what a conditional network is called with behind x and t, `(batch, ...)`.
        """
        t, x_1, weight = t.clone(), x_1.clone(), torch.ones_like(t)
        for i in range(len(x_0)):
            bits = x_1[i].flatten()[:2].float().cpu().clone().view(torch.int64)
            stream = torch.Generator().manual_seed(int(bits) & (2**62 - 1))
            if _between(0, 1, stream) < self.fraction:
                level = self._level(network, x_0[i], x_1[i], stream, [shown[i : i + 1] for shown in condition])
                if level is not None:
                    t[i], x_1[i] = level
                    weight[i] = 1 / x_1[i].square().mean().clamp(min=1)
        s = t[:, None, None, None]
        error = network((1 - s) * x_0 + s * x_1, t, *condition) - (x_1 - x_0)
        return weight * error.square().mean((-3, -2, -1))

    @torch.no_grad()
    def _level(
        self,
        network: Callable[..., Tensor],
        x_0: Tensor,
        x_1: Tensor,
        stream: torch.Generator,
        condition: Sequence[Tensor],
    ) -> tuple[float, Tensor] | None:
        """Level t and x_1' of an observed crop; None where plug-and-play has next to nothing or everything to do."""
        _, box = split_shape(x_0.shape)
        error = DenoisingError.of(self.prior, box, x_0)
        W, y = _observed(x_0, x_1, box, stream)
        root = automatic_tau(W, error.power, box) ** 0.5 * math.exp(_between(*_JITTER, stream))
        t = root / (1 + root)
        if not _LEAST < t < 1 - _LEAST:
            return None

        dither = max(0.0, _between(*_DITHER, stream))

        def shown(x: Tensor) -> Tensor:
            r, room = _before(x, y, W, root**2)
            u = irfft(r, box) + dither * fourier_filter(white_noise(box, stream, x_0), room.sqrt())
            return u.mul(1 - t)

        x_t = shown(error.power / (error.power + 1 / W) * y)
        for _ in range(1, _PASSES):
            if _between(0, 1, stream) >= _AGAIN:
                break
            x_hat = x_t - t * network(x_t[None], x_t.new_tensor([t]), *condition)[0].to(x_t)
            x_t = shown(_after(rfft(x_hat), y, W, error(t), root**2))
        return t, (x_t - (1 - t) * x_0) / t
