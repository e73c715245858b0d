"""The mean of a density by the normal that is nearest to it, with an uncertainty for every voxel.

Of all N(m, 1/s) that which bounds the evidence best has E ∇φ = 0 and s = diag E ∇²φ (Opper & Archambeau, Neural Comput.
21, 2009). Both expectations come from gradients alone, at m ± d with d = s^−½ n (Stein: s^½ E n ∇φ(m + d) is the
latter), and are followed by natural gradients with new n in every step (Khan & Lin, AISTATS 2017).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cryofm_ops.likelihoods._quasi_newton import dot

__all__ = ["nearest_normal"]

_STEPS = 60  # two gradients each; m is the mean of the later half
_RATE, _RATE_OF_S = 0.3, 0.2
_STABLE = 0.8  # over the largest eigenvalue, where that is less
_LONGEST = 1.0  # standard deviations of the prior that a voxel moves in a step
_EVEN = 0.003  # part of the change of a gradient that may be even, where φ counts as quadratic
_SHORT = 0.3  # nats per voxel


def nearest_normal(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]], u: Tensor, least: Tensor, generator: torch.Generator
) -> Tensor:
    """The mean of exp(−φ) about its mode u `(*batch, z, y, x)`; u itself where φ is quadratic.

    Args:
        objective: u -> φ `(*batch, 1, 1, 1)` and its gradient.
        u: the mode.
        least: curvature that every voxel has at least, `(*batch, 1, 1, 1)`.
        generator: all randomness, which the volumes of a batch share.

    It stays at the mode, too, where the bound on the evidence falls short of Laplace's estimate by more than 0.3 nats
    per voxel: no normal of some width describes such a density.
    """
    box = u.shape[-3:]
    voxels = math.prod(box)

    def both(m: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # E φ, E ∇φ and half the change of ∇φ
        (high, above), (low, below) = objective(m + d), objective(m - d)
        return (high + low) / 2, (above + below) / 2, (above - below) / 2

    def half_log(s: Tensor) -> Tensor:
        return s.log().sum((-3, -2, -1), keepdim=True) / 2

    phi, here = objective(u)
    sign = torch.randint(2, box, generator=generator).to(u).expand(u.shape) * 2 - 1
    _, even, odd = both(u, 3 * sign)
    rest = dot(even - here, even - here) <= _EVEN**2 * dot(odd, odd)  # these stay
    if rest.all():
        return u
    _, _, bend = both(u, 0.1 * sign)
    s = torch.maximum(10 * sign * bend, least)
    laplace = phi + half_log(s) + voxels / 2
    m, mean, bound = u, torch.zeros_like(u), torch.zeros_like(phi)
    for k in range(_STEPS):
        n, root = torch.randn(box, generator=generator, dtype=u.dtype).to(u), s.sqrt()
        value, slope, change = both(m, n / root)
        s = torch.maximum((1 - _RATE_OF_S) * s + _RATE_OF_S * n * root * change, least)
        white = change / root  # s^−½ ∇²φ s^−½ n: its eigenvalues, weighted by themselves, bound the step
        largest = dot(white, white) / dot(n, white).clamp(min=torch.finfo(n.dtype).tiny)
        rate = (_STABLE / largest).clamp(max=_RATE)
        m = m - (rate * slope / s).clamp(-_LONGEST * least.rsqrt(), _LONGEST * least.rsqrt())
        if 2 * k >= _STEPS:
            mean, bound = mean + m, bound + value + half_log(s)
    short = bound / (_STEPS / 2) - laplace <= _SHORT * voxels  # not of what is not finite
    return torch.where(short & ~rest, mean / (_STEPS / 2), u)
