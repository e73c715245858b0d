"""What the samplers share: shapes, settings, random streams, and calls that say whose fault it is where they fail."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from operator import index
from typing import Any, Protocol, TypeVar, runtime_checkable

import attrs
import torch
from torch import Tensor

from cryofm_ops import (
    Averaging,
    Conjugate,
    CryoFMError,
    Deviations,
    FourierDiagonal,
    FourierGaussian,
    GridMismatchError,
    Iterative,
    Likelihood,
    Normal,
    OperatorError,
    Proximal,
    half_shape,
)
from cryofm_sampling.errors import CapabilityError, SettingError
from cryofm_sampling.protocols import Calibrated, VelocityField
from cryofm_sampling.region import Region

Box = tuple[int, int, int]
T = TypeVar("T")


def split_shape(shape: Sequence[int]) -> tuple[tuple[int, ...], Box]:
    """`(*batch, z, y, x)` -> batch, box."""
    try:
        sides = tuple(index(side) for side in shape)
    except TypeError:
        sides = ()
    if len(sides) < 3 or min(sides) < 1:
        raise SettingError(f"shape must be (*batch, z, y, x), whole numbers from 1, got {sides or shape}")
    *batch, z, y, x = sides
    return tuple(batch), (z, y, x)


def numbers(values: Iterable[float]) -> tuple[float, ...]:
    """Flow times as plain numbers, be they those of a tensor or of numpy."""
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise SettingError(f"times must be a sequence of numbers, got {values!r}") from None


def within(*validators: Callable[[Any, Any, T], object]) -> Callable[[Any, Any, T], None]:
    """A validator of attrs that passes what all of `validators` do, and otherwise raises `SettingError`."""

    def validate(instance: object, attribute: Any, value: T) -> None:
        try:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"'{attribute.name}' must be finite: {value}")
            for validator in validators:
                validator(instance, attribute, value)
        except (TypeError, ValueError) as error:
            raise SettingError(f"{type(instance).__name__}: {error.args[0]}") from None

    return validate


def whole(least: int) -> Callable[[Any, Any, int], None]:
    """A validator of attrs for whole numbers from `least` on that anything can be counted by."""
    counts = attrs.validators.and_(attrs.validators.ge(least), attrs.validators.lt(2**31))
    return within(attrs.validators.instance_of(Integral), counts)


def missing(thing: object, *names: str) -> str:
    """Which of `names` an object lacks, for an error message."""
    lacking = " and no ".join(name for name in names if not hasattr(thing, name))
    return f"{type(thing).__name__} has no {lacking}"


def calibrated(velocity: object, needed_by: str) -> Calibrated:
    """The velocity field as `Calibrated`, or an error that names what it lacks."""
    if not isinstance(velocity, Calibrated):
        lacking = missing(velocity, "signal_power", "denoising_error")
        raise CapabilityError(f"{needed_by} needs a Calibrated velocity field; {lacking}. `calibrate` measures both.")
    for name, axes in (("signal_power", 1), ("denoising_error", 2)):
        table = getattr(velocity, name)
        if not isinstance(table, Tensor) or table.ndim != axes or (axes == 2 and table.shape[1] != 2):
            found = f"one of shape {tuple(table.shape)}" if isinstance(table, Tensor) else type(table).__name__
            shape = "(k,)" if axes == 1 else "(k, 2)"
            raise CapabilityError(f"the {name} of {type(velocity).__name__} must be a tensor {shape}, it is {found}")
    return velocity


def spectral(likelihood: FourierDiagonal, batch: tuple[int, ...], box: Box) -> tuple[Tensor, Tensor]:
    """W and ỹ of a Fourier-diagonal likelihood, `(*batch, z, y, x // 2 + 1)`, in the precision of ỹ; ỹ is 0 where
    nothing was measured. Checked as those of `FourierGaussian` are."""
    W, y = likelihood.spectral_precision(), likelihood.spectral_data()
    half = half_shape(box)
    try:
        W, y = W.to(y.real.dtype).expand(*batch, *half), y.expand(*batch, *half)
    except RuntimeError:
        raise GridMismatchError(
            f"{type(likelihood).__name__} has a spectral precision of shape {tuple(W.shape)} and data of shape "
            f"{tuple(y.shape)}; the volumes asked for, {(*batch, *box)}, need {(*batch, *half)}"
        ) from None
    if isinstance(likelihood, FourierGaussian) and likelihood.shape != box:  # an odd and an even width share a grid
        raise GridMismatchError(f"the data have box {likelihood.shape}, the volumes asked for {(*batch, *box)}")
    checked = FourierGaussian(W, torch.where(W > 0, y, 0), box)
    return checked.precision, checked.data


@attrs.frozen(eq=False)
class Unrounded:
    """A `Conjugate` that autocast, meant for the network, does not reach; keeps what it had to say."""

    data: Conjugate
    notes: list[str] = attrs.field(factory=list)
    several: list[bool] = attrs.field(factory=list)

    @property
    def batched(self) -> bool:
        return bool(getattr(self.data, "batched", False))

    def condition(self, mean: Tensor, variance: Tensor | float, /) -> Normal:
        rounding = torch.autocast(mean.device.type, enabled=False)
        with rounding:
            return self._kept(self.data.condition(mean, variance), rounding)

    def condition_from(self, start: Tensor, mean: Tensor, variance: Tensor | float, /) -> Normal:
        if not isinstance(self.data, Iterative):
            return self.condition(mean, variance)
        rounding = torch.autocast(mean.device.type, enabled=False)
        with rounding:
            return self._kept(self.data.condition_from(start, mean, variance), rounding)

    def mean_from(self, start: Tensor, mean: Tensor, variance: Tensor | float, /) -> Normal:
        if not isinstance(self.data, Averaging):
            return self.condition_from(start, mean, variance)
        rounding = torch.autocast(mean.device.type, enabled=False)
        with rounding:
            return self._kept(self.data.mean_from(start, mean, variance), rounding)

    def _kept(self, posterior: Normal, rounding: torch.autocast) -> Normal:
        note = getattr(posterior, "note", "")
        if note and note not in self.notes:
            self.notes.append(note)
        if getattr(posterior, "several", False) and not self.several:
            self.several.append(True)
        if not isinstance(posterior, Normal) or not callable(posterior.variance):
            return posterior
        if isinstance(posterior.variance, Deviations):
            return attrs.evolve(posterior, variance=Deviations(rounding(posterior.variance.draw)))
        return attrs.evolve(posterior, variance=rounding(posterior.variance))


def conjugates(
    likelihood: FourierDiagonal | Likelihood, batch: tuple[int, ...], box: Box, like: Tensor, needed_by: str
) -> tuple[list[Conjugate], Tensor]:
    """The data of each volume of the batch, and what the volumes should be like; of a mere `log_prob` the mode."""
    if isinstance(likelihood, FourierDiagonal):
        Ws, ys = (part.reshape(-1, *part.shape[-3:]) for part in spectral(likelihood, batch, box))
        return [FourierGaussian(W, y, box) for W, y in zip(Ws, ys, strict=True)], ys.real
    if not isinstance(likelihood, Conjugate):
        if not hasattr(likelihood, "log_prob"):
            lacking = missing(likelihood, "condition", "log_prob")
            raise CapabilityError(f"{needed_by} needs a Likelihood, a Conjugate or a FourierDiagonal one; {lacking}")
        likelihood = Proximal(likelihood)
    return [Unrounded(likelihood)] * math.prod(batch), as_the_data(likelihood, box, like)


def as_the_data(likelihood: Likelihood | Conjugate, box: Box, like: Tensor) -> Tensor:
    """The argument `like` in the precision of the data, as they say it, or as a log p shows it."""
    told = getattr(likelihood, "dtype", None)
    if told is None and isinstance(likelihood, Likelihood):
        try:
            with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
                value = likelihood.log_prob(like.new_zeros(box, dtype=torch.float32))
                told = getattr(value, "dtype", None)  # of another kind: said where it is asked for its gradient
        except CryoFMError:  # of data without noise, which have none
            return like
        except RuntimeError:  # of data that take their own precision alone
            told = torch.float64
    return like.to(told) if told in (torch.float32, torch.float64) else like


def notes(data: Sequence[Conjugate]) -> dict[str, object]:
    """What conditioning had to say, as a setting; mostly nothing."""
    ours = [y for y in dict.fromkeys(data) if isinstance(y, Unrounded)]
    found = [note for y in ours for note in y.notes]
    said: dict[str, object] = {"note": "; ".join(found)} if found else {}
    return said | ({"several_modes": True} if any(y.several for y in ours) else {})


def given(
    data: Sequence[Conjugate],
    starts: Tensor,
    means: Tensor,
    variances: Sequence[Tensor | float],
    *,
    averaged: bool = False,
) -> Tensor:
    """The mean of N(mean, variance) given the data, for every volume `(n, z, y, x)`, from where each is likely to be.

    Of data that search it is the mode, and the mean where it is to be `averaged`. Volumes that share their data are
    conditioned together, where the data know how to.
    """
    find = mean_from if averaged else condition_from
    first = data[0]
    if len(data) > 1 and isinstance(first, Unrounded) and all(y is first for y in data):
        numbers = not isinstance(variances[0], Tensor)
        if first.batched:
            each = [means.new_tensor(v).reshape(1, 1, 1) if numbers else v for v in variances]
            return find(first, starts, means, torch.stack(each)).mean.to(means)  # type: ignore[arg-type]
        if numbers and len(set(variances)) == 1:
            return find(first, starts, means, variances[0]).mean.to(means)
    volumes = zip(data, starts, means, variances, strict=True)
    return torch.stack([find(y, start, mean, v).mean.to(means) for y, start, mean, v in volumes])


def condition_from(data: Conjugate, start: Tensor, mean: Tensor, variance: Tensor | float) -> Normal:
    """N(mean, variance) given the data, sought from `start` where it is sought."""
    if isinstance(data, Unrounded):
        return data.condition_from(start, mean, variance)
    return data.condition(mean, variance)


def mean_from(data: Conjugate, start: Tensor, mean: Tensor, variance: Tensor | float) -> Normal:
    """As `condition_from`, with the mean of data whose mode is no mean."""
    if isinstance(data, Unrounded):
        return data.mean_from(start, mean, variance)
    return data.condition(mean, variance)


def averages(data: Conjugate) -> bool:
    """Whether the data have a mean that is not their mode."""
    return isinstance(data, Unrounded) and isinstance(data.data, Averaging)


def first_posteriors(data: Sequence[Conjugate], power: Tensor, box: Box, like: Tensor) -> list[Normal]:
    """What the data of each volume and a Gaussian prior of this power say; asked once of data that are shared."""
    found: dict[Conjugate, Normal] = {y: first_posterior(y, power, box, like) for y in dict.fromkeys(data)}
    return [found[y] for y in data]


def first_posterior(data: Conjugate, power: Tensor, box: Box, like: Tensor) -> Normal:
    """What the data of one volume and a Gaussian prior of this power say."""
    posterior = data.condition(like.new_zeros(box), power)
    if posterior.mean.shape != box:
        raise GridMismatchError(
            f"the likelihood conditions a volume {box} to {tuple(posterior.mean.shape)}; the data of one volume "
            "are needed (a FourierDiagonal likelihood may hold a batch)"
        )
    return posterior


def remaining(data: Sequence[Conjugate], x: Tensor, variance: Tensor) -> list[Normal]:
    """What the data of each volume leave open of N(·, variance); where that depends on the volume, around x."""
    if all(y is data[0] for y in data) and not _searches(data[0]):
        return [data[0].condition(torch.zeros_like(x[0]), variance)] * len(data)
    return [
        condition_from(y, one, one if _searches(y) else torch.zeros_like(one), variance)
        for y, one in zip(data, x, strict=True)
    ]


def _searches(data: Conjugate) -> bool:
    return isinstance(data, Unrounded) and isinstance(data.data, Iterative)


def deviations(posteriors: Sequence[Normal], generators: Sequence[torch.Generator]) -> Tensor:
    """Draws less the mean of each, `(n, z, y, x)`: together where the posterior is one and knows how to."""
    first = posteriors[0]
    if len(posteriors) > 1 and all(one is first for one in posteriors):
        return first.deviations(generators)
    return torch.stack([one.sample(g) - one.mean for one, g in zip(posteriors, generators, strict=True)])


def variance_at(t: float) -> float:
    """τ = (t / (1 − t))²: of the white noise of x_t / (1 − t)."""
    return (t / (1 - t)) ** 2


def time_of(tau: float) -> float:
    """The inverse of `variance_at`."""
    return 1 - 1 / (1 + math.sqrt(tau))


def falling_times(first: float, last: float, steps: int) -> list[float]:
    """Flow times at ratios t / (1 − t) that fall geometrically."""
    ratios = torch.logspace(math.log10(first), math.log10(last), steps, dtype=torch.float64)
    times: list[float] = (ratios / (1 + ratios)).tolist()
    return times


def streams(generator: torch.Generator, batch: tuple[int, ...]) -> list[torch.Generator]:
    """One generator per volume, so that a volume's noise does not depend on how many are drawn together.

    The seeds are drawn one after another: two batches of 2 from one generator are one batch of 4.
    """
    if not isinstance(generator, torch.Generator):
        raise SettingError(f"generator must be a torch.Generator, got {generator!r}")
    seeds = [
        int(torch.randint(2**62, (), generator=generator, device=generator.device)) for _ in range(math.prod(batch))
    ]
    return [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]


def white_noise(box: Box, stream: torch.Generator, like: Tensor) -> Tensor:
    """Unit white noise `(z, y, x)`, drawn on the stream's device, with the real dtype and the device of
    `like`."""
    noise = torch.randn(box, generator=stream, device=stream.device, dtype=like.real.dtype)
    return noise.to(like.device)


def time_like(t: float, x: Tensor) -> Tensor:
    """A flow time as the tensor that a velocity field takes, in the precision of x."""
    return torch.tensor(t, dtype=x.dtype, device=x.device)


def region_of(velocity: VelocityField, x: Tensor) -> Region | None:
    """Where in volumes like x the velocity field need be evaluated, if it says so."""
    region: Region | None = getattr(velocity, "region", None)
    return None if region is None or region.shape != x.shape[-3:] else region


def velocity_at(velocity: VelocityField, x: Tensor, t: float, *, any_value: bool = False) -> Tensor:
    """v(x, t), evaluated where density can be; elsewhere that of the solvent. t > 0. See `evaluated`."""
    region = region_of(velocity, x)
    if region is None:
        return evaluated(velocity, x, t, any_value=any_value)
    x_0 = region.within(lambda part: part - t * evaluated(velocity, part, t, any_value=any_value), x)
    return (x - x_0) / t


def writes_of(x: Tensor) -> int:
    """How often a tensor was written into; of one that does not count them, 0."""
    return 0 if x.is_inference() else x._version


def evaluated(velocity: VelocityField, x: Tensor, t: float, *, any_value: bool = False) -> Tensor:
    """v(x, t), or an error that says whose fault it is that it is of another kind, or, unless any value will do, not
    finite."""
    written = writes_of(x)
    try:
        v = velocity(x, time_like(t, x))
    except RuntimeError as error:
        if re.search("dtype|scalar type|type and bias type|Double|Float|double|float", str(error)) is None:
            raise
        raise CapabilityError(
            f"the prior {type(velocity).__name__} does not take volumes in {x.dtype}, the precision of the data; "
            f"convert one of the two ({error})"
        ) from None
    if not isinstance(v, Tensor) or v.shape != x.shape or not v.is_floating_point():
        found = f"{v.dtype} of shape {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__
        raise CapabilityError(
            f"the prior {type(velocity).__name__} must give a real velocity of shape {tuple(x.shape)}, it gave {found}"
        )
    if writes_of(x) != written:
        raise CapabilityError(f"the prior {type(velocity).__name__} writes into the volume that it is given")
    if not any_value and not v.isfinite().all():
        if x.isfinite().all():
            raise CapabilityError(f"{type(velocity).__name__} gives a velocity that is not finite at t = {t:.3g}")
        raise OperatorError("the likelihood made a volume that is not finite; does its condition take any mean?")
    return v


@runtime_checkable
class Oriented(Protocol):
    """A velocity field that is not the same in all directions, for it knows something about x in its place."""

    def turned(self, turn: Callable[[Tensor], Tensor], /) -> VelocityField:
        """What it is of x turned, `(n, z, y, x)`."""
        ...


def spent(velocity: VelocityField, calls: int) -> int:
    """Network evaluations in as many calls of a velocity field, which may say how many one call takes."""
    return calls * int(getattr(velocity, "evaluations", 1))


def check_likelihood(value: Tensor, gradient: Tensor) -> None:
    """A density whose value or gradient is not finite would be left out, or spread, without a word."""
    if value.isnan().any() or not gradient.isfinite().all():
        raise OperatorError(
            "the log_prob of the likelihood, or its gradient, is not finite; it must be for any volume, such as "
            "densities below 0"
        )


def backward(of: Tensor, x: Tensor, weights: Tensor, through: str, *, retain_graph: bool = False) -> Tensor:
    """The gradient of Σ weights · of with respect to x, or an error that names what lets none through."""
    found: Tensor | None = None
    if of.requires_grad:
        (found,) = torch.autograd.grad(of, x, weights, retain_graph=retain_graph, allow_unused=True)
    if found is None:  # taken for 0, it would be wrong without a word
        raise CapabilityError(f"no gradient passes through {through}: compute it without no_grad and detach")
    return found


def log_prob_and_gradient(likelihood: Likelihood, x: Tensor) -> tuple[Tensor, Tensor]:
    """Log p(y | x), `(*batch,)`, and its gradient; autocast, meant for the network, does not reach them."""
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        x = x.detach().requires_grad_()
        try:
            value = likelihood.log_prob(x.clone())  # which it may write into
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # torch's own, which does not say whose it is
            name = type(likelihood).__name__
            raise OperatorError(f"the log_prob of {name} fails for volumes {tuple(x.shape)}: {error}") from error
        if not isinstance(value, Tensor) or not value.is_floating_point():
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise OperatorError(f"the log_prob of {type(likelihood).__name__} must be a real tensor, it is {found}")
        if value.shape != x.shape[:-3]:
            raise GridMismatchError(
                f"the log_prob of volumes of shape {tuple(x.shape)} must be {tuple(x.shape[:-3])}, one value each; "
                f"{type(likelihood).__name__} gives {tuple(value.shape)}"
            )
        return value.detach(), backward(value, x, torch.ones_like(value), "the log_prob of the likelihood")


def copy_attributes(source: object, target: object, *names: str) -> None:
    """Give a wrapper the named attributes that the wrapped object has.

    As attributes of the instance, since `isinstance` with a Protocol sees neither `__getattr__` nor a
    property that raises.
    """
    for name in names:
        if hasattr(source, name):
            object.__setattr__(target, name, getattr(source, name))
