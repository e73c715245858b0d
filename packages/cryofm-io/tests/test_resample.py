"""Fourier resampling is trigonometric interpolation about the centre voxel, exact at every parity."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryofm_io import GeometryError, fourier_resample


def interpolation_matrix(n, m):
    """(m, n): the real trigonometric interpolant of n samples, low-passed to m's Nyquist, at m positions.

    Written down from its definition: position of sample i is (i − n//2)/n of the box, and a Nyquist term is a
    cosine (the sine vanishes on the even grid).
    """
    here, there = (np.arange(n) - n // 2) / n, (np.arange(m) - m // 2) / m
    matrix = np.full((m, n), 1 / n)
    for k in range(1, min(n, m) // 2 + 1):
        if 2 * k == n:  # the input's own Nyquist: one cosine, not two
            matrix += np.outer(np.cos(2 * np.pi * k * there), np.cos(2 * np.pi * k * here)) / n
        else:  # at the output's Nyquist the sine vanishes at every sample by itself
            matrix += 2 * np.cos(2 * np.pi * k * (there[:, None] - here)) / n
    return matrix


@settings(max_examples=60, deadline=None)
@given(old=st.tuples(*[st.integers(2, 9)] * 3), new=st.tuples(*[st.integers(1, 11)] * 3), seed=st.integers(0, 99))
def test_against_dense_trigonometric_interpolation(old, new, seed):
    data = np.random.default_rng(seed).normal(size=(2, *old))
    a, b, c = (interpolation_matrix(n, m) for n, m in zip(old, new, strict=True))
    expected = np.einsum("Zz,Yy,Xx,bzyx->bZYX", a, b, c, data)
    np.testing.assert_allclose(fourier_resample(data, new), expected, atol=1e-12)


@pytest.mark.parametrize("n", [6, 7])
@pytest.mark.parametrize("m", [8, 9, 13])
def test_finer_and_back_is_the_identity(n, m):
    data = np.random.default_rng(0).normal(size=(n, n + 1, n))
    finer = fourier_resample(data, (m, m + 2, m + 1))
    np.testing.assert_allclose(fourier_resample(finer, data.shape), data, atol=1e-12)


@pytest.mark.parametrize("n", [8, 9])
@pytest.mark.parametrize("m", [5, 6])
def test_coarser_and_back_is_a_projection_that_keeps_the_mean(n, m):
    data = np.random.default_rng(0).normal(size=(n, n, n))

    def project(x):
        return fourier_resample(fourier_resample(x, (m, m, m)), x.shape)

    once = project(data)
    np.testing.assert_allclose(project(once), once, atol=1e-12)
    assert once.mean() == pytest.approx(data.mean(), abs=1e-12)
    assert np.linalg.norm(once) < np.linalg.norm(data)


@pytest.mark.parametrize("n", [32, 33])
@pytest.mark.parametrize("m", [48, 49, 24, 25])
def test_the_centre_voxel_stays_in_place(n, m):
    def blob(size):
        r = (np.arange(size) - size // 2) / size * 32
        return np.exp(-(r[:, None, None] ** 2 + (r[:, None] - 1) ** 2 + (r + 2) ** 2) / 8)

    np.testing.assert_allclose(fourier_resample(blob(n), (m, m, m)), blob(m), atol=1e-5)


def test_dtypes_and_the_same_shape():
    data = np.random.default_rng(0).normal(size=(5, 6, 7))
    assert fourier_resample(data, (4, 4, 4)).dtype == np.float64
    assert fourier_resample(data.astype(np.float32), (4, 4, 4)).dtype == np.float32
    assert fourier_resample(np.ones((4, 4, 4), np.int8), (5, 5, 5)).dtype == np.float32
    assert np.array_equal(fourier_resample(data, data.shape), data)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 0), (4, 4, 4, 4)])
def test_impossible_shapes(shape):
    with pytest.raises(GeometryError, match="cannot resample"):
        fourier_resample(np.zeros((4, 4, 4)), shape)
