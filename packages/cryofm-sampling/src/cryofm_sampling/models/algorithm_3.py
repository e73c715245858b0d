"""Models by the paper's Algorithm 3 (appendix E.2): hard poses, searched in every estimate or given."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cryofm_ops import BlindProjections, PoseLikelihood, in_model_units
from cryofm_sampling.models.ranked import RankedModels, normalization_of
from cryofm_sampling.protocols import VelocityField
from cryofm_sampling.samplers.blind_guided import BlindGuided
from cryofm_sampling.samplers.guided import Guided

__all__ = ["models_by_algorithm_3"]


def models_by_algorithm_3(
    prior: VelocityField,
    images: BlindProjections,
    /,
    *,
    known: PoseLikelihood | None = None,
    shape: tuple[int, int, int],
    generator: torch.Generator,
    chains: int = 3,
    keep: int = 3,
    steps: int = 100,
    max_push: float = 0.6,
    callback: Callable[[int], object] | None = None,
) -> RankedModels:
    """Ranked models from independent chains of the flow, guided by the projections' loss.

    Args:
        prior: with a `.normalization`; no statistics are needed.
        images: the projections, and the loss.
        known: the same at poses that are known. None: they are searched in every estimate.
        shape: of a model `(z, y, x)`.
        generator: all randomness.
        chains: run one by one, as the gradient of one box may fill the memory.
        keep: those with the least loss.
        steps: N, two network evaluations each.
        max_push: λ_max, for 64³ voxels.
        callback: is told of steps; there are `chains` times `steps`.

    Raises what `BlindGuided` and `Guided` raise.
    """
    units = normalization_of(prior)
    if known is None:
        sample = partial(BlindGuided(steps, max_push=max_push), prior, in_model_units(images, units))
    else:
        sample = partial(Guided(steps, "paper", max_push), prior, in_model_units(known, units))

    def told(*_: object) -> None:
        if callback is not None:
            callback(1)

    draws = [sample(shape=(1, *shape), generator=generator, callback=told) for _ in range(chains)]
    x = units.std * torch.cat([draw.x for draw in draws]) + units.mean
    found = images.refine(x) if known is None else known
    loss: Tensor = -found.log_prob(x)
    best = loss.argsort()[:keep]
    rotations, shifts = found.projector.rotations, found.projector.shifts_px
    if known is not None:  # the same in all models
        rotations, shifts = rotations.expand(len(x), -1, -1, -1), shifts.expand(len(x), -1, -1)
    return RankedModels(x[best], rotations[best], shifts[best], {"loss": loss[best]}, sum(draw.nfe for draw in draws))
