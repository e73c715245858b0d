"""Statistical checks: sums of squares against the χ² distribution."""

import torch
from torch import Tensor

from cryofm_ops.testing._case import Case
from cryofm_ops.testing._expect import expect

__all__ = ["chi_square"]

_FALSE_ALARM = 1e-6


def chi_square(sums: Tensor, degrees: Tensor | float, what: str, case: Case) -> None:
    """Every sum of squares is χ² of its degrees of freedom; one of all of them fails by chance in a million."""
    half = torch.as_tensor(degrees, dtype=torch.float64, device=sums.device).expand(sums.shape) / 2
    tail = torch.minimum(torch.special.gammainc(half, sums / 2), torch.special.gammaincc(half, sums / 2))
    worst = int(tail.argmin())
    expect(
        float(tail[worst]) >= _FALSE_ALARM / (2 * sums.numel()),  # NaN fails
        f"{what} to be 1 within the χ² of its draws (false alarm {_FALSE_ALARM:.0e})",
        f"{float(sums[worst] / (2 * half[worst])):.4f} (tail probability {float(tail[worst]):.1e})",
        case,
    )
