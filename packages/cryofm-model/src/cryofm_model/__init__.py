"""CryoFM: flow-matching priors over cryo-EM density maps, with a small trained one inside.

>>> prior = load_prior("cryofm-tiny")
>>> x_t, t = torch.randn(32, 32, 32), torch.tensor(0.5)
>>> velocity = prior(x_t, t)
"""

from cryofm_model.attention import attention_backend, neighborhood_attention_3d
from cryofm_model.errors import CryoFMError, WeightsError
from cryofm_model.flow import flow_matching_loss
from cryofm_model.networks.flops import forward_gflop
from cryofm_model.networks.hourglass import Hourglass
from cryofm_model.networks.hourglass_config import CRYOFM_L, CRYOFM_S, CRYOFM_VARIANTS, HourglassConfig
from cryofm_model.networks.unet import UNet, UNetConfig
from cryofm_model.networks.unet3d import CRYOFM2, CRYOFM2_CONDITIONAL, UNet3D, UNet3DConfig
from cryofm_model.prior import (
    CalibratedConditionalPrior,
    CalibratedPrior,
    ConditionalPrior,
    Normalization,
    Prior,
    SpectrallyCalibratedPrior,
)
from cryofm_model.weights.choice import bundled_prior_for, fitted_to_particle
from cryofm_model.weights.prior_file import BUNDLED_PRIORS, load_prior, save_prior
from cryofm_model.weights.published import export_published

__all__ = [
    "BUNDLED_PRIORS",
    "CRYOFM2",
    "CRYOFM2_CONDITIONAL",
    "CRYOFM_L",
    "CRYOFM_S",
    "CRYOFM_VARIANTS",
    "CalibratedConditionalPrior",
    "CalibratedPrior",
    "ConditionalPrior",
    "CryoFMError",
    "Hourglass",
    "HourglassConfig",
    "Normalization",
    "Prior",
    "SpectrallyCalibratedPrior",
    "UNet",
    "UNet3D",
    "UNet3DConfig",
    "UNetConfig",
    "WeightsError",
    "attention_backend",
    "bundled_prior_for",
    "export_published",
    "fitted_to_particle",
    "flow_matching_loss",
    "forward_gflop",
    "load_prior",
    "neighborhood_attention_3d",
    "save_prior",
]
