"""The flow of a Gaussian prior is known: from x_1 it arrives at √P x_1, and each integrator at its own order."""

import math

import pytest
import torch

from cryofm_sampling import Flow, SettingError
from cryofm_sampling.samplers.flow import _INTEGRATORS
from cryofm_sampling.testing import GaussianPrior, two_templates

BOX = (4, 6, 5)
TABLE = [5.0, 1.0, 0.05]


def error(kit, integrator, steps):
    """Largest difference from the exact end, for the same start."""
    x_1 = Flow(1)(lambda x, t: 0 * x, shape=BOX, generator=torch.Generator().manual_seed(3)).x  # no flow: the noise
    prior = GaussianPrior(torch.tensor(TABLE))
    x = Flow(steps, integrator)(prior, shape=BOX, generator=torch.Generator().manual_seed(3)).x
    exact = torch.fft.ifftn(kit.on_full_grid(TABLE, BOX).sqrt() * torch.fft.fftn(x_1)).real
    return float((x - exact).abs().max())


@pytest.mark.parametrize("integrator", _INTEGRATORS)
def test_order_of_convergence(kit, integrator):
    order = {"euler": 1, "heun": 2, "midpoint": 2}[integrator]
    coarse, fine = (error(kit, integrator, steps) for steps in (80, 160))
    assert (
        math.log2(coarse / fine) > order - 0.1
    )  # the midpoint rule is of order 3 at these times, where the last steps are short
    assert fine < (0.1, 0.002)[order - 1]


@pytest.mark.parametrize("integrator", _INTEGRATORS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_all_of_the_flow_is_integrated(integrator, steps):
    """Of a constant velocity any N makes x_1 − c; t = 0 is never asked for, where x̂_0-based fields divide by 0."""
    asked = []

    def constant(x, t):
        asked.append(float(t))
        return torch.full_like(x, 3.0) / (t > 0)

    draw = Flow(steps, integrator)(constant, shape=BOX, generator=torch.Generator().manual_seed(0))
    still = Flow(steps, integrator)(lambda x, t: 0 * x, shape=BOX, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(draw.x, still.x - 3)
    assert asked[0] == 1
    assert len(asked) == draw.nfe == {"euler": steps, "heun": 2 * steps - 1, "midpoint": 2 * steps}[integrator]


@pytest.mark.parametrize("integrator", ["euler", "midpoint"])
def test_even_steps_are_even(integrator):
    """Of v = x every step multiplies by the same; the times are the published ones."""
    flow = Flow(2, integrator, "even")
    asked = []

    def velocity(x, t):
        asked.append(float(t))
        return x

    x = flow(velocity, shape=BOX, generator=torch.Generator().manual_seed(0)).x
    x_1 = flow(lambda x, t: 0 * x, shape=BOX, generator=torch.Generator().manual_seed(0)).x
    step = 1 - 1 / 2 if integrator == "euler" else 1 - 1 / 2 * (1 - 1 / 4)
    torch.testing.assert_close(x, step**2 * x_1)
    assert asked == ([1.0, 0.5] if integrator == "euler" else [1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("integrator", _INTEGRATORS)
def test_both_modes_are_found_with_their_weights(integrator):
    prior, _ = two_templates()
    draw = Flow(20, integrator)(prior, shape=(600, *prior.box), generator=torch.Generator().manual_seed(1))
    found = prior.membership(draw.x).mean(0)
    torch.testing.assert_close(found, prior.weights, rtol=0, atol=4 * (0.21 / 600) ** 0.5)


def test_a_volume_does_not_depend_on_its_batch():
    prior = GaussianPrior(2.0)
    seen = []
    four = Flow(3)(
        prior,
        shape=(4, *BOX),
        generator=torch.Generator().manual_seed(7),
        callback=lambda step, total, x: seen.append((step, total, tuple(x.shape))),
    )
    generator = torch.Generator().manual_seed(7)
    pairs = [Flow(3)(prior, shape=(1, 2, *BOX), generator=generator).x[0] for _ in range(2)]
    torch.testing.assert_close(four.x, torch.cat(pairs), rtol=0, atol=1e-12)
    assert seen == [(i, 3, (4, *BOX)) for i in (1, 2, 3)]
    assert four.settings == {"sampler": "Flow", "steps": 3, "integrator": "heun", "spacing": "cosine"}


def test_a_callback_may_change_what_it_is_shown():
    found = [
        Flow(3)(GaussianPrior(2.0), shape=BOX, generator=torch.Generator().manual_seed(0), callback=callback).x
        for callback in (None, lambda step, total, x: x.zero_())
    ]
    assert torch.equal(*found)


def test_settings_are_checked():
    with pytest.raises(SettingError, match="shape must be"):
        Flow()(GaussianPrior(1.0), shape=(4, 4), generator=torch.Generator())
    with pytest.raises(ValueError, match="integrator"):
        Flow(10, "rk4")
