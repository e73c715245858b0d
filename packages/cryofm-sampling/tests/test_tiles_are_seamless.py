"""A tiled velocity field is the field itself, on any box, to the last bit of arithmetic that tiles leave."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cryofm_sampling import Calibrated, SettingError, Tiled, VelocityField
from cryofm_sampling.testing import GaussianPrior

T = torch.tensor(0.5)


class Convolutions(nn.Module):
    """A network of receptive field 7, with zero padding as networks have it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1),
            nn.SiLU(),
            nn.Conv3d(8, 8, 3, padding=1),
            nn.SiLU(),
            nn.Conv3d(8, 1, 3, padding=1),
        ).float()

    def forward(self, x, t):
        return self.body(x.unsqueeze(-4)).squeeze(-4) * t.reshape((*t.shape, 1, 1, 1))


@given(
    box=st.tuples(*[st.integers(1, 15)] * 3),
    tile=st.integers(2, 8),
    data=st.data(),
    batch=st.sampled_from([(), (1,), (2,), (2, 2)]),
)
@settings(max_examples=40, deadline=None)
def test_a_pointwise_field_is_unchanged_on_any_box(box, tile, data, batch):
    overlap = data.draw(st.integers(0, tile // 2))
    x = torch.randn(*batch, *box, generator=torch.Generator().manual_seed(0))
    tiled = Tiled(lambda x, t: x * x + t, tile, overlap)
    torch.testing.assert_close(tiled(x, T), x * x + 0.5)


def test_every_tile_has_the_trained_size_and_its_own_time():
    shapes = []

    def field(x, t):
        shapes.append(tuple(x.shape))
        return t.reshape(-1, 1, 1, 1).expand_as(x)

    v = Tiled(field, 8, 2)(torch.zeros(3, 5, 8, 15), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(v, torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1, 1).expand(3, 5, 8, 15))
    assert set(shapes) == {(1, 8, 8, 8)}
    assert len(shapes) == 3 * 3  # one tile along z and y, three along x, for each of three volumes


@torch.no_grad()
def test_bits_do_not_depend_on_the_tile_batch_nor_on_the_batch():
    """Convolutions do round differently in another batch size, which the first line makes sure of."""
    network = Convolutions()
    x = torch.randn(2, 20, 13, 25, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    t = T.float()
    one = Tiled(network, 12, 4, tile_batch=1)(x, t)
    for tile_batch in (2, 3, 100):
        assert torch.equal(one, Tiled(network, 12, 4, tile_batch=tile_batch)(x, t))
    assert torch.equal(one[1], Tiled(network, 12, 4)(x[1], t))


@torch.no_grad()
def test_translation_by_the_stride():
    network, stride = Convolutions(), 8
    tiled = Tiled(network, 12, 4)
    x = torch.zeros(44, 20, 20, dtype=torch.float32)
    x[8:20, 3:17, 3:17] = torch.randn(12, 14, 14, dtype=torch.float32)
    moved = torch.roll(x, stride, 0)
    inner = slice(2 * stride, -stride)  # what both runs see away from the ends of the box
    assert torch.equal(torch.roll(tiled(x, T.float()), stride, 0)[inner], tiled(moved, T.float())[inner])


@torch.no_grad()
def test_no_seams():
    """Against the whole box at once: the difference is small, and does not jump at the edges of tiles."""
    network = Convolutions().double()
    x = torch.randn(36, 36, 36, generator=torch.Generator().manual_seed(0))
    whole = network(x, T)
    difference = Tiled(network, 20, 8)(x, T) - whole
    assert difference.square().mean() < 2e-3 * (whole - whole.mean()).square().mean()
    step = (difference[1:] - difference[:-1]).square().mean((1, 2)).sqrt()
    abrupt = Tiled(network, 20, 0)(x, T) - whole  # tiles that only touch: edges at 16 and 20
    jump = (abrupt[1:] - abrupt[:-1]).square().mean((1, 2)).sqrt().max()
    assert step.max() < 0.25 * jump


def test_gradients_flow_through():
    x = torch.randn(5, 9, 12, requires_grad=True)
    tiled = Tiled(lambda x, t: x**3, 6, 2)
    (g,) = torch.autograd.grad(tiled(x, T).sum(), x)
    torch.testing.assert_close(g, 3 * x.detach() ** 2)


def test_calibrated_exactly_if_the_field_is():
    prior = GaussianPrior(2.0)
    tiled = Tiled(prior, 8, 2)
    assert isinstance(tiled, VelocityField)
    assert isinstance(tiled, Calibrated)
    assert torch.equal(tiled.denoising_error, prior.denoising_error)
    assert not isinstance(Tiled(lambda x, t: x, 8, 2), Calibrated)


def test_overlap_beyond_half_a_tile_is_refused():
    with pytest.raises(SettingError, match="at most half a tile of 8, got 5"):
        Tiled(lambda x, t: x, 8, 5)
