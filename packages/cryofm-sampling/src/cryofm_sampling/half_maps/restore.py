"""Two half maps in, a restored map and what to know of it out."""

import warnings

import torch
import torch.distributed as dist
from torch import Tensor

from cryofm_ops import GridMismatchError, LinearOperator, fourier_filter, friedel_weights, radial, rfft
from cryofm_sampling._common import split_shape
from cryofm_sampling.errors import SettingError
from cryofm_sampling.half_maps._runs import Predicting, Runs, correlation, height
from cryofm_sampling.half_maps.model import HalfMapModel, Observe, observed_through, stationary_model
from cryofm_sampling.half_maps.result import Progress, RestoredHalfMaps
from cryofm_sampling.protocols import Sampler, VelocityField
from cryofm_sampling.runs.checkpoint import Checkpoint
from cryofm_sampling.samplers.plug_and_play import PlugAndPlay
from cryofm_sampling.samplers.posterior_flow import PosteriorFlow
from cryofm_sampling.scale import ScaleFit, fit_scale

__all__ = ["restore_half_maps"]

_AGREE = 0.05  # least FSC of shells where the halves say something of each other
_WEAK = 1.5  # of right scales the slope is 0.85 to 1.1, of those twice as large up to 1.25


def restore_half_maps(
    prior: VelocityField,
    half1: Tensor,
    half2: Tensor,
    /,
    *,
    generator: torch.Generator,
    observe: HalfMapModel | Observe | None = None,
    operator: LinearOperator | None = None,
    sampler: PlugAndPlay = PlugAndPlay(),  # noqa: B008 (frozen)
    scale: float | None = None,
    samples: int = 0,
    checkpoint: Checkpoint | None = None,
    group: "dist.ProcessGroup | None" = None,
    callback: Progress | None = None,
) -> RestoredHalfMaps:
    """Restore the mean of two half maps, and each half by itself; draw samples where asked to.

    The noise and the scale come from both halves and are the same for all three. Of anything else the restoration of a
    half sees that half alone; all begin with the same random numbers.

    Args:
        prior: a `Calibrated` velocity field with a `.normalization`; in `Tiled` for boxes larger than its own.
        half1: `(z, y, x)`, raw, on the prior's voxel size, in any units, near 0 in the solvent; on the prior's device.
        half2: likewise, with independent noise.
        generator: all randomness; the same seed gives the same maps.
        observe: how the halves came about, as `stationary_model` (the default), `directional_model` or `wedge_model`
            make it of them; or any function (y, fraction) -> likelihood of a map y whose noise has that fraction of the
            power that one half has.
        operator: with a function of your own: what a half shows of a density, noise aside. None: the density.
        sampler: restores.
        scale: what the halves are multiplied by to be the prior's. None: found by `fit_scale`.
        samples: maps to draw by `PosteriorFlow`.
        checkpoint: files named after it keep the state of every run, for the same call to go on after a kill; they
            stay until `checkpoint.remove_parts()`, so that results can be written first.
        group: `torch.distributed` processes that share the runs, unless the prior's tiles are shared.
        callback: is told of network evaluations.

    Raises `GridMismatchError` for halves that are not volumes of one shape, `SettingError` for settings out of range,
    and what `fit_scale` and `restore` raise.

    Warns where one half, restored, has to be multiplied by more than 1.5 to predict the other.

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
    if half1.shape != half2.shape:
        raise GridMismatchError(f"the halves differ in shape: {tuple(half1.shape)} and {tuple(half2.shape)}")
    batch, shape = split_shape(half1.shape)
    if batch:
        raise GridMismatchError(f"a half map is one volume (z, y, x), got {tuple(half1.shape)}")
    if samples < 0:
        raise SettingError(f"samples must be a whole number from 0, got {samples}")
    if isinstance(observe, HalfMapModel):
        model = observe
    elif observe is None and operator is None:
        model = stationary_model(half1, half2)
    elif observe is None:
        raise SettingError("an operator goes with observe, the likelihood of what it shows")
    else:
        model = observed_through(half1, half2, observe, operator)
    runs = Runs(prior, generator.get_state(), generator.device, checkpoint, group, callback)
    seeds = torch.randint(2**62, (samples + 1,), generator=generator, device=generator.device).tolist()[:samples]

    mean = (half1 + half2) / 2
    linear = fourier_filter(mean, model.gain.to(mean))
    linear += mean.mean() - linear.mean()
    trial: Sampler = PlugAndPlay(iterations=3)

    def fit_by_the_other(units: VelocityField) -> ScaleFit:
        return fit_scale(
            units,
            model.observe(half1, 1),
            model.comparable(half2),
            model.fsc,
            generator=runs.generator(),
            guess=1 / height(linear),
            sampler=trial if model.operator is None else Predicting(trial, model.operator),
        )

    fit = runs.found(scale, fit_by_the_other)
    drawing = PosteriorFlow() if model.operator is None else PosteriorFlow(first=sampler)  # which fills the gap
    likelihoods = [model.observe(mean, 1 / 2), model.observe(half1, 1), model.observe(half2, 1)]
    (draw, one, two), drawn = runs.restored_and_drawn(fit.normalization, likelihoods, sampler, drawing, seeds, shape)

    slope = _slope(half2, one.x, model)
    if slope > _WEAK and sampler.iterations >= PlugAndPlay().iterations:  # fewer passes leave more undone
        warnings.warn(
            f"where the halves agree, one restored has to be multiplied by {slope:.2g} to predict the other: the scale "
            f"{fit.normalization.scale:.3g} may be too high; look at the trials of the scale, and give a lower one",
            stacklevel=2,
        )
    return RestoredHalfMaps.of(
        draw,
        mean,
        fit,
        samples=drawn,
        missing=model.missing,
        linear=linear - (linear.mean() - draw.x.mean()),
        halves=(one.x, two.x),
        model=model,
        self_consistency=correlation(one.x, two.x),
        slope_of_the_other_half=slope,
    )


def _slope(half: Tensor, x: Tensor, model: HalfMapModel) -> float:
    """By what restored density x has to be multiplied to predict the other half, where the halves agree; about 1."""
    _, shape = split_shape(x.shape)
    agree = friedel_weights(shape).to(x) * (radial(model.fsc.to(x).nan_to_num(0), shape) > _AGREE)
    agree[0, 0, 0] = 0
    seen, predicted = rfft(model.comparable(half)), rfft(model.predict(x))
    return float((agree * (predicted.conj() * seen).real).sum() / (agree * predicted.abs().square()).sum())
