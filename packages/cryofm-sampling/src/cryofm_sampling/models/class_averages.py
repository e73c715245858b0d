"""Models of class averages: poses from common lines, then the prior, briefly in all chains and fully in the best."""

from collections.abc import Callable

import torch
from torch import Tensor

from cryofm_ops import ImagesInBand, sample_poses
from cryofm_sampling.models.ranked import RankedModels, Refining
from cryofm_sampling.protocols import VelocityField

__all__ = ["models_of_class_averages"]

_SEARCHED = 13  # highest frequency of the pose search, in units of 1/box
_SHORT = 8  # levels of noise that choose among the chains


def models_of_class_averages(
    prior: VelocityField,
    images: Tensor,
    /,
    *,
    noise: Tensor,
    diameter_px: float,
    max_shift_px: float,
    generator: torch.Generator,
    symmetry: Tensor | None = None,
    chains: int = 8,
    keep: int = 3,
    levels: int = 20,
    callback: Callable[[int], object] | None = None,
) -> RankedModels:
    """Ranked models of a few class averages at unknown poses.

    Args:
        prior: `Calibrated`, with a `.normalization`.
        images: `(K, n, n)`, centred and masked, in the prior's box; their scale is unknown.
        noise: power of their transforms (not normalised) at the frequencies 1.. of 1/box, as many as are used.
        diameter_px: of the particle.
        max_shift_px: how far off centre the images may be.
        generator: all randomness.
        symmetry: rotations of a point group `(G, 3, 3)`, imposed on the models.
        chains: of the pose search.
        keep: models to make of the best of them.
        levels: of noise, one network evaluation each and model.
        callback: is told of network evaluations; there are `evaluations(chains, keep, levels)`.

    Raises what `sample_poses` and `AbInitio` raise.
    """
    poses = sample_poses(
        images,
        chains=chains,
        generator=generator,
        diameter_px=diameter_px,
        noise=noise[:_SEARCHED],
        max_shift_px=max_shift_px,
        symmetry=symmetry,
    )
    data = ImagesInBand.of(images, len(noise), noise, symmetry=symmetry)
    refine = Refining(prior, data, max_shift_px, generator, callback)
    screened = refine(poses.rotations, poses.shifts_px, levels=min(_SHORT, levels))
    best = min(keep, chains)
    models = refine(screened.rotations[:best], screened.shifts_px[:best], levels=levels)
    log_evidence = poses.log_evidence[screened.chain][models.chain]
    scores = {"misfit": models.misfit, "log_evidence_of_first_poses": log_evidence}
    nfe = evaluations(chains, keep, levels)
    return RankedModels(models.x, models.rotations, models.shifts_px, scores, nfe)


def evaluations(chains: int, keep: int, levels: int) -> int:
    """Network evaluations of `models_of_class_averages`.

    >>> evaluations(8, 3, 20)
    157
    """
    return (min(_SHORT, levels) + 3) * chains + (levels + 3) * min(keep, chains)
