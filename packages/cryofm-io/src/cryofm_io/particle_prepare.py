"""Bringing noisy particle images to a model's pixel size and box: background, resampling, box, scale."""

import math
import warnings

import attrs
import numpy as np

from cryofm_io.errors import GeometryError, MapWarning
from cryofm_io.image_prepare import PreparedImages, fitted, sides
from cryofm_io.image_stack import ImageStack
from cryofm_io.resample import fourier_resample

__all__ = ["prepare_particles"]


def prepare_particles(
    images: ImageStack, *, mask_diameter: float, voxel_size: float, box: int, invert: bool = False
) -> PreparedImages:
    """Subtract the background, resample and cut out particles, whose CTFs stay as they are.

    Nothing that noise would make arbitrary: no image is centred by its centre of mass. Nothing that a CTF forbids: it
    carries a particle's fine detail beyond the particle's edge, so there is no mask. The noise stays independent from
    one Fourier coefficient to the next. One factor for all makes the root mean square of the images 1.

    Args:
        images: Particles, protein positive.
        mask_diameter: Å; what is farther from the centre is background, whose mean becomes 0.
        voxel_size: The wished pixel size in Å; the true one, ``images.voxel_size``, is within 0.5 %.
        box: The wished side in pixels; images that are smaller are surrounded by zeros.
        invert: The originals show protein negative.

    Returns:
        The prepared images, and what brings poses back to the originals, where nothing moved.

    Raises:
        GeometryError: A length or the box is not positive, or the mask does not fit the images or the box.

    Warns:
        MapWarning: The contrast seems to be inverted.

    Example:
        >>> noise = np.random.default_rng(0).normal(size=(2, 64, 64))
        >>> prepared = prepare_particles(ImageStack(noise, 1.5), mask_diameter=70, voxel_size=5, box=16)
        >>> prepared.images.data.shape, prepared.images.voxel_size, prepared.shifts.tolist()
        ((2, 16, 16), 5.0, [[0.0, 0.0], [0.0, 0.0]])
    """
    n, old = images.data.shape[-1], images.voxel_size
    if not all(math.isfinite(length) and length > 0 for length in (mask_diameter, voxel_size, box)):
        raise GeometryError(f"mask {mask_diameter} Å, voxel size {voxel_size} Å, box {box}: must be positive")
    for what, side in (("images", n * old), ("wished box", box * voxel_size)):
        if mask_diameter > side:
            raise GeometryError(f"a mask of {mask_diameter:g} Å does not fit the {what} of {side:g} Å; choose another")
    sign = -1 if invert else 1
    axis = np.arange(n) - n // 2
    outside = np.hypot(axis[:, None], axis) > mask_diameter / 2 / old
    data = sign * images.data.astype(np.float64)
    background = data[:, outside].mean(1)
    inside = data[:, ~outside].mean(1) - background
    spread = max(inside.std(), data[:, outside].std() / math.sqrt(np.sum(~outside)))  # of white noise at least
    if inside.mean() < -3 * spread / math.sqrt(len(inside)):
        message = "the particles are darker than their background: inverted contrast? (invert)"
        warnings.warn(message, MapWarning, stacklevel=2)

    padded, resampled = sides(n, old / voxel_size)
    new = old if padded == resampled else float(f"{old * padded / resampled:.7g}")
    wide = fitted(data - background[:, None, None], padded)
    result = fitted(fourier_resample(wide[:, None], (1, resampled, resampled))[:, 0], box)
    scale = 1 / math.sqrt(np.mean(result**2))
    stack = attrs.evolve(images, data=scale * result, voxel_size=new)
    return PreparedImages(stack, np.zeros((len(images), 2)), sign * background, sign * scale)
