"""Density maps simulated from atomic models, as a cryo-EM experiment would show them (extra ``[atomic]``).

The electrostatic potential of the atoms (electron form factors, isotropic B factors) on a fine grid, less the
ice that the molecule displaces, low-passed and Fourier-cropped to the wished voxel size.
"""

from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray

from cryofm_io.atomic_model import read_model
from cryofm_io.checks import finite, not_negative, positive
from cryofm_io.errors import GeometryError, InputFileError, MissingExtraError

__all__ = ["simulate_density"]

# Vitreous ice, 0.93 g/cm³ = 0.0311 H2O/Å³, times f_e(0) of O (1.98 Å) and 2 H (0.53 Å): Å per Å³.
ICE_POTENTIAL = 0.0946
_FINE = 0.75  # Å, spacing of the grid on which the atoms are put down
_MOST_VOXELS = 2e9  # of the fine grid
_MIN_B = 20.0  # Å², narrowest atom that the fine grid still samples


def simulate_density(
    path: str | Path,
    voxel_size: float = 1.5,
    *,
    resolution: float = 3.0,
    b_base: float = 20.0,
    b_scale: float = 1.0,
    ice: float = 0.8,
    margin: float = 12.0,
    max_atoms: int = 60_000,
    rotation: NDArray[np.float64] | None = None,
) -> NDArray[np.float32]:
    """Simulate the map of one PDB or mmCIF file (``.gz`` too); first biological assembly where it fits.

    Args:
        path: atomic model; hydrogens and waters are ignored. Of alternate conformations the one of the largest
            occupancy is taken, and every atom counts whole, since the ice that it displaces does.
        voxel_size: of the result, Å; at least 0.75.
        resolution: the low-pass falls from 1 to 0 over the last 10 % below 1/resolution, Å.
        b_base: B factor that the 5th percentile of the atoms is moved to, Å²; negative sharpens.
        b_scale: factor on the spread of the model's own B factors. Models without B factors get larger ones
            at the surface.
        ice: fraction of the ice potential (0.0946 Å⁻²) that is subtracted inside the molecule.
        margin: empty border around the molecule, Å.
        max_atoms: an assembly larger than this is left as the file's own model.
        rotation: 3 × 3 matrix applied to the coordinates first, so that grid and crystal axes are unrelated.

    Returns:
        Density ``(z, y, x)``, electron scattering per volume, Å⁻².

    Raises:
        InputFileError: the file is no atomic model, holds no atoms, or none that give density; or they span too far.
        GeometryError: a length or factor that is not finite, or not positive.
        MissingExtraError: gemmi is missing (``pip install cryofm-io[atomic]``).

    Warns:
        MapWarning: atoms without an element, a position or a B factor.
    """
    try:
        import gemmi
    except ImportError as error:
        raise MissingExtraError("simulating maps needs gemmi: pip install 'cryofm-io[atomic]'") from error

    for name, value in (("voxel size", voxel_size), ("resolution", resolution)):
        positive(name, value, "Å")
    for name, value in (("b_base", b_base), ("b_scale", b_scale), ("ice", ice)):
        finite(name, value)
    not_negative("margin", margin, "Å")
    model = read_model(Path(path), max_atoms)
    atoms = [site.atom for site in model.all()]
    position = np.array([atom.pos.tolist() for atom in atoms])
    if rotation is not None:
        position = position @ rotation.T
    b = _b_factors(np.array([atom.b_iso for atom in atoms]), position)
    b = b_base + b_scale * (b - np.percentile(b, 5))
    blur = max(0.0, _MIN_B - float(b.min()))  # undone in Fourier space, so that sharp atoms need no finer grid

    low, high = position.min(0) - margin, position.max(0) + margin
    if voxel_size > min(high - low):
        raise GeometryError(f"voxel size {voxel_size:g} Å: the atoms and their margin are {min(high - low):.0f} Å wide")
    voxels = float(np.prod((high - low) / _FINE))
    if voxels > _MOST_VOXELS:
        raise InputFileError(
            f"{path}: its atoms span {', '.join(f'{length:.0f}' for length in high - low)} Å, which takes {voxels:.2g} "
            "voxels; are some of them far off? Remove those"
        )
    # The coarse box fixes the fine one: both cover the same length, so the crop is exact.
    coarse = np.array([_even_fast(length / voxel_size) for length in high - low])
    cell = coarse * voxel_size
    fine = np.array([_even_fast(length / _FINE) for length in cell])
    position += cell / 2 - (low + high) / 2
    for atom, xyz, b_iso in zip(atoms, position, b, strict=True):
        atom.pos = gemmi.Position(*xyz)
        atom.b_iso = float(b_iso)
        atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)

    calculator = gemmi.DensityCalculatorE()
    calculator.blur = blur
    calculator.grid.set_size(*(int(n) for n in fine))
    calculator.grid.set_unit_cell(gemmi.UnitCell(float(cell[0]), float(cell[1]), float(cell[2]), 90, 90, 90))
    calculator.grid.spacegroup = gemmi.SpaceGroup("P 1")
    calculator.add_model_density_to_grid(model)
    density = np.asarray(calculator.grid.array, dtype=np.float32)  # (x, y, z)
    if not (np.isfinite(density).all() and density.max() > 0):
        raise InputFileError(f"{path}: its atoms give no density; check elements and B factors")

    if ice:
        masker = gemmi.SolventMasker(gemmi.AtomicRadiiSet.Cctbx)
        grid = gemmi.FloatGrid(*(int(n) for n in fine))
        grid.set_unit_cell(calculator.grid.unit_cell)
        grid.spacegroup = calculator.grid.spacegroup
        masker.put_mask_on_float_grid(grid, model)
        molecule = np.asarray(
            scipy.ndimage.gaussian_filter(1 - np.asarray(grid.array), 1.5 / _FINE, mode="wrap"), dtype=np.float32
        )
    else:
        molecule = np.zeros_like(density)
    potential, water = _crop(density, coarse), _crop(molecule, coarse)
    s2 = _squared_frequency(coarse, voxel_size)
    edge = np.clip((np.sqrt(s2) * resolution - 0.9) / 0.1, 0, 1)
    lowpass = 0.5 * (1 + np.cos(np.pi * edge))
    spectrum = lowpass * (potential * np.exp(blur * s2 / 4) - ice * ICE_POTENTIAL * water)
    result = np.asarray(scipy.fft.irfftn(spectrum, s=coarse.tolist()))
    return np.ascontiguousarray(result.transpose(2, 1, 0), dtype=np.float32)


def _b_factors(b: NDArray[np.float64], position: NDArray[np.float64]) -> NDArray[np.float64]:
    """The model's own B factors, or burial-based ones where it has none."""
    if np.ptp(b) > 1e-3:
        return b
    neighbours = scipy.spatial.KDTree(position).query_ball_point(position, 8.0, return_length=True)
    return np.asarray(80.0 * np.exp(-np.asarray(neighbours) / np.percentile(neighbours, 75)))


def _even_fast(length: float) -> int:
    n = int(np.ceil(length))
    while n % 2 or scipy.fft.next_fast_len(n, real=True) != n:
        n += 1
    return n


def _crop(fine: NDArray[np.float32], shape: NDArray[np.int64]) -> NDArray[np.complex64]:
    """Half-plane spectrum of ``fine`` on the coarser grid of ``shape``, density values kept."""
    spectrum = np.asarray(scipy.fft.rfftn(fine))
    for axis, n in enumerate(shape[:2]):
        spectrum = np.concatenate([spectrum.take(range(n // 2), axis), spectrum.take(range(-(n // 2), 0), axis)], axis)
    return np.asarray(spectrum[:, :, : shape[2] // 2 + 1] * (np.prod(shape) / fine.size), dtype=np.complex64)


def _squared_frequency(shape: NDArray[np.int64], voxel_size: float) -> NDArray[np.float64]:
    kx, ky = (np.fft.fftfreq(n, voxel_size) for n in shape[:2])
    kz = np.fft.rfftfreq(shape[2], voxel_size)
    return np.asarray(kx[:, None, None] ** 2 + ky[:, None] ** 2 + kz**2)
