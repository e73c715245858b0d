"""What the benchmarks' pictures share."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike


def plot_power(axis: Axes, powers: Mapping[str, ArrayLike], voxel_size: float) -> None:
    """Power per shell, by name, from the first shell to Nyquist; the voxel size in Å."""
    for name, power in powers.items():
        values = np.asarray(power)
        axis.plot(np.arange(1, len(values)) / (2 * (len(values) - 1) * voxel_size), values[1:], label=name)
    axis.set(yscale="log", xlabel="spatial frequency (1/Å)", ylabel="mean power per coefficient")
    axis.legend()
    axis.grid(alpha=0.3)
