"""The main job: two half maps in, a restored map and honest numbers out; and one map with a missing wedge.

Tensors in, tensors out: no files. Imports `samplers`, `priors` and `runs`.
"""

from cryofm_sampling.half_maps.alike import Alike, Common, WedgeAlike
from cryofm_sampling.half_maps.checks import HeldOut
from cryofm_sampling.half_maps.enhance import enhance_half_maps, enhance_map
from cryofm_sampling.half_maps.envelope import EnvelopeFit, fit_envelope, signal_end
from cryofm_sampling.half_maps.missing_wedge import restore_missing_wedge
from cryofm_sampling.half_maps.model import (
    FourierModel,
    HalfMapModel,
    Observe,
    coverage_model,
    directional_model,
    local_model,
    stationary_model,
    wedge_model,
)
from cryofm_sampling.half_maps.one_map import restore_map
from cryofm_sampling.half_maps.restore import restore_half_maps
from cryofm_sampling.half_maps.result import Grid, Progress, RestoredHalfMaps, RestoredMap
from cryofm_sampling.half_maps.weighted import WeightedHalf, fit_weighted, restore_weighted

__all__ = [
    "Alike",
    "Common",
    "EnvelopeFit",
    "FourierModel",
    "Grid",
    "HalfMapModel",
    "HeldOut",
    "Observe",
    "Progress",
    "RestoredHalfMaps",
    "RestoredMap",
    "WedgeAlike",
    "WeightedHalf",
    "coverage_model",
    "directional_model",
    "enhance_half_maps",
    "enhance_map",
    "fit_envelope",
    "fit_weighted",
    "local_model",
    "restore_half_maps",
    "restore_map",
    "restore_missing_wedge",
    "restore_weighted",
    "signal_end",
    "stationary_model",
    "wedge_model",
]
