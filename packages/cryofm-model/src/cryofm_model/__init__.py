"""CryoFM: flow-matching priors over cryo-EM density maps, with a small trained one inside.

>>> prior = load_prior("cryofm-tiny")
>>> x_t, t = torch.randn(32, 32, 32), torch.tensor(0.5)
>>> velocity = prior(x_t, t)
"""

from .attention import attention_backend, neighborhood_attention_3d
from .errors import CryoFMError, WeightsError
from .flops import forward_gflop
from .flow import flow_matching_loss
from .hourglass import Hourglass
from .hourglass_config import CRYOFM_L, CRYOFM_S, CRYOFM_VARIANTS, HourglassConfig
from .prior import CalibratedPrior, Normalization, Prior, SpectrallyCalibratedPrior
from .prior_file import load_prior, save_prior
from .published import export_published
from .unet import UNet, UNetConfig

__all__ = [
    "CRYOFM_L",
    "CRYOFM_S",
    "CRYOFM_VARIANTS",
    "CalibratedPrior",
    "CryoFMError",
    "Hourglass",
    "HourglassConfig",
    "Normalization",
    "Prior",
    "SpectrallyCalibratedPrior",
    "UNet",
    "UNetConfig",
    "WeightsError",
    "attention_backend",
    "export_published",
    "flow_matching_loss",
    "forward_gflop",
    "load_prior",
    "neighborhood_attention_3d",
    "save_prior",
]
