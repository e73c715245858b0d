"""What each class can do, by isinstance and by type; strangers' classes import nothing of ours."""

import pytest
import torch

from cryofm_ops import (
    Blind,
    Conjugate,
    FourierDiagonal,
    FourierGaussian,
    FourierMultiplier,
    Gaussian,
    GridMismatchError,
    Identity,
    Likelihood,
    LinearGaussian,
    LinearOperator,
    Noise,
    NoiseError,
    ObservationError,
    Operator,
    OperatorError,
    PseudoInvertible,
    SpectralNoise,
    SpectralPower,
    WhiteNoise,
    gaussian_likelihood,
)


class StrangeSquare:
    def __call__(self, x: torch.Tensor, /) -> torch.Tensor:
        return x**2


class StrangeMask:
    def __call__(self, x: torch.Tensor, /) -> torch.Tensor:
        return x * (torch.arange(x.shape[-1]) % 2)

    def adjoint(self, y: torch.Tensor, /) -> torch.Tensor:
        return y * (torch.arange(y.shape[-1]) % 2)


class StrangeGain:
    def transfer(self, shape: tuple[int, int, int], /) -> torch.Tensor:
        return torch.full((shape[0], shape[1], shape[2] // 2 + 1), 2.0)


class StrangeNoise:
    def sample(self, y: torch.Tensor, /, *, generator: torch.Generator) -> torch.Tensor:
        return y + torch.randn(y.shape, generator=generator)

    def precision(self, r: torch.Tensor, /) -> torch.Tensor:
        return r


class StrangePower:
    def power(self, shape: tuple[int, int, int], /) -> torch.Tensor:
        return torch.ones(shape[0], shape[1], shape[2] // 2 + 1)


LIKELIHOODS = (Likelihood, Conjugate, FourierDiagonal, Blind)
PARTS = (Operator, LinearOperator, PseudoInvertible, FourierMultiplier, Noise, SpectralPower)
Y = torch.ones(4, 4, 4)


def has(thing, protocols):
    return {p for p in protocols if isinstance(thing, p)}


def test_parts():
    assert has(Identity(), PARTS) == {Operator, LinearOperator, PseudoInvertible, FourierMultiplier}
    assert has(WhiteNoise(1), PARTS) == {Noise, SpectralPower}
    assert has(SpectralNoise(torch.ones(2)), PARTS) == {Noise, SpectralPower}
    assert has(StrangeMask(), PARTS) == {Operator, LinearOperator}
    assert has(StrangeGain(), PARTS) == {FourierMultiplier}


@pytest.mark.parametrize(
    ("operator", "noise", "kind", "capabilities"),
    [
        (Identity(), WhiteNoise(1), FourierGaussian, {Likelihood, Conjugate, FourierDiagonal}),
        (StrangeGain(), StrangePower(), FourierGaussian, {Likelihood, Conjugate, FourierDiagonal}),
        (Identity(), StrangeNoise(), LinearGaussian, {Likelihood, Conjugate}),
        (StrangeMask(), StrangeNoise(), LinearGaussian, {Likelihood, Conjugate}),
        (StrangeMask(), SpectralNoise(torch.ones(2)), LinearGaussian, {Likelihood, Conjugate}),
        (StrangeSquare(), StrangeNoise(), Gaussian, {Likelihood}),
        (StrangeSquare(), WhiteNoise(1), Gaussian, {Likelihood}),
    ],
)
def test_a_likelihood_has_exactly_what_its_parts_allow(operator, noise, kind, capabilities):
    likelihood = gaussian_likelihood(operator, noise, Y)
    assert type(likelihood) is kind
    assert has(likelihood, LIKELIHOODS) == capabilities
    assert likelihood.log_prob(torch.zeros(2, 4, 4, 4)).shape == (2,)
    if Conjugate in capabilities:
        assert likelihood.condition(torch.zeros(4, 4, 4), 1.0).mean.isfinite().all()


def test_strangers_parts_give_the_right_numbers():
    log_prob = gaussian_likelihood(StrangeSquare(), StrangeNoise(), Y).log_prob(torch.full((4, 4, 4), 2.0))
    assert float(log_prob) == pytest.approx(-0.5 * 64 * 9)
    mean = gaussian_likelihood(StrangeGain(), StrangePower(), Y).condition(torch.zeros(4, 4, 4), 1.0).mean
    torch.testing.assert_close(mean, torch.full((4, 4, 4), 2 / 5))


def test_types_of_the_overloads():
    fourier: FourierGaussian = gaussian_likelihood(Identity(), WhiteNoise(1), Y)
    linear: LinearGaussian = gaussian_likelihood(StrangeMask(), StrangeNoise(), Y)
    general: Gaussian = gaussian_likelihood(StrangeSquare(), StrangeNoise(), Y)
    diagonal: FourierDiagonal = fourier
    conjugates: tuple[Conjugate, Conjugate] = (fourier, linear)
    likelihoods: tuple[Likelihood, ...] = (fourier, linear, general)
    assert diagonal is fourier
    assert len(conjugates) + len(likelihoods) == 5


def test_parts_that_cannot_be_composed_are_named():
    with pytest.raises(OperatorError, match="object has no __call__"):
        gaussian_likelihood(object(), WhiteNoise(1), Y)  # type: ignore[call-overload]  # pyright: ignore
    with pytest.raises(OperatorError, match=r"StrangePower needs sample.* and precision"):
        gaussian_likelihood(StrangeMask(), StrangePower(), Y)  # type: ignore[call-overload]  # pyright: ignore


@pytest.mark.parametrize("operator", [Identity(), StrangeMask(), StrangeSquare()])
def test_bad_observations(operator):
    bad = Y.clone()
    bad[0, 1, 2] = torch.inf
    with pytest.raises(ObservationError, match=r"the first \(inf\) at index \(0, 1, 2\)"):
        gaussian_likelihood(operator, WhiteNoise(1), bad)
    with pytest.raises(ObservationError, match="real floating point"):
        gaussian_likelihood(operator, WhiteNoise(1), Y.long())
    with pytest.raises(GridMismatchError, match=r"\(4, 4, 5\)"):
        gaussian_likelihood(operator, WhiteNoise(1), Y).log_prob(torch.zeros(4, 4, 5))


def test_bad_parts_and_variances():
    class Wrong:
        def __init__(self, value):
            self.value = value

        def transfer(self, shape):
            return self.value

        power = transfer

    with pytest.raises(GridMismatchError, match=r"transfer gave shape \(4, 4, 4\).*half grid is \(4, 4, 3\)"):
        gaussian_likelihood(Wrong(torch.ones(4, 4, 4)), WhiteNoise(1), Y)
    with pytest.raises(OperatorError, match="not finite"):
        gaussian_likelihood(Wrong(torch.full((4, 4, 3), torch.nan)), WhiteNoise(1), Y)
    with pytest.raises(NoiseError, match="negative or NaN"):
        gaussian_likelihood(Identity(), Wrong(torch.full((4, 4, 3), -1.0)), Y)
    with pytest.raises(NoiseError, match="must not be negative or NaN"):
        FourierGaussian(torch.full((4, 4, 3), -1.0), torch.zeros(4, 4, 3), (4, 4, 4))
    likelihood = gaussian_likelihood(Identity(), WhiteNoise(1), Y)
    for variance in (-1.0, torch.full((4, 4, 3), torch.nan)):
        with pytest.raises(NoiseError, match="variance must be finite"):
            likelihood.condition(Y, variance)
    with pytest.raises(GridMismatchError, match=r"variance of shape \(4, 4, 4\) is not on the half grid \(4, 4, 3\)"):
        likelihood.condition(Y, torch.ones(4, 4, 4))
