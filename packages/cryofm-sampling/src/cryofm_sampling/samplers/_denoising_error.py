"""e(ν, t): how large the error of a denoiser is at every frequency."""

import math
from typing import Self

import attrs
import torch
from torch import Tensor

from cryofm_ops import friedel_weights, half_shape, radial
from cryofm_sampling._common import Box
from cryofm_sampling.errors import CapabilityError
from cryofm_sampling.protocols import Calibrated, SpectrallyCalibrated

_LEAST_KAPPA = 1e-12  # a table may say that nothing errs; beside data without noise that would be 0/0


def gaussian_error(power: Tensor, t: float) -> Tensor:
    """r²(ν, t) = P t² / ((1 − t)² P + t²): the posterior variance of x_0 given x_t if the prior were
    Gaussian."""
    return power * t**2 / ((1 - t) ** 2 * power + t**2) if t else torch.zeros_like(power)


@attrs.frozen(eq=False)
class DenoisingError:
    """e(ν, t): the expected error of x̂_0 per Fourier coefficient.

    A Gaussian prior of the same power has r²(ν, t). A flow prior knows more, and its measured error per shell says by
    what factor κ(ν, t): e = min(κ r², P). Where only the error per voxel was measured, κ(t) gives e that mean; but
    networks err up to a hundred times more at the lowest frequencies than that says.
    """

    power: Tensor  # P on the half grid
    times: Tensor
    kappa: Tensor  # (k, n), radial tables
    box: Box

    @classmethod
    def of(cls, velocity: object, box: Box, like: Tensor) -> Self:
        """From a velocity field's statistics; of white data of unit power where it carries none."""
        real = torch.empty((), dtype=like.real.dtype, device=like.device)
        if not isinstance(velocity, Calibrated):
            return cls(real.new_ones(half_shape(box)), real.new_zeros(1), real.new_ones(1, 2), box)
        for name in ("signal_power", "denoising_error", "denoising_spectrum"):
            table = getattr(velocity, name, velocity.signal_power)
            if not table.isfinite().all() or not table.any():
                raise CapabilityError(f"{type(velocity).__name__} has a {name} that is not finite, or 0 everywhere")
        # P = 0 would make a frequency where nothing can be learnt; the floor keeps quotients finite.
        table = velocity.signal_power.to(real)
        table = table.clamp(min=1e-12 * float(table.max()))
        power = radial(table, box)
        if isinstance(velocity, SpectrallyCalibrated):
            times, error = velocity.denoising_spectrum.to(real).tensor_split([1], -1)
            P = torch.nn.functional.interpolate(table[None, None], error.shape[-1], mode="linear", align_corners=True)
            linear = torch.stack([gaussian_error(P[0, 0], float(t)) for t in times])
            return cls(power, times[:, 0].contiguous(), torch.where(linear > 0, error / linear, 1), box)
        times, measured = velocity.denoising_error.to(real).T.contiguous()
        weights = friedel_weights(box).to(real) / math.prod(box)
        linear = torch.stack([(weights * gaussian_error(power, float(t))).sum() for t in times])
        return cls(power, times, torch.where(linear > 0, measured / linear, 1)[:, None].expand(-1, 2), box)

    def __call__(self, t: float) -> Tensor:
        """e(ν, t) on the half grid."""
        at = int(torch.searchsorted(self.times, t).clamp(1, max(len(self.times) - 1, 1)))
        kappa = self.kappa[0]
        if len(self.times) > 1:
            t_0, t_1 = self.times[at - 1], self.times[at]
            kappa = torch.lerp(self.kappa[at - 1], self.kappa[at], ((t - t_0) / (t_1 - t_0)).clamp(0, 1))
        kappa = kappa.clamp(min=_LEAST_KAPPA)
        return torch.minimum(radial(kappa, self.box) * gaussian_error(self.power, t), self.power)
