"""Maps and their point group."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryofm_io import symmetrised


@pytest.mark.parametrize("n", [32, 33])
@pytest.mark.parametrize("name", ["C4", "D2", "T", "O", "I"])
@pytest.mark.slow
def test_the_mean_over_a_point_group_has_its_symmetry(name, n):
    """Of a blob that is not round, against its copies in closed form."""
    centre, sharp = np.array([3.0, -5.0, 6.5]), np.diag([0.05, 0.11, 0.16])  # (x, y, z)
    grid = np.stack(np.meshgrid(*[np.arange(n) - n // 2] * 3, indexing="ij"), -1)[..., ::-1]

    def blob(R):  # turned by R
        d = grid - R @ centre
        return np.exp(-np.einsum("...i,ij,...j->...", d, R @ sharp @ R.T, d))

    group = Rotation.create_group(name).as_matrix()
    expected = np.mean([blob(R) for R in group], 0)
    found = symmetrised(blob(np.eye(3)).astype(np.float32), group)
    assert np.abs(found - expected).max() < 0.01 * expected.max()
