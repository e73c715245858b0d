"""How often each Fourier voxel was measured, from the poses of the particles, and the noise that this leaves in it.

The image of a particle with the pose R measures the plane of frequencies q_x R[0] + q_y R[1]. A reconstruction averages
what its images say of a voxel, so that its noise there has a power inversely proportional to their number. Finer than
`alpha_from_poses`, which has directions alone: near the origin every voxel is measured often, and of few views the
planes fan out towards Nyquist.
"""

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
from cryofm_ops.rotations.conversions import check_rotations

__all__ = ["CoverageNoise", "coverage_from_poses"]

_POINTS = 1 << 21  # of planes, taken at once: bounds the memory


def coverage_from_poses(rotations: Tensor, side: int) -> Tensor:
    """Images that measured each voxel of a cubic box, by trilinear shares, on its half grid.

    Args:
        rotations: `(K, 3, 3)`, object to view, p = R x; such as `torch.from_numpy(read_poses(...).rotations)`.
        side: of the box and of the images, voxels.

    Returns: `(side, side, side // 2 + 1)`; 0 beyond Nyquist.

    Raises `GeometryError` for rotations that are none, or a side below 2.

    >>> coverage = coverage_from_poses(torch.eye(3).expand(5, 3, 3), 8)  # five views along z
    >>> coverage[:2, 0, 1]
    tensor([5., 0.])
    """
    check_rotations(rotations)
    if rotations.ndim != 3 or len(rotations) == 0 or side < 2:
        raise GeometryError(
            f"coverage takes one or more rotations (K, 3, 3) and a side from 2, got {tuple(rotations.shape)} and {side}"
        )
    axis = torch.arange(-((side - 1) // 2), (side - 1) // 2 + 1, device=rotations.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = (x**2 + y**2).sqrt() <= side / 2 - 1e-6
    q = torch.stack([x[inside], y[inside]], -1).double()
    counts, many = q.new_zeros(side**3), max(1, _POINTS // len(q))
    for first in range(0, len(rotations), many):
        k = (q @ rotations[first : first + many, :2].double()).reshape(-1, 3).flip(-1)  # (z, y, x)
        low = k.floor()
        part = k - low
        for corner in product((0, 1), repeat=3):
            at = torch.tensor(corner, device=k.device)
            share = torch.where(at.bool(), part, 1 - part).prod(-1)
            i, j, l = ((low + at).long() % side).unbind(-1)
            counts.index_add_(0, (i * side + j) * side + l, share)
    return counts.reshape(side, side, side)[..., : side // 2 + 1].to(rotations.dtype)


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
