"""Posterior samples by the flow of the posterior, whose mean is estimated on the way.

The flow of p(x_0 | y) is the prior's with another mean in it,

    v_y(x_t, t) = (x_t − E[x_0 | x_t, y]) / t,    x_s = (s / t) x_t + (1 − s / t) E.

A step from t to s takes for E the mean at t and half of its change in the step before, which is the mean halfway in
log σ to second order. And x_t is one more observation of x_0: x_t / (1 − t) with white noise of variance τ = (t / (1 −
t))². So the mean is what passes of `PlugAndPlay` find if their x is conditioned on both. They begin with E[x_0 | y],
the mean at t = 1; one will do, unless gaps have to be filled. From then on every step makes one pass, with the x, x̂ and
u of the step before: x_t changes little, and so does the mean.

The denoiser's level is what the Wiener filter of both leaves open over what it takes, τ' = Σ E / Σ G with W_t = W +
1/τ, E = P / (1 + P W_t) and G = P W_t / (1 + P W_t). Noiseless data have E = 0 and count with half of G: with all of it
samples spread too little, with none the gaps between them are filled by a denoiser that takes their edges for noisy.

For a Gaussian prior the passes converge to the exact mean, and the steps to the exact flow: the error falls as
1/steps, since the passes lag behind x_t.

Reference for the step: DPM-Solver++(2M), Lu et al., arXiv 2211.01095, Algorithm 2.
"""

import math

import attrs
import torch
from torch import Tensor

from cryofm_ops import Conjugate, FourierDiagonal, Likelihood, Normal, friedel_weights
from cryofm_sampling._common import (
    Box,
    DenoisingError,
    calibrated,
    conjugates,
    split_shape,
    streams,
    variance_at,
    white_noise,
    within,
)
from cryofm_sampling.checkpoint import Checkpoint, Run, iterate
from cryofm_sampling.plug_and_play import PlugAndPlay, alternate
from cryofm_sampling.protocols import Callback, Draw, VelocityField

__all__ = ["PosteriorFlow"]

_LEAST = 0.02  # t of a denoiser
_NOISELESS = 0.5  # weight of a noiseless coefficient in its level


def _level(W: Tensor, power: Tensor, box: Box) -> float:
    """The denoiser's t for data of precision W > 0, DC left out."""
    weights = friedel_weights(box).to(power) * torch.where(W.isfinite(), 1, _NOISELESS)
    weights[0, 0, 0] = 0
    gain = weights * power / (power + 1 / W)
    root = math.sqrt(float((gain / W).sum() / gain.sum()))
    return max(_LEAST, root / (1 + root))


@attrs.frozen(eq=False)
class _Both:
    """Data, and `seen` with white noise of variance τ: `Conjugate` to white normals as the data are."""

    data: Conjugate
    seen: Tensor
    tau: float

    def condition(self, mean: Tensor, variance: Tensor | float, /) -> Normal:
        precision = 1 / variance + 1 / self.tau
        return self.data.condition((mean / variance + self.seen / self.tau) / precision, 1 / precision)


@attrs.frozen
class PosteriorFlow:
    """Posterior samples by the flow of the posterior; one network evaluation a step, after those of `first`.

    Attributes:
        steps: from t = 1, at ratios t / (1 − t) that fall geometrically from 1.25 `steps` to 1.6 / `steps`.
        first: the passes that estimate the posterior's mean, where the flow begins. Where something was not measured,
            `restore` takes the passes that fill it.

    Needs a `FourierDiagonal` or a `Conjugate` likelihood and a `Calibrated` velocity field, and raises
    `CapabilityError` naming what is missing; `GridMismatchError` if the likelihood is on another grid. Volumes have the
    dtype and the device of a `FourierDiagonal` likelihood's data, of which what has no noise is kept; otherwise the
    default dtype and the generator's device. What is drawn together never changes a bit. Too few steps spread too
    little.

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
        data, like = conjugates(likelihood, batch, box, torch.empty((), device=generator.device), "PosteriorFlow")
        power = DenoisingError.of(calibrated(velocity, "PosteriorFlow"), box, like).power
        noises = streams(generator, batch)
        starts = [self.first._start(y, power, box, like, noise) for y, noise in zip(data, noises, strict=True)]
        times = [1.0, *self._times()]
        passes = self.first.iterations

        def flow(t: float, s: float, v: int, state: Tensor) -> list[Tensor]:
            x_t, x_hat, x, u, before = state
            x_t = s / t * x_t + (1 - s / t) * (x + (x - before) / 2)
            tau = variance_at(s)
            both = _Both(data[v], x_t / (1 - s), tau)
            level = _level(starts[v][2] + 1 / tau, power, box)
            tau_prime = variance_at(level)
            informed = both.condition(x_hat - tau_prime * u, tau_prime).mean.to(x)  # of the new x_t
            return [x_t, *alternate(velocity, both, informed, u, level, noises[v]), x]

        def step(i: int, state: Tensor) -> tuple[Tensor, Tensor]:  # (x_t, x̂, x, u and x before, volume, z, y, x)
            each: list[list[Tensor]] = []
            for v, one in enumerate(state.unbind(1)):
                if i < passes:
                    x_hat, x, u = alternate(velocity, data[v], one[2], one[3], starts[v][1][i], noises[v])
                    each.append([one[0], x_hat, x, u, x])
                else:
                    each.append(flow(*times[i - passes : i - passes + 2], v, one))
            state = torch.stack([torch.stack(one) for one in each], 1)
            return state, state[2].reshape(shape)

        x_1 = torch.stack([white_noise(box, noise, like) for noise in noises])
        wiener = torch.stack([x for x, _, _ in starts])
        state = torch.stack([x_1, wiener, wiener, torch.zeros_like(wiener), wiener])
        run = Run(self, velocity, likelihood, shape)
        x = iterate(step, state, self.nfe, run=run, streams=noises, callback=callback, checkpoint=checkpoint)[2]
        return Draw(x.reshape(shape), self.nfe, {"sampler": "PosteriorFlow", **attrs.asdict(self)})

    def _times(self) -> list[float]:
        first, last = math.log10(1.25 * self.steps), math.log10(1.6 / self.steps)
        ratios = torch.logspace(first, last, self.steps, dtype=torch.float64)
        times: list[float] = (ratios / (1 + ratios)).tolist()
        return times
