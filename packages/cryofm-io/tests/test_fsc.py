"""FSC against a loop over every voxel of the full transform, and against what theory says."""

import csv

import numpy as np
import pytest

from cryofm_io import FscCurve, GeometryError, GridMismatchError, fsc, write_fsc_csv


def brute_force(a, b):
    """Shell sums over the FULL transform, voxel by voxel."""
    fa, fb = np.fft.fftn(a), np.fft.fftn(b)
    longest = max(a.shape)
    sums = np.zeros((longest // 2 + 1, 4))
    for index in np.ndindex(a.shape):
        k = [(i if i <= (n - 1) // 2 else i - n) / n for i, n in zip(index, a.shape, strict=True)]
        shell = int(np.rint(longest * np.sqrt(sum(f * f for f in k))))
        if 1 <= shell <= longest // 2:
            p, q = fa[index], fb[index]
            sums[shell] += [(p * np.conj(q)).real, abs(p) ** 2, abs(q) ** 2, 1]
    cross, power_a, power_b, count = sums[1:].T
    return cross / np.sqrt(power_a * power_b), count


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 9, 9), (8, 9, 10), (11, 6, 7), (5, 12, 9)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_brute_force(shape, dtype):
    rng = np.random.default_rng(0)
    a = rng.normal(size=shape).astype(dtype)
    b = (a + rng.normal(size=shape)).astype(dtype)
    curve = fsc(a, b, voxel_size=1.5)
    correlation, count = brute_force(a, b)
    np.testing.assert_allclose(curve.correlation, correlation, atol=1e-5 if dtype == np.float32 else 1e-12)
    assert np.array_equal(curve.n_voxels, count)
    np.testing.assert_allclose(curve.frequency, np.arange(1, max(shape) // 2 + 1) / (max(shape) * 1.5))


def test_a_map_against_itself_scaled_and_inverted():
    a = np.random.default_rng(0).normal(size=(12, 13, 14)).astype(np.float32)
    np.testing.assert_allclose(fsc(a, 3 * a + 7, 1.5).correlation, 1, atol=1e-5)
    assert fsc(a, a, 1.5).auc == pytest.approx(1)
    assert fsc(a, -a, 1.5).auc == pytest.approx(-1)


def test_missing_wedge_of_white_noise():
    """Keeping the fraction f of a shell gives √f; ±60° keeps two thirds."""
    n = 64
    x = np.random.default_rng(0).normal(size=(n, n, n))
    kz, kx = np.fft.fftfreq(n)[:, None, None], np.fft.fftfreq(n)
    kept = np.broadcast_to(np.arctan2(abs(kz), abs(kx)) <= np.deg2rad(60), x.shape)
    curve = fsc(x, np.fft.ifftn(np.fft.fftn(x) * kept).real, 1.5)
    shell = np.rint(n * np.sqrt(kz**2 + np.fft.fftfreq(n)[:, None] ** 2 + kx**2)).astype(int)
    fraction = [kept[shell == s].mean() for s in range(1, n // 2 + 1)]
    np.testing.assert_allclose(curve.correlation[4:], np.sqrt(fraction)[4:], atol=0.05)
    assert curve.auc == pytest.approx(np.mean(np.sqrt(fraction)), abs=0.004)
    assert curve.auc == pytest.approx(0.81, abs=0.01)


def test_noise_alone_spreads_as_one_over_root_n():
    rng = np.random.default_rng(0)
    curves = [fsc(*rng.normal(size=(2, 16, 16, 16)), voxel_size=1.5) for _ in range(200)]
    spread = np.sqrt(np.mean([c.correlation**2 for c in curves], axis=0))
    np.testing.assert_allclose(spread * np.sqrt(curves[0].n_voxels), 1, atol=0.2)


def test_mask_multiplies_both_maps():
    rng = np.random.default_rng(0)
    a, b, mask = rng.normal(size=(3, 10, 10, 10))
    np.testing.assert_allclose(fsc(a, b, 1.5, mask).correlation, fsc(a * mask, b * mask, 1.5).correlation)


def test_a_shell_without_power_is_nan_and_counts_as_zero():
    n = 16
    x = np.arange(n)
    wave = np.broadcast_to(np.cos(2 * np.pi * 3 * x / n), (n, n, n)) * 1.0
    zeros = np.zeros((n, n, n))
    assert np.isnan(fsc(wave, zeros, 1.5).correlation).all()
    assert fsc(wave, zeros, 1.5).auc == 0
    assert fsc(wave, zeros, 1.5).resolution(0.5) == np.inf


def curve(*correlation):
    return FscCurve(np.arange(1, len(correlation) + 1) / 10, np.array(correlation, float), np.full(len(correlation), 9))


def test_resolution_is_the_first_downward_crossing_linear_in_frequency():
    falling = curve(1.0, 0.9, 0.4, 0.1)
    assert falling.resolution(0.5) == pytest.approx(1 / (0.2 + 0.1 * 0.4 / 0.5))
    assert falling.crosses(0.5)
    assert curve(1.0, 0.4, 0.8, 0.2).resolution(0.5) == pytest.approx(1 / (0.1 + 0.1 * 0.5 / 0.6))
    assert curve(0.2, 0.9, 0.1, 0.0).resolution(0.5) == pytest.approx(1 / (0.2 + 0.1 * 0.4 / 0.8))
    assert curve(1.0, np.nan, 0.9).resolution(0.5) == pytest.approx(1 / 0.15)
    assert falling.auc == pytest.approx(0.6)


def test_resolution_without_a_crossing():
    assert curve(1.0, 0.9).resolution(0.5) == pytest.approx(1 / 0.2)
    assert not curve(1.0, 0.9).crosses(0.5)
    assert curve(0.3, 0.2).resolution(0.5) == np.inf
    assert not curve(0.3, 0.2).crosses(0.5)


def test_csv(tmp_path):
    path = tmp_path / "fsc.csv"
    write_fsc_csv(path, {"input": curve(0.9, np.nan), "restored": curve(1.0, 0.5)})
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [float(row["restored"]) for row in rows] == [1.0, 0.5]
    assert rows[1] == {
        "frequency_per_angstrom": "0.2",
        "resolution_angstrom": "5",
        "n_voxels": "9",
        "input": "nan",
        "restored": "0.5",
    }
    with pytest.raises(GridMismatchError, match="'b' has other shells"):
        write_fsc_csv(tmp_path / "bad.csv", {"a": curve(1.0, 0.5), "b": curve(1.0)})
    assert not (tmp_path / "bad.csv").exists()


def test_bad_arguments():
    a = np.ones((4, 4, 4))
    with pytest.raises(GridMismatchError, match=r"\(4, 4, 4\), \(4, 4, 5\)"):
        fsc(a, np.ones((4, 4, 5)), 1.5)
    with pytest.raises(GridMismatchError):
        fsc(a, a, 1.5, mask=np.ones((4, 4)))
    with pytest.raises(GeometryError):
        fsc(a[0], a[0], 1.5)
    with pytest.raises(GeometryError):
        fsc(a, a, 0.0)
