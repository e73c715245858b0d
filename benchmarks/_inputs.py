"""What the benchmarks start from: a prior with its statistics, and maps as it knows them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cryofm_io import normalise_clean, read_map, to_grid
from cryofm_model import CalibratedPrior, WeightsError, load_prior


def calibrated_prior(name: str) -> CalibratedPrior:
    """A bundled prior, or that of a path; `WeightsError` where it carries no statistics."""
    prior = load_prior(name)
    if not isinstance(prior, CalibratedPrior):
        raise WeightsError(f"the prior {name} carries no statistics; `calibrate` measures them")
    return prior


def clean(path: Path, voxel_size: float) -> NDArray[np.float32]:
    """A map on a grid of that voxel size (Å), solvent 0 and full density 1."""
    return normalise_clean(to_grid(read_map(path), voxel_size)[0])[0]
