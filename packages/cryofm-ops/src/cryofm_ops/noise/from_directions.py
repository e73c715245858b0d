"""How the noise of two half maps depends on direction AND frequency, and where nothing was measured.

In the cone about u and shell ν (a few neighbouring shells share their coefficients) the halves show

    noise   N(u, ν) = mean |y₁ − y₂|² / 2,      signal  S(u, ν) = mean Re y₁ y₂*.

log N(u, ν) − log N(ν) is shrunk towards 0 by as much as chance explains (empirical Bayes): first the part that all
shells have in common, α of paper D.2, then what is left in a band of shells. So halves whose noise does not depend on
direction get noise that does not, with no threshold to choose.

Where no view reached, a reconstruction program divides by next to nothing and a regularisation, and attenuates signal
and noise alike: there is little noise, which looks like the best of data, and nothing that the halves agree about. So
S(u, ν) is compared with the signal S₀(ν) of directions that were measured (those where it is more than chance). Where
even its upper limit, one standard error up, is below a quarter of that, nothing was measured: the precision is 0. Above
0.6 of it all was; between the two it ramps. Where noise is strong the limit is wide, and nothing is taken for empty.
"""

import math

import attrs
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from cryofm_ops.errors import GeometryError
from cryofm_ops.fourier.directions import hemisphere
from cryofm_ops.fourier.grid import Shape, cross_power, friedel_weights, half_shape, hermitian, rfft
from cryofm_ops.noise.from_half_maps import NoiseEstimate, estimate_noise_power

__all__ = ["DirectionalEstimate", "estimate_directional_noise"]

_EMPTY, _FULL = 0.25, 0.6  # of the signal of measured directions
_TELLS = 3.0  # standard errors that a full signal must be, for a direction to be called empty
_AGREE = 0.02  # least FSC of a shell that says anything
_DIRECTED = 0.15  # spread of log α from which on direction matters
_SPACING = 0.6  # of neighbouring cones, in half-angles
_BAND = 2.0  # shells, standard deviation, over which coefficients are shared
_FEW = 8  # coefficients that say nothing of their own
_CELL = 0.2  # side of a cell of directions, in half-angles of the cones
_COEFFICIENTS = 1 << 20  # that are sorted into cells at a time
_AXES = 64  # cones that are summed at a time


@attrs.frozen(eq=False)
class DirectionalEstimate:
    """Tables over n directions and m shells.

    Attributes:
        directions: unit vectors `(n, 3)`, (x, y, z).
        noise_power: of one half, in the orthonormal FFT, `(n, m)`; each shell keeps the mean of the radial estimate.
        measured: how much of the signal was measured, `(n, m)`: 0 where nothing was, mostly 1.
        width_deg: of the interpolation between directions.
        spread: standard deviation of log α beyond chance: below 0.05 where direction does not matter, 0.15 and more
            where it does.
        empty: share of the coefficients, in shells where the halves agree, that was not measured.
    """

    directions: Tensor
    noise_power: Tensor
    measured: Tensor
    width_deg: float
    spread: float
    empty: float

    def on_grid(self, shape: Shape, /) -> tuple[Tensor, Tensor]:
        """Noise power (interpolated in its logarithm) and measured share on the half grid of `shape`, float64."""
        tables = torch.stack([self.noise_power.log(), self.measured])
        log_noise, measured = _interpolated(tables, self.directions, self.width_deg, shape)
        return hermitian(log_noise.exp(), shape), hermitian(measured, shape)


def estimate_directional_noise(
    half1: Tensor,
    half2: Tensor,
    *,
    half_angle_deg: float = 10.0,
    allow_masked: bool = False,
    radial: NoiseEstimate | None = None,
) -> DirectionalEstimate:
    """Noise of two half maps by direction and frequency, and where nothing was measured.

    Args:
        half1: `(z, y, x)`, raw: neither masked nor filtered.
        half2: the same grid.
        half_angle_deg: of the cones, 2 to 45.
        allow_masked: see `estimate_noise_power`.
        radial: what that says of them, where it is known.

    Raises `GeometryError` for such an angle; `GridMismatchError`, `ObservationError` and `HalfMapError`, and warns, as
    `estimate_noise_power`.

    >>> halves = torch.randn(2, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    >>> estimate = estimate_directional_noise(*halves)
    >>> noise, measured = estimate.on_grid((24, 24, 24))
    >>> bool((noise.log().abs() < 0.3).double().mean() > 0.9), measured.shape
    (True, torch.Size([24, 24, 13]))
    """
    if not 2 <= half_angle_deg <= 45:
        raise GeometryError(f"half_angle_deg must be between 2 and 45, got {half_angle_deg}")
    if radial is None:
        radial = estimate_noise_power(half1, half2, allow_masked=allow_masked)
    angle = math.radians(half_angle_deg)
    axes = hemisphere(round(2 * math.pi / (_SPACING * angle) ** 2), device=half1.device)
    count, noise, signal = cone_means(half1, half2, axes, angle)
    count[:, 0] = 0
    share = count / count.sum(0).clamp(min=1)

    shell_noise = radial.noise_power.double().clamp(min=1e-30)
    ratio, spread = _shrunk(noise / shell_noise, count, share)
    table = ratio * shell_noise
    measured, last = torch.ones_like(table), 0
    if spread > _DIRECTED:  # otherwise every direction was measured, and few coefficients of coarse shells mislead
        measured, last = _measured(signal, table, count, share, radial.fsc.double())
    not_measured = (share * (1 - measured))[:, 1 : last + 1].sum(0)
    empty = float(not_measured.mean()) if last else 0.0
    return DirectionalEstimate(axes, table, measured, _SPACING * half_angle_deg / 2, spread, empty)


def cone_means(half1: Tensor, half2: Tensor, axes: Tensor, angle: float) -> tuple[Tensor, ...]:
    """Coefficients, noise and signal power in cones `(axes, shells)`; every shell of both halves brought to one power.

    Sums are made once, in small cells of direction; a cone is the cells whose centre is in it.
    """
    z, y, x = half1.shape
    shape, n = (z, y, x), max(half1.shape) // 2 + 1
    step = angle * _CELL
    rows, columns = math.ceil(math.pi / 2 / step), math.ceil(2 * math.pi / step)
    y1, y2 = rfft(half1.double()), rfft(half2.double())
    weight = friedel_weights(shape, device=half1.device).double()
    cells = y1.real.new_zeros(4, rows * columns * (n + 1))
    for planes in _slabs(shape, half1.device):
        one, two = y1[planes], y2[planes]
        cross = cross_power(one, two)
        length, polar, azimuth = _polar(shape, planes)
        shell = (length * (2 * (n - 1))).round().long().clamp(max=n)  # n for the corners
        row = (polar * (2 / math.pi * rows)).long().clamp(max=rows - 1)
        column = ((azimuth / (2 * math.pi) + 0.5) * columns).long().clamp(max=columns - 1)
        place = ((row * columns + column) * (n + 1) + shell).flatten()
        sums = torch.ones_like(cross), cross_power(one, one), cross_power(two, two), cross
        for total, q in zip(cells, sums, strict=True):
            total.index_add_(0, place, (q * weight).flatten())
    cells = cells.reshape(4, rows * columns, n + 1)[..., :n]

    every = cells.sum(1)
    a = (every[2] / every[1]).sqrt()  # the square of what brings the halves to one power
    a = torch.where(a.isfinite() & (a > 0), a, 1)
    table = torch.stack([cells[0], (a * cells[1] + cells[2] / a) / 2 - cells[3], cells[3]], 1).flatten(1)
    centres = _centres(rows, columns).to(axes)
    cones = [((some @ centres.T).abs() >= math.cos(angle)).to(table) @ table for some in torch.split(axes, _AXES)]
    count, noise, signal = torch.cat(cones).reshape(len(axes), 3, n).unbind(1)
    some = count.clamp(min=1)
    return count, noise.clamp(min=0) / some, signal / some


def _slabs(shape: Shape, device: torch.device) -> tuple[Tensor, ...]:
    """Planes of the half grid, as many at a time as spare memory."""
    z, y, width = half_shape(shape)
    return torch.split(torch.arange(z, device=device), max(1, _COEFFICIENTS // (y * width)))


def _polar(shape: Shape, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Length, polar angle and azimuth of the frequencies of some planes; a direction and its opposite are one."""
    z, y, x = shape
    kz = torch.fft.fftfreq(z, device=planes.device, dtype=torch.float64)[planes, None, None]
    ky = torch.fft.fftfreq(y, device=planes.device, dtype=torch.float64)[:, None]
    kx = torch.fft.rfftfreq(x, device=planes.device, dtype=torch.float64)
    across = kx**2 + ky**2
    up = torch.where(kz < 0, -1.0, 1.0).to(kz)
    return (kz**2 + across).sqrt(), torch.atan2(across.sqrt(), kz.abs()), torch.atan2(up * ky, up * kx)


def _centres(rows: int, columns: int) -> Tensor:
    """Of the cells, as unit vectors (x, y, z)."""
    polar = (torch.arange(rows, dtype=torch.float64) + 0.5) * (math.pi / 2 / rows)
    azimuth = ((torch.arange(columns, dtype=torch.float64) + 0.5) / columns - 0.5) * (2 * math.pi)
    polar, azimuth = torch.meshgrid(polar, azimuth, indexing="ij")
    return torch.stack([polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()], -1).flatten(0, 1)


def _shrunk(ratio: Tensor, count: Tensor, share: Tensor) -> tuple[Tensor, float]:
    """Noise over that of its shell, shrunk to 1 by as much as is chance, with mean 1 in every shell; and α's spread."""
    everywhere = count.sum(1, keepdim=True).clamp(min=1)
    alpha = ((ratio * count).sum(1, keepdim=True) / everywhere).clamp(min=1e-6).log()
    # n coefficients of the full transform are n / 2 independent exponentials, whose mean has a variance of 2 / n.
    log_alpha, spread = _towards_zero(alpha - alpha.mean(), 2 / everywhere)
    left, effective = _shared(ratio / log_alpha.exp(), count)
    left = left.clamp(min=1e-6).log()
    left = torch.where(effective > _FEW, left - (left * share).sum(0), 0)
    log_left, _ = _towards_zero(left, 2 / effective.clamp(min=1))
    shrunk = (log_alpha + log_left).exp()
    shrunk = shrunk / (share * shrunk).sum(0).clamp(min=1e-30)
    shrunk[:, 0] = 1
    return shrunk, spread


def _towards_zero(logarithms: Tensor, variance: Tensor) -> tuple[Tensor, float]:
    """The posterior mean of normal values of mean 0, whose variance is what chance leaves of the spread; its root."""
    weight = 1 / variance
    excess = ((weight * (logarithms.square() - variance)).sum() / weight.sum()).clamp(min=0)
    return logarithms * excess / (excess + variance), float(excess.sqrt())


def _shared(q: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted means over neighbouring shells, and how many coefficients they stand for."""
    i = torch.arange(q.shape[1], dtype=q.dtype, device=q.device)
    kernel = torch.exp(-((i[:, None] - i) ** 2) / (2 * _BAND**2))
    weight = count @ kernel
    return (q * count) @ kernel / weight.clamp(min=1e-9), weight**2 / (count @ kernel**2).clamp(min=1e-9)


def _measured(signal: Tensor, noise: Tensor, count: Tensor, share: Tensor, fsc: Tensor) -> tuple[Tensor, int]:
    """How much of the signal was measured, and the last shell that tells."""
    signal, effective = _shared(signal, count)
    level, _ = _shared(noise, count + 1e-6)
    few = effective.clamp(min=1)
    chance = level / few.sqrt()
    reference = (share * signal).sum(0).clamp(min=0)

    def standard_error() -> Tensor:
        return ((2 * reference**2 + 2 * reference * level + level**2) / few).sqrt()

    for _ in range(3):  # of the directions that were measured: more than chance, and not far below the others
        error = standard_error()
        weight = torch.where((signal + error > _FULL * reference) & (signal > chance), count, 0)
        mean = (weight * signal).sum(0) / weight.sum(0).clamp(min=1e-9)
        reference = torch.where(weight.sum(0) > 0, mean, reference)
    error = standard_error()
    upper = (signal + error) / reference.clamp(min=1e-30)
    found = ((upper - _EMPTY) / (_FULL - _EMPTY)).clamp(0, 1)
    tells = (_TELLS * error < reference) & (fsc.nan_to_num(0) > _AGREE)
    measured = torch.ones_like(found)
    for i in range(1, measured.shape[1]):  # where a shell cannot tell, what the next coarser one says holds
        measured[:, i] = torch.where(tells[:, i], found[:, i], measured[:, i - 1])
    return measured, int(tells.any(0).nonzero().max()) if tells.any() else 0


def _interpolated(tables: Tensor, axes: Tensor, width_deg: float, shape: Shape) -> Tensor:
    """Tables `(k, n, m)` on the half grid: smooth and even in direction as `DirectionTable`, linear in frequency.

    The mixture of directions is computed on meridians and parallels of half its width, and is linear between them.
    """
    step = width_deg / 2
    polar = torch.linspace(0, math.pi / 2, math.ceil(90 / step) + 1, dtype=tables.dtype, device=tables.device)
    azimuth = torch.linspace(-math.pi, math.pi, math.ceil(360 / step) + 1, dtype=tables.dtype, device=tables.device)
    sine, cosine = polar.sin()[:, None], polar.cos()[:, None].expand(-1, len(azimuth))
    lattice = torch.stack([sine * azimuth.cos(), sine * azimuth.sin(), cosine], -1)
    weights = torch.softmax(0.5 / math.radians(width_deg) ** 2 * (lattice @ axes.T) ** 2, -1)
    mixed = torch.einsum("pan, knm -> kpam", weights, tables)

    found = tables.new_empty(len(tables), *half_shape(shape))
    for planes in _slabs(shape, tables.device):
        length, polar, azimuth = _polar(shape, planes)
        at = torch.stack([length.clamp(max=0.5) * 4 - 1, azimuth / math.pi, polar * 4 / math.pi - 1], -1).to(tables)
        part = grid_sample(mixed[None], at[None], align_corners=True, padding_mode="border")
        found[:, planes] = part[0]
    return found
