"""α, the dependence of the noise on direction, from two half maps (the α of paper D.2); and their conical FSC.

In each shell the halves are brought to one power, y₁ → a y₁ and y₂ → y₂ / a with a⁴ = Σ|y₂|² / Σ|y₁|²; then
x = |a y₁ − y₂ / a|² / 2 over its mean in the shell is, whatever the signal, the noise of a coefficient relative to
its shell. α(u) is the mean of x in the double cone about u over all shells, every coefficient counting once.

Measured on halves of 32³ (48³), smooth and wedge-like α, signal-to-noise 10, 1 and 0.1, against the cone's own mean
of α: an error of 4–5 % (2–3 %), which is the standard error, and no bias above 1 %. The plain difference is as good
while the halves share their scale, but errs by 8 % where one is 30 % larger (signal-to-noise 10). (1 − F) T in each
cone and shell, as in D.1, is 1–4 % low, since F is high in small samples and clamped: it is the check.

A cone blurs: no α comes out sharper than its half-angle, and good directions beside noisy ones suffer most. Over the
sphere at 48³, α = 1 + 3z² has an rms error of 7 % with cones of 20° (5 % with 10°), a constant one 2 % (4 %); a wedge
of ±45° with α = 1 and 9 is wrong by more than half on 27 % (14 %) of the sphere, along its edge, and by 19 % (6 %) in
the median. Tried and left: deconvolution (Richardson–Lucy), which helps an edge less than a narrower cone does, and the
mean of log x, which helps where α spans decades, is noisier, and no better at a wedge or a cone. Where the wedge or the
poses are known, give `wedge_alpha` or `alpha_from_poses` to the noise instead.
"""

import math
import warnings

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import GeometryError
from cryofm_ops.fourier.directions import DirectionTable, directions, hemisphere
from cryofm_ops.fourier.grid import Shape, rfft, shells
from cryofm_ops.noise.from_half_maps import estimate_noise_power

__all__ = ["AlphaEstimate", "estimate_alpha"]

_MAX_FSC = 1 - 1e-6
_LOW_CFAR = 0.5
_SPACING = 0.6  # of the directions, in half-angles of the cone


@attrs.frozen(eq=False)
class AlphaEstimate:
    """α on n directions, and the FSC in the cones about them.

    Attributes:
        alpha_variance: α, a factor on the VARIANCE, with mean 1 over the directions.
        standard_error: of its values, `(n,)`; neighbouring cones overlap, so their errors are correlated.
        fsc_route: its values by (1 − F) T of each cone and shell, `(n,)`, the check.
        conical_fsc: `(n, max(shape) // 2 + 1)`; NaN where a cone has no coefficient of a shell.
            (Diebolder et al., J. Struct. Biol. 190, 215, 2015.)
        cfar: smallest over largest area under the conical FSC, over the shells that every cone has; 1 is isotropic
            (cryoSPARC's "conical FSC area ratio").
    """

    alpha_variance: DirectionTable
    standard_error: Tensor
    fsc_route: Tensor
    conical_fsc: Tensor
    cfar: float


def estimate_alpha(
    half1: Tensor, half2: Tensor, *, half_angle_deg: float = 20.0, allow_masked: bool = False
) -> AlphaEstimate:
    """How the noise of the half maps depends on direction.

    Args:
        half1: `(z, y, x)`, raw: neither masked nor filtered.
        half2: the same grid.
        half_angle_deg: of the cones, 5 to 45; half of it is half the blur, twice the standard error, and four
            times the time.
        allow_masked: see `estimate_noise_power`.

    Raises:
        GeometryError: an impossible half-angle, or one too small for the box.
        GridMismatchError, ObservationError, HalfMapError: see `estimate_noise_power`.

    Warns as `estimate_noise_power` does, and of a cFAR below 0.5 (by three standard errors).

    >>> halves = torch.randn(2, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> estimate = estimate_alpha(*halves)
    >>> bool((estimate.alpha_variance.values - 1).abs().max() < 5 * estimate.standard_error.mean())
    True
    """
    if not 5 <= half_angle_deg <= 45:
        raise GeometryError(f"half_angle_deg must be between 5 and 45, got {half_angle_deg}")
    estimate_noise_power(half1, half2, allow_masked=allow_masked)  # for its errors and warnings
    z, y, x = half1.shape
    angle = math.radians(half_angle_deg)
    u = hemisphere(round(2 * math.pi / (_SPACING * angle) ** 2), device=half1.device)
    count, power1, power2, cross, noise, squared = _cone_sums(half1.double(), half2.double(), (z, y, x), u, angle)

    total = count.sum(1)
    alpha, error = noise.sum(1) / total, squared.sum(1).sqrt() / total
    fsc = torch.where(count > 0, cross / (power1 * power2).sqrt(), torch.nan)
    by_fsc = ((1 - fsc.clamp(0, _MAX_FSC)) * (power1 + power2) / 2).nansum(1) / total
    common = (count > 0).all(0)
    if not common.any():
        raise GeometryError(
            f"a box of {tuple(half1.shape)} has no shell with coefficients in every cone of {half_angle_deg} degrees: "
            f"give a larger half_angle_deg"
        )
    area = fsc[:, common].mean(1).clamp(min=0)
    cfar = float(area.min() / area.max()) if area.max() > 0 else 0.0
    area_error = float((1 / count[:, common]).sum(1).sqrt().max()) / int(common.sum())
    if cfar < _LOW_CFAR and area.min() + 3 * area_error < _LOW_CFAR * area.max():
        warnings.warn(
            f"the half maps agree unequally well in different directions: cFAR {cfar:.2f}; "
            f"some orientations are probably missing",
            stacklevel=2,
        )
    spacing_deg = _SPACING * half_angle_deg
    mean = alpha.mean()
    return AlphaEstimate(
        alpha_variance=DirectionTable(u.to(half1.dtype), (alpha / mean).to(half1.dtype), spacing_deg / 2),
        standard_error=(error / mean).to(half1.dtype),
        fsc_route=(by_fsc / mean).to(half1.dtype),
        conical_fsc=fsc.to(half1.dtype),
        cfar=cfar,
    )


def _cone_sums(half1: Tensor, half2: Tensor, shape: Shape, u: Tensor, angle: float) -> Tensor:
    """Sums over (cone, shell) of 1, |a y₁|², |y₂ / a|², Re a y₁ (y₂ / a)*, x and x²; powers over the shell's noise."""
    n, shell, weight = shells(shape, None, half1.device)
    size = weight.new_zeros(n + 1).index_add(0, shell, weight)

    def shell_mean(q: Tensor) -> Tensor:
        return (q.new_zeros(n + 1).index_add(0, shell, q * weight) / size)[shell]

    y1, y2 = rfft(half1).flatten(), rfft(half2).flatten()
    a = (shell_mean(y2.abs() ** 2) / shell_mean(y1.abs() ** 2)) ** 0.25
    a = torch.where(a.isfinite() & (a > 0), a, 1)
    y1, y2 = a * y1, y2 / a
    x = (y1 - y2).abs() ** 2 / 2
    h = shell_mean(x)
    present = (h > 1e-12 * h.max()) & (shell > 0)  # empty shells tell nothing, the constant term has no direction
    q = torch.stack([torch.ones_like(h), y1.abs() ** 2 / h, y2.abs() ** 2 / h, (y1 * y2.conj()).real / h, x / h])
    q = torch.cat([q, q[-1:] ** 2]).where(present, 0) * weight
    d, cosine = directions(shape, device=half1.device).flatten(0, 2), math.cos(angle)
    sums = []
    for axis in u:
        cone = ((d @ axis).abs() >= cosine).nonzero().squeeze(1)
        sums.append(q.new_zeros(len(q), n + 1).index_add(1, shell[cone], q[:, cone])[:, :n])
    return torch.stack(sums, 1)
