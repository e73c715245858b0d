"""The density of an atomic model where a map has it (extra ``[atomic]``)."""

import math
from pathlib import Path

import numpy as np
import scipy  # its parts load when they are needed
from numpy.typing import NDArray

from cryofm_io.atomic_model import read_model
from cryofm_io.density_map import DensityMap
from cryofm_io.errors import InputFileError, MissingExtraError

__all__ = ["density_of_model"]

_FINE = 0.7  # Å, of the grid on which atoms are sampled


def density_of_model(path: str | Path, like: DensityMap) -> NDArray[np.float32]:
    """Put the atoms of a PDB or mmCIF file, as its coordinates say, on the grid of a map.

    Args:
        path: The atomic model; hydrogens and waters are ignored.
        like: The map, whose place in space counts.

    Returns:
        Density ``(z, y, x)``, electron scattering per volume, sharp as the model's B factors are, without ice.

    Raises:
        InputFileError: The file is no atomic model, or none of its atoms lies in the map's box.
        MissingExtraError: gemmi is missing.

    Example:
        >>> line = "ATOM      1  CA  GLY A   1      13.000  22.000  31.000  1.00 20.00           C"
        >>> _ = Path("model.pdb").write_text(line)
        >>> density = density_of_model("model.pdb", DensityMap(np.zeros((16, 16, 16)), 1.0, origin=(10, 15, 20)))
        >>> [int(i) for i in np.unravel_index(density.argmax(), density.shape)]
        [11, 7, 3]
    """
    try:
        import gemmi
    except ImportError as error:
        raise MissingExtraError("atomic models need gemmi: pip install 'cryofm-io[atomic]'") from error

    model = read_model(Path(path), 10**9)
    side = np.array(like.shape[::-1]) * like.voxel_size
    atoms = [site.atom for site in model.all()]
    place = np.array([atom.pos.tolist() for atom in atoms]) - like.position
    inside = np.all((place > -like.voxel_size) & (place < side), axis=1)
    if not inside.any():
        low, high = place.min(0) + like.position, place.max(0) + like.position
        raise InputFileError(
            f"{path}: its atoms, from {np.round(low, 1).tolist()} to {np.round(high, 1).tolist()} Å, lie outside the "
            f"map's box, which begins at {np.round(like.position, 1).tolist()} Å; is it fitted into this map?"
        )
    for atom, xyz, kept in zip(atoms, place, inside, strict=True):
        atom.pos = gemmi.Position(*xyz)
        atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
        if not kept:  # it would come in again at the other side
            atom.occ = 0.0
    finer = math.ceil(like.voxel_size / _FINE)
    calculator = gemmi.DensityCalculatorE()
    calculator.grid.set_size(*(n * finer for n in like.shape[::-1]))
    calculator.grid.set_unit_cell(gemmi.UnitCell(float(side[0]), float(side[1]), float(side[2]), 90, 90, 90))
    calculator.grid.spacegroup = gemmi.SpaceGroup("P 1")
    calculator.add_model_density_to_grid(model)
    fine = np.asarray(calculator.grid.array, dtype=np.float32).transpose(2, 1, 0)
    if finer == 1:
        return np.ascontiguousarray(fine)
    # What the coarse grid cannot hold goes; then every so manieth sample is its own, with voxel 0 where it was.
    spectrum = scipy.fft.rfftn(fine)
    for axis, n in enumerate(like.shape):
        k = np.fft.rfftfreq(n * finer, 1 / (n * finer)) if axis == 2 else np.fft.fftfreq(n * finer, 1 / (n * finer))
        spectrum *= (np.abs(k) < n / 2).astype(np.float32).reshape([-1 if other == axis else 1 for other in range(3)])
    full = scipy.fft.irfftn(spectrum, s=fine.shape, overwrite_x=True)
    return np.ascontiguousarray(full[::finer, ::finer, ::finer], dtype=np.float32)
