"""The field on spheres beside the dense evidence, torch's own normal densities, and scipy's special functions."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y, spherical_jn

from cryofm_ops import pose_difference_deg, pose_log_evidence, random_rotations, rotation_from_vector, sample_poses
from cryofm_ops.poses import field_sampling
from cryofm_ops.poses.common_lines import polar_transform
from cryofm_ops.poses.evidence import _ball
from cryofm_ops.poses.field import _radial, _spherical_bessel, harmonics
from cryofm_ops.poses.field_sampling import _complex, _Predicted, _Seen, _State, _turned, drawn_from_field

N, DIAMETER, RADIUS = 32, 24.0, 5
GRID = torch.tensor([[0.0, 0.0], [0.5, -0.5], [-1.0, 0.5]])


def views(count, seed=0):
    return random_rotations(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(rotations, noise=0.3, group=None):
    """Of Gaussians in a ball of 9 pixels."""
    generator = torch.Generator().manual_seed(3)
    atoms = torch.nn.functional.normalize(torch.randn(20, 3, generator=generator), dim=-1)
    atoms = (9 * torch.rand(20, 1, generator=generator) ** (1 / 3) * atoms).double()
    if group is not None:
        atoms = (atoms @ group.mT).flatten(0, 1)
    pixels = torch.arange(N) - N // 2
    seen = (atoms @ rotations.mT)[..., :2]
    x, y = (torch.exp(-((pixels - seen[..., i, None]) ** 2) / 4.5) for i in (0, 1))
    made = torch.einsum("kay,kax->kyx", y, x)
    return made + noise * made.std() * torch.randn(made.shape, generator=generator).double()


def seen_of(made, alpha=0.02, noise=None, transfer=None, group=None):
    noise = torch.full((len(made), RADIUS), 1000.0).double() if noise is None else noise
    transfer = torch.ones_like(noise) if transfer is None else transfer
    lines = polar_transform(made, field_sampling._ANGLES, RADIUS)
    return _Seen.of(lines, noise, transfer, alpha, GRID.double(), N, DIAMETER, group), noise, transfer


def log_evidence(seen, rotations, at):
    state = _State.of(seen, rotations, at)
    total = 0
    for A, y in zip(state.A, state.y, strict=True):
        A, y = torch.cat(A), torch.cat(y)
        covariance = torch.eye(len(A)).double() + A @ A.mT
        total = total + torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)
        total = total + y.square().sum() / 2
    return float(total)


def test_harmonics_are_those_of_scipy():
    u = torch.nn.functional.normalize(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double(), dim=-1)
    theta, phi = u[:, 2].acos(), torch.atan2(u[:, 1], u[:, 0])
    made = harmonics(u, 7)
    for l in range(8):
        for m in range(-l, l + 1):
            Y = torch.as_tensor(sph_harm_y(l, abs(m), theta.numpy(), phi.numpy())) * (-1) ** m
            expected = Y.real if m == 0 else math.sqrt(2) * (Y.real if m > 0 else Y.imag)
            torch.testing.assert_close(made[:, l * l + l + m], expected)


def test_spherical_bessel_functions_are_those_of_scipy():
    x = torch.linspace(0.2, 30, 80).double()
    for l, j in enumerate(_spherical_bessel(20, x)):
        torch.testing.assert_close(j, torch.as_tensor(spherical_jn(l, x.numpy())), atol=1e-12, rtol=0)


def test_degrees_add_up_to_the_kernel_of_the_ball():
    kappa, degree = math.pi * DIAMETER / N, 24
    u = torch.nn.functional.normalize(torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double(), dim=-1)
    w, Y = _radial(degree, 6, kappa), harmonics(u, degree)
    found = sum(w[l, 1, 4] * (Y[0] * Y[1])[l * l : (l + 1) ** 2].sum() for l in range(degree + 1))
    assert float(found) == pytest.approx(float(_ball(kappa * (2 * u[0] - 5 * u[1]).norm())), abs=1e-9)


@pytest.mark.parametrize("name", ["C1", "C2", "D3"])
@pytest.mark.parametrize("each", [False, True])
def test_field_is_the_evidence(monkeypatch, name, each):
    """But for the grid: rings for the squares' frequencies. With noise and transfer of each image, too."""
    monkeypatch.setattr("cryofm_ops.poses.field._KEPT_OF_FIELD", 1e-3)
    monkeypatch.setattr("cryofm_ops.poses.field._KEPT_OF_IMAGE", 1e-3)
    group = None if name == "C1" else torch.from_numpy(Rotation.create_group(name).as_matrix())
    R = views(5)
    made = images(R, group=group)
    noise, transfer = torch.full((5, RADIUS), 1000.0).double(), torch.ones(5, RADIUS).double()
    if each:
        noise, transfer = noise * torch.linspace(0.5, 2, 5).double()[:, None], torch.linspace(0.8, 1.2, 25).double()
        transfer = transfer.reshape(5, RADIUS)
    seen, noise, transfer = seen_of(made, noise=noise, transfer=transfer, group=group)
    at = torch.tensor([0, 1, 2, 0, 1])
    others = [
        R,
        *(views(5, s) for s in (1, 2)),
        rotation_from_vector(torch.full((5, 1), 8.0).double() * torch.eye(3)[0]) @ R,
    ]
    found = torch.tensor([log_evidence(seen, r, at) for r in others]).double()
    expected = pose_log_evidence(
        made,
        torch.stack(others),
        GRID[at].double().expand(len(others), -1, -1),
        diameter_px=DIAMETER,
        noise=noise,
        transfer=transfer,
        symmetry=group,
    )
    assert float((expected[0] - expected).abs().max()) > 40
    torch.testing.assert_close(found - found[0], expected - expected[0], rtol=0.15, atol=8.0)


@pytest.mark.parametrize("k", [0, 3])
def test_what_is_predicted_is_the_difference_of_two_evidences(k):
    """log p(image | others, pose), whatever plane, angle, side and shift, is log p(all) but for one constant."""
    R, at = views(5), torch.tensor([0, 1, 2, 0, 1])
    seen, *_ = seen_of(images(R))
    state = _State.of(seen, R, at)
    frames = views(3, 7)
    A = seen.field.slices(seen.field.planes(frames), k)
    at_shift = 2
    z = [half[k][at_shift] for half in seen.z]
    turned = [_turned(one, seen.field.kept[h][k].m) for h, one in enumerate(z)]
    weight = sum(_Predicted.of(state.A[h], state.y[h], k, A[h]).log_prob(turned[h].flatten(0, 1)) for h in (0, 1))
    weight = weight + sum(y[0, 0].square().sum() for y in turned) / 2
    found, expected = [], []
    for plane, side, turn in [(0, 0, 0), (1, 0, 17), (2, 1, 5), (0, 1, 60)]:
        psi = torch.tensor(2 * math.pi / field_sampling._TURNS * turn).double()
        spin = torch.tensor([[psi.cos(), -psi.sin(), 0], [psi.sin(), psi.cos(), 0], [0, 0, 1]]).double()
        flip = torch.diag(torch.tensor(field_sampling._OTHER_SIDE)).double() if side else torch.eye(3).double()
        moved, shifted = R.clone(), at.clone()
        moved[k], shifted[k] = spin @ flip @ frames[plane], at_shift
        found.append(float(weight[plane, side * field_sampling._TURNS + turn]))
        expected.append(log_evidence(seen, moved, shifted))
    difference = torch.tensor([a - b for a, b in zip(found, expected, strict=True)])
    torch.testing.assert_close(difference, difference[:1].expand(4), atol=1e-4, rtol=0)
    assert max(expected) - min(expected) > 10
    torch.testing.assert_close(_complex(state.y[0][k]), seen.z[0][k][at[k]])


def test_images_that_are_misplaced_are_placed():
    """Three of eight, from anywhere; the others at their true poses."""
    R = views(8, 2).float()
    made = images(R.double(), noise=0.5).float()
    start = R.clone()
    start[:3] = views(3, 9).float()
    noise = torch.full((8, 6), float(0.25 * images(R.double(), noise=0).var()) * N**2)
    known = {"diameter_px": DIAMETER, "noise": noise, "transfer": torch.ones(8, 6), "max_shift_px": 1.0}
    found, shifts = drawn_from_field(
        made, start[None], torch.zeros(1, 8, 2), streams=[torch.Generator().manual_seed(0)], **known
    )
    assert pose_difference_deg(R[:3], start[:3]) > 20
    off = found[0] @ (R[5].mT @ found[0, 5]).mT @ R.mT
    angle = ((off.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1).acos().rad2deg()
    assert float(angle.max()) < 25
    assert float(shifts.abs().max()) <= 1.0
    again, _ = drawn_from_field(
        made,
        torch.stack((views(8, 4).float(), start)),
        torch.zeros(2, 8, 2),
        streams=[torch.Generator().manual_seed(s) for s in (5, 0)],
        **known,
    )
    torch.testing.assert_close(again[1], found[0])  # chains do not depend on others


@pytest.mark.slow
def test_poses_from_the_field_are_as_likely_or_more():
    """Of twelve noisy images, two of which are placed among the others; where common lines tell it is not asked."""
    R = views(12, 2)
    made = images(R, noise=1.0).float()
    sigma2 = float(images(R, noise=0.0).var())
    known = {"chains": 3, "diameter_px": DIAMETER, "noise": torch.full((10,), sigma2 * N**2)}
    lines, field = (
        sample_poses(made, generator=torch.Generator().manual_seed(1), from_field=from_field, **known)
        for from_field in (False, True)
    )
    assert float(field.log_evidence[0]) > float(lines.log_evidence[0]) + 5
    assert pose_difference_deg(R.float(), field.rotations[0]) < pose_difference_deg(R.float(), lines.rotations[0])
    clean = images(R[:6], noise=0.0).float()
    known = known | {"noise": torch.zeros(10)}
    lines, field = (
        sample_poses(clean, generator=torch.Generator().manual_seed(1), from_field=from_field, **known)
        for from_field in (False, True)
    )
    torch.testing.assert_close(field.rotations, lines.rotations, rtol=0, atol=0)
