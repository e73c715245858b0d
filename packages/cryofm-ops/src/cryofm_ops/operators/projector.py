"""Projections of a volume, and back-projection, in real space.

Image k is y_k(p) = Σ_pz x(R_kᵀ (p + s_k)), where p = (px, py, pz) runs over voxels counted from voxel n // 2, R_k maps
object to view and s_k, in the image plane, is what centres the image.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch import Tensor

from cryofm_ops._checks import check_tensor
from cryofm_ops.errors import GeometryError, GridMismatchError, OperatorError
from cryofm_ops.fourier.grid import Shape, fourier_filter
from cryofm_ops.fourier.interpolation import gather, scatter
from cryofm_ops.operators._algebra import Algebra
from cryofm_ops.protocols import FourierMultiplier
from cryofm_ops.rotations.conversions import check_rotations

__all__ = ["Projector"]

_POINTS = 2**18  # sampled at a time: what bounds the memory, with gradients too, since they sample again


def _sampled(function: Callable[..., Tensor], *arguments: Tensor, points: int) -> Tensor:
    """The function of these; where a graph of all `points` would be large, one that samples again when it is needed."""
    if points <= _POINTS or not torch.is_grad_enabled() or not any(one.requires_grad for one in arguments):
        return function(*arguments)
    functorch: Any = getattr(torch._C, "_functorch")  # noqa: B009 (it has no stubs)
    if any(functorch.is_functorch_wrapped_tensor(one) for one in arguments):  # `torch.func` keeps its graphs
        return function(*arguments)
    from torch.utils.checkpoint import checkpoint  # which loads torch's compiler, for seconds

    made: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return made


def rays(rotations: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Rᵀ (x, y, z) at all points of the grids x `(K or 1, nx)`, y, z: `(K, nz · ny · nx, 3)`."""
    along = [v[..., None] * r for v, r in zip((x, y, z), rotations[:, :, None].unbind(1), strict=True)]
    return (along[2][:, :, None, None] + along[1][:, None, :, None] + along[0][:, None, None]).flatten(1, 3)


@attrs.frozen(eq=False)
class Projector(Algebra):
    """Projections by trilinear interpolation along the rays. A `LinearOperator`.

    The shift moves the sampling points, so that nothing wraps round; what is sampled outside of the volume is 0. The
    adjoint is the exact transpose. Both are differentiable in volume or images, rotations and shifts. Trilinear
    interpolation blurs: for accuracy at high frequencies take `FourierProjector`.

    Attributes:
        rotations: R `(*batch, K, 3, 3)`, object to view (see `rotation_from_relion`), orthonormal within 1e-4. The
            batch broadcasts against that of the volumes, each of which may so have poses of its own.
        shifts_px: `(*batch, K, 2)`, (x, y), what centres the image: projections are moved by minus the shift.
        shape: the box (z, y, x) of the volume; images are (y, x).
        ctf: a filter of the images, taken as boxes (1, y, x): its transfer is `(1, y, x // 2 + 1)` or, one per
            image, `(K, 1, y, x // 2 + 1)`.

    Raises `GeometryError` for matrices that are no rotations, and for shifts by which nothing stays in the image.

    >>> project = Projector(torch.eye(3)[None], torch.zeros(1, 2), (4, 4, 4))
    >>> x = torch.arange(64.0).reshape(4, 4, 4)
    >>> bool(torch.equal(project(x), x.sum(0)[None]))
    True
    """

    rotations: Tensor
    shifts_px: Tensor
    shape: Shape
    ctf: FourierMultiplier | None = None

    def __attrs_post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(f"shape must be the box (z, y, x) of the volume, got {self.shape}")
        check_tensor(self.rotations, "rotations", GeometryError)
        check_tensor(self.shifts_px, "shifts_px", GeometryError)
        check_rotations(self.rotations)
        k = self.rotations.shape[-3] if self.rotations.ndim > 2 else 0
        if not k or self.shifts_px.shape[-2:] != (k, 2):
            raise GeometryError(
                f"K rotations (..., K, 3, 3) need as many shifts (..., K, 2), got shapes "
                f"{tuple(self.rotations.shape)} and {tuple(self.shifts_px.shape)}"
            )
        wrong = ~(self.shifts_px.detach().abs() <= self._radius + max(self.shape[1:]) / 2)
        if wrong.any():
            first = tuple(wrong.nonzero()[0].tolist())
            raise GeometryError(
                f"the shift {float(self.shifts_px[first])} px at index {first} leaves nothing of a volume {self.shape} "
                f"in the image; shifts are in pixels"
            )

    def __call__(self, x: Tensor, /) -> Tensor:
        """Images `(*batch, K, y, x)` of volumes `(*batch, z, y, x)`."""
        check_tensor(x, "a volume", OperatorError)
        if x.dtype.itemsize < 4 or not x.is_floating_point():
            raise OperatorError(f"a volume must be float32 or float64, got {x.dtype}")
        if x.shape[-3:] != self.shape:
            raise GridMismatchError(f"the projector has box {self.shape}, got a volume of shape {tuple(x.shape)}")
        rotations, shifts, batch = self._poses(x, x.shape[:-3])
        samples = self._to_samples(x)
        samples = samples.expand(*batch, *samples.shape[-3:])
        points = self._points_of(batch)
        images = [
            functools.reduce(
                torch.add,
                (
                    _sampled(self._project, samples[i], rotations[i][k], shifts[i][k], z, points=points)
                    for z in self._slabs(x)
                ),
            )
            for i in itertools.product(*map(range, batch))
            for k in self._groups()
        ]
        y = torch.cat(images).reshape(*batch, -1, *self.shape[1:])
        return self._filter(y, adjoint=False)

    def adjoint(self, y: Tensor, /) -> Tensor:
        """Back-projection Aᵀ y: volumes `(*batch, z, y, x)` of images `(*batch, K, y, x)`."""
        expected = (self.rotations.shape[-3], *self.shape[1:])
        if y.shape[-3:] != expected:
            raise GridMismatchError(f"the projector makes images {expected}, got a tensor of shape {tuple(y.shape)}")
        rotations, shifts, batch = self._poses(y, y.shape[:-3])
        y = self._filter(y, adjoint=True).expand(*batch, *expected)
        points = self._points_of(batch)
        sums = [
            functools.reduce(
                torch.add,
                (
                    _sampled(self._back_project, y[i][k], rotations[i][k], shifts[i][k], z, points=points)
                    for k in self._groups()
                    for z in self._slabs(y)
                ),
            )
            for i in itertools.product(*map(range, batch))
        ]
        samples = torch.stack(sums)
        return self._from_samples(samples.reshape(*batch, *samples.shape[1:]))

    # Samples are what is interpolated: here the volume itself, by `_plane` = y · x points at every z of `_depth`.

    @property
    def _plane(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def _depth(self) -> Tensor:
        reach = math.ceil(math.hypot(*(n + 2 for n in self.shape)) / 2)  # corners and the slope outside of them
        return torch.arange(-reach, reach + 1)

    def _to_samples(self, x: Tensor) -> Tensor:
        return x

    def _from_samples(self, samples: Tensor) -> Tensor:
        return samples

    def _project(self, samples: Tensor, rotations: Tensor, shifts: Tensor, z: Tensor) -> Tensor:
        """The part of the K images `(K, y, x)` that comes from depths z, from samples without a batch."""
        values = gather(samples, self._points(rotations, shifts, z).flatten(0, 1))
        return values.reshape(len(rotations), len(z), *self.shape[1:]).sum(1)

    def _back_project(self, y: Tensor, rotations: Tensor, shifts: Tensor, z: Tensor) -> Tensor:
        """The transpose of `_project`."""
        values = y[:, None].expand(-1, len(z), -1, -1).flatten()
        return scatter(values, self._points(rotations, shifts, z).flatten(0, 1), self.shape)

    def _points(self, rotations: Tensor, shifts: Tensor, z: Tensor) -> Tensor:
        py, px = (torch.arange(n).to(z) - n // 2 for n in self.shape[1:])
        centre = torch.tensor([n // 2 for n in reversed(self.shape)]).to(z)
        return rays(rotations, px + shifts[:, :1], py + shifts[:, 1:], z[None]) + centre

    # What follows serves both projectors.

    @property
    def _radius(self) -> float:
        return math.hypot(*self.shape) / 2

    def _points_of(self, batch: tuple[int, ...]) -> int:
        """How many points are sampled in all."""
        return math.prod(batch) * self.rotations.shape[-3] * self._plane * len(self._depth)

    def _groups(self) -> Iterator[slice]:
        """Poses to be projected at a time."""
        step = max(1, _POINTS // (self._plane * len(self._depth)))
        return (slice(k, k + step) for k in range(0, self.rotations.shape[-3], step))

    def _slabs(self, like: Tensor) -> tuple[Tensor, ...]:
        """Depths to be sampled at a time."""
        slabs: tuple[Tensor, ...] = torch.split(self._depth.to(like), max(1, _POINTS // self._plane))
        return slabs

    def _poses(self, like: Tensor, batch: tuple[int, ...]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Rotations, shifts and their common batch with that of the volumes."""
        rotations, shifts = self.rotations.to(like), self.shifts_px.to(like)
        try:
            batch = torch.broadcast_shapes(batch, rotations.shape[:-3], shifts.shape[:-2])  # type: ignore[no-untyped-call]
        except RuntimeError:
            raise GeometryError(
                f"rotations {tuple(rotations.shape)} and shifts {tuple(shifts.shape)} do not broadcast against the "
                f"batch {tuple(batch)} of the volumes"
            ) from None
        return rotations.expand(*batch, *rotations.shape[-3:]), shifts.expand(*batch, *shifts.shape[-2:]), batch

    def _filter(self, y: Tensor, *, adjoint: bool) -> Tensor:
        if self.ctf is None:
            return y
        m = self.ctf.transfer((1, *self.shape[1:])).to(y.device)
        m = m.to(y.dtype.to_complex() if m.is_complex() else y.dtype)
        return fourier_filter(y.unsqueeze(-3), m.conj() if adjoint else m).squeeze(-3)
