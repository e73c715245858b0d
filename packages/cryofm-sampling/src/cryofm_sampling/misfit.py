"""How well a volume explains its data: about 1 where it does."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from cryofm_ops import CryoFMError, FourierDiagonal, FourierGaussian, Likelihood, Proximal, Testable
from cryofm_sampling._common import spectral, split_shape
from cryofm_sampling.errors import MisfitWarning

__all__ = ["misfit"]

_WORSE = 0.5  # above 1
_ERRORS = 6  # standard errors of χ² above 1, where little was measured


def misfit(x: Tensor, likelihood: Any, variance: Tensor | float = 1.0) -> Tensor | None:
    """The deviance of volumes per number that was observed, `(*batch,)`.

    For Gaussian noise that is the reduced χ². A `Testable` likelihood says it itself. For any other it is twice what
    log p(y | x) lacks of its value at the volume that the data alone ask for, over how many numbers they determine.
    At the truth it is about 1, and the less so the fewer these numbers are; at a posterior mean it is less. Much more
    says that the volume does not explain the data.

    Args:
        x: `(*batch, z, y, x)`, in the likelihood's units.
        likelihood: any.
        variance: of the prior, a number or per coefficient, in the same units: within ten of its standard deviations
            the data alone are asked. Of no use for `Testable` and `FourierDiagonal` likelihoods.

    Returns None where nothing can be said: without `log_prob`, or where all data are without noise.

    >>> from cryofm_ops import Identity, WhiteNoise, gaussian_likelihood
    >>> likelihood = gaussian_likelihood(Identity(), WhiteNoise(0.5), torch.zeros(4, 4, 4))
    >>> float(misfit(torch.ones(4, 4, 4), likelihood))
    4.0
    """
    found = measured(x, likelihood, variance)
    return None if found is None else found[0]


@torch.no_grad()
def measured(x: Tensor, likelihood: Any, variance: Tensor | float) -> tuple[Tensor, float] | None:
    """The misfit, and how many numbers were observed."""
    deviance: Tensor
    number: Tensor | float
    try:
        with torch.autocast(x.device.type, enabled=False):
            if isinstance(likelihood, FourierDiagonal) and not isinstance(likelihood, Testable):
                batch, box = split_shape(x.shape)
                likelihood = FourierGaussian(*spectral(likelihood, batch, box), box)
            if isinstance(likelihood, Testable):
                deviance, number = likelihood.deviance(x)
            elif isinstance(likelihood, Likelihood):
                deviance, number = Proximal(likelihood).deviance_from(x, variance)
            else:
                return None
    except CryoFMError:  # such as of data without noise, which have no density
        return None
    number = float(torch.as_tensor(number, dtype=torch.float64).mean())
    return (deviance / number, number) if number >= 1 and bool(deviance.isfinite().all()) else None


def warn_of(found: Tensor, number: float) -> None:
    """Say so, where the data are explained worse than they should be."""
    largest = float(found.max())
    if largest > 1 + max(_WORSE, _ERRORS * math.sqrt(2 / number)):
        warnings.warn(
            f"the result explains the data worse than it should: a misfit of {largest:.3g}, where about 1 is expected. "
            "Look at the scale, the noise and the operator; the README of cryofm-sampling says how (Misfit)",
            MisfitWarning,
            stacklevel=4,
        )
