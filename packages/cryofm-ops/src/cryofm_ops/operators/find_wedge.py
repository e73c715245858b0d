"""Which tilts a map was measured at, from where in Fourier space its power is.

A wedge has two edges, at which the power jumps whatever the molecule; power that a molecule's own shape spreads
unequally changes by and by. So all ranges of tilts, in steps of one degree about either axis, compete in likelihood:
the coefficients of a shell inside the range have one mean power, those outside another,

    log L = − Σ_shells (n₁ log m₁ + n₀ log m₀),      m the mean power of n coefficients,

which needs no model of signal or noise: a shell of noise alone, such as rounding leaves, has one power everywhere and
no say. Of two half maps the sum and the difference count each, so that agreement tells as well. The best range is taken
for a wedge where the likelihood jumps at its edges far more than beside them. Where a box was cut from a tomogram, the
edges are blurred, and found some degrees too far out: wider windows see them, and the limits are less certain.
"""

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import GridMismatchError
from cryofm_ops.fourier.grid import Shape, frequencies, friedel_weights, radial, radial_mean, rfft
from cryofm_ops.operators.wedge import MissingWedge

__all__ = ["FoundWedge", "find_wedge"]

_BINS = 180  # one degree each, from −90
_SHELLS = 16
_NEAR = 3  # pixels from the tilt axis, where directions are coarse and edges blurred
_LEAST, _MOST = 50, 176  # degrees, of a range
_WINDOWS = ((4, 0.0), (8, 3.0), (12, 5.0))  # degrees on either side of an edge, and how uncertain it is then
_FLOOR = 1e-6  # of the power of a shell: less is rounding
_SURE = 8.0  # nats, by which what is not the best range falls behind
_JUMP, _SHARP = 40.0, 3.0  # nats at an edge, and times as many as beside it


@attrs.frozen
class FoundWedge:
    """The range of tilts that a map shows.

    Attributes:
        tilts: the likeliest.
        tilt_min: lowest and highest likely value of its lower limit, degrees.
        tilt_max: of its upper limit.
    """

    tilts: MissingWedge
    tilt_min: tuple[float, float]
    tilt_max: tuple[float, float]

    def agrees(self, told: MissingWedge, /, *, tolerance_deg: float = 3.0) -> bool:
        """Whether tilts that somebody told are those of the map.

        >>> found = FoundWedge(MissingWedge(-50, 50), (-50, -49), (49, 50))
        >>> found.agrees(MissingWedge(-52, 51)), found.agrees(MissingWedge(-60, 60))
        (True, False)
        """
        return told.tilt_axis == self.tilts.tilt_axis and all(
            low - tolerance_deg <= limit <= high + tolerance_deg
            for limit, (low, high) in ((told.tilt_min, self.tilt_min), (told.tilt_max, self.tilt_max))
        )


def find_wedge(map: Tensor, other: Tensor | None = None, /) -> FoundWedge | None:
    """Find the tilts at which a map was measured, the beam along z; None where it shows no missing wedge.

    Args:
        map: `(z, y, x)`.
        other: the other half map, where `map` is one.

    Raises `GridMismatchError` for what is not one volume, or two of one shape.

    >>> x = torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> find_wedge(MissingWedge(-50, 40, "x")(x)).tilts
    MissingWedge(tilt_min=-50.0, tilt_max=40.0, tilt_axis='x', edge_deg=0.0)
    >>> find_wedge(x) is None
    True
    """
    if map.ndim != 3 or (other is not None and other.shape != map.shape):
        shapes = " and ".join(str(tuple(one.shape)) for one in (map, other) if one is not None)
        raise GridMismatchError(f"a map is one volume (z, y, x), and so is its other half; got {shapes}")
    channels = [map] if other is None else [map + other, map - other]
    z, y, x = map.shape
    powers = torch.stack([_white(rfft((one - one.mean()).double()).abs().square(), (z, y, x)) for one in channels])
    about_x, about_y = MissingWedge(-90, 90, "x"), MissingWedge(-90, 90, "y")
    best = [_best(_sums(powers, whole, (z, y, x)), whole) for whole in (about_x, about_y)]
    return max(best, key=lambda found: found[0])[1]


def _white(power: Tensor, shape: Shape) -> Tensor:
    """Power over its shell's, each shell a pixel wide, and no less than rounding leaves."""
    mean = radial(radial_mean(power, shape), shape)
    return power / mean.clamp(min=torch.finfo(torch.float64).tiny) + _FLOOR


def _sums(powers: Tensor, tilts: MissingWedge, shape: Shape) -> Tensor:
    """Number and powers of the coefficients, `(1 + channels, shells, degrees)`."""
    z, y, x = shape
    device = powers.device
    kz = torch.fft.fftfreq(z, dtype=torch.float64, device=device)[:, None, None]
    ky = torch.fft.fftfreq(y, dtype=torch.float64, device=device)[:, None]
    kx = torch.fft.rfftfreq(x, dtype=torch.float64, device=device)
    angle = tilts.angle_deg(kx, ky, kz)
    off_axis = (kz * z).square() + (kx * x if tilts.tilt_axis == "y" else ky * y).square()
    # Where a component is at the Nyquist frequency of an even axis, both signs share a coefficient.
    inner = torch.maximum(kx, torch.maximum(ky.abs(), kz.abs())) < 0.5 - 1e-9
    frequency = frequencies(shape, device=device)
    used = (inner & (off_axis >= _NEAR**2) & (frequency < 0.5)).expand(frequency.shape)
    degree = torch.remainder(angle + 90, 180).expand(frequency.shape)[used].long().clamp(max=_BINS - 1)
    shell = (frequency[used] * 2 * _SHELLS).long()
    weight = friedel_weights(shape, device=device).double().expand(frequency.shape)[used] / 2
    values = torch.cat([torch.ones_like(weight)[None], powers[:, used]]) * weight
    sums = values.new_zeros(len(values), _SHELLS * _BINS)
    return sums.index_add(1, shell * _BINS + degree, values).reshape(len(values), _SHELLS, _BINS)


def _best(sums: Tensor, whole: MissingWedge) -> tuple[float, FoundWedge | None]:
    """What the best range gains in log likelihood over no wedge, and the range, if it has the edges of one."""
    until = torch.cat([torch.zeros_like(sums[..., :1]), sums.cumsum(-1)], -1)
    low, high = torch.triu_indices(_BINS + 1, _BINS + 1, _LEAST, device=sums.device)
    low, high = low[high - low <= _MOST], high[high - low <= _MOST]
    inside = until[..., high] - until[..., low]
    outside = until[..., -1:] - inside
    gain = _likelihood(inside) + _likelihood(outside) - _likelihood(until[..., -1:])
    more = (inside[1:].sum(0) * outside[0] > outside[1:].sum(0) * inside[0]).double().mean(0) > 0.5
    gain = torch.where(more, gain, -torch.inf)
    top = gain.max()
    likely = gain >= top - _SURE
    first, last = int(low[gain == top][0]), int(high[gain == top][0])
    for window, blur in _WINDOWS:
        if min(_jump(sums, first, window), _jump(sums, last, window)) > _JUMP:
            ends = [(float(end[likely].min()) - 90 - blur, float(end[likely].max()) - 90 + blur) for end in (low, high)]
            return float(top), FoundWedge(attrs.evolve(whole, tilt_min=first - 90, tilt_max=last - 90), *ends)
    return float(top), None


def _likelihood(sums: Tensor) -> Tensor:
    """−Σ n log m of a part of each shell, over shells and channels."""
    n, powers = sums[0], sums[1:]
    mean = powers.clamp(min=0) / n.clamp(min=0.5)
    return -(n * mean.clamp(min=1e-300).log()).sum((0, 1))


def _jump(sums: Tensor, edge: int, window: int) -> float:
    """By how much the likelihood jumps at an edge, in nats beyond chance, less what it does beside it."""
    around = sums.roll(2 * window - edge, -1)[..., : 4 * window]
    parts = torch.stack([part.sum(-1) for part in torch.split(around, window, -1)], -1)

    def gain(i: int) -> float:
        one, two = parts[..., i : i + 1], parts[..., i + 1 : i + 2]
        chance = (len(sums) - 1) * _SHELLS / 2
        return float(_likelihood(one) + _likelihood(two) - _likelihood(one + two)) - chance

    return gain(1) - _SHARP * max(gain(0), gain(2), 0.0)
