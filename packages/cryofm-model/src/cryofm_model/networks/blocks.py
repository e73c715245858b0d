"""Building blocks of the hourglass transformer (paper figure 13); tokens are (batch, z, y, x, width).

The modules carry the names that the published checkpoints give to their tensors. No linear map has a bias.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cryofm_model.attention import neighborhood_attention_3d
from cryofm_model.networks.embeddings import AxialRotary
from cryofm_model.networks.hourglass_config import HourglassConfig

__all__ = ["SHUFFLED", "UNSHUFFLED", "Level", "Linear", "Projection", "RMSNorm", "Split"]

SHUFFLED = "b (z p) (y q) (x r) c"  # a grid ...
UNSHUFFLED = "b z y x (p q r c)"  # ... and its blocks, one block a token
_EPS = 1e-6


class Linear(nn.Linear):
    """Linear map without bias; `Hourglass` draws it, uniform in ± in_features^−½ unless it starts at zero."""

    def __init__(self, in_features: int, out_features: int, *, zero: bool = False) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.zero = zero

    def reset_parameters(self) -> None:
        """Leave the weight to `Hourglass`, whose generator is explicit."""


class Projection(nn.Module):
    """A linear map under the name `proj`."""

    def __init__(self, in_features: int, out_features: int, *, zero: bool = False) -> None:
        super().__init__()
        self.proj = Linear(in_features, out_features, zero=zero)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        y: Tensor = self.proj(x)
        return y


class Split(nn.Module):
    """One token to 2³ finer ones, mixed with the tokens of the way down by a learned weight."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.proj = Linear(coarse, 8 * fine)
        self.fac = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Coarse tokens x and the fine tokens of the way down -> fine tokens."""
        up: Tensor = rearrange(self.proj(x), f"{UNSHUFFLED} -> {SHUFFLED}", p=2, q=2, r=2)
        return skip + self.fac.to(up.dtype) * (up - skip)


class RMSNorm(nn.Module):
    """RMS norm with a learned gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return _rms_norm(x, self.scale)


class ConditionedRMSNorm(nn.Module):
    """RMS norm whose gain is 1 plus a linear map of the condition."""

    def __init__(self, width: int, conditioning: int) -> None:
        super().__init__()
        self.linear = Linear(conditioning, width, zero=True)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens x under the condition (batch, conditioning) -> tokens."""
        return _rms_norm(x, rearrange(1 + self.linear(condition), "b c -> b 1 1 1 c"))


class SelfAttention(nn.Module):
    """Residual block of cosine-similarity attention, over the neighbourhood or (kernel None) everywhere."""

    def __init__(self, config: HourglassConfig, width: int, kernel: int | None) -> None:
        super().__init__()
        self.heads, self.kernel = width // config.head_width, kernel
        self.scale = nn.Parameter(torch.full((self.heads,), 10.0))
        self.norm = ConditionedRMSNorm(width, config.conditioning)
        self.qkv_proj = Linear(width, 3 * width)
        self.pos_emb = AxialRotary(self.heads, config.head_width)
        self.out_proj = Linear(width, width, zero=True)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens x under the condition (batch, conditioning) -> tokens."""
        qkv: Tensor = self.qkv_proj(self.norm(x, condition))
        qkv = rearrange(qkv, "b z y x (n h d) -> n b z y x h d", n=3, h=self.heads)
        q, k = self.pos_emb(_with_norm(qkv[:2], self.scale)).to(qkv.dtype)
        if self.kernel is None:
            attended = _global_attention(q, k, qkv[2])
        else:
            attended = neighborhood_attention_3d(q, k, qkv[2], self.kernel)
        update: Tensor = self.out_proj(attended.flatten(-2))
        return x + update


class FeedForward(nn.Module):
    """Residual block of a gated linear unit, value · GELU(gate)."""

    def __init__(self, width: int, factor: int, conditioning: int) -> None:
        super().__init__()
        self.norm = ConditionedRMSNorm(width, conditioning)
        self.up_proj = Linear(width, 2 * factor * width)
        self.down_proj = Linear(factor * width, width, zero=True)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens x under the condition (batch, conditioning) -> tokens."""
        value, gate = self.up_proj(self.norm(x, condition)).chunk(2, -1)
        update: Tensor = self.down_proj(value * F.gelu(gate))
        return x + update


class Block(nn.Module):
    """Attention, then feed-forward."""

    def __init__(self, config: HourglassConfig, width: int, kernel: int | None) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, width, kernel)
        self.ff = FeedForward(width, config.ff_factor, config.conditioning)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens x under the condition (batch, conditioning) -> tokens."""
        y: Tensor = self.ff(self.self_attn(x, condition), condition)
        return y


class Level(nn.ModuleList):
    """The transformer blocks of one level; kernel None attends globally."""

    def __init__(self, config: HourglassConfig, width: int, depth: int, kernel: int | None) -> None:
        super().__init__(Block(config, width, kernel) for _ in range(depth))

    def forward(self, x: Tensor, condition: Tensor, *, recompute: bool = False) -> Tensor:
        """Tokens x under the condition (batch, conditioning) -> tokens; see `Hourglass.recompute`."""
        for block in self:
            if recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, condition, use_reentrant=False)
            else:
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
