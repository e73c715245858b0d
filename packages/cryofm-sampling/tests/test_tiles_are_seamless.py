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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_reaches_the_corners(dtype):
    x = torch.randn(40, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.testing.assert_close(Tiled(lambda x, t: x, 32, 16)(x, T), x)


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
    """Convolutions may round differently in another batch size."""
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


def in_its_own_place(x, t):
    """A field that is wrong by up to half a unit, with opposite signs at opposite edges of its box."""
    z, y, x_axis = (torch.linspace(-0.5, 0.5, n, dtype=x.dtype) for n in x.shape[-3:])
    return x + z[:, None, None] + y[:, None] + x_axis


def step_at_borders(v, tile, stride):
    """Mean |difference| of neighbours of which a tile holds one, over that of the others, along all axes."""
    n = v.shape[0]
    edges = {start + shift for start in range(0, n - tile + 1, stride) for shift in (0, tile)} - {0, n}
    at = torch.tensor([i + 1 in edges for i in range(n - 1)])
    steps = sum(v.diff(dim=axis).abs().transpose(0, axis).mean((1, 2)) for axis in range(3))
    return float(steps[at].mean() / steps[~at].mean())


@torch.no_grad()
@pytest.mark.parametrize("field", [in_its_own_place, Convolutions().double()])
@pytest.mark.slow
def test_borders_do_not_show(field):
    x = torch.randn(56, 56, 56, generator=torch.Generator().manual_seed(0))
    assert step_at_borders(Tiled(field, 20, 8)(x, T), 20, 12) == pytest.approx(1, abs=0.05)


NARROW = torch.tensor([1e-30, 1.0, 1.0, 1.0, 1.0, 1e-30])  # of which nothing is left in the corners of the box


def test_a_small_window_is_as_good_as_a_large_one():
    x = torch.randn(10, 6, 6, dtype=torch.float32)
    torch.testing.assert_close(Tiled(lambda x, t: x, 6, 2, torch.full((6,), 1e-30))(x, T), x)


def test_a_window_weighs_the_tiles():
    """Two tiles along z, of 0 and of 1, which meet in voxels 4 and 5."""
    numbers = iter([0.0, 1.0])
    window = torch.tensor([1.0, 2.0, 4.0, 4.0, 3.0, 1.0])
    v = Tiled(lambda x, t: torch.full_like(x, next(numbers)), 6, 2, window)(torch.zeros(10, 6, 6), T)
    torch.testing.assert_close(v[:, 2, 3], torch.tensor([0, 0, 0, 0, 1 / 4, 2 / 3, 1, 1, 1, 1]).to(v))


@pytest.mark.parametrize(
    "window", [torch.ones(5), torch.hann_window(6), torch.full((6,), torch.nan), torch.ones(6, 1), NARROW]
)
def test_a_window_that_gives_no_weights_is_refused(window):
    with pytest.raises(SettingError, match="window must be 6 positive weights, none less than"):
        Tiled(lambda x, t: x, 6, 2, window)


@torch.no_grad()
def test_borders_would_show_without_overlap():
    x = torch.randn(60, 60, 60, generator=torch.Generator().manual_seed(0))
    assert step_at_borders(Tiled(in_its_own_place, 20, 0)(x, T), 20, 20) > 1.15


class Logged(torch.autograd.Function):
    """x²; writes down when it goes forward and backward."""

    @staticmethod
    def forward(ctx, x, log):
        log.append("forward")
        ctx.save_for_backward(x)
        ctx.log = log
        return x * x

    @staticmethod
    def backward(ctx, g):
        ctx.log.append("backward")
        return 2 * ctx.saved_tensors[0] * g, None


@pytest.mark.parametrize("box", [(5, 9, 14), (5, 6, 6)])
def test_one_graph_at_a_time(box):
    log = []
    x = torch.randn(box, requires_grad=True)
    v = Tiled(lambda x, t: Logged.apply(x, log), 6, 2)(x, T)
    tiles = {(5, 9, 14): 6, (5, 6, 6): 1}[box]
    assert log == ["forward"] * tiles
    (g,) = torch.autograd.grad(v.sum(), x)
    torch.testing.assert_close(g, 2 * x.detach())
    # With several tiles a graph is made again when backward asks for what it keeps; with one it was there.
    assert log[tiles:] == (["backward", "forward"] * tiles if tiles > 1 else ["backward"])


def test_gradient_is_that_of_all_graphs_together():
    network = Convolutions().double()
    x = torch.randn(2, 9, 13, 14, requires_grad=True, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3, 0.6])
    (g,) = torch.autograd.grad(Tiled(network, 8, 4)(x, t).square().sum(), x)
    d = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # finite differences along a random direction
        ends = [Tiled(network, 8, 4)(x + h * d, t).square().sum() for h in (-1e-5, 1e-5)]
    torch.testing.assert_close((ends[1] - ends[0]) / 2e-5, (g * d).sum(), rtol=1e-6, atol=1e-6)


def test_gradients_flow_through():
    x = torch.randn(5, 9, 12, requires_grad=True)
    tiled = Tiled(lambda x, t: x**3, 6, 2)
    (g,) = torch.autograd.grad(tiled(x, T).sum(), x)
    torch.testing.assert_close(g, 3 * x.detach() ** 2)


class OnCuda(torch.Tensor):
    """A tensor that says that it is elsewhere."""

    device = property(lambda self: torch.device("cuda:0"))


@pytest.fixture
def cuda(monkeypatch):
    """A device of 1000 bytes, of which the caller has 100 and the allocator keeps 50; a tile takes `cuda.tile`."""

    class Device:
        tile = 200

    for name, value in {
        "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: 100,
        "memory_reserved": lambda device: 150,
        "mem_get_info": lambda device: (850, 1000),
        "max_memory_allocated": lambda device: 100 + Device.tile,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return Device


@pytest.mark.parametrize(("tile", "tile_batch", "together"), [(200, 8, 3), (200, 2, 2), (10, 100, 8), (890, 8, 1)])
def test_as_many_tiles_go_together_as_fit(cuda, tile, tile_batch, together):
    cuda.tile = tile  # of the 900 bytes that are free 720 are used
    seen = []
    tiled = Tiled(lambda x, t: seen.append(len(x)) or x, 4, 0, tile_batch=tile_batch)
    x = torch.randn(8, 8, 8).as_subclass(OnCuda)
    torch.testing.assert_close(tiled(x, T).as_subclass(torch.Tensor), x.as_subclass(torch.Tensor))
    batches = [together] * (8 // together) + [8 % together] * (8 % together > 0)
    assert seen == [1, *batches]  # one to measure
    tiled(x, T)
    assert seen == [1, *batches, *batches]  # once


def test_not_one_tile_fits(cuda):
    def field(x, t):
        raise torch.OutOfMemoryError

    x = torch.randn(8, 8, 8).as_subclass(OnCuda)
    with pytest.raises(
        SettingError, match=r"not one tile of 4³ voxels fits in the .* GiB that are free on cuda:0; take"
    ):
        Tiled(field, 4, 0)(x, T)


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
