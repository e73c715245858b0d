"""Sizes of the hourglass transformer, and those of the paper's networks (Tables 4 and 7)."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import attrs

from cryofm_model._kinds import even, listed, one_of, sizes, whole
from cryofm_model.errors import CryoFMError

__all__ = ["CRYOFM_L", "CRYOFM_S", "CRYOFM_VARIANTS", "HourglassConfig", "TimeCode"]

TimeCode = Literal["fp32", "bf16", "fp16"]


@attrs.frozen(kw_only=True)
class HourglassConfig:
    """Sizes of an `Hourglass`. The last level attends globally, every other one to its neighbourhood.

    Attributes:
        widths: features of a token at each level, multiples of `head_width`.
        depths: transformer blocks at each level, on the way down and again on the way up; once at the last.
        patch: side in voxels of the cube that becomes one token.
        kernel: side in tokens of the neighbourhood.
        head_width: features of an attention head, at least 12 (one rotary frequency an axis).
        channels: values of a voxel.
        conditioning: length of the time code and of the conditioning vector; even.
        ff_factor: hidden features of a feed-forward block, as a multiple of the width.
        time_code: precision in which the time code is evaluated. It is part of the model: bf16 rounds
            angles of thousands of radians to 8 bits, which makes another code of them.

    Raises:
        CryoFMError: sizes that do not fit each other.

    >>> CRYOFM_S.multiple, CRYOFM_S.smallest_side
    (8, 32)
    """

    widths: tuple[int, ...] = attrs.field(converter=listed, validator=sizes(1, 2**16))
    depths: tuple[int, ...] = attrs.field(converter=listed, validator=sizes(1, 2**10))
    patch: int = attrs.field(default=4, validator=whole(1, 64))
    kernel: int = attrs.field(default=7, validator=whole(1, 2**10))
    head_width: int = attrs.field(default=64, validator=whole(12, 2**16))
    channels: int = attrs.field(default=1, validator=whole(1, 2**16))
    conditioning: int = attrs.field(default=256, validator=even(2**16))
    ff_factor: int = attrs.field(default=3, validator=whole(1, 2**10))
    time_code: TimeCode = attrs.field(default="fp32", validator=one_of(*get_args(TimeCode)))

    def __attrs_post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.depths):
            raise CryoFMError(f"one width and one depth per level: widths {self.widths}, depths {self.depths}")
        if any(width % self.head_width for width in self.widths):
            raise CryoFMError(f"widths {self.widths} are not multiples of head_width {self.head_width}")

    @property
    def multiple(self) -> int:
        """Every side of a volume is a multiple of this many voxels."""
        return int(self.patch * 2 ** (len(self.widths) - 1))

    @property
    def smallest_side(self) -> int:
        """No side of a volume has fewer voxels: the neighbourhood must fit at its coarsest level."""
        return self.multiple * ((self.kernel + 1) // 2 if len(self.widths) > 1 else 1)

    def check_box(self, box: Sequence[int]) -> None:
        """Raise `CryoFMError` unless the network takes a box of these sides (z, y, x), in voxels."""
        if any(side % self.multiple or side < self.smallest_side for side in box):
            raise CryoFMError(
                f"every side must be a multiple of {self.multiple} voxels and at least {self.smallest_side}; "
                f"found (z, y, x) = {tuple(box)}: pad the volume"
            )


CRYOFM_S = HourglassConfig(widths=(768, 1536), depths=(4, 8))
CRYOFM_L = HourglassConfig(widths=(320, 640, 1280), depths=(2, 2, 12))

# Table 7, by its short names: patches of p voxels, d merges on the way down.
CRYOFM_VARIANTS: Mapping[str, HourglassConfig] = {
    "p4-d1": CRYOFM_S,
    "p2-d1": attrs.evolve(CRYOFM_S, patch=2),
    "p8-d1": attrs.evolve(CRYOFM_S, patch=8),
    "p4-d0": HourglassConfig(widths=(1536,), depths=(12,)),
    "p4-d2": HourglassConfig(widths=(384, 768, 1536), depths=(2, 2, 8)),
}
