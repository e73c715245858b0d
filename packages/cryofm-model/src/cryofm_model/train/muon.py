"""Muon: momentum, orthogonalised (K. Jordan et al. 2024, kellerjordan.github.io/posts/muon).

`torch.optim.Muon` takes matrices alone and multiplies in bf16, which most laptops emulate. This one takes
convolutions as well and multiplies in the precision that it is told, by default that of the weights.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cryofm_model._kinds import fraction, not_negative

__all__ = ["Muon", "inner_weights"]

# Parts of `UNet` and `Hourglass` between voxels or times and features: their sides are no features, or their output
# is a gain.
_OUTER = {"stem", "out", "patch_in", "patch_out", "time_in", "time_in_proj", "modulation", "norm"}
_QUINTIC = (3.4445, -4.7750, 2.0315)  # maps every singular value in (0, 1] near 1 within five rounds


def inner_weights(network: nn.Module) -> list[nn.Parameter]:
    """The weights of a `UNet` or `Hourglass` that map features to features, which are those for `Muon`.

    >>> from cryofm_model import UNet, UNetConfig
    >>> network = UNet(UNetConfig(widths=(8, 16), depths=(1, 1), up_depths=(1,), conditioning=8))
    >>> inner = inner_weights(network)
    >>> [name for name, p in network.named_parameters() if any(p is q for q in inner)][:3]
    ['down.0.0.conv_in.weight', 'down.0.0.conv_out.weight', 'down.1.0.conv_in.weight']
    """
    named = network.named_parameters()
    return [p for name, p in named if p.ndim > 1 and _OUTER.isdisjoint(name.split("."))]


class Muon(Optimizer):
    """Steps of ``lr`` along the orthogonal matrix nearest to the Nesterov momentum.

    For weights that multiply: matrices (out, in) and convolutions (out, in, ...), the latter as matrices of
    (out, everything else). Biases, gains, the first and the last layer belong to AdamW.

    Args:
        params: weights of at least two dimensions.
        lr: spectral norm of a step, for matrices that are no taller than wide.
        momentum: decay of the averaged gradient.
        weight_decay: decoupled, per step times ``lr``.
        dtype: in which it multiplies; None: that of the weights. bf16 takes half the time where the machine has units
            for it.

    >>> weight = torch.nn.Parameter(torch.eye(2))
    >>> (weight * torch.tensor([[3.0, 0.0], [0.0, 0.1]])).sum().backward()
    >>> Muon([weight], lr=0.5).step()
    >>> bool(weight[1, 1] < 0.7)  # the small singular value gets as large a step as the other
    True
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        dtype: torch.dtype | None = None,
    ) -> None:
        not_negative.check("lr", lr)
        fraction.check("momentum", momentum)
        not_negative.check("weight_decay", weight_decay)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = dtype

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        average = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        direction = torch.lerp(gradient, average, group["momentum"])
        matrix = orthogonalised(direction.flatten(1).to(self._dtype or weight.dtype)).to(weight)
        taller = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(matrix.view(weight.shape), alpha=group["lr"] * taller)


def orthogonalised(matrix: Tensor) -> Tensor:
    """About U Vᵀ of matrix = U S Vᵀ: singular values between 0.7 and 1.2, but for those under 1e-3 of the norm."""
    a, b, c = _QUINTIC
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if matrix.shape[0] > matrix.shape[1] else x
