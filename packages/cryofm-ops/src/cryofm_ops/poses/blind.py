"""Projections at unknown poses: what Algorithm 3 (paper, E.2) asks of its data."""

import math

import attrs
from torch import Tensor

from cryofm_ops._checks import check_observation
from cryofm_ops.errors import CryoFMError, GeometryError
from cryofm_ops.likelihoods.gaussian_likelihood import gaussian_likelihood
from cryofm_ops.likelihoods.linear_gaussian import LinearGaussian
from cryofm_ops.operators.fourier_projector import FourierProjector
from cryofm_ops.operators.projector import Projector
from cryofm_ops.poses.losses import psi_bg, psi_cor, psi_sg
from cryofm_ops.poses.search import search_poses
from cryofm_ops.protocols import FourierMultiplier, Noise

__all__ = ["BlindGaussian", "BlindProjections", "PoseLikelihood"]


def _check_images(_: object, __: object, images: Tensor) -> None:
    check_observation(None, None, images)
    if images.ndim < 3 or images.shape[-1] != images.shape[-2]:
        raise GeometryError(f"images must be square, (..., K, n, n), got {tuple(images.shape)}")


def _check_quantile(_: object, __: object, q: float) -> None:
    if not 0 <= q <= 1:
        raise CryoFMError(f"background is a fraction of the pixels, from 0 to 1, got {q}")


def _check_weight(_: object, __: object, w: float) -> None:
    if not 0 <= w < math.inf:
        raise CryoFMError(f"background_weight must be finite and not negative, got {w}")


@attrs.frozen(eq=False)
class PoseLikelihood:
    """The paper's loss of K images at given poses, as a `Likelihood`.

    Attributes:
        projector: what makes images of a volume; its `rotations` and `shifts_px` are the poses.
        images: `(*batch, K, n, n)`.
        stop_gradient: ψ_sg in place of ψ_cor (Table 6).
        background: q of ψ_bg(q) (Table 6).
        background_weight: w of ψ_bg, published as 1. ψ_bg is a sum over pixels, and can be many times the largest value
            of the others, which is 1; the gradient of fixed length then is its own alone.
    """

    projector: Projector
    images: Tensor = attrs.field(validator=_check_images)
    stop_gradient: bool = attrs.field(default=False, kw_only=True)
    background: float = attrs.field(default=0.7, kw_only=True, validator=_check_quantile)
    background_weight: float = attrs.field(default=1.0, kw_only=True, validator=_check_weight)

    def log_prob(self, x: Tensor, /) -> Tensor:
        """−1/K Σ_k (ψ_cor or ψ_sg + w ψ_bg(q)), `(*batch,)`, for x `(*batch, n, n, n)`; a loss, not a density."""
        p, y = self.projector(x), self.images.to(x)
        loss = (psi_sg if self.stop_gradient else psi_cor)(p, y)
        return -(loss + self.background_weight * psi_bg(p, y, self.background)).mean(-1)


@attrs.frozen(eq=False)
class _Images:
    """Images of one object from unknown directions.

    Attributes:
        images: `(*batch, K, n, n)`; the batch broadcasts against that of the volumes.
        max_shift_px: how far at most, along x and along y, an image is off centre.
        ctf: of the images (see `search_poses`).
    """

    images: Tensor = attrs.field(validator=_check_images)
    max_shift_px: float
    ctf: FourierMultiplier | None = attrs.field(default=None, kw_only=True)

    def _projector(self, rotations: Tensor, shifts_px: Tensor) -> FourierProjector:
        n = self.images.shape[-1]
        return FourierProjector(rotations, shifts_px, (n, n, n), self.ctf)

    def _found(self, x: Tensor) -> FourierProjector:
        poses = search_poses(x.detach(), self.images, max_shift_px=self.max_shift_px, ctf=self.ctf)
        return self._projector(poses.rotations, poses.shifts_px)


@attrs.frozen(eq=False)
class BlindProjections(_Images):
    """K images at unknown poses, under the paper's losses: a `Blind`.

    `images`, `max_shift_px` and `ctf` as in `search_poses`, `stop_gradient`, `background` and `background_weight` as in
    `PoseLikelihood`.
    Every volume of a batch gets poses of its own.

    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> volume = torch.nn.functional.avg_pool3d(torch.randn(1, 20, 20, 20, generator=generator), 5, stride=1)[0]
    >>> blind = BlindProjections(volume.sum(0)[None], max_shift_px=1, background=0.0)
    >>> likelihood = blind.refine(volume)
    >>> likelihood.projector.rotations.shape, float(likelihood.log_prob(volume)) > 0.98
    (torch.Size([1, 3, 3]), True)
    """

    stop_gradient: bool = attrs.field(default=False, kw_only=True)
    background: float = attrs.field(default=0.7, kw_only=True, validator=_check_quantile)
    background_weight: float = attrs.field(default=1.0, kw_only=True, validator=_check_weight)

    def refine(self, x: Tensor, /) -> PoseLikelihood:
        """The likelihood at the poses found in x `(*batch, n, n, n)`."""
        return self._likelihood(self._found(x))

    def at(self, rotations: Tensor, shifts_px: Tensor) -> PoseLikelihood:
        """The likelihood at poses that are known: `(*batch, K, 3, 3)` and `(*batch, K, 2)`."""
        return self._likelihood(self._projector(rotations, shifts_px))

    def _likelihood(self, projector: Projector) -> PoseLikelihood:
        return PoseLikelihood(
            projector,
            self.images,
            stop_gradient=self.stop_gradient,
            background=self.background,
            background_weight=self.background_weight,
        )


@attrs.frozen(eq=False)
class BlindGaussian(_Images):
    """K images at unknown poses, with Gaussian noise: a `Blind` whose likelihoods are `Conjugate`.

    `images`, `max_shift_px` and `ctf` as in `search_poses`; `noise` is that of the images.
    """

    noise: Noise = attrs.field(kw_only=True)

    def refine(self, x: Tensor, /) -> LinearGaussian:
        """The likelihood at the poses found in x `(*batch, n, n, n)`, which must have the images' scale."""
        return gaussian_likelihood(self._found(x), self.noise, self.images.to(x))

    def at(self, rotations: Tensor, shifts_px: Tensor) -> LinearGaussian:
        """The likelihood at poses that are known: `(*batch, K, 3, 3)` and `(*batch, K, 2)`."""
        return gaussian_likelihood(self._projector(rotations, shifts_px), self.noise, self.images)
