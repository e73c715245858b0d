"""Which checks an object gets, under which level, and how they are run."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from cryofm_ops.errors import OperatorError
from cryofm_ops.fourier.grid import Shape
from cryofm_ops.protocols import (
    Blind,
    Conjugate,
    FourierDiagonal,
    FourierMultiplier,
    Likelihood,
    LinearOperator,
    Noise,
    Operator,
    PseudoInvertible,
    SpectralPower,
)
from cryofm_ops.testing import _likelihoods, _noises, _operators
from cryofm_ops.testing._case import SHAPES, Case, ContractError, run

__all__ = [
    "LEVELS",
    "Check",
    "check_likelihood",
    "check_noise",
    "check_operator",
    "likelihood_checks",
    "noise_checks",
    "operator_checks",
]

LEVELS = ("0.1",)
"""Frozen sets of checks, oldest first. A release may add a level, and never changes one."""

_DENSE_BOX = 256  # voxels up to which a dense solve is tried


@attrs.frozen
class _Rule:
    """A check, the capabilities that call for it, and the level that brought it."""

    body: Callable[[Any, Case], None]
    needs: tuple[type, ...]
    when: Callable[[Any, Sequence[Shape]], bool] = lambda _, __: True
    since: str = "0.1"
    plain: bool = False
    examples: int = 12


def _loud(noise: Any, shapes: Sequence[Shape]) -> bool:
    return not _noises.silent(noise, shapes)


def _has_density(likelihood: Any, _: Sequence[Shape]) -> bool:
    return not _likelihoods.noiseless(likelihood)


def _is_small(likelihood: Any, shapes: Sequence[Shape]) -> bool:
    return _has_density(likelihood, shapes) and all(z * y * x <= _DENSE_BOX for z, y, x in shapes)


def _shows_its_parts(likelihood: Any, _: Sequence[Shape]) -> bool:
    return all(hasattr(likelihood, name) for name in ("operator", "noise", "observation"))


_OPERATOR_RULES = (
    _Rule(_operators.shape_and_batch, (Operator,)),
    _Rule(_operators.dtype_and_device, (Operator,)),
    _Rule(_operators.input_unchanged, (Operator,)),
    _Rule(_operators.deterministic, (Operator,)),
    _Rule(_operators.global_random_state, (Operator,), examples=3),
    _Rule(_operators.gradient, (Operator,), plain=True),
    _Rule(_operators.linearity, (LinearOperator,)),
    _Rule(_operators.dot_test, (LinearOperator,)),
    _Rule(_operators.adjoint_contract, (LinearOperator,)),
    _Rule(_operators.adjoint_is_autograd, (LinearOperator,)),
    _Rule(_operators.dense_matrix, (LinearOperator,), plain=True, examples=4),
    _Rule(_operators.composition, (LinearOperator,)),
    _Rule(_operators.moore_penrose, (Operator, PseudoInvertible), plain=True),
    _Rule(_operators.transfer_grid, (FourierMultiplier,), examples=6),
    _Rule(_operators.transfer_hermitian, (FourierMultiplier,), examples=6),
    _Rule(_operators.transfer_is_operator, (FourierMultiplier, Operator), plain=True),
)
_NOISE_RULES = (
    _Rule(_noises.sample_contract, (Noise,)),
    _Rule(_noises.sample_uses_its_generator, (Noise,)),
    _Rule(_noises.sample_adds, (Noise,)),
    _Rule(_noises.batch_draws, (Noise,), plain=True),
    _Rule(_noises.precision_symmetric, (Noise,), _loud, plain=True),
    _Rule(_noises.covariance, (Noise,), _loud, plain=True, examples=3),
    _Rule(_noises.power_grid, (SpectralPower,), examples=6),
    _Rule(_noises.power_is_precision, (SpectralPower, Noise), _loud, plain=True),
    _Rule(_noises.zero_power_has_no_precision, (SpectralPower, Noise), _noises.silent, examples=3),
    _Rule(_noises.power_is_variance, (SpectralPower, Noise), plain=True, examples=3),
)
_LIKELIHOOD_RULES = (
    _Rule(_likelihoods.log_prob_contract, (Likelihood,), _has_density),
    _Rule(_likelihoods.log_prob_gradient, (Likelihood,), _has_density, plain=True),
    _Rule(_likelihoods.noiseless_is_no_nan, (Likelihood,), lambda x, _: _likelihoods.noiseless(x), examples=3),
    _Rule(_likelihoods.gradient_is_weighted_residual, (Likelihood,), _shows_its_parts, plain=True),
    _Rule(_likelihoods.condition_contract, (Conjugate,)),
    _Rule(_likelihoods.condition_is_stationary, (Likelihood, Conjugate), _has_density, plain=True),
    _Rule(_likelihoods.condition_is_dense_solve, (Likelihood, Conjugate), _is_small, plain=True, examples=3),
    _Rule(_likelihoods.spectral_grid, (FourierDiagonal,), examples=3),
    _Rule(_likelihoods.spectral_gradient, (FourierDiagonal, Likelihood), _has_density),
    _Rule(_likelihoods.spectral_condition, (FourierDiagonal, Conjugate)),
    _Rule(_likelihoods.refines_to_a_likelihood, (Blind,), plain=True, examples=3),
)


@attrs.frozen
class Check:
    """One check of one object. Called without argument it runs on drawn cases; with a case, on that one alone.

    Attributes:
        name: what is checked.
        subject: the object.
    """

    name: str
    subject: Any
    _rule: _Rule = attrs.field(alias="rule")
    _shapes: tuple[Shape, ...] = attrs.field(alias="shapes")
    _device: str = attrs.field(alias="device")

    def __call__(self, case: Case | None = None) -> None:
        """Raise a `ContractError` that names the check, what was expected, what came, and the case."""

        def body(case: Case) -> None:
            try:
                self._rule.body(self.subject, case)
            except ContractError as error:
                raise ContractError(f"{type(self.subject).__name__} fails {self.name}: {error}") from error.__cause__

        if case is not None:
            body(case)
        else:
            run(body, self._shapes, self._device, plain=self._rule.plain, examples=self._rule.examples)


def operator_checks(
    op: object, *, level: str = LEVELS[-1], shapes: Sequence[Shape] = SHAPES, device: str = "cpu"
) -> Iterator[Check]:
    """The checks for what an operator claims to be, by its methods.

    Args:
        op: an `Operator` (`__call__`), `LinearOperator` (`adjoint`), `PseudoInvertible` (`pinv`) or
            `FourierMultiplier` (`transfer`).
        level: one of `LEVELS`.
        shapes: boxes (z, y, x) that it serves; small ones keep the checks fast.
        device: where the inputs are made.

    Raises `OperatorError` for an unknown level, or an object that has none of these methods.

    >>> from cryofm_ops import Identity
    >>> checks = {check.name: check for check in operator_checks(Identity())}
    >>> checks["dot_test"](Case((4, 4, 4), seed=1))
    """
    return _checks(op, _OPERATOR_RULES, level, shapes, device, "__call__, adjoint, pinv or transfer")


def noise_checks(
    noise: object, *, level: str = LEVELS[-1], shapes: Sequence[Shape] = SHAPES, device: str = "cpu"
) -> Iterator[Check]:
    """The checks for a `Noise` (`sample`, `precision`) or a `SpectralPower` (`power`); see `operator_checks`."""
    return _checks(noise, _NOISE_RULES, level, shapes, device, "sample and precision, or power")


def likelihood_checks(
    likelihood: object, *, level: str = LEVELS[-1], shapes: Sequence[Shape] | None = None, device: str = "cpu"
) -> Iterator[Check]:
    """The checks for a `Likelihood`, `Conjugate`, `FourierDiagonal` or `Blind`; see `operator_checks`.

    `shapes` holds the box of x. It can be left out for a likelihood that tells it as `.shape`.
    """
    if shapes is None:
        own = getattr(likelihood, "shape", None)
        if own is None:
            raise OperatorError(f"{type(likelihood).__name__} does not tell its box: give shapes=[(z, y, x)]")
        shapes = [own]
    return _checks(likelihood, _LIKELIHOOD_RULES, level, shapes, device, "log_prob, condition or refine")


def check_operator(
    op: object, *, level: str = LEVELS[-1], shapes: Sequence[Shape] = SHAPES, device: str = "cpu"
) -> tuple[str, ...]:
    """Run every check of an operator; return the names of those that passed.

    Raises `ContractError` with every failure in one message.

    >>> from cryofm_ops import Identity
    >>> check_operator(Identity())[:3]
    ('shape_and_batch', 'dtype_and_device', 'input_unchanged')
    """
    return _run_all(operator_checks(op, level=level, shapes=shapes, device=device))


def check_noise(
    noise: object, *, level: str = LEVELS[-1], shapes: Sequence[Shape] = SHAPES, device: str = "cpu"
) -> tuple[str, ...]:
    """Run every check of a noise model; see `check_operator`."""
    return _run_all(noise_checks(noise, level=level, shapes=shapes, device=device))


def check_likelihood(
    likelihood: object, *, level: str = LEVELS[-1], shapes: Sequence[Shape] | None = None, device: str = "cpu"
) -> tuple[str, ...]:
    """Run every check of a likelihood; see `check_operator` and `likelihood_checks`."""
    return _run_all(likelihood_checks(likelihood, level=level, shapes=shapes, device=device))


def _checks(
    subject: object, rules: Sequence[_Rule], level: str, shapes: Sequence[Shape], device: str, methods: str
) -> Iterator[Check]:
    if level not in LEVELS:
        raise OperatorError(f"level {level!r} of the checks is unknown; there are {', '.join(LEVELS)}")
    known = LEVELS[: LEVELS.index(level) + 1]
    fitting = [rule for rule in rules if all(isinstance(subject, need) for need in rule.needs)]
    if not fitting:
        raise OperatorError(f"{type(subject).__name__} has nothing to check: it needs {methods}")
    return (
        Check(rule.body.__name__, subject, rule, tuple(shapes), device)
        for rule in fitting
        if rule.since in known and rule.when(subject, shapes)
    )


def _run_all(checks: Iterator[Check]) -> tuple[str, ...]:
    passed, failed = [], []
    for check in checks:
        try:
            check()
        except ContractError as error:
            failed.append(str(error))
        else:
            passed.append(check.name)
    if failed:
        raise ContractError(f"{len(failed)} of {len(failed) + len(passed)} checks failed\n" + "\n".join(failed))
    return tuple(passed)
