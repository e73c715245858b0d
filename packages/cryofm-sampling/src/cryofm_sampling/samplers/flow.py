"""Samples of the prior alone: its flow, integrated from noise to data.

dx/dt = v(x, t) from white noise at t = 1 to t = 0. The times t_i = cos²(π i / 2N) are dense at both ends, where the
flow of a spectrum that falls over many orders of magnitude is fast: near t = 1 for what is much stronger than the
noise, near 0 for what is much weaker. For powers from 1e-4 to 1e3 Heun's rule with N = 20 (39 evaluations) gets all
amplitudes of a Gaussian prior within 8 %; with equidistant times they would be up to 81 % off.

Conditional flows are published with equidistant times: 200 Euler steps, or 50 of the midpoint rule.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import attrs
import torch
from torch import Tensor

from cryofm_sampling._common import spent, split_shape, streams, velocity_at, white_noise, whole, within
from cryofm_sampling.protocols import Callback, Draw, VelocityField
from cryofm_sampling.runs.checkpoint import Checkpoint, Run, iterate

__all__ = ["Flow"]


def _euler(velocity: VelocityField, x: Tensor, t: float, s: float) -> Tensor:
    """From t to s; order 1, one evaluation."""
    return x + (s - t) * velocity_at(velocity, x, t)


def _heun(velocity: VelocityField, x: Tensor, t: float, s: float) -> Tensor:
    """From t to s; order 2, two evaluations.

    The last step is Euler's, as in Karras et al., NeurIPS 2022, Alg. 1: x̂_0 itself. It keeps the order (one step of
    local error Δ²), and never asks for v at t = 0, where a field that divides by t has none.
    """
    v = velocity_at(velocity, x, t)
    if s == 0:
        return x + (s - t) * v
    return x + (s - t) / 2 * (v + velocity_at(velocity, x + (s - t) * v, s))


def _midpoint(velocity: VelocityField, x: Tensor, t: float, s: float) -> Tensor:
    """From t to s; order 2, two evaluations, the second half way."""
    half = x + (s - t) / 2 * velocity_at(velocity, x, t)
    return x + (s - t) * velocity_at(velocity, half, (t + s) / 2)


_INTEGRATORS: dict[str, Callable[[VelocityField, Tensor, float, float], Tensor]] = {
    "euler": _euler,
    "heun": _heun,
    "midpoint": _midpoint,
}


@attrs.frozen
class Flow:
    """Unconditional samples: what the prior believes without any data.

    Attributes:
        steps: N.
        integrator: `"heun"`, of order 2 and 2 N − 1 network evaluations, `"midpoint"`, of order 2 and 2 N, or
            `"euler"`, of order 1 and N.
        spacing: of the times, `"cosine"`, dense at both ends, or `"even"`.

    Samples have the default dtype and the generator's device. The noise of a volume does not depend on the batch
    that it is drawn in; the network's rounding may.

    >>> from cryofm_sampling.testing import GaussianPrior
    >>> draw = Flow()(GaussianPrior(4.0), shape=(16, 16, 16), generator=torch.Generator().manual_seed(0))
    >>> print(f"{draw.x.std():.2f}, {draw.nfe} evaluations")
    1.99, 39 evaluations
    """

    steps: int = attrs.field(default=20, validator=whole(1))
    integrator: Literal["euler", "heun", "midpoint"] = attrs.field(
        default="heun", validator=within(attrs.validators.in_(tuple(_INTEGRATORS)))
    )
    spacing: Literal["cosine", "even"] = attrs.field(
        default="cosine", validator=within(attrs.validators.in_(("cosine", "even")))
    )

    @torch.no_grad()
    def __call__(
        self,
        velocity: VelocityField,
        /,
        *,
        shape: tuple[int, ...],
        generator: torch.Generator,
        callback: Callback | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Draw:
        """One sample for every element of the batch of `shape`, in model units; the callback is shown x_t."""
        batch, box = split_shape(shape)
        like = torch.empty((), device=generator.device)
        noises = streams(generator, batch)
        first = torch.stack([white_noise(box, noise, like) for noise in noises]).reshape(shape)
        integrator, times = _INTEGRATORS[self.integrator], list(pairwise(self._times()))

        def step(i: int, x: Tensor) -> tuple[Tensor, Tensor]:
            x = integrator(velocity, x, *times[i])
            return x, x.clone()  # which a callback may change

        run = Run(self, velocity, {}, shape)
        x = iterate(step, first, self.steps, run=run, streams=noises, callback=callback, checkpoint=checkpoint)
        return Draw(x, spent(velocity, self.calls), {"sampler": "Flow", **attrs.asdict(self)})

    @property
    def calls(self) -> int:
        """Of the velocity field, for each volume."""
        return {"euler": self.steps, "heun": 2 * self.steps - 1, "midpoint": 2 * self.steps}[self.integrator]

    def _times(self) -> list[float]:
        if self.spacing == "even":
            return [(self.steps - i) / self.steps for i in range(self.steps + 1)]
        return [math.cos(math.pi * i / (2 * self.steps)) ** 2 for i in range(self.steps)] + [0.0]
