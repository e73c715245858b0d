"""Single steps inside the samplers, each against a root, a variance or a power that is known."""

from types import SimpleNamespace

import pytest
import torch
from scipy.optimize import brentq

from cryofm_ops import MissingWedge, radial
from cryofm_sampling.half_maps.tilts import doubt_of_tilts
from cryofm_sampling.samplers._smoothed import smoothed_gradient
from cryofm_sampling.samplers.ab_initio import _at, _by_power
from cryofm_sampling.samplers.plug_and_play import _precision

BOX = (4, 4, 4)


class Quartic:
    """log p(y | x) = −c Σ (x − y)⁴: the first step, by the curvature where the search starts, goes far too wide."""

    def __init__(self, y, c):
        self.y, self.c = y, c

    def log_prob(self, x, /):
        return -self.c * (x - self.y).pow(4).sum((-3, -2, -1))


@pytest.mark.parametrize(("c", "error"), [(0.1, 0.001), (30.0, 0.02)])
def test_the_smoothed_gradient_leads_to_the_mode_where_no_parabola_does(c, error):
    """With R = 1 every voxel goes its own way: its w solves 4 c (m + w − y)³ + w = 0."""
    generator = torch.Generator().manual_seed(0)
    y, mean = torch.randn(2, *BOX, generator=generator)
    found = smoothed_gradient(Quartic(y, c), mean[None], torch.ones(4, 4, 3))[0]
    expected = [
        brentq(lambda w, gap=gap: 4 * c * (gap + w) ** 3 + w, -abs(gap) - 1, abs(gap) + 1)
        for gap in (mean - y).flatten().tolist()
    ]
    torch.testing.assert_close(
        found.flatten(), torch.tensor(expected), rtol=0, atol=0.03 * float(torch.tensor(expected).std())
    )


def test_two_draws_tell_the_precision_of_the_data():
    """Of flat spectra the variance V is known, and 1/V = 1/P + W; where the data say nothing a little is left."""
    power = torch.full((4, 4, 3), 2.0)
    draws = torch.zeros(2, *BOX)
    draws[0, 0, 0, 0] = draws[1, 2, 1, 3] = 8 * 0.5**0.5  # |rfft|² = 0.5 everywhere
    torch.testing.assert_close(_precision(object(), draws, power, BOX), torch.full((4, 4, 3), 1 / 0.5 - 1 / 2))
    torch.testing.assert_close(_precision(object(), 10 * draws, power, BOX), torch.full((4, 4, 3), 1e-3 / 2))


@pytest.mark.parametrize("noise", [0.0, 0.25, 9.0])
def test_the_scale_of_images_is_that_of_their_power_beyond_the_noise(noise):
    """And finite where there is none, in images of noise alone."""
    generator = torch.Generator().manual_seed(0)
    k = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    spectra = torch.randn(2, 3, 2, generator=generator)
    images = SimpleNamespace(n=4, k=k, ctf=torch.ones(2, 3), spectra=torch.view_as_complex(spectra), noise=noise)
    expected = 4**3 * 2.0 * 6 / max(float(spectra.square().sum()) - 6 * noise, 1e-3 * float(spectra.square().sum()))
    assert _by_power(images, torch.full((4, 4, 3), 2.0)) == pytest.approx(expected**0.5)


def test_the_mean_of_a_map_is_no_power_within_a_wedge():
    x = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    x = x[0] + 0.1 * x
    x = x - x.mean((-3, -2, -1), keepdim=True)
    for level in (0.0, 7.0):
        assert "of the map's power lies within the wedge" in doubt_of_tilts(MissingWedge(-60, 60), *(x + level))


def test_a_radial_power_is_read_between_its_shells():
    table = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5])
    k = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -2.0], [1.5, 2.0]])
    torch.testing.assert_close(_at(radial(table, (8, 8, 8)), k), torch.tensor([5.0, 3.0, 2.0, 1.5]))
