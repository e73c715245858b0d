"""Phase errors of a tilted beam: an operator that needs nothing of cryofm but tensors."""

import torch
from torch import Tensor


class BeamTilt:
    """Shift by whole voxels along x, after a fall-off towards high frequencies: A = S F, Aᵀ = Fᵀ Sᵀ."""

    def __init__(self, shift: int, fall_off: float) -> None:
        self.shift, self.fall_off = shift, fall_off

    def __call__(self, x: Tensor) -> Tensor:
        return self._filtered(x).roll(self.shift, -1)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filtered(y.roll(-self.shift, -1))

    def _filtered(self, x: Tensor) -> Tensor:
        nu = torch.fft.rfftfreq(x.shape[-1], dtype=x.dtype, device=x.device)
        return torch.fft.irfft(torch.fft.rfft(x) * torch.exp(-self.fall_off * nu.square()), n=x.shape[-1])
