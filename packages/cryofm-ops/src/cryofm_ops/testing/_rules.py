"""Which checks an object gets, and since which level."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs

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
from cryofm_ops.testing import _arithmetic, _conditions, _likelihoods, _multipliers, _noises, _operators
from cryofm_ops.testing._case import Case

__all__ = ["LEVELS", "LIKELIHOOD_RULES", "NOISE_RULES", "OPERATOR_RULES", "Rule"]

LEVELS = ("0.1", "0.2")
"""Frozen sets of checks, oldest first. A release may add a level, and never changes one."""

_DENSE_BOX = 256  # voxels up to which a dense solve is tried


@attrs.frozen
class Rule:
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


def _shows_a_linear_operator(likelihood: Any, _: Sequence[Shape]) -> bool:
    return isinstance(getattr(likelihood, "operator", None), LinearOperator)


OPERATOR_RULES = (
    Rule(_operators.shape_and_batch, (Operator,)),
    Rule(_operators.dtype_and_device, (Operator,)),
    Rule(_operators.input_unchanged, (Operator,)),
    Rule(_operators.deterministic, (Operator,)),
    Rule(_operators.global_random_state, (Operator,), examples=3),
    Rule(_operators.gradient, (Operator,), plain=True),
    Rule(_operators.linearity, (LinearOperator,)),
    Rule(_operators.dot_test, (LinearOperator,)),
    Rule(_operators.adjoint_contract, (LinearOperator,)),
    Rule(_operators.adjoint_is_autograd, (LinearOperator,)),
    Rule(_operators.dense_matrix, (LinearOperator,), plain=True, examples=4),
    Rule(_operators.composition, (LinearOperator,)),
    Rule(_multipliers.moore_penrose, (Operator, PseudoInvertible), plain=True),
    Rule(_multipliers.transfer_grid, (FourierMultiplier,), examples=6),
    Rule(_multipliers.transfer_hermitian, (FourierMultiplier,), examples=6),
    Rule(_multipliers.transfer_is_operator, (FourierMultiplier, Operator), plain=True),
    Rule(_arithmetic.result_is_own, (Operator,), since="0.2", plain=True, examples=3),
    Rule(_arithmetic.any_layout, (Operator,), since="0.2", plain=True, examples=3),
    Rule(_arithmetic.float64_kept, (Operator,), since="0.2", plain=True, examples=6),
)
NOISE_RULES = (
    Rule(_noises.sample_contract, (Noise,)),
    Rule(_noises.sample_uses_its_generator, (Noise,)),
    Rule(_noises.sample_adds, (Noise,)),
    Rule(_noises.batch_draws, (Noise,), plain=True),
    Rule(_noises.precision_symmetric, (Noise,), _loud, plain=True),
    Rule(_noises.covariance, (Noise,), _loud, plain=True, examples=3),
    Rule(_noises.power_grid, (SpectralPower,), examples=6),
    Rule(_noises.power_is_precision, (SpectralPower, Noise), _loud, plain=True),
    Rule(_noises.zero_power_has_no_precision, (SpectralPower, Noise), _noises.silent, examples=3),
    Rule(_noises.power_is_variance, (SpectralPower, Noise), plain=True, examples=3),
    Rule(_noises.precision_contract, (Noise,), _loud, since="0.2"),
    Rule(_noises.draws_are_centred, (Noise,), _loud, since="0.2", plain=True, examples=3),
)
LIKELIHOOD_RULES = (
    Rule(_conditions.operator_is_linear, (Conjugate,), _shows_a_linear_operator, since="0.2"),
    Rule(_likelihoods.log_prob_contract, (Likelihood,), _has_density),
    Rule(_likelihoods.log_prob_gradient, (Likelihood,), _has_density, plain=True),
    Rule(_likelihoods.noiseless_is_no_nan, (Likelihood,), lambda x, _: _likelihoods.noiseless(x), examples=3),
    Rule(_likelihoods.gradient_is_weighted_residual, (Likelihood,), _shows_its_parts, plain=True),
    Rule(_conditions.condition_contract, (Conjugate,)),
    Rule(_conditions.condition_is_stationary, (Likelihood, Conjugate), _has_density, plain=True),
    Rule(_conditions.condition_is_dense_solve, (Likelihood, Conjugate), _is_small, plain=True, examples=3),
    Rule(_likelihoods.spectral_grid, (FourierDiagonal,), examples=3),
    Rule(_likelihoods.spectral_gradient, (FourierDiagonal, Likelihood), _has_density),
    Rule(_conditions.spectral_condition, (FourierDiagonal, Conjugate)),
    Rule(_likelihoods.refines_to_a_likelihood, (Blind,), plain=True, examples=3),
    Rule(_likelihoods.log_prob_keeps_float64, (Likelihood,), _has_density, since="0.2", plain=True, examples=6),
    Rule(_conditions.posterior_contract, (Conjugate,), since="0.2", plain=True, examples=3),
    Rule(_likelihoods.refines_each_alone, (Blind,), since="0.2", plain=True, examples=3),
)
