"""The front door: from a prior and a likelihood in data units to restored volumes in data units."""

import inspect
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor

from cryofm_ops import Blind, Conjugate, FourierDiagonal, Likelihood, in_model_units
from cryofm_sampling._common import missing, streams
from cryofm_sampling.blind_guided import BlindGuided
from cryofm_sampling.checkpoint import Checkpoint
from cryofm_sampling.errors import CapabilityError, SettingError
from cryofm_sampling.guided import Guided
from cryofm_sampling.plug_and_play import PlugAndPlay
from cryofm_sampling.posterior_flow import PosteriorFlow
from cryofm_sampling.protocols import Calibrated, Callback, Draw, Sampler, VelocityField
from cryofm_sampling.renoising import Renoising
from cryofm_sampling.spread import spread

__all__ = ["restore"]

# In a missing wedge dither matters little to a prior that was trained on what plug-and-play shows (FSC_AUC of two
# training maps .935 and .988, without .934 and .990) and much to one that was not (.890, .859); with noise, in pairs.
_FILLING = PlugAndPlay(iterations=20, dither=1.0, relaxation=1.5)
_FILLING_NOISY = PlugAndPlay(iterations=10, pairs=1, dither=0.6)


def restore(
    prior: VelocityField,
    likelihood: Likelihood | Blind,
    /,
    *,
    shape: tuple[int, ...],
    generator: torch.Generator,
    estimate: Literal["mean", "samples"] = "mean",
    samples: int = 8,
    sampler: Sampler | None = None,
    callback: Callback | None = None,
    checkpoint: Checkpoint | None = None,
    group: "dist.ProcessGroup | None" = None,
) -> Draw:
    """Restore volumes with the algorithm that the prior's and the likelihood's capabilities allow.

    The mean has the smallest expected error, and is the one to look at; samples show what the data leave
    open, and each has about twice the mean's squared error.

    Args:
        prior: a velocity field in model units. If it has a `.normalization`, that maps them to data units;
            without one the two are the same.
        likelihood: in data units.
        shape: of the volumes, `(*batch, z, y, x)`.
        generator: all randomness; the same seed gives the same volumes.
        estimate: `"mean"`: the posterior mean, by `PlugAndPlay` where the likelihood is `FourierDiagonal` and
            the prior `Calibrated` (with more passes where something was not measured at all), otherwise averaged
            over `samples` runs of `Guided`, or of `BlindGuided` where the likelihood is `Blind`. `"samples"`: those
            runs themselves; where the prior is `Calibrated`, runs of `PosteriorFlow` if the likelihood is
            `FourierDiagonal`, and of `Renoising` if it is `Conjugate`.
        samples: number of runs of a sampler that draws samples; the first k do not depend on how many follow.
        sampler: another algorithm than these.
        callback: is told of every step; of one run after the other where there are several.
        checkpoint: a file from which the same call goes on after it was killed, to the same bits; one for every
            sample, named after it, where there are several.
        group: `torch.distributed` processes that share the samples, such as `torch.distributed.group.WORLD` under
            torchrun: sample k is drawn by rank k modulo their number, and all ranks return the same. A single run is
            done by every rank. (To share a volume instead, give `Tiled` the group.)

    Returns: the volumes in data units, shaped `shape`, or `(samples, *shape)` for samples. `settings` has the
    sampler's settings, `algorithm`, and `because`: why it was chosen.

    Raises `CapabilityError` where `PlugAndPlay`, whose spread is no uncertainty, or the average of `Renoising` chains
    is asked for samples, or where a checkpoint is asked for and the sampler takes none; `CheckpointError` if the
    checkpoint belongs to another call; `SettingError` for settings out of range.

    >>> from cryofm_ops import Identity, WhiteNoise, gaussian_likelihood
    >>> from cryofm_sampling.testing import GaussianPrior
    >>> likelihood = gaussian_likelihood(Identity(), WhiteNoise(1.0), torch.ones(8, 8, 8))
    >>> generator = torch.Generator().manual_seed(0)
    >>> draw = restore(GaussianPrior(1.0), likelihood, shape=(8, 8, 8), generator=generator)
    >>> print(f"{draw.x.mean():.2f} by {draw.settings['algorithm']}")
    0.50 by PlugAndPlay
    """
    if estimate not in ("mean", "samples"):
        raise SettingError(f'estimate must be "mean" or "samples", got {estimate!r}')
    if samples < 1:
        raise SettingError(f"samples must be at least 1, got {samples}")
    normalization = getattr(prior, "normalization", None)
    inner = likelihood if normalization is None else in_model_units(likelihood, normalization)
    because = "the caller chose it"
    if sampler is None:
        sampler, because = _choose(prior, inner, estimate)
    mean_only = isinstance(sampler, PlugAndPlay) or (isinstance(sampler, Renoising) and sampler.chains > 1)
    if mean_only and estimate == "samples":
        raise CapabilityError(
            f"{type(sampler).__name__} gives the posterior mean only here; for samples use PosteriorFlow()"
        )

    if checkpoint is not None and "checkpoint" not in inspect.signature(sampler).parameters:
        raise CapabilityError(f"a checkpoint was asked for, but {type(sampler).__name__} takes no checkpoint=")
    if group is not None and getattr(prior, "group", None) is not None:
        raise SettingError("the ranks share either samples (restore) or tiles (Tiled): give one of them the group")
    data = cast(Likelihood, inner)  # a sampler of the caller's choice may take a Blind one
    # Every sample has a generator of its own, so that none depends on who draws the others, and on how many.
    generators = [generator] if mean_only else streams(generator, (samples,))
    jobs = [
        partial(sampler, prior, data, shape=shape, generator=own, callback=callback, **_at(checkpoint, k, mean_only))
        for k, own in enumerate(generators)
    ]
    draws = [jobs[0]()] if mean_only else spread(jobs, group)
    if checkpoint is not None and not mean_only:
        for k in range(samples):
            checkpoint.part(k).remove()
    x = torch.stack([draw.x for draw in draws])
    if estimate == "mean":
        x = x.mean(0)
    if normalization is not None:
        x = x * normalization.std + normalization.mean
    settings = {
        "algorithm": type(sampler).__name__,
        "because": because,
        "estimate": estimate,
        "samples": len(draws),
        **draws[0].settings,
    }
    nfe = sum(draw.nfe for draw in draws) if estimate == "mean" else draws[0].nfe
    return Draw(x, nfe, settings)


def _at(checkpoint: Checkpoint | None, k: int, alone: bool) -> dict[str, Any]:
    """The argument for run k, for a sampler that has it."""
    return {} if checkpoint is None else {"checkpoint": checkpoint if alone else checkpoint.part(k)}


def _choose(prior: VelocityField, likelihood: Likelihood | Blind, estimate: str) -> tuple[Sampler, str]:
    if isinstance(likelihood, Blind) and not hasattr(likelihood, "log_prob"):
        return BlindGuided(), "the likelihood is Blind: its poses are searched at every step"
    if isinstance(likelihood, FourierDiagonal) and isinstance(prior, Calibrated):
        because = "the likelihood is FourierDiagonal and the prior Calibrated"
        mean, more = _mean(likelihood.spectral_precision())
        if estimate == "samples":
            flow = PosteriorFlow(first=mean) if more else PosteriorFlow()
            return flow, f"samples were asked for, {because}: the flow of the posterior"
        return mean, f"{because}: the mean in fewest evaluations{more}"
    if estimate == "samples" and isinstance(prior, Calibrated) and isinstance(likelihood, Conjugate):
        return Renoising(), "samples were asked for, the prior is Calibrated, and the likelihood conditions a Gaussian"
    if estimate == "samples":
        lacking = (
            missing(likelihood, "spectral_precision", "spectral_data", "condition")
            if isinstance(prior, Calibrated)
            else missing(prior, "signal_power", "denoising_error")
        )
        return Guided(), f"samples were asked for, by way of the likelihood's gradient: {lacking}"
    if not isinstance(likelihood, FourierDiagonal):
        lacking = missing(likelihood, "spectral_precision", "spectral_data")
        return Guided(), f"the likelihood is not FourierDiagonal: {lacking}; its samples are averaged"
    lacking = missing(prior, "signal_power", "denoising_error")
    return Guided(), f"the prior is not Calibrated: {lacking}; its samples are averaged"


def _mean(W: Tensor) -> tuple[PlugAndPlay, str]:
    """The plan for the mean given data of this precision, and what it adds to the reasons."""
    if not (W == 0).any():
        return PlugAndPlay(), ""
    noisy = bool(((W > 0) & W.isfinite()).any())
    return _FILLING_NOISY if noisy else _FILLING, ", in more passes to fill what was not measured"
