"""The mean of a map over its point group."""

import numpy as np
import scipy
from numpy.typing import NDArray

__all__ = ["symmetrised"]


def symmetrised(data: NDArray[np.float32], rotations: NDArray[np.float64]) -> NDArray[np.float32]:
    """The mean of a cube over a point group about its voxel n // 2.

    Args:
        data: ``(n, n, n)``.
        rotations: All of the group, on vectors (x, y, z), ``(G, 3, 3)``; with one alone the cube stays as it is.

    Example:
        >>> cube = np.zeros((5, 5, 5), np.float32)
        >>> cube[2, 2, 3] = 1
        >>> half_turn = np.diag([-1.0, -1.0, 1.0])
        >>> (symmetrised(cube, np.stack([np.eye(3), half_turn]))[2, 2].round(2) + 0.0).tolist()
        [0.0, 0.5, 0.0, 0.5, 0.0]
    """
    if len(rotations) == 1:
        return data
    middle = np.full(3, data.shape[-1] // 2)
    turned = [
        scipy.ndimage.affine_transform(
            data, R[::-1, ::-1], middle - R[::-1, ::-1] @ middle, order=3, mode="grid-constant"
        )
        for R in rotations
    ]
    return np.asarray(np.mean(turned, 0), np.float32)
