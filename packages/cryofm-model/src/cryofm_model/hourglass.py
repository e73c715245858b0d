"""The 3-D hourglass transformer of CryoFM (paper section 4.2, appendix B.1, figures 2, 12 and 13).

K. Crowson et al., "Scalable High-Resolution Pixel-Space Image Synthesis with Hourglass Diffusion
Transformers", ICML 2024 (arXiv 2401.11605), in three dimensions. The tensors are named as in the published
checkpoints, which therefore load by strict keys.
"""

import math
from typing import Literal, get_args

import attrs
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import neighborhood_attention_3d
from .errors import CryoFMError

__all__ = ["CRYOFM_L", "CRYOFM_S", "Hourglass", "HourglassConfig", "TimeCode"]

TimeCode = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_EPS = 1e-6
_TIME_STEPS = 1000
_SHUFFLED = "b (z p) (y q) (x r) c"  # a grid ...
_UNSHUFFLED = "b z y x (p q r c)"  # ... and its blocks, one block a token


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

    widths: tuple[int, ...] = attrs.field(converter=tuple[int, ...])
    depths: tuple[int, ...] = attrs.field(converter=tuple[int, ...])
    patch: int = 4
    kernel: int = 7
    head_width: int = 64
    channels: int = 1
    conditioning: int = 256
    ff_factor: int = 3
    time_code: TimeCode = "fp32"

    def __attrs_post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.depths):
            raise CryoFMError(f"one width and one depth per level: widths {self.widths}, depths {self.depths}")
        sizes = (self.patch, self.kernel, self.channels, self.ff_factor, *self.widths, *self.depths)
        if min(sizes) < 1 or self.head_width < 12 or self.conditioning < 2 or self.conditioning % 2:
            raise CryoFMError(f"sizes must be positive, head_width at least 12 and conditioning even; found {self}")
        if any(width % self.head_width for width in self.widths):
            raise CryoFMError(f"widths {self.widths} are not multiples of head_width {self.head_width}")
        if self.time_code not in get_args(TimeCode):
            raise CryoFMError(f"time_code {self.time_code!r} is not one of {', '.join(get_args(TimeCode))}")

    @property
    def multiple(self) -> int:
        """Every side of a volume is a multiple of this many voxels."""
        return int(self.patch * 2 ** (len(self.widths) - 1))

    @property
    def smallest_side(self) -> int:
        """No side of a volume has fewer voxels: the neighbourhood must fit at its coarsest level."""
        return self.multiple * ((self.kernel + 1) // 2 if len(self.widths) > 1 else 1)


CRYOFM_S = HourglassConfig(widths=(768, 1536), depths=(4, 8))
CRYOFM_L = HourglassConfig(widths=(320, 640, 1280), depths=(2, 2, 12))


class Hourglass(nn.Module):
    """Velocity v(x_t, t) of the flow.

    Patches become tokens; each level transforms them, keeps a copy and merges 2³ of them into one token of
    the next; the last level sees the whole volume; the way back splits the tokens, mixes in the copies and
    transforms again. For speed run it under autocast: `.to(torch.bfloat16)` would round the frequencies
    of the time code.

    Args:
        config: the sizes.
        generator: draws the initial weights (a fresh one with seed 0 if None). Nothing is drawn on the meta
            device: build there what a file will fill (`load_state_dict(..., assign=True)`).

    >>> config = HourglassConfig(widths=(16, 32), depths=(1, 1), patch=2, kernel=3, head_width=16)
    >>> network = Hourglass(config, generator=torch.Generator().manual_seed(0))
    >>> network(torch.zeros(1, 8, 8, 12), torch.tensor(0.5)).shape
    torch.Size([1, 8, 8, 12])
    """

    def __init__(self, config: HourglassConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        *outer, last = zip(config.widths, config.depths, strict=True)
        width, voxels = config.widths[0], config.patch**3 * config.channels
        self.patch_in = _Projection(voxels, width)
        self.time_emb = _FourierFeatures(config.conditioning, _DTYPES[config.time_code])
        self.time_in_proj = _Linear(config.conditioning, config.conditioning)
        self.down_levels = nn.ModuleList(_Level(config, w, n, config.kernel) for w, n in outer)
        self.up_levels = nn.ModuleList(_Level(config, w, n, config.kernel) for w, n in outer)
        self.mid_level = _Level(config, *last, None)
        steps = list(zip(config.widths[:-1], config.widths[1:], strict=True))
        self.merges = nn.ModuleList(_Projection(8 * fine, coarse) for fine, coarse in steps)
        self.splits = nn.ModuleList(_Split(coarse, fine) for fine, coarse in steps)
        self.out_norm = _RMSNorm(width)
        self.patch_out = _Projection(width, voxels, zero=True)
        self._draw(generator or torch.Generator().manual_seed(0))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity, of the shape of x.

        Args:
            x: (batch, z, y, x) in model units; (batch, z, y, x, channel) where there are several channels.
            t: time in [0, 1], 1 being noise; scalar or (batch,). The network knows the 1001 times τ/1000, and
                t is rounded to the nearest: the time code of a τ in between is nothing it was trained on.

        Raises:
            CryoFMError: a shape that does not fit, with the sides that do.
        """
        self._check(x, t)
        patch = self.config.patch
        condition = self.time_in_proj(self.time_emb(t.reshape(-1)).to(self.time_in_proj.weight.dtype))
        tokens = x if self.config.channels > 1 else x[..., None]
        tokens = self.patch_in(rearrange(tokens, f"{_SHUFFLED} -> {_UNSHUFFLED}", p=patch, q=patch, r=patch))

        skips: list[Tensor] = []
        for level, merge in zip(self.down_levels, self.merges, strict=True):
            tokens = level(tokens, condition)
            skips.append(tokens)
            tokens = merge(rearrange(tokens, f"{_SHUFFLED} -> {_UNSHUFFLED}", p=2, q=2, r=2))
        tokens = self.mid_level(tokens, condition)
        for level, split in zip(reversed(self.up_levels), reversed(self.splits), strict=True):
            tokens = level(split(tokens, skips.pop()), condition)

        voxels: Tensor = self.patch_out(self.out_norm(tokens))
        voxels = rearrange(voxels, f"{_UNSHUFFLED} -> {_SHUFFLED}", p=patch, q=patch, r=patch)
        return voxels.reshape(x.shape)

    def _check(self, x: Tensor, t: Tensor) -> None:
        channels = self.config.channels
        expected = "(batch, z, y, x)" if channels == 1 else f"(batch, z, y, x, {channels})"
        if x.ndim != 4 + (channels > 1) or (channels > 1 and x.shape[-1] != channels):
            raise CryoFMError(f"the network needs a volume {expected}; found {tuple(x.shape)}")
        multiple, smallest = self.config.multiple, self.config.smallest_side
        if any(side % multiple or side < smallest for side in x.shape[1:4]):
            raise CryoFMError(
                f"every side must be a multiple of {multiple} voxels and at least {smallest}; "
                f"found (z, y, x) = {tuple(x.shape[1:4])}: pad the volume"
            )
        if t.shape not in ((), x.shape[:1]):
            raise CryoFMError(f"t must be a scalar or ({x.shape[0]},), one time a volume; found {tuple(t.shape)}")

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, _Linear) and not module.weight.is_meta:
                bound = 0.0 if module.zero else module.in_features**-0.5
                weight = torch.empty(module.weight.shape, device=generator.device)
                module.weight.copy_(weight.uniform_(-bound, bound, generator=generator))
        features = self.time_emb.weight
        if not features.is_meta:
            features.copy_(torch.randn(features.shape, generator=generator, device=generator.device))


class _Linear(nn.Linear):
    """Linear map without bias; `Hourglass` draws it, uniform in ± in_features^−½ unless it starts at zero."""

    def __init__(self, in_features: int, out_features: int, *, zero: bool = False) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.zero = zero

    def reset_parameters(self) -> None:
        """Leave the weight to `Hourglass`, whose generator is explicit."""


class _Projection(nn.Module):
    """A linear map under the name `proj`."""

    def __init__(self, in_features: int, out_features: int, *, zero: bool = False) -> None:
        super().__init__()
        self.proj = _Linear(in_features, out_features, zero=zero)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x)
        return y


class _Split(nn.Module):
    """One token to 2³ finer ones, mixed with the tokens of the way down by a learned weight."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.proj = _Linear(coarse, 8 * fine)
        self.fac = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up: Tensor = rearrange(self.proj(x), f"{_UNSHUFFLED} -> {_SHUFFLED}", p=2, q=2, r=2)
        return skip + self.fac.to(up.dtype) * (up - skip)


class _FourierFeatures(nn.Module):
    """Time code [cos f, sin f] of f = 2π τ · weight at τ = 1000 t, rounded to an integer.

    M. Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions", NeurIPS 2020 (arXiv
    2006.10739). The frequencies are random normal, of unit variance as in Crowson et al., and never trained.
    """

    weight: Tensor

    def __init__(self, features: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("weight", torch.empty(features // 2, 1))

    def forward(self, t: Tensor) -> Tensor:
        # Every product is rounded to `dtype`, as a matrix product under autocast rounds it.
        tau = torch.round(_TIME_STEPS * t.to(self.weight.device, torch.float32))
        f = (2 * math.pi * tau).to(self.dtype)[:, None] * self.weight[:, 0].to(self.dtype)
        return torch.cat([f.cos(), f.sin()], -1)


class _RMSNorm(nn.Module):
    """RMS norm with a learned gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return _rms_norm(x, self.scale)


class _ConditionedRMSNorm(nn.Module):
    """RMS norm whose gain is 1 plus a linear map of the condition."""

    def __init__(self, width: int, conditioning: int) -> None:
        super().__init__()
        self.linear = _Linear(conditioning, width, zero=True)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return _rms_norm(x, rearrange(1 + self.linear(condition), "b c -> b 1 1 1 c"))


class _AxialRotary(nn.Module):
    """Rotary positions with frequencies from π to 10π, interleaved over the heads.

    J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (arXiv 2104.09864). With f
    the frequencies of a head, its first features turn in pairs (i, i + 3 |f|) by the angles [z f, y f, x f].
    """

    freqs: Tensor

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        per_axis = head_width // 3 // 4
        values = torch.linspace(math.log(math.pi), math.log(10 * math.pi), heads * per_axis + 1)[:-1].exp()
        self.register_buffer("freqs", rearrange(values, "(j h) -> h j", h=heads).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Turn x (..., z, y, x, heads, head width), at least in fp32."""
        theta = (_positions(x)[..., None, :, None] * _at_least_fp32(self.freqs)[:, None, :]).flatten(-2)
        n = theta.shape[-1]
        x = _at_least_fp32(x)
        a, b, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
        cos, sin = theta.cos(), theta.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


class _SelfAttention(nn.Module):
    """Residual block of cosine-similarity attention, over the neighbourhood or (kernel None) everywhere."""

    def __init__(self, config: HourglassConfig, width: int, kernel: int | None) -> None:
        super().__init__()
        self.heads, self.kernel = width // config.head_width, kernel
        self.scale = nn.Parameter(torch.full((self.heads,), 10.0))
        self.norm = _ConditionedRMSNorm(width, config.conditioning)
        self.qkv_proj = _Linear(width, 3 * width)
        self.pos_emb = _AxialRotary(self.heads, config.head_width)
        self.out_proj = _Linear(width, width, zero=True)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        qkv: Tensor = self.qkv_proj(self.norm(x, condition))
        qkv = rearrange(qkv, "b z y x (n h d) -> n b z y x h d", n=3, h=self.heads)
        q, k = self.pos_emb(_with_norm(qkv[:2], self.scale)).to(qkv.dtype)
        if self.kernel is None:
            attended = _global_attention(q, k, qkv[2])
        else:
            attended = neighborhood_attention_3d(q, k, qkv[2], self.kernel)
        update: Tensor = self.out_proj(attended.flatten(-2))
        return x + update


class _FeedForward(nn.Module):
    """Residual block of a gated linear unit, value · GELU(gate)."""

    def __init__(self, width: int, factor: int, conditioning: int) -> None:
        super().__init__()
        self.norm = _ConditionedRMSNorm(width, conditioning)
        self.up_proj = _Linear(width, 2 * factor * width)
        self.down_proj = _Linear(factor * width, width, zero=True)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        value, gate = self.up_proj(self.norm(x, condition)).chunk(2, -1)
        update: Tensor = self.down_proj(value * F.gelu(gate))
        return x + update


class _Block(nn.Module):
    def __init__(self, config: HourglassConfig, width: int, kernel: int | None) -> None:
        super().__init__()
        self.self_attn = _SelfAttention(config, width, kernel)
        self.ff = _FeedForward(width, config.ff_factor, config.conditioning)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y: Tensor = self.ff(self.self_attn(x, condition), condition)
        return y


class _Level(nn.ModuleList):
    """The transformer blocks of one level; kernel None attends globally."""

    def __init__(self, config: HourglassConfig, width: int, depth: int, kernel: int | None) -> None:
        super().__init__(_Block(config, width, kernel) for _ in range(depth))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for block in self:
            x = block(x, condition)
        return x


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    mean_square = _at_least_fp32(x).square().mean(-1, keepdim=True)
    return x * (gain * torch.rsqrt(mean_square + _EPS)).to(x.dtype)


def _with_norm(x: Tensor, scale: Tensor) -> Tensor:
    """Scale x (..., heads, head width) to norm √scale: a product of two is scale · cosine similarity."""
    x = _at_least_fp32(x)
    return x * (scale.sqrt()[:, None] * torch.rsqrt(x.square().sum(-1, keepdim=True) + _EPS))


def _global_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    grid = q.shape[1:4]
    q, k, v = (rearrange(a, "b z y x h d -> b h (z y x) d") for a in (q, k, v))
    attention = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    return rearrange(attention, "b h (z y x) d -> b z y x h d", z=grid[0], y=grid[1])


def _positions(x: Tensor) -> Tensor:
    """Centres of the tokens of x (..., z, y, x, heads, head width), (z, y, x, 3).

    The longest axis spans [−1, 1], the others in proportion. The average over 2³ tokens is the centre of the
    merged one, so every level has the positions of its grid.
    """
    grid, dtype = x.shape[-5:-2], torch.promote_types(x.dtype, torch.float32)
    axes = [(2 * torch.arange(n, device=x.device, dtype=dtype) + 1 - n) / max(grid) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
