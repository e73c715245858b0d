"""The front door: from a prior and a likelihood in data units to restored volumes in data units."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Literal, cast

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from cryofm_ops import (
    Blind,
    Conjugate,
    FourierDiagonal,
    GridMismatchError,
    Likelihood,
    Proximal,
    in_model_units,
    radial,
)
from cryofm_sampling._common import missing, split_shape, streams, variance_at
from cryofm_sampling._counted import Tally, counted
from cryofm_sampling.errors import CapabilityError, SettingError
from cryofm_sampling.misfit import measured, warn_of
from cryofm_sampling.protocols import Calibrated, Callback, Draw, RunCallback, Sampler, VelocityField
from cryofm_sampling.runs._ranks import rank_and_size
from cryofm_sampling.runs.checkpoint import Checkpoint
from cryofm_sampling.runs.spread import spread
from cryofm_sampling.samplers._peaks import Elsewhere, mean_of_peaks
from cryofm_sampling.samplers.blind_guided import BlindGuided
from cryofm_sampling.samplers.guided import Guided
from cryofm_sampling.samplers.plug_and_play import PlugAndPlay
from cryofm_sampling.samplers.posterior_flow import PosteriorFlow
from cryofm_sampling.samplers.renoising import Renoising

__all__ = ["restore"]

_PEAKS = 4  # runs, where several modes are about as probable
_HELD = 4  # passes at the last level, of data that a log p alone tells


def restore(
    prior: VelocityField,
    likelihood: Likelihood | Conjugate | FourierDiagonal | Blind,
    /,
    *,
    shape: tuple[int, ...],
    generator: torch.Generator,
    estimate: Literal["mean", "samples"] | None = None,
    samples: int = 8,
    sampler: Sampler | None = None,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
    group: "dist.ProcessGroup | None" = None,
) -> Draw:
    """Restore volumes with the algorithm that the prior's and the likelihood's capabilities allow.

    The mean has the smallest expected error, and is the one to look at; samples show what the data leave
    open, and each has about twice the mean's squared error. A result that explains the data worse than it should is
    returned with a `MisfitWarning`.

    Args:
        prior: a velocity field in model units. If it has a `.normalization`, that maps them to data units;
            without one the two are the same.
        likelihood: in data units.
        shape: of the volumes, `(*batch, z, y, x)`.
        generator: all randomness; the same seed gives the same volumes.
        estimate: `"mean"`, the posterior mean, or `"samples"`. Whatever the sampler, this decides what is returned, so
            that it has to be said for a sampler of your own that draws samples; otherwise it is the mean. The mean is
            found by `PlugAndPlay` where the prior is `Calibrated`: in closed form for a `FourierDiagonal` likelihood
            (with more passes where it says that something was not measured at all, and the rest without noise), by what
            a `Conjugate` one has for it, such as conjugate gradients, and where there is only a `log_prob` by the most
            probable volume of every pass, and the mean at the end (`Proximal`). Samples are then those of
            `PosteriorFlow`. Without a `Calibrated` prior both are by `Guided`, the mean being the average of `samples`
            runs; where the likelihood is `Blind` they are by `BlindGuided`, and the mean is that of the runs which fits
            best.
            **Where the posterior has several peaks** the mean may look like none of them. Where a `log_prob` alone
            shows several modes that are about as probable, x is the mean of four runs that begin at one each, and
            `mode` that of the run that fits best; the `note` says so. Any other `PlugAndPlay` finds one of the peaks,
            as does the best run of `BlindGuided`, and the average of samples is their mean.
        samples: number of runs of a sampler that draws samples; the first k do not depend on how many follow.
        sampler: another algorithm than these.
        callback: is told of every step; of one run after the other where there are several, and which it is if it is
            a `RunCallback`.
        checkpoint: a file from which the same call goes on after it was killed, to the same bits; one for every
            sample, named after it, where there are several. Where this call or the prior has a group, that decides
            which ranks share a file.
        group: `torch.distributed` processes that share the samples, such as `torch.distributed.group.WORLD` under
            torchrun: sample k is drawn by rank k modulo their number, and all ranks return the same. A single run is
            done by every rank. (To share a volume instead, give `Tiled` the group.)

    Returns: the volumes in data units, shaped `shape`, or `(samples, *shape)` for samples, with their `misfit` and the
    `calls` of the operator. `settings` has the sampler's settings, `algorithm`, `because`: why it was chosen, and
    of `PlugAndPlay` the `noise_level` of the last pass, for white noise its standard deviation, in data units.

    Raises `CapabilityError` where `PlugAndPlay`, whose spread is no uncertainty, or the average of `Renoising` chains
    is asked for samples, where `sampler` is no `Sampler`, or where a checkpoint is asked for and it takes none;
    `CheckpointError` if the checkpoint belongs to another call; `SettingError` for settings out of range;
    `OperatorError` for a likelihood that is in model units already.

    >>> from cryofm_ops import Identity, WhiteNoise, gaussian_likelihood
    >>> from cryofm_sampling.testing import GaussianPrior
    >>> likelihood = gaussian_likelihood(Identity(), WhiteNoise(1.0), torch.ones(8, 8, 8))
    >>> generator = torch.Generator().manual_seed(0)
    >>> draw = restore(GaussianPrior(1.0), likelihood, shape=(8, 8, 8), generator=generator)
    >>> print(f"{draw.x.mean():.1f} by {draw.settings['algorithm']}")
    0.5 by PlugAndPlay
    """
    if estimate not in ("mean", "samples", None):
        raise SettingError(f'estimate must be "mean" or "samples", got {estimate!r}')
    if not isinstance(generator, torch.Generator):
        raise SettingError(f"generator must be a torch.Generator, got {generator!r}")
    for what, thing in (("prior", prior), ("likelihood", likelihood), ("sampler", sampler)):
        if isinstance(thing, type):
            raise CapabilityError(f"the {what} is the class {thing.__name__}; give an object of it")
    for what, called in (("prior", prior), ("sampler", sampler), ("callback", callback)):
        if not callable(called) and (called is not None or what == "prior"):
            raise CapabilityError(f"the {what} must be callable, {type(called).__name__} is not")
    if not hasattr(samples, "__index__") or samples < 1:
        raise SettingError(f"samples must be a whole number from 1, got {samples!r}")
    normalization = getattr(prior, "normalization", None)
    _, box = split_shape(shape)
    tally = Tally()
    ours = sampler is None or isinstance(sampler, PlugAndPlay | PosteriorFlow | Renoising | Guided)
    inner = counted(likelihood, tally) if ours else likelihood
    if normalization is not None:
        inner = in_model_units(inner, normalization, shape=box)
    because = "the caller chose it"
    chosen = sampler is None
    if sampler is None:
        estimate = estimate or "mean"
        sampler, because = _choose(prior, inner, estimate)
    mean_only = isinstance(sampler, PlugAndPlay) or (isinstance(sampler, Renoising) and sampler.chains > 1)
    if estimate is None and not mean_only and samples > 1:
        raise SettingError(
            f'{type(sampler).__name__} draws samples: give estimate="samples", or "mean" for the average of {samples}'
        )
    estimate = estimate or "mean"
    if mean_only and estimate == "samples":
        raise CapabilityError(
            f"{type(sampler).__name__} gives the posterior mean only here; for samples use PosteriorFlow()"
        )
    try:
        inspect.signature(sampler).bind(prior, inner, shape=shape, generator=generator, callback=callback)
    except TypeError as error:  # such as Flow, which draws from the prior alone
        raise CapabilityError(f"{type(sampler).__name__} cannot be called as a Sampler: {error}") from None
    if checkpoint is not None and "checkpoint" not in inspect.signature(sampler).parameters:
        raise CapabilityError(f"a checkpoint was asked for, but {type(sampler).__name__} takes no checkpoint=")
    tiles = getattr(prior, "group", None)
    if not (dist.is_available() and isinstance(tiles, dist.ProcessGroup)):  # such as a point group
        tiles = None
    if group is not None and tiles is not None:
        raise SettingError("the ranks share either samples (restore) or tiles (Tiled): give one of them the group")
    if checkpoint is not None and (group is not None or tiles is not None):
        # Ranks that do the same run share its file; those that share the samples have their own.
        checkpoint = attrs.evolve(checkpoint, group=group if group is not None and mean_only else tiles)
    data = cast(Likelihood, inner)  # a sampler of the caller's choice may take another one
    # Every sample has a generator of its own, so that none depends on who draws the others, and on how many.
    generators = [generator] if mean_only else streams(generator, (samples,))
    heard = [callback] * len(generators)
    if isinstance(callback, RunCallback) and len(generators) > 1:
        heard = [callback.of_run(k + 1, len(generators)) for k in range(len(generators))]
    jobs = [
        partial(sampler, prior, data, shape=shape, generator=own, callback=told)
        for own, told in zip(generators, heard, strict=True)
    ]
    if checkpoint is not None:
        parts = [checkpoint] if mean_only else map(checkpoint.part, range(samples))
        jobs = [partial(job, checkpoint=part) for job, part in zip(jobs, parts, strict=True)]
    draws = spread(jobs, None if mean_only else group)
    if wrong := [tuple(draw.x.shape) for draw in draws if draw.x.shape != tuple(shape)]:
        raise GridMismatchError(f"{type(sampler).__name__} gave volumes of shape {wrong[0]}, asked for {tuple(shape)}")
    if checkpoint is not None and not mean_only:
        _remove_parts(checkpoint, samples, *rank_and_size(group))
    runs = len(draws)
    if chosen and isinstance(sampler, PlugAndPlay) and draws[0].settings.get("several_modes"):
        levels = cast("list[float]", draws[0].settings["time"])
        same = attrs.evolve(sampler, time=sum(levels) / len(levels))  # the noise is one, whatever the mode
        run = partial(same, prior, shape=shape, generator=generator)
        draws, runs = [_of_several_peaks(run, draws[0], Proximal(data), callback, checkpoint)], _PEAKS
    x = torch.stack([draw.x for draw in draws])
    if estimate == "mean":
        x = _best(x, inner) if isinstance(inner, Blind) and isinstance(sampler, BlindGuided) else x.mean(0)
    mode = draws[0].mode if mean_only else None
    scale = 1.0 if normalization is None else normalization.std
    if normalization is not None:
        x = x * scale + normalization.mean
        mode = None if mode is None else mode * scale + normalization.mean
    own: dict[str, object] = {
        "algorithm": type(sampler).__name__,
        "because": because,
        "estimate": estimate,
        "samples": runs,
    }
    if isinstance(sampler, PlugAndPlay):
        times = cast("list[float]", draws[0].settings["time"])
        own["noise_level"] = [scale * variance_at(t) ** 0.5 for t in times]
    settings = own | dict(draws[0].settings) | own  # its own first to be read, and not to be overwritten
    nfe = sum(draw.nfe for draw in draws) if estimate == "mean" else draws[0].nfe
    found = _misfit(
        x if mode is None else mode, likelihood if not ours else counted(likelihood, tally), prior, box, scale
    )
    return Draw(x, nfe, settings, found, tally.calls, mode)


def _of_several_peaks(
    run: Callable[..., Draw], first: Draw, data: Proximal, callback: Callback | None, checkpoint: Checkpoint | None
) -> Draw:
    """The mean of `first` and of runs that begin at other modes, each from a draw of the prior."""
    draws = [first]
    for k in range(1, _PEAKS):
        told = callback.of_run(k + 1, _PEAKS) if isinstance(callback, RunCallback) else callback
        kept = {} if checkpoint is None else {"checkpoint": checkpoint.part(k)}
        draws.append(run(Elsewhere(data, k), callback=told, **kept))
    if checkpoint is not None:
        checkpoint.remove_parts(_PEAKS)
    return mean_of_peaks(draws, data)


def _misfit(
    x: Tensor, likelihood: object, prior: VelocityField, box: tuple[int, int, int], std: float
) -> Tensor | None:
    """That of the result, with a warning where it is large; of a `Blind` likelihood with its poses found again."""
    if isinstance(likelihood, Blind) and not hasattr(likelihood, "log_prob"):
        return None  # poses for every volume would be searched once more
    table = prior.signal_power.to(x) if isinstance(prior, Calibrated) else x.new_ones(2)
    found = measured(x, likelihood, std**2 * radial(table, box))
    if found is None:
        return None
    warn_of(*found)
    return found[0]


def _best(x: Tensor, likelihood: Blind) -> Tensor:
    """Of runs `(K, *batch, z, y, x)` for every volume that which fits its data best: in other poses, or as its mirror
    image, the same object averages to none.
    """
    with torch.autocast(x.device.type, enabled=False):  # which is meant for the network
        fits = torch.stack([likelihood.refine(run).log_prob(run) for run in x])
    best = fits.nan_to_num(-math.inf).argmax(0)
    return x.gather(0, best[None, ..., None, None, None].expand(1, *x.shape[1:]))[0]


def _remove_parts(checkpoint: Checkpoint, samples: int, rank: int, size: int) -> None:
    """Those of the rank, and beyond `samples` what a call for more of them left when it was killed."""
    for k in count(rank, size):
        part = checkpoint.part(k)
        if k >= samples and not part.path.exists():
            return
        part.remove()


def _choose(
    prior: VelocityField, likelihood: Likelihood | Conjugate | FourierDiagonal | Blind, estimate: str
) -> tuple[Sampler, str]:
    if isinstance(likelihood, Blind) and not hasattr(likelihood, "log_prob"):
        which = "; the run that fits best is taken" if estimate == "mean" else ""
        return BlindGuided(), f"the likelihood is Blind: its poses are searched at every step{which}"
    if isinstance(prior, Calibrated):
        if isinstance(likelihood, FourierDiagonal | Conjugate):
            kind = "FourierDiagonal" if isinstance(likelihood, FourierDiagonal) else "Conjugate"
            because = f"the likelihood is {kind} and the prior Calibrated"
            mean = _mean(likelihood)
        else:
            because = "the likelihood has a log_prob alone, by which the most probable volume is found in every pass"
            mean = PlugAndPlay(held=_HELD)
        if estimate == "mean":
            more = (
                "" if mean.iterations == PlugAndPlay().iterations else ", in more passes to fill what was not measured"
            )
            return mean, f"{because}: the mean in fewest evaluations{more}"
        complete = isinstance(likelihood, FourierDiagonal) and not _has_gaps(likelihood.spectral_precision())
        flow = PosteriorFlow() if complete else PosteriorFlow(first=attrs.evolve(mean, held=0))
        return flow, f"samples were asked for, {because}: the flow of the posterior"
    because = f"the prior is not Calibrated: {missing(prior, 'signal_power', 'denoising_error')}"
    averaged = "; its samples are averaged" if estimate == "mean" else ""
    return Guided(), f"{because}{averaged}"


def _has_gaps(W: Tensor) -> bool:
    """Whether more than the mean, which is filled in at once, was not measured."""
    gaps = W == 0
    gaps[..., 0, 0, 0] = False
    return bool(gaps.any())


def _mean(likelihood: FourierDiagonal | Conjugate) -> PlugAndPlay:
    """With more passes where gaps have to be filled beside data without noise."""
    if isinstance(likelihood, FourierDiagonal):
        W = likelihood.spectral_precision()
        if _has_gaps(W) and not ((W > 0) & W.isfinite()).any():
            return PlugAndPlay(iterations=20)
    return PlugAndPlay()
