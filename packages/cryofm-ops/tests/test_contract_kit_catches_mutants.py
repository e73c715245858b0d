"""The contract kit: correct objects pass every check; every mutant fails the check that is meant for it."""

import re
import sys
from pathlib import Path

import pytest
import torch

from cryofm_ops import Identity, OperatorError, SpectralNoise, WhiteNoise
from cryofm_ops.testing import (
    LEVELS,
    Case,
    ContractError,
    check_likelihood,
    check_noise,
    check_operator,
    likelihood_checks,
    noise_checks,
    operator_checks,
    parametrize_with_checks,
)

sys.path.insert(0, str(Path(__file__).parent))
from mutants import (
    likelihoods,
    likelihoods_of_strangers,
    noises,
    noises_of_strangers,
    operators,
    operators_of_strangers,
)

pytestmark = pytest.mark.slow

SHAPES = {
    operators.MissingFriedelWeight: [(4, 4, 4)],
    operators_of_strangers.FriedelWeightTwice: [(4, 4, 4)],
}
STRANGERS = (operators_of_strangers.OPERATORS, noises_of_strangers.NOISES, likelihoods_of_strangers.LIKELIHOODS)


def caught(checks, name):
    """The message of the failing check, found without a case and again with the case that it names."""
    (check,) = [check for check in checks if check.name == name]
    with pytest.raises(ContractError) as caught:
        check()
    message = str(caught.value)
    assert f"fails {name}: expected " in message
    assert "; came " in message
    case = eval(re.search(r"reproduce with (Case\(.*\))", message)[1], {"Case": Case})
    with pytest.raises(ContractError, match=re.escape(name)):
        check(case)
    return message


def test_there_are_enough_mutants():
    assert len(operators.OPERATORS) >= 20
    assert len(noises.NOISES) + len(likelihoods.LIKELIHOODS) >= 20
    assert all(len(mutants) >= 10 for mutants in STRANGERS)


@pytest.mark.parametrize(("kind", "name"), operators.OPERATORS, ids=lambda v: getattr(v, "__name__", None))
def test_operators(kind, name):
    shapes = SHAPES.get(kind, [(4, 4, 4), (5, 5, 5), (3, 4, 5)])
    caught(operator_checks(kind(), shapes=shapes), name)


@pytest.mark.parametrize(("kind", "name"), noises.NOISES, ids=lambda v: getattr(v, "__name__", None))
def test_noises(kind, name):
    caught(noise_checks(kind()), name)


@pytest.mark.parametrize(("kind", "name"), likelihoods.LIKELIHOODS, ids=lambda v: getattr(v, "__name__", None))
def test_likelihoods(kind, name):
    caught(likelihood_checks(likelihoods.likelihood(kind)), name)


@pytest.mark.parametrize(
    ("kind", "name", "words"), operators_of_strangers.OPERATORS, ids=lambda v: getattr(v, "__name__", "")
)
def test_operators_of_strangers(kind, name, words):
    shapes = SHAPES.get(kind, [(4, 4, 4), (5, 5, 5), (3, 4, 5)])
    assert words in caught(operator_checks(kind(), shapes=shapes), name)


@pytest.mark.parametrize(
    ("kind", "name", "words"), noises_of_strangers.NOISES, ids=lambda v: getattr(v, "__name__", "")
)
def test_noises_of_strangers(kind, name, words):
    assert words in caught(noise_checks(kind()), name)


@pytest.mark.parametrize(
    ("kind", "name", "words"), likelihoods_of_strangers.LIKELIHOODS, ids=lambda v: getattr(v, "__name__", "")
)
def test_likelihoods_of_strangers(kind, name, words):
    assert words in caught(likelihood_checks(likelihoods_of_strangers.likelihood(kind)), name)


def test_correct_models_of_the_mutants_pass():
    for operator in operators.GOOD_OPERATORS:
        assert "gradient" in check_operator(operator)
    assert "dense_matrix" in check_operator(operators.HalfSpectrum((4, 5, 3)), shapes=[(4, 5, 3)])
    assert "covariance" in check_noise(noises.Steep())
    assert "spectral_condition" in check_likelihood(likelihoods.Fourier())
    assert "spectral_condition" in check_likelihood(likelihoods.Noiseless())
    assert "condition_is_dense_solve" in check_likelihood(likelihoods.likelihood(likelihoods.Linear))


def test_every_check_has_a_mutant():
    meant = {name for _, name in operators.OPERATORS + noises.NOISES + likelihoods.LIKELIHOODS}
    meant |= {name for mutants in STRANGERS for _, name, _ in mutants}
    objects = [*operator_checks(Identity()), *noise_checks(WhiteNoise(1)), *noise_checks(WhiteNoise(0))]
    for kind in (likelihoods.Fourier, likelihoods.Noiseless, likelihoods.Linear):
        objects += likelihood_checks(likelihoods.likelihood(kind))
    objects += likelihood_checks(likelihoods_of_strangers.Tilted())
    assert {check.name for check in objects} <= meant


def test_levels_are_frozen():
    """A change here breaks the continuous integration of strangers: add a level instead."""
    assert LEVELS == ("0.1", "0.2")
    assert [check.name for check in operator_checks(Identity(), level="0.1")] == [
        "shape_and_batch",
        "dtype_and_device",
        "input_unchanged",
        "deterministic",
        "global_random_state",
        "gradient",
        "linearity",
        "dot_test",
        "adjoint_contract",
        "adjoint_is_autograd",
        "dense_matrix",
        "composition",
        "moore_penrose",
        "transfer_grid",
        "transfer_hermitian",
        "transfer_is_operator",
    ]
    assert [check.name for check in noise_checks(SpectralNoise(torch.ones(2)), level="0.1")] == [
        "sample_contract",
        "sample_uses_its_generator",
        "sample_adds",
        "batch_draws",
        "precision_symmetric",
        "covariance",
        "power_grid",
        "power_is_precision",
        "power_is_variance",
    ]
    newer = {
        check.name
        for check in (
            *operator_checks(Identity(), level="0.2"),
            *noise_checks(SpectralNoise(torch.ones(2)), level="0.2"),
            *likelihood_checks(likelihoods.likelihood(likelihoods.Linear), level="0.2"),
            *likelihood_checks(likelihoods_of_strangers.Tilted(), level="0.2"),
        )
        if check._rule.since == "0.2"
    }
    assert newer == {
        "result_is_own",
        "any_layout",
        "float64_kept",
        "precision_contract",
        "draws_are_centred",
        "operator_is_linear",
        "log_prob_keeps_float64",
        "posterior_contract",
        "refines_each_alone",
    }
    with pytest.raises(OperatorError, match=r"level '9' of the checks is unknown; there are 0\.1, 0\.2"):
        operator_checks(Identity(), level="9")


def test_every_failure_is_in_one_message():
    with pytest.raises(ContractError, match=r"\d+ of \d+ checks failed") as caught:
        check_operator(operators.UnnormalisedAdjoint())
    message = str(caught.value)
    for name in ("dot_test", "adjoint_is_autograd", "dense_matrix"):
        assert f"UnnormalisedAdjoint fails {name}" in message
    assert "linearity" not in message


def test_an_operator_that_raises_is_told_apart():
    class Cubic(operators.Masked):
        def __call__(self, x):
            if x.shape[-1] != 4:
                raise RuntimeError("made for boxes of 4")
            return super().__call__(x)

    assert "dot_test" in check_operator(Cubic(), shapes=[(4, 4, 4)])
    with pytest.raises(ContractError, match=r"RuntimeError: made for boxes of 4[^$]*shapes=\[\(z, y, x\), \.\.\.\]"):
        check_operator(Cubic())


def test_nothing_to_check():
    with pytest.raises(OperatorError, match="object has nothing to check: it needs __call__"):
        operator_checks(object())
    with pytest.raises(OperatorError, match="does not tell its box"):
        likelihood_checks(likelihoods.RefinesInPlace.refine)


@parametrize_with_checks([operators.Masked(), noises.Steep(), likelihoods.Fourier()], level="0.1")
def test_as_a_stranger_would(check):
    check()


@parametrize_with_checks(
    [operators.PinvIsTheAdjoint()], level="0.1", expected_failures={"moore_penrose": "a transpose is no inverse"}
)
def test_expected_failures(check):
    check()


def test_expected_failures_that_name_no_check():
    with pytest.raises(OperatorError, match="names no check of these objects: moore_penrse"):
        parametrize_with_checks([Identity()], level="0.1", expected_failures={"moore_penrse": "a typing error"})


@pytest.mark.parametrize("level", LEVELS)
def test_correct_models_of_the_strangers_mutants_pass(level):
    for operator in operators_of_strangers.GOOD_OPERATORS:
        assert "gradient" in check_operator(operator, level=level)
    for noise in noises_of_strangers.GOOD_NOISES:
        assert "covariance" in check_noise(noise, level=level)
    for likelihood in likelihoods_of_strangers.GOOD_LIKELIHOODS:
        assert check_likelihood(likelihood, level=level)
