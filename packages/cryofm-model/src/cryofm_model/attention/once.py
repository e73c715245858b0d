"""A guard for functions whose backward pass leaves no graph: their second derivative would lack a part, silently."""

from typing import Any

import torch
from torch import Tensor

from cryofm_model.errors import CryoFMError

__all__ = ["differentiable_once"]


def differentiable_once(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same tensors; a backward pass through them with ``create_graph=True`` raises CryoFMError."""
    guarded: tuple[Tensor, Tensor, Tensor] = _DifferentiableOnce.apply(q, k, v)  # type: ignore[no-untyped-call]
    return guarded


class _DifferentiableOnce(torch.autograd.Function):
    @staticmethod
    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(a.view_as(a) for a in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            raise CryoFMError(
                "a gradient with create_graph=True through an attention backend that differentiates once: "
                'run the network under attention_backend("tiled")'
            )
        return grad_outputs
