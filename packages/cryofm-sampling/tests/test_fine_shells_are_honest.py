"""Beyond the prior's band: what is signal, what the filter leaves open, and that samples carry it."""

import math

import attrs
import pytest
import torch

from cryofm_ops import (
    Envelope,
    NoiseEstimate,
    SpectralNoise,
    estimate_noise_power,
    fourier_filter,
    frequencies,
    radial,
    radial_mean,
    rfft,
    shell_sizes,
)
from cryofm_sampling import signal_end, stationary_model
from cryofm_sampling.half_maps.envelope import _beyond, _window, fine_b_factor
from cryofm_sampling.half_maps.fine import FineFilter
from cryofm_sampling.half_maps.protein import ProteinPlot, log_power

SHAPE, N = (40, 40, 40), 21
NU = torch.linspace(0, 0.5, N, dtype=torch.float64)  # voxels of 1 Å


def shown(b_factor, common=0.0, noise=1e-9):
    """What halves show whose signal is a protein's in an envelope, with something else in common, white."""
    signal = (log_power(NU) - b_factor / 2 * NU**2).exp() + common
    fsc = signal / (signal + noise)
    return NoiseEstimate(torch.full((N,), noise), signal, fsc, torch.full((N,), noise), ())


def drawn(power, seed):
    """A volume of that radial power."""
    generator = torch.Generator().manual_seed(seed)
    return SpectralNoise(power).sample(torch.zeros(SHAPE, dtype=torch.float64), generator=generator)


@pytest.mark.parametrize("b_factor", [0.0, 60.0, 150.0])
def test_the_protein_plot_is_the_line(b_factor):
    plot = ProteinPlot.of(shown(b_factor), SHAPE, 1.0)
    assert plot.b_factor == pytest.approx(b_factor, abs=1e-6)
    assert plot.end == 0.5
    fine = NU >= 0.16
    torch.testing.assert_close(plot.sharp(NU, b_factor)[fine], log_power(NU)[fine].exp())


def test_what_halves_share_beyond_the_line_is_no_signal():
    """As a reconstruction program's interpolation leaves it: with it in the fit B would be 60 Å² too low."""
    b_factor, common = 150.0, 1e-6
    plot = ProteinPlot.of(shown(b_factor, common), SHAPE, 1.0)
    signal = (log_power(NU) - b_factor / 2 * NU**2).exp()
    assert plot.b_factor == pytest.approx(b_factor, abs=0.5)  # 3 Å² too low with what is left in the line's shells
    assert common < 0.3 * signal[(plot.end >= NU)][-1]
    assert (plot.highest(NU) / signal)[NU >= 0.16].max() < 2


@pytest.mark.parametrize("common", [0.0, 1e-5])
def test_signal_ends_where_what_halves_share_is_none(common):
    signal = (log_power(NU) - 150 / 2 * NU**2).exp()
    both = drawn(signal, 0) + drawn(torch.full_like(signal, common), 1)
    halves = [both + drawn(torch.full_like(signal, 1e-9), 2 + k) for k in range(2)]
    end = signal_end(estimate_noise_power(*halves, allow_masked=True), SHAPE, voxel_size=1.0)
    assert end == (math.inf if common == 0 else pytest.approx(float(NU[signal > common][-1]), abs=0.05))


def test_coarse_halves_tell_no_line():
    noise = shown(100.0)
    assert ProteinPlot.of(attrs.evolve(noise, fsc=torch.where(NU < 0.2, 1.0, 0.0).double()), SHAPE, 1.0) is None


def test_halves_to_3_8_angstrom_tell_the_envelope_without_the_prior():
    b_factor = 100.0
    signal = (log_power(NU) - b_factor / 2 * NU**2).exp()
    for resolution, found in ((3.5, b_factor), (4.6, None)):
        level = float((log_power(1 / torch.tensor(resolution)) - b_factor / 2 / resolution**2).exp()) * 6
        halves = [drawn(signal, 0) + drawn(torch.full_like(signal, level), 1 + k) for k in range(2)]
        told = fine_b_factor(estimate_noise_power(*halves), SHAPE, voxel_size=1.0)
        assert told == (None if found is None else pytest.approx(found, abs=15))


def test_a_shared_artefact_is_not_sharpened():
    """No fine shell of the filtered mean has more power than a protein has, whatever the envelope removed."""
    b_factor, common = 150.0, 1e-5
    signal = (log_power(NU) - b_factor / 2 * NU**2).exp()
    both = drawn(signal, 0) + drawn(torch.full_like(signal, common), 1)
    halves = [both + drawn(torch.full_like(signal, 1e-6), 2 + k) for k in range(2)]
    fine = FineFilter.of(estimate_noise_power(*halves), SHAPE, voxel_size=1.0, b_factor=b_factor, width=1.5)
    power = radial_mean(rfft(fine((halves[0] + halves[1]) / 2)).abs().square(), SHAPE)
    assert (power / log_power(NU).exp())[1:].max() < 2
    naive = attrs.evolve(fine, signal=fine.signal + fine.common, common=torch.zeros_like(fine.common))
    power = radial_mean(rfft(naive((halves[0] + halves[1]) / 2)).abs().square(), SHAPE)
    assert (power / log_power(NU).exp())[-1] > 100  # what the test is about


def test_a_region_of_a_map_shows_no_more_in_fine_shells_than_the_map():
    """With the envelope removed: of a hard cut, coarse shells would be above the signal there."""
    whole, box, b_factor = (72, 64, 60), (64, 64, 60), 150.0

    def power(n):
        return (torch.linspace(0, 0.5, n, dtype=torch.float64) ** 2 * -b_factor / 2).exp()

    generator = torch.Generator().manual_seed(0)
    x = SpectralNoise(power(37)).sample(torch.zeros(whole, dtype=torch.float64), generator=generator)[4:68]
    window = _window(box, whole)
    assert window[:, 5, 5].min() < 0.02
    assert bool((window[8:-8] == 1).all())

    def above(region):
        return (radial_mean(rfft(region).abs().square(), box) / power(33))[8:26].max()  # to 2.5 Å

    assert above(window * x) < 2
    assert above(x) > 5


def test_a_shell_that_halves_fill_in_part_is_not_scored():
    halves = [drawn(torch.ones(N).double(), 0) + drawn(torch.full((N,), 0.1).double(), k) for k in (1, 2)]
    model = stationary_model(*halves, band=0.7)
    assert _beyond(model, N).tolist() == [k >= 14 for k in range(N)]
    assert _beyond(model, 11).tolist() == [k >= 7 for k in range(11)]
    assert not _beyond(stationary_model(*halves), N).any()


def test_samples_spread_as_the_filter_errs():
    """Signal and noise of known power, everywhere alike: the spread of samples is the error of the filter."""
    signal, noise = torch.linspace(3, 0.5, N).double(), torch.full((N,), 0.5).double()
    sharpening = torch.linspace(1, 4, N).double()
    fine = FineFilter(0.5 * signal, 0.2 * signal, noise, 0.5 * signal, sharpening, 1.5)
    everywhere = torch.ones(SHAPE, dtype=torch.float64)
    truth = drawn(0.5 * signal, 0)
    data = truth + drawn(0.2 * signal, 1) + drawn(noise, 2)
    out = fine(data, everywhere)
    error = out - fourier_filter(truth, radial(sharpening, SHAPE))
    spread = fine(data, everywhere, torch.Generator().manual_seed(3)) - out
    of_error, of_spread = (radial_mean(rfft(x).abs().square(), SHAPE) for x in (error, spread))
    apart = (of_error / of_spread).log().abs() / (4 / shell_sizes(SHAPE, N)).sqrt()
    assert apart[1:].max() < 4  # standard errors
    again = fine(data, everywhere, torch.Generator().manual_seed(3)) - out
    assert torch.equal(spread, again)


def test_a_map_is_filtered_level_by_level():
    """By the definition, in double precision: filters of powers of 4 of v, between which log v interpolates."""
    signal, noise = torch.linspace(3, 0.5, N).double(), torch.full((N,), 0.5).double()
    fine = FineFilter(signal, 0.1 * signal, noise, signal, torch.linspace(1, 4, N).double(), 1.5)
    data, restored = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    restored[:20] *= 5
    smooth = torch.exp(-2 * (torch.pi * 1.5 * frequencies(SHAPE)) ** 2)
    v = fourier_filter(restored**2, smooth).clamp(min=0)
    v /= v.mean()
    wanted, level = torch.zeros_like(data), v.clamp(4.0**-3, 4.0**3).log() / math.log(4)
    for k in range(-3, 4):
        u = 4.0**k
        gain = u * signal / (u * 1.1 * signal + noise) * fine.sharpening
        wanted += (1 - (level - k).abs()).clamp(min=0) * fourier_filter(data, radial(gain, SHAPE))
    torch.testing.assert_close(fine(data, restored), wanted * (64 * v).clamp(max=1))
    single = fine(data.float(), restored.float()).double()
    torch.testing.assert_close(single, wanted * (64 * v).clamp(max=1), atol=1e-5, rtol=1e-5)


def test_samples_spread_where_density_is():
    fine = FineFilter(*(torch.full((N,), value).double() for value in (1.0, 0.0, 1.0, 1.0, 1.0)), 1.5)
    restored = torch.zeros(SHAPE, dtype=torch.float64)
    restored[10:20, 10:20, 10:20] = 1
    data = torch.zeros(SHAPE, dtype=torch.float64)
    spread = fine(data, restored, torch.Generator().manual_seed(0))
    assert spread[12:18, 12:18, 12:18].std() > 0.7
    assert spread[30:].abs().max() < 0.01


def test_the_linear_filter_does_not_sharpen_what_halves_do_not_share():
    """An envelope that was found far too steep, as of maps that a prior does not know, leaves the map what it is."""
    signal = (log_power(NU) - 100 * NU**2).exp()
    truth = drawn(signal, 0)
    halves = [truth + drawn(torch.full_like(signal, 3 * float(signal[len(signal) // 2])), 1 + k) for k in range(2)]
    plain, envelope = stationary_model(*halves), Envelope(400.0, 1.0)
    gain, blur = plain.blurred(envelope).gain, envelope.transfer(SHAPE).to(truth)
    reach = 0.5 * int((plain.fsc[1:] < 0.143).nonzero()[0]) / (len(plain.fsc) - 1)
    shared = frequencies(SHAPE) <= reach
    torch.testing.assert_close(gain[shared], (plain.gain / blur)[shared])
    assert float(gain[~shared].max()) < 1 / float(blur[shared].min())


@pytest.mark.parametrize("shape", [(17, 20, 35), (32, 33, 16)])
def test_slabs_of_the_filter_are_the_whole(shape):
    generator = torch.Generator().manual_seed(0)
    halves = torch.randn(2, *shape, generator=generator) + torch.randn(shape, generator=generator)
    fine = FineFilter.of(estimate_noise_power(*halves), shape, voxel_size=1.0, b_factor=30.0, width=1.5)
    whole = fourier_filter(halves[0], radial(fine._gain(1.0), shape))
    torch.testing.assert_close(fine(halves[0]), whole)
    alike = torch.ones(shape)  # v is 1 everywhere, one of the levels
    torch.testing.assert_close(fine(halves[0], alike), whole, atol=1e-5, rtol=1e-4)
