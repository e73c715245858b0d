"""Images are projections of Gaussians in closed form; densities are compared with torch's own distributions."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from cryofm_ops import (
    CommonLines,
    GeometryError,
    background_power,
    polar_transform,
    pose_difference_deg,
    pose_log_evidence,
    prepared_noise_power,
    random_rotations,
    refine_by_evidence,
    rotation_from_vector,
    sample_poses,
)
from cryofm_ops.poses._central_slices import band
from cryofm_ops.poses.common_lines import _INDEPENDENT
from cryofm_ops.poses.sampling import _SAME_LINE_DEG, _novelty

N, ANGLES, RADIUS, SIGMA = 32, 120, 10, 1.5


def atoms(seed=3):
    """Centred positions (x, y, z) in a ball of 10 pixels."""
    direction = torch.randn(30, 3, generator=torch.Generator().manual_seed(seed))
    radius = 10 * torch.rand(30, 1, generator=torch.Generator().manual_seed(seed + 1)) ** (1 / 3)
    positions = radius * direction / direction.norm(dim=-1, keepdim=True)
    return positions - positions.mean(0)


def project(positions, rotations, shifts):
    """Images of Gaussians, moved by minus the shifts."""
    seen = torch.einsum("kij,aj->kai", rotations, positions)[..., :2] - shifts[:, None]
    pixels = torch.arange(N) - N // 2
    x, y = (torch.exp(-((pixels - seen[..., i, None]) ** 2) / (2 * SIGMA**2)) for i in (0, 1))
    return torch.einsum("kay,kax->kyx", y, x)


def views(count, seed=0):
    return random_rotations(count, generator=torch.Generator().manual_seed(seed))


def compare(images, alpha=0.06, offsets=(0.0,), smooth=0.0, noise=None):
    lines = polar_transform(images, ANGLES, RADIUS)
    noise = torch.zeros(RADIUS) if noise is None else noise
    return CommonLines.of(lines, lines, N, noise, alpha, torch.tensor(offsets), smooth).table


def test_polar_transform_is_the_transform_on_its_axes():
    images = project(atoms(), views(2), torch.zeros(2, 2))
    spectra = torch.fft.fft2(torch.fft.ifftshift(images, dim=(-2, -1)))
    lines = polar_transform(images, ANGLES, RADIUS)
    r = torch.arange(1, RADIUS + 1)
    for angle, (ky, kx) in {0: (0 * r, r), 30: (r, 0 * r), 60: (0 * r, -r), 90: (-r, 0 * r)}.items():
        torch.testing.assert_close(lines[:, angle], spectra[:, ky, kx], atol=1e-3, rtol=1e-4)


def test_table_is_the_likelihood_ratio(monkeypatch):
    monkeypatch.setattr("cryofm_ops.poses.common_lines._SMOOTH_DEG", 1e-3)
    images = project(atoms(), views(3), torch.zeros(3, 2))
    images = images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    noise, alpha, offset = torch.full((RADIUS,), 0.09 * N**2), 0.3, 0.5
    found = compare(images, alpha, (-offset, 0.0, offset), noise=noise)
    lines = polar_transform(images, ANGLES, RADIUS)
    P = lines.abs().square().mean((0, 1))
    N_ = torch.minimum(noise, P)
    tau = N_ + alpha * (P - N_)

    def log_density(c, power):  # of complex normal numbers
        part = torch.distributions.Normal(0.0, (power / 2).sqrt())
        return part.log_prob(c.real) + part.log_prob(c.imag)

    r = torch.arange(1, RADIUS + 1)
    for i, j, b, a, d in [(0, 1, 5, 77, 1), (2, 0, 100, 3, 1), (1, 2, 61, 40, 2), (2, 1, 0, 119, 0)]:
        ramp = torch.exp(-2j * math.pi / N * r * (-offset, 0.0, offset)[d])
        Y_i, Y_j = lines[i, a] * ramp, lines[j, b]
        difference, total = (Y_i - Y_j) / 2**0.5, (Y_i + Y_j) / 2**0.5
        one = log_density(difference, tau) + log_density(total, 2 * P - tau)
        two = log_density(Y_i, P) + log_density(Y_j, P)
        torch.testing.assert_close(found[i, j, b, a, d], _INDEPENDENT * (one - two).sum(), rtol=1e-3, atol=1e-3)


def test_table_peaks_where_the_planes_cross():
    rotations, shifts = views(2, 4), torch.tensor([[0.7, -0.4], [-0.5, 0.9]])
    images = project(atoms(), rotations, shifts)
    line = torch.linalg.cross(rotations[0, 2], rotations[1, 2])
    angles = [torch.atan2((R @ line)[1], (R @ line)[0]) for R in rotations]
    a, b = (round(float(angle) * ANGLES / (2 * math.pi)) % ANGLES for angle in angles)
    offset = sum(
        sign * (s[0] * angle.cos() + s[1] * angle.sin()) for sign, s, angle in zip((1, -1), shifts, angles, strict=True)
    )
    offsets = [0.25 * d for d in range(-12, 13)]
    table = compare(images, offsets=offsets)[0, 1]
    best_b, best_a, best_d = (int(i[0]) for i in torch.where(table == table.max()))
    mate = (best_b - ANGLES // 2, best_a - ANGLES // 2, len(offsets) - 1 - best_d)  # the other half of the line
    found = [
        max(abs((x - b + 60) % ANGLES - 60), abs((y - a + 60) % ANGLES - 60)) for x, y, _ in ((best_b, best_a, 0), mate)
    ]
    which = (best_d, mate[2])[found.index(min(found))]
    assert min(found) <= 2
    assert offsets[which] == pytest.approx(float(offset), abs=0.26)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "off_px", "chains"), [(6, 0.0, 1), (6, 0.6, 2), (11, 0.0, 1)])
def test_poses_are_found(count, off_px, chains):
    """Also where 10 images are sampled and one is placed among them."""
    rotations = views(count, 1)
    shifts = off_px * torch.randn(count, 2, generator=torch.Generator().manual_seed(2))
    found = sample_poses(
        project(atoms(), rotations, shifts),
        chains=chains,
        generator=torch.Generator().manual_seed(0),
        diameter_px=24.0,
        noise=torch.zeros(12),
        max_shift_px=1.5 if off_px else 0.0,
    )
    assert found.rotations.shape == (chains, count, 3, 3)
    assert found.log_evidence[0] >= found.log_evidence[-1]
    assert pose_difference_deg(rotations, found.rotations[0]) < 8


@pytest.mark.slow
def test_chains_do_not_depend_on_how_many_there_are():
    images = project(atoms(), views(4), torch.zeros(4, 2))
    options = {"diameter_px": 20.0, "noise": torch.zeros(9)}
    one = sample_poses(images, chains=1, generator=torch.Generator().manual_seed(5), **options)
    two = sample_poses(images, chains=2, generator=torch.Generator().manual_seed(5), **options)
    assert min(float((R - one.rotations[0]).abs().max()) for R in two.rotations) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "unique", "chains"), [("C2", 12, 3), ("C4", 8, 1), ("D2", 8, 1), ("T", 4, 1)])
def test_symmetric_poses_are_found_up_to_symmetry(name, unique, chains):
    group = torch.from_numpy(Rotation.create_group(name).as_matrix()).float()
    positions = (group @ atoms()[:unique].mT).mT.flatten(0, 1)
    rotations = views(4, 6)
    images = project(positions, rotations, torch.zeros(4, 2))
    known = {"diameter_px": 26.0, "symmetry": group}
    found = sample_poses(
        images, chains=chains, generator=torch.Generator().manual_seed(0), noise=torch.zeros(9), **known
    )
    mates = rotations @ group[torch.arange(4) % len(group)]
    evidence = pose_log_evidence(
        images, torch.stack((rotations, mates)), torch.zeros(2, 4, 2), noise=torch.zeros(6), **known
    )
    torch.testing.assert_close(evidence[0], evidence[1])  # it does not know one view from its symmetric mate
    assert evidence[0] > pose_log_evidence(
        images, views(4, 7)[None], torch.zeros(1, 4, 2), noise=torch.zeros(6), **known
    )
    assert pose_difference_deg(rotations, found.rotations[0], group) < 12


def test_lines_on_one_place_of_an_image_count_once():
    a = torch.randint(ANGLES, (2, 3, 50), generator=torch.Generator().manual_seed(0))
    apart = (a[..., :, None] - a[..., None, :]) * (360.0 / ANGLES)
    apart = (apart + 90) % 180 - 90  # of lines, which have no direction
    n = (-0.5 * (apart / _SAME_LINE_DEG) ** 2).exp().sum(-1)
    torch.testing.assert_close(_novelty(a), 2 / (1 + n))
    torch.testing.assert_close(_novelty(torch.full((3,), 7)), torch.full((3,), 0.5))


@pytest.mark.slow
def test_evidence_is_a_normal_density():
    """Against one covariance of real and imaginary parts together, from E[X(p) X(q)*] and E[X(p) X(q)]."""
    rotations, shifts = views(3), torch.zeros(3, 2)
    images = project(atoms(), rotations, shifts).double()
    radius, diameter = 3, 18.0
    noise = torch.linspace(5.0, 1.0, radius).double()
    k = band(radius, torch.device("cpu"))
    spectra = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))[..., k[:, 1], k[:, 0]]
    ring = k.double().norm(dim=-1).round().long().clamp(1, radius) - 1
    total = torch.stack([spectra[:, ring == r].abs().square().mean() for r in range(radius)])
    signal, error = (total - noise)[ring].repeat(3), (noise + 0.02 * total)[ring].repeat(3)

    def ball(p):  # the transform of a ball, by quadrature over its discs
        z = torch.linspace(-1, 1, 4001).double()
        return (1.5 * (1 - z**2) * torch.cos(p[..., None] * z)).mean(-1)

    def log_prob(rotations):
        points = (k.double() @ rotations[:, :2].double()).flatten(0, 1)
        scale = (signal[:, None] * signal).sqrt()
        hermitian, pseudo = (
            scale * ball(math.pi * diameter / N * (points[:, None] + sign * points).norm(dim=-1)) for sign in (-1, 1)
        )
        hermitian = hermitian + torch.diag(error)
        # X = a + ib: E[aa'] = (C + P)/2, E[bb'] = (C − P)/2, E[ab'] = 0 as both are real
        zero = torch.zeros_like(hermitian)
        covariance = torch.cat((torch.cat((hermitian + pseudo, zero), 1), torch.cat((zero, hermitian - pseudo), 1))) / 2
        data = torch.cat((spectra.real.flatten(), spectra.imag.flatten()))
        return torch.distributions.MultivariateNormal(torch.zeros_like(data), covariance).log_prob(data)

    other = views(3, 9)
    both, still = torch.stack((rotations, other)).double(), torch.zeros(2, 3, 2).double()
    found = pose_log_evidence(images, both, still, diameter_px=diameter, noise=noise)
    expected = log_prob(rotations) - log_prob(other)
    torch.testing.assert_close(found[0] - found[1], expected, rtol=1e-3, atol=0.05)
    assert expected > 0


def test_evidence_prefers_the_shifts_that_are_right():
    rotations, shifts = views(5), torch.tensor([[0.8, 0.0], [0.0, -0.9], [0.5, 0.5], [-0.7, 0.2], [0.0, 0.6]])
    images = project(atoms(), rotations, shifts)
    both = torch.stack((shifts, torch.zeros_like(shifts)))
    found = pose_log_evidence(images, rotations.expand(2, -1, -1, -1), both, diameter_px=24.0, noise=torch.zeros(6))
    assert found[0] > found[1] + 10


def test_evidence_brings_poses_nearer():
    rotations, shifts = views(6, 3), 0.4 * torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    images = project(atoms(), rotations, shifts)
    off = rotation_from_vector(4 * torch.randn(6, 3, generator=torch.Generator().manual_seed(2))) @ rotations
    known = {"diameter_px": 24.0, "noise": torch.zeros(5)}
    start = pose_log_evidence(images, off[None], torch.zeros(1, 6, 2), **known)
    found, moved = refine_by_evidence(images, off[None], torch.zeros(1, 6, 2), spread_px=1.0, **known)
    assert pose_log_evidence(images, found, moved, **known) > start + 10
    assert pose_difference_deg(found[0], rotations) < 0.7 * pose_difference_deg(off, rotations)


def test_evidence_is_not_fooled_by_views_in_one_plane():
    """Noisy images share one line easily; that they share it is worth little."""
    rotations = views(8, 2)
    images = project(atoms(), rotations, torch.zeros(8, 2))
    sigma = float(images.std())
    images = images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    around = rotation_from_vector(torch.stack([torch.tensor([0.0, 22.0 * i, 0.0]) for i in range(8)]))
    both = torch.stack((rotations, around))
    noise = torch.full((6,), sigma**2 * N**2)
    found = pose_log_evidence(images, both, torch.zeros(2, 8, 2), diameter_px=24.0, noise=noise)
    assert found[0] > found[1] + 10


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 9), (8, 8)])
def test_images_that_have_no_poses(shape):
    with pytest.raises(GeometryError, match="square images"):
        sample_poses(torch.zeros(shape), chains=1, generator=torch.Generator(), diameter_px=6.0, noise=torch.zeros(3))


def test_background_is_what_surrounds_the_particle():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 48, 48, generator=generator)
    smooth = (noise + noise.roll(1, -1) + noise.roll(1, -2) + noise.roll((1, 1), (-2, -1))) / 4
    inside = (torch.arange(48) - 24).square() + (torch.arange(48)[:, None] - 24).square() < 10**2
    power = background_power(smooth + 7 + 50 * inside, 20.0)
    k = torch.fft.fftfreq(48)
    expected = ((torch.pi * k).cos() ** 2 * (torch.pi * k[:, None]).cos() ** 2).flatten()
    shell = (48 * (k.square() + k[:, None].square()).sqrt()).round().long().flatten()
    for r in (6, 12, 18):
        assert float(power[r]) == pytest.approx(float(expected[shell == r].mean()), abs=0.04)
    with pytest.raises(GeometryError, match="leaves no background"):
        background_power(noise, 60.0)


@pytest.mark.parametrize("masked", [False, True])
def test_noise_of_images_in_a_box_is_that_of_their_transforms(masked):
    """Noise falling with frequency, every image off centre, its transform cropped to half of the pixels."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 48, 48, generator=generator)
    noise = (noise + noise.roll(1, -1) + noise.roll(1, -2) + noise.roll((1, 1), (-2, -1))) / 4
    shift = torch.tensor([3, -5])  # (x, y), in pixels of 1.5
    moved = noise.roll((-5, 3), (1, 2))
    small = torch.fft.ifftshift(torch.fft.fftshift(torch.fft.fft2(moved), dim=(1, 2))[:, 12:36, 12:36], dim=(1, 2)) / 4
    x = torch.fft.ifft2(small).real
    if masked:
        x = x * ((torch.arange(24) - 12).square() + (torch.arange(24)[:, None] - 12).square() <= 5**2)
    found = prepared_noise_power(
        noise,
        8,
        diameter=30.0,
        voxel_size=1.5,
        box=24,
        box_voxel_size=3.0,
        scale=7.0,
        shifts=1.5 * shift.expand(200, 2) if masked else None,
    )
    k = torch.fft.fftfreq(24, 1 / 24)
    ring = (k.square() + k[:, None].square()).sqrt().round()
    power = torch.fft.fft2(7 * x).abs().square().mean(0)
    expected = [float(power[ring == r].mean()) for r in range(1, 9)]
    assert found[2:].tolist() == pytest.approx(expected[2:], rel=0.1)
