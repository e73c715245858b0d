"""Two half maps in, a restored map and what to know of it out."""

import math
from functools import cache

import attrs
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import interpolate

from cryofm_ops import (
    Envelope,
    GridMismatchError,
    LinearOperator,
    NoiseEstimate,
    estimate_noise_power,
    fourier_filter,
    frequencies,
)
from cryofm_sampling._common import split_shape
from cryofm_sampling.errors import SettingError
from cryofm_sampling.half_maps._fsc import correlation
from cryofm_sampling.half_maps._runs import Predicting, Runs, average, check_scale, height
from cryofm_sampling.half_maps.checks import HeldOut, held_out, widening
from cryofm_sampling.half_maps.envelope import (
    SIDE,
    SIDE_OF_FINE,
    EnvelopeFit,
    densest,
    fine_b_factor,
    fit_envelope,
    signal_end,
)
from cryofm_sampling.half_maps.fine import FineFilter
from cryofm_sampling.half_maps.join import last_trusted
from cryofm_sampling.half_maps.model import (
    FourierModel,
    HalfMapModel,
    Observe,
    ObservedModel,
    directional_model,
    stationary_model,
)
from cryofm_sampling.half_maps.own_grid import OwnGrid
from cryofm_sampling.half_maps.region import on_grid, where_halves_agree
from cryofm_sampling.half_maps.result import Grid, Progress, RestoredHalfMaps, SameGrid
from cryofm_sampling.protocols import Sampler, VelocityField
from cryofm_sampling.runs.checkpoint import Checkpoint
from cryofm_sampling.samplers.plug_and_play import PlugAndPlay
from cryofm_sampling.samplers.posterior_flow import PosteriorFlow
from cryofm_sampling.scale import ScaleFit, fit_scale

__all__ = ["restore_half_maps"]

_SCALED = 64  # side of the cube where the scale alone is sought
_FINE = 1.05 / 3  # 1/Å, beyond which a prior would be shown what halves agree about that is no signal
_COARSE = 3.5  # Å a voxel of the prior, beyond which a map shows neither an envelope nor what all proteins share


def restore_half_maps(
    prior: VelocityField,
    half1: Tensor,
    half2: Tensor,
    /,
    *,
    generator: torch.Generator,
    voxel_size: float | None = None,
    grid: Grid | None = None,
    observe: HalfMapModel | Observe | None = None,
    operator: LinearOperator | None = None,
    sampler: Sampler = PlugAndPlay(),  # noqa: B008 (frozen)
    b_factor: float | None = None,
    scale: float | None = None,
    solvent_contrast: float | None = None,
    samples: int = 0,
    where: Tensor | None = None,
    checkpoint: Checkpoint | None = None,
    group: "dist.ProcessGroup | None" = None,
    callback: Progress | None = None,
) -> RestoredHalfMaps:
    """Restore the mean of two half maps, and each half by itself; draw samples where asked to.

    So it is with `PlugAndPlay`. A sampler that draws, such as `Guided`, restores each half by itself, and the map is
    their average, as in the paper.

    Noise, envelope and scale come from both halves and are the same for all three. Of anything else the restoration of
    a half sees that half alone; all begin with the same random numbers. Beyond the prior's band, and where restoring
    does not help one half predict the other, the map is what the best linear filter makes of the data: all of it, with
    a doubt, where one half as a whole is predicted worse.

    Args:
        prior: a velocity field with a `.normalization`, and `Calibrated` if `sampler` or `samples` need it; in `Tiled`
            for boxes larger than its own.
        half1: `(z, y, x)`, raw, in any units, near 0 in the solvent; on the prior's device.
        half2: likewise, with independent noise.
        generator: all randomness; the same seed gives the same maps.
        voxel_size: of the halves, Å; without it no envelope is sought.
        grid: the way of the halves to the prior's voxel size. None: they have it.
        observe: how the halves came about on the prior's grid: a model such as `directional_model` (the default, which
            estimates what depends on direction), `stationary_model`, `wedge_model` or `local_model` make; or any
            function (y, fraction) -> likelihood of a map y whose noise has that fraction of the power of one half.
        operator: with a function of your own: what a half shows of a density, noise aside, envelope and solvent
            included. None: the density.
        sampler: restores.
        b_factor: B of the halves' envelope in Å², 0 for sharpened ones. None: found, where `voxel_size` is told, the
            prior `Calibrated` and its grid one of details (up to 3.5 Å a voxel); otherwise 0.
        scale: what the halves are multiplied by to be the prior's. None: found; where the prior is not `Calibrated`, by
            the brightest voxels alone.
        solvent_contrast: k of the halves, see `RestoredHalfMaps`. None: found with B or the scale; otherwise 0.
        samples: maps to draw by `PosteriorFlow`.
        where: where density can be, `(z, y, x)` on the halves' grid, true or a mask; a `Tiled` prior is evaluated there
            alone, and what is elsewhere is solvent. None: where the halves agree.
        checkpoint: files named after it keep the state of every run, for the same call to go on after a kill; they
            stay until `checkpoint.remove_parts()`, so that results can be written first.
        group: `torch.distributed` processes that share the runs, unless the prior's tiles are shared.
        callback: is told of network evaluations.

    Raises `GridMismatchError` for halves that are not volumes of one shape, `SettingError` for settings out of range,
    and an envelope or solvent beside a function of your own, and what `restore` raises.

    Warns of a result's `doubts`.

    >>> from types import SimpleNamespace
    >>> from cryofm_sampling import Rescaled
    >>> from cryofm_sampling.testing import GaussianPrior
    >>> prior = Rescaled(GaussianPrior(1.0, (16, 16, 16)), SimpleNamespace(mean=0.0, std=1.0))
    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.randn(16, 16, 16, generator=generator)
    >>> halves = [x + torch.randn(16, 16, 16, generator=generator) for _ in range(2)]
    >>> result = restore_half_maps(prior, *halves, generator=generator, scale=1.0)
    >>> bool((result.map - x).square().mean() < (result.observed - x).square().mean())
    True
    """
    _check(half1, half2, samples)
    _, shape_of_halves = split_shape(half1.shape)
    own_size = voxel_size or 1.0
    if grid is None:
        grid = SameGrid(own_size)

    @cache
    def shells() -> NoiseEstimate:
        """Of the halves on their own grid, if it is needed."""
        return estimate_noise_power(half1, half2, allow_masked=True)

    # The data: on the prior's grid, how they came about, in which units.
    one, two, band = grid.forward(half1), grid.forward(half2), grid.band
    if voxel_size is not None and observe is None and 0.5 / grid.voxel_size > _FINE:
        end = 2 * grid.voxel_size * signal_end(shells(), shape_of_halves, voxel_size=voxel_size)
        if end < band:
            band, one, two = end, _within(one, end), _within(two, end)
    model = _model(one, two, observe, operator, band)
    if isinstance(model, ObservedModel) and (b_factor or solvent_contrast):
        raise SettingError("b_factor and solvent_contrast are no matter of a likelihood of your own: put them in it")
    runs = Runs(prior, generator.get_state(), generator.device, checkpoint, group, callback)
    runs = runs.within(_where(model, one, two) if where is None else on_grid(where, grid))
    seeds = torch.randint(2**62, (samples + 1,), generator=generator, device=generator.device).tolist()[:samples]
    mean = (one + two) / 2
    check_scale(scale, mean)
    fit: ScaleFit | EnvelopeFit | None = None
    b, k = b_factor or 0.0, solvent_contrast or 0.0
    enveloped = voxel_size is not None and grid.voxel_size <= _COARSE and (b_factor is None or scale is None)
    if enveloped and runs.calibrated and isinstance(model, FourierModel):
        atoms = fine_b_factor(shells(), shape_of_halves, voxel_size=own_size) if b_factor is None else None
        fit = _envelope(runs, model, one, two, grid.voxel_size, (scale, b_factor, solvent_contrast), atoms)
        b, k = fit.b_factor, fit.solvent_contrast
    if isinstance(model, FourierModel):
        model = model.blurred(Envelope(b, grid.voxel_size), k)
    if fit is None:
        fit = _scale(runs, model, one, two, scale)

    # The posterior: given both halves, given each, and samples.
    means, drawing = isinstance(sampler, PlugAndPlay), PosteriorFlow()
    if model.missing is not None and isinstance(sampler, PlugAndPlay):
        drawing = PosteriorFlow(first=sampler)  # which fills the gap
    whole_data = model.observe(mean, 1 / 2)
    likelihoods = [*([whole_data] if means else []), model.observe(one, 1), model.observe(two, 1)]
    wanted = [(whole_data, seed) for seed in seeds] + [(likelihoods[-2], seed) for seed in seeds[:1] if means]
    _, shape = split_shape(mean.shape)
    restored, drawn = runs.restored_and_drawn(fit.normalization, likelihoods, sampler, drawing, wanted, shape)
    if not means:
        restored = [average(*restored), *restored]
    del likelihoods, wanted, whole_data  # what follows is on the halves' own grid, and takes most of all

    # Whether to believe it, and up to where.
    judged = _judged(
        model,
        (one, two),
        (restored[1].x, restored[2].x),
        drawn.pop().x if len(drawn) > len(seeds) else None,
        band=band if band < grid.band else None,
        mean=means,
        scaled=means and isinstance(fit, ScaleFit) and bool(fit.trials),  # by correlations, which see no amplitude
    )
    nowhere = means and judged.held_out.worse
    end = min(judged.trusted, band) / grid.band  # of the halves' own Nyquist frequency
    fine = None
    if end < 1 or nowhere:
        fine = FineFilter.of(shells(), shape_of_halves, voxel_size=own_size, b_factor=b, width=grid.voxel_size)
    back = OwnGrid(grid, model, judged.amplitude, restored[0].x, fine, end, nowhere)

    def mean_of_halves() -> Tensor:  # made anew for every sample, and not kept for them
        return (half1 + half2) / 2

    def way(x: Tensor, i: int) -> Tensor:
        own = torch.Generator(generator.device).manual_seed(seeds[i] + 1)
        return back.sample(x, mean_of_halves(), widening=judged.widening, generator=own)

    both = mean_of_halves()
    seen = ((one, half1), (two, half2))
    result = RestoredHalfMaps.of(
        attrs.evolve(restored[0], x=back.restored(restored[0].x, mean, both)),
        both,
        fit,
        samples=drawn,
        way=way,
        missing=model.missing,
        linear=back.linear(mean, both),
        each_half=lambda: (back.restored(draw.x, *data) for draw, data in zip(restored[1:], seen, strict=True)),
        model=model,
        b_factor=b,
        restored_to=own_size * max(shape_of_halves) if nowhere else 2 * own_size / min(end, 1.0),
        self_consistency=correlation(restored[1].x, restored[2].x),
        held_out=judged.held_out,
        amplitude=judged.amplitude,
        widening=judged.widening,
        solvent_contrast=k,
        doubts_of_data=model.doubts,
    )
    result.warn_of_doubts(stacklevel=3)
    return result


def _check(half1: Tensor, half2: Tensor, samples: int) -> None:
    if half1.shape != half2.shape:
        raise GridMismatchError(f"the halves differ in shape: {tuple(half1.shape)} and {tuple(half2.shape)}")
    batch, _ = split_shape(half1.shape)
    if batch:
        raise GridMismatchError(f"a half map is one volume (z, y, x), got {tuple(half1.shape)}")
    if not 0 <= samples < 2**31 or samples != int(samples):
        raise SettingError(f"samples must be a whole number from 0, got {samples}")


@attrs.frozen
class _Judged:
    """What one half, restored, says of the other: in which amplitude, how surely, up to which part of Nyquist."""

    held_out: HeldOut
    amplitude: float
    widening: float
    trusted: float


def _judged(
    model: FourierModel | ObservedModel,
    halves: tuple[Tensor, Tensor],
    restored: tuple[Tensor, Tensor],
    sample: Tensor | None,
    *,
    band: float | None,
    mean: bool,
    scaled: bool,
) -> _Judged:
    """Of both halves, each restored by itself, and a sample by the first alone; what was shown ends at `band`.

    `mean`: what was restored is one, and no sample, which differs from what it predicts; `scaled`: in an amplitude that
    was not found.
    """

    def predict(x: Tensor) -> Tensor:
        return model.predict(x) if band is None else _within(model.predict(x), band)

    one, two = map(model.comparable, halves)
    predicted, other = map(predict, restored)
    amplitude = 1.0
    if scaled:
        slopes = held_out(predicted, one, two).slope, held_out(other, two, one).slope
        if min(slopes) > 0:
            amplitude, predicted = math.prod(slopes) ** 0.5, slopes[1] * predicted
    wider = 1.0 if sample is None else widening(predicted, amplitude * predict(sample), one, two, model.gain)
    trusted = last_trusted(predicted, one, two) if mean else 1.0
    return _Judged(held_out(predicted, one, two), amplitude, wider, trusted)


def _within(x: Tensor, band: float) -> Tensor:
    """What is coarser than a part of the Nyquist frequency."""
    _, shape = split_shape(x.shape)
    return fourier_filter(x, (2 * frequencies(shape, device=x.device) <= band).to(x))


def _model(
    one: Tensor, two: Tensor, observe: HalfMapModel | Observe | None, operator: LinearOperator | None, band: float
) -> FourierModel | ObservedModel:
    if isinstance(observe, FourierModel | ObservedModel):
        return observe
    if observe is not None:
        return ObservedModel(stationary_model(one, two, band=band), observe, operator)  # type: ignore[arg-type]
    if operator is not None:
        raise SettingError("an operator goes with observe, the likelihood of what it shows")
    return directional_model(one, two, band=band)


def _envelope(
    runs: Runs,
    model: FourierModel,
    one: Tensor,
    two: Tensor,
    voxel_size: float,
    known: tuple[float | None, float | None, float | None],
    atoms_b_factor: float | None,
) -> EnvelopeFit:
    """What is not known of scale, B and k, by what one half restored explains of the other."""
    scale, b_factor, solvent_contrast = known

    def fit(units: VelocityField) -> EnvelopeFit:
        return fit_envelope(
            units,
            one,
            two,
            model,
            voxel_size=voxel_size,
            normalization=runs.normalization,
            generator=runs.generator(),
            scale=scale,
            b_factor=b_factor,
            atoms_b_factor=atoms_b_factor,
            solvent_contrast=solvent_contrast,
        )

    coarse = b_factor is None and atoms_b_factor is None
    return runs.agreed(fit, SIDE if coarse else SIDE_OF_FINE)


def _where(model: FourierModel | ObservedModel, one: Tensor, two: Tensor) -> Tensor | None:
    """Where density can be; what the halves show through an operator, they do not show in place."""
    if isinstance(model, ObservedModel) and model.operator is not None:
        return None
    plain = model.plain if isinstance(model, ObservedModel) else model
    return where_halves_agree(model.comparable(one), model.comparable(two), plain.signal_power, plain.noise_power)


def _scale(runs: Runs, model: FourierModel | ObservedModel, one: Tensor, two: Tensor, scale: float | None) -> ScaleFit:
    """The scale alone, by cross-validation; where it can be, where most density is."""
    if scale is not None:
        return ScaleFit(runs.scaled(scale), (), 0)
    if isinstance(model, FourierModel) and max(one.shape) > _SCALED:
        box = densest(fourier_filter((one + two) / 2, model.gain.to(one)), _SCALED)
        _, shape = split_shape(one[box].shape)
        n = max(shape) // 2 + 1
        fsc = interpolate(model.fsc.nan_to_num(0)[None, None], n, mode="linear", align_corners=True)[0, 0]
        part = attrs.evolve(model.on(shape), fsc=fsc)
        fit = _cross_validated(runs, part, one[box].contiguous(), two[box].contiguous())
        scores = [score for _, score in fit.trials]
        if scores and max(scores) not in (scores[0], scores[-1]):
            return fit
    return _cross_validated(runs, model, one, two)


def _cross_validated(runs: Runs, model: FourierModel | ObservedModel, one: Tensor, two: Tensor) -> ScaleFit:
    guess = 1 / height(fourier_filter((one + two) / 2, model.gain.to(one)))
    if not runs.calibrated:
        return ScaleFit(runs.scaled(guess), (), 0)
    trial = PlugAndPlay(iterations=3)
    through = trial if model.operator is None else Predicting(trial, model.operator)

    def fit(units: VelocityField) -> ScaleFit:
        return fit_scale(
            units,
            model.observe(one, 1),
            model.comparable(two),
            model.fsc,
            generator=runs.generator(),
            guess=guess,
            sampler=through,
        )

    return runs.agreed(fit, max(one.shape))
