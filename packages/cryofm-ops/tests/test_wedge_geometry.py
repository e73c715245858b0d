"""Which coefficients a tilt series measures: by brute force, by projecting plane waves, by back-projection."""

import itertools
import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from cryofm_ops import (
    DoubleTilt,
    GeometryError,
    MissingWedge,
    WhiteNoise,
    fourier_filter,
    frequencies,
    friedel_weights,
    gaussian_likelihood,
    radial,
    radial_mean,
    rfft,
)

RANGES = [(-60, 60), (-30, 70), (10, 50), (-90, 45), (20, 90), (-90, 90), (-45, 45)]
BOXES = [(4, 4, 4), (5, 5, 5), (3, 4, 5), (6, 3, 4), (98, 1, 4)]  # 49 × (1/98) is not 0.5 in floating point


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("limits", RANGES)
@pytest.mark.parametrize("box", BOXES)
def test_by_brute_force(box, limits, axis):
    low, high = limits
    found = MissingWedge(low, high, axis).transfer(box)
    signs = [(1, -1) if n % 2 == 0 else (1,) for n in box]
    for index in itertools.product(range(box[0]), range(box[1]), range(box[2] // 2 + 1)):
        kept = False
        for sign in itertools.product(*signs):
            k = [(i if 2 * i <= n else i - n) / n for i, n in zip(index, box, strict=True)]
            # The other sign is the same component at Nyquist, and another one elsewhere.
            k = [s * f if 2 * i == n else f for s, f, i, n in zip(sign, k, index, box, strict=True)]
            along, across = (k[0], k[2]) if axis == "y" else (-k[0], k[1])
            if across == 0:
                kept |= along == 0 or high == 90 or low == -90
            else:
                kept |= low - 1e-9 <= math.degrees(math.atan(along / across)) <= high + 1e-9
        assert found[index] == kept, index


@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("tilt", [-72, -35, -8, 0, 23, 64])
def test_a_positive_tilt_turns_the_specimen_right_handed_about_the_axis(axis, tilt):
    # A plane wave is seen at the tilt that turns it so that its sum along the beam does not cancel.
    n = 64
    angle = math.radians(tilt if axis == "y" else -tilt)
    across, along = round(20 * math.cos(angle)), round(20 * math.sin(angle))
    k = torch.tensor([across, 0, along] if axis == "y" else [0, across, along], dtype=torch.float64) / n  # x, y, z
    beam = torch.arange(-150.0, 150.0, dtype=torch.float64)[:, None] * torch.tensor([0, 0, 1.0], dtype=torch.float64)
    tilts = torch.arange(-89.0, 91.0)

    def seen(degrees):
        rotation = torch.from_numpy(Rotation.from_euler(axis, degrees, degrees=True).as_matrix())
        specimen = beam @ rotation  # Rᵀ p, the point of the specimen that stands at p
        return torch.cos(2 * torch.pi * specimen @ k).mean().abs()

    best = float(tilts[torch.stack([seen(float(t)) for t in tilts]).argmax()])
    assert best == pytest.approx(tilt, abs=2)

    def keeps(low, high):
        index = (along % n, 0 if axis == "y" else across % n, across if axis == "y" else 0)
        return bool(MissingWedge(low, high, axis).transfer((n, n, n))[index])

    assert keeps(best - 1, best + 1)
    assert abs(tilt) < 5 or not keeps(-best - 1, -best + 1)


def test_back_projections_fill_the_kept_region_and_nothing_else(generator):
    # Projections of white images, one each degree, smeared along their beam in real space (p = R x).
    n, low, high = 64, -20, 50
    z, x = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) - n // 2] * 2, indexing="ij")
    window = torch.exp(-0.5 * (x**2 + z**2) / (n / 7) ** 2)
    volume = torch.zeros(n, n, dtype=torch.float64)
    for tilt in torch.arange(low, high + 1.0):
        c, s = torch.cos(torch.deg2rad(tilt)), torch.sin(torch.deg2rad(tilt))
        view = (c * x + s * z) / n  # x of R_y(tilt) (x, y, z), over the box
        amplitude = torch.randn(n // 2, 2, generator=generator, dtype=torch.float64)
        phase = 2 * torch.pi * view[..., None] * torch.arange(n // 2)
        volume += (amplitude[:, 0] * phase.cos() + amplitude[:, 1] * phase.sin()).sum(-1)
    power = rfft((window * volume)[:, None, :]).abs() ** 2 * friedel_weights((n, 1, n))
    nu = frequencies((n, 1, n))
    power = power * ((nu > 0.2) & (nu < 0.45))

    def fraction(*limits):
        return float((power * MissingWedge(*limits).transfer((n, 1, n))).sum() / power.sum())

    assert fraction(low, high) > 0.95
    assert fraction(low - 4, high + 4) > 0.995
    tenths = [fraction(t, t + 10) for t in range(low, high, 10)]
    assert min(tenths) > 0.08  # of 0.14 each


def test_the_fraction_that_is_kept(generator):
    box = (64, 64, 64)
    kept = radial_mean(MissingWedge(-60, 60).transfer(box), box)
    ball = float((kept * torch.arange(33) ** 2).sum() / (torch.arange(33) ** 2).sum())
    assert ball == pytest.approx(2 / 3, abs=0.01)
    x = torch.randn(box, generator=generator)
    y = MissingWedge(-60, 60)(x)
    inside = radial(torch.tensor([1.0] * 33), box) * (frequencies(box) < 0.5)
    energy = [float(fourier_filter(v, inside).pow(2).sum()) for v in (x, y)]
    assert energy[1] / energy[0] == pytest.approx(2 / 3, abs=0.01)
    # FSC of a white volume with itself under the wedge, its mean over the shells 1 to 32.
    a, b = rfft(x), rfft(y)
    cross, pa, pb = ((u * v.conj()).real for u, v in ((a, b), (a, a), (b, b)))
    fsc = radial_mean(cross, box) / (radial_mean(pa, box) * radial_mean(pb, box)).sqrt()
    assert float(fsc[1:].mean()) == pytest.approx(0.808, abs=0.005)


def test_soft_edge():
    box = (16, 1, 16)
    at = MissingWedge(-45, 45, edge_deg=10).transfer(box)[:, 0]
    assert float(at[3, 3]) == pytest.approx(0.5)
    assert float(at[3, 4]) == 1  # 36.9°
    assert float(at[4, 3]) == 0  # 53.1°
    inner = math.degrees(math.atan(6 / 7))  # 40.6°
    assert float(at[6, 7]) == pytest.approx(0.5 + 0.5 * math.sin(math.pi * (45 - inner) / 10))
    torch.testing.assert_close(at[1:8, 1:8], 1 - at[1:8, 1:8].T)
    assert at[0, 0] == 1
    assert (MissingWedge(-90, 90, edge_deg=20).transfer(box) == 1).all()
    through = MissingWedge(-90, 60, edge_deg=8).transfer(box)[:, 0]  # the edge at ±90° is shared by both sides
    assert through[1:, 0].tolist() == pytest.approx([0.5] * 15)


def test_the_tilt_axis_is_always_kept():
    box = (6, 8, 10)
    assert (MissingWedge(10, 20, edge_deg=5).transfer(box)[0, :, 0] == 1).all()
    assert (MissingWedge(10, 20, "x", edge_deg=5).transfer(box)[0, 0] == 1).all()


def test_a_double_tilt_keeps_what_either_keeps():
    first, second = MissingWedge(-60, 60, "y"), MissingWedge(-50, 65, "x", edge_deg=10)
    box = (7, 8, 9)
    a, b, both = (w.transfer(box) for w in (first, second, DoubleTilt(first, second)))
    assert ((both >= a) & (both >= b) & ((both == a) | (both == b))).all()
    assert (both > a).any()
    assert (both > b).any()


@pytest.mark.parametrize("variance", ["white", "radial"])
@pytest.mark.parametrize("limits", [(-60, 60), (-30, 70)])
def test_noiseless_data_replace_what_was_measured(oracle, generator, limits, variance):
    wedge = MissingWedge(*limits)
    truth, x = torch.randn(2, *oracle.shape, generator=generator, dtype=torch.float64)
    y = wedge(truth)
    likelihood = gaussian_likelihood(wedge, WhiteNoise(0), y)
    v = 0.5 if variance == "white" else radial(torch.tensor([4.0, 0.0], dtype=torch.float64), oracle.shape)
    a = oracle.filter(wedge.transfer(oracle.shape))
    plus, eye = torch.linalg.pinv(a), torch.eye(oracle.size, dtype=torch.float64)
    replaced = plus @ y.flatten() + (eye - plus @ a) @ x.flatten()
    torch.testing.assert_close(likelihood.condition(x, v).mean.flatten(), replaced)
    torch.testing.assert_close(wedge.pinv(y) + x - wedge.pinv(wedge(x)), replaced.reshape(oracle.shape))
    torch.testing.assert_close(wedge(wedge(x)), wedge(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((60, -60), "got 60.0 to -60.0"),
        ((30, 30), "got 30.0 to 30.0"),
        ((-100, 60), "got -100.0 to 60.0"),
        ((-60, math.nan), "got -60.0 to nan"),
        ((-60, 60, "z"), "'x' or 'y'.* got 'z'"),
        ((-60, 60, "y", -1), "edge_deg .* got -1"),
        ((-10, 10, "y", 30), "from 0 to the range of the tilts, 20.0, got 30"),
    ],
)
def test_impossible_tilts_are_named(arguments, message):
    with pytest.raises(GeometryError, match=message):
        MissingWedge(*arguments)
