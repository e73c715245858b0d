"""Whatever the levels, renoising draws from the posterior of a Gaussian prior, and its averages have no noise."""

import pytest
import torch

from cryofm_ops import FourierGaussian, LinearGaussian, WhiteNoise
from cryofm_sampling import CapabilityError, GridMismatchError, Renoising, SettingError
from cryofm_sampling.testing import GaussianPrior, check_covariance, check_mean

BOX = (4, 3, 5)
TABLE = [6.0, 2.0, 0.5, 0.1]
PRIOR = GaussianPrior(torch.tensor(TABLE, dtype=torch.float64), BOX)


class Matrix:
    """A x for any matrix A, `(m, voxels)`."""

    def __init__(self, A):
        self.A = A

    def __call__(self, x):
        return (x.flatten(-3) @ self.A.T)[..., None, None, :]

    def adjoint(self, y):
        return (y[..., 0, 0, :] @ self.A).reshape(*y.shape[:-3], *BOX)


def measured(generator):
    A = torch.randn(20, 60, generator=generator) / 60**0.5
    return A, torch.randn(1, 1, 20, generator=generator)


@pytest.mark.parametrize("times", [(0.8, 0.4), (0.1,)])
@pytest.mark.slow
def test_mean_and_covariance(times):
    check_mean(Renoising(times), runs=200)
    check_covariance(Renoising(times), runs=300, bias=0.0)


def test_noiseless_coefficients_are_kept():
    W = torch.tensor([torch.inf, 0.0, 2.0]).repeat(4, 3, 1)
    y = torch.randn(BOX, generator=torch.Generator().manual_seed(5))
    check_covariance(Renoising((0.5,)), FourierGaussian(W, torch.fft.rfftn(y, norm="ortho"), BOX), runs=300, bias=0.0)


@pytest.mark.slow
def test_any_linear_operator(kit):
    """By conjugate gradients, against dense matrices."""
    generator = torch.Generator().manual_seed(3)
    A, y = measured(generator)
    C = kit.covariance(kit.on_full_grid(TABLE, BOX), BOX)
    gain = C @ A.T @ torch.linalg.inv(A @ C @ A.T + 0.25 * torch.eye(20))
    mean, cov = gain @ y.flatten(), C - gain @ A @ C
    likelihood = LinearGaussian(Matrix(A), WhiteNoise(0.5), y, tolerance=1e-7)
    x = Renoising((0.4,))(PRIOR, likelihood, shape=(100, *BOX), generator=generator).x.flatten(1)
    z = torch.linalg.solve(torch.linalg.cholesky(cov), (x - mean).T)
    assert z.mean(1).abs().max() < 5 / 100**0.5
    assert (z.square().mean(1) - 1).abs().max() < 5 * (2 / 100) ** 0.5
    assert float(z.square().mean()) == pytest.approx(1, abs=5 * (2 / 100 / 60) ** 0.5)
    averaged = Renoising((0.4,), chains=3)(PRIOR, likelihood, shape=BOX, generator=generator).x
    torch.testing.assert_close(averaged.flatten(), mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chains", [2, 5])
def test_averages_carry_no_noise(kit, chains):
    y = torch.randn(2, *BOX, generator=torch.Generator().manual_seed(1))
    noise = kit.on_full_grid([0.02, 0.3, 3.0], BOX)
    likelihood = kit.Spectral(y, 1 / noise[..., :3])
    draw = Renoising((0.8, 0.2), chains)(PRIOR, likelihood, shape=(2, *BOX), generator=torch.Generator())
    P = kit.on_full_grid(TABLE, BOX)
    wiener = torch.fft.ifftn(P / (P + noise) * torch.fft.fftn(y, dim=(-3, -2, -1)), dim=(-3, -2, -1)).real
    torch.testing.assert_close(draw.x, wiener)
    assert draw.nfe == 2 * chains


def test_each_chain_of_an_average_is_a_sample(kit):
    """Noises that sum to 0 have the variance of others: seen by watching the chains."""
    watched = []

    class Watched(GaussianPrior):
        def __call__(self, x, t):
            watched.append(x)
            return super().__call__(x, t)

    prior = Watched(PRIOR.signal_power, BOX)
    W = torch.ones(4, 3, 3)
    for seed in range(60):
        likelihood = kit.Spectral(torch.zeros(BOX), W)
        generator = torch.Generator().manual_seed(seed)
        Renoising((0.5, 0.3), chains=3)(prior, likelihood, shape=BOX, generator=generator)
    P = kit.on_full_grid(TABLE, BOX)
    expected = float((0.7**2 * P / (1 + P) + 0.3**2).mean())  # of x_t at t = 0.3
    found = torch.stack([x.square().mean() for i, x in enumerate(watched) if i % 6 >= 3])
    assert float(found.mean()) == pytest.approx(expected, abs=5 * float(found.std()) / 180**0.5)


def test_what_is_missing_is_named(kit):
    class Neither:
        def refine(self, x):
            return x

    run = {"shape": BOX, "generator": torch.Generator()}
    with pytest.raises(CapabilityError, match=r"Renoising needs a Likelihood, .* Neither has no condition"):
        Renoising()(PRIOR, Neither(), **run)
    likelihood = kit.Spectral(torch.zeros(BOX), torch.ones(4, 3, 3))
    with pytest.raises(CapabilityError, match=r"Renoising needs a Calibrated .* function has no signal_power"):
        Renoising()(lambda x, t: x, likelihood, **run)
    A, y = measured(torch.Generator().manual_seed(0))
    batched = LinearGaussian(Matrix(A), WhiteNoise(0.5), torch.cat([y[None], y[None]]))
    with pytest.raises(GridMismatchError, match=r"conditions a volume \(4, 3, 5\) to \(2, 4, 3, 5\)"):
        Renoising()(PRIOR, batched, shape=(2, *BOX), generator=torch.Generator())
    with pytest.raises(SettingError, match=r"fall within \(0, 1\), got \[0.2, 0.5\]"):
        Renoising((0.2, 0.5))
    with pytest.raises(SettingError, match=r"got \[\]"):
        Renoising(())
