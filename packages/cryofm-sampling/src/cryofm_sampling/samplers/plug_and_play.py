"""Plug-and-play by alternating directions: the posterior mean in a few network evaluations.

The flow prior's denoiser D takes what it is shown for the truth plus white noise of variance τ = (t / (1 − t))²: it is
x̂_0 at x_t = (1 − t) s. Data and denoiser take turns, and a dual variable u keeps what they disagree about:

    x̂ = D(x + τ u),    u ← u + (x − x̂) / τ,    x = the mean of N(x̂ − τ u, τ) given the data.

`Conjugate` likelihoods know the last for any linear operator. For a Gaussian prior D(s) = P / (P + τ) s, and where the
two agree, x = x̂ and u = x / P: then x is exactly the posterior mean, whatever the operator and τ. What the denoiser is
then shown, of data y that are diagonal in Fourier space, is (1 + τ/P) P / (P + N) y: no noise is added to it, and where
N = τ it is y itself, as the denoiser expects.

The level falls evenly from t = 0.8 to that of the noise, or above it where there are gaps, so that what is coarse
settles before what is fine, and gaps are filled from their edges. It begins with the Wiener estimate and u = 0, which
for a network is better than the Gaussian prior's u.

The result is the mean of N(x̂ − e u, e) given the data, with the denoiser's own error e(ν, t). Where x̂ and u have
settled that is x̂; what was measured far better than the level is kept, for which x̂ would need ever more passes. Where
log p is not quadratic the passes find modes, and this last step finds the mean: e is then what the prior alone leaves
open, without τ, which of a Gaussian prior is P, and x̂ − e u its mean.

Reference: Venkatakrishnan, Bouman and Wohlberg, GlobalSIP 2013.
"""

import math
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from cryofm_ops import (
    Conjugate,
    FourierDiagonal,
    FourierGaussian,
    Likelihood,
    fourier_filter,
    friedel_weights,
    radial,
    radial_mean,
    rfft,
)
from cryofm_sampling._common import (
    Box,
    averages,
    calibrated,
    conjugates,
    deviations,
    first_posteriors,
    given,
    notes,
    spent,
    split_shape,
    streams,
    time_of,
    variance_at,
    whole,
    within,
)
from cryofm_sampling.protocols import Callback, Draw, VelocityField
from cryofm_sampling.runs.checkpoint import Checkpoint, Run, iterate
from cryofm_sampling.samplers._denoising_error import DenoisingError
from cryofm_sampling.samplers._orientations import denoised

__all__ = ["PlugAndPlay"]

_FIRST = 0.8  # t of the first pass
_LEAST = 0.05  # t of the last, where there is next to no noise
_MOST = 0.99  # and where there is next to no signal
_AVERAGED = 2  # passes at the end whose x̂ are averaged


def weighted_gain(W: Tensor, power: Tensor, box: Box) -> Tensor:
    """G = P / (P + N) times how often a coefficient of the half grid counts, DC left out."""
    gain = friedel_weights(box).to(power) * power / (power + 1 / W)
    gain[0, 0, 0] = 0
    return gain


def automatic_tau(W: Tensor, power: Tensor, box: Box) -> float:
    """τ by √τ = Σ G √N / Σ G, over what was measured with noise.

    For white noise τ = N; of other noise it is about twice the geometric mean of N.
    """
    gain = weighted_gain(W, power, box) * W.isfinite()
    if not gain.any():
        return variance_at(_LEAST)
    return float(torch.where(gain > 0, gain / W.sqrt(), 0).sum() / gain.sum()) ** 2


def gap_tau(W: Tensor, power: Tensor, box: Box) -> float:
    """τ = P̄ m² / (g (m + g)) for gaps, W = 0: m is their share of the power, g the mean gain, P̄ the mean power.

    Where most is missing (g ≪ m) that is the missing power per measured coefficient, P̄ m / g; where little is (m ≪ g),
    next to nothing.
    """
    spectrum = friedel_weights(box).to(power) * power
    spectrum[0, 0, 0] = 0
    total, others = spectrum.sum(), math.prod(box) - 1
    m = spectrum[W == 0].sum() / total
    g = weighted_gain(W, power, box).sum() / others
    return float(total / others * m**2 / (g * (m + g)).clamp(min=torch.finfo(power.dtype).tiny))


def _precision(data: Conjugate, deviations: Tensor, power: Tensor, box: Box) -> Tensor:
    """W; of other operators, of noise that leaves a Gaussian prior as uncertain as these data do where they say little.

    Two draws of a Gaussian prior's posterior, less its mean, tell its variance V in every shell and, from voxel to
    voxel, how uneven it is: the mean of V, weighted by V itself, is ⟨V²⟩ / ⟨V⟩² times the plain one (2, where half of
    the voxels were not seen). Of data that are not linear the draws have the curvature of log p at the mode.
    """
    if isinstance(data, FourierGaussian):
        return data.precision
    V = radial(radial_mean(rfft(deviations).abs().square().mean(0), box), box)
    one, other = deviations.square()
    uneven = (one * other).mean() / (one.mean() * other.mean()).clamp(min=torch.finfo(V.dtype).tiny)
    V = torch.minimum(uneven.clamp(min=1) * V, power)
    return torch.maximum(1 / V - 1 / power, 1e-3 / power)  # two draws cannot tell less


def _left_by_prior(e: Tensor, tau: float, power: Tensor) -> Tensor:
    """What variance the prior alone leaves, 1 / (1/e − 1/τ), where with white noise of variance τ it leaves e; at most
    P, which is that of a Gaussian prior.
    """
    rest = (tau - e).clamp(min=torch.finfo(e.dtype).tiny)
    return torch.minimum(e * tau / rest, power)


def start(
    data: Sequence[Conjugate], power: Tensor, box: Box, like: Tensor, noises: Sequence[torch.Generator]
) -> tuple[Tensor, list[Tensor]]:
    """The Wiener estimates `(n, z, y, x)`, and the precision of the data on the half grid, of every volume."""
    posteriors = first_posteriors(data, power, box, like)
    if isinstance(data[0], FourierGaussian):
        draws = like.new_empty(2, len(data), 0)  # of which none is needed
    else:
        draws = torch.stack([deviations(posteriors, noises) for _ in range(2)])
    Ws = [_precision(y, draws[:, k], power, box) for k, y in enumerate(data)]
    return torch.stack([posterior.mean.to(like) for posterior in posteriors]), Ws


def alternate(
    velocity: VelocityField,
    data: Sequence[Conjugate],
    x: Tensor,
    u: Tensor,
    times: Sequence[float],
    streams: Sequence[torch.Generator],
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass with the denoiser at t: x̂, x and u, from the x and u of the pass before; of all volumes `(n, z, y, x)`.

    The network sees volume by volume, so that what is drawn together never changes a bit of what it says.
    """
    x_hats, us, means = [], [], []
    for one, dual, t, stream in zip(x, u, times, streams, strict=True):
        tau = variance_at(t)
        s = one + tau * dual
        x_hat = denoised(velocity, s, t, stream)
        dual = (s - x_hat) / tau
        x_hats.append(x_hat)
        us.append(dual)
        means.append(x_hat - tau * dual)
    found = given(data, x, torch.stack(means), [variance_at(t) for t in times])
    return torch.stack(x_hats), found, torch.stack(us)


@attrs.frozen
class PlugAndPlay:
    """The posterior mean by plug-and-play; one network evaluation a pass. Its spread is no uncertainty.

    Of a posterior with several peaks, whether prior or data have them, it is one of the peaks and not the mean.

    Attributes:
        iterations: passes of denoiser and data; x̂ is the mean of the last two. The bundled prior restores noisy data
            best with 5 to 20, noiseless ones with more. Of a Gaussian prior's mean 8 passes leave 1 to 5 hundredths
            undone (five problems in 8³), 20 less than 7 thousandths.
        time: t of the denoiser at the last pass. None: set by the noise, √τ = mean of √N, weighted by the Wiener
            gain; for white noise τ = N. To that τ is added, where a `FourierDiagonal` likelihood has W = 0, up to the
            missing power per measured coefficient.
        held: passes at the end that stay at that t, the others falling to it; x̂ is then their mean. With 4 of 8 the
            error of white noise, of two wedges and of saturated voxels falls by 3 to 15 % (16³ of EMD-3488, four sets);
            of noise with a spectrum by as little as FSC_AUC rises or falls (.002 lower at 4.3 Å).

    Needs a likelihood that is `FourierDiagonal` or `Conjugate`, or has a `log_prob` (then it is `Proximal`: every pass
    looks for the mode), and a `Calibrated` velocity field. Raises `CapabilityError` naming what is missing,
    `GridMismatchError` if the likelihood is on another grid. Volumes have the dtype of the data, where these tell it,
    and the device of a `FourierDiagonal` likelihood's, otherwise the generator's. What has no noise is kept.
    Every evaluation sees the volume in one of the 24 orientations of the cube, drawn at random; a box that is no cube
    is shown with its axes permuted.

    >>> from cryofm_sampling.testing import GaussianPrior
    >>> class Measured:  # y, with noise of variance 1/3
    ...     def spectral_precision(self):
    ...         return torch.full((8, 8, 5), 3.0)
    ...     def spectral_data(self):
    ...         return torch.fft.rfftn(torch.ones(8, 8, 8), norm="ortho")
    >>> draw = PlugAndPlay()(GaussianPrior(1.0), Measured(), shape=(8, 8, 8), generator=torch.Generator())
    >>> print(f"{draw.x.mean():.2f}, {draw.nfe} evaluations")  # exact: 0.75
    0.74, 8 evaluations
    """

    iterations: int = attrs.field(default=8, validator=whole(1))
    time: float | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(within(attrs.validators.gt(0), attrs.validators.lt(1))),
    )
    held: int = attrs.field(default=0, validator=whole(0))

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
        noises = streams(generator, batch)
        data, like = conjugates(likelihood, batch, box, torch.empty((), device=generator.device), "PlugAndPlay")
        error = DenoisingError.of(calibrated(velocity, "PlugAndPlay"), box, like)
        power = error.power
        x, Ws = start(data, power, box, like, noises)
        times = [self._times(time_of(automatic_tau(W, power, box) + gap_tau(W, power, box))) for W in Ws]
        averaged = min(max(_AVERAGED, self.held), self.iterations)

        def step(i: int, state: Tensor) -> tuple[Tensor, Tensor]:  # (x, u and the mean, volume, z, y, x)
            x_hat, x, u = alternate(velocity, data, state[0], state[1], [ts[i] for ts in times], noises)
            share = 1 / averaged if i >= self.iterations - averaged else 0.0
            return torch.stack([x, u, state[2] + share * x_hat]), x_hat.reshape(shape)

        state = torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)])
        run = Run(self, velocity, likelihood, shape)
        _, u, mean = iterate(
            step, state, self.iterations, run=run, streams=noises, callback=callback, checkpoint=checkpoint
        )
        es = [error(ts[-1]) for ts in times]
        if averages(data[0]):
            es = [_left_by_prior(e, variance_at(ts[-1]), power) for e, ts in zip(es, times, strict=True)]
        shown = torch.stack([one - fourier_filter(dual, e) for one, dual, e in zip(mean, u, es, strict=True)])
        x = given(data, mean, shown, es, averaged=True)
        mode = given(data, x, shown, es).reshape(shape) if averages(data[0]) else None
        settings = {"sampler": "PlugAndPlay", **attrs.asdict(self), "time": [ts[-1] for ts in times], **notes(data)}
        return Draw(x.reshape(shape), spent(velocity, self.iterations), settings, mode=mode)

    def _times(self, automatic: float) -> list[float]:
        """Of every pass; of the last `automatic`, where `time` is None."""
        last = min(max(_LEAST, automatic), _MOST) if self.time is None else self.time
        falling = max(self.iterations - self.held, 1)
        first = max(_FIRST, last) if falling > 1 else last
        times: list[float] = torch.linspace(first, last, falling, dtype=torch.float64).tolist()
        return times + [last] * (self.iterations - falling)
