"""Averages are made of projections by known filters, and likelihoods are compared with torch's own densities."""

import math

import pytest
import torch

from cryofm_ops import (
    CommonLines,
    FourierProjector,
    ImagesInBand,
    average_rings,
    image_scales,
    polar_transform,
    pose_log_evidence,
    random_rotations,
    sample_poses,
)
from cryofm_ops.poses._central_slices import band
from cryofm_ops.poses.averages import _falling, ring_power
from cryofm_ops.poses.common_lines import _INDEPENDENT

N, RADIUS = 32, 12


def projections(count=10, seed=0):
    """Of Gaussians, whose spectrum is told beside; a factor of a prior does not matter."""
    centres = 4 * torch.randn(40, 3, generator=torch.Generator().manual_seed(1)).clamp(-2, 2)
    i = torch.arange(N) - N // 2
    x, y, z = (torch.exp(-((i - (centres - centres.mean(0))[:, a, None]) ** 2) / 2) for a in range(3))
    volume = torch.einsum("az,ay,ax->zyx", z, y, x)
    rotations = random_rotations(count, generator=torch.Generator().manual_seed(seed))
    images = FourierProjector(rotations, torch.zeros(count, 2), (N, N, N))(volume)
    return images, rotations, volume


def filtered(images, amplitude):
    """Ring r times amplitude[r - 1], `(K, RADIUS)`."""
    k = torch.fft.fftfreq(N, 1 / N)
    r = (k[:, None].square() + k[: N // 2 + 1].abs().square()).sqrt().clamp(max=RADIUS)
    table = torch.cat((torch.ones(len(images), 1), amplitude), 1)
    low = r.floor().long()
    m = torch.lerp(table[:, low], table[:, (low + 1).clamp(max=RADIUS)], r - low)
    return torch.fft.irfft2(torch.fft.rfft2(images) * m, s=(N, N))


def test_clean_projections_have_neither_noise_nor_fall_off():
    images, _, _ = projections()
    noise = torch.full((RADIUS,), 2.0)
    rings = average_rings(images, 3 * ring_power(images, RADIUS).mean(0), noise)
    assert rings.transfer is None
    assert torch.equal(rings.noise, noise)


def test_the_fall_off_of_each_average_is_found():
    images, _, _ = projections()
    r = torch.arange(1, RADIUS + 1.0)
    cut = torch.tensor([5.0, 8.0]).repeat(5)  # averages of two resolutions
    m = 1 / (1 + (r / cut[:, None]) ** 6)
    y = filtered(images, m)
    rings = average_rings(y, ring_power(images, RADIUS).mean(0), torch.zeros(RADIUS))
    rho = rings.transfer ** (4 / 3)
    mean = rho.log().reshape(5, 2, RADIUS).mean(0)
    truth = 2 * m[:2].log()
    assert (mean - truth)[:, :9].abs().max() < 0.8  # of logarithms that fall to −7
    part = rings.noise / ring_power(y, RADIUS)
    assert part[:, 0].max() < 1e-4
    assert (part[::2, 9] > 0.9).all()  # nothing was measured there
    torch.testing.assert_close(part, 1 - rho.sqrt(), atol=1e-4, rtol=1e-4)


def test_the_nearest_falling_sequence():
    from scipy.optimize import isotonic_regression

    y = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = isotonic_regression(y.numpy(), weights=torch.arange(1, 31).double().numpy(), increasing=False).x
    torch.testing.assert_close(_falling(y), torch.from_numpy(expected.copy()))


def test_scales_and_contrast_that_are_off():
    images, _, _ = projections()
    assert (image_scales(images) == 1).all()  # views differ, too
    images[3] *= 3
    images[5] *= -1
    scales = image_scales(images)
    assert scales[3] == pytest.approx(3, rel=0.25)
    assert scales[5] == -1
    assert (scales[[0, 1, 2, 4, 6, 7, 8, 9]] == 1).all()


def test_table_is_the_likelihood_ratio_of_unequal_images(monkeypatch):
    monkeypatch.setattr("cryofm_ops.poses.common_lines._SMOOTH_DEG", 1e-3)
    images, _, _ = projections(3)
    lines = polar_transform(images, 24, RADIUS)
    generator = torch.Generator().manual_seed(2)
    noise = 50 * torch.rand(3, RADIUS, generator=generator)
    m = 0.3 + torch.rand(3, RADIUS, generator=generator)
    alpha, offset = 0.2, torch.zeros(1)
    table = CommonLines.of(lines, lines, N, (noise, noise), alpha, offset, 0.0, (m, m)).table
    S = ((lines.abs().square().mean((0, 1)) - noise.mean(0)).clamp(min=0) / m.square().mean(0)).double()
    assert (S > 0).any()
    noise, m = noise.double(), m.double()

    def log_density(*coefficients, covariance):  # complex normal numbers, real and imaginary parts alike
        covariance = covariance.double() / 2
        normal = torch.distributions.MultivariateNormal(torch.zeros(len(covariance)).double(), covariance)
        return sum(
            normal.log_prob(torch.stack([getattr(c, p) for c in coefficients]).double()) for p in ("real", "imag")
        )

    for i, j, b, a in [(0, 1, 3, 17), (1, 2, 0, 5)]:
        total = 0.0
        for r in range(RADIUS):
            P = m[[i, j], r].square() * S[r] + noise[[i, j], r]
            c = (1 - alpha) * m[i, r] * m[j, r] * S[r]
            same = torch.stack((torch.stack((P[0], c)), torch.stack((c, P[1]))))
            pair = lines[i, a, r], lines[j, b, r]
            total += log_density(*pair, covariance=same) - log_density(*pair, covariance=torch.diag(P))
        assert float(table[i, j, b, a, 0]) == pytest.approx(_INDEPENDENT * float(total), rel=2e-3, abs=2e-3)


def test_evidence_of_filtered_images_is_that_of_the_unfiltered_ones():
    """Where each image is divided by its transfer, the density changes by a constant alone."""
    images, rotations, _ = projections(4)
    m = 0.4 + torch.rand(4, 1, generator=torch.Generator().manual_seed(3)).expand(4, 4)  # of whole images
    y = images * m[:, :1, None]
    poses = torch.stack((rotations, random_rotations(4, generator=torch.Generator().manual_seed(9))))
    known = {"shifts_px": torch.zeros(2, 4, 2), "diameter_px": 24.0, "model_error": 0.0}
    power = ring_power(images, 4).mean(0)
    plain = pose_log_evidence(images, poses, noise=0.1 * power, **known)
    # The noise of each is scaled as it is; the mean power of the filtered images tells that of the signal.
    noise = 0.1 * power * m.square()
    found = pose_log_evidence(y, poses, noise=noise, transfer=m, **known)
    assert float(found[0] - found[1]) == pytest.approx(float(plain[0] - plain[1]), rel=0.2)
    blind = pose_log_evidence(y, poses, noise=0.1 * power, **known)
    assert abs(float(blind[0] - blind[1] - plain[0] + plain[1])) > abs(float(found[0] - found[1] - plain[0] + plain[1]))


def test_projections_times_their_transfer_fit():
    images, rotations, volume = projections(4)
    m = torch.exp(-torch.rand(4, 1, generator=torch.Generator().manual_seed(4)) * torch.arange(RADIUS) / 6)
    k = band(RADIUS, torch.device("cpu"))
    ring = k.float().norm(dim=-1).round().long().clamp(1, RADIUS) - 1
    data = ImagesInBand.of(images, RADIUS, torch.zeros(4, RADIUS), transfer=m)
    torch.testing.assert_close(data.ctf, m[:, ring])
    spectra = ImagesInBand.of(images, RADIUS, torch.zeros(RADIUS)).spectra * m[:, ring]
    made = ImagesInBand(spectra, data.k, N, data.noise, data.ctf)
    R, s = rotations[None], torch.zeros(1, 4, 2)
    assert made.misfit(volume[None], R, s) < 0.02**2
    assert ImagesInBand(spectra, data.k, N, data.noise, torch.ones_like(data.ctf)).misfit(volume[None], R, s) > 0.01


def test_the_images_that_tell_most_are_anchors(monkeypatch):
    """Of 12 images two are noise, and are told to be; they take no part in the evidence."""
    images, _, _ = projections(12)
    seen = []
    monkeypatch.setattr("cryofm_ops.poses.sampling._ANGLES", 12)
    monkeypatch.setattr("cryofm_ops.poses.sampling._STAGES", 2)
    monkeypatch.setattr("cryofm_ops.poses.sampling._SWEEPS", 0)
    monkeypatch.setattr("cryofm_ops.poses.sampling._POLISH", 0)

    def evidence(ours, *args, **options):
        seen.append(ours)
        return torch.zeros(1)

    monkeypatch.setattr("cryofm_ops.poses.sampling.pose_log_evidence", evidence)
    monkeypatch.setattr("cryofm_ops.poses.sampling.refine_by_evidence", lambda ours, R, s, **_: (R, s))
    power = ring_power(images, 8)
    noise = 0.01 * power
    noise[[0, 7]] = power[[0, 7]]
    sample_poses(images, chains=1, generator=torch.Generator().manual_seed(0), diameter_px=24.0, noise=noise)
    assert torch.equal(seen[0], images[[i for i in range(12) if i not in (0, 7)]])
    assert math.isfinite(float(seen[0].sum()))
