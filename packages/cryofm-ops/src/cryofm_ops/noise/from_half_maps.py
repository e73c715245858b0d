"""Noise power from two half maps (paper D.1), per shell.

With half i = s + n_i and the FSC F of the two, the noise of ONE half has power N = (1 − F) T and the signal
F T, where T is the mean of the two shell-mean powers. (The paper's ‖ỹ(ν)‖² must be a shell MEAN; the average
of the halves has noise N/2.) F is clamped to [0, 1 − 1e-6].

The mean of |ỹ1 − ỹ2|²/2 estimates N as well, without F. On synthetic 32³ halves (200 runs, signal-to-noise
500 down to 0.01) both routes spread alike (34 % in shell 1, 5 % in shell 8, 3 % in shell 16); the difference
is unbiased, F is 0.5 % low on average over the shells, and 4 % in shell 1. But where one half is 10 % larger,
the difference takes signal for noise (+220 % in shell 1) and F does not (+6 %; the mean of the true noises of
the two halves is at +10 %). So F is the default, and the difference the check.
"""

import math
import warnings

import attrs
import torch
from torch import Tensor

from cryofm_ops._checks import check_observation
from cryofm_ops.errors import GridMismatchError, HalfMapError
from cryofm_ops.fourier.grid import cross_power, radial_mean, shell_sizes

__all__ = ["NoiseEstimate", "estimate_noise_power"]

_MAX_FSC = 1 - 1e-6
_TOLERANCE = 0.10  # by which the two routes may differ over the shells with F > 0.5
_SLAB = 16  # sections that are transformed at a time
_SCALE_TOLERANCE = 0.05  # by which the scales of the halves may differ, beyond three standard errors


@attrs.frozen(eq=False)
class NoiseEstimate:
    """Radial tables `(n,)`, n = max(shape) // 2 + 1, in squared units of the data (see `radial`).

    Attributes:
        noise_power: of ONE half map; the average of the two halves has half of it. Positive. Shell 0, a
            single coefficient, takes the value of shell 1.
        signal_power: of the signal that the halves share; 0 where F was not positive.
        fsc: F as found, before clamping.
        difference_power: the mean of |ỹ1 − ỹ2|²/2, the same noise by the other route.
        clamped_shells: the shells whose F was outside [0, 1 − 1e-6].
    """

    noise_power: Tensor
    signal_power: Tensor
    fsc: Tensor
    difference_power: Tensor
    clamped_shells: tuple[int, ...]


def estimate_noise_power(half1: Tensor, half2: Tensor, *, allow_masked: bool = False) -> NoiseEstimate:
    """Noise and signal power of two independent half maps.

    Args:
        half1: `(z, y, x)`, raw: neither masked nor filtered.
        half2: the same grid.
        allow_masked: estimate from masked or filtered halves too. The noise then comes out too low.

    Raises:
        GridMismatchError: the halves are not two volumes of one shape.
        ObservationError: values that are not finite.
        HalfMapError: equal or constant halves; masked or filtered ones unless allowed.

    Warns when the two routes differ by more than 10 % over the shells with F > 0.5, or the scales of the
    halves by more than 5 % and three standard errors.

    >>> halves = torch.randn(2, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> estimate = estimate_noise_power(*halves)
    >>> estimate.noise_power.shape, bool((estimate.noise_power[4:] - 1).abs().max() < 0.2)
    (torch.Size([17]), True)
    """
    _check_halves(half1, half2, allow_masked)
    z, y, x = half1.shape
    shape = (z, y, x)
    y1, y2 = _spectrum(half1), _spectrum(half2)
    power1, power2, cross = (radial_mean(cross_power(a, b), shape) for a, b in ((y1, y1), (y2, y2), (y1, y2)))
    total = (power1 + power2) / 2  # T
    floor = 1e-12 * total.max()  # a shell that a filter emptied: F = 0/0 becomes 0
    fsc = torch.where(total > floor, cross / (power1 * power2).sqrt().clamp(min=floor), 0)
    if not allow_masked and (fsc[-1] > 0.999 or total[-1] <= floor):
        raise HalfMapError(
            f"the halves look filtered: at Nyquist their FSC is {fsc[-1]:.4f} and their power "
            f"{total[-1] / total.max():.1e} of the largest; give the raw half maps"
        )
    clamped = fsc.clamp(0, _MAX_FSC)
    noise, signal = ((1 - clamped) * total).clamp(min=floor), clamped * total
    noise[0] = noise[1]  # shell 0 is one coefficient, whose F is ±1, and any offset between the halves
    signal[0] = (total[0] - noise[0]).clamp(min=0)
    difference = ((power1 + power2) / 2 - cross).clamp(min=0)
    sizes = shell_sizes(shape, device=total.device)
    _compare_routes(noise, difference, clamped, (power2 / power1).log(), sizes)
    return NoiseEstimate(
        noise_power=noise.to(half1.dtype),
        signal_power=signal.to(half1.dtype),
        fsc=fsc.to(half1.dtype),
        difference_power=difference.to(half1.dtype),
        clamped_shells=tuple((fsc != clamped)[1:].nonzero().add(1).flatten().tolist()),
    )


def _spectrum(half: Tensor) -> Tensor:
    """`rfft` in double precision, slab by slab: of large halves whole copies would be a run's peak of memory."""
    spectrum = torch.cat([torch.fft.rfft(sections.double(), norm="ortho") for sections in torch.split(half, _SLAB)])
    for first in range(0, spectrum.shape[-1], _SLAB):
        columns = slice(first, first + _SLAB)
        spectrum[..., columns] = torch.fft.fftn(spectrum[..., columns], dim=(-3, -2), norm="ortho")
    return spectrum


def _check_halves(half1: Tensor, half2: Tensor, allow_masked: bool) -> None:
    if half1.ndim != 3 or half1.shape != half2.shape:
        raise GridMismatchError(
            f"two half maps must be volumes of one shape, got {tuple(half1.shape)} and {tuple(half2.shape)}"
        )
    for half in (half1, half2):
        check_observation(None, None, half)
        if (half == half[0, 0, 0]).all():
            raise HalfMapError(f"a half map is constant ({half[0, 0, 0]}): noise cannot be estimated")
    if torch.equal(half1, half2):
        raise HalfMapError("the halves are equal: noise cannot be estimated; give two different half maps")
    zeros = float(((half1 == 0) & (half2 == 0)).double().mean())
    if zeros > 0.1 and not allow_masked:
        raise HalfMapError(f"the halves look masked: {zeros:.0%} of the voxels are 0 in both; give the raw half maps")


def _compare_routes(noise: Tensor, difference: Tensor, fsc: Tensor, log_ratio: Tensor, size: Tensor) -> None:
    signal = fsc > 0.5
    signal[0] = False
    if not signal.any():
        return
    size = size[signal]
    excess = float((size * difference[signal]).sum() / (size * noise[signal]).sum()) - 1
    weight = size / (1 - fsc[signal] ** 2)  # 4 / the variance of the log ratio of two powers of correlation F
    log_scale = float((weight * log_ratio[signal]).sum() / weight.sum()) / 2
    error = float(weight.sum()) ** -0.5
    if excess > _TOLERANCE or abs(log_scale) > math.log1p(_SCALE_TOLERANCE) + 3 * error:
        warnings.warn(
            f"the scales of the half maps differ: half 2 is {math.exp(log_scale):.3f} times half 1, "
            f"and the noise from their difference exceeds that from their FSC by {excess:.0%}; bring both to one scale",
            stacklevel=3,
        )
