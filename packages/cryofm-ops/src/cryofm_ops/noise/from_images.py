"""The noise of images, from what surrounds the particle in them."""

import math

import torch
from torch import Tensor

from cryofm_ops.errors import GeometryError

__all__ = ["background_power", "prepared_noise_power"]

_MARGIN = 1.3  # of the particle's diameter: where the background begins


def background_power(images: Tensor, diameter_px: float) -> Tensor:
    """Noise variance per pixel and frequency, outside of a disc in the middle.

    White noise of variance s² has s² everywhere; where the background was set to a constant there is none.

    Args:
        images: `(K, n, n)`.
        diameter_px: of the particle; the background begins at 1.3 times that.

    Returns: the power of |k| = 0, 1, …, n // 2 in units of 1/n, `(n // 2 + 1,)`, mean over the images.

    Raises:
        GeometryError: the particle leaves no background.

    >>> images = 2 * torch.randn(50, 48, 48, generator=torch.Generator().manual_seed(0))
    >>> background_power(images, 20.0)[5:].mean().round()
    tensor(4.)
    """
    n = images.shape[-1]
    axis = torch.arange(n).to(images) - n // 2
    outside = (axis.square() + axis[:, None].square() > (_MARGIN * diameter_px / 2) ** 2).to(images)
    count = outside.sum()
    if count < n:
        raise GeometryError(f"a particle of {diameter_px:g} pixels leaves no background in images of {n} pixels")
    level = (images * outside).sum((-2, -1), keepdim=True) / count
    power = torch.fft.fft2((images - level) * outside).abs().square().mean(0) / count
    k = torch.fft.fftfreq(n, 1 / n).to(images)
    shell = (k.square() + k[:, None].square()).sqrt().round().long().clamp(max=n // 2).flatten()
    sums: Tensor = power.new_zeros(n // 2 + 1).index_add(0, shell, power.flatten())
    return sums / torch.bincount(shell)


def prepared_noise_power(
    originals: Tensor,
    radius: int,
    *,
    diameter: float,
    voxel_size: float,
    box: int,
    box_voxel_size: float,
    scale: float,
    shifts: Tensor | None = None,
) -> Tensor:
    """Power of the noise of images that were resampled to a box, in their transforms, not normalised.

    Args:
        originals: `(K, n, n)`, as they came.
        radius: the highest frequency, in units of 1/box.
        diameter: of the particle; all lengths in one unit.
        voxel_size: of the originals.
        box: side of the resampled images, pixels.
        box_voxel_size: of the resampled images.
        scale: by what the originals were multiplied.
        shifts: of images that were centred and then masked to the diameter, what centred them, (x, y), `(K, 2)`;
            None: they were cut out as they are.

    Returns: at the frequencies 1..radius of 1/box, `(radius,)`.

    Raises what `background_power` raises.

    >>> y = 2 * torch.randn(50, 48, 48, generator=torch.Generator().manual_seed(0))
    >>> lengths = {"diameter": 20.0, "voxel_size": 1.0, "box": 24, "box_voxel_size": 2.0}
    >>> noise = prepared_noise_power(y, 8, **lengths, scale=10.0)
    >>> noise[4:].mean().div(24**2).round(decimals=-1)  # the variance of means of four, times 10²
    tensor(100.)
    """
    n = originals.shape[-1]
    if shifts is None:
        pixels = min(float(box), n * voxel_size / box_voxel_size) ** 2
    else:
        steps = (shifts / voxel_size).round().long().tolist()
        originals = torch.stack([y.roll((dy, dx), (0, 1)) for y, (dx, dy) in zip(originals, steps, strict=True)])
        pixels = math.pi / 4 * (diameter / box_voxel_size) ** 2
    power = background_power(originals, diameter / voxel_size).double()
    at = torch.arange(1, radius + 1).to(power) * (n * voxel_size) / (box * box_voxel_size)
    at = at.clamp(max=len(power) - 1)
    low = at.floor().long().clamp(max=len(power) - 2)
    table = (power[low + 1] - power[low]) * (at - low) + power[low]
    return (scale**2 * (voxel_size / box_voxel_size) ** 2 * pixels * table).float()
