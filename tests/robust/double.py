"""A pytest plugin: a user whose default dtype is float64 (`nox -s robust`)."""

import torch

torch.set_default_dtype(torch.float64)
