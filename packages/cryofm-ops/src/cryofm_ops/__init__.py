"""Degradation operators, noise models and likelihoods for cryo-EM, and the Protocols in which they meet."""

from cryofm_ops.errors import (
    ConvergenceError,
    CryoFMError,
    GeometryError,
    GridMismatchError,
    HalfMapError,
    NoiseError,
    ObservationError,
    OperatorError,
)
from cryofm_ops.fourier.directions import DirectionTable, directional, hemisphere
from cryofm_ops.fourier.grid import (
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
from cryofm_ops.likelihoods.fourier_gaussian import FourierGaussian
from cryofm_ops.likelihoods.gaussian_likelihood import gaussian_likelihood
from cryofm_ops.likelihoods.joint import Joint, joint
from cryofm_ops.likelihoods.linear_gaussian import Gaussian, LinearGaussian
from cryofm_ops.likelihoods.model_units import in_model_units
from cryofm_ops.likelihoods.poisson import PoissonLikelihood
from cryofm_ops.likelihoods.proximal import Proximal
from cryofm_ops.likelihoods.student_t import StudentTLikelihood
from cryofm_ops.likelihoods.toeplitz_gaussian import ToeplitzGaussian
from cryofm_ops.noise.anisotropic import AnisotropicNoise, cone_alpha, wedge_alpha
from cryofm_ops.noise.bands import BandNoise, estimate_band_variances
from cryofm_ops.noise.block import BlockNoise
from cryofm_ops.noise.coverage import CoverageNoise, coverage_from_poses, coverage_from_tilts
from cryofm_ops.noise.from_cones import AlphaEstimate, estimate_alpha
from cryofm_ops.noise.from_directions import DirectionalEstimate, estimate_directional_noise
from cryofm_ops.noise.from_half_maps import NoiseEstimate, estimate_noise_power
from cryofm_ops.noise.from_images import background_power, prepared_noise_power
from cryofm_ops.noise.from_poses import SliceDensity, alpha_from_poses
from cryofm_ops.noise.local import LocalNoise, estimate_local_variance, windowed_noise_power
from cryofm_ops.noise.stationary import SpectralNoise, StationaryNoise, WhiteNoise
from cryofm_ops.noise.sum import NoiseSum
from cryofm_ops.noise.voxelwise import VoxelNoise
from cryofm_ops.normal import Deviations, Normal
from cryofm_ops.operators.autograd import adjoint_of
from cryofm_ops.operators.compose import add, compose, stack
from cryofm_ops.operators.ctf import CTF
from cryofm_ops.operators.envelope import Envelope
from cryofm_ops.operators.filters import FourierMask, LowPass, RadialFilter, RemoveMean, WithoutMean
from cryofm_ops.operators.find_wedge import FoundWedge, find_wedge
from cryofm_ops.operators.fourier import FourierOperator
from cryofm_ops.operators.fourier_projector import FourierProjector
from cryofm_ops.operators.identity import Identity
from cryofm_ops.operators.mask import Mask
from cryofm_ops.operators.projector import Projector
from cryofm_ops.operators.scale import Scale
from cryofm_ops.operators.slices import FourierSlices
from cryofm_ops.operators.wedge import DoubleTilt, MissingWedge
from cryofm_ops.poses.averages import AverageRings, average_rings, image_scales
from cryofm_ops.poses.blind import BlindGaussian, BlindProjections, PoseLikelihood
from cryofm_ops.poses.common_lines import CommonLines, polar_transform
from cryofm_ops.poses.evidence import pose_log_evidence, refine_by_evidence
from cryofm_ops.poses.images_in_band import ImagesInBand
from cryofm_ops.poses.losses import psi_bg, psi_cor, psi_sg
from cryofm_ops.poses.sampling import PoseSamples, sample_poses
from cryofm_ops.poses.search import PoseEstimate, search_poses
from cryofm_ops.protocols import (
    Averaging,
    Blind,
    Conjugate,
    FourierDiagonal,
    FourierMultiplier,
    Iterative,
    Likelihood,
    LinearOperator,
    Noise,
    Normalization,
    Operator,
    PseudoInvertible,
    SpectralPower,
    Testable,
)
from cryofm_ops.rotations.conversions import (
    angular_distance_deg,
    pose_difference_deg,
    quaternion_from_rotation,
    random_rotations,
    relion_from_rotation,
    rotation_from_quaternion,
    rotation_from_relion,
    rotation_from_vector,
    vector_from_rotation,
)
from cryofm_ops.rotations.so3_grid import so3_grid, subdivide

__all__ = [
    "CTF",
    "AlphaEstimate",
    "AnisotropicNoise",
    "AverageRings",
    "Averaging",
    "BandNoise",
    "Blind",
    "BlindGaussian",
    "BlindProjections",
    "BlockNoise",
    "CommonLines",
    "Conjugate",
    "ConvergenceError",
    "CoverageNoise",
    "CryoFMError",
    "Deviations",
    "DirectionTable",
    "DirectionalEstimate",
    "DoubleTilt",
    "Envelope",
    "FoundWedge",
    "FourierDiagonal",
    "FourierGaussian",
    "FourierMask",
    "FourierMultiplier",
    "FourierOperator",
    "FourierProjector",
    "FourierSlices",
    "Gaussian",
    "GeometryError",
    "GridMismatchError",
    "HalfMapError",
    "Identity",
    "ImagesInBand",
    "Iterative",
    "Joint",
    "Likelihood",
    "LinearGaussian",
    "LinearOperator",
    "LocalNoise",
    "LowPass",
    "Mask",
    "MissingWedge",
    "Noise",
    "NoiseError",
    "NoiseEstimate",
    "NoiseSum",
    "Normal",
    "Normalization",
    "ObservationError",
    "Operator",
    "OperatorError",
    "PoissonLikelihood",
    "PoseEstimate",
    "PoseLikelihood",
    "PoseSamples",
    "Projector",
    "Proximal",
    "PseudoInvertible",
    "RadialFilter",
    "RemoveMean",
    "Scale",
    "SliceDensity",
    "SpectralNoise",
    "SpectralPower",
    "StationaryNoise",
    "StudentTLikelihood",
    "Testable",
    "ToeplitzGaussian",
    "VoxelNoise",
    "WhiteNoise",
    "WithoutMean",
    "add",
    "adjoint_of",
    "alpha_from_poses",
    "angular_distance_deg",
    "average_rings",
    "background_power",
    "compose",
    "cone_alpha",
    "coverage_from_poses",
    "coverage_from_tilts",
    "directional",
    "estimate_alpha",
    "estimate_band_variances",
    "estimate_directional_noise",
    "estimate_local_variance",
    "estimate_noise_power",
    "find_wedge",
    "fourier_filter",
    "frequencies",
    "friedel_weights",
    "gaussian_likelihood",
    "half_shape",
    "hemisphere",
    "image_scales",
    "in_model_units",
    "irfft",
    "joint",
    "polar_transform",
    "pose_difference_deg",
    "pose_log_evidence",
    "prepared_noise_power",
    "psi_bg",
    "psi_cor",
    "psi_sg",
    "quaternion_from_rotation",
    "radial",
    "radial_mean",
    "random_rotations",
    "refine_by_evidence",
    "relion_from_rotation",
    "rfft",
    "rotation_from_quaternion",
    "rotation_from_relion",
    "rotation_from_vector",
    "sample_poses",
    "search_poses",
    "shell_sizes",
    "so3_grid",
    "stack",
    "standard_normal",
    "subdivide",
    "vector_from_rotation",
    "wedge_alpha",
    "windowed_noise_power",
]
