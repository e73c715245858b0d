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
settled that is x̂; what was measured far better than the level is kept, for which x̂ would need ever more passes.

Reference: Venkatakrishnan, Bouman and Wohlberg, GlobalSIP 2013.
"""

import math

import attrs
import torch
from torch import Tensor

from cryofm_ops import (
    Conjugate,
    FourierDiagonal,
    FourierGaussian,
    Likelihood,
    Normal,
    fourier_filter,
    friedel_weights,
    radial,
    radial_mean,
    rfft,
)
from cryofm_sampling._common import (
    Box,
    calibrated,
    conjugates,
    first_posterior,
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


def _precision(data: Conjugate, posterior: Normal, power: Tensor, box: Box, stream: torch.Generator) -> Tensor:
    """W; of other operators, of noise that leaves a Gaussian prior as uncertain as these data do where they say little.

    Two draws of a Gaussian prior's posterior tell its variance V in every shell and, from voxel to voxel, how uneven it
    is: the mean of V, weighted by V itself, is ⟨V²⟩ / ⟨V⟩² times the plain one (2, where half of the voxels were not
    seen).
    """
    if isinstance(data, FourierGaussian):
        return data.precision
    deviations = torch.stack([posterior.sample(stream) - posterior.mean for _ in range(2)])
    V = radial(radial_mean(rfft(deviations).abs().square().mean(0), box), box)
    one, other = deviations.square()
    uneven = (one * other).mean() / (one.mean() * other.mean()).clamp(min=torch.finfo(V.dtype).tiny)
    V = torch.minimum(uneven.clamp(min=1) * V, power)
    return torch.maximum(1 / V - 1 / power, 1e-3 / power)  # two draws cannot tell less


def start(data: Conjugate, power: Tensor, box: Box, like: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """The Wiener estimate, and the precision of the data on the half grid."""
    posterior = first_posterior(data, power, box, like)
    return posterior.mean.to(like), _precision(data, posterior, power, box, stream)


def alternate(
    velocity: VelocityField, data: Conjugate, x: Tensor, u: Tensor, t: float, stream: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass with the denoiser at t: x̂, x and u, from the x and u of the pass before; all `(z, y, x)`."""
    tau = variance_at(t)
    s = x + tau * u
    x_hat = denoised(velocity, s, t, stream)
    u = (s - x_hat) / tau
    return x_hat, data.condition(x_hat - tau * u, tau).mean.to(x), u


@attrs.frozen
class PlugAndPlay:
    """The posterior mean by plug-and-play; one network evaluation a pass. Its spread is no uncertainty.

    Attributes:
        iterations: passes of denoiser and data; x̂ is the mean of the last two. The bundled prior restores noisy data
            best with 5 to 20, noiseless ones with more. Of a Gaussian prior's mean 8 passes leave 1 to 5 hundredths
            undone (five problems in 8³), 20 less than 7 thousandths.
        time: t of the denoiser at the last pass. None: set by the noise, √τ = mean of √N, weighted by the Wiener
            gain; for white noise τ = N. To that τ is added, where a `FourierDiagonal` likelihood has W = 0, up to the
            missing power per measured coefficient.

    Needs a `FourierDiagonal` or a `Conjugate` likelihood and a `Calibrated` velocity field, and raises
    `CapabilityError` naming what is missing; `GridMismatchError` if the likelihood is on another grid. Volumes have the
    dtype and the device of a `FourierDiagonal` likelihood's data, of which what has no noise is kept; otherwise the
    default dtype and the generator's device. Every evaluation sees the volume in one of the 24 orientations of the
    cube, drawn at random; a box that is no cube is shown with its axes permuted.

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
        data, like = conjugates(likelihood, batch, box, torch.empty((), device=generator.device), "PlugAndPlay")
        error = DenoisingError.of(calibrated(velocity, "PlugAndPlay"), box, like)
        power = error.power
        noises = streams(generator, batch)
        starts = [start(y, power, box, like, noise) for y, noise in zip(data, noises, strict=True)]
        times = [self._times(time_of(automatic_tau(W, power, box) + gap_tau(W, power, box))) for _, W in starts]
        averaged = min(_AVERAGED, self.iterations)

        def step(i: int, state: Tensor) -> tuple[Tensor, Tensor]:  # (x, u and the mean, volume, z, y, x)
            # Volume by volume: what is drawn together never changes a bit.
            each = zip(data, state.unbind(1), times, noises, strict=True)
            passes = [torch.stack(alternate(velocity, y, x, u, ts[i], noise)) for y, (x, u, _), ts, noise in each]
            x_hat, x, u = torch.stack(passes, 1)
            share = 1 / averaged if i >= self.iterations - averaged else 0.0
            return torch.stack([x, u, state[2] + share * x_hat]), x_hat.reshape(shape)

        x = torch.stack([x for x, _ in starts])
        state = torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)])
        run = Run(self, velocity, likelihood, shape)
        _, u, mean = iterate(
            step, state, self.iterations, run=run, streams=noises, callback=callback, checkpoint=checkpoint
        )
        each = zip(data, mean, u, (error(ts[-1]) for ts in times), strict=True)
        x = torch.stack([y.condition(one - fourier_filter(dual, e), e).mean.to(one) for y, one, dual, e in each])
        settings = {"sampler": "PlugAndPlay", **attrs.asdict(self), "time": [ts[-1] for ts in times]}
        return Draw(x.reshape(shape), self.iterations, settings)

    def _times(self, automatic: float) -> list[float]:
        """Of every pass; of the last `automatic`, where `time` is None."""
        last = min(max(_LEAST, automatic), _MOST) if self.time is None else self.time
        first = max(_FIRST, last) if self.iterations > 1 else last
        return torch.linspace(first, last, self.iterations, dtype=torch.float64).tolist()
