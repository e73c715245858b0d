import math

import pytest
import torch

from cryofm_ops import AnisotropicNoise, DirectionTable, GeometryError, alpha_from_poses, cone_alpha
from cryofm_ops.fourier.directions import directions
from cryofm_ops.rotations.conversions import random_rotations, rotation_from_relion


def poses(tilt_deg, generator, n=3000):
    """Even rot and psi; tilts drawn from normal(0, tilt_deg)."""
    angles = 360 * torch.rand(n, 3, generator=generator, dtype=torch.float64)
    angles[:, 1] = tilt_deg * torch.randn(n, generator=generator, dtype=torch.float64)
    return rotation_from_relion(angles)


def backprojected_counts(rotations, n):
    """How many slice points fall on each voxel of a Fourier grid, k in (z, y, x) order from −n // 2."""
    i = torch.arange(n, dtype=torch.float64) - n // 2
    y, x = torch.meshgrid(i, i, indexing="ij")
    plane = torch.stack([x, y, torch.zeros_like(x)], -1).flatten(0, 1)
    plane = plane[plane.norm(dim=1) < n // 2 - 1]
    points = torch.einsum("kij,pi->kpj", rotations, plane)  # Rᵀ p: view to object
    index = (points.round().long() + n // 2).flatten(0, 1)
    flat = (index[:, 2] * n + index[:, 1]) * n + index[:, 0]
    return torch.bincount(flat, minlength=n**3).reshape(n, n, n).double()


@pytest.mark.parametrize("tilt_deg", [15, 40])
@pytest.mark.slow
def test_density_is_that_of_a_backprojection(tilt_deg, generator):
    # Slices inserted point by point by the nearest voxel; counts averaged over a shell within 12° of each direction.
    n, views = 33, poses(tilt_deg, generator, n=500)
    found = alpha_from_poses(views, width_deg=3)
    counts = backprojected_counts(views, n)
    i = torch.arange(n, dtype=torch.float64) - n // 2
    k = torch.stack(torch.meshgrid(i, i, i, indexing="ij")[::-1], -1)
    length = k.norm(dim=-1)
    shell = (length > 7) & (length < 14)
    d, measured = k[shell] / length[shell][:, None], counts[shell] * length[shell]  # a plane thins as 1/|k|
    density = DirectionTable(found.alpha_variance.directions, found.density, 1.5)(d)
    cones = (found.alpha_variance.directions[::60] @ d.T).abs() >= math.cos(math.radians(12))
    in_cones = torch.stack([torch.stack([measured[c].mean(), density[c].mean()]) for c in cones])
    in_cones = in_cones / torch.stack([measured.mean(), density.mean()])
    assert in_cones[:, 0].max() > 1.5 * in_cones[:, 0].min()
    assert (in_cones[:, 0] - in_cones[:, 1]).abs().max() < 0.06 * in_cones[:, 0].max()


def test_views_along_z_fill_the_equator_only(generator):
    found = alpha_from_poses(poses(0, generator), width_deg=5)
    z = found.alpha_variance.directions[:, 2].abs()
    # A slice at the angle θ from u counts exp(−sin²θ / 2w²) over its mean, w √(π/2); here sin θ = |z|.
    w = math.radians(5)
    torch.testing.assert_close(found.density, torch.exp(-(z**2) / (2 * w**2)) / (w * math.sqrt(math.pi / 2)))
    assert torch.equal(found.capped, found.density < 0.01)
    assert found.capped[z > 0.4].all()
    assert not found.capped[z < 0.2].any()
    assert (found.alpha_variance.values[found.capped] == 100).all()
    assert alpha_from_poses(poses(0, generator), max_alpha_variance=9).alpha_variance.values.max() == 9


def test_it_is_slices_that_count_not_views(generator):
    # Views near z and few near x: along z there are many VIEWS, yet the noise is strongest there.
    found = alpha_from_poses(poses(20, generator))
    z = found.alpha_variance.directions[:, 2].abs()
    alpha = found.alpha_variance.values
    assert alpha[z > 0.9].min() > 2 * alpha[z < 0.3].max()


@pytest.mark.parametrize("n", [500, 20000])
def test_even_views_make_even_noise(n, generator):
    views = random_rotations(n, generator=generator)
    found = alpha_from_poses(views)
    assert found.density.dtype == views.dtype
    assert not found.capped.any()
    # What one slice counts, exp(−t² / 2w²) for t even in [0, 1], has this relative deviation (by quadrature):
    w = math.radians(5)
    t = torch.linspace(0, 1, 20001, dtype=torch.float64)
    kernel = torch.exp(-(t**2) / (2 * w**2))
    relative = float((kernel.square().mean() / kernel.mean() ** 2 - 1) / n) ** 0.5
    assert float(found.density.mean()) == pytest.approx(1, abs=3 / n**0.5)
    assert (found.density - 1).abs().max() < 5 * relative
    assert float((found.density - 1).square().mean()) ** 0.5 > 0.3 * relative


def test_a_pose_counts_the_same_turned_in_plane_or_mirrored(generator):
    views = poses(30, generator, n=50)
    turn = rotation_from_relion(torch.tensor([0.0, 0.0, 73.0], dtype=torch.float64))
    flip = rotation_from_relion(torch.tensor([0.0, 180.0, 0.0], dtype=torch.float64))
    for same in (turn @ views, flip @ views):
        torch.testing.assert_close(alpha_from_poses(same).density, alpha_from_poses(views).density)


def test_the_table_serves_the_noise(generator):
    noise = AnisotropicNoise(torch.ones(2, dtype=torch.float64), alpha_from_poses(poses(20, generator)).alpha_variance)
    power = noise.power((12, 12, 12))
    along = directions((12, 12, 12))[..., 2].abs()
    assert power[along > 0.95].min() > 2 * power[along < 0.3].max()
    assert (cone_alpha((0, 0, 1), 30, 0.5)(directions((12, 12, 12))[1, 0, 0]) == 1).all()


def test_impossible_poses():
    for bad in (torch.zeros(2, 3, 3), torch.eye(3), torch.ones(4, 3), torch.zeros(0, 3, 3)):
        with pytest.raises(GeometryError):
            alpha_from_poses(bad)
    with pytest.raises(GeometryError, match="width_deg must be between 3 and 30"):
        alpha_from_poses(torch.eye(3)[None], width_deg=90)
    with pytest.raises(GeometryError, match=r"max_alpha_variance above 1, got 5\.0 and 0\.5"):
        alpha_from_poses(torch.eye(3)[None], max_alpha_variance=0.5)
