"""What tells the hourglass transformer the time and the place of a token: Fourier features and rotary positions."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from cryofm_model.networks.hourglass_config import TimeCode

__all__ = ["AxialRotary", "FourierFeatures", "token_centres"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TIME_STEPS = 1000


class FourierFeatures(nn.Module):
    """Time code [cos f, sin f] of f = 2π τ · weight at τ = 1000 t, rounded to an integer.

    M. Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions", NeurIPS 2020 (arXiv
    2006.10739). The frequencies are random normal, of unit variance as in Crowson et al., and never trained.

    Args:
        features: length of the code; even.
        time_code: precision in which the code is evaluated, whatever the precision of everything else.
    """

    weight: Tensor

    def __init__(self, features: int, time_code: TimeCode) -> None:
        super().__init__()
        self.dtype = _DTYPES[time_code]
        self.register_buffer("weight", torch.empty(features // 2, 1))

    def forward(self, t: Tensor) -> Tensor:
        """Code of the times t in [0, 1], (batch,) -> (batch, features), held in float32."""
        # Every product is rounded to `dtype`, as a matrix product under autocast rounds it.
        tau = torch.round(_TIME_STEPS * t.to(self.weight.device, torch.float32))
        f = (2 * math.pi * tau).to(self.dtype)[:, None] * self.weight[:, 0].to(self.dtype)
        return torch.cat([f.cos().float(), f.sin().float()], -1)


class AxialRotary(nn.Module):
    """Rotary positions with frequencies from π to 10π, interleaved over the heads.

    J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (arXiv 2104.09864). With f
    the frequencies of a head, its first features turn in pairs (i, i + 3 |f|) by the angles [z f, y f, x f].
    """

    freqs: Tensor

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        n = heads * (head_width // 3 // 4)
        values = torch.tensor([math.pi * 10 ** (i / n) for i in range(n)])
        self.register_buffer("freqs", rearrange(values, "(j h) -> h j", h=heads).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Turn x (..., z, y, x, heads, head width), at least in fp32."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        centres = token_centres(x.shape[-5:-2], dtype=dtype, device=x.device)
        theta = (centres[..., None, :, None] * self.freqs.to(dtype)[:, None, :]).flatten(-2)
        n = theta.shape[-1]
        x = x.to(dtype)
        a, b, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
        cos, sin = theta.cos(), theta.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def token_centres(
    grid: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """Centres of the tokens of a grid (z, y, x), (z, y, x, 3).

    The longest axis spans [−1, 1], the others in proportion. The average over 2³ tokens is the centre of the
    merged one, so every level has the positions of its grid.

    >>> token_centres((1, 1, 2))[0, 0]
    tensor([[ 0.0000,  0.0000, -0.5000],
            [ 0.0000,  0.0000,  0.5000]])
    """
    axes = [(2 * torch.arange(n, dtype=dtype, device=device) + 1 - n) / max(grid) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
