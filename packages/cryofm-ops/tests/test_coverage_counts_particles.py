"""How often a Fourier voxel was measured, against slices inserted by a loop, and the noise of a reconstruction."""

import itertools
import math

import pytest
import torch

from cryofm_ops import (
    CoverageNoise,
    FourierDiagonal,
    GeometryError,
    NoiseError,
    coverage_from_poses,
    gaussian_likelihood,
    random_rotations,
    rfft,
)
from cryofm_ops.testing import check_noise


@pytest.mark.parametrize("side", [6, 7])
def test_counts_are_those_of_a_loop(side):
    rotations = random_rotations(3, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.zeros(side, side, side, dtype=torch.float64)
    last = (side - 1) // 2
    for R in rotations:
        for qx, qy in itertools.product(range(-last, last + 1), repeat=2):
            if math.hypot(qx, qy) >= side / 2:
                continue
            x, y, z = (R.T @ torch.tensor([qx, qy, 0.0], dtype=torch.float64)).tolist()
            for corner in itertools.product((0, 1), repeat=3):
                share, place = 1.0, []
                for value, one in zip((z, y, x), corner, strict=True):
                    low = math.floor(value)
                    share *= value - low if one else 1 - (value - low)
                    place.append((low + one) % side)
                expected[tuple(place)] += share
    found = coverage_from_poses(rotations, side)
    torch.testing.assert_close(found, expected[..., : side // 2 + 1], rtol=0, atol=1e-9)


def test_noise_of_half_maps_is_found_where_it_is():
    """Views near one axis: along it little is measured, and the noise is as much stronger."""
    side, generator = 24, torch.Generator().manual_seed(0)
    shape = (side, side, side)
    tilts = random_rotations(2000, generator=generator)
    coverage = coverage_from_poses(tilts[tilts[:, 2, 2].abs() > 0.7], side)
    assert coverage[0, 4, 4] > 2 * coverage[6, 0, 0]
    coverage = coverage + 1e-3  # corners too
    true = CoverageNoise(torch.linspace(3, 1, 13), coverage, shape, least=1e-3)
    halves = [true.sample(torch.zeros(shape), generator=generator) for _ in range(2)]
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


def test_the_contract_of_a_noise():
    coverage = coverage_from_poses(random_rotations(200, generator=torch.Generator().manual_seed(0)).double(), 8)
    check_noise(CoverageNoise(torch.tensor([2.0, 1.0]), coverage, (8, 8, 8)), shapes=[(8, 8, 8)])


def test_what_does_not_fit_is_refused():
    with pytest.raises(GeometryError, match="one or more rotations"):
        coverage_from_poses(torch.zeros(0, 3, 3), 8)
    with pytest.raises(NoiseError, match="on the half grid"):
        CoverageNoise(torch.ones(2), torch.ones(8, 8, 8), (8, 8, 8))
    with pytest.raises(NoiseError, match="for a box"):
        CoverageNoise(torch.ones(2), torch.ones(8, 8, 5), (8, 8, 8)).power((6, 6, 6))
