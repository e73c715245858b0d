"""Contract checks for operators, noise models and likelihoods, ours and yours (extra `[testing]`).

`check_operator(op)` in the REPL; `@parametrize_with_checks([op], level="0.1")` in a test suite. The inputs are
drawn by Hypothesis: volumes of noise, zeros, single voxels, constants and Nyquist checkerboards, in float64, with
several batch shapes, boxes and scales.
"""

try:
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
except ImportError as error:
    raise ImportError("the contract kit needs hypothesis and pytest: pip install 'cryofm-ops[testing]'") from error

from cryofm_ops.testing._case import Case, ContractError
from cryofm_ops.testing._pytest import parametrize_with_checks
from cryofm_ops.testing._rules import LEVELS
from cryofm_ops.testing._suite import (
    Check,
    check_likelihood,
    check_noise,
    check_operator,
    likelihood_checks,
    noise_checks,
    operator_checks,
)

__all__ = [
    "LEVELS",
    "Case",
    "Check",
    "ContractError",
    "check_likelihood",
    "check_noise",
    "check_operator",
    "likelihood_checks",
    "noise_checks",
    "operator_checks",
    "parametrize_with_checks",
]
