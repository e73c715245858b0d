"""Alg. 3: guidance under poses that are searched at every step."""

import pytest
import torch

from cryofm_ops import (
    BlindGaussian,
    BlindProjections,
    FourierProjector,
    WhiteNoise,
    angular_distance_deg,
    radial,
    random_rotations,
)
from cryofm_sampling import BlindGuided, CapabilityError, Flow, Guided, calibrate
from cryofm_sampling.testing import GaussianPrior, MixturePrior

N = 12


def blobs(seed):
    """Gaussian blobs inside a ball, `(N, N, N)`, of root mean square 1."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2.2 * torch.randn(8, 3, generator=generator).clamp(-1.4, 1.4)
    i = torch.arange(N) - N // 2
    x, y, z = (torch.exp(-((i - centres[:, a, None]) ** 2) / 2.5) for a in range(3))
    volume = torch.einsum("az,ay,ax->zyx", z, y, x)
    return volume / volume.square().mean().sqrt()


def family():
    """A prior that knows one structure up to deviations of low frequency: half of its amplitude."""
    power = radial(torch.tensor([4.0, 1.0, 0.05, 0.02, 0.02]), (N, N, N))
    return MixturePrior(torch.ones(1), blobs(0)[None], power[None])


@pytest.fixture(scope="module")
def projections():
    """A member of the family, four images of it, and their poses."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    generator = torch.Generator().manual_seed(5)
    rotations = random_rotations(4, generator=generator, dtype=torch.float64)
    shifts = torch.rand(4, 2, generator=generator) - 0.5
    truth = family().sample(1, generator=generator)[0]
    images = FourierProjector(rotations, shifts, (N, N, N))(truth)
    torch.set_default_dtype(before)
    return truth, images, rotations, shifts


class Known:
    """A `Blind` with nothing to find."""

    def __init__(self, likelihood):
        self.likelihood, self.refined = likelihood, 0

    def refine(self, x):
        assert not x.requires_grad
        self.refined += 1
        return self.likelihood


@pytest.mark.parametrize("guidance", ["paper", "gaussian"])
@pytest.mark.slow
def test_with_known_poses_it_is_alg_1(projections, guidance):
    _, images, rotations, shifts = projections
    likelihood = BlindProjections(images, 1.0, background=0.0).at(rotations, shifts)
    if guidance == "gaussian":
        likelihood = BlindGaussian(images, 1.0, noise=WhiteNoise(1.0)).at(rotations, shifts)
    blind = Known(likelihood)
    runs = [
        sampler(steps=3, guidance=guidance, max_push=2.0)(
            GaussianPrior(1.0), given, shape=(2, N, N, N), generator=torch.Generator().manual_seed(1)
        )
        for sampler, given in ((Guided, likelihood), (BlindGuided, blind))
    ]
    assert torch.equal(runs[0].x, runs[1].x)
    assert runs[0].nfe == runs[1].nfe == 5
    assert blind.refined == (2 if guidance == "paper" else 3)  # once a step; the paper's first has no push


@pytest.mark.slow
@pytest.mark.parametrize("guidance", ["paper", "gaussian"])
def test_volume_and_poses_are_found(projections, guidance):
    truth, images, rotations, shifts = projections
    blind = BlindProjections(images, 1.0, background=0.0)
    if guidance == "gaussian":
        blind = BlindGaussian(images, 1.0, noise=WhiteNoise(1.0))
    run = {"shape": (2, N, N, N), "generator": torch.Generator().manual_seed(2)}
    prior = family()
    velocity = calibrate(prior, prior.sample(16, generator=run["generator"]), generator=run["generator"])
    guided = BlindGuided(steps=8, guidance=guidance, max_push=1.0)(velocity, blind, **run).x
    unguided = Flow(8)(prior, **run).x
    found, without = (BlindProjections(images, 1.0, background=0.0).refine(x) for x in (guided, unguided))
    assert angular_distance_deg(found.projector.rotations, rotations).max() < 15
    assert (found.projector.shifts_px - shifts).abs().max() < 0.5
    assert (found.log_prob(guided) > without.log_prob(unguided).max() + 0.005).all()  # correlations
    if guidance == "gaussian":
        error, before = ((x - truth).square().mean() for x in (guided, unguided))
        assert error < 0.6 * before


def test_a_likelihood_without_refine_is_named():
    with pytest.raises(CapabilityError, match="BlindGuided needs a Blind likelihood; object has no refine"):
        BlindGuided()(GaussianPrior(1.0), object(), shape=(4, 4, 4), generator=torch.Generator())
