"""Measured statistics are those of the prior."""

import attrs
import pytest
import torch

from cryofm_ops import fourier_filter, radial
from cryofm_sampling import (
    Calibrated,
    Guided,
    PlugAndPlay,
    PosteriorFlow,
    Renoising,
    SettingError,
    SpectrallyCalibrated,
    calibrate,
)
from cryofm_sampling.samplers._denoising_error import DenoisingError, gaussian_error
from cryofm_sampling.testing import GaussianPrior

BOX = (12, 12, 12)
TABLE = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
TIMES = [0.1, 0.3, 0.6, 1.0]


@pytest.fixture
def measured():
    generator = torch.Generator().manual_seed(0)
    data = fourier_filter(torch.randn(60, *BOX, generator=generator), radial(TABLE, BOX).sqrt())
    prior = GaussianPrior(TABLE, BOX)
    return calibrate(lambda x, t: prior(x, t), data, generator=generator, times=TIMES)


def test_tables_are_those_of_a_gaussian_prior(measured):
    assert isinstance(measured, Calibrated)
    # A shell of width one gathers frequencies around its own, and the first but one has few: 10 %.
    torch.testing.assert_close(measured.signal_power[1:], TABLE[1:], rtol=0.1, atol=0.05)
    t, error = measured.denoising_error.T
    assert t.tolist() == TIMES
    exact = GaussianPrior(TABLE, BOX).denoising_error
    at = [int((exact[:, 0] - time).abs().argmin()) for time in TIMES]
    torch.testing.assert_close(error, exact[at, 1], rtol=0.03, atol=0)


def test_error_per_shell_is_that_of_a_gaussian_prior(measured):
    assert isinstance(measured, SpectrallyCalibrated)
    times, errors = measured.denoising_spectrum.tensor_split([1], -1)
    assert times[:, 0].tolist() == TIMES
    exact = torch.stack([gaussian_error(TABLE, t) for t in TIMES])
    torch.testing.assert_close(errors[:, 1:], exact[:, 1:], rtol=0.1, atol=0.05)


def test_error_of_a_shell_is_what_was_measured(measured):
    """At the times of the table and on its grid e is the table; a box of other sides interpolates it."""
    spectrum = measured.denoising_spectrum.clone()
    spectrum[:, 1] *= 0.25
    prior = attrs.evolve(measured, denoising_spectrum=spectrum)
    e = DenoisingError.of(prior, BOX, torch.empty(0))
    for t, *shells in spectrum.tolist():
        torch.testing.assert_close(e(t)[0, 0], torch.minimum(torch.tensor(shells), measured.signal_power))
    finer = DenoisingError.of(prior, (24, 24, 24), torch.empty(0))
    torch.testing.assert_close(finer(0.3)[0, 0, ::2], e(0.3)[0, 0])
    narrower = attrs.evolve(prior, denoising_spectrum=spectrum[:, [0, 1, 4, 7]])
    torch.testing.assert_close(DenoisingError.of(narrower, BOX, torch.empty(0))(0.3)[0, 0, ::3], e(0.3)[0, 0, ::3])


@pytest.mark.parametrize("sampler", [PlugAndPlay(), PosteriorFlow(2), Renoising((0.5,)), Guided(4)])
def test_data_without_noise_are_kept_where_nothing_is_said_to_err(sampler, kit):
    class Certain:  # knows that all is 0
        signal_power, denoising_error = torch.ones(2), torch.tensor([[0.1, 0.0], [1.0, 0.0]])

        def __call__(self, x, t):
            return x / t

    y = torch.randn(BOX, generator=torch.Generator().manual_seed(0))
    likelihood = kit.Spectral(y, torch.full((12, 12, 7), torch.inf))
    draw = sampler(Certain(), likelihood, shape=BOX, generator=torch.Generator())
    assert draw.x.isfinite().all()
    if not isinstance(sampler, Guided):  # which sees the data through the network alone
        torch.testing.assert_close(draw.x, y)


def test_it_is_still_the_field_and_serves_plug_and_play(measured, kit):
    x = torch.randn(BOX)
    t = torch.tensor(0.3)
    assert torch.equal(measured(x, t), GaussianPrior(TABLE)(x, t))
    likelihood = kit.Spectral(x, torch.ones(12, 12, 7))
    assert PlugAndPlay()(measured, likelihood, shape=BOX, generator=torch.Generator()).x.isfinite().all()


def test_times_may_be_a_tensor():
    times = torch.linspace(0.2, 1, 3)
    measured = calibrate(GaussianPrior(1.0), torch.ones(1, 4, 4, 4), generator=torch.Generator(), times=times)
    torch.testing.assert_close(measured.denoising_error[:, 0], times)


def test_bad_input_is_refused():
    prior, generator = GaussianPrior(1.0), torch.Generator()
    with pytest.raises(SettingError, match=r"examples must be \(n, z, y, x\).*\(4, 4, 4\)"):
        calibrate(prior, torch.zeros(4, 4, 4), generator=generator)
    with pytest.raises(SettingError, match=r"of a floating-point type, got torch.int64"):
        calibrate(prior, torch.zeros(1, 4, 4, 4, dtype=torch.int64), generator=generator)
    with pytest.raises(SettingError, match="examples must be finite"):
        calibrate(prior, torch.full((1, 4, 4, 4), torch.nan), generator=generator)
    with pytest.raises(SettingError, match=r"times must increase within \(0, 1\], got \[0.5, 0.2\]"):
        calibrate(prior, torch.zeros(1, 4, 4, 4), generator=generator, times=[0.5, 0.2])
