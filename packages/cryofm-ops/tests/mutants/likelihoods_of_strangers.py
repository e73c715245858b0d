"""Mistakes that authors of likelihoods make, each with the check that tells of it, and words of what that says."""

import math
from typing import Any

import attrs
import torch
from torch import Tensor

from cryofm_ops import LinearGaussian, Normal, Proximal, WhiteNoise
from mutants._register import named
from mutants.likelihoods import DATA, SHAPE, Fourier, Linear
from mutants.operators import Masked
from mutants.operators_of_strangers import SaturatingWithAdjoint, ShiftedByOneTooMany, SolventAdded

LIKELIHOODS: list[tuple[Any, str, str]] = []


@attrs.frozen(eq=False)
class Outliers:
    """Correct: neither linear nor Gaussian, a log_prob alone."""

    shape = SHAPE

    def log_prob(self, x: Tensor, /) -> Tensor:
        return -torch.log1p((torch.tanh(x) - DATA.to(x)) ** 2).flatten(-3).sum(-1)


@named(LIKELIHOODS, "log_prob_contract", "one log p for every volume, of shape (2,); came shape (2, 4, 4, 4)")
class NotSummed(Outliers):
    def log_prob(self, x):
        return -torch.log1p((torch.tanh(x) - DATA) ** 2)


@named(LIKELIHOODS, "log_prob_contract", "one log p for every volume, of shape (2,); came shape ()")
class SummedOverAll(Outliers):
    def log_prob(self, x):
        return super().log_prob(x).sum()


@named(LIKELIHOODS, "log_prob_contract", "of shape (); came shape (1,)")
class OneForNone(Outliers):
    def log_prob(self, x):
        return super().log_prob(x.reshape(-1, *SHAPE)).reshape(x.shape[:-3] or (1,))


@named(LIKELIHOODS, "log_prob_contract", "the volumes of a batch mixed by log_prob")
class CentredOverTheBatch(Outliers):
    def log_prob(self, x):
        return super().log_prob(x - x.mean())


@named(LIKELIHOODS, "log_prob_contract", "another, by chance")
class OneMinibatch(Outliers):
    """As in training: some of the data, at random."""

    def log_prob(self, x):
        return super().log_prob(x * (torch.rand(SHAPE) < 0.5))


@named(LIKELIHOODS, "log_prob_contract", "a changed input")
class ResidualInPlace(Outliers):
    def log_prob(self, x):
        return -(x.detach().sub_(DATA) ** 2).flatten(-3).sum(-1)


@named(LIKELIHOODS, "log_prob_contract", "NaN in")
class LogOfARate(Outliers):
    """Poisson, of a rate that may be negative."""

    def log_prob(self, x):
        return (DATA.abs() * torch.log(x) - x).flatten(-3).sum(-1)


@named(LIKELIHOODS, "log_prob_gradient", "the slope of log p")
class WeightsDetached(Outliers):
    def log_prob(self, x):
        r = torch.tanh(x) - DATA
        return -(r * r.detach()).flatten(-3).sum(-1)


@named(LIKELIHOODS, "log_prob_gradient", "a result without a graph")
class ThroughNumbers(Outliers):
    def log_prob(self, x):
        return super().log_prob(x.detach())


@named(LIKELIHOODS, "log_prob_keeps_float64", "float64 lost inside ∇ log p")
class SingleInside(Outliers):
    def log_prob(self, x):
        return super().log_prob(x.float()).to(x.dtype)


@named(LIKELIHOODS, "log_prob_keeps_float64", "a lost dtype: torch.float32")
class SingleLogProb(Outliers):
    def log_prob(self, x):
        return super().log_prob(x).float()


@named(LIKELIHOODS, "condition_is_stationary", "V ∇ log p equal to x* − μ")
class WrongSign(Fourier):
    def log_prob(self, x):
        return -super().log_prob(x)


@named(LIKELIHOODS, "condition_is_stationary", "V ∇ log p equal to x* − μ")
class StandardDeviationForVariance(Fourier):
    def condition(self, mean, variance):
        return super().condition(mean, torch.as_tensor(variance, dtype=mean.dtype).sqrt())


@named(LIKELIHOODS, "condition_is_dense_solve", "the posterior covariance")
class PosteriorStandardDeviation(Fourier):
    def condition(self, mean, variance):
        posterior = super().condition(mean, variance)
        return Normal(posterior.mean, posterior.variance.sqrt())


@named(LIKELIHOODS, "condition_is_dense_solve", "the posterior covariance")
class PrecisionForVariance(Fourier):
    def condition(self, mean, variance):
        posterior = super().condition(mean, variance)
        return Normal(posterior.mean, posterior.variance.reciprocal())


@named(LIKELIHOODS, "spectral_gradient", "∇ log p equal to W (ỹ − x̃)")
class ConjugatedData(Fourier):
    def spectral_data(self):
        return super().spectral_data().conj()


@named(LIKELIHOODS, "spectral_grid", "ỹ(−k) = ỹ(k)*")
class DataShiftedByOne(Fourier):
    def spectral_data(self):
        return super().spectral_data().roll(1, -2)


@named(LIKELIHOODS, "spectral_condition", "the posterior mean, per coefficient")
class WholePrecisionTwice(Fourier):
    """log_prob without its ½: what it says and what it conditions on are two things."""

    def spectral_precision(self):
        return 2 * super().spectral_precision()

    def log_prob(self, x):
        return 2 * super().log_prob(x)


@named(LIKELIHOODS, "condition_contract", "the volumes of a batch mixed by condition")
class ConditionsOnTheMean(Fourier):
    def condition(self, mean, variance):
        posterior = super().condition(mean, variance)
        return Normal(
            posterior.mean.flatten(0, -4).mean(0).expand(mean.shape) if mean.ndim > 3 else posterior.mean, 1.0
        )


@named(LIKELIHOODS, "posterior_contract", "a lost dtype: torch.float32")
class ConditionsInSinglePrecision(Fourier):
    def condition(self, mean, variance):
        posterior = super().condition(mean, variance)
        return Normal(posterior.mean.float(), posterior.variance)


@named(LIKELIHOODS, "posterior_contract", "the same draw from the same generator state")
class DrawsFromTheWorld(Linear):
    def condition(self, mean, variance):
        posterior = super().condition(mean, variance)
        return Normal(posterior.mean, lambda _: torch.randn_like(mean))


@named(LIKELIHOODS, "condition_contract", "a draw for each of a batch")
class OneDrawForTheBatch(Linear):
    def condition(self, mean, variance):
        posterior = super().condition(mean, variance)
        one = super().condition(torch.zeros(SHAPE, dtype=mean.dtype), variance)
        return Normal(posterior.mean, lambda g: (one.sample(g) - one.mean).expand_as(mean))


@named(LIKELIHOODS, "condition_is_dense_solve", "the variance of posterior draws")
class DrawsTheNoiseTwice(Linear):
    """Perturbs the data, and the draw again."""

    def condition(self, mean, variance):
        posterior = super().condition(mean, variance)
        again = WhiteNoise(0.5)
        return Normal(posterior.mean, lambda g: again.sample(posterior.sample(g) - posterior.mean, generator=g))


@named(LIKELIHOODS, "gradient_is_weighted_residual", "∇ log p equal to Aᵀ Σ⁻¹ (y − A x)")
class MeanForSum(Linear):
    def log_prob(self, x):
        return super().log_prob(x) / math.prod(SHAPE)


@named(LIKELIHOODS, "gradient_is_weighted_residual", "∇ log p equal to Aᵀ Σ⁻¹ (y − A x)")
class PrecisionOfTheWrongPower(Linear):
    def log_prob(self, x):
        r = self.operator(x) - self.observation
        return -0.5 * self.noise.precision(self.noise.precision(r**2)).flatten(-3).sum(-1)


@named(LIKELIHOODS, "operator_is_linear", "nonlinear operator that poses as linear")
@attrs.frozen(eq=False)
class OfANonlinearOperator(Linear):
    model = SaturatingWithAdjoint


@named(LIKELIHOODS, "condition_is_stationary", "nonlinear operator that poses as linear")
@attrs.frozen(eq=False)
class OfANonlinearOperatorToo(Linear):
    """Whichever check comes first says so, and not that conjugate gradients did not converge."""

    model = SaturatingWithAdjoint


@named(LIKELIHOODS, "operator_is_linear", "affine operator")
@attrs.frozen(eq=False)
class OfAnAffineOperator(Linear):
    model = SolventAdded


@named(LIKELIHOODS, "condition_contract", "⟨x, Aᵀ y⟩ equal to ⟨A x, y⟩")
@attrs.frozen(eq=False)
class OfAWrongAdjoint(Linear):
    model = ShiftedByOneTooMany


@attrs.frozen(eq=False)
class Modes(Outliers):
    """Correct: conditions on data that are not Gaussian by the mode, and the curvature there."""

    def condition(self, mean: Tensor, variance: Any, /) -> Normal:
        return Proximal(Outliers()).condition(mean, variance)


@named(LIKELIHOODS, "condition_is_stationary", "V ∇ log p equal to x* − μ")
class OneStepOfGradients(Modes):
    def condition(self, mean, variance):
        return Proximal(Outliers(), max_iterations=1).condition(mean, variance)


@named(LIKELIHOODS, "condition_is_dense_solve", "standard deviations beside")
class ModeOfHalfTheVariance(Modes):
    def condition(self, mean, variance):
        return super().condition(mean, 0.5 * torch.as_tensor(variance, dtype=mean.dtype))


@named(LIKELIHOODS, "condition_is_dense_solve", "the variance of posterior draws")
class DrawsOfThePrior(Modes):
    def condition(self, mean, variance):
        prior = Normal(torch.zeros_like(mean), variance)
        return Normal(super().condition(mean, variance).mean, prior.sample)


class Tilted:
    """Correct: a `Blind` whose unknown is how bright the object is."""

    shape = SHAPE

    def refine(self, x: Tensor, /) -> Any:
        power = (x * x).flatten(-3).sum(-1)
        scale = (x * DATA).flatten(-3).sum(-1) / power.clamp(min=1e-30)
        return Scaled(scale.detach())


@attrs.frozen(eq=False)
class Scaled:
    scale: Tensor

    def log_prob(self, x: Tensor, /) -> Tensor:
        return -0.5 * ((self.scale[..., None, None, None] * x - DATA) ** 2).flatten(-3).sum(-1)


@named(LIKELIHOODS, "refines_each_alone", "a refine that mixes the volumes of a batch")
class RefinesTheBatchAsOne(Tilted):
    def refine(self, x):
        scale = super().refine(x).scale
        return Scaled(scale.mean().expand_as(scale))


@named(LIKELIHOODS, "refines_to_a_likelihood", "the same log p twice")
class RefinesByChance(Tilted):
    def refine(self, x):
        return Scaled(super().refine(x).scale + torch.rand(()))


@named(LIKELIHOODS, "refines_to_a_likelihood", "an object with log_prob; came Tensor")
class RefinesToItsParameters(Tilted):
    def refine(self, x):
        return super().refine(x).scale


@named(LIKELIHOODS, "refines_to_a_likelihood", "a changed input")
class NormalisesWhatItRefines(Tilted):
    def refine(self, x):
        x /= x.norm()
        return super().refine(x)


@named(LIKELIHOODS, "refines_to_a_likelihood", "of shape (2,); came shape ()")
class RefinesToOne(Tilted):
    def refine(self, x):
        class Summed(Scaled):
            def log_prob(self, x):
                return super().log_prob(x).sum()

        return Summed(super().refine(x).scale)


@named(LIKELIHOODS, "refines_to_a_likelihood", "the same log p twice")
class RefinesByItsHistory(Tilted):
    before = 1.0

    def refine(self, x):
        scale = 0.5 * (super().refine(x).scale + self.before)
        self.before = float(scale.mean())
        return Scaled(scale)


@named(LIKELIHOODS, "refines_each_alone", "a refine that mixes the volumes of a batch")
class RefinesByPlaceInTheBatch(Tilted):
    def refine(self, x):
        scale = super().refine(x).scale
        return Scaled(scale * torch.arange(1, scale.numel() + 1).to(scale).reshape(scale.shape))


@named(LIKELIHOODS, "refines_each_alone", "a refine that mixes the volumes of a batch")
class RefinesToTheBestOfTheBatch(Tilted):
    def refine(self, x):
        scale = super().refine(x).scale
        return Scaled(scale.amax().expand_as(scale))


@named(LIKELIHOODS, "refines_to_a_likelihood", "NaN")
class RefinesToNaN(Tilted):
    def refine(self, x):
        return Scaled((super().refine(x).scale - 1e9).sqrt())


@named(LIKELIHOODS, "refines_to_a_likelihood", "an object with log_prob; came NoneType")
class RefinesInPlaceOfReturning(Tilted):
    def refine(self, x):
        self.found = super().refine(x)


@named(LIKELIHOODS, "refines_to_a_likelihood", "of shape (2,); came shape (1,)")
class RefinesTheFirstAlone(Tilted):
    def refine(self, x):
        class First(Scaled):
            def log_prob(self, x):
                return super().log_prob(x).reshape(-1)[:1]

        return First(super().refine(x).scale)


def likelihood(kind: type) -> Any:
    """A mutant (or its correct model), made of the data of this module."""
    return kind(getattr(kind, "model", Masked)(), WhiteNoise(0.5), DATA) if issubclass(kind, LinearGaussian) else kind()


GOOD_LIKELIHOODS = [Outliers(), Modes(), Tilted()]
