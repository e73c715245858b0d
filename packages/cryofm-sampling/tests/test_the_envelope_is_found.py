"""The parts of the search for scale and B, each where its answer is known; the whole is run by the scripts' tests."""

import math
from types import SimpleNamespace

import attrs
import pytest
import torch

from cryofm_ops import Envelope, frequencies, radial
from cryofm_sampling.half_maps import envelope
from cryofm_sampling.half_maps._fsc import correlation
from cryofm_sampling.half_maps._runs import top
from cryofm_sampling.half_maps.envelope import wilson_line
from cryofm_sampling.half_maps.model import FourierModel
from cryofm_sampling.testing import GaussianPrior

BOX, VOXEL_SIZE, STD = (32, 32, 32), 1.5, 0.1
POWER = 40 * torch.exp(-6 * torch.linspace(0, 1, 17))


@pytest.mark.parametrize(("b_factor", "scale"), [(0.0, 3.0), (90.0, 0.2), (-30.0, 1.0)])
def test_the_wilson_plot_of_a_known_envelope(b_factor, scale):
    """Halves whose signal is the prior's through an envelope, over the scale; beyond 12 Å it may be any."""
    h = Envelope(b_factor, VOXEL_SIZE).table(17).double()
    signal = POWER * STD**2 * (h / scale) ** 2
    signal[:4] *= 7
    model = FourierModel(torch.full((17,), 0.9), signal / 9, signal, BOX, lambda shape: None)
    prior = GaussianPrior(POWER, BOX)
    line = wilson_line(model, prior, SimpleNamespace(mean=0.0, std=STD), VOXEL_SIZE)
    assert line.b_factor == pytest.approx(b_factor, abs=1e-6)
    assert math.exp(-line.kappa - b_factor * line.pivot**2 / 4) == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("known", [(False, False, False), (True, False, True), (False, True, True)])
@pytest.mark.parametrize("start", [(0.0, -1.0, 0.0), (280.0, 1.5, 0.5)])
def test_the_top_of_a_hill_is_climbed_along_the_axes_that_are_free(known, start):
    """Of a hill that is a parabola the last step goes to its very top."""
    summit, widths = (97.0, 0.31, 0.12), (60.0, 0.45, 0.3)
    expected = tuple(at if fixed else best for at, best, fixed in zip(start, summit, known, strict=True))

    def score(b, kappa, k):
        return -sum(((x - s) / w) ** 2 for x, s, w in zip((b, kappa, k), summit, widths, strict=True))

    found = envelope._climbed(score, start, known, envelope._STEPS)
    assert all(abs(x - s) <= w / 2 for x, s, w in zip(found, expected, envelope._STEPS[-1], strict=True))
    assert envelope._top(score, found, known) == pytest.approx(expected, abs=1e-9)


def test_an_inside_as_bright_as_proteins_costs_nothing_and_another_the_square_of_its_logarithm():
    cost = [envelope._other_inside(envelope._INSIDE * math.exp(x)) for x in (0.0, 0.3, -0.3, 0.6)]
    assert cost == pytest.approx([0.0, *(envelope._INSIDE_PENALTY * x for x in (1, 1, 4))])


def test_the_density_of_the_inside_is_that_of_a_large_ball():
    x = torch.zeros(48, 48, 48)
    radius = torch.cartesian_prod(*3 * [torch.arange(48.0) - 24]).norm(dim=1).reshape(x.shape)
    x[radius < 16] = 0.4
    assert envelope._inside(x, 1.5) == pytest.approx(0.4, rel=0.1)
    for factor, level in ((3.0, 0.0), (1.0, 5.0)):
        assert envelope._inside(factor * x + level, 1.5) == pytest.approx(factor * envelope._inside(x, 1.5), rel=1e-6)


def gaussian_halves(b_factor):
    """Of a field as bright as proteins are, whose prior is exact, through an envelope; prior, halves and model."""
    generator = torch.Generator().manual_seed(0)
    power = 0.04 * POWER / radial(POWER, BOX).mean()
    h, noise = Envelope(b_factor, VOXEL_SIZE), torch.full((17,), 0.004)
    x = torch.fft.irfftn(radial(power.sqrt(), BOX) * torch.fft.rfftn(torch.randn(BOX, generator=generator)), s=BOX)
    one, two = (h(x) + 0.004**0.5 * torch.randn(BOX, generator=generator) for _ in range(2))
    signal = power * h.table(17).square()

    def noise_on(shape):
        return torch.full_like(frequencies(shape), 0.004), torch.ones_like(frequencies(shape))

    return GaussianPrior(power, BOX), one, two, FourierModel(signal / (signal + noise), noise, signal, BOX, noise_on)


def fitted(halves, **told):
    return envelope.fit_envelope(
        *halves,
        voxel_size=VOXEL_SIZE,
        normalization=SimpleNamespace(mean=0.0, std=1.0),
        generator=torch.Generator().manual_seed(0),
        solvent_contrast=0.0,
        **told,
    )


def test_a_trial_of_the_true_envelope_is_scored_above_the_others():
    """Where all three are told there is one trial."""
    halves, scores = gaussian_halves(60.0), {}
    for b, scale in ((60.0, 1.0), (0.0, 1.0), (160.0, 1.0), (60.0, 0.3), (60.0, 3.0)):
        fit = fitted(halves, scale=scale, b_factor=b)
        assert (fit.b_factor, fit.normalization.scale, fit.solvent_contrast, fit.nfe) == (b, scale, 0.0, 3)
        ((*_, scores[b, scale]),) = fit.trials
    assert max(scores, key=scores.get) == (60.0, 1.0)


def test_b_is_that_of_atoms_unless_the_prior_explains_more_with_less():
    """A map that falls off as all that the prior knows is none of a blurred one, whatever atoms do."""
    assert fitted(gaussian_halves(0.0), scale=1.0, atoms_b_factor=90.0).b_factor == pytest.approx(0, abs=15)
    assert fitted(gaussian_halves(90.0), scale=1.0, atoms_b_factor=90.0).b_factor == 90.0
    assert fitted(gaussian_halves(0.0), scale=1.0, b_factor=90.0).b_factor == 90.0


def test_strong_noise_beyond_the_resolution_does_not_leak_into_a_region():
    """Through the faces of a cut, which spread a shell's power over all others."""
    n = 48
    frequency, box = 2 * frequencies((n, n, n)), slice(8, 40)
    shells = torch.linspace(0, 1, n // 2 + 1)
    noise = torch.where(shells < 0.5, 1e-3, 10.0)
    model = FourierModel(torch.where(shells < 0.5, 0.9, 0.0), noise, 9 * noise, (n, n, n), lambda shape: None)
    white = torch.randn(n, n, n, generator=torch.Generator().manual_seed(0))
    half = torch.fft.irfftn(torch.fft.rfftn(white) * torch.where(frequency < 0.5, 1e-3, 10.0).sqrt(), s=white.shape)
    dim, window = envelope._prewhitening(model), envelope._window((32, 32, 32), (n, n, n))
    told = window.square().mean() * 1e-3

    def seen(region):
        power = torch.fft.rfftn(region, norm="ortho").abs().square()
        return float(power[2 * frequencies(region.shape) < 0.35].mean() / told)

    assert seen(window * half[box, box, box]) > 10
    dimmed = window * envelope._shells(half, dim)[box, box, box]
    assert seen(envelope._shells(dimmed, 1 / dim)) == pytest.approx(1, abs=0.2)
    even = attrs.evolve(model, noise_power=torch.ones(n // 2 + 1))
    assert envelope._shells(half, envelope._prewhitening(even)) is half


@pytest.mark.parametrize("n", [7, 40000, 250000, 310001])
def test_the_top_is_a_quantile(n):
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    assert top(x) == pytest.approx(float(torch.quantile(x, 0.99999)), rel=1e-12)


def test_shells_without_power_correlate_with_nothing():
    """As beyond a low pass; where there is power, the same map correlates with itself."""
    x = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    low = torch.fft.irfftn((2 * frequencies(x.shape) <= 0.5) * torch.fft.rfftn(x), s=x.shape)
    table = correlation(low, low)
    torch.testing.assert_close(table[1:4], torch.ones(3))
    assert not table[6:].any()


def test_a_trial_is_scored_by_what_it_explains_and_how_it_correlates():
    """a y explains 2 a − a² of y and correlates with all of it; without any FSC all shells count."""
    y = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    for a in (0.4, 1.0, 1.6):
        for fsc in (torch.ones(9), torch.full((9,), 1e-9)):
            F, weight = max(float(fsc[0]), envelope._LEAST_FSC), envelope._CORRELATION
            expected = (1 - weight) * (2 * a - a**2) / F + weight / F**0.5
            assert envelope._score(a * y, y, fsc) == pytest.approx(expected, rel=1e-5)
    half = torch.ones(9)
    half[5:] = 0  # which are not scored
    low = torch.fft.irfftn((16 * frequencies(y.shape) < 4.5) * torch.fft.rfftn(y), s=y.shape)
    assert envelope._score(low, y, half) == pytest.approx(1, rel=1e-5)


def test_halves_that_are_too_good_are_dimmed_to_an_fsc_of_a_seventh_at_the_finest():
    n = 17  # 2.4 voxels are five sixths of the way to Nyquist
    signal, noise = 10 * torch.exp(-3 * torch.linspace(0, 1, n)), torch.full((n,), 1e-3)

    def noise_on(shape):
        return torch.full_like(frequencies(shape), 1e-3), torch.ones_like(frequencies(shape))

    model = FourierModel(signal / (signal + noise), noise, signal, BOX, noise_on)
    half = torch.zeros(BOX)
    dimmed, told = envelope._dimmed(half, model, torch.Generator().manual_seed(0))
    level = 10 * math.exp(-2.5) * (1 - 0.143) / 0.143
    torch.testing.assert_close(told.noise_power, torch.full((n,), level))
    assert float(dimmed.var()) == pytest.approx(level - 1e-3, rel=0.03)
    torch.testing.assert_close(told.noise_on(BOX)[0], torch.full((32, 32, 17), level), check_dtype=False)
    again = envelope._dimmed(half, told, torch.Generator().manual_seed(0))
    assert again == (half, told)


def test_coarse_shells_are_not_dimmed_to_what_chance_makes_of_strong_noise_beyond_them():
    """Noise that rises ten-thousandfold has by chance a signal far above all that is measured."""
    n = 17
    noise = torch.where(torch.linspace(0, 1, n) < 0.5, 1e-3, 10.0)
    signal = torch.where(torch.linspace(0, 1, n) < 0.5, 0.1, 0.03 * 10.0)
    model = FourierModel(signal / (signal + noise), noise, signal, BOX, lambda shape: None)
    half = torch.zeros(BOX)
    assert envelope._dimmed(half, model, torch.Generator().manual_seed(0)) == (half, model)


def test_a_parabola_without_a_top_moves_nothing():
    assert [envelope._parabola(*three) for three in ((1, 1, 1), (2, 1, 2), (0, 1, 2))] == [0, 0, 0]
    assert envelope._parabola(-1.0, 0.0, -1.5) == pytest.approx(-0.1)
    assert envelope._parabola(0.0, 1.0, 1.99) == 0.5  # no farther


def test_the_densest_cube_is_where_the_density_is():
    x = torch.zeros(20, 30, 6)
    x[3:8, 17:22] = 1
    assert envelope.densest(x, 5) == (slice(3, 8), slice(17, 22), slice(0, 5))
    assert envelope.densest(x, 25)[0] == slice(0, 20)
