import pytest
import torch

from cryofm_ops import (
    FourierGaussian,
    Identity,
    NoiseError,
    Normal,
    ObservationError,
    SpectralNoise,
    WhiteNoise,
    fourier_filter,
    frequencies,
    gaussian_likelihood,
    radial,
    rfft,
)


class Blur:
    """Real transfer; 0 beyond 0.3 cycles/voxel."""

    def transfer(self, shape):
        f = frequencies(shape)
        return torch.where(f < 0.3, torch.exp(-3 * f), 0)


class Shift:
    """Complex transfer: a roll by whole voxels along x."""

    def transfer(self, shape):
        phase = torch.exp(-2j * torch.pi * torch.fft.rfftfreq(shape[2], dtype=torch.float64))
        return phase.expand(shape[0], shape[1], -1)


NOISE = SpectralNoise(torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64))


@pytest.fixture(params=[Identity(), Blur(), Shift()], ids=["identity", "blur", "shift"])
def problem(request, oracle, generator):
    a = oracle.filter(request.param.transfer(oracle.shape))
    n = oracle.filter(NOISE.power(oracle.shape))
    y = torch.randn(oracle.shape, generator=generator, dtype=torch.float64)
    return gaussian_likelihood(request.param, NOISE, y), a, n, y.flatten()


def test_log_prob_and_its_gradient_against_dense(problem, oracle, generator):
    likelihood, a, n, y = problem
    x = torch.randn(2, *oracle.shape, generator=generator, dtype=torch.float64, requires_grad=True)
    r = x.detach().flatten(1) @ a.T - y
    dense = -0.5 * (r * torch.linalg.solve(n, r.T).T).sum(1)
    log_prob = likelihood.log_prob(x)
    torch.testing.assert_close(log_prob[0] - log_prob[1], dense[0] - dense[1])  # up to a constant
    (gradient,) = torch.autograd.grad(log_prob.sum(), x)
    torch.testing.assert_close(gradient.flatten(1), -(torch.linalg.solve(n, r.T).T @ a))


@pytest.mark.parametrize("kind", ["float", "scalar tensor", "per coefficient"])
def test_condition_against_a_dense_solve(problem, oracle, generator, kind):
    likelihood, a, n, y = problem
    variance = {
        "float": 0.6,
        "scalar tensor": torch.tensor(0.6, dtype=torch.float64),
        "per coefficient": radial(torch.tensor([5.0, 0.3], dtype=torch.float64), oracle.shape),
    }[kind]
    eye = torch.eye(oracle.size, dtype=torch.float64)
    v = oracle.filter(variance) if kind == "per coefficient" else float(variance) * eye
    mean = torch.randn(2, *oracle.shape, generator=generator, dtype=torch.float64)
    posterior = likelihood.condition(mean, variance)
    covariance = torch.linalg.inv(torch.linalg.inv(v) + a.T @ torch.linalg.solve(n, a))
    rhs = torch.linalg.solve(v, mean.flatten(1).T) + (a.T @ torch.linalg.solve(n, y))[:, None]
    torch.testing.assert_close(posterior.mean.flatten(1), (covariance @ rhs).T)
    assert isinstance(posterior.variance, torch.Tensor)
    torch.testing.assert_close(oracle.filter(posterior.variance), covariance)


def test_the_spectral_form_is_the_log_prob(problem, oracle, generator):
    likelihood, *_ = problem
    x = torch.randn(oracle.shape, generator=generator, dtype=torch.float64)
    distance = (rfft(x) - likelihood.spectral_data()).abs() ** 2 * likelihood.spectral_precision()
    torch.testing.assert_close(-2 * likelihood.log_prob(x), oracle.full(distance).sum())


def test_data_are_on_the_scale_of_x(oracle, generator):
    x = torch.randn(oracle.shape, generator=generator, dtype=torch.float64)
    likelihood = gaussian_likelihood(Shift(), WhiteNoise(1), x.roll(1, -1))
    torch.testing.assert_close(likelihood.spectral_data(), rfft(x))


def test_gradcheck(problem, oracle, generator):
    likelihood, *_ = problem
    x = torch.randn(oracle.shape, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(likelihood.log_prob, x, fast_mode=True)
    mean = torch.zeros_like(x, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: likelihood.condition(m, 0.5).mean, mean, fast_mode=True)


@pytest.mark.parametrize("variance", [0.0, 0.5, "mixed"])
def test_unmeasured_and_noiseless_coefficients_condition_without_nan(oracle, generator, variance):
    shape = oracle.shape
    f = frequencies(shape)
    w = torch.where(f < 0.2, torch.inf, torch.where(f < 0.4, 2.0, 0.0).double())
    y, mean = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    v = torch.where(f < 0.3, 0.0, 0.7).double() if variance == "mixed" else torch.full_like(f, variance)
    posterior = FourierGaussian(w, rfft(y), shape).condition(mean, v if variance == "mixed" else variance)
    noiseless, unmeasured, dirac = w.isinf(), w == 0, (v == 0) & ~w.isinf()
    found = rfft(posterior.mean)
    torch.testing.assert_close(found[noiseless], rfft(y)[noiseless])
    torch.testing.assert_close(found[unmeasured | dirac], rfft(mean)[unmeasured | dirac])
    between = ~(noiseless | unmeasured | dirac)
    expected = (rfft(mean) + v * w * rfft(y)) / (1 + v * w)
    torch.testing.assert_close(found[between], expected[between])
    assert isinstance(posterior.variance, torch.Tensor)
    assert (posterior.variance[noiseless | dirac] == 0).all()
    torch.testing.assert_close(posterior.variance[unmeasured], v[unmeasured])
    assert posterior.sample(generator).isfinite().all()


def test_noiseless_data_have_no_log_prob():
    likelihood = gaussian_likelihood(Identity(), WhiteNoise(0), torch.ones(4, 4, 4))
    assert likelihood.spectral_precision().isinf().all()
    with pytest.raises(NoiseError, match="no density"):
        likelihood.log_prob(torch.zeros(4, 4, 4))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_data_that_are_not_finite_are_refused(wrong):
    data = torch.zeros(4, 4, 3, dtype=torch.complex64)
    data[1, 0, 2] = wrong
    with pytest.raises(ObservationError, match=r"spectral data have 1 values that are not finite.*\(1, 0, 2\)"):
        FourierGaussian(torch.ones(4, 4, 3), data, (4, 4, 4))


def test_a_silent_transfer_measures_nothing_even_without_noise():
    likelihood = gaussian_likelihood(Blur(), WhiteNoise(0), torch.ones(4, 4, 4))
    high = frequencies((4, 4, 4)) >= 0.3
    assert (likelihood.spectral_precision()[high] == 0).all()
    assert likelihood.condition(torch.zeros(4, 4, 4), 1.0).mean.isfinite().all()


def test_posterior_draws_have_the_stated_spectrum(oracle, generator):
    # 6 standard errors at each coefficient: a false alarm in 1e-6 of all seeds; the seed is fixed.
    draws, shape = 4000, oracle.shape
    y = torch.zeros(shape, dtype=torch.float64)
    posterior = gaussian_likelihood(Identity(), NOISE, y).condition(y.expand(draws, *shape), 0.6)
    assert isinstance(posterior.variance, torch.Tensor)
    power = (rfft(posterior.sample(generator)).abs() ** 2).mean(0)
    assert ((power / posterior.variance - 1).abs() < 6 * (2 / draws) ** 0.5).all()


@pytest.mark.parametrize("variance", [0.25, torch.tensor(0.25)])
def test_white_normal_draws(variance, generator):
    draw = Normal(torch.ones(20, 10, 10, 10), variance).sample(generator)
    assert float(draw.mean()) == pytest.approx(1, abs=6 * 0.5 / 20000**0.5)
    assert float(draw.var()) == pytest.approx(0.25, abs=6 * 0.25 * (2 / 20000) ** 0.5)


@pytest.mark.usefixtures("single")
def test_float32_and_batched_observations(generator):
    y = torch.randn(3, 4, 5, 6, generator=generator)
    likelihood = gaussian_likelihood(Identity(), NOISE, y)
    x = torch.zeros(3, 4, 5, 6)
    assert likelihood.log_prob(x).shape == (3,)
    posterior = likelihood.condition(x, 1.0)
    assert posterior.mean.dtype == torch.float32
    one = gaussian_likelihood(Identity(), NOISE, y[1])
    torch.testing.assert_close(posterior.mean[1], one.condition(x[1], 1.0).mean)
    torch.testing.assert_close(likelihood.log_prob(x)[1], one.log_prob(x[1]))
    wiener = fourier_filter(y, 1 / (1 + NOISE.power((4, 5, 6)).float()))
    torch.testing.assert_close(posterior.mean, wiener)


def test_rounding_in_a_transfer_is_no_noiseless_data():
    class AlmostNothing:
        def transfer(self, shape):
            m = torch.ones(shape[0], shape[1], shape[2] // 2 + 1, dtype=torch.float64)
            m[..., -1] = 1e-17
            return m

    likelihood = gaussian_likelihood(AlmostNothing(), WhiteNoise(0), torch.ones(4, 4, 4, dtype=torch.float64))
    assert (likelihood.spectral_precision()[..., -1] == 0).all()
    assert likelihood.spectral_precision()[..., :-1].isinf().all()
