"""Envelope, scale and solvent of half maps together, by what one half restored says of the other.

y_i = K h ⊛ x + n_i, ĥ(ν) = exp(−B ν² / 4), x the sharp map in the prior's units. The correlation of the halves sees
neither K nor a radial filter. A restoration does: with the wrong ones the prior fills in what does not fit, and tells
the other half worse. For a trial (B, K) the first half is restored to x̂, and in every shell where the halves agree

    explained = Σ (2 Re y₂* K ĥ x̂ − |K ĥ x̂|²) / (F Σ |y₂|²),

the share of what can be known of y₂ that is explained. It is a proper score, in the mean largest for the true mean,
and so for the true (B, K). Its mean over the shells, with a fifth of FSC / √F, which hangs less on single shells and
forgives wrong amplitudes, is climbed in B and in κ = log K − B ν₀² / 4, the logarithm of the amplitude at the frequency
ν₀ where the data weigh most, which B hardly moves. It begins at the Wilson plot's κ. Two things that are known of all
maps count a little: their brightest voxels are 1, and the inside of a molecule is about 0.17 at 12 Å.

At the top, k of the solvent (`solvent.py`) is freed, which the prior's maps do not have: without it a map in ice, too
weak at low frequencies, is taken for a sharper one, with too small a B. It stays where it gains more than maps in a
vacuum do.

Strong noise is dimmed while the region is cut.

Where the halves agree to 3.8 Å, the prior is asked for B only whether it is less: beyond 6 Å the atoms of all proteins
have the same spectrum within a few Å² of B, and the Wilson plot against it gives B (`fine_b_factor`). Maps as they are
deposited fall off faster by 0 to 90 Å² and count as sharp; the prior knows them, and explains more with a smaller B.

A region of 48³ voxels with most density is enough, and three network evaluations a trial. Of fine halves a few trials
are left, of 64³ voxels whose edges are soft: 1 / ĥ would raise what a cut leaves of the coarse shells in the finest
above the signal.
"""

import math
import warnings
from typing import Protocol

import attrs
import torch
from torch import Tensor

from cryofm_ops import (
    Envelope,
    NoiseEstimate,
    Normalization,
    SpectralNoise,
    fourier_filter,
    frequencies,
    radial,
    radial_mean,
    rfft,
    shell_sizes,
)
from cryofm_sampling._common import Box, split_shape
from cryofm_sampling.errors import MisfitWarning
from cryofm_sampling.half_maps._fsc import correlation
from cryofm_sampling.half_maps.model import FourierModel
from cryofm_sampling.half_maps.protein import ProteinPlot, weighted_line
from cryofm_sampling.half_maps.solvent import Solvent
from cryofm_sampling.priors.rescaled import Rescaled
from cryofm_sampling.protocols import Calibrated, VelocityField
from cryofm_sampling.restore import restore
from cryofm_sampling.samplers.plug_and_play import PlugAndPlay
from cryofm_sampling.scale import ScaledNormalization

__all__ = [
    "SIDE",
    "SIDE_OF_FINE",
    "EnvelopeFit",
    "densest",
    "fine_b_factor",
    "fit_envelope",
    "signal_end",
    "wilson_line",
]

SIDE, SIDE_OF_FINE = 48, 64  # voxels of the region; where B is known, which takes a third of the trials
_EDGE = 8  # voxels over which it ends
_LEAST_FSC, _SURE = 0.02, 0.143  # of shells that are scored; of those whose noise is not dimmed
_CORRELATION = 0.2  # weight of the FSC beside the explained share
_BRIGHTEST = 0.9  # 99.999th percentile of a restored map that is not penalised; of the prior's own it is 1
_PENALTY = 0.3  # times the squared logarithm of what is above it
_INSIDE = 0.17  # density of the inside at 12 Å: 0.13 to 0.25 in 17 maps
_INSIDE_PENALTY, _INSIDE_SPREAD = 0.004, 0.3  # times the squared logarithm over the spread
_INSIDE_AT = 18.0  # Å, the mean of the frequencies that make it
_Point = tuple[float, float, float]  # B in Å², κ, k
_RANGE = (0.0, 300.0)  # Å²; sharpened maps count as sharp
_RANGES = (_RANGE, (-math.inf, math.inf), (-0.6, 0.75))
_FIRST = (0.0, 60.0, 120.0, 180.0)  # Å²
_STEPS: tuple[_Point, ...] = ((60.0, 0.45, 0.3), (30.0, 0.22, 0.15))
_CONTRAST = 0.01  # what a solvent has to gain: up to 0.006 of maps in a vacuum, 0.018 and more of others
_BLURRIER, _CLEARLY = 45.0, 0.005  # Å², by which atoms' B is lowered; what that has to gain
_WORSE = 1e-4  # what moving from the start has to gain, per squared step of κ
_CLIMB = 6  # rounds at most with each step
_COARSEST = 12.0  # Å, of the Wilson plot
_AGREE = 0.15  # least FSC of the Wilson plot
_FINE = 3.8  # Å, to which halves have to agree for B to be told by the fine shells: within 10 Å², to 4.6 Å within 37
_DIMMED_AT = 2.4  # voxels of the prior, beyond which a half that is too good to tell the envelope is dimmed for trials
_DIMMED_FSC = 0.143
_TOP = 0.99999


@attrs.frozen
class EnvelopeFit:
    """What `fit_envelope` found.

    Attributes:
        normalization: between model units and data units; its `scale` is 1/K.
        b_factor: B in Å².
        trials: (B, scale, k, score).
        wilson_b_factor: B of the Wilson plot alone, which takes the deposited maps' sharpness for the prior's.
        nfe: network evaluations spent, in a region.
        solvent_contrast: k of the solvent.
    """

    normalization: ScaledNormalization
    b_factor: float
    trials: tuple[tuple[float, float, float, float], ...]
    wilson_b_factor: float
    nfe: int
    solvent_contrast: float = 0.0


@torch.no_grad()
def fit_envelope(
    prior: VelocityField,
    half1: Tensor,
    half2: Tensor,
    model: FourierModel,
    /,
    *,
    voxel_size: float,
    normalization: Normalization,
    generator: torch.Generator,
    scale: float | None = None,
    b_factor: float | None = None,
    atoms_b_factor: float | None = None,
    solvent_contrast: float | None = None,
    sampler: PlugAndPlay = PlugAndPlay(iterations=3),  # noqa: B008 (frozen)
) -> EnvelopeFit:
    """Find B and the scale at which one half, restored, explains most of the other.

    Args:
        prior: a `Calibrated` velocity field.
        half1: `(z, y, x)`.
        half2: likewise.
        model: of the halves, without an envelope.
        voxel_size: Å.
        normalization: of the prior.
        generator: one seed is drawn from it; every trial sees the same random numbers.
        scale: 1/K, where it is known. None: sought.
        b_factor: B in Å², where it is known. None: sought.
        atoms_b_factor: B in Å² beside the spectrum that atoms have, `fine_b_factor`, where that can be told. B is that
            or less.
        solvent_contrast: k of the solvent, where it is known. None: sought.
        sampler: restores the first half.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    start = wilson_line(model, prior, normalization, voxel_size)
    fine = b_factor is not None or atoms_b_factor is not None
    box = densest(fourier_filter((half1 + half2) / 2, model.gain.to(half1)), SIDE_OF_FINE if fine else SIDE)
    _, shape = split_shape(half1[box].shape)
    dim = _prewhitening(model)
    half1, half2 = (_shells(half, dim) for half in (half1, half2))
    whole = split_shape(half1.shape)[1] if fine else shape  # of coarse halves little is raised
    window = _window(shape, whole).to(half1)
    one, two = (_shells(window * half[box], 1 / dim) for half in (half1, half2))
    part = _windowed(model, window)
    held_out, inside = part.comparable(two), _inside((half1 + half2)[box] / 2, voxel_size)
    fsc = correlation(part.comparable(one), held_out)
    one, part = _dimmed(one, part, torch.Generator(generator.device).manual_seed(seed))
    fsc[_beyond(model, len(fsc))] = 0
    scores: dict[tuple[float, float, float], float] = {}

    def scale_of(b: float, kappa: float) -> float:
        return math.exp(-kappa - b * start.pivot**2 / 4) if scale is None else scale

    def score(b: float, kappa: float, k: float) -> float:
        key = (round(b, 3), round(kappa, 4), round(k, 3))
        if key not in scores:
            trial = part.blurred(Envelope(b, voxel_size), k)
            units = Rescaled(prior, ScaledNormalization(normalization, scale_of(b, kappa)))
            own = torch.Generator(generator.device).manual_seed(seed)
            with warnings.catch_warnings():  # of most trials the scale is wrong
                warnings.simplefilter("ignore", MisfitWarning)
                x = restore(units, trial.observe(one, 1), shape=shape, generator=own, sampler=sampler).x
            found = _score(trial.predict(x), held_out, fsc) - _too_bright(x * scale_of(b, kappa))
            whole = inside * math.exp(b / 4 / _INSIDE_AT**2) / Solvent(k, voxel_size).at(_INSIDE_AT)
            found -= _other_inside(whole * scale_of(b, kappa))
            scores[key] = found - _WORSE * ((kappa - start.kappa) / _STEPS[0][1]) ** 2
        return scores[key]

    told = b_factor if b_factor is not None else atoms_b_factor
    known = (told is not None, scale is not None, True)

    def tops(at: _Point, steps: tuple[_Point, ...]) -> tuple[_Point, _Point]:
        """With k as it is there, and with k free."""
        held = _climbed(score, at, known, steps)
        freed = (*known[:2], solvent_contrast is not None)
        return held, _climbed(score, held, freed, _STEPS[-1:])

    first = [(b, start.kappa, solvent_contrast or 0.0) for b in (_FIRST if told is None else (told,))]
    held, top = tops(max(first, key=lambda at: score(*at)), _STEPS)
    if b_factor is None and atoms_b_factor is not None:
        while top[0] > 0:
            blurrier = tops(_moved(held, 0, -_BLURRIER), _STEPS[-1:])
            if score(*blurrier[1]) < score(*top) + _CLEARLY:
                break
            held, top = blurrier
    best = top if score(*top) > score(*held) + _CONTRAST else held
    b, kappa, k = _top(score, best, (told == best[0], known[1], best is held))
    trials = tuple((b, scale_of(b, kappa), k, s) for (b, kappa, k), s in sorted(scores.items()))
    units = ScaledNormalization(normalization, scale_of(b, kappa))
    return EnvelopeFit(units, b, trials, start.b_factor, len(scores) * sampler.iterations, k)


def _climbed(score: "_Scored", best: _Point, known: tuple[bool, ...], steps: tuple[_Point, ...]) -> _Point:
    """The top of the score, up from a point along one axis after the other, by steps of several sizes."""
    for size in steps:
        for _ in range(_CLIMB):
            before = best
            for axis in (1, 2, 0):
                for step in () if known[axis] else (-size[axis], size[axis]):
                    while score(*(near := _moved(best, axis, step))) > score(*best):
                        best = near
            if best == before:
                break
    return best


def _top(score: "_Scored", best: _Point, known: tuple[bool, ...]) -> _Point:
    """Of the parabolas through a point that is higher than those beside it."""
    top, middle = best, score(*best)
    for axis, step in enumerate(_STEPS[-1]):
        lowest, highest = _RANGES[axis]
        if not known[axis] and lowest < best[axis] + 1e-6 - step and best[axis] - 1e-6 + step < highest:
            low, high = (score(*_moved(best, axis, sign * step)) for sign in (-1, 1))
            top = _moved(top, axis, step * _parabola(low, middle, high))
    return top


def _moved(at: _Point, axis: int, step: float) -> _Point:
    low, high = _RANGES[axis]
    b, kappa, k = (min(max(x + step, low), high) if i == axis else x for i, x in enumerate(at))
    return b, kappa, k


class _Scored(Protocol):
    """(B, κ, k) -> how well; for annotations."""

    def __call__(self, b: float, kappa: float, k: float, /) -> float: ...


def _parabola(low: float, middle: float, high: float) -> float:
    """Where the parabola through three values at −1, 0, 1 is highest, within half a step; 0 if it has no top."""
    curvature = low - 2 * middle + high
    return 0.0 if curvature >= 0 else min(max((low - high) / (2 * curvature), -0.5), 0.5)


@attrs.frozen
class _Wilson:
    """log S − log P = 2 log K − B ν² / 2 by least squares: κ, the mean of ½ (log S − log P), at the pivot ν₀ in 1/Å."""

    b_factor: float
    kappa: float
    pivot: float


def wilson_line(model: FourierModel, prior: VelocityField, normalization: Normalization, voxel_size: float) -> _Wilson:
    """Of the halves' signal power against the prior's, weighted by FSC times the size of a shell."""
    assert isinstance(prior, Calibrated)
    fsc, n = model.fsc.double().cpu().nan_to_num(0), len(model.fsc)
    nu = torch.linspace(0, 0.5 / voxel_size, n, dtype=torch.float64)
    table = prior.signal_power.double().cpu() * normalization.std**2
    power = torch.nn.functional.interpolate(table[None, None], n, mode="linear", align_corners=True)[0, 0]
    fine = nu > 1 / _COARSEST
    ends = ((fsc < _AGREE) & fine).nonzero()
    sizes = shell_sizes(model.shape, n)
    weight = sizes * fsc.clamp(min=0) * fine
    weight[int(ends[0]) if len(ends) else n :] = 0
    if int((weight > 0).sum()) < 3:  # hardly anything beyond the coarsest: all that there is
        weight = sizes * (fsc - _AGREE).clamp(min=0) * (nu > 0) + 1e-9
    ratio = (model.signal_power.double().cpu().clamp(min=1e-30) / power.clamp(min=1e-30)).log()
    x, y, slope = weighted_line(nu**2, ratio, weight)
    return _Wilson(-2 * slope, y / 2, math.sqrt(x))


def fine_b_factor(found: NoiseEstimate, shape: Box, *, voxel_size: float) -> float | None:
    """B by the Wilson plot of what is finer than 6 Å, against proteins' own spectrum.

    Args:
        found: of the halves on their own grid.
        shape: of them (z, y, x).
        voxel_size: Å.

    Returns: None where the halves do not agree to 3.8 Å.
    """
    plot = ProteinPlot.of(found, shape, voxel_size)
    if plot is None or plot.end < 1 / _FINE:
        return None
    return min(max(plot.b_factor, _RANGE[0]), _RANGE[1])


def signal_end(found: NoiseEstimate, shape: Box, *, voxel_size: float) -> float:
    """The last frequency at which halves show signal, 1/Å; infinite where they agree about nothing else beyond it.

    Reconstruction programs leave some of the strong, coarse shells in the fine ones, in both halves alike.

    Args:
        found: of the halves on their own grid.
        shape: of them (z, y, x).
        voxel_size: Å.

    >>> from cryofm_ops import estimate_noise_power
    >>> halves = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> signal_end(estimate_noise_power(*halves), (16, 16, 16), voxel_size=1.0)
    inf
    """
    plot = ProteinPlot.of(found, shape, voxel_size)
    return plot.end if plot is not None and plot.told and plot.beyond else math.inf


def _window(shape: Box, whole: Box) -> Tensor:
    """1 in a region, falling to 0 at its faces, but not where it is as long as the whole: what is cut there would leave
    in all shells a part of the coarse ones, that an envelope's removal raises above the signal."""
    window = torch.ones(())
    for n, m in zip(shape, whole, strict=True):
        line = torch.ones(n)
        if n < m:
            edge = torch.sin(torch.pi / 2 * (torch.arange(_EDGE) + 0.5) / _EDGE).square()
            line[:_EDGE], line[-_EDGE:] = edge, edge.flip(0)
        window = window[..., None] * line
    return window


def _prewhitening(model: FourierModel) -> Tensor:
    """Radial table that dims noise to at most that of the shells where the halves agree.

    The faces of a region would spread what is above it, as where sharpening raised noise a thousandfold, over all
    shells, also those where the halves agree (Blackman and Tukey, The Measurement of Power Spectra, 1958, B.5).
    """
    agreed = int((model.fsc.nan_to_num(0)[1:] > _SURE).cumprod(0).sum())  # shells
    noise = model.noise_power.double()
    return (noise[1 : agreed + 1].max() / noise).clamp(max=1).sqrt() if agreed else torch.ones_like(noise)


def _shells(half: Tensor, table: Tensor) -> Tensor:
    """Multiplied shell by shell; as it is, where that is by 1."""
    _, shape = split_shape(half.shape)
    return half if bool((table == 1).all()) else fourier_filter(half, radial(table, shape).to(half))


def _windowed(model: FourierModel, window: Tensor) -> FourierModel:
    """Of a region's noise, which the window weakens."""
    _, shape = split_shape(window.shape)
    left = float(window.square().mean())

    def noise_on(shape: Box) -> tuple[Tensor, Tensor]:
        noise, measured = model.noise_on(shape)
        return left * noise, measured

    return attrs.evolve(model.on(shape), noise_power=left * model.noise_power, noise_on=noise_on)


def _beyond(model: FourierModel, n: int) -> Tensor:
    """Of n shells, those where the halves have no signal at all, or in part: there is what the cut left of others."""
    last = float(model.signal_power.nonzero().max()) / (len(model.signal_power) - 1)
    end = last if last == 1 else last - 0.5 / (n - 1)
    return torch.linspace(0, 1, n).to(model.signal_power.device) > end


def _score(predicted: Tensor, seen: Tensor, fsc: Tensor) -> float:
    """The mean over the shells that are scored; see the module."""
    _, shape = split_shape(seen.shape)
    p, s = rfft(predicted), rfft(seen)
    cross, power = radial_mean((p.conj() * s).real, shape), radial_mean(p.abs().square(), shape)
    total = radial_mean(s.abs().square(), shape)
    used = fsc > _LEAST_FSC
    used[0] = False
    if not used.any():
        used[1:] = True
    F = fsc.clamp(min=_LEAST_FSC)
    explained = (2 * cross - power) / (total * F).clamp(min=1e-30)
    correlated = cross / (power * total * F).sqrt().clamp(min=1e-30)
    return float(((1 - _CORRELATION) * explained + _CORRELATION * correlated)[used].mean())


def _too_bright(x: Tensor) -> float:
    """For densities above those that the prior knows."""
    top = float(x.flatten().kthvalue(max(1, int(_TOP * x.numel()))).values)
    return _PENALTY * max(0.0, math.log(max(top, 1e-9) / _BRIGHTEST)) ** 2


def _other_inside(level: float) -> float:
    """For an inside that is darker or brighter than the prior's."""
    return _INSIDE_PENALTY * (math.log(max(level, 1e-9) / _INSIDE) / _INSIDE_SPREAD) ** 2


def _inside(x: Tensor, voxel_size: float, resolution: float = 12.0) -> float:
    """Density of the inside at a low resolution: Σ ρ³ / Σ ρ² of what lies above the median."""
    _, shape = split_shape(x.shape)
    low_pass = torch.exp(-math.log(2) * (frequencies(shape) * resolution / voxel_size).square())
    smooth = fourier_filter(x, low_pass.to(x))
    density = (smooth - smooth.median()).clamp(min=0).double()
    return float((density**3).sum() / (density**2).sum().clamp(min=1e-30))


def densest(volume: Tensor, side: int) -> tuple[slice, slice, slice]:
    """The cube, or the whole axis where that is shorter, with most of the squared density; axis by axis."""
    total, places = volume.double().square(), []
    for axis in range(3):
        line = total.sum(tuple(other for other in range(3) if other != axis))
        first = int(line.unfold(0, side, 1).sum(-1).argmax()) if len(line) > side else 0
        places.append(slice(first, first + min(side, len(line))))
        total = total.narrow(axis, first, min(side, len(line)))
    z, y, x = places
    return z, y, x


def _dimmed(half: Tensor, model: FourierModel, generator: torch.Generator) -> tuple[Tensor, FourierModel]:
    """A half with noise added until its FSC is .143 at 2.4 voxels (3.6 Å of 1.5 Å); as it is, where it is no better.

    Where the data say everything the prior says nothing, and any envelope explains the other half.
    """
    n = len(model.signal_power)
    at = 2 / _DIMMED_AT * (n - 1)
    low = min(int(at), n - 2)
    log, noise = model.signal_power.double().clamp(min=1e-30).log(), model.noise_power.double()
    level = float(torch.lerp(log[low], log[low + 1], at - low).exp()) * (1 - _DIMMED_FSC) / _DIMMED_FSC
    if float(torch.lerp(noise[low], noise[low + 1], at - low)) >= level:
        return half, model  # what chance makes of strong noise may be far above all that coarser shells have
    extra = (level - noise).clamp(min=0)
    before = model.noise_on

    def noise_on(shape: Box) -> tuple[Tensor, Tensor]:
        noise, measured = before(shape)
        return noise + radial(extra, shape), measured

    dimmed = SpectralNoise(extra.to(half)).sample(half, generator=generator)
    return dimmed, attrs.evolve(model, noise_power=model.noise_power + extra.to(model.noise_power), noise_on=noise_on)
