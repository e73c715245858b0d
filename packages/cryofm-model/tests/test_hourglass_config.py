"""The paper's networks have the paper's sizes, and sizes that do not fit each other are refused."""

from typing import Any

import attrs
import pytest
import torch

from cryofm_model import CRYOFM_L, CRYOFM_S, CRYOFM_VARIANTS, CryoFMError, Hourglass, HourglassConfig

SMALL = HourglassConfig(
    widths=(24, 48, 72), depths=(1, 2, 1), patch=2, kernel=3, head_width=24, conditioning=10, ff_factor=2
)


def parameters(config: HourglassConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Hourglass(config).parameters())


def test_parameters_of_the_published_networks() -> None:
    assert parameters(CRYOFM_S) == 335_184_929
    assert parameters(CRYOFM_L) == 308_535_918


@pytest.mark.parametrize(
    ("name", "millions"),
    [("p4-d1", 335.18), ("p2-d1", 335.10), ("p8-d1", 335.87), ("p4-d0", 377.75), ("p4-d2", 316.06)],
)
def test_parameters_of_table_7(name: str, millions: float) -> None:
    assert round(parameters(CRYOFM_VARIANTS[name]) / 1e6, 2) == millions


@pytest.mark.parametrize("name", CRYOFM_VARIANTS)
def test_every_variant_runs_in_boxes_that_are_no_cubes(name: str) -> None:
    """With heads of 12 features instead of 64, and a twelfth of them."""
    config = CRYOFM_VARIANTS[name]
    widths = tuple(12 * (level + 1) for level in range(len(config.widths)))
    network = Hourglass(attrs.evolve(config, widths=widths, head_width=12, conditioning=4))
    torch.nn.init.ones_(network.patch_out.proj.weight)
    side = config.smallest_side
    box = (side, side, side + config.multiple)
    config.check_box(box)
    config.check_box((64, 64, 64))  # the one it was trained on
    x = torch.randn(1, *box, generator=torch.Generator().manual_seed(0))
    velocity = network(x, torch.tensor(0.5))
    assert velocity.shape == x.shape
    assert velocity.isfinite().all()
    assert velocity.any()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"widths": (24,)}, "one width and one depth per level"),
        ({"widths": (), "depths": ()}, "one width and one depth per level"),
        ({"widths": (24, 50, 72)}, "not multiples of head_width 24"),
        ({"kernel": 0}, "kernel must be a whole number from 1"),
        ({"head_width": 8}, "head_width must be a whole number from 12"),
        ({"conditioning": 9}, "conditioning must be an even number"),
        ({"time_code": "fp8"}, "time_code must be one of fp32, bf16, fp16"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(CryoFMError, match=message):
        HourglassConfig(**(attrs.asdict(SMALL) | sizes))
