"""Posterior samples by the flow of the posterior, whose mean is estimated on the way.

The flow of p(x_0 | y) is the prior's with another mean in it,

    v_y(x_t, t) = (x_t − E[x_0 | x_t, y]) / t,    x_s = (s / t) x_t + (1 − s / t) E[x_0 | x_t, y]    (Euler),

and x_t is one more observation of x_0: x_t / (1 − t) with white noise of variance τ = (t / (1 − t))². Data that are
diagonal in Fourier space remain so with it,

    W_t = W + 1/τ,    y_t = (W y + x_t / ((1 − t) τ)) / W_t,

and passes of denoiser and data (`_self_noised`) find the mean given them, at one network evaluation each. It begins
with those of `PlugAndPlay` that estimate E[x_0 | y], which is the mean at t = 1; one will do, unless gaps have to be
filled. From then on every step makes one pass, from the estimate that the step before has left: the data change
little, and so does the mean. The denoiser's level is what the Wiener filter of y_t leaves open over what it takes, τ'
= Σ E / Σ G with E = P / (1 + P W_t) and G = P W_t / (1 + P W_t). Noiseless data have E = 0 and count with a quarter
of G: with all of it the passes in a gap between them lag behind the flow, and samples spread too little; without it
the gap is filled by a denoiser that takes what surrounds it for noisy.

For a Gaussian prior the passes converge to the exact mean, and the steps to the exact flow: both errors fall as
1/steps. A prior's denoiser has to know noise with a colour, as the bundled one does (`PlugAndPlayLoss`).
"""

import math

import attrs
import torch
from torch import Tensor

from cryofm_ops import FourierDiagonal, FourierGaussian, Likelihood, friedel_weights, irfft, rfft
from cryofm_sampling._common import (
    Box,
    DenoisingError,
    calibrated,
    diagonal,
    spectral,
    split_shape,
    streams,
    variance_at,
    white_noise,
    within,
)
from cryofm_sampling._rotations import denoised
from cryofm_sampling._self_noised import after, before
from cryofm_sampling.checkpoint import Checkpoint, Run, iterate
from cryofm_sampling.plug_and_play import PlugAndPlay
from cryofm_sampling.protocols import Callback, Draw, VelocityField

__all__ = ["PosteriorFlow"]

_LEAST = 0.02  # t of a denoiser
_NOISELESS = 0.25  # weight of a noiseless coefficient in its level


def _level(W: Tensor, power: Tensor, box: Box) -> float:
    """The denoiser's t for data of precision W > 0, DC left out."""
    weights = friedel_weights(box).to(power) * torch.where(W.isfinite(), 1, _NOISELESS)
    weights[0, 0, 0] = 0
    gain = weights * power / (power + 1 / W)
    root = math.sqrt(float((gain / W).sum() / gain.sum()))
    return max(_LEAST, root / (1 + root))


@attrs.frozen
class PosteriorFlow:
    """Posterior samples by the flow of the posterior; one network evaluation a step, after those of `first`.

    Attributes:
        steps: from t = 1, at ratios t / (1 − t) that fall geometrically from 1.25 `steps` to 1.6 / `steps`.
        first: the passes that estimate the posterior's mean, where the flow begins. Where something was not measured,
            `restore` takes the passes that fill it.

    Needs a `FourierDiagonal` likelihood and a `Calibrated` velocity field, and raises `CapabilityError` naming what is
    missing; `GridMismatchError` if the likelihood is on another grid. Volumes have the dtype and the device of the
    likelihood's data. What is drawn together never changes a bit. Too few steps spread too little.

    >>> from cryofm_ops import Identity, WhiteNoise, gaussian_likelihood
    >>> from cryofm_sampling.testing import GaussianPrior
    >>> likelihood = gaussian_likelihood(Identity(), WhiteNoise(3**-0.5), torch.ones(12, 12, 12))
    >>> generator = torch.Generator().manual_seed(0)
    >>> draw = PosteriorFlow()(GaussianPrior(1.0, (12, 12, 12)), likelihood, shape=(12, 12, 12), generator=generator)
    >>> print(f"{draw.x.mean():.2f} ± {draw.x.std():.2f}, {draw.nfe} evaluations")  # exact: 0.75 ± 0.50
    0.74 ± 0.46, 25 evaluations
    """

    steps: int = attrs.field(default=24, validator=within(attrs.validators.ge(2)))
    first: PlugAndPlay = attrs.field(
        default=PlugAndPlay(iterations=1), validator=attrs.validators.instance_of(PlugAndPlay)
    )

    @property
    def nfe(self) -> int:
        """Network evaluations of a volume."""
        return self.first.iterations + self.steps

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
        """One sample for every element of the batch of `shape`; in model units."""
        batch, box = split_shape(shape)
        measured = diagonal(likelihood, "PosteriorFlow")
        Ws, ys = (part.reshape(-1, *part.shape[-3:]) for part in spectral(measured, batch, box))
        error = DenoisingError.of(calibrated(velocity, "PosteriorFlow"), box, ys)
        noises = streams(generator, batch)
        times = [1.0, *self._times()]
        data = [FourierGaussian(W, y, box) for W, y in zip(Ws, ys, strict=True)]
        starts = [self.first._start(y, error.power, box, ys.real, noise) for y, noise in zip(data, noises, strict=True)]
        passes = self.first.iterations

        def mean(i: int, x: Tensor, u: Tensor, v: int) -> tuple[Tensor, Tensor, Tensor]:
            return self.first._pass(velocity, data[v], x, u, starts[v][1], i, noises[v])

        def flow(t: float, s: float, x_t: Tensor, x_hat: Tensor, v: int) -> tuple[Tensor, Tensor]:
            x_t = s / t * x_t + (1 - s / t) * x_hat
            tau = variance_at(s)
            W_t, seen = Ws[v] + 1 / tau, rfft(x_t) / (1 - s)
            y_t = seen + (ys[v] - seen) / (1 + 1 / (tau * Ws[v]))
            level = _level(W_t, error.power, box)
            tau_prime = variance_at(level)
            r, _ = before(rfft(x_hat), y_t, W_t, tau_prime)
            x_hat = rfft(denoised(velocity, irfft(r, box), level, noises[v]))
            return x_t, irfft(after(x_hat, y_t, W_t, error(level), tau_prime), box)

        def step(i: int, state: Tensor) -> tuple[Tensor, Tensor]:  # (x_t, x̂, x and u, volume, z, y, x)
            x_t, x_hat, x, u = state
            volumes = range(len(ys))
            if i < passes:
                each = [torch.stack(mean(i, x[v], u[v], v)) for v in volumes]
                state = torch.cat([x_t[None], torch.stack(each, 1)])
            else:
                t, s = times[i - passes : i - passes + 2]
                each = [torch.stack(flow(t, s, x_t[v], x_hat[v], v)) for v in volumes]
                state = torch.cat([torch.stack(each, 1), state[2:]])
            return state, state[1].reshape(shape)

        x_1 = torch.stack([white_noise(box, noise, ys) for noise in noises])
        wiener = torch.stack([x for x, _ in starts])
        total = passes + self.steps
        run = Run(self, velocity, measured, shape)
        state = torch.stack([x_1, wiener, wiener, torch.zeros_like(wiener)])
        x = iterate(step, state, total, run=run, streams=noises, callback=callback, checkpoint=checkpoint)[1]
        return Draw(x.reshape(shape), self.nfe, {"sampler": "PosteriorFlow", **attrs.asdict(self)})

    def _times(self) -> list[float]:
        first, last = math.log10(1.25 * self.steps), math.log10(1.6 / self.steps)
        ratios = torch.logspace(first, last, self.steps, dtype=torch.float64)
        times: list[float] = (ratios / (1 + ratios)).tolist()
        return times
