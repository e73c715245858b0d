"""Neighbourhood attention tile by tile, in matrix products that any device has; exact, and linear in memory.

The grid is cut into small boxes of queries, the tiles. All queries of a tile are multiplied with all keys that
any of them sees, and a mask keeps each to its own window: the smaller a tile, the fewer products are masked,
but the narrower they are. The scores of one tile, and of a few heads, are all that exists at a time. The
backward pass computes them anew: T. Dao et al., "FlashAttention", NeurIPS 2022 (arXiv 2205.14135), appendix B.
With P = softmax(Q Kᵀ), O = P V and the gradient dO,

    dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P ∘ (dP − δ) where δ = rowsum(dO ∘ O),  dQ = dS K,  dK = dSᵀ Q.
"""

from typing import Any

import torch
from torch import Tensor

from cryofm_model.attention.tiles import Buffers, Tile, at_least_float32, rows_of, unpacked
from cryofm_model.errors import CryoFMError

__all__ = ["tiled_attention"]


def tiled_attention(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> Tensor:
    """Neighbourhood attention of q, k, v (batch, z, y, x, heads, head width); differentiable twice.

    Half precision is computed in float32 between input and output, which is the faster way wherever a
    processor has no instructions for it.
    """
    out: Tensor = _Attention.apply(q, k, v, kernel)  # type: ignore[no-untyped-call]
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> Tensor:
        buffer = Buffers(q)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for row in rows_of(q, kernel):
            queries, keys, values = (
                buffer.pack("q", q[row.queries]),
                buffer.pack("k", k[row.keys]),
                buffer.pack("v", v[row.keys]),
            )
            o = buffer("o", *queries.shape)
            for tile in row.tiles:
                p = _weights(queries[:, tile.queries], keys[:, tile.keys], tile, buffer)
                torch.bmm(p, values[:, tile.keys], out=o[:, tile.queries])
            out[row.queries] = unpacked(o, like=out[row.queries])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        q, k, v, ctx.kernel = inputs
        ctx.save_for_backward(q, k, v, output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        gradients = _Gradient.apply(q, k, v, *grad_outputs, out.detach(), ctx.kernel)  # type: ignore[no-untyped-call]
        return *gradients, None


class _Gradient(torch.autograd.Function):
    """dQ, dK and dV as functions of q, k, v and dO; O only saves work."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, d_out: Tensor, out: Tensor, kernel: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        buffer = Buffers(q)
        dtype = at_least_float32(q.dtype)
        d_q, d_k, d_v = (torch.zeros(q.shape, dtype=dtype, device=q.device) for _ in range(3))
        delta = (d_out.to(dtype) * out.to(dtype)).sum(-1, keepdim=True)
        for row in rows_of(q, kernel):
            queries, d_outs = buffer.pack("q", q[row.queries]), buffer.pack("do", d_out[row.queries])
            keys, values = buffer.pack("k", k[row.keys]), buffer.pack("v", v[row.keys])
            deltas = buffer.pack("delta", delta[row.queries])
            d_queries = buffer("dq", *queries.shape)
            d_keys, d_values = buffer("dk", *keys.shape).zero_(), buffer("dv", *keys.shape).zero_()
            for tile in row.tiles:
                query, d_o, key = queries[:, tile.queries], d_outs[:, tile.queries], keys[:, tile.keys]
                p = _weights(query, key, tile, buffer)
                d_values[:, tile.keys].baddbmm_(p.mT, d_o)
                d_s = torch.bmm(d_o, values[:, tile.keys].mT, out=buffer("ds", *p.shape))
                d_s.sub_(deltas[:, tile.queries]).mul_(p)
                torch.bmm(d_s, key, out=d_queries[:, tile.queries])
                d_keys[:, tile.keys].baddbmm_(d_s.mT, query)
            d_q[row.queries] = unpacked(d_queries, like=d_q[row.queries])
            for total, part in ((d_k[row.keys], d_keys), (d_v[row.keys], d_values)):
                total += unpacked(part, like=total)
        return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, _, ctx.kernel = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """By automatic differentiation of one tile after another: seldom wanted, so simple rather than fast."""
        if torch.is_grad_enabled():
            raise CryoFMError("neighborhood_attention_3d has no third derivative: leave out create_graph=True")
        inputs = ctx.saved_tensors  # q, k, v and dO
        totals = [torch.zeros(a.shape, dtype=at_least_float32(a.dtype), device=a.device) for a in inputs]
        buffer = Buffers(inputs[0])
        for row in rows_of(inputs[0], ctx.kernel):
            places = (row.queries, row.keys, row.keys, row.queries)
            packed = [buffer.pack(name, a[at]) for name, a, at in zip("qkvo", inputs, places, strict=True)]
            directions = [buffer.pack(name, a[at]) for name, a, at in zip("abc", grad_outputs, places, strict=False)]
            parts = [torch.zeros_like(a) for a in packed]
            for tile in row.tiles:
                slices = (tile.queries, tile.keys, tile.keys, tile.queries)
                with torch.enable_grad(), torch.autocast(totals[0].device.type, enabled=False):
                    leaves = [a[:, s].clone().requires_grad_() for a, s in zip(packed, slices, strict=True)]
                    query, key, value, d_o = leaves
                    scores = query @ key.mT + (0.0 if tile.bias is None else tile.bias)
                    first = torch.autograd.grad(scores.softmax(-1) @ value, leaves[:3], d_o, create_graph=True)
                    along = [a[:, s] for a, s in zip(directions, slices, strict=False)]
                    second = torch.autograd.grad(first, leaves, along)
                for part, s, gradient in zip(parts, slices, second, strict=True):
                    part[:, s] += gradient
            for total, part, at in zip(totals, parts, places, strict=True):
                total[at] += unpacked(part, like=total[at])
        return *(total.to(a.dtype) for total, a in zip(totals, inputs, strict=True)), None, None


def _weights(query: Tensor, key: Tensor, tile: Tile, buffer: Buffers) -> Tensor:
    """P = softmax(Q Kᵀ), (heads, queries, keys)."""
    scores = buffer("scores", len(query), query.shape[1], key.shape[1])
    if tile.bias is None:
        torch.bmm(query, key.mT, out=scores)
    else:
        torch.baddbmm(tile.bias, query, key.mT, out=scores)
    return torch.softmax(scores, -1, out=scores)
