"""The FSC of two volumes as a radial table."""

import torch
from torch import Tensor

from cryofm_ops import radial_mean, rfft
from cryofm_sampling._common import split_shape

__all__ = ["correlation"]


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Radial table of the FSC between two volumes `(z, y, x)`; 0 where a shell is empty."""
    _, shape = split_shape(a.shape)
    fa, fb = rfft(a.double()), rfft(b.double())
    cross = radial_mean((fa * fb.conj()).real, shape)
    powers = radial_mean(fa.abs().square(), shape) * radial_mean(fb.abs().square(), shape)
    return torch.where(powers > 1e-24 * powers.max(), cross / powers.sqrt().clamp(min=1e-300), 0).to(a)
