"""The front door: from a prior and a likelihood in data units to restored volumes in data units."""

from typing import Literal

import torch

from cryofm_ops import FourierDiagonal, Likelihood, in_model_units
from cryofm_sampling._common import missing
from cryofm_sampling.errors import CapabilityError, SettingError
from cryofm_sampling.guided import Guided
from cryofm_sampling.plug_and_play import PlugAndPlay
from cryofm_sampling.protocols import Calibrated, Callback, Draw, Sampler, VelocityField

__all__ = ["restore"]


def restore(
    prior: VelocityField,
    likelihood: Likelihood,
    /,
    *,
    shape: tuple[int, ...],
    generator: torch.Generator,
    estimate: Literal["mean", "samples"] = "mean",
    samples: int = 8,
    sampler: Sampler | None = None,
    callback: Callback | None = None,
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
            the prior `Calibrated`, otherwise averaged over `samples` runs of `Guided`. `"samples"`: the runs
            themselves.
        samples: number of runs of a sampler that draws samples; the first k do not depend on how many follow.
        sampler: another algorithm than these.
        callback: is told of every step; of one run after the other where there are several.

    Returns: the volumes in data units, shaped `shape`, or `(samples, *shape)` for samples. `settings` has the
    sampler's settings, `algorithm`, and `because`: why it was chosen.

    Raises `CapabilityError` where `PlugAndPlay`, whose spread is no uncertainty, is asked for samples.

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
    mean_only = isinstance(sampler, PlugAndPlay)
    if mean_only and estimate == "samples":
        raise CapabilityError("PlugAndPlay gives the posterior mean only; for samples use Guided")

    draws = [
        sampler(prior, inner, shape=shape, generator=generator, callback=callback)
        for _ in range(1 if mean_only else samples)
    ]
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


def _choose(prior: VelocityField, likelihood: Likelihood, estimate: str) -> tuple[Sampler, str]:
    if estimate == "samples":
        return Guided(), "samples were asked for, and this sampler's spread is an uncertainty"
    if not isinstance(likelihood, FourierDiagonal):
        lacking = missing(likelihood, "spectral_precision", "spectral_data")
        return Guided(), f"the likelihood is not FourierDiagonal: {lacking}; its samples are averaged"
    if not isinstance(prior, Calibrated):
        lacking = missing(prior, "signal_power", "denoising_error")
        return Guided(), f"the prior is not Calibrated: {lacking}; its samples are averaged"
    return (
        PlugAndPlay(),
        "the likelihood is FourierDiagonal and the prior Calibrated: the mean in fewest evaluations",
    )
