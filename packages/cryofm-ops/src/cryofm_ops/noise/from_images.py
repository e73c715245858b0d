"""The noise of images, from what surrounds the particle in them."""

import torch
from torch import Tensor

from cryofm_ops.errors import GeometryError

__all__ = ["background_power"]

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
