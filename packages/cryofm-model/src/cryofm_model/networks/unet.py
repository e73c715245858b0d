"""A small 3-D U-Net that predicts flow-matching velocities: convolutions, so any box and a laptop will do."""

import math

import attrs
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cryofm_model._kinds import even, listed, sizes, whole
from cryofm_model.errors import CryoFMError

__all__ = ["UNet", "UNetConfig"]


def _one_per_level(config: "UNetConfig", _: object, up_depths: tuple[int, ...]) -> None:
    if not len(config.widths) == len(config.depths) == len(up_depths) + 1:
        raise CryoFMError(
            f"widths {config.widths}, depths {config.depths}, up_depths {up_depths}: must have n, n and n - 1 entries"
        )


@attrs.frozen
class UNetConfig:
    """Sizes of a `UNet`.

    Attributes:
        widths: channels of each level, finest first; each level halves the grid of the one before.
        depths: residual blocks of each level on the way down (all of them at the coarsest level).
        up_depths: residual blocks of each level but the coarsest on the way up.
        patch: voxels per side that the stem folds into channels.
        conditioning: width of the time code.
        conditions: values of a voxel that are shown beside x_t: 2, a volume and a flag, in a `ConditionalPrior`.
    """

    widths: tuple[int, ...] = attrs.field(default=(48, 96, 192), converter=listed, validator=sizes(1, 2**16))
    depths: tuple[int, ...] = attrs.field(default=(2, 2, 2), converter=listed, validator=sizes(0, 2**10))
    up_depths: tuple[int, ...] = attrs.field(
        default=(2, 2), converter=listed, validator=[sizes(0, 2**10), _one_per_level]
    )
    patch: int = attrs.field(default=2, validator=whole(1, 64))
    conditioning: int = attrs.field(default=128, validator=even(2**16))
    conditions: int = attrs.field(default=0, validator=whole(0, 2**10))

    @property
    def multiple(self) -> int:
        """Every side of the box must be a multiple of this."""
        return int(self.patch * 2 ** (len(self.widths) - 1))

    @property
    def local(self) -> bool:
        """What it makes of a place hangs on the field of view around it alone."""
        return True


class UNet(nn.Module):
    """Velocity network v(x_t, t): residual 3 x 3 x 3 convolutions on a pyramid of grids.

    The output is preconditioned, v = c_skip x_t + c_out F(c_in x_t, t), with the coefficients that are optimal for
    white data of unit variance (Karras et al. 2022, eq. 7, carried over to x_t = (1 - t) x_0 + t x_1), so an
    untrained network already is the best linear scalar denoiser. Normalisation is over channels, voxel by
    voxel: what the network makes of a place does not depend on the box around it beyond its field of view.

    >>> network = UNet(UNetConfig(widths=(8, 16), depths=(1, 1), up_depths=(1,), conditioning=8))
    >>> network(torch.zeros(2, 8, 8, 12), torch.tensor(0.5)).shape
    torch.Size([2, 8, 8, 12])
    """

    frequencies: Tensor

    def __init__(self, config: UNetConfig = UNetConfig()) -> None:
        super().__init__()
        self.config = config
        c = config.conditioning
        span = torch.linspace(0.0, math.log(100.0), c // 2, device="cpu")  # on "meta" it would import torch's compiler
        self.register_buffer("frequencies", torch.exp(span))
        self.time_in = nn.Sequential(nn.Linear(c, c), nn.SiLU(), nn.Linear(c, c), nn.SiLU())
        self.stem = nn.Conv3d((1 + config.conditions) * config.patch**3, config.widths[0], 3, padding=1)
        pairs = list(zip(config.widths, config.widths[1:], strict=False))
        self.down = nn.ModuleList(
            Level(Block(w, c) for _ in range(n)) for w, n in zip(config.widths, config.depths, strict=True)
        )
        self.merge = nn.ModuleList(nn.Conv3d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.split = nn.ModuleList(nn.Linear(coarse, 8 * fine) for fine, coarse in pairs)
        self.up = nn.ModuleList(
            Level(Block(w, c) for _ in range(n)) for w, n in zip(config.widths, config.up_depths, strict=False)
        )
        self.out = nn.Conv3d(config.widths[0], config.patch**3, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # the stubs know 2-D only

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Velocity at ``x`` (batch, z, y, x) and ``t`` in [0, 1], scalar or (batch,); same shape as ``x``.

        Args:
            x: model units.
            t: 1 is noise.
            condition: (batch, conditions, z, y, x); None: zeros.

        Raises:
            CryoFMError: a side is no multiple of ``config.multiple``, or the condition is of another shape.
        """
        if any(side % self.config.multiple for side in x.shape[1:]):
            raise CryoFMError(
                f"a box of {tuple(x.shape[1:])} voxels: every side must be a multiple of {self.config.multiple}"
            )
        expected = (len(x), self.config.conditions, *x.shape[1:])
        if condition is None:
            condition = x.new_zeros(expected)
        if condition.shape != expected:
            raise CryoFMError(f"the condition must be {expected}, found {tuple(condition.shape)}")
        if min(x.shape[1:]) < 3 * self.config.multiple:
            # On grids smaller than their kernel oneDNN's bf16 convolutions return garbage (torch 2.13, AVX512-bf16).
            with torch.autocast(x.device.type, enabled=False):
                return self._velocity(x, t, condition)
        return self._velocity(x, t, condition)

    def _velocity(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        t = t.to(x).expand(x.shape[0])
        code = self.time_in(self._time_code(t))
        t = t[:, None, None, None]
        spread = torch.sqrt(t**2 + (1 - t) ** 2)  # standard deviation of x_t
        p = self.config.patch
        h = torch.cat([(x / spread)[:, None], condition], 1)
        h = rearrange(h, "b c (z p) (y q) (x r) -> b z y x (c p q r)", p=p, q=p, r=p)
        h = self.stem(h.permute(0, 4, 1, 2, 3))
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            if level:
                skips.append(h)
                h = self.merge[level - 1](h)
            h = blocks(h, code)
        for level in reversed(range(len(self.up))):
            h = self.split[level](h.permute(0, 2, 3, 4, 1))
            h = rearrange(h, "b z y x (p q r c) -> b (z p) (y q) (x r) c", p=2, q=2, r=2)
            h = skips.pop() + h.permute(0, 4, 1, 2, 3)
            h = self.up[level](h, code)
        h = F.silu(F.layer_norm(h.permute(0, 2, 3, 4, 1), h.shape[1:2])).permute(0, 4, 1, 2, 3)
        h = rearrange(self.out(h), "b (p q r) z y x -> b (z p) (y q) (x r)", p=p, q=p, r=p)
        velocity: Tensor = (2 * t - 1) / spread**2 * x + h / spread
        return velocity

    def _time_code(self, t: Tensor) -> Tensor:
        angle = t[:, None] * self.frequencies.to(t)
        return torch.cat([angle.cos(), angle.sin()], -1)


class Level(nn.ModuleList):
    """Blocks in a row."""

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """As `Block.forward`."""
        for block in self:
            x = block(x, code)
        return x


class Block(nn.Module):
    """x + conv(silu(conv(modulated norm(x)))), the last convolution starting at zero."""

    def __init__(self, width: int, conditioning: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(conditioning, 2 * width)
        self.conv_in = nn.Conv3d(width, width, 3, padding=1)
        self.conv_out = nn.Conv3d(width, width, 3, padding=1, bias=False)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """``x`` (batch, width, z, y, x), channels last in memory; ``code`` (batch, conditioning)."""
        scale, shift = self.modulation(code)[:, None, None, None].chunk(2, -1)
        h = x.permute(0, 2, 3, 4, 1)
        h = torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1 + scale)
        change: Tensor = self.conv_out(F.silu(self.conv_in(h.permute(0, 4, 1, 2, 3))))
        return x + change
