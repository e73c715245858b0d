"""What posterior samples say together: their mean, their spread, and whether they agree with the data.

The spread over K samples estimates the error of their mean as far as the sampler and the prior can be trusted: for an
exact sampler and the true prior, truth and samples are draws of one distribution. Then (truth − mean) / √(1 + 1/K) has
the samples' standard deviation, and every shell's χ² is 1 within the scatter of its coefficients.
"""

import attrs
import torch
from torch import Tensor

from cryofm_ops import FourierDiagonal, Likelihood, radial_mean, rfft
from cryofm_sampling._common import missing, spectral, split_shape
from cryofm_sampling.errors import CapabilityError, SettingError

__all__ = ["Summary", "chi_squared", "summarise"]


@attrs.frozen(eq=False)
class Summary:
    """Samples in two volumes.

    Attributes:
        mean: `(*batch, z, y, x)`: the posterior mean, with an error of std / √K of its own.
        std: shaped as `mean`: the standard deviation, in every voxel.
    """

    mean: Tensor
    std: Tensor


def summarise(samples: Tensor) -> Summary:
    """Mean and standard deviation of samples `(K, *batch, z, y, x)`, such as `restore(..., estimate="samples").x`.

    Raises `SettingError` for a single sample.

    >>> summary = summarise(torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1).expand(3, 4, 4, 4))
    >>> float(summary.mean[0, 0, 0]), float(summary.std[0, 0, 0])
    (2.0, 1.0)
    """
    if samples.ndim < 4 or len(samples) < 2:
        raise SettingError(f"samples must be (K, *batch, z, y, x) with K at least 2, got shape {tuple(samples.shape)}")
    std, mean = torch.std_mean(samples, 0)
    return Summary(mean, std)


def chi_squared(x: Tensor, likelihood: FourierDiagonal | Likelihood) -> Tensor:
    """χ² of volumes against the data, per shell and per measured coefficient.

    The mean over a shell of W |x̃ − ỹ|², where W is neither 0 nor infinite. At the truth it is 1, and so is its
    expectation at posterior samples; at their mean it is less, as that lies nearer to the data than the truth does.
    More than 1 says that samples disagree with the data, less that they follow its noise, or that it was taken for too
    strong.

    Args:
        x: `(*batch, z, y, x)`.
        likelihood: of the same units; data for each volume of the batch are allowed.

    Returns: radial tables `(*batch, n)` from frequency 0 to Nyquist, NaN where a shell has no such coefficient.

    Raises `CapabilityError` if the likelihood is not `FourierDiagonal`, `GridMismatchError` if it is on another grid.

    >>> from cryofm_ops import Identity, WhiteNoise, gaussian_likelihood
    >>> likelihood = gaussian_likelihood(Identity(), WhiteNoise(2.0), torch.zeros(4, 4, 4))
    >>> chi_squared(torch.full((4, 4, 4), 2.0), likelihood)  # 64 in the coefficient of frequency 0
    tensor([64.,  0.,  0.])
    """
    if not isinstance(likelihood, FourierDiagonal):
        lacking = missing(likelihood, "spectral_precision", "spectral_data")
        raise CapabilityError(f"chi_squared needs a FourierDiagonal likelihood; {lacking}")
    batch, box = split_shape(x.shape)
    W, y = spectral(likelihood, batch, box)
    counted = (W > 0) & W.isfinite()
    residual = torch.where(counted, W * (rfft(x) - y).abs().square(), 0)
    return radial_mean(residual, box) / radial_mean(counted.to(residual), box)
