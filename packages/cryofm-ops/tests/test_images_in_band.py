"""Slices of a band against projections, and conditioning against dense matrices."""

import attrs
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryofm_ops import (
    CTF,
    FourierProjector,
    FourierSlices,
    GeometryError,
    ImagesInBand,
    ObservationError,
    angular_distance_deg,
    random_rotations,
    rotation_from_vector,
)
from cryofm_ops.poses._central_slices import band

N = 20


def poses(chains, images, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rotations = random_rotations(chains * images, generator=generator, dtype=torch.float64)
    shifts = torch.randn(chains, images, 2, generator=generator, dtype=torch.float64)
    return rotations.reshape(chains, images, 3, 3), shifts


def smooth(n=N, seed=1):
    """A sum of Gaussians in the middle of a cube."""
    centres = 1.5 * torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    i = torch.arange(n) - n // 2
    x, y, z = (torch.exp(-((i - centres[:, a, None]) ** 2) / 2) for a in range(3))
    return torch.einsum("az,ay,ax->zyx", z, y, x)


def operator(chains=2, images=3, radius=4, ctf=None):
    return FourierSlices(*poses(chains, images), band(radius, torch.device("cpu")).double(), N, ctf)


def microscope(images):
    """Transfers that have crossed zero before the band ends, and astigmatism."""
    defocus = 4e4 + 1e4 * torch.arange(images)
    return CTF(
        defocus_u_angstrom=defocus, defocus_v_angstrom=0.9 * defocus, defocus_angle_deg=30.0, voxel_size_angstrom=5.0
    )


@pytest.mark.parametrize("ctf", [None, torch.linspace(-1, 1, 3 * 24).reshape(3, 24)])
def test_adjoint_is_the_transpose(ctf):
    A, generator = operator(ctf=ctf), torch.Generator().manual_seed(2)
    x = torch.randn(2, N, N, N, generator=generator, dtype=torch.float64)
    y = torch.randn(A(x).shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close((A(x) * y).sum(), (x * A.adjoint(y)).sum())


def test_slices_are_transforms_of_projections():
    A, volume = operator(), smooth()
    slices = torch.view_as_complex(A(volume.expand(2, -1, -1, -1)))
    for chain in range(2):
        images = FourierProjector(A.rotations[chain], A.shifts_px[chain], (N, N, N), padding=4)(volume)
        spectra = torch.fft.fft2(torch.fft.ifftshift(images, dim=(-2, -1)))
        kx, ky = A.k.long().unbind(-1)
        error = (slices[chain] - spectra[:, ky, kx]).norm() / spectra[:, ky, kx].norm()
        assert error < 0.02


def test_slices_with_a_ctf_are_transforms_of_projections_with_it():
    R, s = poses(1, 3)
    images = FourierProjector(R[0], s[0], (N, N, N), microscope(3), padding=4)(smooth())
    data = ImagesInBand.of(images, 6, torch.zeros(6).double(), ctf=microscope(3))
    assert (data.ctf < 0).any()
    assert (data.ctf > 0).any()
    assert data.misfit(smooth()[None], R, s) < 0.02**2
    blind = ImagesInBand.of(images, 6, torch.zeros(6).double())
    assert blind.misfit(smooth()[None], R, s) > 0.1


def likelihood(n=9, symmetry=None, ctf=None):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, n, n, generator=generator, dtype=torch.float64)
    noise = torch.tensor([3.0, 5.0], dtype=torch.float64)
    return ImagesInBand.of(images, 2, noise, model_error=0.1, symmetry=symmetry, ctf=ctf)


@pytest.mark.parametrize("ctf", [None, microscope(2)])
def test_conditioning_is_dense_gaussian_algebra(ctf):
    n = 9
    data = attrs.evolve(likelihood(ctf=ctf).at(*poses(1, 2)), tolerance=1e-9)
    mean = torch.randn(1, n, n, n, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    variance = 0.7
    A = torch.stack([data.operator(e.reshape(1, n, n, n)).flatten() for e in torch.eye(n**3).double()], -1)
    sigma = torch.diag(1 / data.noise.precision(torch.ones_like(data.observation)).flatten())
    gain = variance * A.T @ torch.linalg.inv(variance * A @ A.T + sigma)
    expected = mean.flatten() + gain @ (data.observation.flatten() - A @ mean.flatten())
    torch.testing.assert_close(data.condition(mean, variance).mean.flatten(), expected, rtol=1e-6, atol=1e-8)


def test_noise_is_that_of_its_rings_and_of_the_model():
    images = likelihood()
    ring = images.k.norm(dim=-1).round().clamp(max=2)
    for r, noise in ((1, 3.0), (2, 5.0)):
        at = ring == r
        expected = noise + 0.1 * images.spectra[:, at].abs().square().mean()
        assert images.noise[:, at] == pytest.approx(float(expected) * torch.ones(2, int(at.sum())), rel=1e-6)


def test_symmetry_is_the_same_as_its_constraint():
    """Symmetric views of each image, with noise G times as large: the mean over the group of what one would get."""
    turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    group = torch.stack((torch.eye(3, dtype=torch.float64), turn))
    mean = torch.zeros(1, 9, 9, 9, dtype=torch.float64)
    R, s = poses(1, 2)
    data = attrs.evolve(likelihood(symmetry=group).at(R, s), tolerance=1e-9)
    x = data.condition(mean, 1.0).mean
    mate = attrs.evolve(likelihood(symmetry=group).at(R @ turn, s), tolerance=1e-9).condition(mean, 1.0).mean
    torch.testing.assert_close(x, mate)
    torch.testing.assert_close(x, x.flip(-1, -2))  # the half turn about voxel n // 2


@pytest.mark.parametrize("name", ["C4", "D2", "T", "O"])
def test_symmetric_posterior_is_that_of_symmetric_volumes(name):
    """Least squares over the volumes that have the symmetry, from each image once and as it is.

    On an odd box these groups permute voxels, so such volumes are sums over orbits.
    """
    n = 9
    group = torch.from_numpy(Rotation.create_group(name).as_matrix())
    R, s = poses(1, 2)
    x = attrs.evolve(likelihood(symmetry=group).at(R, s), tolerance=1e-9).condition(
        torch.zeros(1, n, n, n).double(), 1.0
    )

    voxels = torch.cartesian_prod(*3 * [torch.arange(n)])  # (z, y, x)
    moved = ((voxels - n // 2).double().flip(-1) @ group.mT).round().long().flip(-1) + n // 2
    orbit = (moved @ torch.tensor([n * n, n, 1])).amin(0).unique(return_inverse=True)[1]  # of each voxel
    basis = torch.nn.functional.one_hot(orbit).double()  # (voxels, orbits)
    once = likelihood().at(R, s)
    images = torch.stack([once.operator(volume.reshape(1, n, n, n)).flatten() for volume in basis.mT], -1)
    precision = once.noise.precision(torch.ones_like(once.observation)).flatten()
    normal = images.mT @ (precision[:, None] * images) + basis.mT @ basis
    expected = basis @ torch.linalg.solve(normal, images.mT @ (precision * once.observation.flatten()))
    torch.testing.assert_close(x.mean.flatten(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("ctf", [None, microscope(4)])
def test_poses_move_to_where_the_images_agree(ctf):
    volume, (R, s) = smooth(16), poses(1, 4)
    images = FourierProjector(R[0], s[0], (16, 16, 16), ctf)(volume)
    data = ImagesInBand.of(images, 6, torch.zeros(6, dtype=torch.float64), ctf=ctf)
    off = rotation_from_vector(4 * torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(5)).double()) @ R
    error = torch.full_like(data.noise[0], 1e-6)
    found, shifts = data.refined(volume[None], error, off, s + 0.3, 3.0, iterations=6)
    assert float(angular_distance_deg(found, R).max()) < 0.25 * float(angular_distance_deg(off, R).mean())
    assert (shifts - s).abs().max() < 0.1
    assert data.misfit(volume[None], found, shifts) < 0.2 * data.misfit(volume[None], off, s + 0.3)


@pytest.mark.slow
def test_poses_are_drawn_as_often_as_they_are_likely():
    """The mean log likelihood and rotation of many draws, beside those of all SO(3) weighed by the likelihood."""
    n, copies, generator = 9, 2000, torch.Generator().manual_seed(8)
    volume, (R, s) = smooth(n), poses(1, 1)
    image = FourierProjector(R[0], s[0], (n, n, n), microscope(1))(volume)
    noise = torch.full((2,), 5 * float(image.square().sum()), dtype=torch.float64)
    data = ImagesInBand.of(image.expand(2, -1, -1), 2, noise, ctf=microscope(1))
    one = attrs.evolve(data, spectra=data.spectra[:1], noise=data.noise[:1], ctf=data.ctf[:1])
    many = attrs.evolve(data, **{part: getattr(one, part).expand(copies, -1) for part in ("spectra", "noise", "ctf")})

    def fit(rotations):
        shifts = s.expand(len(rotations), 1, 2)
        return one.at(rotations[:, None], shifts).log_prob(volume.expand(len(rotations), -1, -1, -1))

    everywhere = random_rotations(8000, generator=generator, dtype=torch.float64)
    log = torch.cat([fit(part) for part in everywhere.split(2000)])
    weight = log.softmax(0)
    assert 1000 < 1 / weight.square().sum() < 5000  # neither certain nor free
    drawn, shifts = many.drawn(volume[None], torch.zeros_like(one.noise[0]), s.expand(1, copies, 2), 0.0, [generator])
    assert torch.equal(shifts, torch.zeros(1, copies, 2).double())
    theirs = fit(drawn[0])
    spread = (weight @ (log - weight @ log).square()).sqrt()
    assert theirs.mean() == pytest.approx(float(weight @ log), abs=0.1 * float(spread))
    assert (drawn[0].mean(0) - torch.einsum("g,gij->ij", weight, everywhere)).abs().max() < 0.06


def test_what_is_clear_is_drawn_there():
    volume, (R, s) = smooth(16), poses(1, 5)
    images = FourierProjector(R[0], s[0], (16, 16, 16), microscope(5))(volume)
    data = ImagesInBand.of(images, 6, torch.zeros(6, dtype=torch.float64), ctf=microscope(5))
    found, shifts = data.drawn(
        volume[None], torch.zeros_like(data.noise[0]), s, 3.0, [torch.Generator().manual_seed(1)]
    )
    assert angular_distance_deg(found, R).max() < 14  # of the grid's neighbours
    assert (shifts - s).abs().max() < 0.6
    data = data.scaled(torch.tensor([7.0]))
    assert float(data.fitting_scale(volume[None], R, s)) == pytest.approx(1 / 7, rel=0.02)


def test_scaled_images_are_other_units():
    data, (R, s) = likelihood(), poses(2, 2)
    x = torch.randn(2, 9, 9, 9, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    factor = torch.tensor([2.0, 5.0], dtype=torch.float64)
    scaled = data.scaled(factor).at(R, s).log_prob(factor[:, None, None, None] * x)
    torch.testing.assert_close(scaled, data.at(R, s).log_prob(x))


@pytest.mark.parametrize(("shape", "radius"), [((2, 8, 9), 3), ((8, 8), 3), ((2, 8, 8), 4)])
def test_images_that_have_no_band(shape, radius):
    with pytest.raises(GeometryError, match="square"):
        ImagesInBand.of(torch.zeros(shape), radius, torch.zeros(radius))


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, r"images \[1\] are 0 everywhere"), (float("nan"), "the images have 1")]
)
def test_images_that_say_nothing_are_refused(value, said):
    images = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(0))
    images[1] = 0
    images[1, 5, 5] = value
    with pytest.raises(ObservationError, match=said):
        ImagesInBand.of(images, 4, torch.zeros(4))
