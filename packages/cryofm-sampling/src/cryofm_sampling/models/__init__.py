"""Ab initio: ranked models of an unknown object from its images, by three ways from images to poses.

Tensors in, tensors out. Imports `samplers`, `priors` and `runs`.
"""

from cryofm_sampling.models.algorithm_3 import models_by_algorithm_3
from cryofm_sampling.models.assessment import Assessment, Verdict
from cryofm_sampling.models.class_averages import models_of_class_averages
from cryofm_sampling.models.halving import models_by_halving
from cryofm_sampling.models.particles import models_of_particles
from cryofm_sampling.models.ranked import LeftOut, RankedModels
from cryofm_sampling.models.trust import Trust

__all__ = [
    "Assessment",
    "LeftOut",
    "RankedModels",
    "Trust",
    "Verdict",
    "models_by_algorithm_3",
    "models_by_halving",
    "models_of_class_averages",
    "models_of_particles",
]
