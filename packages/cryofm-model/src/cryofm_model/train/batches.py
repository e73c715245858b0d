"""What each step trains on. Every crop depends on (seed, step, its place in the batch) alone, so that neither a
restart nor the number of processes, threads and accumulated parts changes what a run sees.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from cryofm_model.data.mixture import CropSource
from cryofm_model.data.pairs import drawn
from cryofm_model.train.config import Step, TrainConfig

__all__ = ["Batch", "batches", "draw_times"]

Batch = tuple[Tensor, ...]  # x_0, t, x_1, and of pairs what is shown of x_0


def batches(
    maps: CropSource, config: TrainConfig, steps: Iterator[Step], rank: int, world: int
) -> Iterator[tuple[Step, Batch]]:
    """Each step with the share of its batch that belongs to process ``rank`` of ``world``.

    The next step's crops are cut by other threads while this one's are in use.
    """
    ahead: deque[tuple[Step, Iterator[tuple[Tensor, ...]]]] = deque()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:

        def collected() -> tuple[Step, Batch]:
            step, draws = ahead.popleft()
            x_0, *others = map(torch.cat, zip(*draws, strict=True))
            mine = slice(rank * len(x_0), (rank + 1) * len(x_0))
            return step, (x_0, draw_times(config, step)[mine], *others)

        for step in steps:
            share = step.batch // world
            places = range(rank * share, (rank + 1) * share)
            ahead.append((step, pool.map(lambda place, step=step: _draw(maps, config.seed, step, place), places)))
            if len(ahead) > 1:
                yield collected()
        while ahead:
            yield collected()


def draw_times(config: TrainConfig, step: Step) -> Tensor:
    """Times of the whole batch, (batch,): stratified, one in each of as many intervals of equal probability."""
    rng = np.random.default_rng([config.seed, step.number])
    quantile = torch.from_numpy((rng.permutation(step.batch) + rng.random(step.batch)) / step.batch)
    t = torch.sigmoid(torch.special.ndtri(quantile)) if config.times == "logit-normal" else quantile
    return t.float()


def _draw(maps: CropSource, seed: int, step: Step, place: int) -> tuple[Tensor, ...]:
    rng = np.random.default_rng([seed, step.number, place])
    x_0, shown = drawn(maps, 1, step.side, rng)
    x_1 = torch.from_numpy(rng.standard_normal(x_0.shape, np.float32))
    return (x_0, x_1) if shown is None else (x_0, x_1, shown)
