"""With a Gaussian prior the fixed point is the Wiener estimate, and what is passed through it cannot tell."""

from itertools import pairwise

import attrs
import pytest
import torch

from cryofm_ops import (
    FourierGaussian,
    Identity,
    WhiteNoise,
    fourier_filter,
    frequencies,
    gaussian_likelihood,
    radial,
    rfft,
)
from cryofm_sampling import CapabilityError, GridMismatchError, PlugAndPlay, PosteriorFlow
from cryofm_sampling.samplers._orientations import ROTATIONS, rotate, rotate_back
from cryofm_sampling.samplers.plug_and_play import alternate
from cryofm_sampling.testing import GaussianPrior

BOX = (6, 5, 7)
TABLE = [4.0, 2.0, 0.5, 0.05]
HALF = BOX[2] // 2 + 1


def wiener(kit, y, noise):
    """P / (P + N) y on the full grid of frequencies, with numpy's interpolation for P."""
    P = kit.on_full_grid(TABLE, y.shape)
    return torch.fft.ifftn(P / (P + noise) * torch.fft.fftn(y)).real


def observed(seed=0):
    return torch.randn(BOX, generator=torch.Generator().manual_seed(seed))


@attrs.frozen
class Misinformed:
    """The exact flow of one Gaussian prior with the statistics of another: it starts away from the fixed point."""

    true: GaussianPrior
    told: GaussianPrior

    def __call__(self, x, t):
        return self.true(x, t)

    @property
    def signal_power(self):
        return self.told.signal_power

    @property
    def denoising_error(self):
        return self.told.denoising_error


PRIOR = GaussianPrior(torch.tensor(TABLE, dtype=torch.float64), BOX)


@pytest.mark.parametrize("time", [0.1, 0.5, 0.8])
def test_wiener_estimate_is_a_fixed_point(kit, time):
    y, noise = observed(), kit.on_full_grid([0.02, 0.3, 1.0, 3.0], BOX)
    x = wiener(kit, y, noise)
    u = torch.fft.ifftn(1 / kit.on_full_grid(TABLE, BOX) * torch.fft.fftn(x)).real
    data = FourierGaussian(1 / noise[..., :HALF], rfft(y), BOX)
    found = alternate(PRIOR, [data], x[None], u[None], [time], [torch.Generator()])
    for (one,), expected in zip(found, (x, x, u), strict=True):
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-5)


def test_wiener_estimate_attracts(kit):
    y, noise = observed(), kit.on_full_grid([0.5, 0.7, 1.0, 3.0], BOX)
    prior = Misinformed(PRIOR, GaussianPrior(1.0, BOX))
    likelihood = kit.Spectral(y, 1 / noise[..., :HALF])

    def error(iterations):
        draw = PlugAndPlay(iterations, time=0.4)(prior, likelihood, shape=BOX, generator=torch.Generator())
        return float((draw.x - wiener(kit, y, noise)).abs().max())

    errors = [error(iterations) for iterations in (1, 8, 64, 512)]
    assert errors[0] > 0.1
    assert all(after < before / 3 for before, after in pairwise(errors)), errors


class Halved:
    """Neighbours along x averaged, with a weight: neither diagonal in Fourier space nor square."""

    def __call__(self, x):
        return (x[..., 0::2] + 3 * x[..., 1::2]) / 4

    def adjoint(self, y):
        return torch.stack([y, 3 * y], -1).flatten(-2) / 4


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_any_linear_operator(noise):
    """Against the posterior mean of a Gaussian prior by a dense matrix."""
    box, n = (8, 8, 8), 512
    prior = GaussianPrior(torch.tensor([4.0, 2.0, 0.5, 0.2]), box)
    one = torch.eye(n).reshape(n, *box)
    A = Halved()(one).reshape(n, -1).T
    C = fourier_filter(one, radial(prior.signal_power, box)).reshape(n, n)
    y = torch.randn(8, 8, 4, generator=torch.Generator().manual_seed(0))
    best = (C @ A.T @ torch.linalg.solve(A @ C @ A.T + noise**2 * torch.eye(n // 2), y.flatten())).reshape(box)
    likelihood = gaussian_likelihood(Halved(), WhiteNoise(noise), y)

    def error(iterations):
        draw = PlugAndPlay(iterations)(prior, likelihood, shape=box, generator=torch.Generator().manual_seed(0))
        return float((draw.x - best).norm() / best.norm())

    assert error(8) < 0.06
    assert error(50) < 1e-4


class Gain:
    def __call__(self, x):
        return torch.linspace(0.5, 1.5, x.shape[-1]).to(x) * x

    adjoint = __call__


def test_a_linear_operator_s_data_in_another_precision_or_of_two_volumes():
    y = torch.randn(2, *BOX, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    run = {"shape": BOX, "generator": torch.Generator()}
    dtypes = set()

    @attrs.frozen(slots=False)
    class Watched(GaussianPrior):
        def __call__(self, x, t):
            dtypes.add(x.dtype)
            return super().__call__(x, t)

    draw = PlugAndPlay(2)(Watched(1.0, BOX), gaussian_likelihood(Gain(), WhiteNoise(1.0), y[0]), **run)
    assert dtypes == {draw.x.dtype} == {torch.float32}
    with pytest.raises(GridMismatchError, match=r"the likelihood conditions a volume \(6, 5, 7\) to \(2, 6, 5, 7\)"):
        PlugAndPlay()(PRIOR, gaussian_likelihood(Gain(), WhiteNoise(1.0), y), **run)


def last_level(W, prior=PRIOR, box=BOX):
    data = FourierGaussian(W, torch.zeros(W.shape, dtype=torch.complex128), box)
    (time,) = PlugAndPlay()(prior, data, shape=box, generator=torch.Generator()).settings["time"]
    return time


def test_gaps_raise_the_level_by_their_power_over_what_was_measured():
    power, box = 3.0, (4, 4, 4)
    planes = (
        ([0], power * 48**2 / (15 * 63)),
        ([0, 2], power * 32**2 / (31 * 63)),
        ([0, 1, 3], power * 16**2 / (47 * 63)),
    )
    for kept, tau in planes:
        W = torch.zeros(4, 4, 3, dtype=torch.float64)
        W[kept] = torch.inf
        time = last_level(W, GaussianPrior(power), box)
        # counted over coefficients other than DC, whose mean power is P: m = 16 (4 − |kept|) / 63, g = 1 − m
        assert (time / (1 - time)) ** 2 == pytest.approx(tau + (0.05 / 0.95) ** 2, rel=1e-6)


@pytest.mark.parametrize("precision", [1e3, 1e6, torch.inf])
def test_what_was_measured_well_is_kept_beside_gaps(precision):
    """Though their level is far above the noise, and above the power at high frequencies."""
    box = (12, 12, 12)
    prior = GaussianPrior(torch.tensor([100.0, 3.0, 0.1, 0.05, 0.05]), box)
    W = torch.full((12, 12, 7), precision, dtype=torch.float64)
    W[4:9] = 0
    signal = fourier_filter(
        torch.randn(box, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        radial(prior.signal_power, box).sqrt(),
    )
    data = FourierGaussian(W, torch.where(W > 0, rfft(signal), 0), box)
    x = PlugAndPlay()(prior, data, shape=box, generator=torch.Generator()).x
    best = data.condition(torch.zeros(box, dtype=torch.float64), radial(prior.signal_power, box)).mean
    high = (W > 0) & (frequencies(box) > 0.3)
    assert (rfft(x - best)[high].abs().square().mean() / rfft(signal)[high].abs().square().mean()) < 1e-3


def test_data_that_say_next_to_nothing_have_a_level():
    for W in (1e-38, 1e-44, 0.0):
        for sampler in (PlugAndPlay(2), PosteriorFlow(2)):
            data = FourierGaussian(torch.full((6, 5, HALF), W), torch.zeros(6, 5, HALF, dtype=torch.complex64), BOX)
            assert sampler(PRIOR, data, shape=BOX, generator=torch.Generator()).x.isfinite().all()


def test_level_is_the_gain_weighted_mean_amplitude_of_the_noise(kit):
    noise = kit.on_full_grid([0.02, 0.3, 1.0, 3.0], BOX).clone()
    gain = kit.on_full_grid(TABLE, BOX) / (kit.on_full_grid(TABLE, BOX) + noise)
    gain[0, 0, 0] = 0
    tau = ((gain * noise.sqrt()).sum() / gain.sum()) ** 2
    noise[0, 0, 0] = 1e6  # DC does not count
    likelihood = kit.Spectral(observed(), 1 / noise[..., :HALF])
    draw = PlugAndPlay()(PRIOR, likelihood, shape=BOX, generator=torch.Generator())
    (t,) = draw.settings["time"]
    assert (t / (1 - t)) ** 2 == pytest.approx(float(tau))


def test_held_passes_stay_at_the_last_level_and_are_averaged():
    likelihood = gaussian_likelihood(Identity(), WhiteNoise(1.0), torch.ones(BOX))
    seen = []

    def run(sampler):
        seen.clear()
        draw = sampler(Watched(1.0), likelihood, shape=BOX, generator=torch.Generator())
        return draw, list(seen)

    class Watched(GaussianPrior):
        def __call__(self, x, t):
            seen.append(float(t))
            return super().__call__(x, t)

    _, times = run(PlugAndPlay(5, time=0.2, held=2))
    assert times == pytest.approx([0.8, 0.5, 0.2, 0.2, 0.2])
    assert PlugAndPlay(1, held=3)(PRIOR, likelihood, shape=BOX, generator=torch.Generator()).nfe == 1
    assert run(PlugAndPlay(4, time=0.2, held=9))[1] == pytest.approx([0.2] * 4)
    exact = torch.full(BOX, 0.5)
    torch.testing.assert_close(run(PlugAndPlay(40, held=20))[0].x, exact, rtol=0, atol=2e-2)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_the_last_pass_is_at_the_time_asked_for(kit, iterations):
    W = torch.ones(*BOX[:2], HALF)
    W[2] = W[4] = 0
    times = []

    class Watched(GaussianPrior):
        def __call__(self, x, t):
            times.append(float(t))
            return super().__call__(x, t)

    run = {"shape": BOX, "generator": torch.Generator()}
    draw = PlugAndPlay(iterations, time=0.2)(Watched(1.0), kit.Spectral(observed(), W), **run)
    assert times[-1] == pytest.approx(0.2)
    assert draw.settings["time"] == [times[-1]]


def test_gaps_are_filled_and_noiseless_data_kept(kit):
    """A signal confined to a ball, so that its coefficients are correlated; half of them measured without noise."""
    n = 8
    axis = torch.arange(n) - (n - 1) / 2
    profile = torch.exp(-(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) / 6) + 1e-4

    class Ball:  # x_0 ~ N(0, profile²) in every voxel: the exact flow, and its power spectrum
        signal_power = profile.square().mean().expand(2)
        denoising_error = torch.tensor(
            [
                [t, float((profile**2 * t**2 / ((1 - t) ** 2 * profile**2 + t**2)).mean())]
                for t in torch.linspace(0.02, 1, 50).tolist()
            ]
        )

        def __call__(self, x, t):
            return (t - (1 - t) * profile**2) / ((1 - t) ** 2 * profile**2 + t**2) * x

    truth = profile * torch.randn(n, n, n, generator=torch.Generator().manual_seed(5))
    kz, ky, kx = torch.meshgrid(*(torch.fft.fftfreq(n),) * 3, indexing="ij")
    missing = ky.abs() + kx.abs() < kz.abs()  # a double cone about z
    W = torch.where(missing, 0.0, torch.inf)[..., : n // 2 + 1]
    y = torch.fft.ifftn(torch.fft.fftn(truth) * ~missing).real
    sampler = PlugAndPlay(iterations=40)
    draw = sampler(Ball(), kit.Spectral(y, W), shape=(n, n, n), generator=torch.Generator())
    found, true = torch.fft.fftn(draw.x), torch.fft.fftn(truth)
    torch.testing.assert_close(found[~missing], true[~missing])
    # The best estimate of all, for comparison: the conditional mean, with dense matrices.
    F = torch.fft.fftn(torch.eye(n**3).reshape(-1, n, n, n), dim=(1, 2, 3), norm="ortho").reshape(n**3, -1).T
    A = F[~missing.flatten()]
    C = torch.diag(profile.flatten() ** 2).to(A)
    best = (C @ A.mH @ torch.linalg.pinv(A @ C @ A.mH, hermitian=True) @ (A @ y.flatten().to(A))).real.reshape(n, n, n)
    gained = ((y - truth).square().sum() - (draw.x - truth).square().sum()) / (
        (y - truth).square().sum() - (best - truth).square().sum()
    )
    assert gained > 0.8


def test_rotations_are_the_24_of_the_cube():
    corner = torch.arange(27).reshape(1, 3, 3, 3)
    seen = {tuple(rotate(corner, i).flatten().tolist()) for i in range(len(ROTATIONS))}
    assert len(ROTATIONS) == len(seen) == 24
    x = torch.randn(2, 3, 4, 5)
    for i in range(24):
        assert torch.equal(rotate_back(rotate(x, i), i), x)
    # Proper: as matrices on the vector of axes their determinant is 1.
    axes = torch.eye(3)
    for p, flips in ROTATIONS:
        matrix = axes[list(p)] * torch.tensor([-1.0 if axis - 3 in flips else 1.0 for axis in range(3)])[:, None]
        assert torch.linalg.det(matrix) == pytest.approx(1)


def test_the_last_two_passes_are_averaged(kit):
    for iterations in (1, 2, 5):
        seen = []
        run = {"shape": BOX, "generator": torch.Generator(), "callback": lambda i, n, x: seen.append(x)}  # noqa: B023
        prior = kit.Sure(PRIOR.signal_power, BOX)
        draw = PlugAndPlay(iterations)(prior, kit.Spectral(observed(), torch.ones(*BOX[:2], HALF)), **run)
        assert len(seen) == draw.nfe == iterations
        torch.testing.assert_close(draw.x, torch.stack(seen[-2:]).mean(0))


def test_default_plan_is_8_evaluations(kit):
    likelihood = kit.Spectral(observed(), torch.ones(*BOX[:2], HALF))
    assert PlugAndPlay()(PRIOR, likelihood, shape=BOX, generator=torch.Generator()).nfe == 8


def test_what_is_missing_is_named(kit):
    class MyLikelihood:
        def spectral_data(self):
            return torch.ones(1)

    run = {"shape": BOX, "generator": torch.Generator()}
    with pytest.raises(CapabilityError, match=r"needs a Likelihood, .*; MyLikelihood has no condition and no log_prob"):
        PlugAndPlay()(PRIOR, MyLikelihood(), **run)
    likelihood = kit.Spectral(observed(), torch.ones(*BOX[:2], HALF))
    with pytest.raises(CapabilityError, match="function has no signal_power and no denoising_error"):
        PlugAndPlay()(lambda x, t: x, likelihood, **run)
    with pytest.raises(GridMismatchError, match=r"Spectral has .* \(6, 5, 4\) .* \(8, 8, 8\), need \(8, 8, 5\)"):
        PlugAndPlay()(PRIOR, likelihood, shape=(8, 8, 8), generator=torch.Generator())
