"""Evaluating a prior where density can be changes nothing there, and leaves solvent elsewhere."""

from types import SimpleNamespace

import attrs
import pytest
import torch

from cryofm_ops import Identity, WhiteNoise, estimate_noise_power, gaussian_likelihood
from cryofm_sampling import (
    Guided,
    PlugAndPlay,
    Region,
    Rescaled,
    SettingError,
    Tiled,
    calibrate,
    restore,
    restore_half_maps,
)
from cryofm_sampling._common import velocity_at
from cryofm_sampling.half_maps.region import where_halves_agree

SHAPE = (88, 72, 80)
MAIN, FAR = (slice(10, 30), slice(8, 28), slice(12, 40)), (slice(72, 77), slice(60, 65), slice(68, 73))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def two_bodies():
    """A molecule, and what could be a ligand, far from it."""
    where = torch.zeros(SHAPE, dtype=torch.bool)
    where[MAIN] = where[FAR] = True
    return where


class Spikes:
    """A prior that knows voxels of 0, and some of 1; it counts what it is asked."""

    normalization = SimpleNamespace(mean=0.0, std=1.0)
    box, multiple, local = 32, 8, True

    def __init__(self):
        self.voxels = 0

    def __call__(self, x, t):
        self.voxels += x.numel()
        t = t.reshape(-1, 1, 1, 1) if t.ndim else t
        log_odds = ((1 - t) * x - (1 - t) ** 2 / 2) / t**2 - 3.0
        return (x - log_odds.sigmoid()) / t


def spiky(where, seed=0):
    return (where & (torch.rand(SHAPE, generator=seeded(seed)) < 0.3)).float()


@pytest.fixture
def tiled():
    spikes = Spikes()
    calibrated = calibrate(spikes, spiky(two_bodies())[:32, :32, :32][None], generator=seeded(0))
    return spikes, Tiled(Rescaled(calibrated, Spikes.normalization), 88, 0, multiple=8)


@pytest.mark.slow
def test_boxes_cover_what_is_there_and_a_margin_and_little_else():
    region = Region.around(two_bodies())
    assert len(region.boxes) == 2
    assert region.share < 0.15
    covered = torch.zeros(SHAPE, dtype=torch.bool)
    for box in region.boxes:
        covered[box] = True
        assert all((part.stop - part.start) % 8 == 0 for part in box)
    grown = torch.nn.functional.max_pool3d(two_bodies()[None].float(), 9, 1, 4)[0] > 0
    assert bool((covered | ~grown).all())


def test_a_molecule_that_fills_its_box_is_no_region():
    assert Region.around(torch.ones(40, 40, 40, dtype=torch.bool)) is None
    with pytest.raises(SettingError, match="a place where density can be"):
        Region.around(torch.zeros(8, 8, 8, dtype=torch.bool))


def test_a_rod_costs_less_than_its_box():
    z, y, x = torch.meshgrid(*[torch.arange(200)] * 3, indexing="ij")
    rod = ((y - z).abs() < 6) & ((x - z).abs() < 6)
    assert Region.around(rod).share < 0.4  # a diagonal, whose bounding box is everything


def test_a_velocity_is_the_same_within_and_solvent_elsewhere():
    where, level = two_bodies(), -0.4
    region = Region.around(where)
    x = torch.where(where, torch.randn(SHAPE, generator=seeded(1)), level)

    def field(x, t):  # x_0 = x
        return torch.zeros_like(x)

    field.region = region
    torch.testing.assert_close(velocity_at(field, x[None], 0.3), torch.zeros(1, *SHAPE))
    x[50:55, 30:35, 30:35] = 3.0  # outside the boxes
    x_0 = x - 0.3 * velocity_at(field, x[None], 0.3)[0]
    torch.testing.assert_close(x_0[MAIN], x[MAIN])
    torch.testing.assert_close(x_0[50:55, 30:35, 30:35], torch.full((5, 5, 5), level))


def test_gradients_pass():
    region = Region.around(two_bodies())
    x = torch.randn(SHAPE, generator=seeded(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(region.within(lambda part: part**2, x)[MAIN].sum(), x)
    torch.testing.assert_close(gradient[MAIN], 2 * x[MAIN].detach())


@pytest.mark.parametrize("sampler", [PlugAndPlay(), Guided(steps=4)], ids=["plug-and-play", "guided"])
@pytest.mark.slow
def test_samplers_find_the_same(tiled, sampler):
    """The field is pointwise: whatever the orientation in which a box is shown, nothing within may change."""
    spikes, field = tiled
    truth = spiky(two_bodies())
    data = gaussian_likelihood(Identity(), WhiteNoise(0.1), truth + 0.1 * torch.randn(SHAPE, generator=seeded(2)))
    confined = attrs.evolve(field, region=Region.around(two_bodies()))
    found, cost = [], []
    for prior in (field, confined):
        spikes.voxels = 0
        found.append(restore(prior, data, shape=SHAPE, generator=seeded(0), sampler=sampler, samples=1).x)
        cost.append(spikes.voxels)
    for body in (MAIN, FAR):  # of white noise the only thing that is not local is the Gaussian prior's guidance
        error = (found[0][body] - truth[body]).square().mean()
        assert float((found[0][body] - found[1][body]).square().mean()) < 0.05 * float(error)
    assert cost[1] < 0.4 * cost[0]


@pytest.mark.slow
def test_halves_tell_where_density_is():
    truth = spiky(two_bodies())
    halves = [truth + 0.15 * torch.randn(SHAPE, generator=seeded(seed)) for seed in (1, 2)]
    noise = estimate_noise_power(*halves)
    where = where_halves_agree(*halves, noise.signal_power, noise.noise_power)
    assert bool(where[MAIN].float().mean() > 0.98)
    assert bool(where[FAR].any())
    grown = torch.nn.functional.max_pool3d(two_bodies()[None].float(), 31, 1, 15)[0] > 0
    assert not bool((where & ~grown).any())


def test_noise_alone_is_nowhere():
    halves = [torch.randn(SHAPE, generator=seeded(seed)) for seed in (1, 2)]
    noise = estimate_noise_power(*halves)
    assert not where_halves_agree(*halves, noise.signal_power, noise.noise_power).any()


def test_a_box_smaller_than_the_averages_is_no_error():
    x = torch.randn(7, 8, 3, generator=torch.Generator().manual_seed(0))
    halves = [x + 0.1 * torch.randn(7, 8, 3, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    power = torch.ones(5)
    assert where_halves_agree(*halves, power, 0.01 * power).shape == x.shape


@pytest.mark.slow
def test_half_maps_are_restored_where_they_agree(tiled):
    """What could be a ligand, far from the main body, is not lost."""
    spikes, field = tiled
    truth = spiky(two_bodies())
    halves = [truth + 0.15 * torch.randn(SHAPE, generator=seeded(seed)) for seed in (1, 2)]
    found, cost = [], []
    for prior in (field.velocity, field):  # of no tiles nobody knows which boxes they take: the whole
        spikes.voxels = 0
        found.append(restore_half_maps(prior, *halves, generator=seeded(0), scale=1.0).map)
        cost.append(spikes.voxels)
    assert cost[1] < 0.5 * cost[0]
    for body in (MAIN, FAR):
        here, whole = (float((x[body] - truth[body]).square().mean()) for x in (found[1], found[0]))
        assert here < 1.05 * whole + 1e-6  # of the density's square
