"""Images at uncertain poses, on the frequencies that they resolve: conditioning on them, and moving their poses.

Everything is a number of Fourier coefficients per image. What an image and the projection of a model may differ by is
its noise and, as poses and interpolation are never exact, a small part of the images' own power.
"""

from collections.abc import Sequence
from typing import Self

import attrs
import torch
from torch import Tensor

from cryofm_ops._checks import check_finite
from cryofm_ops.errors import GeometryError, ObservationError
from cryofm_ops.likelihoods.linear_gaussian import LinearGaussian
from cryofm_ops.operators.fourier import transfer_for
from cryofm_ops.operators.slices import FourierSlices
from cryofm_ops.poses._central_slices import CentralSlices, band
from cryofm_ops.poses._drawing import draw
from cryofm_ops.poses._refinement import refine
from cryofm_ops.protocols import FourierMultiplier

__all__ = ["ImagesInBand"]


@attrs.frozen(eq=False)
class _BandNoise:
    """Noise of independent complex coefficients, given as real and imaginary parts `(..., m, 2)`. A `Noise`."""

    variance: Tensor  # E|n|² of a coefficient, broadcasts to (..., m)

    def sample(self, y: Tensor, /, *, generator: torch.Generator) -> Tensor:
        n = torch.randn(y.shape, generator=generator, dtype=y.dtype, device=generator.device)
        return y + (self.variance / 2).sqrt()[..., None] * n.to(y)

    def precision(self, r: Tensor, /) -> Tensor:
        return r * (2 / self.variance)[..., None]


@attrs.frozen(eq=False)
class ImagesInBand:
    """K images of one object, in Fourier space.

    Attributes:
        spectra: their transforms about pixel n // 2, not normalised, `(K, m)`, or for each volume `(C, K, m)`.
        k: the frequencies, one of each pair k and −k, in units of 1/n, `(m, 2)`.
        n: side of the images.
        noise: E|n|² of the coefficients, with the model's error, likewise.
        ctf: real, what the projections' coefficients were multiplied by, `(K, m)`.
        symmetry: rotations `(G, 3, 3)` of the object's point group; every image shows it from G sides.
    """

    spectra: Tensor
    k: Tensor
    n: int
    noise: Tensor
    ctf: Tensor
    symmetry: Tensor | None = None

    @classmethod
    def of(
        cls,
        images: Tensor,
        radius: int,
        noise: Tensor,
        *,
        model_error: float = 0.02,
        symmetry: Tensor | None = None,
        ctf: FourierMultiplier | None = None,
        transfer: Tensor | None = None,
    ) -> Self:
        """From images `(K, n, n)`.

        Args:
            images: real.
            radius: highest frequency, in units of 1/n.
            noise: power of the images' noise at the frequencies 1, 2, …, radius of the transform, not normalised;
                `(radius,)`, or of each image `(K, radius)`.
            model_error: part of the images' power, ring by ring, by which projections may differ from them.
            symmetry: see the attribute.
            ctf: what the microscope did to the projections, taken as boxes (1, n, n), as in `search_poses`.
            transfer: what else the projections were multiplied by, ring by ring, `(K, radius)`.
        """
        n = images.shape[-1]
        if images.ndim != 3 or images.shape[-2] != n or not 0 < radius < n / 2:
            raise GeometryError(
                f"images must be square, (K, n, n), with the radius below n / 2, got {tuple(images.shape)} and {radius}"
            )
        check_finite(images, "the images have")
        if blank := [i for i, image in enumerate(images) if not image.any()]:
            raise ObservationError(f"images {blank} are 0 everywhere")
        k = band(radius, images.device)
        spectra: Tensor = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))[..., k[:, 1], k[:, 0]]
        multiplied = torch.ones_like(spectra.real)
        if ctf is not None:
            multiplied = multiplied * transfer_for(ctf, images[:, None])[..., 0, k[:, 1], k[:, 0]]
        ring = k.to(images).norm(dim=-1).round().long().clamp(max=radius) - 1
        power = images.new_zeros(radius).index_add(0, ring, spectra.abs().square().mean(0))
        power = power / torch.bincount(ring, minlength=radius)
        part = torch.ones_like(power)
        if transfer is not None:
            multiplied = multiplied * transfer.to(images)[:, ring]
            part = transfer.to(images).square()
            part = part / part.mean(0)
        total = noise.to(images) + model_error * part * power + 1e-9 * power.max()
        return cls(spectra, k.to(images), n, total[..., ring].expand(len(images), -1), multiplied, symmetry)

    def at(self, rotations: Tensor, shifts_px: Tensor) -> LinearGaussian:
        """The likelihood of C volumes at poses `(C, K, 3, 3)` and `(C, K, 2)`."""
        spectra, noise, ctf = self.spectra, self.noise, self.ctf
        if self.symmetry is not None:  # G views of each image, which say once what is theirs
            group = self.symmetry.to(rotations)
            rotations = (rotations[:, :, None] @ group).flatten(1, 2)
            shifts_px, spectra, noise, ctf = (
                part.repeat_interleave(len(group), -2) for part in (shifts_px, spectra, len(group) * noise, ctf)
            )
        operator = FourierSlices(rotations, shifts_px, self.k, self.n, ctf)
        return LinearGaussian(operator, _BandNoise(noise), torch.view_as_real(spectra), tolerance=0.03)

    def refined(
        self, x: Tensor, error: Tensor, rotations: Tensor, shifts_px: Tensor, max_shift_px: float, iterations: int = 3
    ) -> tuple[Tensor, Tensor]:
        """The poses `(C, K, 3, 3)`, `(C, K, 2)` moved towards where the images agree best with the volumes.

        Args:
            x: volumes `(C, n, n, n)`.
            error: E|x̃ − truth|² of the volumes' coefficients at the frequencies k, orthonormal, `(m,)`.
            rotations: to begin with.
            shifts_px: likewise.
            max_shift_px: along each axis.
            iterations: Gauss–Newton steps.
        """
        weight = self._precision(error).sqrt()
        y = self.spectra * weight
        y = (y / y.norm(dim=-1, keepdim=True)).expand(len(x), -1, -1)
        weight = (self.ctf * weight).expand(len(x), -1, -1).to(y)
        radius, k = int(self.k.abs().max()), self.k.long()
        found = [
            refine(CentralSlices.of(v, radius), y_v, w, k, self.n, R[:, None], s[:, None], max_shift_px, iterations)
            for v, y_v, w, R, s in zip(x, y, weight, rotations, shifts_px, strict=True)
        ]
        return torch.stack([f[0][:, 0] for f in found]), torch.stack([f[1][:, 0] for f in found])

    def drawn(
        self, x: Tensor, error: Tensor, shifts_px: Tensor, max_shift_px: float, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """Poses `(C, K, 3, 3)`, `(C, K, 2)` drawn from what the images say of them, given the volumes.

        Args:
            x: volumes `(C, n, n, n)`, on the scale of the images.
            error: see `refined`.
            shifts_px: at which rotations are drawn, before the shifts are.
            max_shift_px: along each axis.
            generators: one for each volume.
        """
        precision = self._precision(error).expand(len(x), -1, -1)
        spectra = self.spectra.expand(len(x), -1, -1)
        radius, k = int(self.k.abs().max()), self.k.long()
        found = [
            draw(CentralSlices.of(v, radius), y, self.ctf, w, k, self.n, s, max_shift_px, generator)
            for v, y, w, s, generator in zip(x, spectra, precision, shifts_px, generators, strict=True)
        ]
        return torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])

    def _precision(self, error: Tensor) -> Tensor:
        """Of what a coefficient and that of a volume's projection differ by, `(K, m)`, or `(C, K, m)`."""
        return (self.n**3 * self.ctf**2 * error + self.noise).reciprocal()

    def fitting_scale(self, x: Tensor, rotations: Tensor, shifts_px: Tensor) -> Tensor:
        """By what the images must be multiplied to be projections of volumes, `(C,)`: Σ |A x|² / Σ ⟨A x, y⟩."""
        p = FourierSlices(rotations, shifts_px, self.k, self.n, self.ctf)(x) / self.noise.sqrt()[..., None]
        y = torch.view_as_real(self.spectra) / self.noise.sqrt()[..., None]
        return p.square().sum((-3, -2, -1)) / (p * y).sum((-3, -2, -1))

    def scaled(self, factor: Tensor) -> Self:
        """The same images times a factor for each of C volumes, `(C,)`: spectra and noise become `(C, K, m)`."""
        f = factor[:, None, None]
        return attrs.evolve(self, spectra=f * self.spectra, noise=f**2 * self.noise)

    def misfit(self, x: Tensor, rotations: Tensor, shifts_px: Tensor) -> Tensor:
        """Σ |A x − y|² / Σ |y|² of each volume, `(C,)`."""
        y = torch.view_as_real(self.spectra)
        r = FourierSlices(rotations, shifts_px, self.k, self.n, self.ctf)(x) - y
        return r.square().sum((-3, -2, -1)) / y.square().sum((-3, -2, -1))
