"""What the training tests share, and the program that they start in processes of their own."""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from cryofm_model import CryoFMError, Hourglass, HourglassConfig, UNet, UNetConfig
from cryofm_model.train import Machine, TrainConfig, train
from cryofm_model.train.distributed import processes

UNET = UNetConfig(widths=(8, 16), depths=(1, 1), up_depths=(1,), conditioning=8)
HOURGLASS = HourglassConfig(widths=(16, 32), depths=(1, 1), patch=2, kernel=3, head_width=16, conditioning=16)
# Six steps, two of 2 crops and four of 8; rows of the log and checkpoints after every second one.
RUN = TrainConfig(
    crops=1, stages=((0.5, 16, 2), (1.0, 8, 8)), lr=1e-2, muon_lr=1e-2, warmup=3, report_every=2, times="logit-normal"
)
DRAWS = 2 * 2 + 4 * 8


class Blobs:
    """Maps of a few Gaussians, made on demand."""

    def __init__(self, at_draw=lambda draw: None):
        self.at_draw, self.draws = at_draw, 0

    def crops(self, batch, side, rng):
        self.draws += 1
        self.at_draw(self.draws)
        grid = np.stack(np.meshgrid(*3 * [np.arange(side)], indexing="ij"), -1)
        maps = [
            sum(6 * np.exp(-((grid - c) ** 2).sum(-1) / 6) for c in rng.uniform(2, side - 2, (4, 3)))
            for _ in range(batch)
        ]
        return torch.from_numpy(np.stack(maps).astype(np.float32)) - 0.4


def start(kind, folder, maps=None, config=RUN, machine=None):
    """Train a small network of that kind."""
    torch.manual_seed(0)
    network = UNet(UNET) if kind == "unet" else Hourglass(HOURGLASS)
    validation = Blobs().crops(1, 8, np.random.default_rng(0))
    return train(network, maps or Blobs(), validation, config, folder, machine=machine or Machine())


def interrupt(draw):
    """Stop a run, on every process, when it draws for its fifth step."""
    if draw > (2 * 2 + 2 * 8) // int(os.environ.get("WORLD_SIZE", "1")):
        raise InterruptedError


def killed_at(draw_of_death):
    """Maps that kill the process at their n-th crop."""

    def kill(draw):
        if draw == draw_of_death:
            os.kill(os.getpid(), signal.SIGKILL)

    return Blobs(kill)


def two_processes(out):
    """What one of two processes does for `test_train_distributed`."""
    accumulate, shards = Machine(micro_batch=1), Machine(shard=True, recompute=True, micro_batch=3)
    with processes("cpu"):
        start("unet", out / "ddp", machine=accumulate)
        with suppress(InterruptedError):
            start("hourglass", out / "to-one", Blobs(interrupt), machine=shards)
        whole = start("hourglass", out / "to-two", machine=shards)
        assert all(type(p) in (torch.Tensor, torch.nn.Parameter) for p in whole.parameters())
        refused = {}
        for name, config, machine in (
            ("odd", TrainConfig(stages=((1.0, 16, 3),)), Machine()),
            ("unet", RUN, Machine(shard=True)),
        ):
            try:
                start("unet", out / "never", config=config, machine=machine)
            except CryoFMError as error:
                refused[name] = str(error)
        (out / f"refused-{os.environ['RANK']}.json").write_text(json.dumps(refused))


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    if sys.argv[1] == "killed":  # with as many threads as the process that goes on: they change the rounding
        start("unet", folder, killed_at(int(sys.argv[3])))
    else:
        torch.set_num_threads(1)
        two_processes(folder)
