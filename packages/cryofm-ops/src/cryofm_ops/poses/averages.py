"""What programs make of class averages, told from the averages alone: a fall-off, noise, and a scale of each.

An average as RELION writes it is a projection times a Wiener filter, which falls to nothing beyond the class's own
resolution, smeared over the poses of its members, and its background is set to 0, so that no noise can be read there.
What is left is its power: ρ(ν), beside that of a projection, falls as the filter H and the smearing do. Of a Wiener
filter alone the part of an average that is signal would be H = ρ. Measured against true projections (12 averages of
RELION, rings from 32 to 15 Å, where ρ falls from .7 to .02) it is close to √ρ, with the transfer ρ^¾ of the amplitude:
about half of the fall, as a logarithm, is smearing, which tells nothing of noise.
"""

import attrs
import torch
from torch import Tensor

from cryofm_ops.poses._central_slices import band

__all__ = ["AverageRings", "average_rings", "image_scales"]

_FILTERED = 0.3  # ρ, mean over images: below this a filter was there; clean projections have .7 to 1, in noise .5 to 1
_THERE = 0.77  # of the highest frequency; beyond, noise alone may be taken for a fall
_ALIKE = 1.5  # factor within which the scales of images differ because their views do
_LOW = 3  # rings that tell the scale


@attrs.frozen(eq=False)
class AverageRings:
    """What class averages differ by from projections, ring by ring.

    Attributes:
        noise: power of their noise, in their transforms, not normalised, `(K, radius)`, or where all share it
            `(radius,)`.
        transfer: what projections were multiplied by, `(K, radius)`; None: nothing.
    """

    noise: Tensor
    transfer: Tensor | None


def ring_power(images: Tensor, radius: int) -> Tensor:
    """Mean power of images `(K, n, n)` at the frequencies 1..radius, `(K, radius)`."""
    k = band(radius, images.device)
    y: Tensor = torch.fft.rfft2(images)[..., k[:, 1], k[:, 0]]
    ring = k.to(images).norm(dim=-1).round().long().clamp(1, radius) - 1
    total = images.new_zeros(len(images), radius).index_add(1, ring, y.abs().square())
    return total / torch.bincount(ring, minlength=radius)


def average_rings(images: Tensor, expected: Tensor, noise: Tensor) -> AverageRings:
    """Noise and transfer of class averages.

    Args:
        images: `(K, n, n)`, masked, of one scale.
        expected: power of projections at the frequencies 1, 2, … of 1/n, up to a factor, `(radius,)`.
        noise: power of the noise that the background shows, likewise; of the transform, not normalised.
    """
    power = ring_power(images, len(expected))
    ratio = ((power - noise).clamp(min=1e-4 * power) / expected).log()
    fall = torch.stack([_falling(row) for row in ratio])
    fall = (fall - fall[:, _LOW - 1 : _LOW + 1].mean(-1, keepdim=True)).clamp(max=0)
    if fall.mean(0)[int(_THERE * len(expected)) - 1].exp() > _FILTERED:
        return AverageRings(noise, None)
    rho = fall.exp()
    return AverageRings(torch.maximum(noise.to(power), power * (1 - rho.sqrt())), rho**0.75)


def image_scales(images: Tensor) -> Tensor:
    """By what images `(K, n, n)` must be divided to be of one scale, `(K,)`; below 0 where one is inverted.

    Their low frequencies tell. Views differ there, too: only what is off by more than half is put right.
    """
    amplitude = ring_power(images, _LOW).mean(-1).sqrt()
    scale = amplitude / amplitude.median()
    scale = torch.where((scale > _ALIKE) | (scale < 1 / _ALIKE), scale, 1)
    mass = images.sum((-2, -1)) / scale
    return torch.where(mass * mass.median() < -0.3 * mass.median().square(), -scale, scale)


def _falling(y: Tensor) -> Tensor:
    """The falling sequence nearest to y in the squares, ring r of weight r: neighbours that rise are pooled."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for r, value in enumerate(y.tolist(), 1):
        blocks.append((value, float(r), 1))
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (a, v, m), (b, w, n) = blocks[-2:]
            blocks[-2:] = [((a * v + b * w) / (v + w), v + w, m + n)]
    return torch.cat([y.new_full((n,), mean) for mean, _, n in blocks])
