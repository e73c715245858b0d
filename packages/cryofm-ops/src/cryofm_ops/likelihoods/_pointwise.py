"""The mean of N(μ, V) × Π p(y | x_i), of data that speak of every voxel by itself, by expectation propagation.

Every factor p(y | x_i) is replaced by a normal, exp(a_i x − ½ b_i x²), such that beside the others it gives the voxel
the mean and the variance that the factor itself gives it, which a quadrature over x_i tells (Minka, UAI 2001). What the
others leave of a voxel has one variance Ṽ for all, by 1/v = 1/Ṽ + b, with v the mean variance for V and an even b (as
in Opper & Winther, J. Mach. Learn. Res. 6, 2005). That is exact where V is white, and the quadrature all there is to
do, and where the b are equal.

The factors are known by their slopes alone, which one gradient tells for all voxels. Their integral along x_i is log p.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cryofm_ops.fourier.grid import fourier_filter
from cryofm_ops.likelihoods._conjugate_gradients import conjugate_gradients
from cryofm_ops.likelihoods._quasi_newton import dot

__all__ = ["is_pointwise", "mean_of_voxels"]

_ALONE = 1e-5  # part of the change of a gradient that may be rounding
_EVEN = 0.003  # part of it that may be even, where log p counts as quadratic
_POINTS = 64  # on either side of the mode
_REACH = 6.0  # standard deviations √Ṽ beyond which there is nothing
_FINE = 0.1  # standard deviations of the posterior from the mode to the next point
_DEEP = 30.0  # nats: beyond a valley so deep is another peak, whose height slopes do not tell
_SHARP = 1e-3  # of the standard deviation that the curvature at the mode leaves, that there is at least
_ROUNDS, _SETTLED = 6, 0.01  # of expectation propagation; by how many standard deviations voxels still move
_TOLERANCE, _SOLVE = 1e-6, 1000  # of conjugate gradients

Function = Callable[[Tensor], Tensor]


def is_pointwise(gradient: Function, x: Tensor, step: Tensor) -> bool:
    """Whether a step of half of the voxels leaves the slopes at the others alone, and log p is not quadratic."""
    moved = torch.rand(x.shape[-3:], generator=torch.Generator().manual_seed(0)).to(x) < 0.5
    here, above, below = (gradient(x + s * moved) for s in (0 * step, step, -step))
    change, even = above - here, above + below - 2 * here
    others = torch.where(moved, 0, change)
    size = dot(change, change)
    alone = dot(others, others) <= _ALONE**2 * size
    return bool((alone & (dot(even, even) > (2 * _EVEN) ** 2 * size)).all())


def mean_of_voxels(gradient: Function, mode: Tensor, mean: Tensor, V: Tensor, average: Function) -> Tensor:
    """The posterior mean, `(*batch, z, y, x)`; of a voxel with peaks that a deep valley divides that of the mode's.

    Args:
        gradient: ∇ log p, of volumes.
        mode: where the quadrature is finest.
        mean: of the prior.
        V: its variance, per coefficient.
        average: of variances per coefficient, the variance of a voxel, `(*batch, 1, 1, 1)`.
    """
    rest = average(V)  # Ṽ
    beside = 0.1 * rest.sqrt()
    b = ((gradient(mode - beside) - gradient(mode + beside)) / (2 * beside)).clamp(min=0)
    a = gradient(mode) + b * mode
    x, spread = mode, (1 / rest + b).rsqrt()
    for _ in range(_ROUNDS):
        rest = _left_by_others(V, b, rest, average)
        h = _mean_by_others(mean, V, a, b, rest)
        new, variance = _moments(gradient, mode, spread, h, rest)
        b = (1 / variance - 1 / rest).clamp(min=0)
        a = new * (1 / rest + b) - h / rest
        moved = dot((new - x).square(), 1 / variance) / math.prod(x.shape[-3:])
        x = new
        if bool((moved <= _SETTLED**2).all()):
            break
    return x


def _left_by_others(V: Tensor, b: Tensor, rest: Tensor, average: Function) -> Tensor:
    """Ṽ, from that of the round before."""
    one = (1 / (1 / (1 / rest + b)).mean((-3, -2, -1), keepdim=True) - 1 / rest).clamp(min=0)  # as much as all b
    v = average(V / (1 + V * one))
    return v / (1 - v * one)


def _mean_by_others(mean: Tensor, V: Tensor, a: Tensor, b: Tensor, rest: Tensor) -> Tensor:
    """What the others leave, m − Ṽ (m − μ) / V, for the mean m = (1/V + b)⁻¹ (μ/V + a) by all normals."""
    root = V.sqrt()

    def matrix(w: Tensor) -> Tensor:
        return w + fourier_filter(b * fourier_filter(w, root), root)

    w = conjugate_gradients(matrix, fourier_filter(a - b * mean, root), mean.ndim - 3, _TOLERANCE, _SOLVE)
    return mean + fourier_filter(w, torch.where(root > 0, root - rest / root, 0))


def _moments(gradient: Function, mode: Tensor, spread: Tensor, h: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of N(h, Ṽ) × p(y | x_i) for every voxel, by the trapezoidal rule in z, x = mode + R sinh(κ z) /
    sinh κ, of the integral of slopes from the mode outwards.
    """
    R = (mode - h).abs() + _REACH * rest.sqrt()
    ratio = (R / (_FINE * _POINTS * spread)).clamp(min=1.01)  # sinh κ / κ
    kappa = (1 + ratio.log()).clamp(min=0.25)
    for _ in range(8):
        kappa = (ratio * kappa).asinh()
    total, first, second = (torch.zeros_like(mode) for _ in range(3))
    top = torch.zeros_like(mode)  # the largest exponent so far, to which sums are relative
    for side in (1, -1):
        value, d, slope = torch.zeros_like(mode), torch.zeros_like(mode), torch.zeros_like(mode)
        reached = torch.ones_like(mode, dtype=torch.bool)
        for j in range(_POINTS + 1):
            z = side * j / _POINTS * kappa
            next_d = R * z.sinh() / kappa.sinh()
            next_slope = gradient(mode + next_d) - (mode + next_d - h) / rest
            value = value + (next_slope + slope) / 2 * (next_d - d)  # of the first point 0
            d, slope, reached = next_d, next_slope, reached & (value > top - _DEEP)  # not of what is not finite
            largest = torch.where(reached, torch.maximum(top, value), top)
            weight = torch.where(reached, z.cosh() * (value - largest).exp(), 0) * (0.5 if j == 0 else 1)
            fade = (top - largest).exp()
            total, first, second = total * fade + weight, first * fade + weight * d, second * fade + weight * d * d
            top = largest
    off = first / total
    variance = second / total - off.square()
    return mode + off, torch.maximum(variance, (_SHARP * spread).square())
