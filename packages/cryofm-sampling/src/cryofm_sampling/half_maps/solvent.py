"""The contrast of a molecule with its solvent, which a density made from atoms alone does not have.

The solvent is a density of its own wherever the molecule is not. By Babinet's principle that is the molecule's smooth
shape with the other sign: amplitudes are multiplied by 1 − k exp(−B_s ν² / 4), where k is the solvent's mean density
over the molecule's: about 0.6 for ice and protein. Programs that raise low frequencies leave a k below 0.
"""

import attrs
import torch
from torch import Tensor

from cryofm_ops import FourierOperator, frequencies
from cryofm_sampling._common import Box

__all__ = ["Solvent"]

_SMOOTH = 750.0  # B_s in Å²: half of k is left at 16 Å


@attrs.frozen
class Solvent(FourierOperator):
    """Multiplies amplitudes by 1 − k exp(−B_s ν² / 4).

    Attributes:
        contrast: k, below 1; 0 for a molecule in a vacuum.
        voxel_size: Å.

    >>> Solvent(0.6, voxel_size=4.0).transfer((4, 4, 4))[0, 0].round(decimals=2)
    tensor([0.4000, 0.7100, 0.9700], dtype=torch.float64)
    """

    contrast: float
    voxel_size: float

    def transfer(self, shape: Box, /) -> Tensor:
        """On the half grid of `shape`, float64."""
        return 1 - self.contrast * torch.exp(-_SMOOTH / 4 * (frequencies(shape) / self.voxel_size).square())

    def at(self, resolution: float) -> float:
        """At one resolution, in Å."""
        return 1 - self.contrast * float(torch.exp(torch.tensor(-_SMOOTH / 4 / resolution**2)))
