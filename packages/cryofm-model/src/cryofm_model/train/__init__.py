"""The training of a prior (extra ``[train]``); ``examples/train_prior.py`` is the program around it.

Flow matching on crops of maps, on one device or under ``torchrun`` on many, from which a killed run goes on exactly.
``TRAINING.md`` beside the package says how to start one.
"""

from .config import Machine, TrainConfig
from .loop import Loss, train
from .recipe import DataConfig, Recipe, read_recipe
from .report import VALIDATION_TIMES, validation_loss

__all__ = [
    "VALIDATION_TIMES",
    "DataConfig",
    "Loss",
    "Machine",
    "Recipe",
    "TrainConfig",
    "read_recipe",
    "train",
    "validation_loss",
]
