"""Measure the statistics that plug-and-play and guidance use, for a prior that comes without them."""

from collections.abc import Sequence
from itertools import pairwise

import attrs
import torch
from torch import Tensor

from cryofm_ops import half_shape, radial_mean, rfft
from cryofm_sampling._common import copy_attributes, numbers, split_shape, streams, velocity_at, white_noise
from cryofm_sampling.errors import SettingError
from cryofm_sampling.protocols import VelocityField

__all__ = ["CalibratedVelocity", "calibrate"]

_TIMES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


@attrs.frozen(eq=False, slots=False)
class CalibratedVelocity:
    """A velocity field with measured statistics: `Calibrated` and `SpectrallyCalibrated`; see there for the tables."""

    velocity: VelocityField
    signal_power: Tensor
    denoising_error: Tensor
    denoising_spectrum: Tensor

    def __attrs_post_init__(self) -> None:
        copy_attributes(self.velocity, self, "normalization", "group")

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """The velocity at x `(*batch, z, y, x)` and t, a scalar or `(batch,)`."""
        return self.velocity(x, t)


@torch.no_grad()
def calibrate(
    velocity: VelocityField,
    examples: Tensor,
    *,
    generator: torch.Generator,
    times: Sequence[float] = _TIMES,
) -> CalibratedVelocity:
    """Measure a prior's signal power and its denoising error, per voxel and per shell, on examples of its data.

    Args:
        velocity: the prior; it is shown one volume at a time.
        examples: `(n, z, y, x)`, in model units; volumes that the prior was not trained on, a few dozen.
        generator: of the noise; every example has its own stream.
        times: flow times, increasing in (0, 1], at which to measure E|x̂_0 − x_0|².

    Returns: the velocity field with the three tables, in the dtype of the examples.

    Raises `SettingError` for examples that are no stack of volumes or not finite, or times out of order.

    >>> from cryofm_sampling.testing import GaussianPrior
    >>> generator = torch.Generator().manual_seed(0)
    >>> data = torch.randn(8, 12, 12, 12, generator=generator)
    >>> prior = calibrate(GaussianPrior(1.0), data, generator=generator, times=[0.5, 1.0])
    >>> prior.denoising_error  # exact: t² / ((1 − t)² + t²) = 0.5, 1
    tensor([[0.5000, 0.4972],
            [1.0000, 1.0127]])
    >>> prior.denoising_spectrum.shape  # t, and shells from frequency 0 to Nyquist
    torch.Size([2, 8])
    """
    if examples.ndim != 4 or not len(examples):
        raise SettingError(f"examples must be (n, z, y, x) with n at least 1, got shape {tuple(examples.shape)}")
    if not examples.is_floating_point() or not examples.isfinite().all():
        raise SettingError(f"examples must be finite, and of a floating-point type, got {examples.dtype}")
    times = numbers(times)
    if not times or not all(a < b for a, b in pairwise((0.0, *times))) or times[-1] > 1:
        raise SettingError(f"times must increase within (0, 1], got {list(times)}")
    _, box = split_shape(examples.shape)
    power = radial_mean(rfft(examples).abs().square().mean(0), box)
    voxels, error = examples.new_zeros(len(times)), examples.new_zeros(len(times), *half_shape(box))
    for x_0, stream in zip(examples, streams(generator, (len(examples),)), strict=True):
        for i, t in enumerate(times):
            x_t = (1 - t) * x_0 + t * white_noise(box, stream, x_0)
            estimate = x_t - t * velocity_at(velocity, x_t[None], t)[0]
            deviation = estimate - x_0
            voxels[i] += deviation.square().mean() / len(examples)
            error[i] += rfft(deviation).abs().square() / len(examples)
    error = radial_mean(error, box)
    column = examples.new_tensor(times)[:, None]
    return CalibratedVelocity(velocity, power, torch.cat([column, voxels[:, None]], -1), torch.cat([column, error], -1))
