"""Losses between a projection p and an observation y that know no absolute scale of y (paper, E.2).

Images are `(*batch, K, y, x)`, their batches broadcast, and a loss is `(*batch, K)`. Where an image is zero the
correlation and its gradient are 0.
"""

import torch
from torch import Tensor

from cryofm_ops.errors import CryoFMError, GridMismatchError

__all__ = ["psi_bg", "psi_cor", "psi_sg"]


def psi_cor(p: Tensor, y: Tensor) -> Tensor:
    """−p·y / (‖p‖ ‖y‖), the negative correlation (first equation of E.2).

    >>> float(psi_cor(torch.ones(1, 2, 2), 3 * torch.ones(1, 2, 2)))
    -1.0
    """
    return -_ratio(*_products(p, y))


def psi_sg(p: Tensor, y: Tensor) -> Tensor:
    """−p·y / sg(‖p‖ ‖y‖): ψ_cor in value, but without a gradient through the norms (second equation of E.2).

    So its gradient has a part along p, and the norm of the projection is free to grow.
    """
    product, norm = _products(p, y)
    return -_ratio(product, norm.detach())


def psi_bg(p: Tensor, y: Tensor, q: float) -> Tensor:
    """Σ p_i² over the background of y, the pixels below its q-quantile (third equation of E.2).

    Args:
        p: projections.
        y: observations.
        q: a fraction from 0 (no background at all) to 1; Table 6 has 0.7, 0.0 and 0.7.

    Raises:
        CryoFMError: q outside of 0..1.
        GridMismatchError: images of different sizes.

    >>> float(psi_bg(2 * torch.ones(1, 2, 2), torch.tensor([[[0.0, 0.1], [5.0, 9.0]]]), 0.5))
    8.0
    """
    if not 0 <= q <= 1:
        raise CryoFMError(f"q is a fraction of the pixels, from 0 to 1, got {q}")
    _check(p, y)
    each = y.flatten(-2).flatten(0, -2)
    threshold = torch.stack([image.quantile(q) for image in each]).reshape(*y.shape[:-2], 1, 1)
    return torch.where(y < threshold, p.square(), 0).sum((-2, -1))


def _products(p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """p·y and ‖p‖ ‖y‖."""
    _check(p, y)
    norm_p, norm_y = (torch.linalg.vector_norm(image, dim=(-2, -1)) for image in (p, y))
    return (p * y).sum((-2, -1)), norm_p * norm_y


def _ratio(product: Tensor, norm: Tensor) -> Tensor:
    zero = norm == 0
    return torch.where(zero, 0, product / torch.where(zero, 1, norm))


def _check(p: Tensor, y: Tensor) -> None:
    if p.ndim < 3 or y.ndim < 3 or p.shape[-3:] != y.shape[-3:]:
        raise GridMismatchError(
            f"projections and observations are (*batch, K, y, x) with one K, y and x, "
            f"got {tuple(p.shape)} and {tuple(y.shape)}"
        )
