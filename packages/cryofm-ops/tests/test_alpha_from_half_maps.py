import math
import warnings

import pytest
import torch

from cryofm_ops import (
    AnisotropicNoise,
    GeometryError,
    HalfMapError,
    SpectralNoise,
    WhiteNoise,
    cone_alpha,
    directional,
    estimate_alpha,
    hemisphere,
    wedge_alpha,
)
from cryofm_ops.fourier.directions import directions

TWO = torch.ones(2, dtype=torch.float64)
ALPHAS = {
    "isotropic": lambda d: torch.ones_like(d[..., 0]),
    "smooth": lambda d: 1 + 3 * d[..., 2] ** 2,
    "wedge": wedge_alpha(-45, 45, 3),
}


def halves(shape, alpha, snr, generator):
    """Halves whose noise has α and mean power 1 over the sphere."""
    noise = AnisotropicNoise(TWO / alpha(hemisphere(999)).mean(), alpha)
    s = SpectralNoise(TWO * snr).sample(torch.zeros(shape, dtype=torch.float64), generator=generator)
    return noise.sample(s, generator=generator), noise.sample(s, generator=generator)


def cone_means(alpha, shape, u, half_angle=20):
    """What a cone can know: the mean of the true α over its coefficients, over the mean over all cones."""
    grid, d = directional(alpha, shape).flatten(), directions(shape).flatten(0, 2)
    k = torch.stack(
        torch.meshgrid(*(torch.fft.fftfreq(n) for n in shape[:2]), torch.fft.rfftfreq(shape[2]), indexing="ij")
    )
    length = k.norm(dim=0).flatten() * max(shape)
    used = ((length >= 0.5) & (length < max(shape) // 2 + 0.5)).double()
    last = shape[2] // 2 if shape[2] % 2 == 0 else -1
    weight = torch.tensor([1.0 if i in (0, last) else 2.0 for i in range(shape[2] // 2 + 1)])
    used = used * weight.expand(half(shape)).flatten()
    inside = (u @ d.T).abs() >= math.cos(math.radians(half_angle))
    means = (inside * used * grid).sum(1) / (inside * used).sum(1)
    return means / means.mean()


def half(shape):
    return shape[0], shape[1], shape[2] // 2 + 1


@pytest.mark.parametrize("snr", [10, 1, 0.1])
@pytest.mark.parametrize("name", ALPHAS)
@pytest.mark.parametrize(("shape", "rms"), [((32, 32, 32), 0.07), ((40, 48, 45), 0.045)], ids=str)
@pytest.mark.slow
def test_a_known_alpha_is_recovered_cone_by_cone(name, snr, shape, rms, generator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wedge of strong noise has a low cFAR
        estimate = estimate_alpha(*halves(shape, ALPHAS[name], snr, generator))
    table = estimate.alpha_variance
    assert float(table.values.mean()) == pytest.approx(1)
    truth = cone_means(ALPHAS[name], shape, table.directions)
    error = table.values / truth - 1
    assert error.square().mean().sqrt() < rms  # 1.5 times what is expected
    # One in 20,000 normal deviates is beyond 4; neighbouring cones are correlated, and there are 143 of them.
    assert ((table.values - truth) / estimate.standard_error).abs().max() < 4.5
    # The route by the FSC is clamped, and so low, by a few percent.
    assert (estimate.fsc_route / table.values - 1).mean().abs() < 0.06


def test_standard_errors_are_those_of_repeated_estimates(generator):
    # 30 estimates: the sample variance has a relative error of √(2/29), averaged over at least 10 independent cones.
    shape, alpha = (24, 24, 24), ALPHAS["smooth"]
    found = [estimate_alpha(*halves(shape, alpha, 1, generator)) for _ in range(30)]
    spread = torch.stack([e.alpha_variance.values for e in found]).std(0)
    stated = torch.stack([e.standard_error for e in found]).mean(0)
    assert float((spread / stated).square().mean()) == pytest.approx(1, abs=0.4)
    values = torch.stack([e.alpha_variance.values for e in found]).mean(0)
    assert (values / cone_means(alpha, shape, found[0].alpha_variance.directions) - 1).abs().mean() < 0.02


def test_other_scales_warn_and_do_not_show_in_alpha(generator):
    # The signal is ten times stronger in some directions, the noise is not.
    shape = (32, 32, 32)
    s = AnisotropicNoise(10 * TWO, cone_alpha((0, 0, 1), 45, 10**-0.5))
    s = s.sample(torch.zeros(shape, dtype=torch.float64), generator=generator)
    h1, h2 = (scale * WhiteNoise(1).sample(s, generator=generator) for scale in (1, 1.3))
    with pytest.warns(UserWarning, match="scales of the half maps differ"):
        estimate = estimate_alpha(h1, h2)
    values, error = estimate.alpha_variance.values, estimate.standard_error
    assert ((values - 1) / error).abs().max() < 4.5


def test_a_sharp_wedge_is_blurred_by_the_cone_and_no_more(generator):
    alpha, u = wedge_alpha(-45, 45, 3), hemisphere(2000)
    x, _, z = u.unbind(1)
    to_edge = torch.rad2deg(torch.asin(torch.minimum((x - z).abs(), (x + z).abs()) / 2**0.5))
    truth = alpha(u) / alpha(u).mean()
    wrong = []
    for half_angle in (20, 10):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = estimate_alpha(*halves((48, 48, 48), alpha, 1, generator), half_angle_deg=half_angle).alpha_variance
        values = table(u) / table(u).mean()
        error = (values / truth - 1).abs()
        assert error[to_edge > 1.5 * half_angle].mean() < 0.1
        wrong.append(float((error > 0.5).double().mean()))
        edge = values[to_edge < half_angle / 4].mean()
        assert 0.3 < float((edge - truth.min()) / (truth.max() - truth.min())) < 0.7
    assert 0.2 < wrong[0] < 0.33  # of the sphere
    assert wrong[1] < 0.6 * wrong[0]


def test_conical_fsc_by_hand(generator):
    shape = (16, 16, 16)
    h1, h2 = halves(shape, ALPHAS["smooth"], 1, generator)
    estimate = estimate_alpha(h1, h2)
    y1, y2 = (torch.fft.fftn(h, norm="ortho") for h in (h1, h2))
    k = torch.stack(torch.meshgrid(*(torch.fft.fftfreq(16, dtype=torch.float64),) * 3, indexing="ij")[::-1], -1) * 16
    for cone in (0, 40, 142):
        axis = estimate.alpha_variance.directions[cone]
        for shell in (0, 1, 2, 5, 7):
            inside = (k @ axis).abs() >= math.cos(math.radians(20)) * k.norm(dim=-1)
            inside &= (k.norm(dim=-1).round() == shell) & (shell > 0)
            if not inside.any():
                assert estimate.conical_fsc[cone, shell].isnan()
                continue
            a, b = y1[inside], y2[inside]
            expected = (a * b.conj()).real.sum() / (a.abs().square().sum() * b.abs().square().sum()).sqrt()
            torch.testing.assert_close(estimate.conical_fsc[cone, shell], expected)


def test_cfar_warns_where_orientations_are_missing(generator):
    shape = (32, 32, 32)
    with pytest.warns(UserWarning, match=r"cFAR 0\.[0-4]\d; some orientations are probably missing"):
        low = estimate_alpha(*halves(shape, cone_alpha((0, 0, 1), 40, 1 / 6), 1, generator))
    worst = low.alpha_variance.directions[low.conical_fsc[:, 5:].mean(1).argmin()]
    assert worst[2].abs() > 0.8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert estimate_alpha(*halves(shape, ALPHAS["isotropic"], 10, generator)).cfar > 0.85
        estimate_alpha(*halves(shape, ALPHAS["isotropic"], 0, generator))  # noise alone: no FSC, but no reason to warn


def test_the_estimate_serves_the_noise(generator):
    shape = (32, 32, 32)
    h1, h2 = halves(shape, ALPHAS["smooth"], 1, generator)
    estimate = estimate_alpha(h1.float(), h2.float())
    noise = AnisotropicNoise.from_half_maps(h1.float(), h2.float(), estimate.alpha_variance)
    assert noise.power(shape).dtype == torch.float32
    truth = AnisotropicNoise(TWO / 2, ALPHAS["smooth"]).power(shape)
    r = h1 - h2  # χ² per coefficient of the difference, whose noise is twice that of a half
    for power, limit in ((noise.power(shape).double(), 0.15), (truth, 0.03)):
        ratio = torch.fft.rfftn(r, norm="ortho").abs().square() / (2 * power)
        d = directions(shape)
        for part in (d[..., 2].abs() > 0.8, d[..., 2].abs() < 0.3):
            assert float(ratio[part].mean()) == pytest.approx(1, abs=limit)


def test_impossible_input(generator):
    h1 = WhiteNoise(1).sample(torch.zeros(12, 12, 12), generator=generator)
    h2 = WhiteNoise(1).sample(torch.zeros(12, 12, 12), generator=generator)
    with pytest.raises(GeometryError, match="half_angle_deg must be between 5 and 45, got 60"):
        estimate_alpha(h1, h2, half_angle_deg=60)
    with pytest.raises(HalfMapError, match="equal"):
        estimate_alpha(h1, h1)
    with pytest.raises(GeometryError, match=r"a box of \(12, 12, 12\) has no shell .* give a larger half_angle_deg"):
        estimate_alpha(h1, h2, half_angle_deg=5)


def test_masked_halves_are_taken_where_asked_for():
    halves = torch.randn(2, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    halves[:, :6] = 0
    with pytest.raises(HalfMapError, match="look masked"):
        estimate_alpha(*halves)
    assert estimate_alpha(*halves, allow_masked=True).alpha_variance.values.isfinite().all()
