"""Volumes are sums of Gaussians, and images their projections in closed form: no projector of ours takes part."""

import math

import attrs
import pytest
import torch

from cryofm_ops import (
    GeometryError,
    GridMismatchError,
    ObservationError,
    angular_distance_deg,
    random_rotations,
    rotation_from_vector,
    search_poses,
)

N = 24
SIGMA = 1.3


def atoms(n: int = N, seed: int = 3) -> torch.Tensor:
    """Thirty positions (x, y, z) in a ball of 0.28 n around voxel n // 2."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    radius = 0.28 * n * torch.rand(30, 1, generator=generator, dtype=torch.float64) ** (1 / 3)
    return radius * direction / direction.norm(dim=1, keepdim=True)


def gaussians(n: int, centres: torch.Tensor) -> torch.Tensor:
    """exp(−(i − n // 2 − c)² / 2σ²) at every pixel i, `(..., n)` for centres `(...)`."""
    pixels = torch.arange(n, dtype=torch.float64) - n // 2
    return torch.exp(-((pixels - centres[..., None]) ** 2) / (2 * SIGMA**2))


def volume_of(positions: torch.Tensor, n: int = N) -> torch.Tensor:
    x, y, z = (gaussians(n, positions[:, i]) for i in range(3))
    return torch.einsum("az,ay,ax->zyx", z, y, x)


def images_of(positions, rotations, shifts, n=N):
    seen = torch.einsum("kij,aj->kai", rotations, positions)[..., :2] - shifts[:, None]
    x, y = (gaussians(n, seen[..., i]) for i in range(2))
    return math.sqrt(2 * math.pi) * SIGMA * torch.einsum("kay,kax->kyx", y, x)


def poses(k: int, max_shift: float = 2.0, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shifts = max_shift * (2 * torch.rand(k, 2, generator=generator, dtype=torch.float64) - 1)
    return random_rotations(k, generator=generator, dtype=torch.float64), shifts


@pytest.mark.parametrize("n", [24, 25, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clean_projections(n, dtype):
    rotations, shifts = poses(20)
    positions = atoms(n)
    images = images_of(positions, rotations, shifts, n).to(dtype)
    found = search_poses(volume_of(positions, n).to(dtype), images, max_shift_px=2)
    assert found.rotations.dtype == found.shifts_px.dtype == found.score.dtype == dtype
    assert angular_distance_deg(found.rotations.double(), rotations).max() < 0.5
    assert (found.shifts_px - shifts).abs().max() < 0.03
    assert found.score.min() > 0.999
    assert found.score.max() <= 1 + 1e-5
    assert (found.runner_up < found.score - 0.02).all()


def test_shift_is_what_centres_the_image():
    rotations, _ = poses(1)
    positions = atoms()
    centred = images_of(positions, rotations, torch.zeros(1, 2))
    moved = centred.roll((-1, 2), (-2, -1))  # by +2 in x and −1 in y
    found = search_poses(volume_of(positions), moved, max_shift_px=3)
    torch.testing.assert_close(found.shifts_px[0], torch.tensor([-2.0, 1.0], dtype=torch.float64), atol=0.03, rtol=0)


def test_shifts_stay_within_the_limit():
    rotations, _ = poses(3)
    positions = atoms()
    images = images_of(positions, rotations, torch.tensor([[3.0, 0.0]], dtype=torch.float64).expand(3, 2))
    for limit in (0, 1.5):
        found = search_poses(volume_of(positions), images, max_shift_px=limit)
        assert found.shifts_px.abs().max() <= limit


def test_noise_as_strong_as_the_signal(generator):
    rotations, shifts = poses(20)
    positions = atoms(48)
    images = images_of(positions, rotations, shifts, 48)
    std = images.var((-2, -1), keepdim=True).sqrt()
    noisy = images + std * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    found = search_poses(volume_of(positions, 48), 7 * noisy - 100, max_shift_px=2)  # scale and offset do not matter
    distance = angular_distance_deg(found.rotations, rotations)
    assert distance.median() < 4
    assert (distance > 12).sum() <= 1
    assert (found.shifts_px - shifts).norm(dim=-1).median() < 0.3


def test_score_is_the_correlation_without_the_means():
    rotations, shifts = poses(4)
    positions = atoms()
    clean = images_of(positions, rotations, shifts)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = search_poses(volume_of(positions), clean + noise, max_shift_px=2)
    projected = images_of(positions, found.rotations, found.shifts_px)
    fx, fy = torch.fft.rfftfreq(N), torch.fft.fftfreq(N)[:, None]
    inside = (fx**2 + fy**2 <= ((N - 1) // 2 / N) ** 2 + 1e-9) & (fx**2 + fy**2 > 0)
    p, y = (torch.fft.irfft2(torch.fft.rfft2(i) * inside, s=(N, N)).flatten(1) for i in (projected, clean + noise))
    expected = (p * y).sum(1) / (p.norm(dim=1) * y.norm(dim=1))
    torch.testing.assert_close(found.score, expected, atol=2e-3, rtol=0)


@pytest.mark.slow
def test_a_batch_equals_each_volume_alone():
    rotations, shifts = poses(3)
    positions = [atoms(seed=s) for s in range(2)]
    volumes = torch.stack([volume_of(p) for p in positions]).reshape(2, 1, N, N, N)
    images = images_of(positions[0], rotations, shifts)
    own = torch.stack([images_of(p, rotations, shifts) for p in positions]).reshape(2, 1, 3, N, N)
    for given in (images, own):  # shared by broadcasting, and each its own
        together = search_poses(volumes, given, max_shift_px=2)
        assert together.rotations.shape == (2, 1, 3, 3, 3)
        for i in ((0, 0), (1, 0)):
            alone = search_poses(volumes[i], given if given.ndim == 3 else given[i], max_shift_px=2)
            for name in ("rotations", "shifts_px", "score", "runner_up"):
                torch.testing.assert_close(getattr(together, name)[i], getattr(alone, name))


@attrs.frozen(eq=False)
class Contrast:
    """sin(d k²): turns the sign of some frequencies, and one image's are not another's."""

    d: torch.Tensor

    def transfer(self, shape, /):
        _, y, x = shape
        k2 = torch.fft.fftfreq(y, dtype=torch.float64)[:, None] ** 2 + torch.fft.rfftfreq(x, dtype=torch.float64) ** 2
        return torch.sin(0.3 + self.d[..., None, None, None] * k2)


@pytest.mark.parametrize("each", [True, False])
def test_ctf(each):
    rotations, shifts = poses(6)
    positions = atoms()
    ctf = Contrast(torch.linspace(60, 90, 6, dtype=torch.float64) if each else torch.tensor(75.0, dtype=torch.float64))
    clean = images_of(positions, rotations, shifts)
    images = torch.fft.irfft2(ctf.transfer((1, N, N)).squeeze(-3) * torch.fft.rfft2(clean), s=(N, N))
    found = search_poses(volume_of(positions), images, max_shift_px=2, ctf=ctf)
    # Periodic filters wrap round what leaves the box, so not as exact as without.
    assert angular_distance_deg(found.rotations, rotations).max() < 2
    assert (found.shifts_px - shifts).abs().max() < 0.1
    assert found.score.min() > 0.98
    without = search_poses(volume_of(positions), images, max_shift_px=2)
    assert (without.score < found.score - 0.04).all()
    assert angular_distance_deg(without.rotations, rotations).median() > 10


def test_a_symmetric_volume_is_ambiguous():
    half = atoms() * torch.tensor([1, 1, 1.0]) + torch.tensor([2.0, 0, 0])
    turn = rotation_from_vector(torch.tensor([0.0, 0.0, 180.0], dtype=torch.float64))
    positions = torch.cat((half, half @ turn.mT))
    rotations, shifts = poses(10)
    found = search_poses(volume_of(positions), images_of(positions, rotations, shifts), max_shift_px=2)
    torch.testing.assert_close(found.runner_up, found.score, atol=2e-3, rtol=0)
    either = torch.stack([angular_distance_deg(found.rotations, r) for r in (rotations, rotations @ turn)])
    assert either.amin(0).max() < 0.5


def test_what_is_flat_scores_nothing():
    positions = atoms()
    images = images_of(positions, *poses(2))
    images[1] = 3.7
    found = search_poses(volume_of(positions).float(), images.float(), max_shift_px=2)
    assert found.score[0] > 0.99
    assert found.score[1] == found.runner_up[1] == 0
    nothing = search_poses(torch.zeros(N, N, N), images.float(), max_shift_px=2)
    assert not nothing.score.any()
    assert nothing.rotations.isfinite().all()


def test_nothing_is_differentiated_or_changed():
    positions = atoms()
    volume, images = volume_of(positions).requires_grad_(), images_of(positions, *poses(2))
    before = volume.detach().clone(), images.clone()
    assert not search_poses(volume, images, max_shift_px=1).score.requires_grad
    torch.testing.assert_close((volume.detach(), images), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("volume", "images", "shift", "error", "message"),
    [
        ((8, 8, 9), (2, 8, 8), 1, GeometryError, r"in a cube .* got \(8, 8, 9\)"),
        ((3, 3, 3), (2, 3, 3), 1, GeometryError, "n at least 4"),
        ((8, 8, 8), (2, 8, 9), 1, GeometryError, r"needs images .* got \(2, 8, 9\)"),
        ((8, 8, 8), (8, 8), 1, GeometryError, r"got \(8, 8\)"),
        ((3, 8, 8, 8), (2, 2, 8, 8), 1, GeometryError, "do not broadcast"),
        ((8, 8, 8), (2, 8, 8), -1, GeometryError, "got -1"),
        ((8, 8, 8), (2, 8, 8), 5, GeometryError, "half of the box, 4.0, got 5"),
        ((8, 8, 8), (2, 8, 8), math.nan, GeometryError, "got nan"),
    ],
)
def test_what_cannot_be_searched_is_named(volume, images, shift, error, message):
    with pytest.raises(error, match=message):
        search_poses(torch.ones(volume), torch.ones(images), max_shift_px=shift)


def test_values_and_filters_that_do_not_fit():
    ones = torch.ones(8, 8, 8)
    with pytest.raises(ObservationError, match="the images must be real and finite"):
        search_poses(ones, torch.full((1, 8, 8), math.inf), max_shift_px=1)
    with pytest.raises(ObservationError, match="the volume must be real and finite"):
        search_poses(ones * math.nan, ones, max_shift_px=1)
    with pytest.raises(GridMismatchError, match="Contrast has a transfer for each of a batch"):
        search_poses(ones, ones[:2], max_shift_px=1, ctf=Contrast(torch.ones(3)))
