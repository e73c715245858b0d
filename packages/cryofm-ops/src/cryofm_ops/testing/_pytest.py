"""The checks as pytest parameters."""

from collections.abc import Mapping, Sequence

import pytest

from cryofm_ops.fourier.grid import Shape
from cryofm_ops.protocols import Blind, Conjugate, FourierDiagonal, Likelihood, Noise, SpectralPower
from cryofm_ops.testing._case import SHAPES, ContractError
from cryofm_ops.testing._rules import LEVELS
from cryofm_ops.testing._suite import Check, known_failures, likelihood_checks, noise_checks, operator_checks

__all__ = ["parametrize_with_checks"]


def parametrize_with_checks(
    objects: Sequence[object],
    *,
    level: str = LEVELS[-1],
    shapes: Sequence[Shape] | None = None,
    device: str = "cpu",
    scale: float = 1.0,
    expected_failures: Mapping[str, str] | None = None,
) -> pytest.MarkDecorator:
    """Run every check of every object as a test of its own: decorates a test with the one argument `check`.

    Args:
        objects: operators, noise models and likelihoods, told apart by their methods.
        level: pin the level, and a later release cannot add a check.
        shapes: boxes (z, y, x); a default for what serves any box, and the box of a likelihood.
        device: where the inputs are made.
        scale: the magnitude of the data that they are made for.
        expected_failures: names of checks that cannot pass, with the reason (a strict xfail).

    >>> from cryofm_ops import Identity
    >>> @parametrize_with_checks([Identity()], level="0.1")
    ... def test_contract(check):
    ...     check()
    """
    checks = [check for thing in objects for check in _checks_of(thing, level, shapes, device, scale)]
    reasons = known_failures(checks, expected_failures)
    return pytest.mark.parametrize(
        "check",
        [
            pytest.param(
                check,
                id=f"{type(check.subject).__name__}-{check.name}",
                marks=_marks(reasons.get(check.name)),
            )
            for check in checks
        ],
    )


def _marks(reason: str | None) -> list[pytest.MarkDecorator]:
    return [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True, raises=ContractError)]


def _checks_of(thing: object, level: str, shapes: Sequence[Shape] | None, device: str, scale: float) -> list[Check]:
    if isinstance(thing, (Likelihood, Conjugate, FourierDiagonal, Blind)):
        return list(likelihood_checks(thing, level=level, shapes=shapes, device=device, scale=scale))
    of = noise_checks if isinstance(thing, (Noise, SpectralPower)) else operator_checks
    return list(of(thing, level=level, shapes=SHAPES if shapes is None else shapes, device=device, scale=scale))
