"""The mode of any likelihood, its curvature and several modes, against dense matrices and grids."""

import math

import pytest
import torch

from cryofm_ops import (
    Gaussian,
    GridMismatchError,
    Identity,
    Iterative,
    OperatorError,
    Proximal,
    SpectralNoise,
    StudentTLikelihood,
    WhiteNoise,
    fourier_filter,
    gaussian_likelihood,
    in_model_units,
    radial,
    standard_normal,
)

BOX = (4, 5, 6)
F64 = torch.float64
VOLUME = (-3, -2, -1)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class LogProb:
    def __init__(self, log_prob):
        self.log_prob, self.calls = self.counted(log_prob), 0

    def counted(self, log_prob):
        def count(x):
            self.calls += 1
            return log_prob(x)

        return count


@pytest.mark.parametrize("variance", ["white", "radial", "some of it 0"])
@pytest.mark.slow
def test_linear_gaussian_data_give_the_exact_posterior(oracle, generator, variance):
    m = torch.randn(oracle.size // 2, oracle.size, generator=generator, dtype=F64)
    y = torch.randn(len(m), generator=generator, dtype=F64)
    likelihood = LogProb(lambda x: -0.5 * ((x.flatten(-3) @ m.T - y) / 0.7).square().sum(-1))
    table = {"white": [0.8, 0.8], "radial": [4.0, 0.1], "some of it 0": [1.0, 0.0]}[variance]
    V = radial(torch.tensor(table, dtype=F64), oracle.shape)
    mean = torch.randn(2, *oracle.shape, generator=generator, dtype=F64)
    data = Proximal(likelihood, tolerance=1e-6, max_iterations=500)
    posterior = data.condition(mean, 0.8 if variance == "white" else V)
    v = oracle.filter(V)
    gain = v @ m.T @ torch.linalg.inv(0.49 * torch.eye(len(m), dtype=F64) + m @ v @ m.T)
    mu = mean.flatten(1)
    expected = mu + (y - mu @ m.T) @ gain.T
    torch.testing.assert_close(posterior.mean.flatten(1), expected, atol=1e-4, rtol=1e-4)
    assert posterior.note == ""
    nearby = data.condition_from(posterior.mean, mean, 0.8 if variance == "white" else V)
    torch.testing.assert_close(nearby.mean, posterior.mean, atol=1e-4, rtol=1e-4)
    assert isinstance(data, Iterative)


def test_a_variance_for_each_volume_is_that_variance():
    y = draw(*BOX)
    data = Proximal(LogProb(lambda x: -((x.tanh() - y.tanh()) / 0.5).square().sum(VOLUME)), tolerance=1e-8)
    mean = draw(2, *BOX, seed=1)
    both = data.condition_from(mean, mean, torch.tensor([0.3, 2.0], dtype=F64).reshape(2, 1, 1, 1)).mean
    for k, v in enumerate((0.3, 2.0)):
        torch.testing.assert_close(both[k], data.condition_from(mean[k], mean[k], v).mean, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_draws_have_the_posterior_covariance(generator):
    # 6 standard errors for each of 12² entries: a false alarm in 3e-7 of all seeds; the seed is fixed.
    draws, shape = 4000, (2, 2, 3)
    m = torch.randn(7, 12, generator=generator, dtype=F64)
    data = Proximal(LogProb(lambda x: -2 * (x.flatten(-3) @ m.T).square().sum(-1)), tolerance=1e-5)
    posterior = data.condition_from(*torch.zeros(2, *shape, dtype=F64), 0.8)
    generators = [torch.Generator().manual_seed(k) for k in range(draws)]
    x = posterior.deviations(generators).flatten(1)
    expected = torch.linalg.inv(torch.eye(12, dtype=F64) / 0.8 + 4 * m.T @ m)
    spread = (expected.diagonal().outer(expected.diagonal()) + expected**2) / draws
    assert ((x.T @ x / draws - expected).abs() < 6 * spread.sqrt()).all()
    one = posterior.sample(torch.Generator().manual_seed(3)) - posterior.mean
    torch.testing.assert_close(x[3], one.flatten(), atol=1e-6, rtol=1e-6)


def test_what_bends_upwards_makes_no_volume_less_certain():
    data = Proximal(LogProb(lambda x: 2 * x.square().clamp(max=9).sum(VOLUME)))
    posterior = data.condition_from(draw(*BOX), torch.zeros(BOX, dtype=F64), 1.0)
    assert posterior.deviations([torch.Generator().manual_seed(k) for k in range(8)]).square().mean() < 1.3


def of_voxels(case):
    """Data y of N(0, 1), log p(y | x) voxel by voxel, and by how much a search may miss the highest mode."""
    truth, noise = draw(6, 6, 6), draw(6, 6, 6, seed=1)
    return {
        "saturated": (truth.tanh() + 0.1 * noise, lambda x, y: -50 * (x.tanh() - y) ** 2, 0.1),
        "exponential": (truth.exp() + 0.3 * noise, lambda x, y: -((x.exp() - y) ** 2) / 0.18, 3.0),
        "outliers": (
            truth + torch.where(draw(6, 6, 6, seed=2) > 1.3, 2.0, 0.2) * noise,
            lambda x, y: torch.logaddexp(-((x - y) ** 2) / 0.08 + math.log(4.5), -((x - y) ** 2) / 8 - math.log(20)),
            20.0,  # with two modes in many a voxel, no search finds all of the higher ones
        ),
        "multiplied": (
            truth * (1 + 0.3 * noise),
            lambda x, y: -((x - y) ** 2) / (0.18 * x**2 + 8e-4) - (0.09 * x**2 + 4e-4).log() / 2,
            15.0,
        ),
    }[case]


@pytest.mark.parametrize("case", ["saturated", "exponential", "outliers", "multiplied"])
@pytest.mark.slow
def test_voxel_by_voxel_the_mode_is_that_of_a_grid(case):
    y, log_p, lost = of_voxels(case)
    grid = torch.linspace(-6, 6, 6001, dtype=F64)
    best = (log_p(grid, y[..., None]) - grid**2 / 2).amax(-1).sum()
    data = Proximal(LogProb(lambda x: log_p(x, y).sum(VOLUME)), max_iterations=300)
    x = data.condition(torch.zeros_like(y), 1.0).mean
    assert best - (log_p(x, y) - x**2 / 2).sum() < lost
    at_first = (log_p(torch.zeros_like(y), y)).sum()
    assert best - at_first > 10 * lost


def by_quadrature(case):
    y, log_p, _ = of_voxels(case)
    grid = torch.linspace(-6, 6, 6001, dtype=F64)
    return y, log_p, ((log_p(grid, y[..., None]) - grid**2 / 2).softmax(-1) * grid).sum(-1)


@pytest.mark.parametrize("case", ["saturated", "exponential", "outliers", "multiplied"])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_voxel_by_voxel_the_mean_is_that_of_a_grid(case, dtype):
    y, log_p, mean = by_quadrature(case)
    data = Proximal(LogProb(lambda x: log_p(x, y.to(x)).sum(VOLUME)))
    start, zero = y.clamp(-2, 2).to(dtype), torch.zeros_like(y, dtype=dtype)
    found = data.mean_from(start, zero, 1.0).mean
    assert found.dtype == dtype
    assert (found.double() - mean).square().mean() < 1e-4 * mean.square().mean()
    mode = data.condition_from(start, zero, 1.0).mean
    assert (mode.double() - mean).square().mean() > 50 * (found.double() - mean).square().mean()


@pytest.mark.parametrize(
    ("case", "left"),  # of the mode's distance from the mean
    [("saturated", 0.3), ("exponential", 0.1), ("outliers", 0.9), ("multiplied", 1.05)],
)
def test_of_voxels_that_hang_together_the_mean_is_nearer_that_of_a_grid(case, left):
    y, log_p, mean = by_quadrature(case)
    # A term that ties them too weakly to be felt, so that the mean is known still.
    data = Proximal(LogProb(lambda x: log_p(x, y).sum(VOLUME) + 1e-3 * x.tanh().sum(VOLUME).tanh()))
    mode = data.condition_from(y.clamp(-2, 2), torch.zeros_like(y), 1.0).mean
    found = data.mean_from(mode, torch.zeros_like(y), 1.0).mean
    assert (found - mean).square().mean() < left * (mode - mean).square().mean()


@pytest.mark.slow
def test_where_the_prior_ties_voxels_the_mean_is_that_of_a_chain(generator):
    """Outliers under a coloured prior: against Hamiltonian Monte Carlo, whose error is about 1 %."""
    box = (4, 4, 4)
    V = radial(torch.tensor([5.0, 0.6, 0.2], dtype=F64), box)
    truth = fourier_filter(draw(*box), V.sqrt())
    y = truth + torch.where(draw(*box, seed=2) > 1.0, 3.0, 0.3) * draw(*box, seed=1)

    def log_p(x):
        return torch.logaddexp(-((x - y) ** 2) / 0.18 + math.log(8.5), -((x - y) ** 2) / 18 - math.log(2)).sum(VOLUME)

    data = Proximal(LogProb(log_p))
    mode = data.condition(0 * y, V).mean
    found = data.mean_from(mode, 0 * y, V).mean

    def energy(w):
        return w.square().sum(VOLUME) / 2 - log_p(fourier_filter(w, V.sqrt()))

    def slope(w):
        w = w.detach().requires_grad_()
        return torch.autograd.grad(energy(w).sum(), w)[0]

    w, mean, e = torch.randn(64, *box, generator=generator, dtype=F64), 0, 0.15
    for i in range(120):
        p = torch.randn(w.shape, generator=generator, dtype=F64)
        at, momentum = w, p - e / 2 * slope(w)
        for k in range(10):  # leapfrog
            at = at + e * momentum
            momentum = momentum - (e / 2 if k == 9 else e) * slope(at)
        gain = energy(w) - energy(at) + (p.square() - momentum.square()).sum(VOLUME) / 2
        taken = torch.rand(64, generator=generator, dtype=F64) < gain.exp()
        w = torch.where(taken[:, None, None, None], at, w)
        mean = mean + fourier_filter(w, V.sqrt()).mean(0) / 80 if i >= 40 else mean
    assert (found - mean).norm() < 0.04 * mean.norm()
    assert (mode - mean).norm() > 0.15 * mean.norm()


@pytest.mark.slow
def test_where_log_p_is_quadratic_the_mean_is_the_mode(oracle, generator):
    m = torch.randn(oracle.size // 2, oracle.size, generator=generator, dtype=F64)
    data = Proximal(
        LogProb(lambda x: -2 * (x.flatten(-3) @ m.T - 1).square().sum(-1)), tolerance=1e-6, max_iterations=500
    )
    V, zero = radial(torch.tensor([4.0, 0.1], dtype=F64), oracle.shape), torch.zeros(2, *oracle.shape, dtype=F64)
    mode = data.condition_from(zero, zero, V).mean
    torch.testing.assert_close(data.mean_from(mode, zero, V).mean, mode, atol=1e-5, rtol=0)


def test_every_volume_of_a_batch_has_its_own_mean():
    y = draw(2, *BOX)
    data = [LogProb(lambda x, one=one: -((x.exp() - one.exp()) ** 2).sum(VOLUME) * 5) for one in y]
    both = LogProb(lambda x: -((x.exp() - y.exp()) ** 2).sum(VOLUME) * 5)
    found = Proximal(both, tolerance=1e-8).mean_from(y, 0 * y, 1.0).mean
    for k, one in enumerate(data):
        alone = Proximal(one, tolerance=1e-8).mean_from(y[k], 0 * y[k], 1.0).mean
        torch.testing.assert_close(found[k], alone, atol=1e-6, rtol=0)


def test_modes_that_differ_are_told_and_the_most_probable_is_kept():
    y = 1 + 0.3 * draw(*BOX)
    log_p = LogProb(lambda x: -50 * (x.square() - y.square()).square().sum(VOLUME) + 0.5 * x.pow(3).sum(VOLUME))
    posterior = Proximal(log_p, max_iterations=300).condition(torch.zeros(BOX, dtype=F64), 4.0)
    assert "the data have several modes: of 8 starts" in posterior.note
    one = Proximal(log_p, max_iterations=300).condition_from(-y, torch.zeros(BOX, dtype=F64), 4.0).mean

    def phi(x):
        return log_p.log_prob(x) - x.square().sum() / 8

    assert phi(posterior.mean) > phi(one)


def test_two_peaks_of_the_whole_volume_are_seen():
    a, b = draw(*BOX), draw(*BOX, seed=1)

    def either(x):  # one specimen or another, with noise of 0.2
        one, other = (-12.5 * (x - y).square().sum(VOLUME) for y in (a, b))
        return torch.logaddexp(one, other)

    posterior = Proximal(LogProb(either)).condition(torch.zeros(BOX, dtype=F64), 1.0)
    assert "the data have several modes" in posterior.note
    assert posterior.several == (abs(float(a.square().sum() - b.square().sum())) * 0.48 < 2 * math.sqrt(120 / 2))
    alone = Proximal(LogProb(lambda x: -12.5 * (x - a).square().sum(VOLUME))).condition(0 * a, 1.0)
    assert (alone.note, alone.several) == ("", False)


def test_what_is_as_probable_with_either_sign_is_said_to_be():
    y = draw(*BOX).abs()
    posterior = Proximal(LogProb(lambda x: -50 * (x.abs() - y).square().sum(VOLUME))).condition(0 * y, 1.0)
    assert posterior.several


def test_the_mean_between_two_peaks_is_no_mode():
    y = draw(*BOX)

    def either_sign(x):
        one, other = (-50 * (x - sign * y).square().sum(VOLUME) for sign in (1, -1))
        return torch.logaddexp(one, other)

    posterior = Proximal(LogProb(either_sign)).condition(0 * y, 1.0)
    assert posterior.several
    assert float(posterior.mean.abs().mean()) > 0.5 * float(y.abs().mean())


def test_a_log_prob_may_write_into_its_volume():
    y = draw(*BOX)

    def log_prob(x):
        x -= y
        return -50 * x.square().sum(VOLUME)

    torch.testing.assert_close(Proximal(LogProb(log_prob)).condition(0 * y, 1.0).mean, y * 100 / 101, atol=0.01, rtol=0)


def test_a_search_that_was_cut_short_says_so():
    y = draw(*BOX)
    data = Proximal(LogProb(lambda x: -500 * (x.exp() - y.exp()).square().sum(VOLUME)), max_iterations=1)
    assert "left after 1 steps" in data.condition_from(0 * y, 0 * y, 1.0).note


def test_white_noise_needs_few_calls():
    y = draw(12, 12, 12)
    likelihood = LogProb(lambda x: -50 * (x - y).square().sum(VOLUME))
    posterior = Proximal(likelihood).condition_from(0 * y, 0 * y, 1.0)
    torch.testing.assert_close(posterior.mean, y * 100 / 101, atol=0.01, rtol=0)
    assert likelihood.calls <= 6


def test_float32_stays_so_and_reaches_the_mode():
    y = draw(8, 8, 8).float()
    posterior = Proximal(LogProb(lambda x: -5e3 * (x - y).square().sum(VOLUME))).condition(0 * y, 1.0)
    assert posterior.mean.dtype == torch.float32
    torch.testing.assert_close(posterior.mean, y, atol=1e-3, rtol=0)
    assert posterior.note == ""


def test_in_model_units_it_is_the_same():
    class Units:
        mean, std = 0.3, 2.0

    y = draw(*BOX)
    data = Proximal(LogProb(lambda x: -((x.tanh() - y.tanh()) / 0.5).square().sum(VOLUME)), tolerance=1e-8)
    model = in_model_units(data, Units())
    assert isinstance(model, Iterative)
    z = (y - 0.3) / 2
    found = model.condition_from(z, 0 * z, 1.0)
    expected = data.condition_from(y, 0 * y + 0.3, 4.0)
    torch.testing.assert_close(2 * found.mean + 0.3, expected.mean, atol=1e-6, rtol=0)
    one, other = ([torch.Generator().manual_seed(k) for k in range(2)] for _ in range(2))
    torch.testing.assert_close(2 * found.deviations(one), expected.deviations(other), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("log_prob", "error", "message"),
    [
        (lambda x: -x.log().square().sum(VOLUME), OperatorError, "or its gradient, is not finite"),
        (lambda x: -x.square(), GridMismatchError, "one value each; LogProb gives"),
        (
            lambda x: -x.detach().square().sum(VOLUME),
            OperatorError,
            "no gradient passes through the log_prob of LogProb",
        ),
    ],
)
def test_a_log_prob_that_will_not_do_is_named(log_prob, error, message):
    with pytest.raises(error, match=message):
        Proximal(LogProb(log_prob)).condition(torch.zeros(BOX, dtype=F64), 1.0)


@pytest.mark.parametrize("power", [[0.5, 0.5], [2.0, 0.1]])
def test_at_the_truth_the_deviance_is_what_was_measured(power):
    truth, noise = draw(10, 10, 10), SpectralNoise(torch.tensor(power, dtype=F64))
    y = noise.sample(truth, generator=torch.Generator().manual_seed(1))
    likelihood = gaussian_likelihood(Identity(), noise, y)
    plain = Gaussian(Identity(), noise, y)
    for deviance, number in (
        likelihood.deviance(truth),
        plain.deviance(truth),
        Proximal(LogProb(likelihood.log_prob), tolerance=1e-4).deviance_from(truth, 1.0),
    ):
        assert float(deviance / number) == pytest.approx(1, abs=0.15)
        assert float(number) == pytest.approx(1000, rel=0.02)
    wrong = truth + 2
    assert float(likelihood.deviance(wrong)[0]) == pytest.approx(float(plain.deviance(wrong)[0]))
    found, number = Proximal(LogProb(likelihood.log_prob)).deviance_from(wrong, 1.0)
    assert float(found / number) > 1.5


def test_the_noise_alone_is_the_deviance_of_several_volumes():
    x = draw(2, *BOX)
    data = gaussian_likelihood(Identity(), WhiteNoise(0.5), torch.zeros(BOX, dtype=F64))
    deviance, number = data.deviance(x)
    torch.testing.assert_close(deviance, 4 * x.square().sum(VOLUME))
    assert number == math.prod(BOX)


@pytest.mark.slow
def test_a_volume_of_a_batch_ends_where_it_does_alone():
    """One of several modes is chosen by the volume itself, whatever the others of its batch need."""
    box = (3, 5, 4)
    for seed in (2, 14):
        generator = torch.Generator().manual_seed(seed)
        y = standard_normal(torch.zeros(box, dtype=torch.float64), generator)
        means = standard_normal(torch.zeros(6, *box, dtype=torch.float64), generator)
        data = Proximal(StudentTLikelihood(Identity(), y, scale=0.3))
        alone = torch.stack([data.condition(mean, 0.5).mean for mean in means])
        torch.testing.assert_close(data.condition(means, 0.5).mean, alone, rtol=0, atol=1e-6)
