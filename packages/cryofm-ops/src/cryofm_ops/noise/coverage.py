"""How often each Fourier voxel was measured, from the poses of the particles, and the noise that this leaves in it.

The image of a particle with the pose R measures the plane of frequencies q_x R[0] + q_y R[1]. A reconstruction averages
what its images say of a voxel, so that its noise there has a power inversely proportional to their number. Finer than
`alpha_from_poses`, which has directions alone: near the origin every voxel is measured often, and of few views the
planes fan out towards Nyquist.

A subtomogram measures all but the missing wedge of its tilt series, which the average sees turned by the particle's
pose: the average of K has a compound wedge, of which every voxel was measured by some of them, by all or by none.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Self

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import GeometryError, NoiseError
from cryofm_ops.fourier.grid import Shape, half_shape, radial, radial_mean
from cryofm_ops.noise.from_half_maps import estimate_noise_power
from cryofm_ops.noise.stationary import StationaryNoise, check_table
from cryofm_ops.operators.filters import FourierMask
from cryofm_ops.operators.wedge import MissingWedge
from cryofm_ops.rotations.conversions import check_rotations

__all__ = ["CoverageNoise", "coverage_from_poses", "coverage_from_tilts"]

_POINTS = 1 << 18  # of planes or of wedges, taken at once: bounds the memory


def coverage_from_poses(rotations: Tensor, box: int | Shape) -> Tensor:
    """Images that measured each voxel of a box, by trilinear shares, on its half grid.

    Args:
        rotations: `(K, 3, 3)`, object to view, p = R x; such as `torch.from_numpy(read_poses(...).rotations)`.
        box: side of a cubic box and of the images, voxels; or any shape (z, y, x), of images as large as its longest
            side, whose counts are spread over its coarser voxels.

    Returns: `(z, y, x // 2 + 1)`; 0 beyond Nyquist.

    Raises `GeometryError` for rotations that are none, or a side below 2.

    >>> coverage = coverage_from_poses(torch.eye(3).expand(5, 3, 3), 8)  # five views along z
    >>> coverage[:2, 0, 1]
    tensor([5., 0.])
    """
    check_rotations(rotations)
    shape = (box, box, box) if isinstance(box, int) else box
    if rotations.ndim != 3 or len(rotations) == 0 or min(shape) < 2:
        raise GeometryError(
            f"coverage takes one or more rotations (K, 3, 3) and sides from 2, got {tuple(rotations.shape)} and {box}"
        )
    side = max(shape)
    axis = torch.arange(-((side - 1) // 2), (side - 1) // 2 + 1, device=rotations.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = (x**2 + y**2).sqrt() <= side / 2 - 1e-6
    q = torch.stack([x[inside], y[inside]]).double()
    counts, many = q.new_zeros(math.prod(shape)), max(1, _POINTS // q.shape[1])
    for first in range(0, len(rotations), many):
        planes = rotations[first : first + many, :2].double().mT @ q
        around = [_around(k * n / side, n) for k, n in zip(planes.flip(1).unbind(1), shape, strict=True)]
        for (i, a), (j, b), (l, c) in product(*around):
            counts.index_add_(0, ((i * shape[1] + j) * shape[2] + l).flatten(), (a * b * c).flatten())
    counts *= math.prod(shape) / side**3
    return counts.reshape(shape)[..., : shape[2] // 2 + 1].to(rotations.dtype)


def _around(k: Tensor, n: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The indices below and above frequencies of an axis of n, and their shares."""
    low = k.floor()
    part, at = k - low, low.long()
    return (at % n, 1 - part), ((at + 1) % n, part)


def coverage_from_tilts(rotations: Tensor, tilts: MissingWedge | Sequence[MissingWedge], shape: Shape, /) -> Tensor:
    """Subtomograms that measured each voxel of their average, on its half grid: a compound wedge.

    Args:
        rotations: `(K, 3, 3)`, average to tomogram, p = R x; such as those of `cryofm_io.read_subtomogram_poses`.
        tilts: of the series, in the tomogram (its beam along z), without soft edges; one for all, or one for each
            particle.
        shape: of the box (z, y, x).

    Returns: `(z, y, x // 2 + 1)`, float64, from 0 to K; corners too. A voxel at the Nyquist frequency of an even axis
    has two signs, of which the one that is kept wins, as in `MissingWedge`: one particle that is not turned has
    exactly its transfer.

    Raises `GeometryError` for rotations that are none, tilts that are not as many, and soft edges.

    >>> turned = torch.tensor([[[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]])  # by 90° about the beam
    >>> both = coverage_from_tilts(torch.cat([torch.eye(3)[None], turned]), MissingWedge(-40, 40), (8, 8, 8))
    >>> both[0, 1, 1], both[1, 0, 2], both[1, 0, 0]
    (tensor(2., dtype=torch.float64), tensor(1., dtype=torch.float64), tensor(0., dtype=torch.float64))
    """
    check_rotations(rotations)
    if rotations.ndim != 3 or len(rotations) == 0:
        raise GeometryError(f"coverage takes one or more rotations (K, 3, 3), got {tuple(rotations.shape)}")
    each = [tilts] * len(rotations) if isinstance(tilts, MissingWedge) else list(tilts)
    if len(each) != len(rotations):
        raise GeometryError(f"{len(rotations)} rotations and {len(each)} tilt ranges; there must be as many, or one")
    if soft := next((wedge for wedge in each if wedge.edge_deg), None):
        raise GeometryError(f"particles are counted where they measured, which soft edges do not tell; got {soft}")
    k, others = _signed_frequencies(shape)
    counts, many = k.new_zeros(k.shape[1]), max(1, _POINTS // k.shape[1])
    for wedge in dict.fromkeys(each):
        own = rotations[[other == wedge for other in each]].double().cpu()
        for first in range(0, len(own), many):
            R = own[first : first + many]
            kept = _kept(wedge, k, R)
            for voxels, signed in others:
                kept[:, voxels] |= _kept(wedge, signed, R)
            counts += kept.sum(0)
    return counts.reshape(half_shape(shape)).to(rotations.device)


def _kept(wedge: MissingWedge, k: Tensor, rotations: Tensor) -> Tensor:
    """Which of the frequencies (3, N) lie in a wedge that is turned with each of K particles, `(K, N)`.

    Those of at most the half range from its middle: |sin| cos h ≤ |cos| sin h of the angle to it, times a length.
    """
    x, y, z = rotations.unbind(1)
    across, along = (x, z) if wedge.tilt_axis == "y" else (y, -z)
    c, h = (math.radians(a) / 2 for a in (wedge.tilt_min + wedge.tilt_max, wedge.tilt_max - wedge.tilt_min))
    middle, beside = across * math.cos(c) + along * math.sin(c), along * math.cos(c) - across * math.sin(c)
    # Rounding must not decide on what lies on the limit, nor on the line of the tilt axis.
    return (beside @ k).abs() * math.cos(h) <= (middle @ k).abs() * math.sin(h) + 1e-11


def _signed_frequencies(shape: Shape) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Frequencies (3, N) of the half grid, (x, y, z); and of voxels at Nyquist those that differ but in signs."""
    depth, height, width = shape
    axes = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (depth, height))
    z, y, x = torch.meshgrid(*axes, torch.fft.rfftfreq(width, dtype=torch.float64), indexing="ij")
    k = torch.stack([x, y, z]).flatten(1)
    nyquist = k.abs() >= 0.5 - 1e-9
    others = []
    for signs in product((1.0, -1.0), repeat=3):
        turned = k.new_tensor(signs)[:, None]
        voxels = (nyquist | (turned > 0)).all(0).nonzero()[:, 0]
        if -1 in signs and len(voxels):
            others.append((voxels, k[:, voxels] * turned))
    return k, others


@attrs.frozen(eq=False)
class CoverageNoise(StationaryNoise):
    """Noise of power σ²(|k|) / m(k), where m images measured k. A `Noise` and `SpectralPower`.

    Where fewer than `least` images did, nothing is known: use `measured` as the operator, or composed with it.

    Attributes:
        radial_power: the radial table σ² of what one image says (see `radial`).
        coverage: m(k) on the half grid, such as `coverage_from_poses` counts.
        shape: the box (z, y, x).
        least: images below which a voxel counts as not measured.

    Raises `NoiseError` for an impossible table, a coverage on another grid, negative or not finite, and another box.

    >>> coverage = coverage_from_poses(torch.eye(3).expand(5, 3, 3), 8)
    >>> noise = CoverageNoise(torch.ones(2), coverage, (8, 8, 8))
    >>> int(noise.measured.mask.sum()), float(1 / noise.power((8, 8, 8))[0, 0, 1])
    (26, 5.0)
    """

    radial_power: Tensor = attrs.field(validator=check_table)
    coverage: Tensor
    shape: Shape
    least: float = 1.0

    def __attrs_post_init__(self) -> None:
        m = self.coverage
        if m.shape != half_shape(self.shape) or not (m.isfinite() & (m >= 0)).all() or not self.least > 0:
            raise NoiseError(
                f"coverage is counts on the half grid {half_shape(self.shape)} of a box {self.shape}, and least above "
                f"0; got {tuple(m.shape)} and {self.least}"
            )

    @classmethod
    def from_half_maps(cls, half1: Tensor, half2: Tensor, coverage: Tensor, *, least: float = 1.0) -> Self:
        """Noise of ONE half map, given how often its voxels were measured up to a factor.

        As of `AnisotropicNoise.from_half_maps` the shell mean is the noise power of `estimate_noise_power`; what was
        not measured counts as 0 there, as a reconstruction leaves it.
        """
        h = estimate_noise_power(half1, half2).noise_power
        z, y, x = half1.shape
        noise = cls(torch.ones_like(h), coverage.to(h), (z, y, x), least)
        mean = radial_mean(noise.measured.mask * noise.power((z, y, x)), (z, y, x))
        if not (mean > 0).all():
            raise NoiseError("coverage is below least over a whole shell, where the halves have noise")
        return attrs.evolve(noise, radial_power=h / mean.to(h))

    @property
    def measured(self) -> FourierMask:
        """1 where at least `least` images measured, otherwise 0."""
        return FourierMask(self.coverage >= self.least, self.shape)

    def power(self, shape: Shape, /) -> Tensor:
        """N(k) on the half grid of its own box; where too little was measured, that of `least` images."""
        if tuple(shape) != tuple(self.shape):
            raise NoiseError(f"the coverage is for a box {self.shape}, got a box {tuple(shape)}")
        return radial(self.radial_power, self.shape) / self.coverage.to(self.radial_power).clamp(min=self.least)
