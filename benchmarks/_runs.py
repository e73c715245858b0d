"""What benchmarks read of finished and unfinished trainings: their file, their log, and what an evaluation costs."""

import csv
import json
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from cryofm_model import CryoFMError, Prior, WeightsError, load_prior
from cryofm_model.latent import Codec, LatentPrior, load_latent
from cryofm_model.train.report import FlowValidation


@attrs.frozen
class Run:
    """A folder of `train_prior.py`.

    Attributes:
        name: of the folder.
        settings: of the recipe, as run.json has them.
        log: the rows of log.csv that have the column gflop.
        made: what model.safetensors holds; None before the end.
    """

    name: str
    settings: dict[str, Any]
    log: list[dict[str, str]]
    made: Prior | Codec | LatentPrior | None

    @classmethod
    def of(cls, folder: Path) -> "Run":
        """Read one; `CryoFMError` where the folder is none."""
        try:
            settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]
            with (folder / "log.csv").open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if row.get("gflop")]
        except (OSError, ValueError, KeyError) as error:
            raise CryoFMError(f"{folder} is no folder of a training ({error})") from None
        made = loaded(folder) if (folder / "model.safetensors").exists() else None
        return cls(folder.resolve().name, settings, rows, made)

    @property
    def trained_gflop(self) -> float:
        """What the training has computed by its last row."""
        return float(self.log[-1]["gflop"]) if self.log else float("nan")


def loaded(source: Path | str) -> Prior | Codec | LatentPrior:
    """A prior of any kind, or a codec."""
    try:
        return load_latent(source)
    except WeightsError:
        return load_prior(source)


def evaluation_gflop(network: nn.Module, side: int) -> float:
    """One evaluation of a velocity network on a volume of side³."""
    return FlowValidation(torch.zeros(1, side, side, side)).gflop(network, side) / 3
