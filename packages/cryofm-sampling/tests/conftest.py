"""Likelihoods that import nothing of ours, dense matrices as oracles, and a prior that never errs."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cryofm_sampling.testing import GaussianPrior


@pytest.fixture(autouse=True)
def float64():
    """Exactness is looked for here; single precision has tests of its own."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Spectral:
    """y = x + noise of precision W(k), as a stranger would write it."""

    def __init__(self, y: Tensor, W: Tensor):
        self.y, self.W = torch.fft.rfftn(y, dim=(-3, -2, -1), norm="ortho"), W

    def spectral_precision(self) -> Tensor:
        return self.W

    def spectral_data(self) -> Tensor:
        return self.y

    def log_prob(self, x: Tensor, /) -> Tensor:
        residual = torch.fft.rfftn(x, dim=(-3, -2, -1), norm="ortho") - self.y
        twice = torch.full(self.W.shape[-1:], 2.0)
        twice[0] = 1
        if x.shape[-1] % 2 == 0:
            twice[-1] = 1
        return -0.5 * (twice * self.W * residual.abs().square()).sum((-3, -2, -1))


class Dense:
    """y = A x + noise of the given variances, for any matrix A; only `log_prob`."""

    def __init__(self, A: Tensor, y: Tensor, variance: Tensor):
        self.A, self.y, self.variance = A, y, variance

    def log_prob(self, x: Tensor, /) -> Tensor:
        return -0.5 * ((x.flatten(-3) @ self.A.T - self.y).square() / self.variance).sum(-1)


def covariance(power: Tensor, box: tuple[int, int, int]) -> Tensor:
    """Dense covariance of a stationary field, by a brute-force DFT; `power` on the FULL grid of frequencies."""
    n = int(np.prod(box))
    F = torch.fft.fftn(torch.eye(n).reshape(n, *box), dim=(1, 2, 3), norm="ortho").reshape(n, n).T
    return (F.conj().T @ (power.flatten()[:, None] * F)).real


def on_full_grid(table: list[float], box: tuple[int, int, int]) -> Tensor:
    """A radial table on all frequencies of a box, with numpy's interpolation."""
    k = np.meshgrid(*(np.fft.fftfreq(n) for n in box), indexing="ij")
    nu = np.sqrt(sum(axis**2 for axis in k))
    return torch.from_numpy(np.interp(nu, np.linspace(0, 0.5, len(table)), table))


class Sure(GaussianPrior):
    """Its denoiser is said never to err, so that samplers add and take nothing for that in the end."""

    @property
    def denoising_error(self) -> Tensor:
        return torch.tensor([[1e-6, 0.0], [1.0, 0.0]], dtype=torch.float64)


@pytest.fixture
def kit():
    """The classes and functions above (test modules cannot import each other)."""

    class Kit:
        pass

    kit = Kit()
    kit.Spectral, kit.Dense, kit.Sure, kit.covariance, kit.on_full_grid = (
        Spectral,
        Dense,
        Sure,
        covariance,
        on_full_grid,
    )
    return kit
