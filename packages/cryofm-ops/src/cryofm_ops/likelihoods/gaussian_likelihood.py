"""Operator + noise + observation = likelihood, with exactly the capabilities that its parts allow."""

from typing import overload

from torch import Tensor

from cryofm_ops._checks import check_object
from cryofm_ops.errors import OperatorError
from cryofm_ops.likelihoods.fourier_gaussian import FourierGaussian
from cryofm_ops.likelihoods.linear_gaussian import Gaussian, LinearGaussian
from cryofm_ops.protocols import FourierMultiplier, LinearOperator, Noise, Operator, SpectralPower

__all__ = ["gaussian_likelihood"]


@overload
def gaussian_likelihood(operator: FourierMultiplier, noise: SpectralPower, observation: Tensor) -> FourierGaussian: ...
@overload
def gaussian_likelihood(operator: LinearOperator, noise: Noise, observation: Tensor) -> LinearGaussian: ...
@overload
def gaussian_likelihood(operator: Operator, noise: Noise, observation: Tensor) -> Gaussian: ...
def gaussian_likelihood(
    operator: FourierMultiplier | LinearOperator | Operator, noise: SpectralPower | Noise, observation: Tensor
) -> FourierGaussian | Gaussian:
    """Likelihood of observation = operator(x) + noise.

    Args:
        operator: a `FourierMultiplier`, a `LinearOperator`, or any `Operator`.
        noise: a `SpectralPower` or any `Noise`.
        observation: real and finite, in data units.

    Returns:
        `FourierGaussian` where the operator is a `FourierMultiplier` and the noise a `SpectralPower`
        (everything in closed form), otherwise `LinearGaussian` for a `LinearOperator` (conditioning by
        conjugate gradients), otherwise `Gaussian` (`log_prob` only).

    Raises:
        ObservationError: values that are not finite and real.
        GridMismatchError: transfer, power and observation do not share a grid.
        OperatorError: operator or noise lack the methods for any of the three.

    >>> import torch
    >>> from cryofm_ops import Conjugate, Identity, WhiteNoise
    >>> likelihood = gaussian_likelihood(Identity(), WhiteNoise(0.1), torch.zeros(4, 4, 4))
    >>> isinstance(likelihood, Conjugate), likelihood.log_prob(torch.zeros(2, 4, 4, 4)).shape
    (True, torch.Size([2]))
    """
    check_object(operator, "the operator")
    check_object(noise, "the noise")
    if isinstance(operator, FourierMultiplier) and isinstance(noise, SpectralPower):
        return FourierGaussian.observed(operator, noise, observation)
    if not isinstance(operator, Operator):
        raise OperatorError(f"{type(operator).__name__} has no __call__(x), and is thus no Operator")
    if not isinstance(noise, Noise):
        raise OperatorError(
            f"{type(noise).__name__} needs sample(y, generator=...) and precision(r) "
            f"to serve as the Noise of {type(operator).__name__}"
        )
    if isinstance(operator, LinearOperator):
        return LinearGaussian(operator, noise, observation)
    return Gaussian(operator, noise, observation)
