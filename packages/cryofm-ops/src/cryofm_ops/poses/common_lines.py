"""Common lines: how well the slices of two images agree along any pair of lines.

By the central-slice theorem the transforms of two projections of one object share a line, and where that line lies in
each of them says how the two views are related (Crowther, DeRosier & Klug, Proc. R. Soc. Lond. A 317, 1970; van Heel,
Ultramicroscopy 21, 1987). No map is needed.

The score is a likelihood ratio. Coefficients Y_i(a, r) along angle a at radius r are normal, of power P(r), of which
N(r) is noise. If two lines are one and the same, (Y_i − Y_j)/√2 has the power τ = N + α (P − N) and (Y_i + Y_j)/√2 has
2 P − τ; if they are strangers, both have P. α is what two samples of one line differ by for other reasons, such as the
grid of angles; large to begin with in annealing, when it stands for poses that are not yet right.

Images of other noise and other transfers m have P_i = m_i² S + N_i each, and lines that are one and the same have the
covariance c = (1 − α) m_i m_j S. With D = P_i P_j − c² the logarithm of the ratio is
log(P_i P_j / D) + |Y_i|² (1/P_i − P_j/D) + |Y_j|² (1/P_j − P_i/D) + 2 Re(Y_i Y_j*) c/D, of which the above is a case.
"""

import itertools
import math

import attrs
import torch
from torch import Tensor

__all__ = ["CommonLines", "polar_transform"]

_INDEPENDENT = 0.4  # neighbouring radii are correlated, since the object is smaller than the box
_SMOOTH_DEG = 6.0


def polar_transform(images: Tensor, angles: int, radius: int) -> Tensor:
    """The transforms of images `(*batch, n, n)` about pixel n // 2 along half turns of rays.

    Returns `(*batch, angles, radius)`, complex: angle 2π a / angles from x towards y, frequency r = 1..radius in units
    of 1/n per pixel.

    >>> image = torch.zeros(8, 8)
    >>> image[4, 4] = 1.0
    >>> polar_transform(image, 12, 3).real.unique()
    tensor([1.])
    """
    n = images.shape[-1]
    u = directions(angles, images)
    k = torch.arange(1, radius + 1).to(u)
    x = torch.arange(n).to(u) - n // 2
    phase = -2 * math.pi / n * u[:, None, :, None] * k[:, None, None] * x  # (angles, radius, 2, n)
    ex, ey = torch.polar(torch.ones_like(phase), phase).unbind(-2)
    lines: Tensor = torch.einsum("...yx,ary,arx->...ar", images.to(ex.dtype), ey, ex)
    return lines


def directions(angles: int, like: Tensor) -> Tensor:
    """Unit vectors `(angles, 2)` in (x, y), around the full turn."""
    phi = 2 * math.pi / angles * torch.arange(angles, dtype=torch.float64)
    return torch.stack((phi.cos(), phi.sin()), -1).to(like)


@attrs.frozen(eq=False)
class CommonLines:
    """Log likelihood ratios of all pairs of lines of K images.

    Attributes:
        table: `(I, J, angles, angles, offsets)`: [i, j, b, a, d] for line a of image i and line b of image j, whose
            shifts along those lines differ by `offsets_px[d]`.
        offsets_px: rising, about 0.
    """

    table: Tensor
    offsets_px: Tensor

    @classmethod
    def of(
        cls,
        lines: Tensor,
        others: Tensor,
        n: int,
        noise: Tensor | tuple[Tensor, Tensor],
        alpha: float,
        offsets_px: Tensor,
        smooth_px: float,
        transfer: tuple[Tensor, Tensor] | None = None,
    ) -> "CommonLines":
        """Of all pairs of I images and J others.

        Args:
            lines: `(I, angles, radius)`, as `polar_transform` returns them; only the radii that are there are used.
            others: `(J, angles, radius)`; their power stands for that of all.
            n: side of the images.
            noise: N(r), `(radius,)`, in the units of |lines|²; or those of the images and the others, each
                `(K, radius)`.
            alpha: see above; > 0.
            offsets_px: evenly spaced.
            smooth_px: the table is averaged over 6 degrees of both angles (as a likelihood, not as its logarithm), and
                over this many pixels of offset; standard deviations.
            transfer: m(r) of the images and of the others, `(K, radius)` each. None: 1.
        """
        angles, radius = lines.shape[1:]
        N_i, N_j = noise if isinstance(noise, tuple) else (noise[None], noise[None])
        m_i, m_j = transfer if transfer is not None else (torch.ones_like(N_i), torch.ones_like(N_j))
        power = others.abs().square().mean((0, 1))
        S = (power - N_j.mean(0)).clamp(min=0) / m_j.square().mean(0)
        floor = 1e-6 * power.max()
        seen = ((m_i, N_i, lines), (m_j, N_j, others))
        P_i, P_j = ((m.square() * S + N).clamp(min=floor).expand(len(y), -1) for m, N, y in seen)
        signal_i, signal_j = (m * ((1 - alpha) * S).sqrt() for m in (m_i.expand_as(P_i), m_j.expand_as(P_j)))
        r = torch.arange(1, radius + 1).to(power)
        ramp = torch.polar(torch.ones_like(r), -2 * math.pi / n * r * offsets_px[:, None])  # (offsets, radius)
        moved = lines[:, :, None] * ramp  # (I, angles, offsets, radius)
        single_i, single_j = (y.abs().square() for y in (lines, others))
        turn = _circulant(angles, _SMOOTH_DEG * angles / 360).to(power)
        slide = _window(offsets_px, smooth_px)
        table = power.new_empty(len(lines), len(others), angles, angles, len(offsets_px))
        for i, j in itertools.product(range(len(lines)), range(len(others))):
            if lines is others and j < i:
                table[i, j] = table[j, i].transpose(0, 1).flip(-1)
                continue
            c = torch.minimum(signal_i[i] * signal_j[j], (P_i[i] * P_j[j]).sqrt() - floor)
            D = P_i[i] * P_j[j] - c**2
            cross = _columns(2 * c / D * others[j]) @ _columns(moved[i]).flatten(0, 1).mT  # (b, a · offsets)
            T = cross.reshape(angles, angles, -1) + (single_j[j] @ (1 / P_j[j] - P_i[i] / D))[:, None, None]
            T = T + (single_i[i] @ (1 / P_i[i] - P_j[j] / D))[:, None] + (P_i[i] * P_j[j] / D).log().sum()
            table[i, j] = _smoothed(_INDEPENDENT * T, turn, slide)
        return cls(table, offsets_px)


def _columns(c: Tensor) -> Tensor:
    return torch.view_as_real(c).flatten(-2)


def _smoothed(T: Tensor, turn: Tensor, slide: Tensor) -> Tensor:
    """The logarithm of exp T averaged over b, a and the offset."""
    top = T.max()
    likelihood = (T - top).exp()
    likelihood = torch.einsum("Bb,bx->Bx", turn, likelihood.flatten(1)).reshape(T.shape)
    likelihood = turn @ likelihood
    if len(slide) > 1:
        likelihood = likelihood @ slide.mT
    return likelihood.clamp(min=1e-30).log() + top


def _circulant(n: int, sigma: float) -> Tensor:
    """A Gaussian mean over neighbours on a circle, `(n, n)`."""
    x = torch.arange(n, dtype=torch.float64)
    distance = (x[:, None] - x + n / 2) % n - n / 2
    kernel = (-0.5 * (distance / sigma) ** 2).exp()
    return kernel / kernel.sum(-1, keepdim=True)


def _window(offsets: Tensor, sigma: float) -> Tensor:
    """The same on a line."""
    if sigma <= 0:
        return torch.eye(len(offsets)).to(offsets)
    kernel = (-0.5 * ((offsets[:, None] - offsets) / sigma) ** 2).exp()
    return kernel / kernel.sum(-1, keepdim=True)
