"""Pose search: for each image the rotation and shift under which a volume's projection correlates best with it.

Coarse to fine, low frequencies first, as the paper asks of Algorithm 3 (E.2); the two stages are ours:

1. All 4608 rotations of the grid of order 2 (7 degrees on average from any rotation), all shifts, in a band of 7
   frequencies around 0: there neighbouring rotations still correlate, and a slice has so few coefficients that all
   scores of all images are one matrix product. The best 12 rotations more than 25 degrees from each other survive.
2. Each is refined by Gauss–Newton steps (Levenberg–Marquardt damping) in rotation and shift at once, in a band that
   doubles from 8 frequencies to Nyquist; after each band half of the survivors go, though never a runner-up.
"""

import math

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import GeometryError, ObservationError
from cryofm_ops.operators.fourier import transfer_for
from cryofm_ops.poses._central_slices import CentralSlices, band
from cryofm_ops.poses._refinement import TINY, columns, phase, refine
from cryofm_ops.protocols import FourierMultiplier
from cryofm_ops.rotations.so3_grid import so3_grid

__all__ = ["PoseEstimate", "search_poses"]

_ORDER, _BAND, _SURVIVORS = 2, 7, 12
_NEIGHBOURHOOD_DEG = 25.0
_COPIES = 2**14  # shifted copies of images at a time
_PRODUCT = 2**22  # scores at a time
_SAMPLES = {"cpu": 2**18}  # interpolated at a time, so that they stay in the cache
_SAMPLES_ELSEWHERE = 2**22


@attrs.frozen(eq=False)
class PoseEstimate:
    """The poses of K images, and how sure they are.

    Attributes:
        rotations: object to view, `(*batch, K, 3, 3)`.
        shifts_px: what centres the images, (x, y), `(*batch, K, 2)`: projections are moved by minus the shift.
        score: correlation coefficient of projection and image, −ψ_cor without their means, `(*batch, K)`.
        runner_up: the best score found at rotations more than 25 degrees away, `(*batch, K)`; −1 where the search
            met none that stayed away. A pose whose score is hardly larger is ambiguous.
    """

    rotations: Tensor
    shifts_px: Tensor
    score: Tensor
    runner_up: Tensor


@torch.no_grad()
def search_poses(
    volume: Tensor, images: Tensor, *, max_shift_px: float, ctf: FourierMultiplier | None = None
) -> PoseEstimate:
    """The pose of each image: rotation over all SO(3), and shift.

    Scores cover all frequencies 0 < |k| < Nyquist, so they know neither an offset nor the scale of an image. An
    image that is constant, or a volume that is zero, has score 0 at any pose. Nothing is differentiated.

    Args:
        volume: `(*batch, n, n, n)`, n at least 4.
        images: `(*batch, K, n, n)`; the batches broadcast, so that several volumes may share the images.
        max_shift_px: the largest shift along x and along y.
        ctf: what the microscope did to the projections, taken as boxes (1, n, n): a transfer for all images,
            `(1, n, n // 2 + 1)`, or one for each, `(K, 1, n, n // 2 + 1)`.

    Raises:
        GeometryError: a volume that is no cube, images that do not fit it, or a shift that is negative or
            beyond half of the box.
        GridMismatchError: a transfer that does not fit the images.
        ObservationError: values that are not finite.

    >>> generator = torch.Generator().manual_seed(0)
    >>> volume = torch.nn.functional.avg_pool3d(torch.randn(1, 20, 20, 20, generator=generator), 5, stride=1)[0]
    >>> found = search_poses(volume, volume.sum(0)[None], max_shift_px=1)
    >>> float(found.score) > 0.98, float(found.rotations[0].trace()) > 2.98
    (True, True)
    """
    n = _check(volume, images, max_shift_px)
    batch: tuple[int, ...] = torch.broadcast_shapes(volume.shape[:-3], images.shape[:-3])  # type: ignore[no-untyped-call]
    volumes = volume.expand(*batch, n, n, n).reshape(-1, n, n, n)
    stacks = images.to(volume).expand(*batch, *images.shape[-3:]).reshape(-1, *images.shape[-3:])
    found = [_search(v, y, float(max_shift_px), ctf) for v, y in zip(volumes, stacks, strict=True)]
    parts = (torch.stack(part) for part in zip(*found, strict=True))
    return PoseEstimate(*(part.reshape(*batch, *part.shape[1:]) for part in parts))


def _check(volume: Tensor, images: Tensor, max_shift_px: float) -> int:
    n = volume.shape[-1] if volume.ndim else 0
    if volume.ndim < 3 or volume.shape[-3:] != (n, n, n) or n < 4:
        raise GeometryError(f"poses are searched in a cube (..., n, n, n), n at least 4, got {tuple(volume.shape)}")
    if images.ndim < 3 or images.shape[-2:] != (n, n) or not images.shape[-3]:
        raise GeometryError(f"a volume {(n, n, n)} needs images (..., K, {n}, {n}), got {tuple(images.shape)}")
    try:
        torch.broadcast_shapes(volume.shape[:-3], images.shape[:-3])  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise GeometryError(
            f"volumes {tuple(volume.shape)} and images {tuple(images.shape)} have batches that do not broadcast"
        ) from None
    if not 0 <= max_shift_px <= n / 2:
        raise GeometryError(f"max_shift_px must be between 0 and half of the box, {n / 2}, got {max_shift_px}")
    for name, values in (("volume", volume), ("images", images)):
        if not values.is_floating_point() or not values.isfinite().all():
            raise ObservationError(f"the {name} must be real and finite: search poses only in such")
    return n


def _search(
    volume: Tensor, images: Tensor, max_shift: float, ctf: FourierMultiplier | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`search_poses` of one volume: rotations, shifts, scores and the runners-up's."""
    n, limit = volume.shape[-1], (volume.shape[-1] - 1) // 2
    slices = CentralSlices.of(volume, limit)
    spectra, transfer = _spectra(images, ctf)
    rotations, shifts = _coarse(slices, spectra, transfer, n, min(_BAND, limit), max_shift)
    radius = _BAND + 1
    while True:
        k = band(min(radius, limit), volume.device)
        inner, y, m = slices.within(min(radius, limit)), _unit(_on(spectra, k)), _on(transfer, k)
        step = max(1, _SAMPLES.get(volume.device.type, _SAMPLES_ELSEWHERE) // (rotations.shape[1] * len(k)))
        parts = [
            refine(inner, y[i], m[i], k, n, rotations[i], shifts[i], max_shift)
            for i in (slice(start, start + step) for start in range(0, len(images), step))
        ]
        rotations, shifts, score = (torch.cat(part) for part in zip(*parts, strict=True))
        best, score = _distinct(score, rotations, max(2, score.shape[1] // 2))
        rotations, shifts = _take(rotations, best), _take(shifts, best)
        if radius >= limit:
            return rotations[:, 0], shifts[:, 0], score[:, 0], score[:, 1].clamp(min=-1)
        radius *= 2


def _coarse(
    slices: CentralSlices, spectra: Tensor, transfer: Tensor, n: int, radius: int, max_shift: float
) -> tuple[Tensor, Tensor]:
    """The best rotations of the grid `(K, T, 3, 3)`, no two of them neighbours, and their shifts `(K, T, 2)`."""
    k = band(radius, spectra.device)
    grid = so3_grid(_ORDER, device=k.device, dtype=spectra.real.dtype)
    p = slices.within(radius)(grid, k)
    # An eighth of a period of the highest frequency, at most, from any shift along each axis.
    side = torch.linspace(-max_shift, max_shift, math.ceil(8 * radius * max_shift / n) + 1).to(grid)
    shifts = torch.cartesian_prod(side, side) if max_shift > 0 else grid.new_zeros(1, 2)
    conjugate = phase(-shifts, k, n)
    found = []
    some = max(1, _COPIES // len(shifts))
    for spectrum, m in zip(torch.split(_on(spectra, k), some), torch.split(_on(transfer, k), some), strict=True):
        y = _unit(spectrum)
        centred = columns((m.conj() * y)[:, None] * conjugate).flatten(0, 1)  # (K · S, 2 m)
        norms = (p.abs().square() @ m.abs().square().mT).sqrt().clamp(min=TINY)[..., None]  # (rotations, K, 1)
        step = max(1, _PRODUCT // len(centred))
        best = [
            ((columns(part) @ centred.mT).reshape(len(part), len(y), -1) / norm).max(-1)
            for part, norm in zip(torch.split(p, step), torch.split(norms, step), strict=True)
        ]
        scores = torch.cat([b.values for b in best]).mT
        index, _ = _distinct(scores, grid[None], _SURVIVORS)
        at = torch.cat([b.indices for b in best]).mT.gather(1, index)
        found.append((grid[index], shifts[at]))
    rotations, offsets = (torch.cat(part) for part in zip(*found, strict=True))
    return rotations, offsets


def _distinct(score: Tensor, rotations: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best of each row, then the best that are no neighbours of those: indices `(K, count)` and scores.

    For scores `(K, c)` and rotations `(K or 1, c, 3, 3)`; where only neighbours are left the score is −∞.
    """
    near = 1 + 2 * math.cos(math.radians(_NEIGHBOURHOOD_DEG))
    flat = rotations.flatten(-2)
    indices, scores = [], []
    for _ in range(count):
        best = score.max(-1, keepdim=True)
        indices.append(best.indices)
        scores.append(best.values)
        chosen = _take(rotations.expand(len(score), -1, -1, -1), best.indices).flatten(-2)
        # trace(R Sᵀ) = 1 + 2 cos of the angle between them
        trace = chosen[:, 0] @ flat[0].mT if len(flat) == 1 else (flat @ chosen.mT).squeeze(-1)
        score = score.masked_fill(trace > near, -math.inf)
    return torch.cat(indices, -1), torch.cat(scores, -1)


def _spectra(images: Tensor, ctf: FourierMultiplier | None) -> tuple[Tensor, Tensor]:
    """Transforms of images about pixel n // 2, and the CTF's transfer, both `(K, n, n // 2 + 1)`.

    What is left of a constant image is rounding, and set to 0.
    """
    varying = images - images.mean((-2, -1), keepdim=True)
    size, whole = (torch.linalg.vector_norm(i, dim=(-2, -1), keepdim=True) for i in (varying, images))
    rounding = images.shape[-1] * torch.finfo(images.dtype).eps
    varying = torch.where(size > rounding * whole, varying, 0)
    spectra: Tensor = torch.fft.rfft2(torch.fft.ifftshift(varying, dim=(-2, -1)))
    if ctf is None:
        return spectra, torch.ones_like(spectra.real)
    transfer = transfer_for(ctf, images[:, None])
    return spectra, transfer.reshape(-1, *spectra.shape[-2:]).expand_as(spectra)


def _on(spectra: Tensor, k: Tensor) -> Tensor:
    """Half planes `(..., n, n // 2 + 1)` at the frequencies k `(m, 2)`."""
    return spectra[..., k[:, 1], k[:, 0]]


def _unit(y: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    return y / norm.clamp(min=TINY)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Entries `(K, T, ...)` of values `(K, c, ...)` at index `(K, T)`."""
    return values[torch.arange(len(values), device=index.device)[:, None], index]
