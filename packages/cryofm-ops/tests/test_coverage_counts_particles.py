"""How often a Fourier voxel was measured, against slices inserted by a loop, and the noise of a reconstruction."""

import itertools
import math
import operator
from functools import reduce

import pytest
import torch

from cryofm_ops import (
    CoverageNoise,
    FourierDiagonal,
    GeometryError,
    MissingWedge,
    NoiseError,
    WhiteNoise,
    coverage_from_poses,
    coverage_from_tilts,
    gaussian_likelihood,
    random_rotations,
    rfft,
)
from cryofm_ops.testing import check_noise


@pytest.mark.parametrize("shape", [(6, 6, 6), (7, 7, 7), (4, 7, 5)])
def test_counts_are_those_of_a_loop(shape):
    rotations = random_rotations(3, generator=torch.Generator().manual_seed(0)).double()
    expected, side = torch.zeros(shape, dtype=torch.float64), max(shape)
    last = (side - 1) // 2
    for R in rotations:
        for qx, qy in itertools.product(range(-last, last + 1), repeat=2):
            if math.hypot(qx, qy) >= side / 2:
                continue
            x, y, z = (R.T @ torch.tensor([qx, qy, 0.0], dtype=torch.float64)).tolist()
            for corner in itertools.product((0, 1), repeat=3):
                share, place = 1.0, []
                for value, one, n in zip((z, y, x), corner, shape, strict=True):
                    low = math.floor(value * n / side)
                    share *= n / side * (value * n / side - low if one else 1 - (value * n / side - low))
                    place.append((low + one) % n)
                expected[tuple(place)] += share
    found = coverage_from_poses(rotations, side if len(set(shape)) == 1 else shape)
    torch.testing.assert_close(found, expected[..., : shape[2] // 2 + 1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 6, 7), (6, 5, 4)])
def test_compound_wedges_are_those_of_a_loop(shape):
    """Voxel by voxel and particle by particle, by the tilt that measures it; at Nyquist under any of its signs."""
    rotations = random_rotations(4, generator=torch.Generator().manual_seed(0)).double()
    tilts = [MissingWedge(-60, 60), MissingWedge(-50, 30, "x"), MissingWedge(10, 80), MissingWedge(-90, 90)]
    expected = torch.zeros(shape[0], shape[1], shape[2] // 2 + 1, dtype=torch.float64)
    axes = [torch.fft.fftfreq(n).tolist() for n in shape[:2]] + [torch.fft.rfftfreq(shape[2]).tolist()]
    for place in itertools.product(*map(range, expected.shape)):
        at = [axis[i] for axis, i in zip(axes, place, strict=True)]
        signs = list(itertools.product(*((v, -v) if abs(v) == 0.5 else (v,) for v in at)))
        for R, wedge in zip(rotations, tilts, strict=True):
            for z, y, x in signs:
                px, py, pz = (R @ torch.tensor([x, y, z], dtype=torch.float64)).tolist()
                angle = math.degrees(math.atan2(pz, px) if wedge.tilt_axis == "y" else math.atan2(-pz, py))
                turns = (angle - 180, angle, angle + 180)
                if x == y == z == 0 or any(wedge.tilt_min <= a <= wedge.tilt_max for a in turns):
                    expected[place] += 1
                    break
    assert torch.equal(coverage_from_tilts(rotations, tilts, shape), expected)


@pytest.mark.parametrize("tilts", [MissingWedge(-60, 60), MissingWedge(-50, 40, "x"), MissingWedge(-45, 45)])
@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 6, 9)])
def test_one_particle_that_is_not_turned_has_the_plain_wedge(shape, tilts):
    assert torch.equal(coverage_from_tilts(torch.eye(3)[None], tilts, shape), tilts.transfer(shape))


def test_a_particle_that_is_tilted_already_is_measured_at_other_tilts():
    turned = rotation_about_y(20)
    found = coverage_from_tilts(turned[None], MissingWedge(-60, 60), (9, 9, 9))
    assert torch.equal(found, MissingWedge(-40, 80).transfer((9, 9, 9)))


def rotation_about_y(degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)


def test_particles_of_all_orientations_measure_everything():
    views = random_rotations(500, generator=torch.Generator().manual_seed(0))
    coverage = coverage_from_tilts(views, MissingWedge(-60, 60), (15, 15, 15)) / 500
    assert coverage.min() > 0.55
    assert abs(float(coverage.mean()) - 2 / 3) < 0.03
    same = coverage_from_tilts(torch.eye(3).expand(500, 3, 3), MissingWedge(-60, 60), (15, 15, 15)) / 500
    assert same.min() == 0


def test_an_average_says_what_all_its_subtomograms_say():
    """Log p of the subtomograms, each turned and within its own wedge, against that of their average."""
    side, sigma = 7, 0.3
    shape, tilts = (side, side, side), [MissingWedge(-40, 40), MissingWedge(-30, 40), MissingWedge(-40, 20, "x")]
    generator = torch.Generator().manual_seed(0)
    # Quarter turns, which need no interpolation: about x, about z, about both.
    about_x = torch.tensor([[1, 0, 0], [0, 0, -1], [0, 1, 0]])
    about_z = torch.tensor([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    rotations = torch.stack([about_x, about_z, about_x @ about_z])
    grid = torch.meshgrid(*[torch.arange(side) - side // 2] * 3, indexing="ij")
    p = torch.stack(grid[::-1])  # x, y, z of every voxel

    def turned(x, R):
        """The density at R⁻¹ p for every voxel p of the tomogram."""
        i, j, k = (torch.einsum("ij,jzyx->izyx", R.T, p) + side // 2).flip(0)
        return x[i, j, k]

    truth = torch.randn(shape, generator=generator, dtype=torch.float64)
    data = [
        wedge(turned(truth, R) + sigma * torch.randn(shape, generator=generator, dtype=torch.float64))
        for R, wedge in zip(rotations, tilts, strict=True)
    ]
    each = [gaussian_likelihood(wedge, WhiteNoise(sigma), y) for wedge, y in zip(tilts, data, strict=True)]
    coverage = coverage_from_tilts(rotations.double(), tilts, shape)
    added = sum(turned(y, R.T) for y, R in zip(data, rotations, strict=True))
    average = torch.fft.irfftn(torch.fft.rfftn(added) / coverage.clamp(min=1), s=shape)
    noise = CoverageNoise(torch.full((2,), sigma**2, dtype=torch.float64), coverage, shape)
    together = gaussian_likelihood(noise.measured, noise, average)

    x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    apart = reduce(operator.add, (one.log_prob(turned(x, R)) for one, R in zip(each, rotations, strict=True)))
    (expected,) = torch.autograd.grad(apart, x)
    (found,) = torch.autograd.grad(together.log_prob(x), x)
    torch.testing.assert_close(found, expected)
    assert 0 < float((coverage == 0).double().mean()) < 0.2
    assert len(coverage.unique()) == 4


def test_noise_of_half_maps_is_found_where_it_is():
    """Views near one axis: along it little is measured, and the noise is as much stronger."""
    side, generator = 24, torch.Generator().manual_seed(0)
    shape = (side, side, side)
    tilts = random_rotations(2000, generator=generator)
    coverage = coverage_from_poses(tilts[tilts[:, 2, 2].abs() > 0.7], side)
    assert coverage[0, 4, 4] > 2 * coverage[6, 0, 0]
    coverage = coverage + 1e-3  # corners too
    true = CoverageNoise(torch.linspace(3, 1, 13), coverage, shape, least=1e-3)
    halves = [true.sample(torch.zeros(shape, dtype=torch.float32), generator=generator) for _ in range(2)]
    found = CoverageNoise.from_half_maps(*halves, coverage, least=1e-3)
    ratio = found.radial_power / true.radial_power
    assert (ratio[4:] - 1).abs().max() < 0.25
    with pytest.raises(NoiseError, match="below least over a whole shell"):
        CoverageNoise.from_half_maps(*halves, coverage, least=1e6)


def test_what_was_not_measured_is_not_used():
    side = 8
    noise = CoverageNoise(torch.ones(2), coverage_from_poses(torch.eye(3).expand(4, 3, 3), side), (side,) * 3)
    y = torch.randn(side, side, side, generator=torch.Generator().manual_seed(0))
    likelihood = gaussian_likelihood(noise.measured, noise, y)
    assert isinstance(likelihood, FourierDiagonal)
    W = likelihood.spectral_precision()
    assert ((W > 0) == (noise.coverage >= 1)).all()
    assert not W[1:].any()  # views along z tell kz = 0 alone
    torch.testing.assert_close(likelihood.spectral_data()[0, 0, :3], rfft(y)[0, 0, :3])


@pytest.mark.slow
def test_the_contract_of_a_noise():
    coverage = coverage_from_poses(random_rotations(200, generator=torch.Generator().manual_seed(0)).double(), 8)
    check_noise(CoverageNoise(torch.tensor([2.0, 1.0]), coverage, (8, 8, 8)), shapes=[(8, 8, 8)])


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="one or more rotations"):
        coverage_from_poses(torch.zeros(0, 3, 3), 8)
    with pytest.raises(GeometryError, match="3 rotations and 2 tilt ranges"):
        coverage_from_tilts(torch.eye(3).expand(3, 3, 3), [MissingWedge(-60, 60)] * 2, (8, 8, 8))
    with pytest.raises(GeometryError, match="soft edges do not tell"):
        coverage_from_tilts(torch.eye(3)[None], MissingWedge(-60, 60, edge_deg=5), (8, 8, 8))
    with pytest.raises(NoiseError, match="on the half grid"):
        CoverageNoise(torch.ones(2), torch.ones(8, 8, 8), (8, 8, 8))
    with pytest.raises(NoiseError, match="for a box"):
        CoverageNoise(torch.ones(2), torch.ones(8, 8, 5), (8, 8, 8)).power((6, 6, 6))
