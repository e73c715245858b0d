import math

import attrs
import pytest
import torch

from cryofm_ops import (
    ConvergenceError,
    FourierMask,
    GridMismatchError,
    LinearGaussian,
    OperatorError,
    SpectralNoise,
    VoxelNoise,
    WhiteNoise,
    gaussian_likelihood,
    radial,
)


class Dense:
    """y = M x, a vector of any length."""

    def __init__(self, matrix, shape):
        self.matrix, self.shape = matrix, shape

    def __call__(self, x):
        return x.flatten(-3) @ self.matrix.T

    def adjoint(self, y):
        return (y @ self.matrix).unflatten(-1, self.shape)


class Crop:
    """y = mask · x, a volume, so that coloured noise applies."""

    def __init__(self, mask):
        self.mask = mask

    def __call__(self, x):
        return x * self.mask

    def adjoint(self, y):
        return y * self.mask


@pytest.fixture(params=["dense", "crop"])
def problem(request, oracle, generator):
    if request.param == "dense":
        m = torch.randn(oracle.size // 2, oracle.size, generator=generator, dtype=torch.float64)
        y = torch.randn(oracle.size // 2, generator=generator, dtype=torch.float64)
        n = 0.49 * torch.eye(len(m), dtype=torch.float64)
        return Dense(m, oracle.shape), WhiteNoise(0.7), y, m, n
    mask = (torch.rand(oracle.shape, generator=generator) > 0.4).double()
    noise = SpectralNoise(torch.tensor([2.0, 0.5, 0.1], dtype=torch.float64))
    y = torch.randn(oracle.shape, generator=generator, dtype=torch.float64)
    return Crop(mask), noise, y, mask.flatten().diag(), oracle.filter(noise.power(oracle.shape))


def test_log_prob_and_its_gradient_against_dense(problem, oracle, generator):
    operator, noise, y, m, n = problem
    x = torch.randn(2, *oracle.shape, generator=generator, dtype=torch.float64, requires_grad=True)
    likelihood = gaussian_likelihood(operator, noise, y)
    r = x.detach().flatten(1) @ m.T - y.flatten()
    whitened = torch.linalg.solve(n, r.T).T
    torch.testing.assert_close(likelihood.log_prob(x), -0.5 * (r * whitened).sum(1))
    (gradient,) = torch.autograd.grad(likelihood.log_prob(x).sum(), x)
    torch.testing.assert_close(gradient.flatten(1), -whitened @ m)
    assert torch.autograd.gradcheck(likelihood.log_prob, x, fast_mode=True)


def test_each_of_several_observations_has_its_log_prob(problem, oracle, generator):
    operator, noise, y, _, _ = problem
    x = torch.randn(oracle.shape, generator=generator, dtype=torch.float64)
    several = torch.stack([y, 2 * y, -y])
    each = torch.stack([gaussian_likelihood(operator, noise, one).log_prob(x) for one in several])
    torch.testing.assert_close(gaussian_likelihood(operator, noise, several).log_prob(x), each)


@pytest.mark.parametrize("variance", ["white", "radial", "dirac"])
def test_condition_against_a_dense_solve(problem, oracle, generator, variance):
    operator, noise, y, m, n = problem
    mean = torch.randn(2, *oracle.shape, generator=generator, dtype=torch.float64)
    table = {"white": [0.8, 0.8], "radial": [4.0, 0.0], "dirac": [0.0, 0.0]}[variance]
    per_coefficient = radial(torch.tensor(table, dtype=torch.float64), oracle.shape)
    v = oracle.filter(per_coefficient)
    posterior = LinearGaussian(operator, noise, y, tolerance=1e-11).condition(
        mean, 0.8 if variance == "white" else per_coefficient
    )
    gain = v @ m.T @ torch.linalg.inv(n + m @ v @ m.T)  # no inverse of V, which may be singular
    mu = mean.flatten(1)
    torch.testing.assert_close(posterior.mean.flatten(1), mu + (y.flatten() - mu @ m.T) @ gain.T, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("variance", [0.8, "radial"])
def test_a_preconditioner_changes_nothing_but_how_soon(problem, oracle, generator, variance):
    operator, noise, y, _, _ = problem
    mean = torch.randn(2, *oracle.shape, generator=generator, dtype=torch.float64)
    v = radial(torch.tensor([4.0, 0.0], dtype=torch.float64), oracle.shape) if variance == "radial" else variance
    W = radial(torch.tensor([3.0, 0.0], dtype=torch.float64), oracle.shape)
    plain, helped = (
        LinearGaussian(operator, noise, y, tolerance=1e-11, circulant=near).condition(mean, v) for near in (None, W)
    )
    torch.testing.assert_close(helped.mean, plain.mean, atol=1e-7, rtol=1e-7)
    draws = [p.sample(torch.Generator().manual_seed(0)) for p in (plain, helped)]
    torch.testing.assert_close(*draws, atol=1e-7, rtol=1e-7)


def test_a_preconditioner_bounds_the_steps_by_the_range_of_the_variances(generator):
    shape = (8, 8, 8)
    std = (0.05 + 2 * torch.rand(shape, generator=generator, dtype=torch.float64)).sqrt()
    transfer = radial(torch.logspace(3, -3, 5, dtype=torch.float64), shape)
    y = torch.randn(shape, generator=generator, dtype=torch.float64)
    near = transfer.square() * std.square().reciprocal().mean()
    kappa, tolerance = float((std.max() / std.min()) ** 2), 1e-6
    enough = math.ceil(kappa**0.5 / 2 * math.log(2 * kappa**0.5 / tolerance))
    plain = LinearGaussian(FourierMask(transfer, shape), VoxelNoise(std), y, tolerance, enough)
    found = attrs.evolve(plain, circulant=near).condition(torch.zeros_like(y), 1.0).mean
    exact = attrs.evolve(plain, tolerance=1e-11, max_iterations=9999).condition(torch.zeros_like(y), 1.0).mean
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConvergenceError):
        plain.condition(torch.zeros_like(y), 1.0)


@pytest.mark.parametrize("std", ["silent", "half silent"])
@pytest.mark.parametrize("variance", [0.8, "radial"])
def test_data_without_noise_are_the_limit(oracle, generator, std, variance):
    m = torch.randn(oracle.size, oracle.size, generator=generator, dtype=torch.float64)[: oracle.size // 3]
    operator, noise, n = Dense(m, oracle.shape), WhiteNoise(0), torch.zeros(len(m), len(m), dtype=torch.float64)
    y = torch.randn(len(m), generator=generator, dtype=torch.float64)
    if std == "half silent":
        mask = (torch.rand(oracle.shape, generator=generator) > 0.4).double()
        operator, noise = Crop(mask), SpectralNoise(torch.tensor([2.0, 0.5, 0.0], dtype=torch.float64))
        m, n = mask.flatten().diag(), oracle.filter(noise.power(oracle.shape))
        y = mask * torch.randn(oracle.shape, generator=generator, dtype=torch.float64)
    per_coefficient = radial(torch.tensor([4.0, 0.5], dtype=torch.float64), oracle.shape)
    v = 0.8 * torch.eye(oracle.size, dtype=torch.float64) if variance == 0.8 else oracle.filter(per_coefficient)
    mean = torch.randn(2, *oracle.shape, generator=generator, dtype=torch.float64)
    posterior = LinearGaussian(operator, noise, y, tolerance=1e-11).condition(
        mean, variance if variance == 0.8 else per_coefficient
    )
    gain = v @ m.T @ torch.linalg.pinv(n + m @ v @ m.T)
    mu = mean.flatten(1)
    torch.testing.assert_close(posterior.mean.flatten(1), mu + (y.flatten() - mu @ m.T) @ gain.T, atol=1e-6, rtol=1e-6)
    if std == "silent":
        draw = posterior.sample(generator).flatten(1)
        torch.testing.assert_close(draw @ m.T, y.expand(2, -1), atol=1e-6, rtol=1e-6)
        assert not torch.allclose(draw, posterior.mean.flatten(1), atol=0.1)


def test_noiseless_data_that_contradict_one_another_are_an_error(generator):
    m = torch.ones(2, 27, dtype=torch.float64)
    likelihood = gaussian_likelihood(Dense(m, (3, 3, 3)), WhiteNoise(0), torch.tensor([0.0, 1.0]).double())
    with pytest.raises((ConvergenceError, OperatorError)):
        likelihood.condition(torch.zeros(3, 3, 3, dtype=torch.float64), 1.0)


def test_noiseless_data_that_say_one_thing_twice_are_met_to_their_rounding(generator):
    """Near them, what is asked for relative to the difference would be less than the rounding of the data."""
    m = torch.randn(20, 64, generator=generator)
    m = torch.cat([m, m[:10] / 3 + 0.7 * m[10:]])
    truth = torch.randn(4, 4, 4, generator=generator)
    likelihood = gaussian_likelihood(Dense(m, (4, 4, 4)), WhiteNoise(0), m @ truth.flatten())
    for distance in (1.0, 1e-3, 1e-6):
        posterior = likelihood.condition(truth + distance * torch.randn(4, 4, 4, generator=generator), 1e-2)
        for x in (posterior.mean, posterior.sample(generator)):
            torch.testing.assert_close(m @ x.flatten(), likelihood.observation, atol=1e-4, rtol=0)


def test_autocast_does_not_reach_the_operator(generator):
    m = torch.randn(20, 64, generator=generator)
    likelihood = gaussian_likelihood(Dense(m, (4, 4, 4)), WhiteNoise(0.1), torch.randn(20, generator=generator))

    def found():
        posterior = likelihood.condition(torch.ones(4, 4, 4), 1.0)
        return posterior.mean, posterior.sample(torch.Generator().manual_seed(0))

    with torch.autocast("cpu", torch.bfloat16):
        inside = found()
    torch.testing.assert_close(inside, found(), rtol=0, atol=0)


@pytest.mark.parametrize("std", [0.5, 0.0])
def test_posterior_draws_have_the_posterior_covariance(generator, std):
    # 6 standard errors for each of 12² entries: a false alarm in 3e-7 of all seeds; the seed is fixed.
    draws, shape = 4000, (2, 2, 3)
    m = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    likelihood = gaussian_likelihood(Dense(m, shape), WhiteNoise(std), torch.zeros(7, dtype=torch.float64))
    posterior = likelihood.condition(torch.zeros(draws, *shape, dtype=torch.float64), 0.8)
    x = (posterior.sample(generator) - posterior.mean).flatten(1)
    eye = torch.eye(12, dtype=torch.float64)
    expected = 0.8 * eye - 0.64 * m.T @ torch.linalg.inv(0.8 * m @ m.T + std**2 * eye[:7, :7]) @ m
    spread = (expected.diagonal().outer(expected.diagonal()) + expected**2) / draws
    assert ((x.T @ x / draws - expected).abs() < 6 * spread.sqrt()).all()


def test_an_element_converges_alike_whatever_its_batch(problem, oracle, generator):
    operator, noise, y, *_ = problem
    mean = torch.randn(3, *oracle.shape, generator=generator, dtype=torch.float64) * 10
    likelihood = gaussian_likelihood(operator, noise, y)
    batch, one = likelihood.condition(mean, 1.0).mean, likelihood.condition(mean[1], 1.0).mean
    torch.testing.assert_close(batch[1], one, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("single")
def test_float32_converges_at_the_default_tolerance(generator):
    mask = (torch.rand(6, 7, 8, generator=generator) > 0.5).float()
    likelihood = gaussian_likelihood(Crop(mask), WhiteNoise(0.01), torch.ones(6, 7, 8))
    posterior = likelihood.condition(torch.zeros(6, 7, 8), 1.0)
    torch.testing.assert_close(posterior.mean, mask / 1.0001, atol=1e-4, rtol=0)


def test_too_few_iterations_name_the_residual(problem, oracle):
    operator, noise, y, *_ = problem
    likelihood = LinearGaussian(operator, noise, y, tolerance=1e-9, max_iterations=1)
    with pytest.raises(ConvergenceError, match=r"after 1 iterations at a relative residual of \d\.\d+e.\d+") as e:
        likelihood.condition(torch.zeros(oracle.shape, dtype=torch.float64), 1.0)
    residual = float(str(e.value).split("residual of ")[1].split(",")[0])
    assert 1e-9 < residual < math.inf


def test_a_false_adjoint_is_named(generator):
    class Liar(Crop):
        def adjoint(self, y):
            return -10 * y

    likelihood = gaussian_likelihood(Liar(torch.ones(3, 3, 3)), WhiteNoise(1), torch.ones(3, 3, 3))
    with pytest.raises(OperatorError, match="exact transpose"):
        likelihood.condition(torch.zeros(3, 3, 3), 1.0)


def test_an_observation_of_another_shape_is_named(problem, oracle):
    operator, noise, y, *_ = problem
    wrong = gaussian_likelihood(operator, noise, y[..., :-1])
    with pytest.raises(GridMismatchError, match=r"the operator makes .* but the observation has shape"):
        wrong.log_prob(torch.zeros(oracle.shape, dtype=torch.float64))
