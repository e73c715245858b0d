"""Whether a map was measured at the tilts that it is said to be."""

from torch import Tensor

from cryofm_ops import MissingWedge, find_wedge, friedel_weights, rfft
from cryofm_sampling._common import split_shape

__all__ = ["doubt_of_tilts"]

_LOST = 0.01  # of a map's power, that a wedge of the wrong tilts would take away


def doubt_of_tilts(tilts: MissingWedge, map: Tensor, other: Tensor | None = None, /) -> str:
    """What speaks against tilts that were told of a map, or of two halves, in plain words; nothing where they fit.

    The edges of a missing wedge tell its tilts (`find_wedge`). Where there are none to be seen, no more of the power
    that the halves share may lie in the wedge that was told than a hundredth, or than by chance.

    >>> import torch
    >>> x = torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> doubt_of_tilts(MissingWedge(-50, 50), MissingWedge(-52, 51)(x))
    ''
    >>> print(doubt_of_tilts(MissingWedge(-60, 60), MissingWedge(-50, 50)(x)))
    the map looks measured from -50 to 50 degrees about y, and not from -60 to 60 about y as was told
    """
    told = f"from {tilts.tilt_min:g} to {tilts.tilt_max:g} about {tilts.tilt_axis} as was told"
    if (found := find_wedge(map, other)) is not None:
        if found.agrees(tilts):
            return ""
        seen = found.tilts
        mirrored = (seen.tilt_min, seen.tilt_max) != (-seen.tilt_max, -seen.tilt_min)
        turned = mirrored and found.agrees(MissingWedge(-tilts.tilt_max, -tilts.tilt_min, tilts.tilt_axis))
        return (
            f"the map looks measured from {seen.tilt_min:g} to {seen.tilt_max:g} degrees about {seen.tilt_axis}, and "
            f"not {told}" + (": the sign of the tilts is the other one" if turned else "")
        )
    lost = _lost(tilts, map, map if other is None else other)
    if not lost:
        return ""
    return f"{lost:.0%} of the map's power lies within the wedge, and is left out, if it is measured {told}"


def _lost(tilts: MissingWedge, one: Tensor, two: Tensor) -> float:
    """The fraction of the power that two maps share which lies in the wedge, where it is more than by chance."""
    _, shape = split_shape(one.shape)
    weights = friedel_weights(shape).to(one)
    within = weights * (1 - tilts.transfer(shape).to(one))
    a, b = rfft(one - one.mean()), rfft(two - two.mean())
    shared = (a * b.conj()).real
    lost = float((within * shared).sum() / (weights * shared).sum())
    power, noise = (a.abs().square() + b.abs().square()) / 2, (a - b).abs().square() / 2
    chance = float((2 * within * power * noise).sum().sqrt() / (weights * shared).sum())  # no less than what noise adds
    return lost if lost > max(_LOST, 3 * chance) else 0.0
