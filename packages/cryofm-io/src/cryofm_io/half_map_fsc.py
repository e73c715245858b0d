"""All that two half maps tell of how far they agree: with a mask, by direction, from place to place."""

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.conical_fsc import ConicalFsc, conical_fsc
from cryofm_io.density_map import DensityMap, check_same_grid
from cryofm_io.errors import MaskError
from cryofm_io.fsc import FscCurve
from cryofm_io.local_fsc import local_resolution
from cryofm_io.masked_fsc import MaskedFsc, masked_fsc
from cryofm_io.masks import automatic_mask

__all__ = ["HalfMapFsc", "half_map_fsc"]


@attrs.frozen(eq=False)
class HalfMapFsc:
    """How far two half maps agree.

    Args:
        mean: Of the halves.
        mask: ``(z, y, x)``, that was told, or an automatic one.
        curves: Without mask, with it, corrected for what it adds.
        cones: By direction.
        local: Resolution from place to place, Å, 0 outside the mask; None where it was not asked for.
    """

    mean: DensityMap
    mask: NDArray[np.float32]
    curves: MaskedFsc
    cones: ConicalFsc
    local: DensityMap | None = None

    def named(self) -> dict[str, FscCurve]:
        """All curves that one draws or writes, of the directions the worst and the best one."""
        area = self.cones.auc
        return {
            "unmasked": self.curves.unmasked,
            "masked": self.curves.masked,
            "phases randomised": self.curves.randomised,
            "corrected": self.curves.corrected,
            "worst direction": self.cones.curve(int(area.argmin())),
            "best direction": self.cones.curve(int(area.argmax())),
        }


def half_map_fsc(
    half1: DensityMap, half2: DensityMap, mask: NDArray[np.float32] | None = None, *, local: bool = False
) -> HalfMapFsc:
    """Correlate two half maps in every way that there is here.

    Args:
        half1: Raw; between restored halves an FSC is self-consistency and no resolution.
        half2: On the same grid.
        mask: ``(z, y, x)``, soft; None: an automatic one.
        local: Whether to find the resolution from place to place as well, which takes longer.

    Raises:
        GridMismatchError: The grids differ.
        MaskError: Nothing stands out of the maps, which a mask could be made of.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> ball = np.zeros((24, 24, 24))
        >>> ball[8:16, 8:16, 8:16] = 9
        >>> found = half_map_fsc(*(DensityMap(ball + rng.normal(size=ball.shape), 1.5) for _ in range(2)))
        >>> found.curves.unmasked.resolution(0.143) < 6, float(found.mask[12, 12, 12])
        (True, 1.0)
    """
    check_same_grid(half1, half2, "the half maps")
    size, mean = half1.voxel_size, (half1.data + half2.data) / 2
    if mask is None:
        mask = automatic_mask(mean - np.median(mean), size)
    if mask is None:
        raise MaskError("nothing stands out of the maps; give a mask (--mask)")
    curves = masked_fsc(half1.data, half2.data, size, mask)
    cones = conical_fsc(half1.data, half2.data, size, mask)
    found = HalfMapFsc(attrs.evolve(half1, data=mean), mask, curves, cones)
    if not local:
        return found
    places = local_resolution(half1.data, half2.data, size, mask)
    return attrs.evolve(found, local=attrs.evolve(half1, data=places, labels=("Local resolution, A.",)))
