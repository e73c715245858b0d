"""What every way of abinitio.py to models ends with."""

from typing import NamedTuple

from torch import Tensor


class Ranked(NamedTuple):
    """Models, the best first."""

    x: Tensor  # densities, (C, n, n, n)
    rotations: Tensor  # object to view, (C, K, 3, 3)
    shifts_px: Tensor  # what centres the prepared images, (C, K, 2)
    scores: dict[str, Tensor]  # (C,) each; the first is what they are ranked by
    evaluations: int  # of the network, in all
