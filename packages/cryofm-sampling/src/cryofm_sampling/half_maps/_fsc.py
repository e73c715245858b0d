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
    pairs = (fa, fb), (fa, fa), (fb, fb)
    cross, one, two = (radial_mean(p.real * q.real + p.imag * q.imag, shape) for p, q in pairs)
    powers = one * two
    return torch.where(powers > 1e-24 * powers.max(), cross / powers.sqrt().clamp(min=1e-300), 0).to(a)
