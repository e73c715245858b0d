"""What one image is worth at a pose, given the others, is what the evidence of all says; and annealing finds more."""

import math

import pytest
import torch

from cryofm_ops import CommonLines, polar_transform, pose_log_evidence, random_rotations, sample_poses
from cryofm_ops.poses import sampling
from cryofm_ops.poses._annealing import _Conditional, annealed

N, RADIUS, SIGMA, DIAMETER = 24, 6, 1.5, 18.0


@pytest.fixture(scope="module")
def seen():
    """Six noisy images of a cloud of Gaussians, their poses and the noise's power."""
    g = torch.Generator().manual_seed(0)
    atoms = torch.randn(20, 3, generator=g)
    atoms = 8 * atoms / atoms.norm(dim=-1, keepdim=True) * torch.rand(20, 1, generator=g) ** (1 / 3)
    rotations, shifts = random_rotations(6, generator=g), 0.5 * torch.randn(6, 2, generator=g)
    where = torch.einsum("kij,aj->kai", rotations, atoms - atoms.mean(0))[..., :2] - shifts[:, None]
    pixels = torch.arange(N) - N // 2
    x, y = (torch.exp(-((pixels - where[..., i, None]) ** 2) / (2 * SIGMA**2)) for i in (0, 1))
    clean = torch.einsum("kay,kax->kyx", y, x)
    std = float(clean.std())
    images = clean + std * torch.randn(clean.shape, generator=g)
    return images, rotations, shifts, torch.full((RADIUS,), std**2 * N**2)


@pytest.mark.parametrize("noises", ["one", "of each image"])
def test_given_the_others_it_is_the_evidence_of_all(seen, noises):
    images, rotations, shifts, noise = seen
    each = noise.expand(6, -1) * (1 if noises == "one" else torch.linspace(0.5, 2, 6)[:, None])
    k, g = 2, torch.Generator().manual_seed(1)
    turns, moves = random_rotations(4, generator=g), torch.randn(4, 2, generator=g)
    found = _Conditional.of(images, DIAMETER, each).given(k, rotations, shifts)(turns, moves)
    all_of = torch.stack([rotations] * 4), torch.stack([shifts] * 4)
    all_of[0][:, k], all_of[1][:, k] = turns, moves
    expected = pose_log_evidence(images, *all_of, diameter_px=DIAMETER, noise=each)
    torch.testing.assert_close((found - found[0]).double(), expected - expected[0], atol=2e-2, rtol=1e-3)


def test_a_wrong_image_comes_right(seen):
    images, rotations, shifts, noise = seen
    wrong = rotations.clone()
    wrong[4] = random_rotations(1, generator=torch.Generator().manual_seed(5))[0]

    def propose(k, R, s):
        turns = torch.cat((random_rotations(3, generator=torch.Generator().manual_seed(k)), rotations[k, None]))
        return turns, shifts[k].expand(4, 2)

    found, moved = annealed(
        images,
        wrong[None],
        shifts[None],
        propose,
        [torch.Generator().manual_seed(0)],
        diameter_px=DIAMETER,
        noise=noise.expand(6, -1),
        spread_px=0.5,
    )
    torch.testing.assert_close(found[0, 4], rotations[4])
    assert moved.shape == (1, 6, 2)


@pytest.mark.parametrize(("times", "called"), [(1.0, True), (0.01, False)])
def test_noise_decides_whether(seen, monkeypatch, times, called):
    calls = []
    monkeypatch.setattr(sampling, "annealed", lambda images, R, s, *_, **__: calls.append(1) or (R, s))
    images, _, _, noise = seen
    g = torch.Generator().manual_seed(0)
    sample_poses(images, chains=1, generator=g, diameter_px=DIAMETER, noise=times * noise)
    assert bool(calls) == called


def test_what_is_proposed_is_apart_and_includes_what_is_right(seen):
    images, rotations, shifts, noise = seen
    lines = polar_transform(images, 120, RADIUS)
    table = CommonLines.of(lines, lines, N, noise, 0.06, torch.tensor([-0.5, 0.0, 0.5]), 0.5).table
    frames = sampling._frames(400, torch.Generator().manual_seed(0), images)
    views, moves = sampling._proposed(table, frames, 1.0, 1, rotations, shifts)
    angle = ((torch.einsum("aij,bij->ab", views, views) - 1) / 2).clamp(-1, 1).acos()
    assert angle[~torch.eye(len(views), dtype=torch.bool)].min() > math.radians(11.9)
    assert moves.abs().max() <= 1.0
    off = ((torch.einsum("aij,ij->a", views, rotations[1]) - 1) / 2).clamp(-1, 1).acos().min()
    assert off < math.radians(20)  # which one of 24 at random would be in one case of twenty
