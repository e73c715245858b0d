"""Oracles for samplers: priors whose posteriors are known, and checks that a sampler, ours or yours, reaches them.

Each check draws with the sampler on a box of a few dozen voxels, in float64, and raises a `SamplerError` that says what
was expected and what came. A sampler of the posterior passes all of them; one of its mean alone `check_mean`,
`check_batching` and `check_dtype`. `check_sampler` runs them all, and `check_prior` those of a velocity field.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cryofm_ops import FourierGaussian, half_shape, irfft, radial, rfft
from cryofm_sampling._common import Box
from cryofm_sampling.priors.calibrate import calibrate
from cryofm_sampling.protocols import Draw, Sampler, VelocityField
from cryofm_sampling.testing._exact_priors import GaussianPrior, MixturePrior
from cryofm_sampling.testing._priors import PriorError, check_prior
from cryofm_sampling.testing._run import run_all

__all__ = [
    "GaussianPrior",
    "MixturePrior",
    "PriorError",
    "SamplerError",
    "check_batching",
    "check_covariance",
    "check_coverage",
    "check_dtype",
    "check_mean",
    "check_modes",
    "check_prior",
    "check_run",
    "check_sampler",
    "two_spectra",
    "two_templates",
]

_BOX = (4, 3, 5)
_SIGMAS = 5  # standard errors of what is measured that are let pass
_TOGETHER = 8  # samples of one posterior whose spread makes an interval
_STUDENT = {50: 0.71114, 80: 1.41492, 95: 2.36462}  # half widths of such intervals, for 7 degrees of freedom


class SamplerError(AssertionError):
    """A sampler misses what it claims."""


def _require(holds: bool, sampler: object, claim: str) -> None:
    if not holds:
        raise SamplerError(f"{sampler}: {claim}")


def _prior(dtype: torch.dtype = torch.float64, box: Box = _BOX) -> GaussianPrior:
    return GaussianPrior(torch.tensor([6.0, 2.0, 0.5, 0.1], dtype=dtype), box)


def _data(dtype: torch.dtype = torch.float64, box: Box = _BOX) -> FourierGaussian:
    """Noise that grows with frequency, and nothing measured at kz = ±1/4."""
    y = 2 * torch.randn(box, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    W = radial(torch.tensor([20.0, 2.0, 0.5], dtype=torch.float64), box)
    W[[box[0] // 4, -(box[0] // 4)]] = 0
    return FourierGaussian(W.to(dtype), rfft(y.to(dtype)), box)


def _drawn(
    sampler: Sampler,
    velocity: VelocityField,
    likelihood: FourierGaussian,
    shape: tuple[int, ...],
    generator: torch.Generator,
) -> Tensor:
    """The volumes, which must be as many as were asked for, in that shape: what broadcasts would pass for right."""
    x = sampler(velocity, likelihood, shape=shape, generator=generator).x
    _require(x.shape == shape, sampler, f"asked for {shape}, it gives {tuple(x.shape)}")
    return x


def _whitened(sampler: Sampler, likelihood: FourierGaussian | None, runs: int, seed: int) -> Tensor:
    """Draws `(runs, z, y, x)`, less the exact posterior mean, over the exact posterior spread per coefficient.

    Of an exact sampler that is white noise of unit variance; where nothing is left open it is put in.
    """
    likelihood = likelihood or _data()
    box = likelihood.shape
    prior = _prior(box=box)
    generator = torch.Generator().manual_seed(seed)
    x = _drawn(sampler, prior, likelihood, (runs, *box), generator)
    posterior = likelihood.condition(torch.zeros(box, dtype=torch.float64), radial(prior.signal_power, box))
    variance = posterior.variance
    assert isinstance(variance, Tensor)
    deviation = rfft(x.double() - posterior.mean)
    certain = variance == 0
    found = float((deviation.abs() * certain).max())
    _require(found < 1e-5, sampler, f"data without noise are missed by up to {found:.1e}")
    white = rfft(torch.randn(x.shape, generator=generator, dtype=torch.float64))
    return irfft(torch.where(certain, white, deviation / torch.where(certain, 1, variance).sqrt()), box)


def check_mean(
    sampler: Sampler, likelihood: FourierGaussian | None = None, *, runs: int = 500, bias: float = 0.02, seed: int = 0
) -> None:
    """The mean of the draws is the posterior mean of a Gaussian prior.

    Args:
        sampler: of posterior samples, or of the posterior mean.
        likelihood: the data; noise that grows with frequency, and unmeasured planes, if not given.
        runs: how many volumes are drawn, in one batch.
        bias: error let pass beyond that of sampling, in posterior standard deviations.
        seed: of the draws.

    >>> from cryofm_sampling import PlugAndPlay
    >>> check_mean(PlugAndPlay(100), runs=8)
    """
    u = _whitened(sampler, likelihood, runs, seed)
    excess = float((u.mean(0).abs() - _SIGMAS * u.std(0) / runs**0.5).max())
    claim = f"the mean is off by {excess:.3f} posterior standard deviations more than sampling explains"
    _require(excess < bias, sampler, f"{claim}; {bias} is let pass")


def check_covariance(
    sampler: Sampler, likelihood: FourierGaussian | None = None, *, runs: int = 1000, bias: float = 0.04, seed: int = 0
) -> None:
    """The covariance of the draws is the posterior covariance of a Gaussian prior.

    Every Fourier coefficient must have the exact variance, and no two voxels of the draws, once whitened by the exact
    covariance, may be correlated. `bias` is the error of a variance, relative to the exact one, that is let pass
    beyond that of sampling; the other arguments are those of `check_mean`.

    >>> from cryofm_sampling import PlugAndPlay, Renoising
    >>> check_covariance(Renoising(times=(0.5,)), runs=200)
    >>> try:
    ...     check_covariance(PlugAndPlay(), runs=20)
    ... except SamplerError as error:
    ...     print("a mean has no spread")
    a mean has no spread
    """
    u = _whitened(sampler, likelihood, runs, seed)
    u = (u - u.mean(0)) * (runs / (runs - 1)) ** 0.5
    voxels = u[0].numel()
    mean = float(u.square().mean())
    tolerance = _SIGMAS * (2 / (runs * voxels)) ** 0.5 + bias
    _require(
        abs(mean - 1) < tolerance, sampler, f"the variance is {mean:.3f} of the exact one, not 1 ± {tolerance:.3f}"
    )
    per_coefficient = rfft(u).abs().square().mean(0).flatten()
    worst = float(per_coefficient[(per_coefficient - 1).abs().argmax()])
    tolerance = _SIGMAS * (2 / runs) ** 0.5 + bias
    claim = f"a coefficient has {worst:.3f} of its exact variance, not 1 ± {tolerance:.3f}"
    _require(abs(worst - 1) < tolerance, sampler, claim)
    u = u.flatten(1)
    correlation = u.T @ u / runs
    worst = float((correlation - correlation.diag().diag()).abs().max())
    tolerance = _SIGMAS / runs**0.5
    _require(worst < tolerance, sampler, f"whitened voxels are correlated by {worst:.3f}, not within {tolerance:.3f}")


def check_coverage(
    sampler: Sampler, likelihood: FourierGaussian | None = None, *, runs: int = 100, bias: float = 0.01, seed: int = 0
) -> None:
    """Intervals of 50, 80 and 95 % that the draws give hold the truth so often.

    Truths are drawn from a Gaussian prior and observed; of each posterior 8 volumes are drawn, whose mean and spread
    make intervals by Student's t in every voxel. Of `likelihood` the precision counts; `runs` is the number of truths,
    `bias` the error of a frequency that is let pass beyond that of sampling.

    >>> from cryofm_sampling import PlugAndPlay, Renoising
    >>> check_coverage(Renoising(times=(0.5,)), runs=40)
    >>> try:
    ...     check_coverage(PlugAndPlay(), runs=20)
    ... except SamplerError as error:
    ...     print("a mean has no spread")
    a mean has no spread
    """
    W, box = (likelihood or _data()).precision, (likelihood or _data()).shape
    prior = _prior(box=box)
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(2, runs, *box, generator=generator, dtype=torch.float64)
    truth = irfft(rfft(white[0]) * radial(prior.signal_power, box).sqrt(), box)
    y = rfft(truth) + torch.where(W > 0, rfft(white[1]) / W.double().sqrt(), 0)
    data = FourierGaussian(W, torch.where(W > 0, y, 0).repeat_interleave(_TOGETHER, 0), box)
    x = _drawn(sampler, prior, data, (runs * _TOGETHER, *box), generator).double()
    std, mean = torch.std_mean(x.reshape(runs, _TOGETHER, *box), 1)
    off = (truth - mean).abs() / (std * (1 + 1 / _TOGETHER) ** 0.5)
    for nominal, half_width in _STUDENT.items():
        found = (off < half_width).double().mean((1, 2, 3))
        tolerance = _SIGMAS * float(found.std()) / runs**0.5 + bias
        claim = f"intervals of {nominal} % hold the truth in {100 * float(found.mean()):.1f} % of the voxels"
        within = abs(float(found.mean()) - nominal / 100) < tolerance
        _require(within, sampler, f"{claim}; {100 * tolerance:.1f} % off are let pass")


def two_templates() -> tuple[MixturePrior, FourierGaussian]:
    """A shape and its negative, 0.7 to 0.3, and data that speak for the negative: 0.41 to 0.59.

    Shape and data have the 24 symmetries of the cube, as an algorithm may rotate what it shows to the prior.
    """
    axis = torch.arange(4, dtype=torch.float64) - 1.5
    r = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    shape = 0.8 * torch.exp(-((r / 1.2) ** 2)) - 0.4 * torch.exp(-((r - 2) ** 2))
    half = half_shape((4, 4, 4))
    power = torch.full((2, *half), 0.04, dtype=torch.float64)
    prior = MixturePrior(power.new_tensor([0.7, 0.3]), torch.stack([shape, -shape]), power)
    return prior, FourierGaussian(torch.full(half, 0.1).double(), rfft(-shape), (4, 4, 4))


def two_spectra() -> tuple[MixturePrior, FourierGaussian]:
    """Fields of mean 0, blue ones and red ones, 0.6 to 0.4, and data that look red: 0.29 to 0.71."""
    box = (4, 4, 4)
    blue, red = (radial(torch.tensor(table).double(), box) for table in ([0.5, 1.0, 1.5], [4.0, 1.0, 0.3]))
    prior = MixturePrior(blue.new_tensor([0.6, 0.4]), blue.new_zeros(2, *box), torch.stack([blue, red]))
    y = 1.5 * torch.randn(box, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return prior, FourierGaussian(torch.full(half_shape(box), 0.06).double(), rfft(y), box)


def check_modes(
    sampler: Sampler,
    prior: MixturePrior,
    likelihood: FourierGaussian,
    *,
    runs: int = 300,
    bias: float = 0.1,
    seed: int = 0,
) -> None:
    """The draws fall into the modes of a mixture as often as the exact posterior does.

    A method that takes x_0 given x_t for a normal of the same spread in all directions of a frequency shell cannot be
    exact here: the stronger the data speak for one mode, the more it is off.

    Args:
        sampler: of posterior samples.
        prior: such as that of `two_templates()` or `two_spectra()`.
        likelihood: the data.
        runs: how many volumes are drawn, in one batch.
        bias: error of a frequency let pass beyond that of sampling.
        seed: of the draws, and of the examples on which the prior's statistics are measured.

    >>> from cryofm_sampling import Guided
    >>> check_modes(Guided(40), *two_templates())
    """
    generator = torch.Generator().manual_seed(seed)
    velocity = calibrate(prior, prior.sample(128, generator=generator), generator=generator)
    x = _drawn(sampler, velocity, likelihood, (runs, *prior.box), generator)
    posterior = prior.given(likelihood)
    found = posterior.membership(x.double()).mean(0)
    exact = posterior.weights
    tolerance = _SIGMAS * (exact * (1 - exact) / runs).sqrt() + bias
    claim = f"draws fall into the modes as {[round(f, 3) for f in found.tolist()]}, not as {exact.tolist()}"
    _require(bool(((found - exact).abs() < tolerance).all()), sampler, claim)


def check_batching(sampler: Sampler, *, tolerance: float = 1e-10) -> None:
    """A seed gives the same volumes however many are drawn together, and no other randomness is used.

    `tolerance` is for rounding between batch sizes; runs of the same shape must agree in every bit.

    >>> from cryofm_sampling import Renoising
    >>> check_batching(Renoising(times=(0.6, 0.3)), tolerance=0.0)
    """
    for box in (_BOX, (8, 8, 8)):  # the FFT of a batch rounds as that of one, and otherwise
        _check_batching(sampler, box, tolerance)


def _check_batching(sampler: Sampler, box: Box, tolerance: float) -> None:
    prior, likelihood = _prior(box=box), _data(box=box)

    def draw(*batch: int, generator: torch.Generator | None = None) -> Tensor:
        generator = generator or torch.Generator().manual_seed(7)
        return _drawn(sampler, prior, likelihood, (*batch, *box), generator)

    state = torch.get_rng_state()
    four = draw(4)
    generator = torch.Generator().manual_seed(7)
    pairs = torch.cat([draw(2, generator=generator) for _ in range(2)])
    for name, other in {"2 and 2": pairs, "2 × 2": draw(2, 2).reshape(four.shape), "1": draw()[None]}.items():
        apart = float((four[: len(other)] - other).abs().max())
        _require(apart <= tolerance, sampler, f"4 volumes drawn together differ from {name} by {apart:.1e}")
    _require(torch.equal(four, draw(4)), sampler, "the same seed gives other volumes")
    _require(torch.equal(state, torch.get_rng_state()), sampler, "it uses the global random state")


def check_dtype(sampler: Sampler) -> None:
    """Volumes have the dtype of the data, float32 or float64, and no gradient.

    >>> from cryofm_sampling import PlugAndPlay
    >>> check_dtype(PlugAndPlay())
    """
    for dtype in (torch.float32, torch.float64):
        x = _drawn(sampler, _prior(dtype), _data(dtype), _BOX, torch.Generator().manual_seed(0))
        _require(x.dtype == dtype, sampler, f"of data in {dtype} it makes volumes in {x.dtype}")
        _require(not x.requires_grad, sampler, "its volumes carry a gradient")


def check_run(sampler: Sampler) -> None:
    """A run gives a `Draw` of finite volumes, counts its evaluations, tells of every step, and leaves the data alone.

    `nfe` is at least the calls of the velocity field for one volume, and at most twice that (a backward pass counts).

    >>> from cryofm_sampling import PlugAndPlay
    >>> check_run(PlugAndPlay())
    """
    prior, data, calls, told = _prior(), _data(), list[Tensor](), list[tuple[int, int, tuple[int, ...]]]()

    class Counted:
        signal_power, denoising_error = prior.signal_power, prior.denoising_error

        def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
            calls.append(t)
            return prior(x, t)

    def listen(step: int, total: int, x_0: Tensor, /) -> None:
        told.append((step, total, tuple(x_0.shape)))

    kept = FourierGaussian(data.precision.clone(), data.data.clone(), data.shape)
    draw = sampler(Counted(), data, shape=_BOX, generator=torch.Generator().manual_seed(0), callback=listen)
    _require(isinstance(draw, Draw), sampler, f"it returns {type(draw).__name__}, no Draw")
    _require(draw.x.shape == _BOX, sampler, f"asked for {_BOX}, it gives {tuple(draw.x.shape)}")
    _require(bool(draw.x.isfinite().all()), sampler, "its volumes are not finite")
    same = torch.equal(kept.precision, data.precision) and torch.equal(kept.data, data.data)
    _require(same, sampler, "it writes into the data of the likelihood")
    counted = len(calls) <= draw.nfe <= 2 * len(calls)
    _require(counted, sampler, f"nfe is {draw.nfe} after {len(calls)} calls of the velocity field")
    _require(len(told) > 0, sampler, "the callback was told nothing")
    total = told[0][1]
    steps = [(step, of) for step, of, _ in told] == [(i + 1, total) for i in range(total)]
    _require(
        steps, sampler, f"the callback was told of steps {[(step, of) for step, of, _ in told][:9]}, not of 1, 2, …"
    )
    _require(all(shape == _BOX for _, _, shape in told), sampler, "the callback was shown volumes of another shape")


def check_sampler(
    sampler: Sampler,
    *,
    samples: bool = True,
    bias: float = 0.05,
    expected_failures: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Run every check of a sampler; return the names of those that passed.

    Args:
        sampler: anything that is called as one.
        samples: whether it draws from the posterior; False: it gives the mean alone.
        bias: see `check_mean` and `check_covariance`; of a coverage a quarter of it.
        expected_failures: names of checks that cannot pass, with the reason.

    Raises `SamplerError` with every failure in one message, and with every expected one that did not come.

    >>> from cryofm_sampling import PlugAndPlay
    >>> check_sampler(PlugAndPlay(60), samples=False)
    ('check_run', 'check_dtype', 'check_batching', 'check_mean')
    """
    checks: dict[str, Callable[[], None]] = {
        "check_run": lambda: check_run(sampler),
        "check_dtype": lambda: check_dtype(sampler),
        "check_batching": lambda: check_batching(sampler),
        "check_mean": lambda: check_mean(sampler, runs=200 if samples else 4, bias=bias),
    }
    if samples:
        checks["check_covariance"] = lambda: check_covariance(sampler, runs=400, bias=bias)
        checks["check_coverage"] = lambda: check_coverage(sampler, runs=50, bias=bias / 4)
    return run_all(sampler, checks, expected_failures, SamplerError)
