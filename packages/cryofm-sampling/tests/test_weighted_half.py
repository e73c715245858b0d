"""A half with weights: its likelihood is the posterior's in closed form, and the reference goes back to its units."""

from types import SimpleNamespace

import pytest
import torch

from cryofm_ops import Envelope, GridMismatchError, irfft, radial, radial_mean, rfft, standard_normal
from cryofm_sampling import CapabilityError, Draw, SettingError, WeightedHalf, fit_weighted, restore_weighted
from cryofm_sampling.half_maps.weighted import _on_grid
from cryofm_sampling.testing import GaussianPrior

N, BOX, VOXEL = 24, (24, 24, 24), 2.0
UNITS = SimpleNamespace(mean=0.0, std=1.0)


class Exact:
    """The posterior mean of a white Gaussian prior of that variance, per coefficient of a grid of n."""

    def __init__(self, variance, n=N):
        self.variance, self.n = variance, n

    def __call__(self, velocity, likelihood, /, *, shape, generator, callback=None):
        variance = self.variance * (shape[-1] / self.n) ** 3  # an orthonormal transform's squares
        return Draw(likelihood.condition(torch.zeros(shape), variance).mean, 1, {})


def noise(seed, count=1):
    generator = torch.Generator().manual_seed(seed)
    return [standard_normal(torch.zeros(BOX), generator) for _ in range(count)]


def by_direction():
    """A precision that differs along z."""
    k = torch.fft.fftfreq(N).abs()[:, None, None]
    return (2 + 20 * k + torch.zeros(N, N, N // 2 + 1)).float()


def half(seed=0, fsc=None, W=None, **changes):
    fsc = torch.ones(N // 2 + 1) if fsc is None else fsc
    return WeightedHalf(noise(seed)[0], by_direction() if W is None else W, fsc, VOXEL, **changes)


def shells():
    k = torch.fft.fftfreq(N) * N
    return (k[:, None, None] ** 2 + k[:, None] ** 2 + torch.arange(N // 2 + 1) ** 2).sqrt()


def restored(one, plain, side=N, scale=1.0, b_factor=0.0, variance=0.5):
    return restore_weighted(
        GaussianPrior(1.0),
        one,
        plain,
        side=side,
        scale=scale,
        b_factor=b_factor,
        normalization=UNITS,
        generator=torch.Generator().manual_seed(0),
        sampler=Exact(variance),
    ).x


@pytest.mark.parametrize("side", [N, 30, 36])
def test_it_is_the_posterior_mean_in_the_maps_own_units(side):
    one, plain = half(), noise(1)[0]
    scale, b_factor, variance = 0.5, 60.0, 0.5  # the prior's variance of x in its own units, (1/scale)² in the map's
    found = rfft(restored(one, plain, side, scale, b_factor, variance))
    h = Envelope(b_factor, VOXEL).transfer(BOX).float()
    W, y = one.precision * h**2, rfft(one.map) / h
    V = variance / scale**2
    expected = h * V * W / (1 + V * W) * y
    inner = (shells() > N * VOXEL / 12 + 2) & (shells() < N / 2 - 1)
    torch.testing.assert_close(found[inner], expected[inner], rtol=1e-3, atol=1e-4)


def test_coarse_shells_are_the_programs_and_the_last_ones_empty():
    fsc = torch.cat([torch.ones(10), torch.zeros(3)])
    one, plain = half(fsc=fsc), noise(1)[0]
    assert one.last_shell == 8
    found = rfft(restored(one, plain))
    coarse = shells() < N * VOXEL / 12 - 2
    torch.testing.assert_close(found[coarse], rfft(plain)[coarse], rtol=1e-4, atol=1e-4)
    assert found[shells() > 8.5].abs().max() < 1e-5
    assert found[(shells() > 6) & (shells() < 8.4)].abs().min() > 0


def test_what_the_priors_grid_does_not_hold_is_the_programs():
    one, plain = half(), noise(1)[0]
    found = rfft(restored(one, plain, side=18))
    beyond = (shells() > 9) & (shells() < 11)
    torch.testing.assert_close(found[beyond], rfft(plain)[beyond], rtol=1e-3, atol=1e-4)


def test_no_prior_no_change_where_all_was_measured_well():
    one = half(W=torch.full((N, N, N // 2 + 1), 1e6))
    found = restored(one, one.map)
    inner = shells() < N / 2 - 1
    torch.testing.assert_close(rfft(found)[inner], rfft(one.map)[inner], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("factor", [0.7, 1.5])
def test_the_fsc_corrects_the_level_of_the_noise(factor, halves):
    signal_power, W = 0.5, by_direction()
    signal, white = noise(2, 2)
    y = signal_power**0.5 * signal + irfft((factor / W).sqrt() * rfft(white), BOX)
    n = radial_mean(factor / W, BOX)
    F = signal_power / (signal_power + halves * n)  # of halves with `halves` times the noise
    one = WeightedHalf(y, W, F, VOXEL, halves=halves)
    assert one.noise_factor == pytest.approx(factor, rel=0.1)


def test_where_the_fsc_tells_nothing_the_weights_are_believed():
    assert half(fsc=torch.ones(N // 2 + 1)).noise_factor == 1
    assert half(fsc=torch.zeros(N // 2 + 1)).noise_factor == 1


def test_scale_and_b_are_found_from_one_half_alone():
    power = torch.linspace(3, 0.2, 40)
    prior, side, n = GaussianPrior(power), 64, 48
    scale, b_factor = 0.4, 90.0
    generator = torch.Generator().manual_seed(0)
    x = irfft(
        radial(power, (side,) * 3).sqrt() * rfft(standard_normal(torch.zeros((side,) * 3), generator)), (side,) * 3
    )
    signal = irfft(_on_grid(rfft(x), side, n), (n,) * 3)
    h = Envelope(b_factor, VOXEL)
    y = irfft(h.transfer((n,) * 3) * rfft(signal.double()), (n,) * 3) / scale
    S = radial_mean(rfft(y).abs().square(), (n,) * 3)
    level = 0.02 * float(S[12])
    white = standard_normal(y, generator)
    one = WeightedHalf(
        (y + level**0.5 * white).float(), torch.full((n, n, n // 2 + 1), 1 / level), (S / (S + level)).float(), VOXEL
    )
    found, b = fit_weighted(prior, one, normalization=UNITS, side=side)
    assert found == pytest.approx(scale, rel=0.05)
    assert b == pytest.approx(b_factor, abs=8)


def test_a_finer_grid_holds_the_same_volume():
    x = irfft(torch.where(shells() < N / 2 - 0.5, rfft(noise(3)[0]), 0), BOX)
    finer = irfft(_on_grid(rfft(x), N, 2 * N), (2 * N,) * 3)
    torch.testing.assert_close(finer[::2, ::2, ::2], x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(irfft(_on_grid(rfft(finer), 2 * N, N), BOX), x, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused():
    ones = torch.ones(N // 2 + 1)
    with pytest.raises(GridMismatchError, match="an even cube"):
        WeightedHalf(torch.zeros(5, 5, 5), torch.ones(5, 5, 3), torch.ones(3), 1.0)
    with pytest.raises(GridMismatchError, match="each of 13 shells"):
        WeightedHalf(torch.zeros(BOX), by_direction(), ones[1:], 1.0)
    with pytest.raises(SettingError, match="voxel_size"):
        WeightedHalf(torch.zeros(BOX), by_direction(), ones, 0.0)
    with pytest.raises(GridMismatchError, match="the plain map"):
        restored(half(), torch.zeros(8, 8, 8))
    with pytest.raises(SettingError, match="side"):
        restored(half(), torch.zeros(BOX), side=25)
    with pytest.raises(SettingError, match="scale"):
        restored(half(), torch.zeros(BOX), scale=0.0)
    with pytest.raises(CapabilityError, match="fit_weighted needs a Calibrated prior"):
        fit_weighted(lambda x, t: x, half(), normalization=UNITS, side=N)
