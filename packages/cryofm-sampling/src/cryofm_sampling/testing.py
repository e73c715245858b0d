"""Oracles for samplers: priors whose posteriors are known, and checks that a sampler, ours or yours, reaches them."""

from cryofm_sampling._exact_priors import GaussianPrior, MixturePrior
from cryofm_sampling._sampler_checks import (
    SamplerError,
    check_batching,
    check_covariance,
    check_dtype,
    check_mean,
    check_modes,
    two_spectra,
    two_templates,
)

__all__ = [
    "GaussianPrior",
    "MixturePrior",
    "SamplerError",
    "check_batching",
    "check_covariance",
    "check_dtype",
    "check_mean",
    "check_modes",
    "two_spectra",
    "two_templates",
]
