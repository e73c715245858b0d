"""How a mutant says which check is meant to catch it, and what the mutants share."""

import math
from typing import Any

import torch
from torch import Tensor


def mutant(register: list[tuple[Any, str]], caught_by: str):
    def add(thing):
        register.append((thing, caught_by))
        return thing

    return add


def named(register: list[tuple[Any, str, str]], caught_by: str, words: str):
    """A mutant whose fault is named in the message, by these words."""

    def add(thing):
        register.append((thing, caught_by, words))
        return thing

    return add


def box(x: Tensor) -> tuple[int, int, int]:
    z, y, width = x.shape[-3:]
    return z, y, width


def ramp(x: Tensor) -> Tensor:
    """A mask without any symmetry."""
    return torch.arange(1.0, math.prod(box(x)) + 1, dtype=x.dtype).reshape(box(x)) / math.prod(box(x))
