"""The unknown scale of a map, found by cross-validation between its halves.

A prior knows densities on one scale (the brightest voxels of a clean map are 1); half maps come on any. For a trial
scale the first half is restored to x̂_1, and the second half, whose noise is independent, says how good that is: with F
the FSC of the two halves, y_2 correlates with the truth as √F, so FSC(x̂_1, y_2) / √F estimates FSC(x̂_1, truth), and its
mean over the shells where the halves agree the FSC_AUC of the restoration there. The best scale has the largest. The
other shells, most of them at 8.5 Å, would add noise alone.

(The likelihood of y_2 at x̂_1 is no substitute: it hangs on the few shells without noise, and has several maxima.)
"""

import math
import warnings

import attrs
import torch
from torch import Tensor

from cryofm_ops import Likelihood, Normalization, OperatorError, in_model_units, radial_mean, rfft
from cryofm_sampling._common import split_shape, within
from cryofm_sampling.errors import CapabilityError, SettingError
from cryofm_sampling.protocols import Callback, Sampler, VelocityField
from cryofm_sampling.samplers.plug_and_play import PlugAndPlay

__all__ = ["ScaleFit", "ScaledNormalization", "fit_scale"]

_STEP = math.log(2) / 2  # in the logarithm of the scale
_COARSE = (-6, -3, 0, 3, 6)  # steps from the guess that are tried at first
_FARTHEST = 6
_BELIEF = 1e-4  # in the guess: what s steps away have to gain is this times s²
_LEAST_FSC = 0.05  # under which a shell of the halves says nothing


@attrs.frozen
class ScaledNormalization:
    """Between model units z and data units x, where x · `scale` is what the prior's own normalisation expects.

    >>> from types import SimpleNamespace
    >>> ScaledNormalization(SimpleNamespace(mean=0.04, std=0.09), scale=2.0).std
    0.045
    """

    normalization: Normalization
    scale: float = attrs.field(validator=within(attrs.validators.gt(0)))

    @property
    def mean(self) -> float:
        """Offset, in data units."""
        return self.normalization.mean / self.scale

    @property
    def std(self) -> float:
        """Scale, in data units."""
        return self.normalization.std / self.scale


@attrs.frozen
class ScaleFit:
    """What `fit_scale` found.

    Attributes:
        normalization: between model units and data units; its `scale` is the factor that was sought.
        trials: (scale, estimated FSC_AUC of the first half restored, over the shells where the halves agree), by scale.
        nfe: network evaluations spent.
    """

    normalization: ScaledNormalization
    trials: tuple[tuple[float, float], ...]
    nfe: int


@torch.no_grad()
def fit_scale(
    prior: VelocityField,
    likelihood: Likelihood,
    held_out: Tensor,
    fsc: Tensor,
    /,
    *,
    generator: torch.Generator,
    guess: float,
    sampler: Sampler = PlugAndPlay(iterations=3),  # noqa: B008 (frozen)
    callback: Callback | None = None,
) -> ScaleFit:
    """Find the scale at which restoring one half map predicts the other best.

    Five scales from an eighth of the guess to 8 times the guess are tried; from the best the search climbs in steps
    of √2 until a trial lies between two worse ones, and ends at the top of the parabola through them: 7 or 8 trials of
    3 network evaluations each. Where all predict alike, since there is hardly any noise, the guess decides.

    Args:
        prior: a velocity field with a `.normalization`.
        likelihood: of the first half, in data units.
        held_out: the second half `(z, y, x)`, in data units.
        fsc: radial table of the FSC between the halves, such as `estimate_noise_power(...).fsc`; NaN where a shell is
            empty.
        generator: one seed is drawn from it; every trial sees the same random numbers.
        guess: where to begin, right within a factor of a few; for instance 1 over the highest density.
        sampler: restores the first half.
        callback: is told of the steps of every trial.

    Raises `CapabilityError` if the prior has no normalisation, `SettingError` for a guess that is not positive, or a
    held-out half that is not finite or 0 everywhere, `OperatorError` where a trial cannot be scored. Warns
    if no scale between an eighth of the guess and 8 times the guess is best, and takes the end of that range.

    >>> from types import SimpleNamespace
    >>> from cryofm_ops import Identity, WhiteNoise, estimate_noise_power, gaussian_likelihood
    >>> from cryofm_sampling import calibrate
    >>> class Spikes:  # a prior that knows voxels of 0, and one in ten of 1
    ...     normalization = ScaledNormalization(SimpleNamespace(mean=0.0, std=1.0), 1.0)
    ...     def __call__(self, x, t):
    ...         log_odds = ((1 - t) * x - (1 - t) ** 2 / 2) / t**2 - math.log(9)
    ...         return (x - log_odds.sigmoid()) / t
    >>> generator = torch.Generator().manual_seed(0)
    >>> spikes = (torch.rand(32, 32, 32, generator=generator) < 0.1).float()
    >>> prior = calibrate(Spikes(), spikes[None], generator=generator)
    >>> noise = WhiteNoise(0.03)
    >>> one, two = (noise.sample(spikes / 5, generator=generator) for _ in range(2))
    >>> fsc = estimate_noise_power(one, two).fsc
    >>> likelihood = gaussian_likelihood(Identity(), noise, one)
    >>> fit = fit_scale(prior, likelihood, two, fsc, generator=generator, guess=2.0)
    >>> round(fit.normalization.scale)
    5
    """
    normalization = getattr(prior, "normalization", None)
    if normalization is None:
        raise CapabilityError(f"fit_scale needs a prior with a normalization; {type(prior).__name__} has none")
    if not (guess > 0 and math.isfinite(guess)):
        raise SettingError(f"the guess of a scale must be positive, got {guess}")
    _, shape = split_shape(held_out.shape)
    if not held_out.isfinite().all() or not held_out.any():
        raise SettingError("the held-out half must be finite, and not 0 everywhere")
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    y_2 = rfft(held_out)
    power_2 = radial_mean(y_2.abs() ** 2, shape, len(fsc))
    agree = fsc[1:].to(held_out).nan_to_num(0).clamp(min=_LEAST_FSC)
    weights = (agree > _LEAST_FSC).to(agree)
    weights = weights / weights.sum() if weights.any() else torch.full_like(agree, 1 / len(agree))
    scores: dict[int, float] = {}  # by steps from the guess
    nfe = 0

    def score(step: int) -> float:
        nonlocal nfe
        if step not in scores:
            units = ScaledNormalization(normalization, guess * math.exp(step * _STEP))
            stream = torch.Generator(generator.device).manual_seed(seed)
            inner = in_model_units(likelihood, units, shape=shape)
            draw = sampler(prior, inner, shape=shape, generator=stream, callback=callback)
            x_1 = rfft(draw.x * units.std + units.mean)
            cross = radial_mean((x_1 * y_2.conj()).real, shape, len(fsc))
            power_1 = radial_mean(x_1.abs() ** 2, shape, len(fsc))
            correlation = cross / (power_1.sqrt() * power_2.sqrt()).clamp(min=torch.finfo(cross.dtype).tiny)
            scores[step] = float((weights * correlation[1:] / agree.sqrt()).sum())
            if not math.isfinite(scores[step]):
                raise OperatorError(f"no score at scale {units.scale:.3g}: powers overflow; bring the data nearer to 1")
            nfe += draw.nfe
        return scores[step] - _BELIEF * step**2

    best = max(_COARSE, key=score)  # all of them: where it saturates, or sees nothing, are lesser maxima
    while abs(best) < _FARTHEST and (better := max((best, best - 1, best + 1), key=score)) != best:
        best = better
    low, middle, high = score(best - 1), score(best), score(best + 1)
    curvature = low - 2 * middle + high
    top = float(best)
    if max(low, high) > middle:
        warnings.warn(
            f"the halves do not tell the scale: none from a {2 ** (_FARTHEST // 2)}th of {guess:.3g} to "
            f"{2 ** (_FARTHEST // 2)} times that is best; is the contrast right, are the halves raw?",
            stacklevel=2,
        )
    elif curvature < 0:
        top += (low - high) / (2 * curvature)  # by no more than half a step
    return ScaleFit(
        ScaledNormalization(normalization, guess * math.exp(top * _STEP)),
        tuple((guess * math.exp(step * _STEP), value) for step, value in sorted(scores.items())),
        nfe,
    )
