"""The cost of an evaluation against the paper, against torch's own counter and against counting by hand."""

import attrs
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cryofm_model import (
    CRYOFM_L,
    CRYOFM_S,
    CryoFMError,
    Hourglass,
    HourglassConfig,
    UNet,
    UNetConfig,
    forward_gflop,
)
from cryofm_model.networks.flops import counted_gflop, multiply_adds

TINY = HourglassConfig(
    widths=(24, 48, 96), depths=(1, 2, 3), patch=2, kernel=3, head_width=12, channels=2, conditioning=6, ff_factor=2
)
BOX = (16, 24, 32)


def test_table_4() -> None:
    assert round(forward_gflop(CRYOFM_S, (64, 64, 64), rule="table 4"), 2) == 395.87
    assert round(forward_gflop(CRYOFM_L, (128, 128, 128), rule="table 4"), 2) == 427.26


@pytest.mark.slow
def test_linear_maps_cost_what_torch_counts() -> None:
    with FlopCounterMode(display=False) as counter:
        Hourglass(TINY)(torch.zeros(1, *BOX, 2), torch.tensor(0.5))
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    assert counted == 2 * multiply_adds(TINY, BOX).linear


def test_a_network_of_one_level_costs_what_torch_counts_in_all() -> None:
    config = attrs.evolve(TINY, widths=(24,), depths=(2,))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the one that is counted on a CPU
        Hourglass(config)(torch.zeros(1, 4, 6, 8, 2), torch.tensor(0.5))
    assert counter.get_total_flops() == pytest.approx(1e9 * forward_gflop(config, (4, 6, 8)), rel=1e-12)


def test_attention_by_hand() -> None:
    count = multiply_adds(TINY, BOX)
    tokens = (8 * 12 * 16, 4 * 6 * 8, 2 * 3 * 4)
    assert count.global_attention == 3 * 2 * 96 * tokens[2] ** 2  # blocks, (q · k, weights · v), width, pairs
    assert count.neighborhood_attention == 27 * (2 * 2 * 24 * tokens[0] + 4 * 2 * 48 * tokens[1])
    assert forward_gflop(TINY, BOX) == pytest.approx(2e-9 * sum(attrs.astuple(count)))


def test_a_box_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CryoFMError, match="multiple of 8 voxels"):
        forward_gflop(CRYOFM_S, (64, 64, 60))


def test_a_convolutional_network_costs_what_its_layers_do() -> None:
    config = UNetConfig(widths=(8, 16), depths=(1, 2), up_depths=(1,), patch=2, conditioning=6)
    fine, coarse = 8**3, 4**3  # grids of 16³ voxels
    convolutions = 27 * (8 * 8 * fine + 2 * 8 * 8 * fine + 4 * 16 * 16 * coarse + 2 * 8 * 8 * fine + 8 * 8 * fine)
    between = 8 * 16 * 8 * coarse + 16 * 64 * coarse
    time_code = 2 * 6 * 6 + 6 * (16 + 2 * 32 + 16)
    cost = counted_gflop(UNet(config), (1, 16, 16, 16), (1,))
    assert cost == pytest.approx(2e-9 * (convolutions + between + time_code), rel=1e-9)
    assert cost == counted_gflop(UNet(config).to("meta"), (1, 16, 16, 16), (1,))
