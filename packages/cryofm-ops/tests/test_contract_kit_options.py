"""The contract kit: expected failures, the scale of the data, and how much time it takes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cryofm_ops import (
    FourierProjector,
    Identity,
    OperatorError,
    Proximal,
    WhiteNoise,
    gaussian_likelihood,
    random_rotations,
)
from cryofm_ops.testing import (
    Case,
    ContractError,
    check_likelihood,
    check_noise,
    check_operator,
    likelihood_checks,
    operator_checks,
    parametrize_with_checks,
)

sys.path.insert(0, str(Path(__file__).parent))
from mutants import likelihoods, noises, operators

pytestmark = pytest.mark.slow

SMALL = [(4, 4, 4)]
BUDGET = 10.0  # CPU seconds for all checks of an object


def cpu_seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


@pytest.mark.parametrize(
    ("check", "mutant", "name"),
    [
        (check_operator, operators.PinvIsTheAdjoint(), "moore_penrose"),
        (check_noise, noises.NoiseGrowsWithSignal(), "sample_adds"),
        (check_likelihood, likelihoods.IgnoresThePrior(), "condition_is_stationary"),
    ],
)
def test_what_is_expected_to_fail(check, mutant, name):
    with pytest.raises(ContractError) as caught:
        check(mutant, shapes=SMALL)
    failing = {line.split(" fails ")[1].split(":")[0] for line in str(caught.value).splitlines() if " fails " in line}
    assert name in failing
    passed = check(mutant, shapes=SMALL, expected_failures=dict.fromkeys(failing, "it cannot"))
    assert passed
    assert not failing & set(passed)
    others = dict.fromkeys(failing - {name}, "it cannot")
    with pytest.raises(ContractError, match=f"1 of .* checks failed\n{type(mutant).__name__} fails {name}: "):
        check(mutant, shapes=SMALL, expected_failures=others)


def test_an_expected_failure_that_does_not_come_is_an_error():
    message = r"1 of 19 checks failed\nIdentity passes gradient: expected a failure, since it is compiled; take it out"
    with pytest.raises(ContractError, match=message):
        check_operator(Identity(), shapes=SMALL, expected_failures={"gradient": "it is compiled"})


def test_an_expected_failure_that_is_no_check():
    for check, thing in ((check_operator, Identity()), (check_noise, WhiteNoise(1.0))):
        with pytest.raises(OperatorError, match="expected_failures names no check of these objects: gradiant"):
            check(thing, shapes=SMALL, expected_failures={"gradiant": "a typing error"})


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_correct_objects_pass_at_any_scale(scale):
    def likelihood(operator):
        return gaussian_likelihood(operator, WhiteNoise(0.5 * scale**2), scale * likelihoods.DATA)

    for operator in operators.GOOD_OPERATORS:
        assert "float64_kept" in check_operator(operator, scale=scale)
    assert "covariance" in check_noise(WhiteNoise(scale**2), scale=scale)
    assert "condition_is_dense_solve" in check_likelihood(likelihood(operators.Masked()), shapes=SMALL, scale=scale)
    assert "spectral_condition" in check_likelihood(likelihood(likelihoods.Half()), shapes=SMALL, scale=scale)


class Detector:
    """Linear as far as cases of unit scale go, to within rounding, and not for counts in tens of thousands."""

    def __call__(self, x):
        return torch.where(x.abs() < 1e4, x, x.sign() * 1e4)

    def adjoint(self, y):
        return y


def test_the_scale_is_that_of_the_cases():
    (check,) = [check for check in operator_checks(Detector(), shapes=SMALL, scale=1e4) if check.name == "linearity"]
    check(Case((4, 4, 4)))
    with pytest.raises(ContractError, match=r"nonlinear operator that poses as linear[^$]*unit=10000\.0\)"):
        check()
    assert torch.equal(Case((4, 4, 4), unit=1e4).volume(), 1e4 * Case((4, 4, 4)).volume())
    with pytest.raises(OperatorError, match="scale must be positive and finite, got 0"):
        operator_checks(Identity(), scale=0)


@parametrize_with_checks([WhiteNoise(1e8)], scale=1e4, level="0.2")
def test_the_scale_of_parametrized_checks(check):
    check()


class Slow(operators.Masked):
    """3 ms of CPU for every volume."""

    def __call__(self, x, /):
        self.work(x)
        return super().__call__(x)

    def adjoint(self, y, /):
        self.work(y)
        return super().adjoint(y)

    def work(self, x):
        until = time.process_time() + 3e-3 * x.shape[:-3].numel()
        while time.process_time() < until:
            pass


def test_a_slow_operator_is_checked_in_time():
    assert cpu_seconds(lambda: check_operator(Slow())) < BUDGET


class SlowNoise(WhiteNoise):
    """1 ms of CPU for every volume."""

    def sample(self, y, /, *, generator):
        until = time.process_time() + 1e-3 * y.shape[:-3].numel()
        while time.process_time() < until:
            pass
        return super().sample(y, generator=generator)


def test_a_slow_noise_is_checked_in_time():
    assert cpu_seconds(lambda: check_noise(SlowNoise(1.0))) < BUDGET


def test_a_likelihood_of_projections_is_checked_in_time():
    generator = torch.Generator().manual_seed(3)
    rotations = random_rotations(3, generator=generator, dtype=torch.float64)
    project = FourierProjector(rotations, torch.zeros(3, 2, dtype=torch.float64), (5, 5, 5))
    images = project(torch.randn(5, 5, 5, generator=generator, dtype=torch.float64))
    likelihood = gaussian_likelihood(project, WhiteNoise(0.3), images)
    assert cpu_seconds(lambda: check_likelihood(likelihood, shapes=[(5, 5, 5)])) < BUDGET


def test_what_fails_slowly_fails_in_time():
    class Wrong(Slow):
        def adjoint(self, y, /):
            return 2 * super().adjoint(y)

    def fails():
        with pytest.raises(ContractError, match="Wrong fails dot_test"):
            check_operator(Wrong(), shapes=SMALL)

    assert cpu_seconds(fails) < BUDGET


@pytest.mark.slow
def test_the_compiler_of_torch_stays_out():
    program = """
import sys, torch
from cryofm_ops import FourierProjector, Identity, WhiteNoise, gaussian_likelihood, stack
from cryofm_ops.testing import Case, likelihood_checks, noise_checks, operator_checks

twice, box = stack(Identity(), Identity()), (3, 3, 3)
y = torch.zeros(2, *box, dtype=torch.float64)
project = FourierProjector(torch.eye(3, dtype=torch.float64)[None], torch.zeros(1, 2), box)
checks = [
    *operator_checks(twice, shapes=[box]),
    *noise_checks(WhiteNoise(1.0), shapes=[box]),
    *likelihood_checks(gaussian_likelihood(twice, WhiteNoise(1.0), y), shapes=[box]),
    *operator_checks(project, shapes=[box]),
]
for check in checks:  # two cases of each load what any would
    check(Case(box, batch=(2,)))
    check(Case(box))
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_mean_far_from_the_data_costs_a_search_no_more_than_a_near_one():
    calls = {}

    class Likelihood:
        def log_prob(self, x):
            calls[scale] = calls.get(scale, 0) + 1
            return -5 * (x - 0.3).square().sum((-3, -2, -1))

    checks = {check.name: check for check in likelihood_checks(Proximal(Likelihood()), shapes=SMALL)}
    for scale in (1.0, 1e3):
        checks["condition_contract"](Case((4, 4, 4), batch=(2,), scale=scale))
    assert calls[1e3] == calls[1.0]
