"""Posterior sampling of density maps: algorithms that bring a flow prior and a likelihood together."""

from cryofm_sampling.ab_initio import AbInitio, Models
from cryofm_sampling.blind_guided import BlindGuided
from cryofm_sampling.calibrate import CalibratedVelocity, calibrate
from cryofm_sampling.checkpoint import Checkpoint
from cryofm_sampling.errors import CapabilityError, CheckpointError, CryoFMError, GridMismatchError, SettingError
from cryofm_sampling.flow import Flow
from cryofm_sampling.guided import Guided
from cryofm_sampling.inpainting import Inpainting
from cryofm_sampling.log_likelihood import LogLikelihood, log_likelihood
from cryofm_sampling.plug_and_play import PlugAndPlay
from cryofm_sampling.plug_and_play_loss import PlugAndPlayLoss
from cryofm_sampling.posterior_flow import PosteriorFlow
from cryofm_sampling.protocols import Calibrated, Callback, Draw, Sampler, SpectrallyCalibrated, VelocityField
from cryofm_sampling.renoising import Renoising
from cryofm_sampling.restore import restore
from cryofm_sampling.scale import ScaledNormalization, ScaleFit, fit_scale
from cryofm_sampling.spread import spread
from cryofm_sampling.tiled import Tiled
from cryofm_sampling.uncertainty import Summary, chi_squared, summarise

__all__ = [
    "AbInitio",
    "BlindGuided",
    "Calibrated",
    "CalibratedVelocity",
    "Callback",
    "CapabilityError",
    "Checkpoint",
    "CheckpointError",
    "CryoFMError",
    "Draw",
    "Flow",
    "GridMismatchError",
    "Guided",
    "Inpainting",
    "LogLikelihood",
    "Models",
    "PlugAndPlay",
    "PlugAndPlayLoss",
    "PosteriorFlow",
    "Renoising",
    "Sampler",
    "ScaleFit",
    "ScaledNormalization",
    "SettingError",
    "SpectrallyCalibrated",
    "Summary",
    "Tiled",
    "VelocityField",
    "calibrate",
    "chi_squared",
    "fit_scale",
    "log_likelihood",
    "restore",
    "spread",
    "summarise",
]
