"""With a Gaussian prior the posterior is known: `gaussian` guidance samples it, `paper` guidance does not."""

from types import SimpleNamespace

import pytest
import torch

from cryofm_ops import FourierGaussian, radial, rfft
from cryofm_sampling import BlindGuided, CapabilityError, Checkpoint, Guided
from cryofm_sampling.testing import GaussianPrior

BOX = (4, 3, 5)
VOXELS = 60
WHITE, COLOURED = [1.0, 1.0], [6.0, 2.0, 0.5, 0.1]


def check(x, mean, cov):
    """Samples `(n, *BOX)` against N(mean, cov): whitened by the exact posterior they must be standard normal."""
    n = len(x)
    z = torch.linalg.solve(torch.linalg.cholesky(cov), (x.flatten(1) - mean).T)
    sampling = 5 / n**0.5
    assert z.mean(1).abs().max() < sampling + 0.01
    empirical = z @ z.T / n
    off_diagonal = empirical - torch.diag(empirical.diag())
    assert off_diagonal.abs().max() < sampling
    assert (empirical.diag() - 1).abs().max() < 2**0.5 * sampling + 0.04  # 0.04: bias of 100 Euler steps
    # Over all 60 coefficients the sampling error is small; Euler steps may lose up to 4 % of the variance.
    error = 5 * (2 / (n * VOXELS)) ** 0.5
    assert 0.96 - error < empirical.diag().mean() < 1 + error


@pytest.mark.slow
@pytest.mark.parametrize("table", [WHITE, COLOURED])
@pytest.mark.parametrize("only_log_prob", [False, True])
def test_spectral_noise(kit, table, only_log_prob):
    prior = GaussianPrior(torch.tensor(table), BOX)
    noise = [0.05, 0.5, 2.0]
    y = torch.randn(BOX, generator=torch.Generator().manual_seed(1)) * 2
    C, S = (kit.covariance(kit.on_full_grid(power, BOX), BOX) for power in (table, noise))
    gain = C @ torch.linalg.inv(C + S)
    mean, cov = gain @ y.flatten(), C - gain @ C
    likelihood = kit.Spectral(y, 1 / kit.on_full_grid(noise, BOX)[..., : BOX[2] // 2 + 1])
    if only_log_prob:
        likelihood = type("LogProb", (), {"log_prob": staticmethod(likelihood.log_prob)})()
    shape = (200 if only_log_prob else 2000, *BOX)
    draw = Guided(steps=100)(prior, likelihood, shape=shape, generator=torch.Generator().manual_seed(2))
    check(draw.x, mean, cov)


@pytest.mark.slow
def test_fewer_measurements_than_voxels(kit):
    generator = torch.Generator().manual_seed(3)
    A = torch.randn(20, VOXELS, generator=generator) / VOXELS**0.5
    variance = 0.02 + torch.rand(20, generator=generator)
    y = torch.randn(20, generator=generator)
    C = kit.covariance(kit.on_full_grid(COLOURED, BOX), BOX)
    gain = C @ A.T @ torch.linalg.inv(A @ C @ A.T + torch.diag(variance))
    prior = GaussianPrior(torch.tensor(COLOURED), BOX)
    draw = Guided(steps=100)(prior, kit.Dense(A, y, variance), shape=(400, *BOX), generator=generator)
    check(draw.x, gain @ y, C - gain @ A @ C)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_paper_guidance_is_not_calibrated(kit, sigma):
    y = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(1))
    likelihood = kit.Spectral(y, torch.full((8, 8, 5), sigma**-2))
    exact = sigma / (1 + sigma**2) ** 0.5

    def samples(guidance):
        generator = torch.Generator().manual_seed(2)
        return Guided(steps=100, guidance=guidance)(
            GaussianPrior(1.0), likelihood, shape=(20, 8, 8, 8), generator=generator
        ).x

    paper = samples("paper")
    assert paper.std(0).mean() < 0.1 * exact  # far too narrow, whatever the noise
    assert (paper.mean(0) - y).square().mean() < 0.01 * sigma**4 / (1 + sigma**2) ** 2  # and it copies the noise
    assert samples("gaussian").std(0).mean() == pytest.approx(exact, rel=0.04)


def test_paper_guidance_does_not_depend_on_the_noise_level(kit):
    y = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    one, *others = (
        Guided(steps=50, guidance="paper")(
            GaussianPrior(1.0),
            kit.Spectral(y, torch.full((8, 8, 5), W, dtype=torch.float32)),
            shape=(8, 8, 8),
            generator=torch.Generator().manual_seed(2),
        ).x
        # Powers of 2, as normalising them leaves no rounding error; single precision has no square of the last two.
        for W in (1.0, 2.0**-6, 2.0**6, 2.0**-80, 2.0**80)
    )
    assert all(torch.equal(other, one) for other in others)


def test_total_push_of_paper_guidance_does_not_depend_on_the_number_of_steps():
    class Slope:  # a gradient of constant direction, away from 0
        def log_prob(self, x):
            return x.sum((-3, -2, -1))

    def still(x, t):  # a flow that goes nowhere
        return 0 * x

    ends = []
    for steps in (50, 500):
        start = torch.Generator().manual_seed(0)
        ends.append(Guided(steps=steps, guidance="paper")(still, Slope(), shape=(8, 8, 8), generator=start).x)
    moved = ends[1] - ends[0]
    pushed = 1000 * 5 * (8 / 64) ** 1.5 / 8**1.5  # per voxel, if all pushes were λ_max
    assert moved.abs().max() < 0.03 * pushed


@pytest.mark.parametrize(("steps", "max_push"), [(20, 5.0), (60, 0.4)])
def test_paper_guidance_to_the_letter(kit, steps, max_push):
    y, noise = torch.randn(BOX, generator=torch.Generator().manual_seed(1)), torch.tensor([0.05, 0.5, 2.0])
    likelihood = kit.Spectral(y, 1 / kit.on_full_grid(noise, BOX)[..., : BOX[2] // 2 + 1])
    seen = []

    def velocity(x, t):
        seen.append((x.detach(), t))
        return torch.sin(3 * x) + t * x.roll(1, -1)

    own = Guided(steps, "paper", max_push, rescaled=False)
    found = own(velocity, likelihood, shape=BOX, generator=torch.Generator().manual_seed(2)).x

    x = seen[0][0].reshape(BOX)  # pure noise
    for i in range(steps):
        t = 1 - i / steps
        x = x.detach().requires_grad_()
        v = velocity(x[None], torch.tensor(t))[0]
        loss = -likelihood.log_prob(x - t * v)
        [g] = torch.autograd.grad(loss, x)
        push = min(max_push, t / (1 - t)) * g / g.norm() if t < 1 else 0
        x = x - v / steps - push
    torch.testing.assert_close(found, x.detach(), rtol=0, atol=1e-5)


def test_gradient_is_guarded_and_normalised_per_volume():
    def still(x, t):  # a flow that goes nowhere
        return 0 * x

    class Pull:
        def __init__(self, *strength):
            self.strength = torch.tensor(strength)

        def log_prob(self, x):
            return -self.strength * x.square().sum((-3, -2, -1))

    def run(*strength):
        start = torch.Generator().manual_seed(0)
        paper = Guided(steps=4, guidance="paper")
        return paper(still, Pull(*strength), shape=(2, 4, 4, 4), generator=start).x

    idle = run(0.0, 0.0)  # 0/0 everywhere: nobody moves
    assert idle.std() == pytest.approx(1, abs=0.2)
    together = run(1.0, 0.0)
    assert torch.equal(together[1], idle[1])
    assert not torch.equal(together[0], idle[0])
    torch.testing.assert_close(together[0], run(1.0, 1e6)[0])  # no norm over the batch


@pytest.mark.parametrize(("guidance", "nfe"), [("paper", 19), ("gaussian", 19)])
def test_network_evaluations_are_counted(kit, guidance, nfe):
    calls = {"forward": 0, "backward": 0}

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            calls["forward"] += 1
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            calls["backward"] += 1
            return g

    prior = GaussianPrior(1.0)
    seen = []
    draw = Guided(steps=10, guidance=guidance)(
        lambda x, t: prior(Counted.apply(x), t),
        kit.Spectral(torch.zeros(4, 4, 4), torch.ones(4, 4, 3)),
        shape=(2, 4, 4, 4),
        generator=torch.Generator(),
        callback=lambda step, total, x_0: seen.append((step, total, tuple(x_0.shape))),
    )
    assert draw.nfe == calls["forward"] + calls["backward"] == nfe
    assert seen == [(i, 10, (2, 4, 4, 4)) for i in range(1, 11)]
    assert draw.settings["guidance"] == guidance


class Far:
    def log_prob(self, x):
        return -(x - 1).square().sum((-3, -2, -1))


class Searched:
    def refine(self, x):
        return Far()


GUIDED = [
    (kind(steps=3, guidance=guidance), data)
    for kind, data in ((Guided, Far()), (BlindGuided, Searched()))
    for guidance in ("gaussian", "paper")
]


def draw(sampler, likelihood, prior=GaussianPrior(1.0), **options):  # noqa: B008
    return sampler(prior, likelihood, shape=(4, 4, 4), generator=torch.Generator().manual_seed(0), **options).x


@pytest.mark.parametrize(("sampler", "likelihood"), GUIDED)
def test_a_caller_that_wants_no_gradients_gets_the_same(sampler, likelihood, tmp_path):
    found = draw(sampler, likelihood)
    with torch.inference_mode():
        assert torch.equal(draw(sampler, likelihood, checkpoint=Checkpoint(tmp_path / "run", 0)), found)


@pytest.mark.parametrize(("sampler", "likelihood"), GUIDED)
def test_a_prior_that_lets_no_gradient_through_is_refused(sampler, likelihood):
    with pytest.raises(CapabilityError, match="no gradient passes through the prior"):
        draw(sampler, likelihood, torch.no_grad()(GaussianPrior(1.0).__call__))


@pytest.mark.parametrize("guidance", ["gaussian", "paper"])
def test_a_log_prob_that_lets_no_gradient_through_is_refused(guidance):
    class Detached(Far):
        def log_prob(self, x):
            return super().log_prob(x.detach())

    with pytest.raises(CapabilityError, match="no gradient passes through the log_prob of the likelihood"):
        draw(Guided(steps=3, guidance=guidance), Detached())


def test_a_likelihood_without_log_prob_is_named():
    with pytest.raises(ValueError, match="Guided needs a Likelihood; object has no log_prob"):
        Guided()(GaussianPrior(1.0), object(), shape=(4, 4, 4), generator=torch.Generator())


def test_a_conjugate_likelihood_is_conditioned_on_exactly():
    """Where signal over noise varies by orders of magnitude, which gradients of `log_prob` alone solve for badly."""
    box = (12, 12, 12)
    y = torch.randn(box, generator=torch.Generator().manual_seed(0))
    spectral = FourierGaussian(radial(torch.logspace(3, -1, 7), box), rfft(y), box)
    prior = GaussianPrior(torch.logspace(2, -2, 7), box)
    only = SimpleNamespace(log_prob=spectral.log_prob, condition=spectral.condition)
    exact, found = (
        Guided(steps=10)(prior, given, shape=box, generator=torch.Generator().manual_seed(1)).x
        for given in (spectral, only)
    )
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-3 * float(exact.std()))
