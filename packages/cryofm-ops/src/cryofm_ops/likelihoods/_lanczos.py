"""Draws of a normal whose precision is known by its products alone, by Lanczos' method.

M^−½ z ≈ |z| Q T^−½ e₁ with an orthonormal basis Q of the Krylov space of M and z, and T = Qᵀ M Q (Chow & Saad, SIAM J.
Sci. Comput. 36, 2014).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cryofm_ops.likelihoods._quasi_newton import dot

__all__ = ["inverse_root"]


def inverse_root(
    prior: Callable[[Tensor], Tensor], data: Callable[[Tensor], Tensor], z: Tensor, tolerance: float, most: int
) -> Tensor:
    """M^−½ z for M = prior + data, both symmetric, the first positive; `(*batch, z, y, x)`.

    What of `data` is negative counts as 0: no data make a volume less certain. Stops when a step changes the result by
    less than `tolerance`, relative, or after `most` products.
    """
    norm, tiny = dot(z, z).sqrt(), torch.finfo(z.dtype).tiny
    basis = [z / norm.clamp(min=tiny)]
    priors, datas = [prior(basis[0])], [data(basis[0])]
    found = _coefficients(basis, priors, datas)
    while len(basis) < most:
        w = priors[-1] + datas[-1]
        size = dot(w, w).sqrt()
        for _ in range(2):  # twice is enough for rounding, too
            for q in basis:
                w = w - dot(w, q) * q
        rest = dot(w, w).sqrt()
        if bool((rest <= tolerance * size).all()):  # the space holds all that M makes of z
            break
        # A volume of the batch that is done goes on with a vector of zeros, which changes nothing.
        basis.append(torch.where(rest > tolerance * size, w / rest.clamp(min=tiny), 0))
        priors.append(prior(basis[-1]))
        datas.append(data(basis[-1]))
        before, found = found, _coefficients(basis, priors, datas)
        change = found - torch.nn.functional.pad(before, (0, 1))
        if bool((change.norm(dim=-1) <= tolerance * found.norm(dim=-1)).all()):
            break
    return norm * torch.stack([c[..., None, None, None] * q for c, q in zip(found.unbind(-1), basis, strict=True)]).sum(
        0
    )


def _coefficients(basis: list[Tensor], priors: list[Tensor], datas: list[Tensor]) -> Tensor:
    """T^−½ e₁, `(*batch, k)`."""
    Q, R, H = (torch.stack(vectors, -4).flatten(-3).double() for vectors in (basis, priors, datas))
    idle = torch.diag_embed((Q.square().sum(-1) == 0).double())  # the vectors of zeros
    values, vectors = torch.linalg.eigh(_symmetric(Q @ H.mT))
    T = _symmetric(Q @ R.mT) + idle + (vectors * values.clamp(min=0)[..., None, :]) @ vectors.mT
    values, vectors = torch.linalg.eigh(T)
    root: Tensor = (vectors * values.rsqrt()[..., None, :]) @ vectors.mT
    return root[..., 0].to(basis[0])


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2
