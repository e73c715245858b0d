"""Posterior sampling of density maps: algorithms that bring a flow prior and a likelihood together."""

from cryofm_sampling._common import streams
from cryofm_sampling.errors import (
    CapabilityError,
    CheckpointError,
    CryoFMError,
    GridMismatchError,
    MisfitWarning,
    SettingError,
)
from cryofm_sampling.half_maps import (
    Alike,
    Common,
    EnvelopeFit,
    FourierModel,
    Grid,
    HalfMapModel,
    HeldOut,
    Observe,
    Progress,
    RestoredHalfMaps,
    RestoredMap,
    WedgeAlike,
    WeightedHalf,
    coverage_model,
    directional_model,
    enhance_half_maps,
    enhance_map,
    fit_envelope,
    fit_weighted,
    local_model,
    restore_half_maps,
    restore_map,
    restore_missing_wedge,
    restore_weighted,
    signal_end,
    stationary_model,
    wedge_model,
)
from cryofm_sampling.images import RestoredImages, restore_images
from cryofm_sampling.misfit import misfit
from cryofm_sampling.models import (
    Assessment,
    LeftOut,
    RankedModels,
    Trust,
    Verdict,
    models_by_algorithm_3,
    models_by_halving,
    models_of_class_averages,
    models_of_particles,
)
from cryofm_sampling.priors.calibrate import CalibratedVelocity, calibrate
from cryofm_sampling.priors.conditioned import Conditioned
from cryofm_sampling.priors.log_likelihood import LogLikelihood, log_likelihood
from cryofm_sampling.priors.plug_and_play_loss import PlugAndPlayLoss
from cryofm_sampling.priors.rescaled import Rescaled
from cryofm_sampling.priors.tiled import Tiled
from cryofm_sampling.protocols import (
    Calibrated,
    Callback,
    ConditionalVelocityField,
    Draw,
    RunCallback,
    Sampler,
    SpectrallyCalibrated,
    VelocityField,
)
from cryofm_sampling.region import Region
from cryofm_sampling.restore import restore
from cryofm_sampling.runs.blocks import ArrayLike, Blocks
from cryofm_sampling.runs.checkpoint import Checkpoint, Run, iterate
from cryofm_sampling.runs.kept_blocks import KeptBlocks
from cryofm_sampling.runs.memory import check_available, check_memory
from cryofm_sampling.runs.spread import spread
from cryofm_sampling.runs.torchrun import everyone, is_first, joined
from cryofm_sampling.samplers.ab_initio import AbInitio, Models
from cryofm_sampling.samplers.blind_guided import BlindGuided
from cryofm_sampling.samplers.flow import Flow
from cryofm_sampling.samplers.guided import Guided
from cryofm_sampling.samplers.inpainting import Inpainting
from cryofm_sampling.samplers.plug_and_play import PlugAndPlay
from cryofm_sampling.samplers.posterior_flow import PosteriorFlow
from cryofm_sampling.samplers.renoising import Renoising
from cryofm_sampling.scale import ScaledNormalization, ScaleFit, fit_scale
from cryofm_sampling.uncertainty import Summary, chi_squared, summarise

__all__ = [
    "AbInitio",
    "Alike",
    "ArrayLike",
    "Assessment",
    "BlindGuided",
    "Blocks",
    "Calibrated",
    "CalibratedVelocity",
    "Callback",
    "CapabilityError",
    "Checkpoint",
    "CheckpointError",
    "Common",
    "ConditionalVelocityField",
    "Conditioned",
    "CryoFMError",
    "Draw",
    "EnvelopeFit",
    "Flow",
    "FourierModel",
    "Grid",
    "GridMismatchError",
    "Guided",
    "HalfMapModel",
    "HeldOut",
    "Inpainting",
    "KeptBlocks",
    "LeftOut",
    "LogLikelihood",
    "MisfitWarning",
    "Models",
    "Observe",
    "PlugAndPlay",
    "PlugAndPlayLoss",
    "PosteriorFlow",
    "Progress",
    "RankedModels",
    "Region",
    "Renoising",
    "Rescaled",
    "RestoredHalfMaps",
    "RestoredImages",
    "RestoredMap",
    "Run",
    "RunCallback",
    "Sampler",
    "ScaleFit",
    "ScaledNormalization",
    "SettingError",
    "SpectrallyCalibrated",
    "Summary",
    "Tiled",
    "Trust",
    "VelocityField",
    "Verdict",
    "WedgeAlike",
    "WeightedHalf",
    "calibrate",
    "check_available",
    "check_memory",
    "chi_squared",
    "coverage_model",
    "directional_model",
    "enhance_half_maps",
    "enhance_map",
    "everyone",
    "fit_envelope",
    "fit_scale",
    "fit_weighted",
    "is_first",
    "iterate",
    "joined",
    "local_model",
    "log_likelihood",
    "misfit",
    "models_by_algorithm_3",
    "models_by_halving",
    "models_of_class_averages",
    "models_of_particles",
    "restore",
    "restore_half_maps",
    "restore_images",
    "restore_map",
    "restore_missing_wedge",
    "restore_weighted",
    "signal_end",
    "spread",
    "stationary_model",
    "streams",
    "summarise",
    "wedge_model",
]
