"""Posterior sampling of density maps: algorithms that bring a flow prior and a likelihood together."""

from cryofm_sampling.calibrate import CalibratedVelocity, calibrate
from cryofm_sampling.errors import CapabilityError, CryoFMError, GridMismatchError, SettingError
from cryofm_sampling.guided import Guided
from cryofm_sampling.plug_and_play import PlugAndPlay
from cryofm_sampling.protocols import Calibrated, Callback, Draw, Sampler, VelocityField
from cryofm_sampling.restore import restore
from cryofm_sampling.scale import ScaledNormalization, ScaleFit, fit_scale
from cryofm_sampling.tiled import Tiled

__all__ = [
    "Calibrated",
    "CalibratedVelocity",
    "Callback",
    "CapabilityError",
    "CryoFMError",
    "Draw",
    "GridMismatchError",
    "Guided",
    "PlugAndPlay",
    "Sampler",
    "ScaleFit",
    "ScaledNormalization",
    "SettingError",
    "Tiled",
    "VelocityField",
    "calibrate",
    "fit_scale",
    "restore",
]
