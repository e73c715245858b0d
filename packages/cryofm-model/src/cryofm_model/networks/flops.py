"""Cost of one evaluation: of an `Hourglass` from its sizes, of any other network as torch counts it."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import attrs
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from cryofm_model.networks.hourglass_config import HourglassConfig

__all__ = ["MultiplyAdds", "counted_gflop", "forward_gflop", "multiply_adds"]


@attrs.frozen
class MultiplyAdds:
    """Multiply-adds of the matrix products of one evaluation, the only ones that count.

    Attributes:
        linear: of the linear maps.
        global_attention: of q · k and weights · v over all keys.
        neighborhood_attention: likewise over the kernel³ keys of a neighbourhood.
    """

    linear: int
    global_attention: int
    neighborhood_attention: int


def multiply_adds(config: HourglassConfig, box: Sequence[int]) -> MultiplyAdds:
    """Count for one volume of sides `box` (z, y, x), in voxels.

    Raises:
        CryoFMError: a box that the network does not take.

    >>> from cryofm_model import CRYOFM_S
    >>> multiply_adds(CRYOFM_S, (64, 64, 64)).global_attention
    6442450944
    """
    config.check_box(box)
    last = len(config.widths) - 1
    tokens = [math.prod(side // (config.patch << level) for side in box) for level in range(last + 1)]

    linear = config.conditioning**2 + 2 * tokens[0] * config.patch**3 * config.channels * config.widths[0]
    linear += sum(
        2 * n * 8 * fine * coarse for n, (fine, coarse) in zip(tokens[1:], pairwise(config.widths), strict=True)
    )
    attention = [0, 0]  # global, neighbourhood
    for level, (n, width, depth) in enumerate(zip(tokens, config.widths, config.depths, strict=True)):
        local = level < last
        blocks = depth * (1 + local)  # down and up
        # q, k, v and out: 4 width²; value, gate and down: 3 ff_factor width²; and the gains of both norms.
        linear += blocks * (n * (4 + 3 * config.ff_factor) * width**2 + 2 * config.conditioning * width)
        attention[local] += blocks * 2 * n * (config.kernel**3 if local else n) * width
    return MultiplyAdds(linear, *attention)


def forward_gflop(
    config: HourglassConfig, box: Sequence[int], *, rule: Literal["operations", "table 4"] = "operations"
) -> float:
    """Cost of one evaluation on one volume of sides `box` (z, y, x), in 10⁹ operations.

    Args:
        config: sizes of the network.
        box: in voxels.
        rule: `"operations"`: a multiplication and an addition are two. `"table 4"`: the paper's figures, which
            count a multiply-add as one, and a neighbourhood as kernel² keys where it has kernel³ (the count of
            the two-dimensional network that it extends).

    Raises:
        CryoFMError: a box that the network does not take.

    >>> from cryofm_model import CRYOFM_L, CRYOFM_S
    >>> boxes = ((CRYOFM_S, (64, 64, 64)), (CRYOFM_L, (128, 128, 128)))
    >>> [round(forward_gflop(*at, rule="table 4"), 2) for at in boxes]
    [395.87, 427.26]
    >>> [round(forward_gflop(*at)) for at in boxes]
    [821, 916]
    """
    count = multiply_adds(config, box)
    if rule == "table 4":
        return (count.linear + count.global_attention + count.neighborhood_attention / config.kernel) / 1e9
    return 2e-9 * (count.linear + count.global_attention + count.neighborhood_attention)


def counted_gflop(network: nn.Module, *shapes: Sequence[int]) -> float:
    """Cost of one evaluation of any network, in 10⁹ operations: of its products and convolutions, as torch counts them.

    Nothing is computed: the network is given tensors of these shapes without content.

    >>> counted_gflop(nn.Linear(1000, 1000), (500, 1000))
    1.0
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    device = next(network.parameters()).device
    fake, counter = FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False)
    with fake, counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():  # the attention that has products of its own
        network(*(torch.empty(tuple(shape), device=device) for shape in shapes))
    return float(counter.get_total_flops()) / 1e9
