"""Alg. 2: what was measured is kept, the missing part of a stationary Gaussian prior is sampled exactly."""

import pytest
import torch

from cryofm_ops import FourierGaussian, LinearGaussian, MissingWedge, WhiteNoise, gaussian_likelihood
from cryofm_sampling import CapabilityError, GridMismatchError, Inpainting
from cryofm_sampling.testing import GaussianPrior, check_covariance, check_mean

BOX = (4, 3, 5)


def wedge(seed=0):
    operator = MissingWedge(-50, 40)
    y = torch.randn(BOX, generator=torch.Generator().manual_seed(seed))
    return gaussian_likelihood(operator, WhiteNoise(0.0), operator(y))


@pytest.mark.slow
def test_samples_of_the_missing_wedge_are_exact():
    missing = (wedge().spectral_precision() == 0).double().mean()
    assert 0.2 < missing < 0.6
    check_mean(Inpainting(50), wedge(), runs=300)
    # Equidistant Euler steps lose up to 5 % of the variance of powers from 0.1 to 6.
    check_covariance(Inpainting(200), wedge(), runs=500, bias=0.05)


def test_one_line_of_the_algorithm():
    """x_{t−Δ} = (1 − 1/(Nt)) x_t + x̂_0'/(Nt), written out, with the data as noiseless whatever their noise."""
    N = 3
    generator = torch.Generator().manual_seed(4)
    keep = torch.rand(4, 3, 3, generator=generator) > 0.5
    keep[:, :, 0] = True  # half-grid columns that are their own mates stay Hermitian
    data = torch.fft.rfftn(torch.randn(BOX, generator=generator), norm="ortho")
    likelihood = FourierGaussian(torch.where(keep, 0.01, 0.0), data, BOX)  # variance 100
    seen = []

    def velocity(x, t):
        seen.append((x, float(t)))
        return x.sin()

    draw = Inpainting(N)(velocity, likelihood, shape=BOX, generator=generator)
    ends = [x for x, _ in seen[1:]] + [draw.x]
    assert [t for _, t in seen] == pytest.approx([1, 2 / 3, 1 / 3])
    for (x, t), end in zip(seen, ends, strict=True):
        x_0 = torch.fft.rfftn(x - t * x.sin(), norm="ortho")
        x_0 = torch.fft.irfftn(torch.where(keep, data, x_0), s=BOX, norm="ortho")
        torch.testing.assert_close(end, (1 - 1 / (N * t)) * x + x_0 / (N * t))
    assert draw.nfe == N


class Mean:
    """The means of 2 voxels along x: not diagonal in Fourier space."""

    def __call__(self, x):
        return (x[..., 0:4:2] + x[..., 1:4:2]) / 2

    def adjoint(self, y):
        spread = y.repeat_interleave(2, -1) / 2
        return torch.cat([spread, 0 * spread[..., :1]], -1)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_the_pseudo_inverse_of_any_linear_operator(batch):
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(*batch, 4, 3, 2, generator=generator)
    likelihood = LinearGaussian(Mean(), WhiteNoise(0.0), y, tolerance=1e-9)
    last = []
    draw = Inpainting(4)(
        GaussianPrior(1.0), likelihood, shape=(*batch, *BOX), generator=generator,
        callback=lambda step, total, x_0: last.append(x_0),
    )  # fmt: skip
    torch.testing.assert_close(Mean()(draw.x), y)
    torch.testing.assert_close(draw.x, last[-1])
    # A⁺ A = 2 Aᵀ A leaves what it does not see to the flow: differences within pairs, and the last plane.
    x_0 = torch.randn(*batch, *BOX, generator=generator)
    expected = x_0 + 2 * Mean().adjoint(y - Mean()(x_0))
    torch.testing.assert_close(likelihood.condition(x_0, 1.0).mean, expected)


def test_what_is_missing_is_named():
    class OnlyLogProb:
        def log_prob(self, x):
            return x.sum((-3, -2, -1))

    run = {"generator": torch.Generator()}
    lacking = "no spectral_precision and no spectral_data and no condition"
    with pytest.raises(CapabilityError, match=f"Inpainting needs a FourierDiagonal or a Conjugate .*{lacking}"):
        Inpainting()(GaussianPrior(1.0), OnlyLogProb(), shape=BOX, **run)
    with pytest.raises(GridMismatchError, match="the volumes asked for"):
        Inpainting()(GaussianPrior(1.0), wedge(), shape=(8, 8, 8), **run)
