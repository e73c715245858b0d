"""Simulated maps against the sum over atoms that they stand for, frequency by frequency."""

import numpy as np
import pytest

from cryofm_io import InputFileError, simulate_density

gemmi = pytest.importorskip("gemmi")

ATOMS = [("C", 0.0, 0.0, 0.0, 20), ("N", 3.1, -2.0, 4.2, 25), ("O", -4.4, 5.0, 1.3, 40), ("S", 6.0, 6.5, -5.1, 60)]


@pytest.fixture
def model(tmp_path):
    lines = [
        f"ATOM  {i:5d}  {element:<3} ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00{b:6.2f}          {element:>2}\n"
        for i, (element, x, y, z, b) in enumerate(ATOMS, 1)
    ]
    path = tmp_path / "model.pdb"
    path.write_text("".join(lines) + "END\n")
    return path


def structure_factor(k, shape, voxel_size, b_base=20.0):
    """Σ f(k) exp(−B k²/4) exp(−2πi k·r) over the atoms, centred in the box; k (x, y, z) in 1/Å."""
    position = np.array([atom[1:4] for atom in ATOMS])
    position += np.array(shape[::-1]) * voxel_size / 2 - (position.min(0) + position.max(0)) / 2
    b = np.array([atom[4] for atom in ATOMS], dtype=float)
    b += b_base - np.percentile(b, 5)
    s2 = (k**2).sum()
    f = [gemmi.Element(atom[0]).c4322.calculate_sf(s2 / 4) for atom in ATOMS]
    return (np.array(f) * np.exp(-b * s2 / 4) * np.exp(-2j * np.pi * position @ k)).sum()


@pytest.mark.parametrize(("voxel_size", "b_base"), [(1.5, 20.0), (1.5, -10.0), (2.0, 50.0)])
def test_every_frequency_is_the_sum_over_the_atoms(model, voxel_size, b_base):
    density = simulate_density(model, voxel_size, resolution=2.1 * voxel_size, b_base=b_base, ice=0)
    spectrum = np.fft.fftn(density) * voxel_size**3
    largest = abs(spectrum[0, 0, 0])
    rng = np.random.default_rng(0)
    for _ in range(50):
        index = np.array([rng.integers(-(n // 3), n // 3 + 1) for n in density.shape])
        k = (index / (np.array(density.shape) * voxel_size))[::-1]
        if np.linalg.norm(k) > 0.85 / (2.1 * voxel_size):
            continue  # beyond the low-pass's flat part
        wanted = structure_factor(k, density.shape, voxel_size, b_base)
        assert abs(spectrum[tuple(index)] - wanted) < 0.01 * largest


def test_nothing_is_left_beyond_the_resolution(model):
    density = simulate_density(model, 1.5, resolution=5.0)
    spectrum = np.abs(np.fft.fftn(density))
    k = np.sqrt(sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(n, 1.5) for n in density.shape), indexing="ij")))
    assert spectrum[k > 1 / 5.0].max() < 1e-4 * spectrum.max()


def test_ice_lowers_the_inside_and_leaves_the_outside(model):
    without, with_ice = (simulate_density(model, 1.5, ice=ice) for ice in (0.0, 1.0))
    assert with_ice.sum() < without.sum()
    assert abs(with_ice[0]).max() < 1e-2 * with_ice.max()


def test_turning_the_model_turns_the_map(model):
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # x to y
    density = simulate_density(model, 1.5, margin=12)
    turned = simulate_density(model, 1.5, margin=12, rotation=quarter)
    z, y, x = density.shape
    assert turned.shape == (z, x, y)
    # (x, y) -> (-y, x); voxel i lies at i - n/2 from the centre, so flipping moves by one voxel
    expected = np.roll(np.flip(density.transpose(0, 2, 1), 2), 1, 2)
    np.testing.assert_allclose(turned, expected, atol=2e-3 * density.max())


def test_without_b_factors_the_surface_moves_more(tmp_path):
    rng = np.random.default_rng(0)
    position = rng.normal(size=(200, 3)) * 6
    lines = [
        f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           C\n"
        for i, (x, y, z) in enumerate(position, 1)
    ]
    path = tmp_path / "model.pdb"
    path.write_text("".join(lines) + "END\n")
    uneven, even = (simulate_density(path, 1.5, b_base=20, b_scale=scale, ice=0) for scale in (1.0, 0.0))
    assert 0.3 * even.max() < uneven.max() < even.max()


def test_a_file_without_atoms_is_refused(tmp_path):
    with pytest.raises(InputFileError, match=r"none\.pdb"):
        simulate_density(tmp_path / "none.pdb")
    (tmp_path / "empty.pdb").write_text("END\n")
    with pytest.raises(InputFileError, match="no atoms"):
        simulate_density(tmp_path / "empty.pdb")
