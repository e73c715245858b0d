"""What determines a run, and what only says how a machine carries it out."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import attrs
from attrs.validators import optional

from cryofm_model._kinds import Kind, flag, fraction, not_negative, one_of, positive, shown, whole
from cryofm_model.errors import CryoFMError

__all__ = ["UNIT", "Machine", "Step", "TrainConfig"]

UNIT = 32**3  # voxels: lengths of runs are counted in crops of this size
Stage = tuple[float, int, int]


_decay = Kind("a number from 0 to below 1", lambda value: fraction.holds(value) and value < 1)


def _stages(stages: Any) -> Any:
    """Stages as tuples; what is none is left to be refused."""
    if isinstance(stages, list | tuple) and all(isinstance(stage, list | tuple) for stage in stages):
        return tuple(tuple(stage) for stage in stages)
    return stages


def _is_stage(stage: Any) -> bool:
    return (
        isinstance(stage, tuple)
        and len(stage) == 3
        and fraction.holds(stage[0])
        and whole(1, 2**12).holds(stage[1])
        and whole(1, 2**24).holds(stage[2])
    )


def _reach_the_end(_: object, __: object, stages: Any) -> None:
    whole_stages = isinstance(stages, tuple) and len(stages) > 0 and all(_is_stage(stage) for stage in stages)
    ends = [0.0, *(end for end, _, _ in stages)] if whole_stages else []
    if not whole_stages or ends[-1] != 1 or ends != sorted(set(ends)):
        raise CryoFMError(
            "TrainConfig: stages are (end, side, batch), the last two whole, with ends that rise to 1.0; found "
            f"{shown(stages)}"
        )


@attrs.frozen
class Step:
    """One step of a run: its number, the voxels seen before it, the side of its crops, and how many they are."""

    number: int
    seen: int
    side: int
    batch: int

    @property
    def voxels(self) -> int:
        """Voxels that the step sees."""
        return self.batch * self.side**3


@attrs.frozen(kw_only=True)
class TrainConfig:
    """Everything that determines a run; one cannot be resumed with another.

    Attributes:
        crops: length of the run, in crops of 32³ voxels (larger crops count by their voxels).
        stages: (fraction of the run at which it ends, side of the crops, crops of all processes together).
        lr: peak rate of AdamW(0.9, 0.98).
        muon_lr: peak rate of `Muon` on the inner weights (`inner_weights`); None trains them by AdamW as well.
        weight_decay: of both.
        schedule: what follows the warm-up: "cosine", to 0 at the end of the run, or "constant".
        warmup: steps in which the rates rise linearly.
        clip: largest gradient norm.
        ema: decay of the averaged weights, per step.
        times: distribution of t: "uniform", or "logit-normal" (of a standard normal variable).
        precision: "bf16" runs the network under autocast; weights and optimisers are in float32.
        report_every: steps between two rows of the log, each with validation, samples and a checkpoint.
        seed: of crops, times and noise.

    >>> config = TrainConfig(crops=12, stages=((0.5, 32, 2), (1.0, 64, 1)))
    >>> [(step.side, step.batch) for step in config.plan()]
    [(32, 2), (32, 2), (32, 2), (64, 1)]
    """

    crops: int = attrs.field(default=14_000, validator=whole(1))
    stages: tuple[Stage, ...] = attrs.field(
        default=((0.4, 32, 4), (0.75, 48, 2), (1.0, 64, 2)), converter=_stages, validator=_reach_the_end
    )
    lr: float = attrs.field(default=2e-3, validator=positive)
    muon_lr: float | None = attrs.field(default=None, validator=optional(positive))
    weight_decay: float = attrs.field(default=0.01, validator=not_negative)
    schedule: Literal["cosine", "constant"] = attrs.field(default="cosine", validator=one_of("cosine", "constant"))
    warmup: int = attrs.field(default=60, validator=whole(1))
    clip: float = attrs.field(default=1.0, validator=positive)
    ema: float = attrs.field(default=0.99, validator=_decay)
    times: Literal["uniform", "logit-normal"] = attrs.field(
        default="uniform", validator=one_of("uniform", "logit-normal")
    )
    precision: Literal["fp32", "bf16"] = attrs.field(default="fp32", validator=one_of("fp32", "bf16"))
    report_every: int = attrs.field(default=100, validator=whole(1))
    seed: int = attrs.field(default=0, validator=whole(0, 2**63 - 1))

    def plan(self, number: int = 0, seen: int = 0) -> Iterator[Step]:
        """The steps that are left when ``number`` have been done, which saw ``seen`` voxels."""
        while seen < self.crops * UNIT:
            side, batch = next((s, b) for end, s, b in self.stages if seen < end * self.crops * UNIT)
            step = Step(number, seen, side, batch)
            yield step
            number, seen = number + 1, seen + step.voxels

    def rate(self, step: Step) -> float:
        """Learning rate of a step, relative to the peak."""
        decay = 0.5 * (1 + math.cos(math.pi * step.seen / (self.crops * UNIT))) if self.schedule == "cosine" else 1.0
        return min(1.0, (step.number + 1) / self.warmup) * decay


@attrs.frozen(kw_only=True)
class Machine:
    """How a machine carries a run out: changes of it change rounding at most, and a resumed run may have them.

    Attributes:
        micro_batch: crops that one process holds at a time; gradients of more are accumulated. None: all.
        recompute: compute activations again in the backward pass instead of keeping them (`Hourglass` alone).
        shard: divide weights, gradients and optimiser among the processes (FSDP2; `Hourglass` alone) instead of
            giving a copy to each (DDP).
    """

    micro_batch: int | None = attrs.field(default=None, validator=optional(whole(1)))
    recompute: bool = attrs.field(default=False, validator=flag)
    shard: bool = attrs.field(default=False, validator=flag)
