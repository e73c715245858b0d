"""CryoFM: flow-matching priors over cryo-EM density maps, with a small trained one inside.

>>> prior = load_prior("cryofm-tiny")
>>> x_t, t = torch.randn(32, 32, 32), torch.tensor(0.5)
>>> velocity = prior(x_t, t)
"""

from .attention import neighborhood_attention_3d
from .errors import CryoFMError, WeightsError
from .flow import flow_matching_loss
from .hourglass import CRYOFM_L, CRYOFM_S, Hourglass, HourglassConfig
from .prior import Normalization, Prior, load_prior, save_prior
from .unet import UNet, UNetConfig

__all__ = [
    "CRYOFM_L",
    "CRYOFM_S",
    "CryoFMError",
    "Hourglass",
    "HourglassConfig",
    "Normalization",
    "Prior",
    "UNet",
    "UNetConfig",
    "WeightsError",
    "flow_matching_loss",
    "load_prior",
    "neighborhood_attention_3d",
    "save_prior",
]
