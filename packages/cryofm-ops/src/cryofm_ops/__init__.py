"""Degradation operators, noise models and likelihoods for cryo-EM, and the Protocols in which they meet."""

from cryofm_ops.errors import (
    ConvergenceError,
    CryoFMError,
    GridMismatchError,
    HalfMapError,
    NoiseError,
    ObservationError,
    OperatorError,
)
from cryofm_ops.fourier_gaussian import FourierGaussian
from cryofm_ops.gaussian import Gaussian, LinearGaussian
from cryofm_ops.half_maps import NoiseEstimate, estimate_noise_power
from cryofm_ops.likelihood import gaussian_likelihood
from cryofm_ops.model_units import in_model_units
from cryofm_ops.noise import SpectralNoise, WhiteNoise
from cryofm_ops.normal import Normal
from cryofm_ops.operators import Identity
from cryofm_ops.protocols import (
    Blind,
    Conjugate,
    FourierDiagonal,
    FourierMultiplier,
    Likelihood,
    LinearOperator,
    Noise,
    Normalization,
    Operator,
    PseudoInvertible,
    SpectralPower,
)
from cryofm_ops.spectral import (
    fourier_filter,
    frequencies,
    friedel_weights,
    half_shape,
    irfft,
    radial,
    radial_mean,
    rfft,
    shell_sizes,
    standard_normal,
)

__all__ = [
    "Blind",
    "Conjugate",
    "ConvergenceError",
    "CryoFMError",
    "FourierDiagonal",
    "FourierGaussian",
    "FourierMultiplier",
    "Gaussian",
    "GridMismatchError",
    "HalfMapError",
    "Identity",
    "Likelihood",
    "LinearGaussian",
    "LinearOperator",
    "Noise",
    "NoiseError",
    "NoiseEstimate",
    "Normal",
    "Normalization",
    "ObservationError",
    "Operator",
    "OperatorError",
    "PseudoInvertible",
    "SpectralNoise",
    "SpectralPower",
    "WhiteNoise",
    "estimate_noise_power",
    "fourier_filter",
    "frequencies",
    "friedel_weights",
    "gaussian_likelihood",
    "half_shape",
    "in_model_units",
    "irfft",
    "radial",
    "radial_mean",
    "rfft",
    "shell_sizes",
    "standard_normal",
]
