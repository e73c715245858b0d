"""Masked, directional and local FSC against loops over the full transform; RELION's and EMDB's files."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from cryofm_io import (
    GeometryError,
    GridMismatchError,
    automatic_mask,
    conical_fsc,
    filtered_by_shell,
    fsc,
    local_resolution,
    low_pass,
    masked_fsc,
    soft_mask,
    write_fsc_star,
    write_fsc_xml,
)

SHAPE = (17, 21, 25)  # odd: a direction at Nyquist is two directions
VOXEL = 1.5


@pytest.fixture(scope="module")
def halves():
    """A blob under noise."""
    rng = np.random.default_rng(0)
    grid = np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) // 2
    signal = 4 * np.exp(-(grid**2).sum(0) / 18)
    return signal + rng.normal(size=SHAPE), signal + rng.normal(size=SHAPE)


def frequencies(shape):
    """(x, y, z) of every voxel of the full transform, cycles a voxel."""
    z, y, x = np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")
    return np.stack([x, y, z], -1)


def by_loop(a, b, inside):
    """FSC of those coefficients of the full transform, shell by shell."""
    A, B, k = np.fft.fftn(a), np.fft.fftn(b), frequencies(a.shape)
    shell = np.rint(max(a.shape) * np.linalg.norm(k, axis=-1)).astype(int)
    found = []
    for s in range(1, max(a.shape) // 2 + 1):
        which = (shell == s) & inside
        cross = (A[which] * B[which].conj()).real.sum()
        found.append(
            cross / math.sqrt((abs(A[which]) ** 2).sum() * (abs(B[which]) ** 2).sum()) if which.any() else np.nan
        )
    return np.array(found)


def test_cones_are_those_of_the_full_transform(halves):
    cones = conical_fsc(*halves, VOXEL, half_angle_deg=35, directions=5)
    k = frequencies(SHAPE)
    for i, axis in enumerate(cones.directions):
        inside = np.abs(k @ axis) >= (math.cos(math.radians(35)) - 1e-9) * np.linalg.norm(k, axis=-1)
        assert np.allclose(cones.correlation[i], by_loop(*halves, inside), atol=1e-5, equal_nan=True)


def test_directions_that_were_not_measured_are_seen(halves):
    rng = np.random.default_rng(1)
    k = frequencies((32, 32, 32))
    gone = np.abs(k[..., 2]) > 0.7 * np.linalg.norm(k, axis=-1)  # towards z
    signal = np.fft.ifftn(np.fft.fftn(rng.normal(size=gone.shape)) * ~gone).real
    noisy = [signal + 0.5 * rng.normal(size=gone.shape) for _ in range(2)]
    cones = conical_fsc(*noisy, VOXEL)
    assert cones.cfar < 0.3
    assert abs(cones.directions[cones.auc.argmin()][2]) > 0.9
    assert cones.curve(0).auc > 0.7  # along x


@pytest.mark.parametrize("angle", [4, 91, math.nan])
def test_impossible_cones_are_refused(halves, angle):
    with pytest.raises(GeometryError):
        conical_fsc(*halves, VOXEL, half_angle_deg=angle)


def test_what_a_mask_makes_comes_off():
    rng = np.random.default_rng(3)
    bump = np.zeros((32, 32, 32))
    bump[12:20, 12:20, 12:20] = 1
    mask = soft_mask(bump, 0.5, 0, 3, 1.0)  # tight: it makes noise alike
    base = 40 * low_pass(bump, 16, VOXEL)
    curves = masked_fsc(*(base + 0.3 * rng.normal(size=mask.shape) for _ in range(2)), VOXEL, mask)
    fine = curves.masked.frequency > 2.5 / curves.randomised_from
    assert abs(curves.corrected.correlation[fine].mean()) < 0.15
    true = (curves.masked.correlation - curves.randomised.correlation) / (1 - curves.randomised.correlation)
    assert np.allclose(curves.corrected.correlation[-5:], true[-5:])
    assert np.array_equal(curves.corrected.correlation[:2], curves.masked.correlation[:2])


def test_random_phases_leave_amplitudes_and_what_is_coarse(halves):
    from cryofm_io.masked_fsc import _random_phases

    spectrum = np.fft.rfftn(halves[0]).astype(np.complex64)
    _random_phases(spectrum, 0.2, SHAPE, np.random.default_rng(0))
    found = np.fft.irfftn(spectrum, s=SHAPE, axes=(0, 1, 2))
    before, after = np.fft.fftn(halves[0]), np.fft.fftn(found)
    assert np.allclose(abs(before), abs(after), rtol=1e-3, atol=1e-3)
    coarse = np.linalg.norm(frequencies(SHAPE), axis=-1) < 0.2
    assert np.allclose(before[coarse], after[coarse], rtol=1e-3, atol=1e-2)
    angle = np.angle(after[~coarse] / before[~coarse])
    assert abs(np.exp(1j * angle).mean()) < 0.1


def test_local_resolution_is_finer_where_less_noise_is():
    rng = np.random.default_rng(2)
    signal = rng.normal(size=(32, 32, 64))
    blurred = low_pass(signal, 9, VOXEL)
    there = np.arange(64) < 32
    base = np.where(there, signal, blurred)
    one, two = (base + 0.25 * rng.normal(size=base.shape) for _ in range(2))
    found = local_resolution(one, two, VOXEL, np.ones(base.shape), window=16, step=8)
    assert found[16, 16, 12] < 3.5
    assert found[16, 16, 52] > 6
    assert local_resolution(one, two, VOXEL, there * np.ones(base.shape), window=16, step=8)[16, 16, 52] == 0
    with pytest.raises(GridMismatchError):
        local_resolution(one, two[1:], VOXEL, np.ones(base.shape))


def test_filters_by_shell_and_length():
    x = np.random.default_rng(0).normal(size=SHAPE)
    radius = np.linalg.norm(frequencies(SHAPE), axis=-1)
    gain = np.linspace(2, 0, 12)
    wanted = np.fft.ifftn(np.fft.fftn(x) * np.interp(25 * radius, np.arange(1, 13), gain)).real
    assert np.allclose(filtered_by_shell(x, gain), wanted, atol=1e-5)
    passed = np.fft.fftn(low_pass(x, 10, VOXEL))
    assert np.allclose(passed[radius < 0.89 * 0.15], np.fft.fftn(x)[radius < 0.89 * 0.15], atol=1e-2)
    assert abs(passed[radius > 1.11 * 0.15]).max() < 1e-2


def test_an_automatic_mask_holds_the_molecule(halves):
    mask = automatic_mask((halves[0] + halves[1]) / 2, VOXEL)
    assert mask[8, 10, 12] == 1
    assert mask[0, 0, 0] == 0
    assert automatic_mask(-np.ones(SHAPE), VOXEL) is None


def test_files_hold_the_curves(halves, tmp_path):
    curves = masked_fsc(*halves, VOXEL, np.ones(SHAPE, np.float32))
    write_fsc_star(tmp_path / "fsc.star", curves)
    rows = [line.split() for line in (tmp_path / "fsc.star").read_text().splitlines()]
    names = [row[0] for row in rows if row and row[0].startswith("_rln")]
    values = np.array([row for row in rows if len(row) == len(names) and row[0].isdigit()], float)
    unmasked = values[1:, names.index("_rlnFourierShellCorrelationUnmaskedMaps")]
    assert np.allclose(unmasked, by_loop(*halves, True), atol=1e-5)
    assert np.allclose(values[1:, names.index("_rlnAngstromResolution")], 25 * VOXEL / np.arange(1, 13), atol=1e-5)
    write_fsc_xml(tmp_path / "fsc.xml", fsc(*halves, VOXEL))
    points = ElementTree.parse(tmp_path / "fsc.xml").getroot().findall("coordinate")
    assert np.allclose([float(point.find("y").text) for point in points], by_loop(*halves, True), atol=1e-5)
