import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cryofm_ops import (
    GeometryError,
    angular_distance_deg,
    pose_difference_deg,
    quaternion_from_rotation,
    random_rotations,
    relion_from_rotation,
    rotation_from_quaternion,
    rotation_from_relion,
    rotation_from_vector,
    vector_from_rotation,
)
from cryofm_ops.rotations.conversions import check_rotations

AXES = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (-2 / 3, 1 / 3, 2 / 3)]
SIZES = [0.0, 1e-9, 1e-4, 0.5, 1.2, 90.0, 179.0, 180.0 - 1e-7]  # both sides of where the series take over
VECTORS = torch.tensor([[a * s for a in axis] for axis in AXES for s in SIZES], dtype=torch.float64)
PAIRS = [
    (rotation_from_relion, relion_from_rotation),
    (rotation_from_quaternion, quaternion_from_rotation),
    (rotation_from_vector, vector_from_rotation),
]


def of_scipy(rotation: Rotation) -> torch.Tensor:
    return torch.from_numpy(rotation.as_matrix().copy())


@given(st.tuples(st.floats(-180, 180), st.sampled_from([0.0, 1e-7, 45.0, 90.0, 180.0]), st.floats(-180, 180)))
@settings(max_examples=40, deadline=None)
def test_relion_angles_are_those_of_the_convention(angles):
    expected = of_scipy(Rotation.from_euler("ZYZ", angles, degrees=True)).T
    r = rotation_from_relion(torch.tensor(angles, dtype=torch.float64))
    torch.testing.assert_close(r, expected, atol=1e-14, rtol=0)
    again = relion_from_rotation(r)
    torch.testing.assert_close(rotation_from_relion(again), r, atol=1e-14, rtol=0)  # at the gimbal lock too
    assert again[1] == pytest.approx(angles[1], abs=1e-9)


def test_relion_angles_come_back():
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(2, 50, 3, generator=generator, dtype=torch.float64) * torch.tensor([360.0, 178.0, 360.0])
    angles += torch.tensor([-180.0, 1.0, -180.0])
    torch.testing.assert_close(relion_from_rotation(rotation_from_relion(angles)), angles)


@pytest.mark.parametrize("tilt", [0.0, 180.0])
def test_at_the_gimbal_lock_psi_carries_the_rotation(tilt):
    rot, found, psi = relion_from_rotation(rotation_from_relion(torch.tensor([30.0, tilt, 50.0])))
    assert float(rot) == 0
    assert float(found) == pytest.approx(tilt, abs=1e-3)
    assert float(psi) == pytest.approx(50 + 30 * math.cos(math.radians(tilt)), abs=1e-4)


def test_vectors_and_quaternions_equal_scipy():
    reference = Rotation.from_rotvec(VECTORS.numpy(), degrees=True)
    r = of_scipy(reference)
    torch.testing.assert_close(rotation_from_vector(VECTORS), r, atol=1e-14, rtol=0)
    torch.testing.assert_close(vector_from_rotation(r), VECTORS, atol=1e-6, rtol=1e-12)
    q = torch.from_numpy(reference.as_quat(canonical=True).copy())
    torch.testing.assert_close(rotation_from_quaternion(-3 * q), r, atol=1e-14, rtol=0)
    torch.testing.assert_close(quaternion_from_rotation(r), q, atol=1e-14, rtol=0)


def test_quaternions_of_half_turns():
    for axis in torch.eye(3, dtype=torch.float64):
        r = rotation_from_vector(180 * axis)
        torch.testing.assert_close(rotation_from_quaternion(quaternion_from_rotation(r)), r, atol=1e-14, rtol=0)


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_random_rotations_are_in_torch_s_default_precision(default):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        rotations = random_rotations(3, generator=torch.Generator().manual_seed(0))
    finally:
        torch.set_default_dtype(before)
    assert rotations.dtype == default
    assert random_rotations(3, generator=torch.Generator(), dtype=torch.float64).dtype == torch.float64


def test_distance_is_exact_from_0_to_180():
    a = random_rotations(len(VECTORS), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.linalg.vector_norm(VECTORS, dim=-1)
    distance = angular_distance_deg(a, a @ rotation_from_vector(VECTORS))
    torch.testing.assert_close(distance, expected, atol=1e-6, rtol=1e-9)
    assert angular_distance_deg(a[:4, None], a[None]).shape == (4, len(a))
    single = angular_distance_deg(torch.eye(3, dtype=torch.float32), rotation_from_vector(VECTORS.float()))
    torch.testing.assert_close(single, expected.float(), atol=2e-5, rtol=1e-6)


def group(name):
    return torch.from_numpy(Rotation.create_group(name).as_matrix())


@pytest.mark.parametrize("name", ["C4", "D2", "D3"])
@pytest.mark.slow
def test_pose_difference_tries_all_mates_of_all_views(name):
    """Against the plain difference from every choice of one mate for each view."""
    G = group(name)
    a, b = random_rotations(8, generator=torch.Generator().manual_seed(3), dtype=torch.float64).chunk(2)
    near = rotation_from_vector(5 * torch.randn(4, 3, generator=torch.Generator().manual_seed(4)).double()) @ a @ b[0]
    for other in (b, near, near @ G[-1]):
        choices = torch.cartesian_prod(*4 * [torch.arange(len(G))])
        expected = min(pose_difference_deg(a, other @ G[choice]) for choice in choices)
        torch.testing.assert_close(pose_difference_deg(a, other, G), expected)


@pytest.mark.parametrize("name", ["C4", "D2", "T", "O", "I"])
def test_pose_difference_knows_mates_hand_and_orientation(name):
    G = group(name)
    a = random_rotations(6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    off = rotation_from_vector(
        torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 1, 0], [0, 0, 2], [4, 0, 0], [0, 5, 0]]).double()
    )
    mates = G[torch.randint(len(G), (6,), generator=torch.Generator().manual_seed(6))]
    turn = random_rotations(1, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]).double())
    b = mirror @ (off @ a @ turn @ mates) @ mirror
    assert float(pose_difference_deg(a, b, mirror @ G @ mirror)) == pytest.approx(2.0, abs=0.01)  # the lower median
    assert pose_difference_deg(a, b) > 10


def test_random_rotations_are_uniform():
    """Haar measure: P(angle < θ) = (θ − sin θ)/π, and every column is uniform on the sphere."""
    n = 20_000
    r = random_rotations(n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    check_rotations(r)
    angles = angular_distance_deg(torch.eye(3, dtype=torch.float64), r).deg2rad().sort().values
    theory = (angles - angles.sin()) / math.pi
    empirical = torch.arange(1, n + 1) / n
    assert (theory - empirical).abs().max() < 2 / math.sqrt(n)  # Kolmogorov–Smirnov, false alarm 7e-4
    assert r.mean(0).abs().max() < 4.5 / math.sqrt(3 * n)
    torch.testing.assert_close((r[:, :, 0:1] * r[:, None, :, 0]).mean(0), torch.eye(3).double() / 3, atol=0.01, rtol=0)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: p[0].__name__)
@pytest.mark.parametrize("turn", [(0.0, 0.0, 0.0), (1e-3, -2e-3, 1e-3), (40.0, -100.0, 70.0)], ids=str)
def test_derivatives_exist_everywhere(pair, turn):
    to, back = pair
    r = rotation_from_vector(torch.tensor(turn, dtype=torch.float64))
    x = back(r).detach().requires_grad_()
    assert torch.autograd.gradcheck(to, x)
    assert torch.autograd.gradgradcheck(to, x)
    v = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    if to is rotation_from_relion and turn == (0.0, 0.0, 0.0):  # no derivative there: finite is all one can ask
        (g,) = torch.autograd.grad(back(rotation_from_vector(v) @ r).sum(), v)
        assert g.isfinite().all()
        return
    assert torch.autograd.gradcheck(lambda v: back(rotation_from_vector(v) @ r), v, eps=1e-7, atol=1e-4)


def test_distance_has_a_derivative():
    a = random_rotations(3, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: angular_distance_deg(a[:2], a[2:]), a)
    (g,) = torch.autograd.grad(angular_distance_deg(a, a.detach()).sum(), a)
    assert g.isfinite().all()


def test_what_is_no_rotation_is_named():
    with pytest.raises(GeometryError, match=r"\(rot, tilt, psi\) must be real \(..., 3\), got torch.int64"):
        rotation_from_relion(torch.tensor([1, 2, 3]))
    with pytest.raises(GeometryError, match=r"shape \(3,\)"):
        rotation_from_quaternion(torch.zeros(3))
    flipped = torch.eye(3).repeat(2, 2, 1, 1)
    flipped[1, 0, 2, 2] = -1
    with pytest.raises(GeometryError, match=r"index \(1, 0\) .* determinant -1.000"):
        check_rotations(flipped)
    with pytest.raises(GeometryError, match=r"\|R Rᵀ − 1\| = 2.1e-01"):
        check_rotations(1.1 * torch.eye(3))
    with pytest.raises(GeometryError, match="is none"):
        check_rotations(torch.full((3, 3), torch.nan))
