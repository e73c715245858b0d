import pytest
import torch

from cryofm_ops import (
    AnisotropicNoise,
    FourierGaussian,
    Identity,
    NoiseError,
    NoiseSum,
    SpectralNoise,
    StationaryNoise,
    WhiteNoise,
    cone_alpha,
    gaussian_likelihood,
    radial,
)

TABLE = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)


class Blue(StationaryNoise):
    def power(self, shape, /):
        return radial(torch.tensor([0.0, 2.0], dtype=torch.float64), shape)


PARTS = (WhiteNoise(0.5), SpectralNoise(TABLE), AnisotropicNoise(TABLE, cone_alpha((0, 1, 1), 40, 3)), Blue())


def test_the_covariances_add(oracle, generator):
    noise = NoiseSum(PARTS)
    covariance = sum(oracle.filter(part.power(oracle.shape)) for part in PARTS)
    torch.testing.assert_close(oracle.filter(noise.power(oracle.shape)), covariance)
    r = torch.randn(2, *oracle.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(noise.precision(r).flatten(1), torch.linalg.solve(covariance, r.flatten(1).T).T)


def test_draws_have_the_summed_power(generator):
    # 6 standard errors of 60 means over 4000 draws: a false alarm in 1e-7 of all seeds; the seed is fixed.
    shape, draws = (3, 4, 5), 4000
    n = NoiseSum(PARTS).sample(torch.zeros(draws, *shape, dtype=torch.float64), generator=generator)
    power = torch.fft.rfftn(n, dim=(1, 2, 3), norm="ortho").abs().square().mean(0)
    expected = NoiseSum(PARTS).power(shape)
    assert ((power / expected - 1).abs() < 6 * (2 / draws) ** 0.5).all()


def test_a_silent_part_does_not_matter_but_silence_has_no_precision():
    silent = NoiseSum([WhiteNoise(0), Blue()])
    with pytest.raises(NoiseError, match="zero power has no precision"):
        silent.precision(torch.ones(4, 4, 4))
    loud = NoiseSum([silent, WhiteNoise(2)])  # sums nest
    torch.testing.assert_close(loud.precision(torch.ones(4, 4, 4)), torch.full((4, 4, 4), 0.25))


def test_a_sum_makes_a_closed_form_likelihood():
    likelihood = gaussian_likelihood(Identity(), NoiseSum([WhiteNoise(0.6), WhiteNoise(0.8)]), torch.ones(4, 4, 4))
    assert isinstance(likelihood, FourierGaussian)
    torch.testing.assert_close(likelihood.spectral_precision(), torch.ones(4, 4, 3))


class OnlyNoise:
    def sample(self, y, /, *, generator):
        return y

    def precision(self, r, /):
        return r


def test_other_noises_are_refused_by_name():
    with pytest.raises(NoiseError, match=r"OnlyNoise has no power\(shape\)"):
        NoiseSum([WhiteNoise(1), OnlyNoise()])


def test_an_empty_sum_is_refused():
    with pytest.raises(NoiseError, match="at least one noise"):
        NoiseSum([])
