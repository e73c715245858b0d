"""What a run says of itself: rows of ``log.csv``, pictures of samples, a progress bar with throughput and time left.

The computing that a run has done by a row is in its column ``gflop``, as the paper estimates it for figures 8 and 15:
three times an evaluation for each crop, the backward pass being twice the forward pass. A multiplication and an
addition are two operations.
"""

import csv
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from cryofm_model.flow import flow_matching_loss
from cryofm_model.networks.flops import counted_gflop, forward_gflop
from cryofm_model.networks.hourglass import Hourglass
from cryofm_model.train._png import write_png
from cryofm_model.train.config import UNIT, Step, TrainConfig
from cryofm_model.train.distributed import rank_and_world

__all__ = ["VALIDATION_TIMES", "FlowValidation", "Report", "Validation", "denoising_fsc", "sample", "validation_loss"]

VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
_PROBE_TIME = 0.7
SAMPLES, SAMPLE_STEPS = 3, 16  # of a picture
_A_MINUTE = 60.0


def _bar(**options: Any) -> Any:
    """A bar for who looks on; in a log file a line a minute."""
    from tqdm import tqdm

    class Lines(tqdm):  # type: ignore[misc,type-arg,unused-ignore]
        said = time.monotonic()

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if msg is None and time.monotonic() - self.said >= _A_MINUTE:
                self.said = time.monotonic()
                print(str(self).strip(), file=sys.stderr)

    return (tqdm if sys.stderr.isatty() else Lines)(**options)


@torch.no_grad()
def validation_loss(
    network: nn.Module, crops: Tensor, times: Sequence[float] = VALIDATION_TIMES, shown: Tensor | None = None
) -> list[float]:
    """Mean v-MSE over ``crops`` at each of ``times``, with the same noise every time it is called; with what is
    ``shown`` beside each crop to a conditional network.
    """
    generator = torch.Generator().manual_seed(0)
    device = next(network.parameters()).device
    noise = torch.randn((len(times), *crops.shape), generator=generator, dtype=crops.dtype)

    def loss(i: int, t: float, x_1: Tensor) -> float:
        one = slice(i, i + 1)
        return flow_matching_loss(
            network,
            crops[one].to(device),
            torch.tensor([t], device=device),
            x_1[one].to(device),
            *_beside(shown, one, device),
        ).item()

    return [float(np.mean([loss(i, t, x_1) for i in range(len(crops))])) for t, x_1 in zip(times, noise, strict=True)]


@torch.no_grad()
def denoising_fsc(network: nn.Module, crops: Tensor, t: float = _PROBE_TIME, shown: Tensor | None = None) -> float:
    """Mean FSC_AUC of x̂_0 = x_t − t v against the clean crops: what one evaluation restores from noise at ``t``."""
    from cryofm_io import fsc

    device = next(network.parameters()).device
    x_1 = torch.randn(crops.shape, generator=torch.Generator().manual_seed(0), dtype=crops.dtype)
    x_t = torch.lerp(crops, x_1, t)

    def denoised(i: int) -> Tensor:
        one = slice(i, i + 1)
        v = network(x_t[one].to(device), torch.tensor([t], device=device), *_beside(shown, one, device))
        x_hat_0: Tensor = x_t[i] - t * v[0].float().cpu()
        return x_hat_0

    x_hat_0 = [denoised(i) for i in range(len(x_t))]
    curves = [fsc(x.numpy(), crop.numpy(), 1.0) for x, crop in zip(x_hat_0, crops, strict=True)]
    return float(np.mean([curve.auc for curve in curves]))


@torch.no_grad()
def sample(
    network: nn.Module, shape: Sequence[int], steps: int, generator: torch.Generator, shown: Tensor | None = None
) -> Tensor:
    """Draw maps in model units from noise, by ``steps`` Euler steps of the flow from t = 1 to 0.

    Args:
        network: velocity network.
        shape: (batch, z, y, x).
        steps: network evaluations.
        generator: of the noise, on the CPU.
        shown: beside every map, to a conditional network, (conditions, z, y, x).

    >>> still = torch.nn.Linear(1, 1)
    >>> still.forward = lambda x, t: x  # dx/dt = x: every step multiplies by 1 − 1/2
    >>> x = sample(still, (1, 2, 2, 2), 2, torch.Generator().manual_seed(0))
    >>> bool((x == torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0)) / 4).all())
    True
    """
    weight = next(network.parameters())
    device = weight.device
    x = torch.randn(tuple(shape), generator=generator, dtype=weight.dtype).to(device)
    beside = [] if shown is None else [shown.to(device).expand(len(x), *shown.shape)]
    for t in torch.arange(steps, 0, -1, device=device) / steps:
        x = x - network(x, t.expand(len(x)), *beside) / steps
    return x.float().cpu()


def _beside(shown: Tensor | None, which: slice, device: torch.device) -> list[Tensor]:
    """What a network is given behind x and t."""
    return [] if shown is None else [shown[which].to(device)]


class Validation(Protocol):
    """What is measured of a network during its training, on crops that it is not trained on."""

    @property
    def crops(self) -> Tensor:
        """In model units (n, z, y, x)."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """The names of the scores."""
        ...

    def scores(self, network: nn.Module, /) -> list[float]:
        """One value for each column."""
        ...

    def maps(self, network: nn.Module, seed: int, /) -> Tensor:
        """What a picture shows, (rows, z, y, x); the first a crop."""
        ...

    def gflop(self, network: nn.Module, side: int, /) -> float:
        """What training on one crop costs, forward and backward; NaN where nobody can tell."""
        ...


@attrs.frozen(eq=False)
class FlowValidation:
    """Of a velocity network: v-MSE at fixed times, FSC of one denoising step, samples.

    Attributes:
        crops: see `Validation`.
        shown: beside the crops, to a conditional network.
    """

    crops: Tensor
    shown: Tensor | None = None
    columns = (*(f"v_mse_t{t}" for t in VALIDATION_TIMES), f"fsc_auc_t{_PROBE_TIME}")

    def scores(self, network: nn.Module) -> list[float]:
        """As `Validation.scores`."""
        losses = validation_loss(network, self.crops, shown=self.shown)
        return [*losses, denoising_fsc(network, self.crops, shown=self.shown)]

    def maps(self, network: nn.Module, seed: int) -> Tensor:
        """A crop, what is shown of it, and samples."""
        shape = (SAMPLES, *self.crops.shape[1:])
        first = None if self.shown is None else self.shown[0]
        drawn = sample(network, shape, SAMPLE_STEPS, torch.Generator().manual_seed(seed), first)
        seen = [] if self.shown is None else [self.shown[:1, 0]]
        return torch.cat([self.crops[:1], *seen, drawn])

    def gflop(self, network: nn.Module, side: int) -> float:
        """Three evaluations."""
        if isinstance(network, Hourglass):  # whose neighbourhoods cost what they have to, however they are computed
            return 3 * forward_gflop(network.config, (side,) * 3)
        shown = [] if self.shown is None else [(1, self.shown.shape[1], *(side,) * 3)]
        try:
            return 3 * counted_gflop(network, (1, *(side,) * 3), (1,), *shown)
        except (RuntimeError, NotImplementedError):  # a stranger's network that looks at its values
            return math.nan


class Report:
    """The outputs of a run, as a context; every process of it makes one, the first writes.

    Args:
        folder: of the run.
        validation: what is measured.
        config: the run.
        number: steps that a checkpoint has behind it; rows of the log beyond it are dropped, to be made again.
        seen: voxels likewise.
        network: what is trained, for what a step of it costs.
    """

    def __init__(
        self, folder: Path, validation: Validation, config: TrainConfig, number: int, seen: int, network: nn.Module
    ) -> None:
        self._folder, self._validation, self._config = folder, validation, config
        self._writes = rank_and_world()[0] == 0
        self._losses: list[float] = []
        self._since, self._seen = time.monotonic(), seen
        if self._writes:
            self._cost = {side: validation.gflop(network, side) for side in {side for _, side, _ in config.stages}}
            self._gflop = sum(self._cost[step.side] * step.batch for step in config.plan() if step.number < number)
            (folder / "samples").mkdir(parents=True, exist_ok=True)
            self._columns = ["step", "crops", "rate", "loss", *validation.columns]
            self._columns += ["gradient_norm", "gflop", "crops_per_s"]
            _keep_rows(folder / "log.csv", self._columns, number)
        self._bar = _bar(
            total=config.crops,
            initial=seen // UNIT,
            unit="crop",
            smoothing=0.05,
            mininterval=10,
            disable=not self._writes,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, step: Step, loss: float) -> None:
        """Count a step."""
        self._losses.append(loss)
        if self._writes:
            self._gflop += self._cost[step.side] * step.batch
        self._bar.update(min(step.voxels / UNIT, self._bar.total - self._bar.n))
        self._bar.set_postfix(loss=f"{np.mean(self._losses):.3f}", side=step.side, refresh=False)

    def row(self, step: Step, rate: float, norm: float, network: nn.Module) -> None:
        """Validate the averaged ``network`` after ``step`` and write a row and a picture (all processes together)."""
        seen, seconds = step.seen + step.voxels, time.monotonic() - self._since
        device = next(network.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self._config.precision == "bf16"):
            scores = self._validation.scores(network)
            maps = self._validation.maps(network, self._config.seed)
        if self._writes:
            speed = (seen - self._seen) / UNIT / seconds
            row = [step.number + 1, seen // UNIT, f"{rate:.2e}", f"{np.mean(self._losses):.5f}"]
            row += [f"{value:.4f}" for value in (*scores, norm)]
            with (self._folder / "log.csv").open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow([*row, f"{self._gflop:.6g}", f"{speed:.2f}"])
            write_png(self._folder / "samples" / f"step-{step.number + 1:08d}.png", _sections(maps))
        self._losses, self._since, self._seen = [], time.monotonic(), seen


def _keep_rows(log: Path, columns: Sequence[str], number: int) -> None:
    """Write a log with these columns and the whole rows of the one that is there, up to a step."""
    rows: list[dict[str, str]] = []
    if log.exists():
        with log.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):  # of an older version maybe, with fewer columns
                whole = None not in row and None not in row.values()  # one may be cut off
                if whole and row.get("step", "").isdecimal() and int(row["step"]) <= number:
                    rows.append(row)
    with log.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


def _sections(maps: Tensor) -> Tensor:
    """Central sections along z, y and x, one row a map; grey from the first map's solvent to its densest voxel."""
    sections = [torch.cat([m.select(axis, m.shape[axis] // 2) for axis in range(3)], -1) for m in maps]
    low, high = maps[0].min(), maps[0].max()
    return ((torch.cat(sections) - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
