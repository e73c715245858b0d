"""Models of many noisy particles: their poses begin anywhere, and are drawn in the models while these form."""

from collections.abc import Callable

import torch

from cryofm_ops import ImagesInBand, random_rotations
from cryofm_sampling.models.ranked import RankedModels, Refining
from cryofm_sampling.protocols import VelocityField

__all__ = ["models_of_particles"]

_RATIOS = (10.0, 0.4)  # the levels of noise between which poses and models settle


def models_of_particles(
    prior: VelocityField,
    images: ImagesInBand,
    /,
    *,
    max_shift_px: float,
    generator: torch.Generator,
    chains: int = 8,
    keep: int = 3,
    levels: int = 20,
    callback: Callable[[int], object] | None = None,
) -> RankedModels:
    """Ranked models of a few hundred particles with CTFs, at unknown poses.

    Args:
        prior: `Calibrated`, with a `.normalization`.
        images: the particles, with their noise and CTFs.
        max_shift_px: how far off centre they may be, voxels.
        generator: all randomness.
        chains: in which poses are drawn, at twice the levels.
        keep: models to refine of the best of them.
        levels: of noise, one network evaluation each and model.
        callback: is told of network evaluations; there are `evaluations(chains, keep, levels)`.

    Raises what `AbInitio` raises.
    """
    refine = Refining(prior, images, max_shift_px, generator, callback)
    count = images.spectra.shape[-2]
    anywhere = random_rotations(chains * count, generator=generator, dtype=torch.float32).reshape(chains, count, 3, 3)
    centred = anywhere.new_zeros(chains, count, 2)
    drawn = refine(anywhere, centred, levels=2 * levels, ratios=_RATIOS, draw_above=0.0)
    best = min(keep, chains)
    models = refine(drawn.rotations[:best], drawn.shifts_px[:best], levels=levels)
    scores = {"misfit": models.misfit}
    return RankedModels(models.x, models.rotations, models.shifts_px, scores, evaluations(chains, keep, levels))


def evaluations(chains: int, keep: int, levels: int) -> int:
    """Network evaluations of `models_of_particles`.

    >>> evaluations(8, 3, 20)
    413
    """
    return (2 * levels + 3) * chains + (levels + 3) * min(keep, chains)
