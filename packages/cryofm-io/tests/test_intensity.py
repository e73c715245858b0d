"""The scale of density values is remembered and undone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryofm_io import Affine, CryoFMError, InputFileError, normalise_clean


@given(st.floats(-1e3, 1e3).filter(lambda s: abs(s) > 1e-3), st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_affine_is_undone(scale, offset, x):
    affine = Affine(scale, offset)
    assert affine.forward(x) == x * scale + offset
    assert affine.inverse(affine.forward(x)) == pytest.approx(x, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf])
def test_scales_that_cannot_be_undone(scale):
    with pytest.raises(CryoFMError, match="cannot be undone"):
        Affine(scale)


def test_clean_maps_are_clipped_and_scaled():
    data = np.random.default_rng(0).normal(size=(40, 50, 60)).astype(np.float32)
    before = data.copy()
    top = np.sort(data.ravel())[round(0.99999 * (data.size - 1))]  # nearest rank
    scaled, affine = normalise_clean(data)
    assert scaled.dtype == np.float32
    assert (scaled.min(), scaled.max()) == (0, 1)
    assert 1 / affine.scale == pytest.approx(top, rel=0.05)
    inside = (data > 0) & (scaled < 1)
    np.testing.assert_allclose(affine.inverse(scaled)[inside], data[inside], rtol=1e-6)
    assert np.array_equal(data, before)


def test_a_map_without_positive_density():
    with pytest.raises(InputFileError, match="inverted"):
        normalise_clean(-np.ones((4, 4, 4)))
