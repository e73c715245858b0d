"""`enhance_map` and `enhance_half_maps`: what a conditional prior is shown, in which units, and what is said of it."""

from types import SimpleNamespace

import pytest
import torch

from cryofm_ops import GridMismatchError, fourier_filter, radial
from cryofm_sampling import (
    CapabilityError,
    Checkpoint,
    Guided,
    SettingError,
    directional_model,
    enhance_half_maps,
    enhance_map,
)

SHAPE = (20, 20, 20)


class Shown:
    """Data that are the volume, or, shown none, nothing at all; notes what it was shown."""

    tag = 3
    normalization = SimpleNamespace(mean=0.04, std=0.09)

    def __init__(self, weight=0.0):
        self.weight = weight

    def given(self, x, t, volume, tag):
        if volume is None:
            return x / t
        self.seen = (volume, tag)
        return (x - volume) / t


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def density():
    """Mostly coarse, in units of its own."""
    white = torch.randn(SHAPE, generator=seeded())
    return 70 * fourier_filter(white, radial(torch.exp(-torch.linspace(0, 6, 11)), SHAPE))


def test_a_map_is_shown_in_the_units_of_its_top(density):
    prior = Shown()
    result = enhance_map(prior, density, voxel_size=1.5, generator=seeded(), tag=1, steps=3)
    p = torch.quantile(density, 0.99999)
    volume, tag = prior.seen
    torch.testing.assert_close(volume[0] if volume.ndim == 4 else volume, (density / p - 0.04) / 0.09)
    assert tag == 1
    torch.testing.assert_close(result.map, density, rtol=1e-4, atol=1e-4 * float(p))
    torch.testing.assert_close(result.observed, result.map, rtol=1e-4, atol=1e-4 * float(p))
    assert (result.nfe, result.doubts, result.settings["tag"], result.settings["weight"]) == (3, (), 1, 0.0)
    torch.testing.assert_close(torch.tensor(result.scale.normalization.scale), 1 / p)


def test_guidance_is_the_prior_s_own_unless_told_and_costs_as_much_again(density):
    """v = (1 + w) (x − y) / t − w x / t takes one step from noise to (1 + w) y."""
    result = enhance_map(Shown(weight=0.5), density, voxel_size=1.5, generator=seeded(), steps=1)
    assert (result.nfe, result.settings["tag"], result.settings["weight"]) == (2, 3, 0.5)
    p = torch.quantile(density, 0.99999)
    expected = 1.5 * (density - 0.04 * p) + 0.04 * p
    torch.testing.assert_close(result.map, expected, rtol=1e-4, atol=1e-4 * float(p))
    told = enhance_map(Shown(weight=0.5), density, voxel_size=1.5, generator=seeded(), steps=1, weight=0.0)
    assert told.nfe == 1


def test_halves_show_what_the_best_linear_filter_makes_of_their_mean(density):
    halves = [density + 5 * torch.randn(SHAPE, generator=seeded(i)) for i in (1, 2)]
    steps = []
    result = enhance_half_maps(
        Shown(),
        *halves,
        voxel_size=1.5,
        generator=seeded(),
        sampler=Guided(3),
        callback=lambda stage, done, total: steps.append((stage, done, total)),
    )
    mean, model = sum(halves) / 2, directional_model(*halves)
    linear = fourier_filter(mean, model.gain.float())
    expected = linear - linear.mean() + mean.mean()
    torch.testing.assert_close(result.map, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert steps[-1] == ("enhancing", 3, 3)
    assert result.doubts == ()


def test_a_result_that_is_not_its_input_is_told(density):
    wrong = Shown()
    wrong.given = lambda x, t, volume, tag: torch.zeros_like(x)
    with pytest.warns(UserWarning, match=r"down to 10 Å.* FSC with the input is .*do not trust this map"):
        result = enhance_map(wrong, density, voxel_size=1.5, generator=seeded(), steps=1)
    assert len(result.doubts) == 1


def test_a_killed_run_goes_on_to_the_same_bits(density, tmp_path):
    class Killed(Exception):
        pass

    class Dies(Shown):
        def given(self, x, t, volume, tag):
            if float(t) < 0.5:
                raise Killed
            return super().given(x, t, volume, tag)

    how = {"voxel_size": 1.5, "steps": 4, "checkpoint": Checkpoint(tmp_path / "state")}
    with pytest.raises(Killed):
        enhance_map(Dies(), density, generator=seeded(), **how)
    again = enhance_map(Shown(), density, generator=seeded(), **how)
    whole = enhance_map(Shown(), density, generator=seeded(), **how | {"checkpoint": None})
    assert torch.equal(again.map, whole.map)


def test_what_cannot_be_is_refused(density):
    how = {"voxel_size": 1.5, "generator": seeded(), "steps": 1}
    with pytest.raises(SettingError, match=r"no positive density.*contrast inverted"):
        enhance_map(Shown(), -density.abs(), **how)
    with pytest.raises(GridMismatchError, match="one volume"):
        enhance_map(Shown(), density[None], **how)
    bare = Shown()
    bare.normalization = None
    with pytest.raises(CapabilityError, match="Shown has none"):
        enhance_map(bare, density, **how)
    with pytest.raises(CapabilityError, match="needs a ConditionalVelocityField"):
        enhance_map(SimpleNamespace(normalization=Shown.normalization), density, **how)
    with pytest.raises(GridMismatchError, match="differ in shape"):
        enhance_half_maps(Shown(), density, density[1:], voxel_size=1.5, generator=seeded())
