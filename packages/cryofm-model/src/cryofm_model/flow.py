"""Flow matching (Lipman et al. 2023) in the paper's convention: t = 1 is noise, t = 0 is data."""

import torch
from torch import Tensor, nn

__all__ = ["flow_matching_loss"]


def flow_matching_loss(network: nn.Module, x_0: Tensor, t: Tensor, x_1: Tensor, *condition: Tensor) -> Tensor:
    """|v(x_t, t) − (x_1 − x_0)|² with x_t = (1 − t) x_0 + t x_1 (paper 3.1, with the sign of Alg. 1).

    Args:
        network: velocity field.
        x_0: data (batch, z, y, x), normalised.
        t: times in [0, 1], (batch,).
        x_1: white noise of unit variance, like ``x_0``.
        condition: what a conditional network is shown beside x_t, if anything.

    Returns:
        Mean square error of each sample, (batch,).

    >>> x_0, x_1 = torch.zeros(2, 4, 4, 4), torch.ones(2, 4, 4, 4)
    >>> flow_matching_loss(lambda x, t: x, x_0, torch.tensor([0.0, 1.0]), x_1)
    tensor([1., 0.])
    """
    s = t.to(x_0)[:, None, None, None]
    x_t = torch.lerp(x_0, x_1, s)
    velocity: Tensor = network(x_t, t, *condition)
    return (velocity - (x_1 - x_0)).square().mean((-3, -2, -1))
