"""Bringing images to a model's pixel size and box: background, centring, mask, resampling, scale."""

import math
import warnings
from typing import Any

import attrs
import numpy as np
import scipy  # its parts load when they are needed, which spares a third of a second at import
from numpy.typing import NDArray

from cryofm_io.errors import CryoFMError, GeometryError, MapWarning
from cryofm_io.image_stack import ImageStack, Poses
from cryofm_io.masks import raised_cosine
from cryofm_io.resample import fourier_resample

__all__ = ["PreparedImages", "prepare_images"]

_SOFT_EDGE = 0.1  # of the mask's diameter
_DENSE, _HIGHEST = 0.1, 99  # part of this percentile that density exceeds where it counts for a robust centre
_APART = 0.02  # of the mask's diameter: clean images have the two centres within .008
_EDGE = 0.1  # of the low pass: the amplitude falls over the last tenth below 1/resolution


@attrs.frozen(eq=False)
class PreparedImages:
    """Images in a model's box, and the way back to those that they were made of.

    Pixel n // 2 of a prepared image lies where pixel n // 2 of the original moved by ``shifts[k]`` does.

    Args:
        images: The prepared images; poses, if there are any, are theirs: shifts are what is left to centre them.
        shifts: What centred the originals, (x, y) in Å, ``(K, 2)``.
        background: Mean outside of the mask, ``(K,)``, in the originals' units.
        scale: A prepared image is an original less its background times this; negative where contrast was inverted.
    """

    images: ImageStack
    shifts: NDArray[np.float64]
    background: NDArray[np.float64]
    scale: float

    def original_poses(self, poses: Poses) -> Poses:
        """The poses of the original images, from those of the prepared ones."""
        return Poses(poses.rotations, poses.shifts + self.shifts)


def prepare_images(
    images: ImageStack,
    *,
    mask_diameter: float,
    voxel_size: float,
    box: int,
    resolution: float | None = None,
    invert: bool = False,
) -> PreparedImages:
    """Subtract the background, centre, mask, low-pass and resample images.

    A circular mask follows the centre of mass of each image until it stays. What is outside of it is background, whose
    mean becomes 0; the image is moved so that its centre of mass is pixel n // 2, by a Fourier shift, and masked. Views
    of one object then share its centre of mass as their origin. Where that of what is clearly dense lies elsewhere, it
    is taken instead: noise and negative halos pull the other away. One factor for all images makes their root mean
    square within the mask's diameter 1; their relative scales are kept.

    Args:
        images: Class averages or particles, protein positive.
        mask_diameter: Å; the mask is 1 within it, and falls to 0 over a tenth of it beyond.
        voxel_size: The wished pixel size in Å; the true one, ``images.voxel_size``, is within 0.5 %.
        box: The wished side in pixels.
        resolution: Å; a low pass whose amplitude falls from 1 to 0 over the last tenth below 1/resolution.
        invert: The originals show protein negative.

    Returns:
        The prepared images, and what brings poses back to the originals.

    Raises:
        GeometryError: A length or the box is not positive, or the mask does not fit the original or the new box.
        CryoFMError: There is nothing within the mask.

    Warns:
        MapWarning: The contrast seems to be inverted, or a centre of mass lies more than a quarter of the box
            from pixel n // 2, as that of an image without a particle may; it is then not centred fully.

    Example:
        >>> y, x = np.ogrid[-32:32, -32:32]
        >>> blobs = [np.exp(-((x - 2) ** 2 + (y - k) ** 2) / 50) for k in range(3)]
        >>> prepared = prepare_images(ImageStack(blobs, 1.5), mask_diameter=70, voxel_size=5, box=24)
        >>> prepared.images.data.shape, prepared.images.voxel_size, (prepared.shifts + 0.0).round(1).tolist()
        ((3, 24, 24), 5.0, [[-3.0, 0.0], [-3.0, -1.5], [-3.0, -3.0]])
    """
    n, old = images.data.shape[-1], images.voxel_size
    lengths = [mask_diameter, voxel_size, box, resolution or 1.0]
    if not all(math.isfinite(length) and length > 0 for length in lengths):
        raise GeometryError(
            f"mask {mask_diameter} Å, voxel size {voxel_size} Å, box {box}, resolution {resolution} Å: must be positive"
        )
    for what, side in (("images", n * old), ("wished box", box * voxel_size)):
        if mask_diameter > side:
            raise GeometryError(f"a mask of {mask_diameter:g} Å does not fit the {what} of {side:g} Å; choose another")
    radius = mask_diameter / 2 / old
    data = images.data.astype(np.float64) * (-1 if invert else 1)
    found = [_centre(image, radius) for image in data]
    shifts_px, background, mass = (np.array(part) for part in zip(*found, strict=True))
    _warn(mass, n, shifts_px)

    mask = _disc(n, np.zeros(2), radius)
    centred = [
        mask * np.real(np.fft.ifft2(scipy.ndimage.fourier_shift(np.fft.fft2(image - level), shift[::-1])))
        for image, level, shift in zip(data, background, shifts_px, strict=True)
    ]
    padded, resampled = sides(n, old / voxel_size)
    new = old if padded == resampled else float(f"{old * padded / resampled:.7g}")
    result = fourier_resample(fitted(np.stack(centred), padded)[:, None], (1, resampled, resampled))[:, 0]
    if resolution is not None:
        result = _low_pass(result, resolution, new)
    result = fitted(result, box)
    if not result.any():
        raise CryoFMError(f"the images are constant within the mask of {mask_diameter:g} Å; choose another")
    scale = math.sqrt(len(result) * math.pi * (mask_diameter / 2 / new) ** 2 / np.sum(result**2))
    shifts = old * shifts_px
    poses = images.poses and Poses(images.poses.rotations, images.poses.shifts - shifts)
    stack = attrs.evolve(images, data=scale * result, voxel_size=new, poses=poses)
    sign = -1 if invert else 1
    return PreparedImages(stack, shifts, sign * background, sign * scale)


def _disc(n: int, centre: NDArray[np.float64], radius: float) -> NDArray[np.float32]:
    """A soft disc about a point (x, y) counted from pixel n // 2; all in pixels."""
    axis = np.arange(n) - n // 2
    distance = np.hypot(axis[:, None] - centre[1], axis - centre[0]).astype(np.float32)
    return raised_cosine(distance, radius, 2 * _SOFT_EDGE * radius, 1.0)


def _centre(image: NDArray[Any], radius: float) -> tuple[NDArray[np.float64], float, float]:
    """The shift (x, y) that brings the centre of mass to pixel n // 2, the background, and the mass within the mask.

    Of a clean image that of all density is exact. Noise and the negative halos of filtered averages pull it away; that
    of what is clearly dense (of either sign) stays, and counts where the two are apart.
    """
    exact, robust = (_centre_of_mass(image, radius, level) for level in (0.0, _DENSE))
    apart = float(np.hypot(*(exact[0] - robust[0])))
    if apart <= _APART * 2 * radius:
        return exact
    return robust[0], robust[1], exact[2]


def _centre_of_mass(image: NDArray[Any], radius: float, level: float) -> tuple[NDArray[np.float64], float, float]:
    """Likewise, of what exceeds a level, in parts of the highest density; 0: of all."""
    n = len(image)
    axis = np.arange(n) - n // 2
    centre, background, mass = np.zeros(2), 0.0, 0.0
    for _ in range(50):
        mask = _disc(n, centre, radius)
        outside = mask == 0
        background = float(image[outside].mean()) if outside.any() else 0.0
        weights = mask * (image - background)
        mass = float(weights.sum())
        if level:
            upright = math.copysign(1, mass) * weights
            weights = np.maximum(upright - level * np.percentile(upright, _HIGHEST), 0)
        total = float(weights.sum())
        if total == 0:
            break
        previous = centre
        centre = np.clip(np.array([weights.sum(0) @ axis, weights.sum(1) @ axis]) / total, -n / 4, n / 4)
        if np.abs(centre - previous).max() < 1e-3:
            break
    return -centre, background, mass


def _warn(mass: NDArray[np.float64], n: int, shifts_px: NDArray[np.float64]) -> None:
    if np.mean(mass < 0) > 0.5:
        message = (
            f"{np.sum(mass < 0)} of {len(mass)} images are darker than their background: inverted contrast? (invert)"
        )
        warnings.warn(message, MapWarning, stacklevel=3)
    far = np.flatnonzero(np.abs(shifts_px).max(1) >= n / 4)
    if len(far):
        message = f"the centres of mass of {len(far)} images are a quarter of the box off, first of image {far[0]}"
        warnings.warn(message, MapWarning, stacklevel=3)


def sides(n: int, ratio: float) -> tuple[int, int]:
    """Sides before and after resampling, the first at least n: the least padding within 0.1 %, or the best of all."""
    farthest = max(2 * n, 200)  # ratios close to 1 need a large side, however small the image
    candidates = [(p, max(1, round(p * ratio))) for p in range(n, farthest + 1)]
    error = {(p, q): abs(q / p / ratio - 1) for p, q in candidates}
    return min(candidates, key=lambda pq: (max(error[pq], 1e-3), pq[0]))


def fitted(data: NDArray[Any], m: int) -> NDArray[Any]:
    """Cropped or padded with zeros to m × m, pixel n // 2 to m // 2."""
    n = data.shape[-1]
    before, after = m // 2 - n // 2, (m - m // 2) - (n - n // 2)
    data = data[..., max(-before, 0) : n - max(-after, 0), max(-before, 0) : n - max(-after, 0)]
    width = (max(before, 0), max(after, 0))
    return np.pad(data, [(0, 0)] * (data.ndim - 2) + [width, width])


def _low_pass(data: NDArray[Any], resolution: float, voxel_size: float) -> NDArray[Any]:
    n = data.shape[-1]
    frequency = np.hypot(np.fft.fftfreq(n, voxel_size)[:, None], np.fft.rfftfreq(n, voxel_size))
    fraction = np.clip((frequency * resolution - (1 - _EDGE)) / _EDGE, 0, 1)
    spectrum = np.asarray(scipy.fft.rfft2(data)) * (1 + np.cos(np.pi * fraction)) / 2
    return np.asarray(scipy.fft.irfft2(spectrum, s=(n, n)))
