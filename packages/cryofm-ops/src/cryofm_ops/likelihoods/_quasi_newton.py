"""Limited-memory BFGS (Nocedal, Math. Comp. 35, 1980) for a batch of functions, each of which goes its own way."""

import math
from collections import deque
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

__all__ = ["Minimum", "dot", "minimise"]

_MEMORY = 8
_TRIALS = 12  # of one line search
_DECREASE, _CURVATURE = 1e-4, 0.9  # Wolfe's conditions
_FIRST = 0.1  # root mean square of the first step
_VOLUME = (-3, -2, -1)


@attrs.frozen(eq=False)
class Minimum:
    """Where φ is least, its value there, and whether the gradient came within the tolerance, `(*batch, 1, 1, 1)`."""

    u: Tensor
    value: Tensor
    done: Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ of every volume, `(*batch, 1, 1, 1)`."""
    return (a * b).sum(_VOLUME, keepdim=True)


def minimise(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    u: Tensor,
    tolerance: float,
    max_iterations: int,
    longest: Callable[[Tensor], Tensor],
) -> Minimum:
    """Minimise φ from u `(*batch, z, y, x)`, until the gradient's root mean square is at most `tolerance`.

    Args:
        objective: u -> φ `(*batch, 1, 1, 1)` and its gradient; values that are not finite are stepped back from.
        u: where to begin; φ and its gradient are finite there.
        tolerance: of the gradient.
        max_iterations: line searches, after which it is left at that.
        longest: how far along a direction p one step may go at most, as a multiple of p, `(*batch, 1, 1, 1)`.
    """
    target = tolerance * math.sqrt(math.prod(u.shape[-3:]))
    tiny, eps = torch.finfo(u.dtype).tiny, torch.finfo(u.dtype).eps
    phi, g = objective(u)
    pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=_MEMORY)
    stuck = torch.zeros_like(phi, dtype=torch.bool)
    for _ in range(max_iterations):
        norm = dot(g, g).sqrt()
        found = stuck | (norm <= target)  # these rest, so that no volume depends on the others of its batch
        if found.all():
            break
        p = _direction(g, pairs)
        p = torch.where(dot(g, p) < 0, p, -g)
        slope, most = dot(g, p), longest(p)
        alpha = torch.ones_like(phi) if pairs else (_FIRST / tolerance * target / norm.clamp(min=tiny)).clamp(max=1)
        alpha = torch.minimum(alpha, most)
        new_u, new_phi, new_g = u, phi, g
        for _ in range(_TRIALS):
            at = u + alpha * p
            phi_at, g_at = objective(at)
            slope_at = dot(g_at, p)
            finite = phi_at.isfinite() & slope_at.isfinite()
            # Near the minimum φ falls by less than its rounding; the slope tells (Hager & Zhang, SIAM J. Optim. 2005)
            even = (phi_at <= phi + 10 * eps * phi.abs()) & (slope_at <= (2 * _DECREASE - 1) * slope)
            lower = finite & ((phi_at <= phi + _DECREASE * alpha * slope) | even)
            better = ~found & lower
            new_u, new_phi = torch.where(better, at, new_u), torch.where(better, phi_at, new_phi)
            new_g = torch.where(better, g_at, new_g)
            found = found | (lower & ((slope_at >= _CURVATURE * slope) | (alpha >= most)))
            if found.all():
                break
            secant = torch.where(finite, -slope / (slope_at - slope).clamp(min=tiny), 0)
            further = torch.where(lower, secant.clamp(2, 100), secant.clamp(0.1, 0.5))
            alpha = torch.where(found, alpha, torch.minimum(alpha * further, most))
        stuck = stuck | (new_u == u).flatten(-3).all(-1)[..., None, None, None]
        pairs.append((new_u - u, new_g - g))
        u, phi, g = new_u, new_phi, new_g
    return Minimum(u, phi, dot(g, g).sqrt() <= target)


def _direction(g: Tensor, pairs: deque[tuple[Tensor, Tensor]]) -> Tensor:
    """−H g by the two loops; a pair without curvature, such as that of a volume at rest, counts for nothing."""
    p, scale, passed = -g, torch.ones_like(g[..., :1, :1, :1]), []
    for s, y in pairs:
        sy, yy = dot(s, y), dot(y, y)
        bent = sy > torch.finfo(g.dtype).eps * (dot(s, s) * yy).sqrt()
        scale = torch.where(bent, sy / torch.where(bent, yy, 1), scale)
        passed.append((s, y, torch.where(bent, 1 / torch.where(bent, sy, 1), 0)))
    taken = []
    for s, y, rho in reversed(passed):
        taken.append(rho * dot(s, p))
        p = p - taken[-1] * y
    p = scale * p
    for (s, y, rho), a in zip(passed, reversed(taken), strict=True):
        p = p + s * (a - rho * dot(y, p))
    return p
