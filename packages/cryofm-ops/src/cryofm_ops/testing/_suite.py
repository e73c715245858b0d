"""The checks of an object, and how they are run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from cryofm_ops._checks import check_object
from cryofm_ops.errors import OperatorError
from cryofm_ops.fourier.grid import Shape
from cryofm_ops.testing._case import SHAPES, Case, ContractError
from cryofm_ops.testing._rules import LEVELS, LIKELIHOOD_RULES, NOISE_RULES, OPERATOR_RULES, Rule
from cryofm_ops.testing._run import run

__all__ = [
    "Check",
    "check_likelihood",
    "check_noise",
    "check_operator",
    "known_failures",
    "likelihood_checks",
    "noise_checks",
    "operator_checks",
]


@attrs.frozen
class Check:
    """One check of one object. Called without argument it runs on drawn cases; with a case, on that one alone.

    Attributes:
        name: what is checked.
        subject: the object.
    """

    name: str
    subject: Any
    _rule: Rule = attrs.field(alias="rule")
    _shapes: tuple[Shape, ...] = attrs.field(alias="shapes")
    _device: str = attrs.field(alias="device")
    _scale: float = attrs.field(alias="scale", default=1.0)

    def __call__(self, case: Case | None = None) -> None:
        """Raise a `ContractError` that names the check, what was expected, what came, and the case."""

        def body(case: Case) -> None:
            fails = f"{type(self.subject).__name__} fails {self.name}: "
            try:
                self._rule.body(self.subject, case)
            except ContractError as error:
                raise ContractError(f"{fails}{error}") from error.__cause__
            except Exception as error:
                came = f"{type(error).__name__}: {error}"
                raise ContractError(f"{fails}expected no error; came {came}\n  reproduce with {case}") from error

        if case is not None:
            body(case)
        else:
            rule = self._rule
            run(body, self._shapes, self._device, unit=self._scale, plain=rule.plain, examples=rule.examples)


def operator_checks(
    op: object,
    *,
    level: str = LEVELS[-1],
    shapes: Sequence[Shape] = SHAPES,
    device: str = "cpu",
    scale: float = 1.0,
) -> Iterator[Check]:
    """The checks for what an operator claims to be, by its methods.

    Args:
        op: an `Operator` (`__call__`), `LinearOperator` (`adjoint`), `PseudoInvertible` (`pinv`) or
            `FourierMultiplier` (`transfer`).
        level: one of `LEVELS`.
        shapes: boxes (z, y, x) that it serves; small ones keep the checks fast.
        device: where the inputs are made.
        scale: the magnitude of the values that it is made for; 1e4 for data in tens of thousands.

    Raises `OperatorError` for an unknown level, or an object that has none of these methods.

    >>> from cryofm_ops import Identity
    >>> checks = {check.name: check for check in operator_checks(Identity())}
    >>> checks["dot_test"](Case((4, 4, 4), seed=1))
    """
    return _checks(op, OPERATOR_RULES, level, shapes, device, scale, "__call__, adjoint, pinv or transfer")


def noise_checks(
    noise: object,
    *,
    level: str = LEVELS[-1],
    shapes: Sequence[Shape] = SHAPES,
    device: str = "cpu",
    scale: float = 1.0,
) -> Iterator[Check]:
    """The checks for a `Noise` (`sample`, `precision`) or a `SpectralPower` (`power`); see `operator_checks`."""
    return _checks(noise, NOISE_RULES, level, shapes, device, scale, "sample and precision, or power")


def likelihood_checks(
    likelihood: object,
    *,
    level: str = LEVELS[-1],
    shapes: Sequence[Shape] | None = None,
    device: str = "cpu",
    scale: float = 1.0,
) -> Iterator[Check]:
    """The checks for a `Likelihood`, `Conjugate`, `FourierDiagonal` or `Blind`; see `operator_checks`.

    `shapes` holds the box of x. It can be left out for a likelihood that tells it as `.shape`. The priors that are
    conditioned have a variance of about `scale`².
    """
    if shapes is None:
        own = getattr(likelihood, "shape", None)
        if own is None:
            raise OperatorError(f"{type(likelihood).__name__} does not tell its box: give shapes=[(z, y, x)]")
        shapes = [own]
    return _checks(likelihood, LIKELIHOOD_RULES, level, shapes, device, scale, "log_prob, condition or refine")


def check_operator(
    op: object,
    *,
    level: str = LEVELS[-1],
    shapes: Sequence[Shape] = SHAPES,
    device: str = "cpu",
    scale: float = 1.0,
    expected_failures: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Run every check of an operator; return the names of those that passed.

    `expected_failures` names the checks that cannot pass, with the reason; the other arguments are those of
    `operator_checks`. Raises `ContractError` with every failure in one message, and with every expected one that did
    not come.

    >>> from cryofm_ops import Identity
    >>> check_operator(Identity())[:3]
    ('shape_and_batch', 'dtype_and_device', 'input_unchanged')
    """
    checks = operator_checks(op, level=level, shapes=shapes, device=device, scale=scale)
    return _run_all(checks, expected_failures)


def check_noise(
    noise: object,
    *,
    level: str = LEVELS[-1],
    shapes: Sequence[Shape] = SHAPES,
    device: str = "cpu",
    scale: float = 1.0,
    expected_failures: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Run every check of a noise model; see `check_operator`."""
    checks = noise_checks(noise, level=level, shapes=shapes, device=device, scale=scale)
    return _run_all(checks, expected_failures)


def check_likelihood(
    likelihood: object,
    *,
    level: str = LEVELS[-1],
    shapes: Sequence[Shape] | None = None,
    device: str = "cpu",
    scale: float = 1.0,
    expected_failures: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Run every check of a likelihood; see `check_operator` and `likelihood_checks`."""
    checks = likelihood_checks(likelihood, level=level, shapes=shapes, device=device, scale=scale)
    return _run_all(checks, expected_failures)


def known_failures(checks: Iterable[Check], expected: Mapping[str, str] | None) -> dict[str, str]:
    """The reasons of expected failures, all of which must be names of the checks."""
    reasons = dict(expected or {})
    unknown = reasons.keys() - {check.name for check in checks}
    if unknown:
        raise OperatorError(f"expected_failures names no check of these objects: {', '.join(sorted(unknown))}")
    return reasons


def _checks(
    subject: object,
    rules: Sequence[Rule],
    level: str,
    shapes: Sequence[Shape],
    device: str,
    scale: float,
    methods: str,
) -> Iterator[Check]:
    if level not in LEVELS:
        raise OperatorError(f"level {level!r} of the checks is unknown; there are {', '.join(LEVELS)}")
    if not 0 < scale < float("inf"):
        raise OperatorError(f"scale must be positive and finite, got {scale}")
    check_object(subject, "what is checked")
    known = LEVELS[: LEVELS.index(level) + 1]
    fitting = [rule for rule in rules if all(isinstance(subject, need) for need in rule.needs)]
    if not fitting:
        raise OperatorError(f"{type(subject).__name__} has nothing to check: it needs {methods}")
    return (
        Check(rule.body.__name__, subject, rule, tuple(shapes), device, float(scale))
        for rule in fitting
        if rule.since in known and rule.when(subject, shapes)
    )


def _run_all(checks: Iterable[Check], expected_failures: Mapping[str, str] | None) -> tuple[str, ...]:
    checks = tuple(checks)
    reasons = known_failures(checks, expected_failures)
    passed, wrong = [], 0
    failures: dict[str, list[str]] = {}  # what was wrong, and by which checks it was found
    for check in checks:
        name = type(check.subject).__name__
        try:
            check()
        except ContractError as error:
            if check.name not in reasons:
                wrong += 1
                failures.setdefault(str(error).removeprefix(f"{name} fails {check.name}"), []).append(check.name)
        else:
            passed.append(check.name)
            if check.name in reasons:
                wrong += 1
                told = f": expected a failure, since {reasons[check.name]}; take it out of expected_failures"
                failures[f"{name} passes {check.name}{told}"] = []
    if failures:
        subject = type(checks[0].subject).__name__
        lines = [f"{subject} fails {', '.join(by)}{what}" if by else what for what, by in failures.items()]
        raise ContractError(f"{wrong} of {len(checks)} checks failed\n" + "\n".join(lines))
    return tuple(passed)
