"""Many chains of poses taken through a prior: briefly, the better half again, and so on, the best of them in full.

Every pass moves poses, and one that begins where the last ended moves them on, for as long as they are not found. So
chains that have found them come out ahead, and others may still get there: that is worth more than one long pass.
"""

from collections.abc import Callable

import attrs
from torch import Tensor

from cryofm_ops import pose_difference_deg
from cryofm_sampling.samplers.ab_initio import Models

__all__ = ["models_by_halving"]

_AGREE_DEG = 5.0  # the poses of the best two; then they are found


def models_by_halving(
    refine: Callable[[Tensor, Tensor, int], Models],
    rotations: Tensor,
    shifts_px: Tensor,
    /,
    *,
    keep: int,
    short: int,
    levels: int,
    symmetry: Tensor | None = None,
) -> tuple[Models, int]:
    """The best models of many chains, the best first, and how many network evaluations they took.

    Args:
        refine: rotations, shifts and levels of noise to models, the best first (`AbInitio`).
        rotations: where to begin, `(C, K, 3, 3)`.
        shifts_px: likewise, `(C, K, 2)`.
        keep: models to make in full, twice if the poses of the best two are not the same.
        short: levels of noise while chains are chosen among; until they are few, or the best two are the same.
        levels: then.
        symmetry: rotations of the object's point group `(G, 3, 3)`.
    """
    models = refine(rotations, shifts_px, short)
    nfe = len(rotations) * models.nfe

    def again(models: Models, count: int, levels: int) -> Models:
        new = refine(models.rotations[:count], models.shifts_px[:count], levels)
        return attrs.evolve(new, chain=models.chain[new.chain])  # by where they began at first

    while len(models.chain) > 2 * keep and not _settled(models, symmetry):
        models = again(models, (len(models.chain) + 1) // 2, short)
        nfe += len(models.chain) * models.nfe
    for _ in range(2):
        models = again(models, keep, levels)
        nfe += len(models.chain) * models.nfe
        if _settled(models, symmetry):
            break
    return models, nfe


def _settled(models: Models, symmetry: Tensor | None) -> bool:
    R = models.rotations
    return len(R) < 2 or float(pose_difference_deg(R[0], R[1], symmetry)) < _AGREE_DEG
