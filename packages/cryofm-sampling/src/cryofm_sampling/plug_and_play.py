"""Self-noised plug-and-play: the posterior mean in a few network evaluations.

Proximal gradient descent whose proximal step is the flow prior's denoiser D(u) = x̂_0 at x_t = (1 − t) u,
which takes u for the truth plus white noise of variance τ = (t / (1 − t))². The precision W = 1/N of the data
is split in two:

- min(W, 1/τ) enters BEFORE the denoiser, r = x + g (y − x) with g = min(τ W, 1): the noise of the observation
  itself is (part of) the noise that the denoiser expects. Some of what is missing may be added, the dither.
- W' = max(W − 1/τ, 0), what the denoiser has not used, enters AFTER it: x = x̂ + e W' / (1 + e W') (y − x̂),
  with e(ν, t) the denoiser's own error.

For a Gaussian prior D(u) = P / (P + τ) u and e = P τ / (P + τ); the fixed point is then exactly the Wiener
estimate P / (P + N) y at every frequency, whatever τ, and where N ≤ τ a single pass is.

Where nothing was measured (W = 0) only the prior acts. Its level then falls from t = 0.8 to its last value,
so that large gaps are filled before small ones, and no dither is added there: the error of the estimate is
the noise.

Reference for plug-and-play as a proximal splitting: Venkatakrishnan, Bouman and Wohlberg, GlobalSIP 2013.
"""

import attrs
import torch
from torch import Tensor

from cryofm_ops import FourierDiagonal, Likelihood, fourier_filter, friedel_weights, irfft, rfft
from cryofm_sampling._common import (
    Box,
    DenoisingError,
    calibrated,
    diagonal,
    irfft_each,
    spectral,
    split_shape,
    streams,
    time_like,
    white_noise,
    within,
)
from cryofm_sampling._rotations import ROTATIONS, rotate, rotate_back
from cryofm_sampling.checkpoint import Checkpoint, Run, iterate
from cryofm_sampling.protocols import Callback, Draw, VelocityField

__all__ = ["PlugAndPlay"]

_FIRST = 0.8  # t at which gaps begin to be filled
_NOISELESS = 0.05  # last t where no noise sets the level
_AVERAGED = 3  # passes at the end whose mean is returned


def automatic_level(W: Tensor, power: Tensor, box: Box) -> float:
    """√τ = Σ G √N / Σ G with gain G = P / (P + N), over what was measured with noise, DC left out.

    All power means of N are N where the noise is white; where it is not, this one is about twice the geometric one. On
    two training maps twice the geometric mean gained 0.023 FSC_AUC at 4.3 Å and moved the other levels by at most
    0.003; the arithmetic mean lost 0.03 and 0.05 at 8.5 Å.
    """
    weights = friedel_weights(box).to(W) * (W > 0) * W.isfinite()
    weights[..., 0, 0, 0] = 0
    N = torch.where(weights > 0, 1 / W, 1)
    gain = weights * power / (power + N)
    if not gain.any():
        return (_NOISELESS / (1 - _NOISELESS)) ** 2
    return float((gain * N.sqrt()).sum() / gain.sum()) ** 2


def before(x: Tensor, y: Tensor, W: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """r, what the denoiser of level τ is shown, and the variance that may be added to it, on the half grid."""
    g = (tau * W).clamp(max=1)
    return x + g * (y - x), torch.where(W > 0, (tau - g**2 / W).clamp(min=0), 0)


def after(x_hat: Tensor, y: Tensor, W: Tensor, e: Tensor, tau: float) -> Tensor:
    """The denoiser's answer, and what it has not used of the data, on the half grid; where W = 0 the answer alone."""
    unused = (W - 1 / tau).clamp(min=0)
    return x_hat + e / (e + 1 / unused) * (y - x_hat)


def _shares(times: list[float]) -> list[float]:
    """Of each pass in what is returned: none of the first, and of those whose level was still falling."""
    first = max(len(times) - _AVERAGED, min(1, len(times) - 1))
    counted = [i >= first and t == times[-1] for i, t in enumerate(times)]
    return [c / sum(counted) for c in counted]


@attrs.frozen
class PlugAndPlay:
    """The posterior mean by self-noised plug-and-play. Its spread is no uncertainty.

    Network evaluations: `iterations × max(1, 2 pairs)`. The default is for networks that were trained on what is shown
    to them here (`PlugAndPlayLoss`), as the bundled prior was: 2 passes lose 0.02 of FSC_AUC at 4.3 Å and hardly any at
    8.5 Å, and 16 instead of 8 change it by less than 0.01. A network that knows white noise alone should be shown
    something like it, above all in gaps: `iterations=4, pairs=1, dither=0.6`.

    Attributes:
        iterations: passes of denoiser and data. What is returned is the mean of the last three, but never of the first
            of several: they share the signal, and neither orientation nor dither. Where the level falls it is the last
            pass alone.
        pairs: antithetic pairs of dither (r + n and r − n) averaged in a pass; 0: one evaluation, with + n
            alone.
        dither: added noise, as a fraction of the standard deviation that the observation's own noise leaves
            to √τ.
        relaxation: ω; coefficients that were not measured move by ω times the denoiser's step.
        time: t of the denoiser at the last pass (and at all of them where everything was measured). None: set
            by the noise, √τ = mean of √N, weighted by the Wiener gain; for white noise τ = N. (A single pass that
            has a gap to fill is then at t = 0.8.)

    Needs a `FourierDiagonal` likelihood and a `Calibrated` velocity field, and raises `CapabilityError`
    naming what is missing; `GridMismatchError` if the likelihood is on another grid. Every evaluation sees
    the volume in one of the 24 orientations of the cube, drawn at random; a box that is no cube is shown with
    its axes permuted.

    >>> from cryofm_sampling.testing import GaussianPrior
    >>> class Measured:  # y, with noise of variance 1/3
    ...     def spectral_precision(self):
    ...         return torch.full((8, 8, 5), 3.0)
    ...     def spectral_data(self):
    ...         return torch.fft.rfftn(torch.ones(8, 8, 8), norm="ortho")
    >>> draw = PlugAndPlay()(GaussianPrior(1.0), Measured(), shape=(8, 8, 8), generator=torch.Generator())
    >>> round(float(draw.x.mean()), 3), draw.nfe  # exact: 0.75
    (0.75, 8)
    """

    iterations: int = attrs.field(default=8, validator=within(attrs.validators.ge(1)))
    pairs: int = attrs.field(default=0, validator=within(attrs.validators.ge(0)))
    dither: float = attrs.field(default=0.0, validator=within(attrs.validators.ge(0)))
    relaxation: float = attrs.field(default=1.0, validator=within(attrs.validators.gt(0)))
    time: float | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(within(attrs.validators.gt(0), attrs.validators.lt(1))),
    )

    @torch.no_grad()
    def __call__(
        self,
        velocity: VelocityField,
        likelihood: FourierDiagonal | Likelihood,
        /,
        *,
        shape: tuple[int, ...],
        generator: torch.Generator,
        callback: Callback | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Draw:
        """The posterior mean for every element of the batch of `shape`; in model units."""
        batch, box = split_shape(shape)
        measured = diagonal(likelihood, "PlugAndPlay")
        Ws, ys = (part.reshape(-1, *part.shape[-3:]) for part in spectral(measured, batch, box))
        error = DenoisingError.of(calibrated(velocity, "PlugAndPlay"), box, ys)
        noises = streams(generator, batch)
        times = [self._times(W, error.power, box) for W in Ws]
        wiener = error.power / (error.power + 1 / Ws) * ys  # 0 where W = 0

        shares = torch.tensor([_shares(ts) for ts in times]).to(ys.real)[..., None, None, None]

        def step(i: int, state: Tensor) -> tuple[Tensor, Tensor]:
            xs, total = state
            # Volume by volume: what is drawn together never changes a bit.
            volumes = zip(xs, ys, Ws, [ts[i] for ts in times], noises, strict=True)
            xs = torch.stack([self._pass(velocity, x, y, W, error(t), t, box, noise) for x, y, W, t, noise in volumes])
            return torch.stack([xs, total + shares[:, i] * xs]), irfft_each(xs, box).reshape(shape)

        run = Run(self, velocity, measured, shape)
        state = torch.stack([wiener, torch.zeros_like(wiener)])
        _, total = iterate(
            step, state, self.iterations, run=run, streams=noises, callback=callback, checkpoint=checkpoint
        )
        x = irfft_each(total, box).reshape(shape)
        nfe = self.iterations * max(1, 2 * self.pairs)
        settings = {"sampler": "PlugAndPlay", **attrs.asdict(self), "time": [ts[-1] for ts in times]}
        return Draw(x, nfe, settings)

    def _times(self, W: Tensor, power: Tensor, box: Box) -> list[float]:
        last = self.time
        if last is None:
            root = automatic_level(W, power, box) ** 0.5
            last = root / (1 + root)
        only = self.iterations == 1 and self.time is not None
        first = last if only or bool((W > 0).all()) else max(_FIRST, last)
        return torch.linspace(first, last, self.iterations, dtype=torch.float64).tolist()

    def _pass(
        self,
        velocity: VelocityField,
        x: Tensor,
        y: Tensor,
        W: Tensor,
        e: Tensor,
        t: float,
        box: Box,
        stream: torch.Generator,
    ) -> Tensor:
        """One pass at level t; x, y, W and e on the half grid."""
        tau = (t / (1 - t)) ** 2
        r, room = before(x, y, W, tau)
        r = irfft(r, box)
        x_hat = torch.zeros_like(r)
        calls = max(1, self.pairs)
        for _ in range(calls):
            n = self.dither * fourier_filter(white_noise(box, stream, r), room.sqrt())
            rotation = int(torch.randint(len(ROTATIONS), (), generator=stream, device=stream.device))
            u = rotate(torch.stack([r + n, r - n] if self.pairs else [r + n]), rotation)
            x_t = (1 - t) * u
            x_0 = x_t - t * velocity(x_t, time_like(t, x_t))
            x_hat += rotate_back(x_0, rotation).mean(0) / calls
        x_hat = rfft(x_hat)
        return torch.where(W > 0, after(x_hat, y, W, e, tau), x + self.relaxation * (x_hat - x))
