"""A Gaussian field in a ball, seen in slices: what some images of it say of another one at any pose.

The field is that of `pose_log_evidence`, of which spheres at the radii 1..r are kept. In real spherical harmonics it is
g(p) = Σ_lm Y_lm(p/|p|) Σ_q F_l[|p|, q] x_lmq with independent x of variance 1 and F_l F_lᵀ = √S w_l √S, where
w_l(p, q) = 12π ∫₀¹ j_l(κpu) j_l(κqu) u² du is what is left of the ball's kernel at degree l, κ = 2πρ/n. As objects are
real, the real part of slices has even degrees only, the imaginary part odd ones, and both are independent.

A slice is written in Fourier series along its rings, z_m e^{imφ}: an image that is turned in its plane by ψ has
z_m e^{imψ}, so that all in-plane angles cost one factorisation. Of each m as many combinations of rings are kept as
hold signal.
"""

import math

import attrs
import torch
from torch import Tensor

__all__ = ["Coefficients", "Field", "harmonics"]

_KEPT_OF_FIELD, _KEPT_OF_IMAGE = 1.0, 0.1  # variances of what is kept, whitened; a harmonic's square is 1/(4π)
_NODES = 60


def harmonics(u: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics of unit vectors `(..., 3)`, those of mean square 1/(4π), `(..., (degree + 1)²)`."""
    x, y, z = u.unbind(-1)
    # P̄_l^m sin^−m by the usual recursions, times sin^m cos or sin mφ, which are polynomials in x and y
    cos, sin = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(degree):
        c, s = cos[-1], sin[-1]
        cos.append(x * c - y * s)
        sin.append(x * s + y * c)
    P: dict[tuple[int, int], Tensor] = {}
    for m in range(degree + 1):
        P[m, m] = (
            torch.full_like(x, math.sqrt(1 / (4 * math.pi)))
            if m == 0
            else P[m - 1, m - 1] * math.sqrt((2 * m + 1) / (2 * m))
        )
        for l in range(m + 1, degree + 1):
            a = math.sqrt((4 * l * l - 1) / (l * l - m * m))
            value = z * P[l - 1, m]
            if l > m + 1:
                value = value - math.sqrt(((l - 1) ** 2 - m * m) / (4 * (l - 1) ** 2 - 1)) * P[l - 2, m]
            P[l, m] = a * value
    out = []
    for l in range(degree + 1):
        out += [math.sqrt(2) * P[l, m] * sin[m] for m in range(l, 0, -1)]
        out += [P[l, 0]]
        out += [math.sqrt(2) * P[l, m] * cos[m] for m in range(1, l + 1)]
    return torch.stack(out, -1)


def _radial(degree: int, radius: int, kappa: float) -> Tensor:
    """w_l at the radii 1..radius, `(degree + 1, radius, radius)`."""
    nodes, weights = _gauss(_NODES)
    u = 0.5 * (nodes + 1)
    j = _spherical_bessel(degree, kappa * torch.arange(1, radius + 1, dtype=torch.float64)[:, None] * u)
    return 12 * math.pi * torch.einsum("lpu,lqu,u->lpq", j, j, 0.5 * weights * u**2)


def _gauss(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre (Golub & Welsch, Math. Comp. 23, 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    beta = k / (4 * k**2 - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return values, 2 * vectors[0] ** 2


def _spherical_bessel(degree: int, x: Tensor) -> Tensor:
    """j_0..j_degree, by Miller's downward recursion, `(degree + 1, *x.shape)`."""
    start = degree + 20 + int(x.max())
    above, here = torch.zeros_like(x), torch.full_like(x, 1e-30)
    kept: list[Tensor] = []
    for l in range(start, 0, -1):
        above, here = here, (2 * l + 1) / x * here - above
        big = here.abs() > 1e10
        scale = torch.where(big, 1e-20, 1.0)
        above, here, kept = above * scale, here * scale, [j * scale for j in kept]
        if l - 1 <= degree:
            kept.append(here)
    j = torch.stack(kept[::-1])
    j0, j1 = x.sin() / x, x.sin() / x**2 - x.cos() / x
    if degree == 0:
        return j0[None]
    norm = (j0 * j[0] + j1 * j[1]) / (j[0] ** 2 + j[1] ** 2)
    return j * norm


@attrs.frozen(eq=False)
class Coefficients:
    """What is kept of an image's rings, in its real or its imaginary part.

    Attributes:
        m: of each `(c,)`.
        rings: makes them of z_m on the rings, whitened by the image's noise, `(c, radius)`.
        shape: what the field's coefficients count in them, up to the slices of their harmonics, `(c, x)`.
    """

    m: Tensor
    rings: Tensor
    shape: Tensor


@attrs.frozen(eq=False)
class Field:
    """See above. Everything comes twice: of even degrees, and of odd ones.

    Attributes:
        kept: of each image, `Coefficients`.
        harmonic: of each coefficient of the field, which combination of harmonics it belongs to, `(x,)`.
        symmetric: those that a point group leaves as they are, `((degree + 1)², f)`.
        degree: the highest.
        angles: of the samples along a ring.
    """

    kept: tuple[list[Coefficients], list[Coefficients]]
    harmonic: tuple[Tensor, Tensor]
    symmetric: Tensor
    degree: int
    angles: int

    @classmethod
    def of(
        cls,
        signal: Tensor,
        noise: Tensor,
        transfer: Tensor,
        *,
        kappa: float,
        angles: int,
        symmetry: Tensor | None = None,
    ) -> "Field":
        """Of the power of the object `(radius,)`, and noise and transfer of images `(K, radius)` on the rings 1, 2, …

        kappa: π times the diameter over the box.
        """
        S, N, part = (values.double().cpu() for values in (signal, noise, transfer))
        radius = len(S)
        degree = min(math.ceil(kappa * radius) + 4, angles // 2 - 1)
        white = part * (2 * math.pi * torch.arange(1, radius + 1) / N).sqrt()  # a ring has π r complex coefficients
        usual = white.square().mean(0).sqrt().clamp(min=1e-6 * float(white.max()))
        w = S.sqrt()[:, None] * _radial(degree, radius, kappa) * S.sqrt()
        symmetric, degrees = _symmetric(degree, symmetry)
        views = 1 if symmetry is None else len(symmetry)
        plane = _series(torch.nn.functional.pad(_ring(angles), (0, 1)), degree, angles).abs().square()  # (m, harmonics)
        rows, distinct = torch.unique(white, dim=0, return_inverse=True)
        kept: tuple[list[Coefficients], list[Coefficients]] = ([], [])
        harmonic = []
        for parity in (0, 1):
            factors = {}
            for l in range(parity, degree + 1, 2):
                values, vectors = torch.linalg.eigh(usual[:, None] * w[l] * usual)
                good = values > _KEPT_OF_FIELD
                factors[l] = vectors[:, good] * values[good].sqrt() / usual[:, None]
            of_each = [l for l in degrees.tolist() if l in factors]
            at = [f for f, l in enumerate(degrees.tolist()) if l in factors]
            harmonic.append(torch.tensor([f for f, l in zip(at, of_each, strict=True) for _ in factors[l].mT]).long())
            wide = math.sqrt(views) * torch.cat([factors[l] for l in of_each], 1)  # (radius, x)
            for row in rows:
                found = []
                for m in range(parity, degree + 1, 2):
                    part_of = {l: plane[m, l * l : (l + 1) ** 2].sum() / (2 if m else 1) for l in factors if l >= m}
                    C = sum((share * w[l] for l, share in part_of.items()), torch.zeros_like(w[0]))
                    values, vectors = torch.linalg.eigh(row[:, None] * C * row)
                    found += [(m, v * row) for v in vectors.mT[values > _KEPT_OF_IMAGE]]
                rings = torch.stack([v for _, v in found]) if found else w.new_zeros(0, radius)
                kept[parity].append(Coefficients(torch.tensor([m for m, _ in found]).long(), rings, rings @ wide))
        each = tuple([of_rows[i] for i in distinct.tolist()] for of_rows in kept)
        return cls((each[0], each[1]), (harmonic[0], harmonic[1]), symmetric, degree, angles)

    def to(self, like: Tensor) -> "Field":
        """On another device, in another precision."""
        even, odd = (
            [Coefficients(k.m.to(like.device), k.rings.to(like), k.shape.to(like)) for k in half] for half in self.kept
        )
        first, second = (h.to(like.device) for h in self.harmonic)
        return Field((even, odd), (first, second), self.symmetric.to(like), self.degree, self.angles)

    def planes(self, frames: Tensor) -> Tensor:
        """Series of the harmonics along the rings of views `(P, 3, 3)`, `(P, m, f)`."""
        z = _series(_ring(self.angles).to(frames) @ frames[:, :2], self.degree, self.angles)
        return z @ self.symmetric.to(z.dtype)

    def slices(self, planes: Tensor, image: int) -> list[Tensor]:
        """What an image sees of the field, real, then imaginary parts of z; `(P, 2c, x)` of each half."""
        made = []
        for half, harmonic in zip(self.kept, self.harmonic, strict=True):
            one = half[image]
            A = planes[:, one.m[:, None], harmonic] * one.shape
            made.append(torch.cat((A.real, A.imag), 1))
        return made

    def coefficients(self, lines: Tensor, image: int) -> list[Tensor]:
        """Of an image with these rings `(*batch, angles, radius)`, complex, `(*batch, c)` of each half."""
        made = []
        for half, part in zip(self.kept, (lines.real, lines.imag), strict=True):
            z = _orthonormal(torch.fft.rfft(part, dim=-2) / self.angles)
            made.append((z[..., half[image].m, :] * half[image].rings).sum(-1))
        return made


def _ring(angles: int) -> Tensor:
    """Directions in a plane, `(angles, 2)`."""
    phi = 2 * math.pi / angles * torch.arange(angles, dtype=torch.float64)
    return torch.stack((phi.cos(), phi.sin()), -1)


def _series(points: Tensor, degree: int, angles: int) -> Tensor:
    """Of harmonics along circles `(..., angles, 3)`, `(..., m, harmonics)`."""
    return _orthonormal(torch.fft.rfft(harmonics(points, degree), dim=-2) / angles)[..., : degree + 1, :]


def _orthonormal(z: Tensor) -> Tensor:
    """Coefficients of √2 cos mφ and √2 sin mφ, the latter as minus the imaginary part."""
    return torch.cat((z[..., :1, :], math.sqrt(2) * z[..., 1:, :]), -2)


def _symmetric(degree: int, symmetry: Tensor | None) -> tuple[Tensor, Tensor]:
    """Combinations of harmonics that a group leaves as they are, in columns, and their degrees."""
    degrees = torch.cat([torch.full((2 * l + 1,), l) for l in range(degree + 1)])
    if symmetry is None or len(symmetry) == 1:
        return torch.eye(len(degrees), dtype=torch.float64), degrees
    points = torch.nn.functional.normalize(
        torch.randn(2 * len(degrees), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    mean = torch.stack([harmonics(points @ g, degree) for g in symmetry.double().cpu()]).mean(0)
    onto = torch.linalg.lstsq(harmonics(points, degree), mean).solution
    columns, own = [], []
    for l in range(degree + 1):
        block = onto[l * l : (l + 1) ** 2, l * l : (l + 1) ** 2]
        values, vectors = torch.linalg.eigh((block + block.mT) / 2)
        for v in vectors.mT[values > 0.5]:
            column = torch.zeros(len(degrees), dtype=torch.float64)
            column[l * l : (l + 1) ** 2] = v
            columns.append(column)
            own.append(l)
    return torch.stack(columns, -1), torch.tensor(own)
