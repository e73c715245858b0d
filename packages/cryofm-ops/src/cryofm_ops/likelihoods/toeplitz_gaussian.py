"""Any number of images of one volume, in one pass and in the memory of a few boxes.

Images at known poses enter a posterior through b = Aᵀ Σ⁻¹ y and H = Aᵀ Σ⁻¹ A alone. By the central-slice theorem a
coefficient of an image is Σ_v x(v) exp(−2πi k·v) at k = Rᵀ (f, 0), so H depends on the difference of two voxels only,

    H(v, v′) = T(v − v′),    T(d) = Σ w cos(2π k·d),    w = |CTF|² / (power of the noise),

and is a convolution, by FFTs of a box twice as wide (Fessler, Lee, Olafsson, Shi & Noll, IEEE Trans. Signal Process.
53, 2005). T and b are gridded by the Kaiser–Bessel kernel as in `FourierProjector`: three numbers per coefficient.

The posterior solves (1/V + H) x = μ/V + b. H is nearly diagonal in Fourier space, with what w is on average around
every coefficient: W(k), of T(d) Π (1 − |d|/n), the circulant matrix nearest to H (T. Chan, SIAM J. Sci. Stat. Comput.
9, 1988). Whitened by (1/V + W)^−½ it takes a few steps of conjugate gradients to solve, and of Lanczos to draw from.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Self

import attrs
import torch
from torch import Tensor

from cryofm_ops._checks import check_observation, check_variance
from cryofm_ops.errors import GridMismatchError, NoiseError, ObservationError
from cryofm_ops.fourier.grid import Shape, fourier_filter, friedel_weights, half_shape, rfft, standard_normal
from cryofm_ops.fourier.interpolation import scatter_columns_
from cryofm_ops.fourier.kernels import KaiserBessel
from cryofm_ops.likelihoods._conjugate_gradients import conjugate_gradients
from cryofm_ops.likelihoods._lanczos import inverse_root
from cryofm_ops.likelihoods._summable import Summable
from cryofm_ops.normal import Normal
from cryofm_ops.operators.projector import Projector, rays
from cryofm_ops.protocols import SpectralPower

__all__ = ["ToeplitzGaussian"]

_FINER = 4  # than the box's own is the grid: twice what T needs, which is twice as wide as the box
_KERNEL = KaiserBessel(_FINER / 2)
_MARGIN = 2  # grid points that the kernel needs beyond the last frequency
_SURE = 1e3  # 1 / the error of gridding one image, relative to its largest w; of many it averages out

_OF_A_DRAW, _PRODUCTS = 1e-3, 100  # to what tolerance a draw is made, and in how many steps at most


@attrs.frozen(eq=False)
class ToeplitzGaussian(Summable):
    """−2 log p(y | x) = xᵀ H x − 2 bᵀ x + yᵀ Σ⁻¹ y with a convolution H: `Likelihood`, `Conjugate`, `Testable`.

    What `gaussian_likelihood(projector, noise, images)` is, without the images: for thousands of them, at known poses.

    Attributes:
        spectrum: the transform of T on the half grid of a box of twice the shape, not normalised.
        data: b, `(z, y, x)`.
        energy: yᵀ Σ⁻¹ y.
        observations: how many numbers were observed.
        tolerance: conjugate gradients stop at this residual, relative to the right-hand side.
        max_iterations: a system that needs more raises `ConvergenceError`.

    >>> from cryofm_ops import FourierProjector, WhiteNoise, random_rotations
    >>> generator = torch.Generator().manual_seed(0)
    >>> def batches():  # as they are read
    ...     for _ in range(3):
    ...         project = FourierProjector(random_rotations(50, generator=generator), torch.zeros(50, 2), (8, 8, 8))
    ...         yield project, project(torch.nn.functional.pad(torch.ones(4, 4, 4), 6 * [2]))
    >>> images = ToeplitzGaussian.from_images(batches(), WhiteNoise(1.0), shape=(8, 8, 8))
    >>> posterior = images.condition(torch.zeros(8, 8, 8), 1.0)
    >>> images.observations // 64, f"{posterior.mean[4, 4, 4]:.1f}"
    (150, '1.0')
    """

    spectrum: Tensor
    data: Tensor
    energy: float = 0.0
    observations: int = 0
    tolerance: float = 1e-5
    max_iterations: int = 1000

    @classmethod
    def from_images(cls, batches: Iterable[tuple[Projector, Tensor]], noise: SpectralPower, *, shape: Shape) -> Self:
        """The likelihood of y = A x + n for images that come in batches, each with the projector that made it.

        Args:
            batches: projectors of K poses, with CTFs if there are any, and images `(K, y, x)`; of any number, and
                read once. Of a projector the poses and the CTF alone count.
            noise: of an image, whose power is that of a box (1, y, x), as of a CTF.
            shape: the box (z, y, x) of the volume.

        What of the volume lies outside of an image wraps into it here, and a frequency of which one component is
        Nyquist is left out. Raises `GridMismatchError`, `NoiseError` or `ObservationError` for parts that do not fit.
        """
        sums = _Sums(shape)
        for project, images in batches:
            sums.add(project, images, noise)
        return cls(*sums.equations(), sums.energy, sums.observations)

    def __attrs_post_init__(self) -> None:
        padded = half_shape(_twice(self.shape))
        if tuple(self.spectrum.shape) != padded:
            raise GridMismatchError(
                f"a box {self.shape} needs a spectrum on the half grid {padded}, got {tuple(self.spectrum.shape)}"
            )

    @property
    def shape(self) -> Shape:
        """The box (z, y, x)."""
        z, y, x = self.data.shape
        return z, y, x

    @property
    def dtype(self) -> torch.dtype:
        """That of the images."""
        return self.data.dtype

    def log_prob(self, x: Tensor, /) -> Tensor:
        """−½ (A x − y)ᵀ Σ⁻¹ (A x − y), `(*batch,)`, for x `(*batch, z, y, x)`."""
        return -0.5 * self.deviance(x)[0]

    def deviance(self, x: Tensor, /) -> tuple[Tensor, int]:
        """χ² = (A x − y)ᵀ Σ⁻¹ (A x − y), `(*batch,)`, and how many numbers were observed."""
        self._check_box(x)
        return (x * (self.normal(x) - 2 * self.data.to(x))).flatten(-3).sum(-1) + self.energy, self.observations

    def __add__(self, other: Any) -> Any:
        """With other images: both in one; with other data: `joint`."""
        if not isinstance(other, ToeplitzGaussian) or other.shape != self.shape:
            return super().__add__(other)
        return attrs.evolve(
            self,
            spectrum=self.spectrum + other.spectrum.to(self.spectrum),
            data=self.data + other.data.to(self.data),
            energy=self.energy + other.energy,
            observations=self.observations + other.observations,
        )

    def normal(self, x: Tensor, /) -> Tensor:
        """H x = Aᵀ Σ⁻¹ A x, `(*batch, z, y, x)`."""
        z, y, width = self.shape
        twice = _twice(self.shape)
        padded = torch.fft.rfftn(x, s=twice, dim=(-3, -2, -1)) * self.spectrum.to(x)
        made: Tensor = torch.fft.irfftn(padded, s=twice, dim=(-3, -2, -1))
        return made[..., :z, :y, :width]

    def condition(self, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """N(mean, variance) given the images; see `LinearGaussian.condition`."""
        self._check_box(mean)
        check_variance(variance, mean)
        with torch.autocast(mean.device.type, enabled=False):
            return self._condition(mean, variance)

    def _condition(self, mean: Tensor, variance: Tensor | float) -> Normal:
        w = self._nearest_circulant().to(mean)
        # Where nothing was measured H is 0 but for the error of gridding: no prior is so wide that this would count.
        images = max(1, self.observations / math.prod(self.shape[1:]))
        v = torch.as_tensor(variance, dtype=mean.dtype, device=mean.device)
        v = v.clamp(max=_SURE * math.sqrt(images) / float(w.max().clamp(min=torch.finfo(w.dtype).tiny)))
        left = 1 / (1 + v * w)  # of the prior's variance
        root = (v * left).sqrt()

        def prior(p: Tensor) -> Tensor:  # the two parts of S (1/V + H) S with S² = V / (1 + V W)
            return fourier_filter(p, left)

        def data(p: Tensor) -> Tensor:
            return fourier_filter(self.normal(fourier_filter(p, root)), root)

        def matrix(p: Tensor) -> Tensor:
            return prior(p) + data(p)

        def deviation(generator: torch.Generator) -> Tensor:
            with torch.autocast(mean.device.type, enabled=False):
                epsilon = standard_normal(mean, generator)
                return fourier_filter(inverse_root(prior, data, epsilon, _OF_A_DRAW, _PRODUCTS), root)

        r = fourier_filter(self.data.to(mean) - self.normal(mean), root)
        u = conjugate_gradients(matrix, r, mean.ndim - 3, self.tolerance, self.max_iterations)
        return Normal(mean + fourier_filter(u, root), deviation)

    def _nearest_circulant(self) -> Tensor:
        """W(k) on the half grid of the box."""
        t = torch.fft.irfftn(self.spectrum, s=_twice(self.shape))
        for axis, n in enumerate(self.shape):
            d = torch.arange(n, device=t.device).reshape([-1 if a == axis else 1 for a in range(3)]) / n
            t = (1 - d) * t.narrow(axis, 0, n) + d * t.narrow(axis, n, n)
        w: Tensor = torch.fft.rfftn(t).real.clamp(min=0)
        return w

    def _check_box(self, x: Tensor) -> None:
        if tuple(x.shape[-3:]) != self.shape:
            raise GridMismatchError(f"the data have box {self.shape}, got a volume of shape {tuple(x.shape)}")


def _twice(shape: Sequence[int]) -> Shape:
    z, y, x = shape
    return 2 * z, 2 * y, 2 * x


class _Sums:
    """What of the images is summed up: w and Aᵀ Σ⁻¹ y, on a Fourier grid that holds half of the frequencies kx."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        mz, my, mx = (_FINER * n for n in shape)
        self.size = (2 * (mz // 2 + _MARGIN) + 1, 2 * (my // 2 + _MARGIN) + 1, mx // 2 + 2 * _MARGIN + 1)
        self.grids: Tensor | None = None  # w, and the real and imaginary part of what is projected back; float64
        self.dtype = torch.float32
        self.energy, self.observations = 0.0, 0

    def add(self, project: Projector, images: Tensor, noise: SpectralPower) -> None:
        """One batch of images."""
        check_observation(None, None, images)
        poses = project.rotations.shape[-3]
        expected = (poses, *self.shape[1:])
        if project.rotations.ndim != 3 or tuple(project.shape) != self.shape or images.shape != expected:
            raise GridMismatchError(
                f"a projector of {poses} poses and box {project.shape} with images of shape {tuple(images.shape)}; "
                f"a volume {self.shape} needs (K, 3, 3) rotations and images {expected}"
            )
        _, height, width = self.shape
        power = noise.power((1, height, width)).to(images)
        if not (power > 0).all():
            raise NoiseError("images without noise at some frequencies have no precision")
        y = rfft(images[:, None])
        weight = (friedel_weights(self.shape, device=images.device).to(images) / power).expand_as(y).clone()
        self.energy += float((weight * y.abs().square()).sum(dtype=torch.float64))
        self.observations += images.numel()
        self.dtype = images.dtype
        for axis, n in ((-2, height), (-1, width)):
            if n % 2 == 0:  # a component at Nyquist is k and −k at once, which a shift moves apart
                weight.select(axis, n // 2).fill_(0)
        ctf = torch.ones_like(y.real) if project.ctf is None else project.ctf.transfer((1, height, width))
        ctf = ctf.to(y if ctf.is_complex() else y.real)
        fy, fx = torch.fft.fftfreq(height).to(images), torch.fft.rfftfreq(width).to(images)
        # The origin is pixel n // 2 moved by minus the shift.
        sx, sy = project.shifts_px.to(images)[..., None, None, None].unbind(1)
        phase = 2 * math.pi * (fy[:, None] * (height // 2 - sy) + fx * (width // 2 - sx))
        back = weight * ctf.conj() * y * torch.polar(torch.ones_like(phase), phase)
        w = (weight * ctf.abs().square()).expand_as(back) / (height * width)
        self._spread(w.flatten(), back.flatten() / math.sqrt(height * width), project.rotations.to(images), fy, fx)

    def _spread(self, w: Tensor, back: Tensor, rotations: Tensor, fy: Tensor, fx: Tensor) -> None:
        k = rays(rotations, fx[None], fy[None], fx.new_zeros(1, 1)).flatten(0, 1)  # (x, y, z), cycles/voxel
        used = ((k.abs() <= 0.5 + 1e-6).all(-1) & (w > 0)).nonzero()[:, 0]  # the volume has nothing beyond Nyquist
        k, w, back = k[used], w[used], back[used]
        mirrored = k[:, 0] < 0
        k, back = torch.where(mirrored[:, None], -k, k), torch.where(mirrored, back.conj(), back)
        mz, my, mx = (_FINER * n for n in self.shape)
        origin = torch.tensor([_MARGIN, my // 2 + _MARGIN, mz // 2 + _MARGIN])
        points = k * torch.tensor([mx, my, mz]).to(k) + origin.to(k)
        if self.grids is None:
            self.grids = torch.zeros(3, *self.size, dtype=torch.float64, device=w.device)
        scatter_columns_(self.grids, torch.stack((w, back.real, back.imag)), points, _KERNEL)

    def equations(self) -> tuple[Tensor, Tensor]:
        """The spectrum of T, and b."""
        if self.grids is None:
            raise ObservationError("there are no images: batches is empty")
        w, *back = self.grids
        t = self._at(w.to(torch.complex128), [torch.fft.fftfreq(2 * n, 1 / (2 * n)) for n in self.shape])
        b = self._at(torch.complex(*back), [torch.arange(n) - n // 2 for n in self.shape])
        return torch.fft.rfftn(t).real.to(self.dtype), b.to(self.dtype)

    def _at(self, grid: Tensor, places: Sequence[Tensor]) -> Tensor:
        """The real part of Σ grid(k) exp(2πi k·v) at places v along z, y and x, over the kernel's transform."""
        matrices = []
        for axis, (n, v) in enumerate(zip(self.shape, places, strict=True)):
            h = _FINER * n // 2 + _MARGIN
            k = torch.arange(-_MARGIN if axis == 2 else -h, h + 1, dtype=torch.float64, device=grid.device)
            v = v.to(k) / (_FINER * n)
            matrices.append(torch.polar(1 / _KERNEL.transform(v)[:, None], 2 * math.pi * v[:, None] * k))
        z, y, x = matrices
        part = y @ torch.einsum("zZ,ZYX->zYX", z, grid)
        return part.real @ x.real.mT - part.imag @ x.imag.mT
