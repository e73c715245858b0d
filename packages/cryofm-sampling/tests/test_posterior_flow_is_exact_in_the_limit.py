"""With more steps the flow of a Gaussian posterior is the exact one, which takes x_1 to mean + spread · x_1."""

from itertools import pairwise

import attrs
import pytest
import torch

from cryofm_ops import FourierGaussian, LinearGaussian, WhiteNoise, fourier_filter, irfft, radial, rfft
from cryofm_sampling import CapabilityError, PlugAndPlay, PosteriorFlow
from cryofm_sampling.testing import (
    GaussianPrior,
    check_batching,
    check_covariance,
    check_dtype,
    check_mean,
)

BOX = (4, 3, 5)
PRIOR = GaussianPrior(torch.tensor([6.0, 2.0, 0.5, 0.1], dtype=torch.float64), BOX)


def data(precisions):
    y = torch.randn(BOX, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return FourierGaussian(radial(torch.tensor(precisions, dtype=torch.float64), BOX), rfft(y), BOX)


def with_gaps_and_noiseless():
    W = torch.tensor([torch.inf, 0.0, 2.0], dtype=torch.float64).repeat(4, 3, 1)
    return attrs.evolve(data([1.0, 1.0, 1.0]), precision=W)


def mostly_gaps():
    W = torch.zeros(4, 3, 3, dtype=torch.float64)
    W[[0, 2]] = torch.inf
    return attrs.evolve(data([1.0, 1.0, 1.0]), precision=W)


def deviation(kit, steps, likelihood):
    """From the exact flow, root mean square, over the posterior's own."""
    generator = torch.Generator().manual_seed(0)
    x = PosteriorFlow(steps)(kit.Sure(PRIOR.signal_power, BOX), likelihood, shape=BOX, generator=generator).x
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(0)))
    x_1 = torch.randn(BOX, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    posterior = likelihood.condition(torch.zeros(BOX, dtype=torch.float64), radial(PRIOR.signal_power, BOX))
    spread = irfft(posterior.variance.sqrt() * rfft(x_1), BOX)
    return float((x - posterior.mean - spread).square().mean().sqrt() / spread.square().mean().sqrt())


@pytest.mark.parametrize("likelihood", [data([20.0, 2.0, 0.5]), data([3.0, 3.0, 3.0]), with_gaps_and_noiseless()])
@pytest.mark.slow
def test_its_error_falls_as_one_over_steps(kit, likelihood):
    found = [deviation(kit, steps, likelihood) for steps in (24, 50, 100, 200, 400)]
    assert found[0] < 0.05
    assert found[-1] < 0.005
    assert all(b / a < 0.7 for a, b in pairwise(found)), found


@pytest.mark.slow
def test_where_nothing_was_measured_nothing_is_left_of_the_first_passes():
    """Their levels are far below the flow's, and what they keep would count a thousandfold."""
    nothing = attrs.evolve(data([1.0, 1.0, 1.0]), precision=torch.zeros(4, 3, 3, dtype=torch.float64))
    for first in (1, 8, 20):
        run = {"shape": (40, *BOX), "generator": torch.Generator().manual_seed(0)}
        x = PosteriorFlow(24, PlugAndPlay(first))(PRIOR, nothing, **run).x
        power = rfft(x).abs().square().mean(0) / radial(PRIOR.signal_power, BOX)
        assert float(power.mean()) == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_mean_and_covariance():
    check_mean(PosteriorFlow(60), runs=60, bias=0.1)
    check_covariance(PosteriorFlow(30), runs=400, bias=0.1)


class Blurred:
    """Half of the volume, seen with a gain and through its neighbours."""

    def __call__(self, x):
        return ((x + x.roll(1, -3)) * torch.linspace(0.5, 1.5, BOX[-1]).to(x))[..., :2, :, :]

    def adjoint(self, y):
        z = torch.cat([y, y.new_zeros(*y.shape[:-3], BOX[0] - 2, *BOX[1:])], -3) * torch.linspace(0.5, 1.5, BOX[-1])
        return z + z.roll(-1, -3)


@pytest.mark.slow
def test_any_linear_operator():
    """By conjugate gradients, against the posterior of dense matrices."""
    one = torch.eye(60).reshape(60, *BOX)
    A = Blurred()(one).reshape(60, -1).T
    C = fourier_filter(one, radial(PRIOR.signal_power.float(), BOX)).reshape(60, 60)
    gain = C @ A.T @ torch.linalg.inv(A @ C @ A.T + 0.25 * torch.eye(30))
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(2, *BOX[1:], generator=generator)
    mean, cov = gain @ y.flatten(), C - gain @ A @ C
    likelihood = LinearGaussian(Blurred(), WhiteNoise(0.5), y, tolerance=1e-6)
    x = PosteriorFlow(40, PlugAndPlay())(PRIOR, likelihood, shape=(60, *BOX), generator=generator).x.flatten(1)
    assert x.dtype == torch.get_default_dtype()
    z = torch.linalg.solve(torch.linalg.cholesky(cov), (x - mean).T)
    assert z.mean(1).abs().max() < 5 / 60**0.5
    assert float(z.square().mean()) == pytest.approx(1, abs=0.1)


def test_what_is_drawn_together():
    check_batching(PosteriorFlow(4), tolerance=0.0)
    check_dtype(PosteriorFlow(4))


@pytest.mark.parametrize("precision", [0.1, 10.0, 1e3, 1e5])
@pytest.mark.slow
def test_it_spreads_as_the_posterior_however_well_measured(precision):
    likelihood = data([precision] * 3)
    posterior = likelihood.condition(torch.zeros(BOX, dtype=torch.float64), radial(PRIOR.signal_power, BOX))
    x = PosteriorFlow()(PRIOR, likelihood, shape=(100, *BOX), generator=torch.Generator().manual_seed(0)).x
    power = rfft(x - posterior.mean).abs().square().mean(0) / posterior.variance
    assert float(power.mean()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("likelihood", [data([20.0, 2.0, 0.5]), with_gaps_and_noiseless(), mostly_gaps()])
def test_levels_never_rise(likelihood):
    """To a network, which is not linear, what passes at lower levels leave would count a hundredfold."""
    levels = []

    class Recorded(GaussianPrior):
        def __call__(self, x, t):
            levels.append(float(t))
            return super().__call__(x, t)

    prior = Recorded(PRIOR.signal_power, BOX)
    PosteriorFlow(24, PlugAndPlay(5))(prior, likelihood, shape=BOX, generator=torch.Generator().manual_seed(0))
    assert len(levels) == 29
    assert all(b <= a + 0.02 for a, b in pairwise(levels)), levels


@pytest.mark.parametrize("precision", [1e-6, 1e-3])
@pytest.mark.slow
def test_noise_that_drowns_the_signal_does_not_widen_the_flow(precision):
    y = rfft(precision**-0.5 * torch.randn(BOX, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    weak = attrs.evolve(data([precision] * 3), data=y)
    posterior = weak.condition(torch.zeros(BOX, dtype=torch.float64), radial(PRIOR.signal_power, BOX))
    x = PosteriorFlow()(PRIOR, weak, shape=(40, *BOX), generator=torch.Generator().manual_seed(0)).x
    power = rfft(x - posterior.mean).abs().square().mean(0) / posterior.variance
    assert float(power.mean()) == pytest.approx(1, abs=0.15)


def test_the_result_and_what_a_callback_sees_are_their_own():
    run = {"shape": (2, *BOX), "generator": torch.Generator().manual_seed(0)}
    draw = PosteriorFlow(3)(PRIOR, data([3.0, 3.0, 3.0]), **run)
    assert draw.x.untyped_storage().nbytes() == draw.x.numel() * draw.x.element_size()
    run["generator"].manual_seed(0)
    spoilt = PosteriorFlow(3)(PRIOR, data([3.0, 3.0, 3.0]), callback=lambda i, n, x: x.zero_(), **run)
    assert torch.equal(spoilt.x, draw.x)


def test_what_is_missing_is_named():
    class Neither:
        def refine(self, x):
            return x

    run = {"shape": BOX, "generator": torch.Generator()}
    with pytest.raises(CapabilityError, match=r"PosteriorFlow needs a Likelihood, .* Neither has no condition"):
        PosteriorFlow()(PRIOR, Neither(), **run)
    with pytest.raises(CapabilityError, match=r"PosteriorFlow needs a Calibrated .* function has no signal_power"):
        PosteriorFlow()(lambda x, t: x, data([1.0, 1.0, 1.0]), **run)
