import attrs
import pytest
import torch

from cryofm_ops import (
    Blind,
    Conjugate,
    FourierDiagonal,
    GridMismatchError,
    Identity,
    Likelihood,
    LinearGaussian,
    LowPass,
    Normal,
    OperatorError,
    SpectralNoise,
    gaussian_likelihood,
    in_model_units,
    radial,
    rfft,
)


@attrs.frozen
class Affine:
    mean: float = 0.04
    std: float = 0.09


NOISE = SpectralNoise(torch.tensor([0.02, 0.005], dtype=torch.float64))
LIKELIHOODS = (Likelihood, Conjugate, FourierDiagonal, Blind)


class OnlyLikelihood:
    def __init__(self, inner):
        self.inner = inner

    def log_prob(self, x):
        return self.inner.log_prob(x)


class WithCondition(OnlyLikelihood):
    def condition(self, mean, variance):
        return self.inner.condition(mean, variance)


class WithSpectrum(OnlyLikelihood):
    def spectral_precision(self):
        return self.inner.spectral_precision()

    def spectral_data(self):
        return self.inner.spectral_data()


class WithBoth(WithSpectrum, WithCondition):
    pass


class OnlyCondition:
    def __init__(self, inner):
        self.condition = inner.condition


class OnlySpectrum:
    def __init__(self, inner):
        self.spectral_precision, self.spectral_data = inner.spectral_precision, inner.spectral_data


class WithPoses(OnlyLikelihood):
    def refine(self, x):
        return self.inner


@pytest.fixture
def data(oracle, generator):
    y = 0.04 + 0.09 * torch.randn(oracle.shape, generator=generator, dtype=torch.float64)
    return gaussian_likelihood(Identity(), NOISE, y)


@pytest.mark.parametrize(
    "wrap",
    [
        OnlyLikelihood,
        WithCondition,
        WithSpectrum,
        WithBoth,
        OnlyCondition,
        OnlySpectrum,
        WithPoses,
        lambda x: x,
    ],
)
def test_keeps_exactly_the_capabilities(wrap, data):
    likelihood = wrap(data)
    model = in_model_units(likelihood, Affine())
    assert {p for p in LIKELIHOODS if isinstance(model, p)} == {p for p in LIKELIHOODS if isinstance(likelihood, p)}


def test_log_prob_is_that_of_the_data_units(data, oracle, generator):
    z = torch.randn(2, *oracle.shape, generator=generator, dtype=torch.float64, requires_grad=True)
    model = in_model_units(data, Affine())
    torch.testing.assert_close(model.log_prob(z), data.log_prob(0.09 * z + 0.04))
    assert torch.autograd.gradcheck(model.log_prob, z, fast_mode=True)


@pytest.mark.parametrize("wrap", [WithSpectrum, WithBoth, lambda x: x], ids=["spectrum", "both", "ours"])
def test_spectral_form_reproduces_log_prob(wrap, data, oracle, generator):
    # Without a `shape` the parity of the width is read from the data: odd and even boxes both.
    model = in_model_units(wrap(data), Affine())
    z = torch.randn(oracle.shape, generator=generator, dtype=torch.float64)
    terms = model.spectral_precision() * (rfft(z) - model.spectral_data()).abs() ** 2
    torch.testing.assert_close(-0.5 * oracle.full(terms).sum(), model.log_prob(z))


@pytest.mark.parametrize("width", [8, 9])
def test_the_box_is_asked_for_where_the_data_do_not_tell(width, generator):
    shape = (4, 5, width)
    y = torch.full(shape, 0.04, dtype=torch.float64)
    low = gaussian_likelihood(LowPass(4.0, 1.0), NOISE, y)
    with pytest.raises(OperatorError, match=r"do not tell whether their box is \(4, 5, 8\) or \(4, 5, 9\)"):
        in_model_units(WithSpectrum(low), Affine()).spectral_data()
    known = in_model_units(WithSpectrum(low), Affine(), shape=shape)
    torch.testing.assert_close(known.spectral_data(), torch.zeros_like(known.spectral_data()))
    centred = in_model_units(WithSpectrum(low), Affine(mean=0.0))  # which takes nothing off
    torch.testing.assert_close(centred.spectral_data(), low.spectral_data() / 0.09)


def test_an_attribute_called_shape_is_not_taken_for_the_box(data):
    stranger = WithSpectrum(data)
    stranger.shape = (3,)
    torch.testing.assert_close(
        in_model_units(stranger, Affine()).spectral_data(), in_model_units(data, Affine()).spectral_data()
    )


def test_another_box_than_that_of_the_data_is_refused(data):
    z, y, x = data.shape
    with pytest.raises(GridMismatchError, match="the data have box"):
        in_model_units(data, Affine(), shape=(z, y, x + 1))


@pytest.mark.parametrize("variance", ["white", "per coefficient"])
def test_condition_equals_the_wiener_estimate_in_model_units(variance, data, oracle, generator):
    model = in_model_units(data, Affine())
    mean = torch.randn(oracle.shape, generator=generator, dtype=torch.float64)
    v = 0.7 if variance == "white" else radial(torch.tensor([2.0, 0.1], dtype=torch.float64), oracle.shape)
    posterior = model.condition(mean, v)
    w, y = model.spectral_precision(), model.spectral_data()
    torch.testing.assert_close(rfft(posterior.mean), (rfft(mean) + v * w * y) / (1 + v * w))
    torch.testing.assert_close(posterior.variance, v / (1 + v * w))


def test_conjugate_gradients_in_model_units(data, oracle, generator):
    class PlainIdentity:
        def __call__(self, x):
            return x

        def adjoint(self, y):
            return y

    y = torch.full(oracle.shape, 0.1, dtype=torch.float64)
    mean = torch.randn(oracle.shape, generator=generator, dtype=torch.float64)
    solved = in_model_units(LinearGaussian(PlainIdentity(), NOISE, y, tolerance=1e-11), Affine())
    closed = in_model_units(gaussian_likelihood(Identity(), NOISE, y), Affine())
    batch = mean.expand(400, *oracle.shape)
    found, exact = solved.condition(batch, 0.5), closed.condition(batch, 0.5)
    torch.testing.assert_close(found.mean, exact.mean)
    assert isinstance(exact.variance, torch.Tensor)
    deviations = found.sample(generator) - found.mean
    power = (rfft(deviations).abs() ** 2).mean(0) / exact.variance
    assert ((power - 1).abs() < 6 * (2 / 400) ** 0.5).all()


def test_a_stranger_with_a_white_variance(oracle):
    class Stranger(OnlyLikelihood):
        def condition(self, mean, variance):
            return Normal(mean, variance)

    mean = torch.ones(oracle.shape)
    posterior = in_model_units(Stranger(None), Affine()).condition(mean, 0.5)
    torch.testing.assert_close(posterior.mean, mean)
    assert posterior.variance == pytest.approx(0.5)


def test_what_is_no_likelihood_or_normalization_is_named(data):
    with pytest.raises(OperatorError, match="Identity has no log_prob, condition, refine"):
        in_model_units(Identity(), Affine())  # type: ignore[call-overload]  # pyright: ignore
    for std in (0.0, -1.0, float("nan"), float("inf"), 1e300):
        with pytest.raises(OperatorError, match="std of a normalization must be positive, got"):
            in_model_units(data, Affine(0.0, std))
