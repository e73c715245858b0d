"""Flow posterior sampling: a prior's flow, guided by the gradient of a likelihood (CryoFM, section 4.3, Alg.
1).

At every step of the flow from t = 1 to 0 the clean volume is estimated, x̂_0 = x_t − t v(x_t, t), compared
with the data, and the comparison is carried back to x_t through the network. Two rules for doing so:

- `"paper"`, Alg. 1. With l = −log p(y | x̂_0) and g = ∇_{x_t} l / ‖∇_{x_t} l‖ per volume,
  x_{t−Δ} = x_t − Δ v − λ_t g; no push at t = 1. To the letter λ_t = min(λ_max, t/(1−t)), a push of fixed length that
  ignores how strong the noise is, and carries no Δ: 1000 steps push ten times as far as 100. Rescaled, λ_t is 1000/N
  times that, which keeps the total of the published N = 1000. Its samples are NOT calibrated: their spread is no
  uncertainty.
- `"gaussian"`, exact conditioning. v_y = v − t/(1−t) ∇_{x_t} log p(y | x_t), where x_0 given x_t is taken as
  a normal of mean x̂_0 and variance e(ν, t), so that the data's noise variance N grows to N + e. For a
  Gaussian prior and linear Gaussian data this is exact, as far as its gradient is (see `Guided`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, cast

import attrs
import torch
from torch import Tensor

from cryofm_ops import Conjugate, FourierDiagonal, GridMismatchError, Likelihood, fourier_filter, irfft, rfft
from cryofm_sampling._common import (
    Unrounded,
    as_the_data,
    backward,
    check_likelihood,
    log_prob_and_gradient,
    missing,
    spectral,
    spent,
    split_shape,
    streams,
    velocity_at,
    white_noise,
    whole,
    within,
)
from cryofm_sampling.errors import CapabilityError, SettingError
from cryofm_sampling.protocols import Callback, Draw, VelocityField
from cryofm_sampling.runs.checkpoint import Checkpoint, Run, Step, iterate
from cryofm_sampling.samplers._denoising_error import DenoisingError
from cryofm_sampling.samplers._smoothed import smoothed_gradient

__all__ = ["Guided"]


def _paper_step(
    velocity: VelocityField, likelihood: Likelihood, x_t: Tensor, t: float, s: float, push: float
) -> tuple[Tensor, Tensor]:
    """Alg. 1, one step from t to s: x_s and x̂_0."""
    if t == 1:  # x̂_0 does not depend on pure noise: the gradient is 0, or as good as random, and 0/0 when normalised
        v = velocity_at(velocity, x_t, t)
        return x_t - (t - s) * v, x_t - v
    x_t, v = _with_graph(velocity, x_t, t)
    x_0 = x_t.detach() - t * v.detach()
    value, g = log_prob_and_gradient(likelihood, x_0)
    check_likelihood(value, g)
    g = -_through(v, x_t, t, g)
    largest = g.abs().amax((-3, -2, -1), keepdim=True)
    g = torch.where(largest > 0, g / largest, 0)  # the square of a large gradient is infinite
    norm = g.square().sum((-3, -2, -1), keepdim=True).sqrt()
    g = torch.where(norm > 0, g / norm, 0)
    return (x_t - (t - s) * v - push * g).detach(), x_0


def _with_graph(velocity: VelocityField, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """x_t and v(x_t, t), through which gradients pass."""
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        return x_t, velocity_at(velocity, x_t, t)


def _through(v: Tensor, x_t: Tensor, t: float, g: Tensor) -> Tensor:
    """The gradient with respect to x_t, from g, that with respect to x̂_0 = x_t − t v."""
    return g + backward(v, x_t, -t * g, "the prior")


Gradient = Callable[[Tensor, Tensor], Tensor]  # (x̂_0, e) -> ∇ log p(y | x̂_0), the noise inflated by e


def _conditioned(velocity: VelocityField, gradient: Gradient, x_t: Tensor, t: float, e: Tensor) -> Tensor:
    """E[x_0 | x_t, y] = x̂_0 + t²/(1−t) ∇_{x_t} log p(y | x_t): the clean end of v_y."""
    if t == 1:  # t²/(1−t) ∂x̂_0/∂x_t = Cov[x_0 | x_t] lives on, its factors ∞ and 0 do not
        x_0 = x_t - velocity_at(velocity, x_t, t)
        return x_0 + fourier_filter(gradient(x_0, e), e)
    x_t, v = _with_graph(velocity, x_t, t)
    x_0 = x_t.detach() - t * v.detach()
    return x_0 + t**2 / (1 - t) * _through(v, x_t, t, gradient(x_0, e))


def inflated_gradient(likelihood: Likelihood | Conjugate) -> Gradient:
    """By what the data make of N(x̂_0, e), whose mean moves by e ∇ log p(y | x̂_0); or by the mode, from `log_prob`."""
    if not isinstance(likelihood, Conjugate):
        return partial(smoothed_gradient, likelihood)
    data = Unrounded(likelihood)

    def gradient(x_0: Tensor, e: Tensor) -> Tensor:
        mean = data.condition(x_0, e).mean.to(x_0)
        if mean.shape != x_0.shape:
            raise GridMismatchError(
                f"{type(likelihood).__name__} conditions volumes {tuple(x_0.shape)} to {tuple(mean.shape)}"
            )
        return fourier_filter(mean - x_0, 1 / e)

    return gradient


def _spectral_gradient(W: Tensor, y: Tensor) -> Gradient:
    """In closed form: W / (1 + W e) (ỹ − x̃), at W = 0 and W = ∞ too."""
    # torch 2.6 knows no quotient of a complex number and infinity.
    return lambda x_0, e: irfft((y - rfft(x_0)) * (1 / (1 / W + e)), split_shape(x_0.shape)[1])


@attrs.frozen
class Guided:
    """Alg. 1: samples by guidance; 2 network evaluations a step.

    Attributes:
        steps: N. With `"paper"` the times are equidistant, and N is at least 2, as the first step knows nothing of the
            data. With `"gaussian"` they fall as (1 − i/N)², which keeps the spread of well measured, narrow
            coefficients; what Euler steps lose of the spread is about 1.7/N of it.
        guidance: `"gaussian"` or `"paper"`, see the module.
        max_push: λ_max of `"paper"` in a box of 64³; other boxes scale it by √(voxels / 64³), as ‖x‖ grows.
        rescaled: whether the push of `"paper"` is fitted to N and to the box. False: λ_t = min(λ_max, t/(1−t)) in every
            step and box, to the letter.

    Needs a `Likelihood`; `"gaussian"` takes a `FourierDiagonal` or a `Conjugate` one too, whose inflated gradient it
    knows exactly. For any other it solves for that with gradients of `log_prob` alone, which is approximate where
    signal over noise varies by orders of magnitude. A `Calibrated` velocity field says how large e(ν, t) is; without
    statistics the prior is taken as white of unit power, e = t²/((1−t)² + t²). Samples have the dtype of the data,
    where these tell it, and the device of a `FourierDiagonal` likelihood's, otherwise the generator's.

    The noise of a volume does not depend on the batch that it is drawn in; the network's and the likelihood's rounding
    may, and solving for the gradient may make a thousandth of the standard deviation of it. To be sure of every bit
    draw volumes one by one, as `restore` does.

    Raises `CapabilityError` if the likelihood has no `log_prob`, or if no gradient passes through that or the prior;
    `OperatorError` if the `log_prob` is not finite; `GridMismatchError` if the likelihood is on another grid.

    >>> from cryofm_sampling.testing import GaussianPrior
    >>> class Measured:  # y = 1 + noise of variance 1/3 in every voxel
    ...     def log_prob(self, x):
    ...         return -1.5 * (x - 1).square().sum((-3, -2, -1))
    >>> generator = torch.Generator().manual_seed(0)
    >>> draw = Guided(steps=50)(GaussianPrior(1.0), Measured(), shape=(12, 12, 12), generator=generator)
    >>> print(f"{draw.x.mean():.2f} ± {draw.x.std():.2f}, {draw.nfe} evaluations")  # exact: 0.75 ± 0.50
    0.74 ± 0.48, 99 evaluations
    """

    steps: int = attrs.field(default=100, validator=whole(1))
    guidance: Literal["paper", "gaussian"] = attrs.field(
        default="gaussian", validator=within(attrs.validators.in_(("paper", "gaussian")))
    )
    max_push: float = attrs.field(default=5.0, validator=within(attrs.validators.gt(0), attrs.validators.lt(math.inf)))
    rescaled: bool = attrs.field(default=True, validator=within(attrs.validators.instance_of(bool)))

    def __attrs_post_init__(self) -> None:
        if self.guidance == "paper" and self.steps < 2:
            raise SettingError('guidance "paper" needs 2 steps: the first knows nothing of the data')

    @torch.inference_mode(False)  # under which nothing has a gradient
    @torch.no_grad()
    def __call__(
        self,
        velocity: VelocityField,
        likelihood: Likelihood | FourierDiagonal | Conjugate,
        /,
        *,
        shape: tuple[int, ...],
        generator: torch.Generator,
        callback: Callback | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Draw:
        """Draw one posterior sample for every element of the batch of `shape`; in model units."""
        exact = self.guidance == "gaussian" and isinstance(likelihood, FourierDiagonal | Conjugate)
        if not exact and not hasattr(likelihood, "log_prob"):
            raise CapabilityError(f"Guided needs a Likelihood; {missing(likelihood, 'log_prob')}")
        batch, box = split_shape(shape)
        like = torch.empty((), device=generator.device)
        gradient: Gradient
        if isinstance(likelihood, FourierDiagonal):
            W, like = spectral(likelihood, batch, box)
            gradient = _spectral_gradient(W, like)
        else:
            gradient = inflated_gradient(likelihood)
            like = as_the_data(likelihood, box, like)
        noises = streams(generator, batch)
        x_1 = torch.stack([white_noise(box, noise, like) for noise in noises]).reshape(shape)
        data = cast(Likelihood, likelihood)  # of which "gaussian" needs its `gradient` alone
        step = self._step(velocity, data, gradient, DenoisingError.of(velocity, box, x_1))
        run = Run(self, velocity, data, shape)
        x = iterate(step, x_1, self.steps, run=run, streams=noises, callback=callback, checkpoint=checkpoint)
        nfe = spent(velocity, 2 * self.steps - 1)  # pure noise needs no backward pass
        return Draw(x, nfe, {"sampler": "Guided", **attrs.asdict(self)})

    def _step(self, velocity: VelocityField, likelihood: Likelihood, gradient: Gradient, error: DenoisingError) -> Step:
        power = 1 if self.guidance == "paper" else 2
        times = [((self.steps - i) / self.steps) ** power for i in range(self.steps + 1)]
        box, total = ((math.prod(error.box) / 64**3) ** 0.5, 1000 / self.steps) if self.rescaled else (1.0, 1.0)

        def step(i: int, x_t: Tensor) -> tuple[Tensor, Tensor]:
            t, s = times[i], times[i + 1]
            if self.guidance == "paper":
                λ = total * min(self.max_push * box, t / max(1 - t, 1e-9))
                return _paper_step(velocity, likelihood, x_t, t, s, λ)
            x_0 = _conditioned(velocity, gradient, x_t, t, error(t))
            return s / t * x_t + (1 - s / t) * x_0, x_0  # = x_t − (t − s) v_y, as v_y = (x_t − x_0) / t

        return step
