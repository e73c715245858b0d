"""A pass of denoiser and Fourier-diagonal data: what `PosteriorFlow` takes, and `PlugAndPlayLoss` shows.

The precision W of the data is split in two:

- min(W, 1/τ) enters BEFORE the denoiser, r = x + g (y − x) with g = min(τ W, 1): the noise of the observation
  itself is (part of) the noise that the denoiser expects.
- W' = max(W − 1/τ, 0), what the denoiser has not used, enters AFTER it: x = x̂ + e W' / (1 + e W') (y − x̂),
  with e(ν, t) the denoiser's own error.

For a Gaussian prior D(u) = P / (P + τ) u and e = P τ / (P + τ); the fixed point is then exactly the Wiener
estimate P / (P + N) y at every frequency, whatever τ, and where N ≤ τ a single pass is.
"""

import torch
from torch import Tensor

__all__ = ["after", "before"]


def before(x: Tensor, y: Tensor, W: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """r, what the denoiser of level τ is shown, and the variance that may be added to it, on the half grid."""
    g = (tau * W).clamp(max=1)
    return x + g * (y - x), torch.where(W > 0, (tau - g**2 / W).clamp(min=0), 0)


def after(x_hat: Tensor, y: Tensor, W: Tensor, e: Tensor, tau: float) -> Tensor:
    """The denoiser's answer, and what it has not used of the data, on the half grid; where W = 0 the answer alone."""
    unused = (W - 1 / tau).clamp(min=0)
    return x_hat + e / (e + 1 / unused) * (y - x_hat)
