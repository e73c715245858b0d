"""The likelihood by the flow against densities that are known in closed form."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from cryofm_ops import ConvergenceError
from cryofm_sampling import CapabilityError, SettingError, Tiled, log_likelihood
from cryofm_sampling.testing import GaussianPrior

BOX = (4, 3, 5)
N = 60
COLOURED = torch.tensor([6.0, 2.0, 0.5, 0.1])
PRIOR = GaussianPrior(COLOURED)


def run(velocity, x, seed=0, **options):
    return log_likelihood(velocity, x, generator=torch.Generator().manual_seed(seed), **options)


def dense(kit, x):
    """log N(x; 0, C) of the coloured prior, by its covariance matrix."""
    C = kit.covariance(kit.on_full_grid(COLOURED.tolist(), BOX), BOX)
    normal = torch.distributions.MultivariateNormal(torch.zeros(N), C)
    return normal.log_prob(x.flatten(-3))


class Mixture:
    """Exact flow of independent voxels, each one of two normals of variance s²: its Jacobian is diagonal."""

    weights, means, s = torch.tensor([0.7, 0.3]), torch.tensor([-0.5, 1.5]), 0.5

    def parts(self, x, t):
        variance = (1 - t) ** 2 * self.s**2 + t**2
        residual = x[..., None] - (1 - t) * self.means
        return variance, residual, self.weights.log() - 0.5 * residual**2 / variance - 0.5 * torch.log(variance)

    def log_prob(self, x):
        log_p = self.parts(x, torch.tensor(0.0))[2].logsumexp(-1) - 0.5 * math.log(2 * math.pi)
        return log_p.sum((-3, -2, -1))

    def __call__(self, x, t):
        variance, residual, log_p = self.parts(x, t)
        # E[x_1 − x_0 | x_t] under each component
        v = -self.means + residual * (t - (1 - t) * self.s**2) / variance
        return (log_p.softmax(-1) * v).sum(-1)


def test_mixture_of_many_modes():
    x = torch.randn(2, *BOX, generator=torch.Generator().manual_seed(1))
    found = run(Mixture(), x, probes=2, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.nats, Mixture().log_prob(x), rtol=0, atol=1e-3)
    assert found.standard_error.max() < 1e-6  # ±1 probes see a diagonal without error
    wide = run(Mixture(), x[0], probes=2, distribution="gaussian")
    assert wide.standard_error > 0.1


def test_the_default_errs_less_than_a_ten_thousandth_of_a_nat_per_voxel():
    x = torch.randn(4, *BOX, generator=torch.Generator().manual_seed(0))
    error = (run(Mixture(), x, probes=1).nats - Mixture().log_prob(x)) / N
    assert 0 < error.abs().max() < 1e-4


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_coloured_prior_within_the_stated_error(kit, distribution):
    x = torch.randn(BOX, generator=torch.Generator().manual_seed(2))
    found = run(PRIOR, x, probes=40, distribution=distribution, steps=10)
    # The flow is linear, x_1 = C^−½ x_0, so each probe sees zᵀ L z with L = −½ log C, of known variance.
    L = kit.covariance(-0.5 * kit.on_full_grid(COLOURED.tolist(), BOX).log(), BOX)
    unseen = L - torch.diag(L.diag()) if distribution == "rademacher" else L
    error = (2 * unseen.square().sum() / 40) ** 0.5
    assert float(found.standard_error) == pytest.approx(float(error), rel=0.4)
    assert abs(found.nats - dense(kit, x)) < 4 * error + 0.05  # 0.05: of 10 steps


@pytest.mark.slow
def test_tolerance_and_even_steps(kit):
    x = torch.randn(BOX, generator=torch.Generator().manual_seed(3))
    options = {"probes": 8, "seed": 4}
    fine = run(PRIOR, x, rtol=1e-9, atol=1e-9, **options)
    loose, tight = (abs(run(PRIOR, x, rtol=r, atol=r, **options).nats - fine.nats) for r in (1e-3, 1e-6))
    assert tight < 1e-3
    assert tight < loose < 1
    few, many = (abs(run(PRIOR, x, steps=n, **options).nats - fine.nats) for n in (10, 20))
    assert many < few / 8  # order 4: a sixteenth
    for n in (10, 49, 107):
        assert run(PRIOR, x, steps=n, probes=3).nfe == n * 4 * (1 + 3)


@pytest.mark.slow
def test_a_prior_that_rounds_its_time(monkeypatch):
    monkeypatch.setattr(sys.modules["cryofm_sampling.priors.log_likelihood"], "_MOST_STEPS", 100)  # 1000 take a while
    prior = GaussianPrior(torch.tensor([3.0, 3.0]))

    def rounded(x, t):
        return prior(x, torch.round(100 * t) / 100)

    x = torch.randn(BOX, generator=torch.Generator().manual_seed(3))
    smooth = run(prior, x, steps=25).nats
    assert abs(run(rounded, x, steps=25).nats - smooth) < 0.01 * N
    with pytest.raises(ConvergenceError, match="set steps for a prior that rounds its time"):
        run(rounded, x, probes=1, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"rtol": 0.1, "atol": 0.1}, {"steps": 7}])
def test_no_time_beyond_noise(options):
    times = []

    def watched(x, t):
        times.append(float(t))
        return PRIOR(x, t)

    run(watched, torch.ones(BOX), probes=1, **options)
    assert min(times) == 0
    assert 1 - 1e-12 < max(times) <= 1


def test_units(kit):
    class Scaled:
        normalization = SimpleNamespace(mean=0.04, std=0.09)

        def __call__(self, x, t):
            return PRIOR(x, t)

    z = torch.randn(BOX, generator=torch.Generator().manual_seed(5))
    model = run(PRIOR, z)
    data = run(Scaled(), 0.09 * z + 0.04)
    torch.testing.assert_close(data.nats, model.nats + N * math.log(1 / 0.09), rtol=1e-7, atol=0)
    torch.testing.assert_close(run(Scaled(), z, units="model").nats, model.nats)
    torch.testing.assert_close(data.bits_per_voxel, -data.nats / N / math.log(2))
    torch.testing.assert_close(data.bits_per_voxel_error, data.standard_error / N / math.log(2))


@pytest.mark.slow
def test_volumes_do_not_depend_on_their_batch_and_tiles_serve():
    x = torch.randn(2, 2, *BOX, generator=torch.Generator().manual_seed(6))
    found = run(PRIOR, x)
    assert found.nats.shape == found.standard_error.shape == found.nfe.shape == (2, 2)
    assert torch.equal(found.nats[0, 0], run(PRIOR, x[0, 0]).nats)
    tiled = Tiled(Mixture(), 4, 2)
    torch.testing.assert_close(run(tiled, x[0]).nats, run(Mixture(), x[0]).nats)


def test_single_precision_and_a_single_probe():
    x = torch.randn(BOX, generator=torch.Generator().manual_seed(7), dtype=torch.float32)
    one = run(GaussianPrior(1.0), x, probes=1)
    exact = -0.5 * (x.double().square().sum() + N * math.log(2 * math.pi))
    torch.testing.assert_close(one.nats, exact, rtol=1e-4, atol=0)
    assert one.standard_error.isnan()


def test_a_caller_that_wants_no_gradients_gets_the_same():
    x = torch.randn(BOX, generator=torch.Generator().manual_seed(5))
    found = run(Mixture(), x, steps=3)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(run(Mixture(), x.clone(), steps=3).nats, found.nats)


@pytest.mark.parametrize(
    "prior", [torch.no_grad()(PRIOR.__call__), lambda x, t: torch.nn.Parameter(torch.ones(())) * PRIOR(x.detach(), t)]
)
def test_a_prior_that_lets_no_gradient_through_is_refused(prior):
    with pytest.raises(CapabilityError, match="no gradient passes through the prior"):
        run(prior, torch.ones(BOX))


@pytest.mark.parametrize("options", [{}, {"steps": 2}])
def test_what_is_not_finite_is_named(options):
    x = torch.ones(BOX)
    with pytest.raises(CapabilityError, match="function gives a velocity that is not finite at t = 0"):
        run(lambda x, t: x / 0, x, **options)
    x[1, 1, 1] = torch.nan
    with pytest.raises(SettingError, match="the map x must be finite"):
        run(PRIOR, x, **options)


def test_what_is_missing_is_named(monkeypatch):
    x = torch.zeros(BOX)
    for wrong, said in (
        ({"probes": 0}, "0 and None"),
        ({"probes": 2.5}, "2.5 and None"),
        ({"probes": 1, "steps": 2.5}, "1 and 2.5"),
    ):
        with pytest.raises(SettingError, match=f"probes and steps must be whole numbers from 1, got {said}"):
            run(PRIOR, x, **wrong)
    with pytest.raises(SettingError, match=r"distribution must be .* got 'normal' and 'data'"):
        run(PRIOR, x, distribution="normal")
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(CapabilityError, match=r"needs torchdiffeq: pip install 'cryofm-sampling\[likelihood\]'"):
        run(PRIOR, x)
