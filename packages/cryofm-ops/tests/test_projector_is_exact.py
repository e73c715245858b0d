import itertools
import math

import attrs
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryofm_ops import (
    FourierProjector,
    GeometryError,
    GridMismatchError,
    LinearOperator,
    Projector,
    random_rotations,
    rotation_from_relion,
    rotation_from_vector,
)
from cryofm_ops.operators import projector

BOTH = pytest.mark.parametrize("kind", [Projector, FourierProjector])
SHAPES = pytest.mark.parametrize("shape", [(4, 4, 4), (5, 5, 5), (3, 4, 5), (5, 4, 3)], ids=str)
F64 = torch.float64


@attrs.frozen(eq=False)
class Filter:
    """A Hermitian filter for every image: a phase ramp where no frequency is its own mate, times a gain."""

    gains: torch.Tensor

    def transfer(self, shape, /):
        _, y, x = shape
        k = torch.fft.fftfreq(y)[:, None] + torch.fft.rfftfreq(x)
        mates = torch.zeros(y, x // 2 + 1, dtype=torch.bool)
        mates[[y // 2] * (1 - y % 2), :] = True
        mates[:, [x // 2] * (1 - x % 2)] = True
        return torch.where(mates, 1, torch.exp(2j * math.pi * 0.3 * k)) * self.gains[:, None, None, None]


def draw(*shape, dtype=F64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def poses(*batch, seed=0, shift=0.8):
    rotations = random_rotations(math.prod(batch), generator=torch.Generator().manual_seed(seed), dtype=F64)
    return rotations.reshape(*batch, 3, 3), draw(*batch, 2, seed=seed + 1) * shift


def gaussians(shape, rotations, shifts, sigma=1.5, n=20):
    """A sum of Gaussians off every symmetry, and its exact projections."""
    side = min(shape)
    centres = draw(n, 3, seed=5) * side / 8
    centres *= (0.3 * side / centres.norm(dim=-1, keepdim=True)).clamp(max=1)
    heights = 0.5 + torch.arange(n, dtype=F64) / n

    def line(size, at):
        return torch.exp(-((torch.arange(size, dtype=F64) - size // 2 - at[:, None]) ** 2) / (2 * sigma**2))

    z, y, x = (line(size, centres[:, 2 - axis]) for axis, size in enumerate(shape))
    volume = torch.einsum("n,nz,ny,nx->zyx", heights, z, y, x)
    p = torch.einsum("kij,nj->kni", rotations, centres) - torch.nn.functional.pad(shifts, (0, 1))[:, None]
    height = heights * math.sqrt(2 * math.pi) * sigma
    images = [torch.einsum("n,ny,nx->yx", height, line(shape[1], q[:, 1]), line(shape[2], q[:, 0])) for q in p]
    return volume, torch.stack(images)


@BOTH
@SHAPES
@pytest.mark.parametrize("with_ctf", [False, True])
@pytest.mark.slow
def test_adjoint_is_the_transposed_matrix(kind, shape, with_ctf):
    a = kind(*poses(3), shape, Filter(torch.tensor([1.0, 0.5, -2.0])) if with_ctf else None)
    n, m = math.prod(shape), 3 * math.prod(shape[1:])
    forward = a(torch.eye(n, dtype=F64).reshape(n, *shape)).reshape(n, m).T
    back = a.adjoint(torch.eye(m, dtype=F64).reshape(m, 3, *shape[1:])).reshape(m, n).T
    assert forward.abs().max() > 0.1
    torch.testing.assert_close(back, forward.T, atol=1e-12, rtol=0)
    x = draw(*shape)
    torch.testing.assert_close(a(x).flatten(), forward @ x.flatten())
    assert isinstance(a, LinearOperator)


@pytest.mark.slow
def test_real_space_projection_equals_a_loop_over_rays():
    shape, (rotations, shifts) = (3, 4, 5), poses(2)
    x = draw(*shape)
    expected = torch.zeros(2, 4, 5, dtype=F64)
    for k, j, i in itertools.product(range(2), range(4), range(5)):
        for depth in range(-9, 10):
            p = torch.tensor([i - 2 + shifts[k, 0], j - 2 + shifts[k, 1], depth], dtype=F64)
            q = (rotations[k].T @ p + torch.tensor([2.0, 2.0, 1.0], dtype=F64)).tolist()[::-1]
            for v in itertools.product(*map(range, shape)):
                expected[k, j, i] += x[v] * math.prod(max(0, 1 - abs(a - b)) for a, b in zip(q, v, strict=True))
    torch.testing.assert_close(Projector(rotations, shifts, shape)(x), expected)


def test_fourier_projection_equals_the_central_slices_of_the_dft():
    """Σ x exp(−2πi k·(R v + …)) over voxels and in-band frequencies of the image plane, one by one."""
    shape, (rotations, shifts) = (3, 4, 5), poses(2)
    x = draw(*shape)
    a = FourierProjector(rotations, shifts, shape, padding=4)
    ny = nx = 2 * math.ceil(math.hypot(*shape) / 2) + 1  # odd, and no narrower than the volume seen from anywhere
    v = torch.tensor([[i - 2, j - 2, k - 1] for k, j, i in itertools.product(*map(range, shape))], dtype=F64)
    expected = torch.zeros(2, 4, 5, dtype=torch.complex128)
    for n, ky, kx in itertools.product(range(2), range(-(ny // 2), ny // 2 + 1), range(-(nx // 2), nx // 2 + 1)):
        f = torch.tensor([kx / nx, ky / ny, 0.0], dtype=F64)
        k = rotations[n].T @ f
        if k.abs().max() <= 0.5:
            slice_ = (x.flatten() * torch.exp(-2j * math.pi * (v @ k))).sum() * torch.exp(
                2j * math.pi * (f[:2] @ shifts[n])
            )
            wave = (torch.arange(4)[:, None] - 2) * ky / ny + (torch.arange(5) - 2) * kx / nx
            expected[n] += slice_ * torch.exp(2j * math.pi * wave) / (ny * nx)
    assert expected.imag.abs().max() < 1e-12
    error = (a(x) - expected.real).norm() / expected.real.norm()
    assert error < 5e-4


@pytest.mark.parametrize("shape", [(32, 32, 32), (33, 33, 33), (28, 33, 40)], ids=str)
def test_fourier_projection_of_gaussians_is_within_a_tenth_of_a_percent(shape):
    pose = poses(6, shift=2.0)
    volume, images = gaussians(shape, *pose)
    for dtype in (torch.float32, F64):
        found = FourierProjector(*pose, shape)(volume.to(dtype))
        assert found.dtype == dtype
        assert ((found - images).flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)).max() < 1e-3


@pytest.mark.parametrize("shape", [(24, 24, 24), (25, 25, 25), (20, 25, 30)], ids=str)
def test_real_space_projection_of_gaussians_is_blurred_by_a_few_percent(shape):
    pose = poses(4, shift=2.0)
    volume, images = gaussians(shape, *pose, sigma=2.0)
    assert (Projector(*pose, shape)(volume) - images).norm() / images.norm() < 0.04


@SHAPES
def test_the_identity_sums_over_z(shape):
    x = draw(2, *shape, dtype=torch.float32)
    pose = torch.eye(3)[None], torch.zeros(1, 2)
    torch.testing.assert_close(Projector(*pose, shape)(x), x.sum(-3, keepdim=True), atol=2e-6, rtol=0)
    error = FourierProjector(*pose, shape)(x) - x.sum(-3, keepdim=True)
    assert error.norm() < 2e-3 * x.sum(-3).norm()


@BOTH
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quarter_turns_are_transpositions(kind, axis):
    x = draw(7, 7, 7)
    turn = Rotation.from_rotvec([90 * (axis == a) for a in range(3)], degrees=True).as_matrix()
    dims = {0: (-2, -3), 1: (-3, -1), 2: (-1, -2)}[axis]  # from y to z, z to x, x to y
    expected = torch.rot90(x, 1, dims).sum(-3)
    found = kind(torch.tensor(turn.round())[None], torch.zeros(1, 2), (7, 7, 7))(x)[0]
    tolerance = 1e-12 if kind is Projector else 2e-3 * float(expected.norm())
    assert (found - expected).norm() < tolerance


@BOTH
def test_a_point_goes_where_relions_angles_send_it(kind):
    """p = R v − s: the centre of mass of a blob, from scipy's matrix."""
    angles, v, shift = (35.0, 50.0, -20.0), torch.tensor([3.0, -4.0, 2.0], dtype=F64), torch.tensor([1.5, -0.5])
    box = torch.stack(torch.meshgrid(*[torch.arange(24) - 12] * 3, indexing="ij")).to(F64)
    blob = torch.exp(-((box - v.flip(0)[:, None, None, None]) ** 2).sum(0) / 8)
    r = torch.tensor(Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix().T)
    image = kind(rotation_from_relion(torch.tensor(angles))[None], shift[None], (24, 24, 24))(blob)[0]
    at = [(image * axis).sum() / image.sum() for axis in box[1:, 0].flip(0)]
    torch.testing.assert_close(torch.stack(at), (r @ v)[:2] - shift, atol=0.01, rtol=0)


@BOTH
@pytest.mark.slow
def test_what_leaves_the_image_does_not_come_back(kind):
    """A volume of ones seen along its diagonal overhangs the image; moved almost out, nothing enters opposite."""
    shape = (16, 16, 16)
    diagonal = rotation_from_vector(torch.tensor([[0.0, 54.7356, 0.0]])) @ rotation_from_vector(
        torch.tensor([[0.0, 0.0, 45.0]])
    )
    box = torch.stack(torch.meshgrid(*[torch.arange(16) - 8] * 3, indexing="ij")).float()
    corners = sum(
        torch.exp(-((box - c) ** 2).sum(0) / 3)
        for c in 5.5 * torch.tensor(list(itertools.product((-1, 1), repeat=3)))[..., None, None, None]
    )
    for shift in ([0.0, 0.0], [12.0, 0.0], [0.0, -12.0], [-20.0, 3.0]):
        wide = torch.nn.functional.pad(corners, [24] * 6)
        pose = diagonal, torch.tensor([shift])
        expected = kind(*pose, wide.shape)(wide)[..., 24:-24, 24:-24]
        assert (kind(*pose, shape)(corners) - expected).abs().max() < 5e-3 * corners.sum(0).max()


@BOTH
@pytest.mark.parametrize(
    ("of_x", "of_poses"), [((), (1,)), ((), (3,)), ((2,), (3,)), ((2, 3), (1,)), ((2, 3), (3, 2)), ((2, 3), (2, 1, 2))]
)
def test_every_volume_of_a_batch_has_its_poses(kind, of_x, of_poses, monkeypatch):
    monkeypatch.setattr(projector, "_POINTS", 100)  # pose after pose, slab after slab
    shape, k = (4, 3, 5), of_poses[-1]
    rotations, shifts = poses(*of_poses)
    x = draw(*of_x, *shape)
    a = kind(rotations, shifts, shape)
    y, batch = a(x), torch.broadcast_shapes(of_x, of_poses[:-1])
    assert y.shape == (*batch, k, 3, 5)
    back = a.adjoint(y)
    assert back.shape == (*batch, *shape)
    monkeypatch.undo()
    xs, rs, ss = x.expand(*batch, *shape), rotations.expand(*batch, k, 3, 3), shifts.expand(*batch, k, 2)
    for i in itertools.product(*map(range, batch)):
        one = kind(rs[i], ss[i], shape)
        torch.testing.assert_close(y[i], one(xs[i]))
        torch.testing.assert_close(back[i], one.adjoint(y[i]))
        torch.testing.assert_close(y[i][:1], kind(rs[i][:1], ss[i][:1], shape)(xs[i]))  # whatever else is projected


@BOTH
@pytest.mark.slow
def test_derivatives_in_volume_images_rotations_and_shifts(kind):
    shape, (rotations, shifts) = (3, 4, 3), poses(2)
    x, y = draw(*shape).requires_grad_(), draw(2, 4, 3).requires_grad_()
    turn, shifts = torch.zeros(2, 3, dtype=F64, requires_grad=True), shifts.requires_grad_()

    def at(turn, shifts):
        return kind(rotation_from_vector(turn) @ rotations, shifts, shape)

    assert torch.autograd.gradcheck(lambda x, t, s: at(t, s)(x), (x, turn, shifts))
    assert torch.autograd.gradcheck(lambda y, t, s: at(t, s).adjoint(y), (y, turn, shifts))
    assert torch.autograd.gradgradcheck(lambda x, t, s: at(t, s)(x), (x, turn, shifts), fast_mode=True)


def test_bad_geometry_is_named():
    eye, zero, shape = torch.eye(3)[None], torch.zeros(1, 2), (4, 4, 4)
    with pytest.raises(GeometryError, match=r"index \(0,\) is none"):
        Projector(2 * eye, zero, shape)
    with pytest.raises(GeometryError, match=r"got shapes \(3, 3\) and \(1, 2\)"):
        Projector(eye[0], zero, shape)
    with pytest.raises(GeometryError, match=r"got shapes \(1, 3, 3\) and \(2, 2\)"):
        Projector(eye, zero.expand(2, 2), shape)
    with pytest.raises(GeometryError, match=r"shift 99.0 px at index \(0, 1\)"):
        Projector(eye, torch.tensor([[0.0, 99.0]]), shape)
    with pytest.raises(GeometryError, match="shift nan px"):
        FourierProjector(eye, zero + torch.nan, shape)
    with pytest.raises(GeometryError, match=r"got \(4, 4\)"):
        Projector(eye, zero, (4, 4))
    with pytest.raises(GeometryError, match="padding must be between 1 and 8"):
        FourierProjector(eye, zero, shape, padding=0.5)
    with pytest.raises(GridMismatchError, match=r"box \(4, 4, 4\), got a volume of shape \(4, 4, 5\)"):
        Projector(eye, zero, shape)(torch.zeros(4, 4, 5))
    with pytest.raises(GridMismatchError, match=r"makes images \(1, 4, 4\), got a tensor of shape \(2, 4, 4\)"):
        Projector(eye, zero, shape).adjoint(torch.zeros(2, 4, 4))
    with pytest.raises(GeometryError, match=r"do not broadcast against the batch \(3,\)"):
        Projector(eye.expand(2, 1, 3, 3), zero, shape)(torch.zeros(3, 4, 4, 4))


@BOTH
@pytest.mark.slow
def test_every_transform_of_torch_func_goes_through(kind, monkeypatch):
    shape = (4, 5, 3)
    project = kind(*poses(2), shape)
    x, z, y = draw(*shape), draw(*shape, seed=1), draw(2, *shape[1:], seed=2)

    def misfit(x):
        return (project(x) - y).square().sum()

    for points in (projector._POINTS, 50):  # at once, and in pieces that would be sampled again
        monkeypatch.setattr(projector, "_POINTS", points)
        gradient = 2 * project.adjoint(project(x) - y)
        expected = {
            "grad": (torch.func.grad(misfit)(x), gradient),
            "vjp": (torch.func.vjp(project, x)[1](y)[0], project.adjoint(y)),
            "jvp": (torch.func.jvp(project, (x,), (z,))[1], project(z)),
            "jvp of the adjoint": (torch.func.jvp(project.adjoint, (y,), (2 * y,))[1], project.adjoint(2 * y)),
            "vmap": (torch.func.vmap(project)(torch.stack([x, z])), project(torch.stack([x, z]))),
            "vmap of grad": (torch.func.vmap(torch.func.grad(misfit))(torch.stack([z, x]))[1], gradient),
            "jvp of grad": (
                torch.func.jvp(torch.func.grad(misfit), (x,), (z,))[1],
                2 * project.adjoint(project(z)),
            ),
        }
        for name, (found, wanted) in expected.items():
            torch.testing.assert_close(found, wanted, msg=lambda text, name=name: f"{name}: {text}")


def test_rotations_have_a_jvp_that_is_their_gradient():
    vectors, shifts = draw(2, 3), draw(2, 2)
    x, y = draw(4, 4, 4), draw(2, 4, 4, seed=3)

    def misfit(vectors):
        return (Projector(rotation_from_vector(vectors), shifts, (4, 4, 4))(x) * y).sum()

    along = draw(2, 3, seed=4)
    _, slope = torch.func.jvp(misfit, (vectors,), (along,))
    torch.testing.assert_close(slope, (torch.func.grad(misfit)(vectors) * along).sum())
