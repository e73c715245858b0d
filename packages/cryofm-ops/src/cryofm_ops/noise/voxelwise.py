"""Independent noise in every voxel, of a strength of its own."""

import attrs
import torch
from torch import Tensor

from cryofm_ops._checks import check_tensor
from cryofm_ops.errors import GridMismatchError, NoiseError
from cryofm_ops.fourier.grid import standard_normal

__all__ = ["VoxelNoise"]


def _check_std(_: object, __: object, std: Tensor) -> None:
    check_tensor(std, "the std of a voxelwise noise", NoiseError)
    if std.ndim < 3 or not std.is_floating_point() or not (std.isfinite() & (std > 0)).all():
        raise NoiseError(
            f"the std of a voxelwise noise is a volume (z, y, x) of positive finite numbers, got {std.dtype} of shape "
            f"{tuple(std.shape)}"
        )


@attrs.frozen(eq=False)
class VoxelNoise:
    """n = σ e for white e, voxel by voxel. A `Noise`.

    With an operator of Fourier space `gaussian_likelihood` conditions by conjugate gradients. Where nothing was
    measured, as outside of a mask, give a σ that is large beside the density; for noise with a spectrum too there is
    `LocalNoise`.

    Attributes:
        std: σ, `(z, y, x)`, or any shape of an observation's last axes.

    Raises `NoiseError`, and `GridMismatchError` for observations of another shape.

    >>> VoxelNoise(torch.tensor([[[0.5, 1.0]]])).precision(torch.ones(1, 1, 2))
    tensor([[[4., 1.]]])
    """

    std: Tensor = attrs.field(validator=_check_std)

    def sample(self, y: Tensor, /, *, generator: torch.Generator) -> Tensor:
        """Y + n, drawn in order over all but the last three axes (see `standard_normal`)."""
        return y + self._for(y) * standard_normal(y, generator)

    def precision(self, r: Tensor, /) -> Tensor:
        """Σ⁻¹ r = r / σ²."""
        return r / self._for(r).square()

    def _for(self, y: Tensor) -> Tensor:
        if y.shape[-self.std.ndim :] != self.std.shape:
            raise GridMismatchError(f"the noise has std of shape {tuple(self.std.shape)}, got {tuple(y.shape)}")
        return self.std.to(y)
