"""A refinement that is told which chains are near, and brings them nearer at every pass."""

import pytest
import torch

from cryofm_ops import random_rotations, rotation_from_vector
from cryofm_sampling import Models, models_by_halving

K, NFE = 6, 5


def views(seed):
    return random_rotations(K, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def near(R, degrees, seed=0):
    """Every view turned about an axis of its own."""
    axes = torch.randn(K, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    axes = torch.nn.functional.normalize(axes, dim=-1)
    return rotation_from_vector(degrees * axes) @ R


class Refine:
    """Chain c misses by its first shift, in degrees; a pass halves that. Ranked by it."""

    def __init__(self):
        self.calls = []
        self.truth = views(1)

    def __call__(self, rotations, shifts, levels):
        self.calls.append((len(rotations), levels))
        miss = shifts[:, 0, 0] / 2
        order = miss.argsort()
        R = torch.stack([near(self.truth, float(m), int(1000 * m)) for m in miss[order]])
        moved = shifts[order].clone()
        moved[:, 0, 0] = miss[order]
        C = len(order)
        return Models(torch.zeros(C, 2, 2, 2), R, moved, torch.ones(C), miss[order], NFE, order)


def start(misses):
    shifts = torch.zeros(len(misses), K, 2, dtype=torch.float32)
    shifts[:, 0, 0] = torch.tensor(misses)
    return torch.stack([views(9)] * len(misses)), shifts


def test_the_better_half_goes_on():
    refine = Refine()
    misses = [float(100 + 20 * ((7 * i) % 16)) for i in range(16)]
    models, nfe = models_by_halving(refine, *start(misses), keep=3, short=4, levels=9)
    assert refine.calls == [(16, 4), (8, 4), (4, 4), (3, 9), (3, 9)]
    assert nfe == NFE * sum(count for count, _ in refine.calls)
    best = sorted(range(16), key=lambda c: misses[c])[:3]
    assert models.chain.tolist() == best  # by the numbers that they had at first
    assert models.misfit.tolist() == pytest.approx([misses[c] / 2**5 for c in best])


def test_poses_that_are_found_are_not_looked_for():
    refine = Refine()
    models, nfe = models_by_halving(refine, *start([300.0, 6.0, 4.0, 200.0] * 4), keep=3, short=4, levels=9)
    assert refine.calls == [(16, 4), (3, 9)]
    assert nfe == NFE * 19
    assert set(models.chain.tolist()) <= {i for i in range(16) if i % 4 in (1, 2)}


@pytest.mark.parametrize("count", [1, 2])
def test_few_chains(count):
    refine = Refine()
    models, _ = models_by_halving(refine, *start([400.0, 500.0][:count]), keep=3, short=4, levels=9)
    assert len(models.chain) == count
    assert refine.calls == [(count, 4)] + [(count, 9)] * count
