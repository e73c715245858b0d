import warnings

import pytest
import torch

from cryofm_ops import (
    GridMismatchError,
    HalfMapError,
    ObservationError,
    SpectralNoise,
    estimate_noise_power,
    fourier_filter,
    radial,
    radial_mean,
    rfft,
    shell_sizes,
)

SIGNAL = 1e3 * torch.exp(-11 * torch.linspace(0, 1, 33, dtype=torch.float64))  # F from 0.999 to 0.008
NOISE = 1 + torch.linspace(0, 1, 33, dtype=torch.float64)


def halves(shape, generator, scale=1.0, signal=SIGNAL, noise=NOISE):
    model = SpectralNoise(noise)
    s = SpectralNoise(signal).sample(torch.zeros(shape, dtype=torch.float64), generator=generator)
    return model.sample(s, generator=generator), scale * model.sample(s, generator=generator)


@pytest.mark.parametrize("shape", [(16, 16, 16), (15, 15, 15), (12, 17, 20)], ids=str)
def test_the_estimate_has_the_stated_bias_and_spread(shape, generator):
    # Mean over 60 pairs. Each estimate scatters by √(2 / shell size) at least as F → 1, by less below, and is low by
    # at most 2 / shell size for F (the halves' powers are estimated too) plus the discretisation of a shell.
    runs, n = 60, max(shape) // 2 + 1
    truth = torch.nn.functional.interpolate(NOISE[None, None], n, mode="linear", align_corners=True)[0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small shells may disagree by chance
        found = [estimate_noise_power(*halves(shape, generator)) for _ in range(runs)]
    size = shell_sizes(shape)
    allowed = 2 / size + 5 * (2 / size / runs).sqrt() + 0.02
    for tables in ([e.noise_power for e in found], [e.difference_power for e in found]):
        bias = torch.stack(tables).mean(0) / truth - 1
        assert (bias.abs() < allowed)[1:].all()
    signal = torch.stack([e.signal_power for e in found]).mean(0)[1:4]
    expected = torch.nn.functional.interpolate(SIGNAL[None, None], n, mode="linear", align_corners=True)[0, 0]
    assert ((signal / expected[1:4] - 1).abs() < 0.35).all()


def test_pure_noise_clamps_but_stays_near_the_truth(generator):
    h1, h2 = halves((16, 16, 16), generator, signal=torch.zeros(2), noise=torch.full((2,), 4.0))
    estimate = estimate_noise_power(h1, h2)
    negative = (1 + (estimate.fsc[1:] < 0).nonzero().flatten()).tolist()
    assert negative  # of these shells F is not positive
    assert estimate.clamped_shells == tuple(negative)
    assert (estimate.signal_power[negative] == 0).all()
    assert (estimate.noise_power[3:] / 4 - 1).abs().max() < 6 * (1 / shell_sizes((16, 16, 16))[3:]).sqrt().max()


def test_fsc_of_one_clamps_to_a_positive_noise(generator):
    noise = torch.cat([torch.zeros(17), torch.ones(16)])  # the lower half of the shells is noiseless
    estimate = estimate_noise_power(*halves((16, 16, 16), generator, noise=noise.double()))
    assert {1, 2, 3} <= set(estimate.clamped_shells)
    for table in (estimate.noise_power, estimate.signal_power, estimate.fsc):
        assert table.isfinite().all()
    assert (estimate.noise_power > 0).all()


def test_the_constant_term_takes_the_noise_of_the_first_shell(generator):
    h1, h2 = halves((16, 16, 16), generator)
    estimate, shifted = estimate_noise_power(h1, h2), estimate_noise_power(h1 + 5, h2 + 5.5)
    assert estimate.noise_power[0] == estimate.noise_power[1]
    torch.testing.assert_close(shifted.noise_power, estimate.noise_power)
    assert float(shifted.signal_power[0]) == pytest.approx(5.25**2 * 16**3, rel=0.3)


def test_from_half_maps_is_the_noise_of_one_half(generator):
    h1, h2 = halves((16, 16, 16), generator)
    noise = SpectralNoise.from_half_maps(h1.float(), h2.float())
    assert noise.radial_power.dtype == torch.float32
    torch.testing.assert_close(noise.radial_power.double(), estimate_noise_power(h1, h2).noise_power, rtol=1e-3, atol=0)
    average = (h1 + h2) / 2  # has half of the noise of one: beyond the signal its power tells
    power = SpectralNoise.from_half_maps(*halves((16, 16, 16), generator)).radial_power[-1]
    assert float((h1 - average).var() / (h1 - h2).var()) == pytest.approx(0.25)
    assert float(power) == pytest.approx(2, rel=0.2)


def test_other_scales_warn_and_do_not_take_signal_for_noise(generator):
    h1, h2 = halves((24, 24, 24), generator, scale=1.2)
    with pytest.warns(UserWarning, match=r"scales of the half maps differ: half 2 is 1\.[12]\d\d times half 1"):
        estimate = estimate_noise_power(h1, h2)
    low = slice(1, 3)
    truth = radial(NOISE, (24, 24, 24))[0, 0, low]
    assert (estimate.difference_power[low] > 3 * truth).all()
    assert (estimate.noise_power[low] < 2.5 * truth).all()


def test_equal_scales_do_not_warn(generator):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            estimate_noise_power(*halves((24, 24, 24), generator))


def test_halves_from_which_nothing_can_be_estimated(generator):
    h1, h2 = halves((12, 12, 12), generator)
    with pytest.raises(HalfMapError, match="equal: noise cannot be estimated"):
        estimate_noise_power(h1, h1.clone())
    with pytest.raises(HalfMapError, match="constant"):
        estimate_noise_power(h1, torch.zeros_like(h1))
    with pytest.raises(GridMismatchError, match=r"\(12, 12, 12\) and \(12, 12, 11\)"):
        estimate_noise_power(h1, h2[..., :-1])
    h2[1, 2, 3] = torch.nan
    with pytest.raises(ObservationError, match=r"first \(nan\) at index \(1, 2, 3\)"):
        estimate_noise_power(h1, h2)


def test_masked_and_filtered_halves_are_refused_unless_allowed(generator):
    h1, h2 = halves((12, 12, 12), generator)
    mask = torch.zeros_like(h1)
    mask[3:9, 3:9, 3:9] = 1
    low_pass = radial(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], dtype=h1.dtype), (12, 12, 12))
    scaled = 2 * h1  # FSC 1 everywhere
    for pair, word in (
        ((h1 * mask, h2 * mask), "masked"),
        ((fourier_filter(h1, low_pass), fourier_filter(h2, low_pass)), "filtered"),
        ((h1, scaled), "filtered"),
    ):
        with pytest.raises(HalfMapError, match=word):
            estimate_noise_power(*pair)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimate = estimate_noise_power(*pair, allow_masked=True)
        assert estimate.noise_power.isfinite().all()
        assert (estimate.noise_power > 0).all()


@pytest.mark.parametrize("shape", [(17, 20, 35), (32, 33, 16)])
def test_slabs_of_the_spectrum_are_the_whole(shape):
    half1, half2 = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    whole = radial_mean((rfft(half1.double()) - rfft(half2.double())).abs().square() / 2, shape)
    torch.testing.assert_close(estimate_noise_power(half1, half2).difference_power, whole.float())


def test_the_noise_can_be_differentiated_by_a_half():
    """In the direction of the half itself, of which the power is the square."""
    one, two = torch.randn(2, 20, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one.requires_grad_()
    estimate_noise_power(one, two).difference_power.sum().backward()
    step = 1e-6 * one.detach()
    ahead, behind = (float(estimate_noise_power(one.detach() + s * step, two).difference_power.sum()) for s in (1, -1))
    assert one.grad is not None
    assert float((one.grad * step).sum()) == pytest.approx((ahead - behind) / 2, rel=1e-5)
