"""The training of a prior (extra ``[train]``); ``examples/train_prior.py`` is the program around it.

Flow matching on crops of maps, on one device or under ``torchrun`` on many, from which a killed run goes on exactly.
``TRAINING.md`` beside the package says how to start one.
"""

from cryofm_model.train.config import Machine, TrainConfig
from cryofm_model.train.loop import Loss, train
from cryofm_model.train.recipe import DataConfig, Recipe, read_recipe
from cryofm_model.train.report import VALIDATION_TIMES, validation_loss

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
