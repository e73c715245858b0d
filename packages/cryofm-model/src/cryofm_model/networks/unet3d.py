"""The 3-D U-Net of CryoFM's second generation: residual blocks, and global attention on its two coarsest levels.

The modules carry the names that the published checkpoints give to their tensors, which therefore load by strict keys.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest

import attrs
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cryofm_model._kinds import even, listed, sizes, whole
from cryofm_model.errors import CryoFMError

__all__ = ["CRYOFM2", "CRYOFM2_CONDITIONAL", "UNet3D", "UNet3DConfig"]

_EPS = 1e-5
_TIME_STEPS = 1000
_NEAR = 1e-4  # of τ: what single precision leaves of it


def _fit(config: "UNet3DConfig", _: object, __: object) -> None:
    levels = len(config.widths)
    if not levels == len(config.depths) or any(not level < levels for level in config.attention):
        raise CryoFMError(
            f"widths {config.widths}, depths {config.depths}, attention {config.attention}: one width and one depth "
            "per level, and attention at levels that there are"
        )
    attended = {config.widths[level] for level in (*config.attention, levels - 1)}
    if any(w % config.groups for w in config.widths) or any(w % config.head_width for w in attended):
        raise CryoFMError(
            f"widths {config.widths} must be multiples of groups {config.groups}, and where there is attention of "
            f"head_width {config.head_width}"
        )


@attrs.frozen(kw_only=True)
class UNet3DConfig:
    """Sizes of a `UNet3D`.

    Attributes:
        widths: channels of each level, finest first; each level halves the grid of the one before.
        depths: residual blocks of each level on the way down; one more on the way up.
        attention: levels with attention, 0 being the finest; the middle has it always.
        conditions: values of a voxel that are shown beside x_t: 1 in the published unconditional network, where it is
            0; 2 in the conditional ones, a volume and a flag.
        tags: kinds of conditions that the network tells apart; 0: it is told of none.
        conditioning: width of the time code.
        groups: of the group norms; which no tensor tells.
        head_width: channels of an attention head; likewise.

    >>> CRYOFM2.multiple
    8
    """

    widths: tuple[int, ...] = attrs.field(default=(64, 128, 256, 512), converter=listed, validator=sizes(2, 2**16))
    depths: tuple[int, ...] = attrs.field(default=(2, 2, 2, 2), converter=listed, validator=sizes(1, 2**10))
    attention: tuple[int, ...] = attrs.field(default=(2, 3), converter=listed, validator=sizes(0, 15))
    conditions: int = attrs.field(default=1, validator=whole(0, 2**10))
    tags: int = attrs.field(default=0, validator=whole(0, 2**16))
    conditioning: int = attrs.field(default=256, validator=even(2**16))
    groups: int = attrs.field(default=32, validator=whole(1, 2**16))
    head_width: int = attrs.field(default=8, validator=[whole(1, 2**16), _fit])

    @property
    def multiple(self) -> int:
        """Every side of the box must be a multiple of this."""
        return int(2 ** (len(self.widths) - 1))


CRYOFM2 = UNet3DConfig()
CRYOFM2_CONDITIONAL = UNet3DConfig(conditions=2, tags=5)


class UNet3D(nn.Module):
    """Velocity network v(x_t, t), to which a volume may be shown.

    >>> config = UNet3DConfig(widths=(8, 16), depths=(1, 1), attention=(1,), conditioning=8, groups=4)
    >>> UNet3D(config)(torch.zeros(2, 4, 4, 6), torch.tensor(0.5)).shape
    torch.Size([2, 4, 4, 6])
    """

    def __init__(self, config: UNet3DConfig = CRYOFM2) -> None:
        super().__init__()
        self.config = config
        w, last = config.widths, len(config.widths) - 1
        self.conv_in = nn.Conv3d(1 + config.conditions, w[0], 3, padding=1)
        self.time_embedding = nn.ModuleDict(
            {
                "linear_1": nn.Linear(w[0], config.conditioning),
                "linear_2": nn.Linear(config.conditioning, config.conditioning),
            }
        )
        if config.tags:
            self.class_embedding = nn.Linear(config.conditioning, config.tags, bias=False)  # a row for each tag
        self.down_blocks, skips = nn.ModuleList(), [w[0]]
        for index, depth in enumerate(config.depths):
            inputs = [skips[-1], *[w[index]] * (depth - 1)]
            down = Level(config, inputs, w[index], depth * [config.groups] if index in config.attention else [])
            down.downsamplers.extend([Resampler(w[index], stride=2)] if index < last else [])
            self.down_blocks.append(down)
            skips += [w[index]] * (depth + (index < last))
        self.mid_block = Level(config, [w[last], w[last]], w[last], [None])
        self.up_blocks, width = nn.ModuleList(), w[last]
        for index in reversed(range(last + 1)):
            depth = config.depths[index] + 1
            inputs = [a + skips.pop() for a in [width, *[w[index]] * (depth - 1)]]
            width = w[index]
            up = Level(config, inputs, width, depth * [config.groups] if index in config.attention else [])
            up.upsamplers.extend([Resampler(width, stride=1)] if index else [])
            self.up_blocks.append(up)
        self.conv_norm_out = nn.GroupNorm(config.groups, w[0], _EPS)
        self.conv_out = nn.Conv3d(w[0], 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, tag: int | None = None) -> Tensor:
        """Velocity at ``x`` (batch, z, y, x) and ``t`` in [0, 1], scalar or (batch,); same shape as ``x``.

        Args:
            x: model units.
            t: 1 is noise.
            condition: (batch, conditions, z, y, x); None: zeros.
            tag: of the kind of condition, the same for the batch; None: none.

        Raises:
            CryoFMError: a side is no multiple of ``config.multiple``, a condition of another shape, or an unknown tag.
        """
        expected = (len(x), self.config.conditions, *x.shape[1:])
        self._check(x, condition, expected, tag)
        shown = x.new_zeros(expected) if condition is None else condition.to(x)
        h = self.conv_in(torch.cat([x[:, None], shown], 1))
        code = F.silu(self._time_code(t.expand(len(x)).to(x.device), h.dtype, tag))
        skips = [h]
        for down in self.down_blocks:
            assert isinstance(down, Level)
            for layer in down.layers():
                h = layer(h, code)
                skips.append(h)
            for halve in down.downsamplers:
                h = halve(h)
                skips.append(h)
        for layer in self.mid_block.layers():
            h = layer(h, code)
        for up in self.up_blocks:
            assert isinstance(up, Level)
            for layer in up.layers():
                h = layer(torch.cat([h, skips.pop()], 1), code)
            for smooth in up.upsamplers:
                h = smooth(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        velocity: Tensor = self.conv_out(F.silu(self.conv_norm_out(h)))
        return velocity[:, 0]

    def _check(self, x: Tensor, condition: Tensor | None, expected: tuple[int, ...], tag: int | None) -> None:
        multiple = self.config.multiple
        if x.ndim != 4 or any(side % multiple for side in x.shape[1:]):
            raise CryoFMError(
                f"a volume is (batch, z, y, x), every side a multiple of {multiple} voxels; found {tuple(x.shape)}"
            )
        if condition is not None and condition.shape != expected:
            raise CryoFMError(f"the condition must be {expected}, found {tuple(condition.shape)}")
        if tag is not None and not 0 <= tag < self.config.tags:
            raise CryoFMError(f"tag {tag}: the network knows {self.config.tags} tags")

    def _time_code(self, t: Tensor, dtype: torch.dtype, tag: int | None) -> Tensor:
        """(batch, conditioning), from cosines and sines that are computed in fp32 whatever follows."""
        tau = _TIME_STEPS * t.double()
        tau = torch.where((tau - tau.round()).abs() < _NEAR, tau.round(), tau).float()
        half = self.config.widths[0] // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angle = tau[:, None] * frequencies
        code = torch.cat([angle.cos(), angle.sin()], -1).to(dtype)
        embedded: Tensor = self.time_embedding["linear_2"](F.silu(self.time_embedding["linear_1"](code)))
        return embedded if tag is None else embedded + self.class_embedding.weight[tag]


class Level(nn.Module):
    """Residual blocks of one width, and attention behind each of the first of them; what changes the grid is added."""

    def __init__(self, config: UNet3DConfig, inputs: Sequence[int], width: int, groups: Sequence[int | None]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(a, width, config.conditioning, config.groups) for a in inputs)
        self.attentions = nn.ModuleList(Attention(width, config.head_width, of_norm) for of_norm in groups)
        self.downsamplers, self.upsamplers = nn.ModuleList(), nn.ModuleList()

    def layers(self) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
        """Each block with the attention behind it, if any."""
        for block, attention in zip_longest(self.resnets, self.attentions):
            yield block if attention is None else partial(_attended, block, attention)


def _attended(block: nn.Module, attention: nn.Module, h: Tensor, code: Tensor) -> Tensor:
    result: Tensor = attention(block(h, code))
    return result


class ResidualBlock(nn.Module):
    """shortcut(h) + conv2(silu(GN(conv1(silu(GN(h)))) (1 + s) + b)), with s and b of the time code."""

    def __init__(self, inputs: int, width: int, conditioning: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, _EPS)
        self.conv1 = nn.Conv3d(inputs, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(conditioning, 2 * width)
        self.norm2 = nn.GroupNorm(groups, width, _EPS)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)
        if inputs != width:
            self.conv_shortcut = nn.Conv3d(inputs, width, 1)

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        """``h`` (batch, inputs, z, y, x), ``code`` (batch, conditioning), already through its silu."""
        u = self.conv1(F.silu(self.norm1(h)))
        scale, shift = self.time_emb_proj(code)[..., None, None, None].chunk(2, 1)
        u = self.conv2(F.silu(torch.addcmul(shift, self.norm2(u), 1 + scale)))
        straight: Tensor = self.conv_shortcut(h) if "conv_shortcut" in self._modules else h
        result: Tensor = straight + u
        return result


class Attention(nn.Module):
    """h + to_out(attention over all voxels of GN(h)), without positions; without the norm where there is no group."""

    def __init__(self, width: int, head_width: int, groups: int | None) -> None:
        super().__init__()
        self.heads = width // head_width
        self.group_norm = nn.Identity() if groups is None else nn.GroupNorm(groups, width, _EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, h: Tensor) -> Tensor:
        """(batch, width, z, y, x), of the same shape."""
        z, y, _ = h.shape[2:]
        tokens = rearrange(self.group_norm(h), "b c z y x -> b (z y x) c")
        q, k, v = (
            rearrange(project(tokens), "b n (heads c) -> b heads n c", heads=self.heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        attended = rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n c -> b n (heads c)")
        change: Tensor = rearrange(self.to_out[0](attended), "b (z y x) c -> b c z y x", z=z, y=y)
        return h + change


class Resampler(nn.Module):
    """A convolution under the name `conv`; of stride 2 it halves the grid."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width, width, 3, stride=stride, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """(batch, width, z, y, x)."""
        out: Tensor = self.conv(h)
        return out
