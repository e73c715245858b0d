"""Conditioning on data of any kind, by the most probable volume.

The mode of N(μ, V) × p(y | x) is the proximal map of −log p. It is sought in coordinates w in which the result is about
white, x = μ + (V r)^½ w with r = 1 / (1 + V h), where h(ν) is the curvature of −log p per shell, as gradients at a
volume and beside it tell (Hutchinson's estimate, from one probe):

    φ(w) = ½ w·r w − log p(y | μ + (V r)^½ w),

by limited-memory BFGS. Where w is white, ∇φ is the distance to the mode in standard deviations; `tolerance` bounds it.

A posterior with several peaks has several modes. Where no start is given, the mode is sought from the mean, from what
the data alone say, which is the mode for a hundred times the variance, from a draw of the prior, and from the mirror
image, in the mean, of where that ended; where these disagree, from more draws. The most probable is kept. Peaks that
are reached from none of these starts are not seen.

The mean of such a posterior is not its mode; `mean_from` has it where every voxel has a log p of its own
(`_pointwise`), and elsewhere that of the normal that is nearest to it (`_variational`).

A draw is one of the normal that has the curvature of φ at the mode (Laplace's approximation; what the data bend
upwards counts as flat). Curvature is felt over a tenth of a standard deviation, so that `log_prob` needs no second
derivative.
"""

import math
from typing import ClassVar

import attrs
import torch
from torch import Tensor

from cryofm_ops._checks import check_variance
from cryofm_ops.errors import GridMismatchError, OperatorError
from cryofm_ops.fourier.grid import (
    Shape,
    fourier_filter,
    friedel_weights,
    half_shape,
    radial,
    radial_mean,
    rfft,
    standard_normal,
)
from cryofm_ops.likelihoods._lanczos import inverse_root
from cryofm_ops.likelihoods._pointwise import is_pointwise, mean_of_voxels
from cryofm_ops.likelihoods._quasi_newton import dot, minimise
from cryofm_ops.likelihoods._summable import Summable
from cryofm_ops.likelihoods._variational import nearest_normal
from cryofm_ops.normal import Deviations, Generators, Normal, drawn
from cryofm_ops.protocols import Likelihood

__all__ = ["Proximal"]

_DATA_ALONE = 100.0  # times the variance
_BESIDE = 1e-5  # standard deviations of the prior by which the first start misses the mean
_BEND = 0.1  # standard deviations over which curvature is felt
_STEP = 2.0  # standard deviations of the prior that a voxel may move in one step
_DRAWS = 2  # of the prior, to begin from where there are several modes
_APART = 0.1  # standard deviations of the prior by which modes differ that are not one
_TIED = 2.0  # standard deviations of a χ² of all voxels by which modes may differ that are about as probable
_PRODUCTS = 30


@attrs.frozen(eq=False)
class Proximal(Summable):
    """Any likelihood as a `Conjugate`: the result's mean is the mode, and its draws have the curvature there.

    Attributes:
        likelihood: a `Likelihood`, whose `log_prob` is differentiable once, and finite where the search begins.
        tolerance: of the root mean square of ∇φ, and so about how far from the mode the search may end, in standard
            deviations of the result; where the data say little of what they say elsewhere, a few times as far.
        max_iterations: steps after which it is left at that; the `note` of the result says so.

    The exact mean and covariance where the likelihood is Gaussian and its operator linear. Otherwise the mode of a
    skewed or many-peaked distribution is not its mean, which `mean_from` finds (it is `Averaging`). The `note` of the
    result says if the starts ended at several modes, and `several` if one is about as probable as the one that is kept.

    >>> class Saturated:  # y = tanh x + noise of variance 0.01
    ...     def log_prob(self, x):
    ...         return -50 * (x.tanh() - 0.5).square().sum((-3, -2, -1))
    >>> posterior = Proximal(Saturated()).condition(torch.zeros(4, 4, 4), 1.0)
    >>> print(f"{posterior.mean.mean():.2f} ± {posterior.sample(torch.Generator()).std():.2f}")
    0.54 ± 0.12
    """

    likelihood: Likelihood
    tolerance: float = attrs.field(default=1e-2, validator=attrs.validators.gt(0))
    max_iterations: int = attrs.field(default=100, validator=attrs.validators.ge(1))
    batched: ClassVar[bool] = True

    def log_prob(self, x: Tensor, /) -> Tensor:
        """Log p(y | x), `(*batch,)`: that of the likelihood."""
        return self.likelihood.log_prob(x)

    @property
    def dtype(self) -> torch.dtype | None:
        """That of the likelihood, if it tells one."""
        return getattr(self.likelihood, "dtype", None)

    def condition(self, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """N(mean, variance) given the data: mode and curvature, from several starts.

        `mean` is `(*batch, z, y, x)`; `variance` is a number (white) or per coefficient (half grid).
        """
        check_variance(variance, mean)
        V = torch.as_tensor(variance, dtype=mean.dtype, device=mean.device)
        generator = torch.Generator().manual_seed(0)  # the result is a function of the arguments

        def drawn(size: float) -> Tensor:  # one noise for all: a volume ends where it does alone
            noise = standard_normal(torch.empty(_box(mean), dtype=mean.dtype), generator).to(mean).expand(mean.shape)
            return mean + size * fourier_filter(noise, V.sqrt())

        def ends(start: Tensor) -> list[_Search]:  # from there, and from what the data alone say
            alone = self._search(start, mean, _DATA_ALONE * V)
            return [self._search(x, mean, V) for x in (start, alone.x)]

        found = ends(drawn(_BESIDE))  # not the mean itself: at 0, a magnitude has no slope
        found.append(self._search(drawn(1.0), mean, V))  # the mean may lie between two peaks, where there is no slope
        found.append(self._search(2 * mean - found[-1].x, mean, V))
        best, one = _best(found)
        if not one.all():
            first, sure = best, one
            found += [end for _ in range(_DRAWS) for end in ends(drawn(1.0))]
            best, one = _best(found)
            best, one = _chosen(sure, first, best), sure | one
        if one.all():
            return best.normal(self)
        return attrs.evolve(best.normal(self, _several(found, best)), several=_tied(found, best))

    def condition_from(self, start: Tensor, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """As `condition`, sought from `start` alone."""
        check_variance(variance, mean)
        return self._search(start, mean, torch.as_tensor(variance, dtype=mean.dtype, device=mean.device)).normal(self)

    def mean_from(self, start: Tensor, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """As `condition_from`, with the mean of N(mean, variance) × p(y | x) for its mode.

        Where log p is quadratic they are one. Where it is a sum over voxels, as of noise of any kind on the volume
        itself, it is found by quadrature and expectation propagation. Elsewhere it is the mean of the normal, with an
        uncertainty for every voxel, that is nearest; of a density that no normal describes it stays at the mode.
        """
        check_variance(variance, mean)
        found = self._search(start, mean, torch.as_tensor(variance, dtype=mean.dtype, device=mean.device))
        box = _box(mean)

        def average(V: Tensor) -> Tensor:
            return _mean_over_grid(V, box)

        if is_pointwise(self._gradient, found.x, average(found.V).sqrt()):
            x = mean_of_voxels(self._gradient, found.x, mean, found.V, average)
            w = fourier_filter(x - mean, torch.where(found.spread > 0, 1 / found.spread, 0))
            return attrs.evolve(found, w=w).normal(self)
        # In coordinates that mix no voxels where the prior is white: with one curvature for all shells.
        V = found.V
        bend = average(self._curvature(found.x, _BEND * average(V).sqrt()))
        r = 1 / (1 + V * bend)
        spread = (V * r).sqrt()
        w = fourier_filter(found.x - mean, torch.where(spread > 0, 1 / spread, 0))
        search = attrs.evolve(found, r=r, spread=spread, w=w)
        least, generator = average(r), torch.Generator().manual_seed(0)
        w = nearest_normal(lambda w: self._value_and_gradient(search, w), w, least, generator)
        return attrs.evolve(search, w=w).normal(self)

    def deviance_from(self, x: Tensor, variance: Tensor | float, /) -> tuple[Tensor, Tensor]:
        """Twice what log p(y | x) lacks of its value at what the data alone ask for, near x, `(*batch,)`.

        The data alone: the mode for N(x, 100 variance). Beside it, how much that is expected to be at the truth, which
        is how many numbers the data determine: Σ 1 − r² over all coefficients.
        """
        check_variance(variance, x)
        V = _DATA_ALONE * torch.as_tensor(variance, dtype=x.dtype, device=x.device)
        found = self._search(x, x, V)
        at_most, _ = self._log_prob_and_gradient(found.x)
        value, _ = self._log_prob_and_gradient(x)
        weights = friedel_weights(_box(x), device=x.device).to(x)
        number = ((1 - found.r.square()) * weights).sum((-3, -2, -1))
        return 2 * (at_most - value)[..., 0, 0, 0], number

    def _search(self, start: Tensor, mean: Tensor, V: Tensor) -> "_Search":
        box = _box(mean)
        std = _mean_over_grid(V, box).sqrt()
        r = 1 / (1 + V * self._curvature(start, _BEND * torch.where(std > 0, std, 1)))
        spread = (V * r).sqrt()

        def longest(p: Tensor) -> Tensor:
            reach = fourier_filter(p, spread).abs().amax((-3, -2, -1), keepdim=True)
            return _STEP * std / reach.clamp(min=torch.finfo(p.dtype).tiny)

        search = _Search(mean, V, r, spread)
        w = fourier_filter(start - mean, torch.where(spread > 0, 1 / spread, 0))
        found = minimise(lambda w: self._value_and_gradient(search, w), w, self.tolerance, self.max_iterations, longest)
        return attrs.evolve(search, w=found.u, value=found.value, done=found.done)

    def _value_and_gradient(self, search: "_Search", w: Tensor) -> tuple[Tensor, Tensor]:
        """φ(w) and its gradient."""
        value, gradient = self._log_prob_and_gradient(search.at(w))
        rw = fourier_filter(w, search.r)
        return dot(w, rw) / 2 - value, rw - fourier_filter(gradient, search.spread)

    def _curvature(self, x: Tensor, step: Tensor) -> Tensor:
        """H per shell, on the half grid of every volume: how a step of white noise changes the gradient."""
        box = _box(x)
        noise = torch.randn(box, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x).expand(x.shape)
        value, here = self._log_prob_and_gradient(x)
        _finite(value, here)
        _, there = self._log_prob_and_gradient(x + step * noise)
        bend = ((here - there) / step).nan_to_num(0, 0, 0)
        tables = radial_mean((rfft(noise).conj() * rfft(bend)).real, box) / radial_mean(rfft(noise).abs() ** 2, box)
        each = [radial(table, box) for table in tables.clamp(min=0).reshape(-1, tables.shape[-1])]
        return torch.stack(each).reshape(*x.shape[:-3], *half_shape(box))

    def _gradient(self, x: Tensor) -> Tensor:
        return self._log_prob_and_gradient(x)[1]

    def _log_prob_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(*batch, 1, 1, 1)`, and shaped as x; autocast, under which a network beside this may run, is kept out."""
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            x = x.detach().clone().requires_grad_()
            name = type(self.likelihood).__name__
            try:
                value = self.likelihood.log_prob(x.clone())  # which it may write into
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # torch's own, which does not say whose it is
                raise OperatorError(f"the log_prob of {name} fails for volumes {tuple(x.shape)}: {error}") from error
            if not isinstance(value, Tensor) or not value.is_floating_point():
                found = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise OperatorError(f"the log_prob of {name} must be a real tensor, it is {found}")
            if value.shape != x.shape[:-3]:
                raise GridMismatchError(
                    f"the log_prob of volumes of shape {tuple(x.shape)} must be {tuple(x.shape[:-3])}, one value each; "
                    f"{name} gives {tuple(value.shape)}"
                )
            gradient: Tensor | None = None
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value.sum(), x, allow_unused=True)
            if gradient is None:  # taken for 0, it would be wrong without a word
                raise OperatorError(f"no gradient passes through the log_prob of {name}: compute it without no_grad")
        return value.detach()[..., None, None, None].to(x.dtype), gradient


@attrs.frozen(eq=False)
class _Search:
    """Where a search ended: x = μ + (V r)^½ w."""

    mean: Tensor
    V: Tensor
    r: Tensor
    spread: Tensor
    w: Tensor = attrs.field(default=None)
    value: Tensor = attrs.field(default=None)  # φ, `(*batch, 1, 1, 1)`
    done: Tensor = attrs.field(default=None)

    def at(self, w: Tensor) -> Tensor:
        return self.mean + fourier_filter(w, self.spread)

    @property
    def x(self) -> Tensor:
        return self.at(self.w)

    def normal(self, data: Proximal, note: str = "") -> Normal:
        def bend(p: Tensor) -> Tensor:  # the data's part of the curvature of φ along p
            root = math.sqrt(math.prod(p.shape[-3:]))
            step = _BEND * root / dot(p, p).sqrt().clamp(min=torch.finfo(p.dtype).tiny)
            above, below = (data._log_prob_and_gradient(self.at(self.w + s * p))[1] for s in (step, -step))
            return fourier_filter(below - above, self.spread) / (2 * step)

        def deviation(generators: Generators) -> Tensor:
            z = drawn(lambda generator: standard_normal(self.mean, generator), generators)
            draw = inverse_root(lambda p: fourier_filter(p, self.r), bend, z, data.tolerance, _PRODUCTS)
            return fourier_filter(draw, self.spread)

        if not self.done.all():
            unfinished = f"the mode was left after {data.max_iterations} steps, before the tolerance {data.tolerance:g}"
            note = f"{note}; {unfinished}" if note else unfinished
        return Normal(self.x, Deviations(deviation), note)


def _best(found: list[_Search]) -> tuple[_Search, Tensor]:
    """For every volume the most probable mode, and whether all starts ended there, `(*batch, 1, 1, 1)`."""
    best = found[0]
    for other in found[1:]:
        best = _chosen(other.value < best.value, other, best)
    one = torch.ones_like(best.done)
    for other in found:
        one = one & (_apart(other, best) <= _APART)
    return best, one


def _chosen(this: Tensor, one: _Search, other: _Search) -> _Search:
    """`one` where `this` says so, volume by volume, elsewhere `other`."""
    ends = (torch.where(this, a, b) for a, b in zip(_ends(one), _ends(other), strict=True))
    return _Search(one.mean, one.V, *ends)


def _ends(search: _Search) -> tuple[Tensor, ...]:
    return search.r, search.spread, search.w, search.value, search.done


def _apart(one: _Search, other: _Search) -> Tensor:
    """Root mean square of the difference of two modes, in standard deviations of the prior."""
    inverse = torch.where(one.V > 0, one.V.rsqrt(), 0)
    return fourier_filter(one.x - other.x, inverse).square().mean((-3, -2, -1), keepdim=True).sqrt()


def _several(found: list[_Search], best: _Search) -> str:
    elsewhere = [end for end in found if bool((end.value > best.value).any())]
    nats = min((float((end.value - best.value).max()) for end in elsewhere), default=0.0)
    return (
        f"the data have several modes: of {len(found)} starts {len(elsewhere)} ended elsewhere, at volumes "
        f"that are less probable by {nats:.3g} nats or more"
    )


def _tied(found: list[_Search], best: _Search) -> bool:
    """Whether one of the others, of some volume, is about as probable: φ of n voxels varies by √(n / 2)."""
    nats = _TIED * math.sqrt(math.prod(_box(best.mean)) / 2)
    return any(bool(((end.value - best.value <= nats) & (_apart(end, best) > _APART)).any()) for end in found)


def _box(x: Tensor) -> Shape:
    z, y, width = x.shape[-3:]
    return z, y, width


def _mean_over_grid(V: Tensor, box: Shape) -> Tensor:
    """The mean over all coefficients: the variance of a voxel, `(*batch, 1, 1, 1)`."""
    weights = friedel_weights(box, device=V.device).to(V)
    V = V.expand(*V.shape[:-3], *half_shape(box))
    return (V * weights).sum((-3, -2, -1), keepdim=True) / math.prod(box)


def _finite(value: Tensor, gradient: Tensor) -> None:
    if not (value.isfinite().all() and gradient.isfinite().all()):
        raise OperatorError(
            "the log_prob of the likelihood, or its gradient, is not finite; it must be for any volume, such as "
            "densities below 0"
        )
