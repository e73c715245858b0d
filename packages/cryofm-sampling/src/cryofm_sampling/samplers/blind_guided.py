"""Flow posterior sampling with unknown poses: ab initio modelling (CryoFM, appendix E.2, Alg. 3).

Alg. 1 (see `guided`), with the nuisance parameters of the likelihood, such as the poses φ_k of K images, estimated
again at every step: φ = argmax_φ p(y | x̂_0, φ), then one guided step under p(y | x, φ). That is Alg. 1 for the profile
likelihood max_φ p(y | x, φ), since at the best φ the gradient with respect to x does not see φ change.

The poses are searched in x̂_0, which is mostly prior to begin with: a chain may settle on poses that are wrong
together. Run several, and rank them by `likelihood.refine(draw.x).log_prob(draw.x)`. The hand of a structure is not in
its images.
"""

from typing import Literal

import attrs
import torch
from torch import Tensor

from cryofm_ops import Blind, Likelihood
from cryofm_sampling._common import missing, spent, split_shape, streams, white_noise, whole, within
from cryofm_sampling.errors import CapabilityError
from cryofm_sampling.protocols import Callback, Draw, VelocityField
from cryofm_sampling.runs.checkpoint import Checkpoint, Run, iterate
from cryofm_sampling.samplers._denoising_error import DenoisingError
from cryofm_sampling.samplers.guided import Guided, inflated_gradient

__all__ = ["BlindGuided"]


@attrs.frozen
class _Profile:
    """A `Blind` as the `Likelihood` max_φ p(y | x, φ)."""

    blind: Blind

    def log_prob(self, x: Tensor, /) -> Tensor:
        return self.blind.refine(x.detach()).log_prob(x)


@attrs.frozen
class BlindGuided:
    """Alg. 3: guidance with poses searched at every step; 2 network evaluations and one search a step.

    Attributes:
        steps: N; published with 1000.
        guidance: `"paper"`, with a gradient of fixed length, for losses such as those of `BlindProjections`; or
            `"gaussian"`, for densities such as that of `BlindGaussian` (see `Guided`, and there for the times of
            the steps). Neither samples over poses: their spread is no uncertainty.
        max_push: λ_max of `"paper"` in a box of 64³, scaled as in `Guided`.

    Needs a `Blind` likelihood whose `refine` takes the batch asked for, and raises `CapabilityError` if it is none, or
    if no gradient passes through its `log_prob` or the prior. Samples have the default dtype and the generator's
    device. The noise of a volume does not depend on the batch that it is drawn in; the network's and the likelihood's
    rounding may.

    >>> from types import SimpleNamespace
    >>> from cryofm_sampling.testing import GaussianPrior
    >>> class UnknownOffset:  # y = x + c + noise of variance 1/3; y = 1, c is 0 or 5
    ...     def refine(self, x):
    ...         c = 5.0 if x.mean() < -1.5 else 0.0
    ...         return SimpleNamespace(log_prob=lambda x: -1.5 * (x + c - 1).square().sum((-3, -2, -1)))
    >>> generator = torch.Generator().manual_seed(0)
    >>> run = BlindGuided(steps=50, guidance="gaussian")
    >>> draw = run(GaussianPrior(1.0), UnknownOffset(), shape=(12, 12, 12), generator=generator)
    >>> print(f"{draw.x.mean():.2f}, {draw.nfe} evaluations")  # exact, where c is 0: 0.75
    0.74, 99 evaluations
    """

    steps: int = attrs.field(default=100, validator=whole(1))
    guidance: Literal["paper", "gaussian"] = attrs.field(
        default="paper", validator=within(attrs.validators.in_(("paper", "gaussian")))
    )
    max_push: float = attrs.field(default=5.0, validator=within(attrs.validators.gt(0)))

    def __attrs_post_init__(self) -> None:
        self._alg_1()  # which checks how these go together

    def _alg_1(self) -> Guided:
        return Guided(self.steps, self.guidance, self.max_push)

    @torch.inference_mode(False)  # under which nothing has a gradient
    @torch.no_grad()
    def __call__(
        self,
        velocity: VelocityField,
        likelihood: Blind | Likelihood,
        /,
        *,
        shape: tuple[int, ...],
        generator: torch.Generator,
        callback: Callback | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Draw:
        """One volume for every element of the batch of `shape`; in model units."""
        if not isinstance(likelihood, Blind):
            raise CapabilityError(f"BlindGuided needs a Blind likelihood; {missing(likelihood, 'refine')}")
        batch, box = split_shape(shape)
        like = torch.empty((), device=generator.device)
        noises = streams(generator, batch)
        x_1 = torch.stack([white_noise(box, noise, like) for noise in noises]).reshape(shape)

        def gradient(x_0: Tensor, e: Tensor) -> Tensor:
            with torch.autocast(x_0.device.type, enabled=False):  # which is meant for the network
                found = likelihood.refine(x_0)
            return inflated_gradient(found)(x_0, e)

        step = self._alg_1()._step(velocity, _Profile(likelihood), gradient, DenoisingError.of(velocity, box, x_1))
        run = Run(self, velocity, likelihood, shape)
        x = iterate(step, x_1, self.steps, run=run, streams=noises, callback=callback, checkpoint=checkpoint)
        return Draw(x, spent(velocity, 2 * self.steps - 1), {"sampler": "BlindGuided", **attrs.asdict(self)})
