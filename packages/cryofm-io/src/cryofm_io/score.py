"""How near a map comes to the truth, whichever program made it."""

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.density_map import DensityMap, check_same_grid
from cryofm_io.fsc import FscCurve, fsc

__all__ = ["MapScore", "score_map"]


@attrs.frozen(eq=False)
class MapScore:
    """How near a map comes to the truth.

    Args:
        fsc: Between the two.
        error: ``|s x − y|² / |y|²`` of map x and truth y, both less their means, with the best s: other programs have
            units and a background of their own.
    """

    fsc: FscCurve
    error: float


def score_map(
    map: DensityMap, truth: DensityMap, mask: NDArray[Any] | None = None, *, finest: float | None = None
) -> MapScore:
    """Score a map against the truth, or an atomic model's density.

    Args:
        map: Of any units.
        truth: On the same grid.
        mask: ``(z, y, x)``, multiplied with both if given.
        finest: Å, of the shells that count; None: Nyquist.

    Raises:
        GridMismatchError: The grids differ.

    Example:
        >>> truth = DensityMap(np.random.default_rng(0).normal(size=(8, 8, 8)), 1.5)
        >>> score = score_map(attrs.evolve(truth, data=3 * truth.data + 1), truth)
        >>> round(score.fsc.auc, 6), round(score.error, 6)
        (1.0, 0.0)
    """
    check_same_grid(truth, map, "map and truth")
    curve = fsc(map.data, truth.data, truth.voxel_size, mask)
    if finest is not None:
        used = curve.frequency <= 1 / finest + 1e-9
        curve = FscCurve(curve.frequency[used], curve.correlation[used], curve.n_voxels[used])
    x, y = ((m.data if mask is None else m.data * mask).astype(np.float64) for m in (map, truth))
    x, y = x - x.mean(), y - y.mean()
    power = float((x * x).sum())
    scale = float((x * y).sum()) / power if power else 0.0
    return MapScore(curve, float(np.square(scale * x - y).sum() / np.square(y).sum()))
