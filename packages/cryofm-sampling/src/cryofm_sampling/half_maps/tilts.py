"""Whether a map was measured at the tilts, or from the particles, that it is said to be."""

import math

from torch import Tensor

from cryofm_ops import MissingWedge, find_wedge, frequencies, friedel_weights, radial, radial_mean, rfft
from cryofm_sampling._common import split_shape

__all__ = ["doubt_of_coverage", "doubt_of_tilts"]

_LOST = 0.01  # of a map's power, that a wedge of the wrong tilts would take away
_COARSE = 0.1  # of Nyquist, below which too few coefficients tell noise
_SHORT = 0.85  # of the root of what was told, that noise in the halves must be where it is told to be stronger


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
    lost = _lost(tilts.transfer(split_shape(map.shape)[1]), map, map if other is None else other)
    if not lost:
        return ""
    return f"{lost:.0%} of the map's power lies within the wedge, and is left out, if it is measured {told}"


def doubt_of_coverage(half1: Tensor, half2: Tensor, noise: Tensor, seen: Tensor, /, *, band: float = 1.0) -> str:
    """What speaks against a noise that was told of two halves, and against where they were measured; in plain words.

    Where told noise is stronger than the mean of its shell, by how much, against what the halves differ by there.

    Args:
        half1: `(z, y, x)`.
        half2: likewise.
        noise: power told of one half, on the half grid, up to a factor in each shell.
        seen: 1 where something was measured, otherwise 0.
        band: the highest frequency that was measured, over the grid's Nyquist frequency.

    >>> import torch
    >>> x, y = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> noise = 1 + 9 * (torch.arange(9.0) > 4).double().expand(16, 16, 9)  # stronger where kx is large
    >>> print(doubt_of_coverage(x, y, noise, torch.ones(16, 16, 9)).partition(":")[0])
    the poses make noise 5.5 times as strong in some directions as in others, and the halves have it 1.1 times there
    """
    _, shape = split_shape(half1.shape)
    if lost := _lost(seen, half1, half2):
        return f"{lost:.0%} of the power that the halves share lies where no particle measured, by the poses"
    nu = 2 * frequencies(shape).to(half1.device)
    weights = seen * friedel_weights(shape).to(seen) * ((nu > _COARSE) & (nu <= min(band, 1.0))).to(seen)

    def over_its_shell(power: Tensor) -> Tensor:
        mean = radial_mean(power * seen, shape) / radial_mean(seen, shape)
        return power / radial(mean.nan_to_num(1.0), shape).clamp(min=1e-30)

    told, found = over_its_shell(noise), over_its_shell(rfft((half1 - half2).double()).abs().square())
    strong, weak = weights * (told > 1), weights * (told <= 1)
    expected, ratio = (
        float((x * strong).sum() / strong.sum() / ((x * weak).sum() / weak.sum())) for x in (told, found)
    )
    if not ratio < _SHORT * math.sqrt(expected):
        return ""  # nor where there is nothing to compare
    return (
        f"the poses make noise {expected:.1f} times as strong in some directions as in others, and the halves have it "
        f"{ratio:.1f} times there: poses or tilts of other particles, or halves that are no plain averages of these"
    )


def _lost(measured: Tensor, one: Tensor, two: Tensor) -> float:
    """The fraction of the power that two maps share where nothing was measured, if it is more than by chance."""
    _, shape = split_shape(one.shape)
    weights = friedel_weights(shape).to(one)
    within = weights * (1 - measured.to(one))
    a, b = rfft(one - one.mean()), rfft(two - two.mean())
    shared = (a * b.conj()).real
    lost = float((within * shared).sum() / (weights * shared).sum())
    power, noise = (a.abs().square() + b.abs().square()) / 2, (a - b).abs().square() / 2
    chance = float((2 * within * power * noise).sum().sqrt() / (weights * shared).sum())  # no less than what noise adds
    return lost if lost > max(_LOST, 3 * chance) else 0.0
