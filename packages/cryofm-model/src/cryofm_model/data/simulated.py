"""Training maps from atomic models: each variant of a model has an experiment of its own (extra ``[train]``)."""

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["is_atomic_model", "simulate_variant"]


def is_atomic_model(path: Path) -> bool:
    """Whether the name is that of a PDB or mmCIF file.

    >>> is_atomic_model(Path("1abc.cif.gz")), is_atomic_model(Path("emd_1234.map.gz"))
    (True, False)
    """
    return Path(path.name.lower().removesuffix(".gz")).suffix in (".pdb", ".ent", ".cif", ".mmcif")


def simulate_variant(model: Path, variant: int, voxel_size: float) -> NDArray[np.float32]:
    """The map of an atomic model in a random orientation, with a resolution, B factors and ice of its own.

    The ranges are those within which simulated maps match deposited, sharpened ones best (FSC about 0.9 to 4 Å).

    Args:
        model: PDB or mmCIF, ``.gz`` too.
        variant: with the file's name it determines the map, wherever and in whatever order it is made.
        voxel_size: Å; the resolution is 2 to 2.2 voxels.

    Returns:
        Density (z, y, x), see `cryofm_io.simulate_density`.

    Raises:
        cryofm_io.InputFileError: the file is no atomic model, or holds no atoms.
        cryofm_io.MissingExtraError: gemmi is missing.
    """
    from scipy.spatial.transform import Rotation

    from cryofm_io import simulate_density

    rng = np.random.default_rng(zlib.crc32(f"{model.name.split('.')[0]}_{variant}".encode()))
    return simulate_density(
        model,
        voxel_size,
        resolution=rng.uniform(2.0, 2.2) * voxel_size,
        b_base=rng.uniform(-15, 55),
        b_scale=rng.uniform(0.6, 1.2),
        ice=rng.uniform(0.5, 1.0),
        rotation=Rotation.random(rng=rng).as_matrix(),
    )
