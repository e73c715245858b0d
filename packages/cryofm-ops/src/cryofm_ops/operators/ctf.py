"""The contrast transfer function of an electron microscope (Rohou & Grigorieff, J. Struct. Biol. 2015, eqs. 2-6).

With k in 1/Å and underfocus positive,

    χ(k) = π λ Δf(θ) k² − π/2 Cs λ³ k⁴ + φ + arcsin(w),    CTF = sin χ,

w the amplitude contrast, φ the phase shift of a phase plate. The sign is RELION's for data in which protein is
positive (white): positive at the origin. It is the opposite of that paper's, whose protein is dark.
"""

import math
from typing import Any

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import OperatorError
from cryofm_ops.fourier.grid import Shape
from cryofm_ops.operators.fourier import FourierOperator

__all__ = ["CTF"]

# CODATA 2022, SI units
_PLANCK, _ELECTRON_MASS = 6.62607015e-34, 9.1093837139e-31
_CHARGE, _LIGHT_SPEED = 1.602176634e-19, 299792458.0


def _check(_: object, field: "attrs.Attribute[Any]", value: float | Tensor) -> None:
    low, high = field.metadata.get("range", (-math.inf, math.inf))
    values = torch.as_tensor(value)
    wrong = ~(values.isfinite() & (values >= low) & (values <= high))
    if wrong.any():
        limits = "" if math.isinf(low) else f", {low:.3g} to {high:.3g}"
        raise OperatorError(f"{field.name} of a CTF must be finite{limits}, got {values[wrong][0].item()}")


@attrs.frozen(eq=False, kw_only=True)
class CTF(FourierOperator):
    """Multiplication by a CTF with astigmatism.

    Every field but the voxel size is a number, or a tensor `(*batch,)` for a stack of images of which each has
    its own CTF. Images are boxes with z = 1: a stack `(batch, y, x)` is `images[:, None]`. In a volume Δf at
    right angles to the image plane is the mean defocus.

    Attributes:
        defocus_u_angstrom: along the axis of `defocus_angle_deg`; underfocus is positive.
        defocus_v_angstrom: at right angles to it; as `defocus_u_angstrom` unless given.
        defocus_angle_deg: from the x axis towards the y axis.
        voltage_kv: of acceleration.
        spherical_aberration_mm: Cs.
        amplitude_contrast: w, 0 to 1.
        phase_shift_deg: φ.
        voxel_size_angstrom: of the images or volumes.

    Raises `OperatorError` for values out of range.

    >>> ctf = CTF(defocus_u_angstrom=torch.tensor([8000.0, 12000.0]), voxel_size_angstrom=1.5)
    >>> ctf.transfer((1, 64, 64)).shape, ctf(torch.zeros(2, 1, 64, 64)).shape
    (torch.Size([2, 1, 64, 33]), torch.Size([2, 1, 64, 64]))
    """

    defocus_u_angstrom: float | Tensor = attrs.field(validator=_check)
    defocus_v_angstrom: float | Tensor = attrs.field(
        default=attrs.Factory(lambda self: self.defocus_u_angstrom, takes_self=True), validator=_check
    )
    defocus_angle_deg: float | Tensor = attrs.field(default=0.0, validator=_check)
    voltage_kv: float | Tensor = attrs.field(default=300.0, validator=_check, metadata={"range": (1.0, 1e4)})
    spherical_aberration_mm: float | Tensor = attrs.field(default=2.7, validator=_check)
    amplitude_contrast: float | Tensor = attrs.field(default=0.1, validator=_check, metadata={"range": (0.0, 1.0)})
    phase_shift_deg: float | Tensor = attrs.field(default=0.0, validator=_check)
    voxel_size_angstrom: float = attrs.field(converter=float, validator=_check, metadata={"range": (1e-2, 1e3)})

    @property
    def wavelength_angstrom(self) -> Tensor:
        """λ of the electrons, relativistic: 0.0197 Å at 300 kV."""
        energy = _CHARGE * 1e3 * torch.as_tensor(self.voltage_kv, dtype=torch.float64)  # J
        momentum = (2 * _ELECTRON_MASS * energy + (energy / _LIGHT_SPEED) ** 2).sqrt()
        wavelength: Tensor = 1e10 * _PLANCK / momentum
        return wavelength

    def transfer(self, shape: Shape, /) -> Tensor:
        """Values of sin χ on the half grid of `shape`, `(*batch, z, y, x // 2 + 1)`, float64."""
        u, v, angle, cs, w, phase, wavelength = (
            torch.as_tensor(value, dtype=torch.float64)[..., None, None, None]
            for value in (
                self.defocus_u_angstrom,
                self.defocus_v_angstrom,
                self.defocus_angle_deg,
                1e7 * self.spherical_aberration_mm,
                self.amplitude_contrast,
                self.phase_shift_deg,
                self.wavelength_angstrom,
            )
        )
        depth, height, width = shape
        device, step = (u + v + angle + cs + w + phase + wavelength).device, self.voxel_size_angstrom
        kz = torch.fft.fftfreq(depth, step, dtype=torch.float64, device=device)[:, None, None]
        ky = torch.fft.fftfreq(height, step, dtype=torch.float64, device=device)[:, None]
        kx = torch.fft.rfftfreq(width, step, dtype=torch.float64, device=device)
        # At Nyquist a component has both signs, so the product of two averages to 0, as a real A needs.
        nyquist = 0.5 / step * (1 - 1e-9)  # of an even axis, but for rounding
        cross = torch.where((ky.abs() >= nyquist) | (kx >= nyquist), 0, kx * ky)
        # Δf(θ) k² = u k_u² + v k_v² in the plane, with k_u² and k_v² written out
        twice = 2 * torch.deg2rad(angle)
        mean, half_difference = (u + v) / 2, (u - v) / 2
        k2 = kx**2 + ky**2 + kz**2
        astigmatism = half_difference * (twice.cos() * (kx**2 - ky**2) + twice.sin() * 2 * cross)
        chi = math.pi * wavelength * (mean * k2 + astigmatism)
        chi = chi - math.pi / 2 * cs * wavelength**3 * k2**2
        return torch.sin(chi + torch.deg2rad(phase) + w.asin())
