"""Where density can be: where two half maps agree, or where a mask says so.

The product of two halves, whitened and averaged over a few voxels, has the mean 0 where there is noise alone. How high
it rises there by chance, made-up halves of such noise tell: what rises a quarter higher than their highest is density.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from cryofm_ops import SpectralNoise, fourier_filter, frequencies, radial
from cryofm_sampling._common import split_shape
from cryofm_sampling.half_maps.result import Grid

__all__ = ["on_grid", "where_dense", "where_halves_agree"]

_MASKED = 0.05  # of a soft mask, from where on there can be density
_HIGHER = 1.25
_FAINT = 0.02  # of the strongest: nothing that a noiseless map would miss
_WIDTHS = (5, 9)  # voxels, sides of cubes; averaged twice
_COARSEST = 32.0  # voxels; what is coarser, such as the mean and what a mean taken away leaves, says no place
_LEAST_FSC = 0.05


def where_halves_agree(half1: Tensor, half2: Tensor, signal_power: Tensor, noise_power: Tensor, /) -> Tensor:
    """Whether there is density, of every voxel `(z, y, x)`.

    Args:
        half1: `(z, y, x)`.
        half2: likewise.
        signal_power: radial table of what the halves agree about.
        noise_power: radial table of the noise of one half.

    >>> from cryofm_ops import estimate_noise_power
    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.zeros(48, 48, 48)
    >>> x[16:24, 16:24, 16:24] = 3 * torch.randn(8, 8, 8, generator=generator)
    >>> halves = [x + torch.randn(48, 48, 48, generator=generator) for _ in range(2)]
    >>> noise = estimate_noise_power(*halves)
    >>> where = where_halves_agree(*halves, noise.signal_power, noise.noise_power)
    >>> bool(where[16:24, 16:24, 16:24].all()), bool(where[32:].any())
    (True, False)
    """
    _, shape = split_shape(half1.shape)
    nu = frequencies(shape, device=half1.device)
    signal, noise = signal_power.double().clamp(min=0), noise_power.double().clamp(min=1e-30)
    measured = signal / (signal + noise) > _LEAST_FSC
    whitening = radial(torch.where(measured, signal.sqrt() / (signal + noise), 0), shape).to(nu)
    whitening = (whitening * (1 - torch.exp(-((nu * _COARSEST) ** 2)))).to(half1)
    made_up = SpectralNoise(noise_power.clamp(min=0).to(half1))
    generator = torch.Generator().manual_seed(0)  # the same halves have the same density
    alone = [made_up.sample(torch.zeros(shape), generator=generator).to(half1) for _ in range(2)]

    def product(one: Tensor, two: Tensor) -> Tensor:
        return fourier_filter(one, whitening) * fourier_filter(two, whitening)

    seen, chance, found = product(half1, half2), product(*alone), torch.zeros_like(half1, dtype=torch.bool)
    for width in _WIDTHS:
        # What fine averages have found, coarse ones need not find again, and further away.
        highest = _averaged(chance, width).max()
        found |= _averaged(torch.where(found, 0, seen), width) > _HIGHER * highest
    return found


def where_dense(map: Tensor, strongest: Tensor | None = None, /) -> Tensor:
    """Where one map without noise `(z, y, x)` is not far fainter than where it, or another of its kind, is strongest.

    >>> x = torch.zeros(40, 40, 40)
    >>> x[8:12, 8:12, 8:12] = 1
    >>> where = where_dense(x)
    >>> bool(where[8:12, 8:12, 8:12].all()), bool(where[20:].any())
    (True, False)
    """
    strength, most = (
        _averaged((x - x.median()).square(), _WIDTHS[0]) for x in (map, map if strongest is None else strongest)
    )
    return strength > _FAINT**2 * most.max()


def _averaged(x: Tensor, side: int) -> Tensor:
    """Over cubes, twice, beyond whose ends, other than a Gaussian's, nothing strong reaches."""
    for axis in (0, 1, 2) * 2:
        kernel = [1, 1, 1]
        kernel[axis] = min(side, x.shape[axis] - 1 | 1)
        x = avg_pool3d(x[None], kernel, 1, [(k - 1) // 2 for k in kernel])[0]
    return x


def on_grid(where: Tensor | None, grid: Grid, /) -> Tensor | None:
    """A mask on the prior's grid, as what is true."""
    return None if where is None else grid.forward(where.float()) > _MASKED
