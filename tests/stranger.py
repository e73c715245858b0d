"""Somebody else's classes: they import nothing of ours, and only have the methods that the Protocols name."""

import torch
from torch import Tensor


class Saturation:
    """A detector that saturates: y = tanh(x / level) · level. Not linear, so only guidance can invert it."""

    def __init__(self, level: float) -> None:
        self.level = level

    def __call__(self, x: Tensor, /) -> Tensor:
        return torch.tanh(x / self.level) * self.level


class UnevenNoise:
    """Independent noise whose standard deviation differs from voxel to voxel."""

    def __init__(self, std: Tensor) -> None:
        self.std = std

    def sample(self, y: Tensor, /, *, generator: torch.Generator) -> Tensor:
        return y + self.std * torch.randn(y.shape, generator=generator, dtype=y.dtype)

    def precision(self, r: Tensor, /) -> Tensor:
        return r / self.std**2


class Counted:
    """A velocity field: the flow of a standard normal prior, whose velocity is (2t − 1) x / ((1 − t)² + t²)."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        self.calls += 1
        return (2 * t - 1) / ((1 - t) ** 2 + t**2) * x
