"""Cryo-EM maps and images on disk, grids, masks and Fourier shell correlation.

Arrays are ``(z, y, x)``; positions are (x, y, z); lengths are in Å and frequencies in 1/Å.
"""

from cryofm_io.atomic import atomic_write
from cryofm_io.changes import Change, changes
from cryofm_io.conical_fsc import ConicalFsc, conical_fsc
from cryofm_io.cryosparc import find_cryosparc_maps
from cryofm_io.density_map import DensityMap, check_same_grid
from cryofm_io.emdb import EmdbEntry, EmdbHeader, find_emdb_entry, read_emdb_header
from cryofm_io.errors import (
    CryoFMError,
    GeometryError,
    GridMismatchError,
    HalfMapError,
    InputFileError,
    InUseError,
    MapWarning,
    MaskError,
    MissingExtraError,
    OutputExistsError,
)
from cryofm_io.filters import filtered_by_shell, low_pass
from cryofm_io.fsc import FscCurve, fsc, write_fsc_csv
from cryofm_io.fsc_files import write_fsc_star, write_fsc_xml
from cryofm_io.grid import GridTransform, to_grid
from cryofm_io.half_map_fsc import HalfMapFsc, half_map_fsc
from cryofm_io.halves import check_contrast, check_half_maps
from cryofm_io.image_prepare import PreparedImages, prepare_images
from cryofm_io.image_read import ImagesOnDisk, images_on_disk, read_images
from cryofm_io.image_stack import ImageCtf, ImageStack, Poses
from cryofm_io.in_use import held_folder, partial_path, sweep_partials
from cryofm_io.inspection import HalvesInspection, Inspection, inspect_halves, inspect_map
from cryofm_io.intensity import Affine, normalise_clean
from cryofm_io.local_fsc import local_resolution
from cryofm_io.masked_fsc import MaskedFsc, masked_fsc
from cryofm_io.masks import (
    MapMask,
    automatic_mask,
    check_mask,
    mask_doubts,
    mask_lengths,
    mask_of_map,
    read_mask,
    soft_mask,
    spherical_mask,
)
from cryofm_io.model_map import density_of_model
from cryofm_io.mrc_read import MapOnDisk, MapSize, map_on_disk, map_size, read_map
from cryofm_io.mrc_write import VIEWING_NOTE, write_map, write_sections
from cryofm_io.output_folder import output_folder, refuse_to_lose
from cryofm_io.particle_prepare import prepare_particles
from cryofm_io.particle_size import particle_diameter
from cryofm_io.plots import plot_fsc, plot_pairs, plot_slices
from cryofm_io.relion_sums import ReconstructionSums, read_reconstruction_sums
from cryofm_io.report import write_report
from cryofm_io.resample import fourier_resample
from cryofm_io.score import MapScore, score_map
from cryofm_io.simulate import simulate_density
from cryofm_io.star import SubtomogramPoses, read_poses, read_subtomogram_poses, write_poses
from cryofm_io.symmetry import symmetrised

__all__ = [
    "VIEWING_NOTE",
    "Affine",
    "Change",
    "ConicalFsc",
    "CryoFMError",
    "DensityMap",
    "EmdbEntry",
    "EmdbHeader",
    "FscCurve",
    "GeometryError",
    "GridMismatchError",
    "GridTransform",
    "HalfMapError",
    "HalfMapFsc",
    "HalvesInspection",
    "ImageCtf",
    "ImageStack",
    "ImagesOnDisk",
    "InUseError",
    "InputFileError",
    "Inspection",
    "MapMask",
    "MapOnDisk",
    "MapScore",
    "MapSize",
    "MapWarning",
    "MaskError",
    "MaskedFsc",
    "MissingExtraError",
    "OutputExistsError",
    "Poses",
    "PreparedImages",
    "ReconstructionSums",
    "SubtomogramPoses",
    "atomic_write",
    "automatic_mask",
    "changes",
    "check_contrast",
    "check_half_maps",
    "check_mask",
    "check_same_grid",
    "conical_fsc",
    "density_of_model",
    "filtered_by_shell",
    "find_cryosparc_maps",
    "find_emdb_entry",
    "fourier_resample",
    "fsc",
    "half_map_fsc",
    "held_folder",
    "images_on_disk",
    "inspect_halves",
    "inspect_map",
    "local_resolution",
    "low_pass",
    "map_on_disk",
    "map_size",
    "mask_doubts",
    "mask_lengths",
    "mask_of_map",
    "masked_fsc",
    "normalise_clean",
    "output_folder",
    "partial_path",
    "particle_diameter",
    "plot_fsc",
    "plot_pairs",
    "plot_slices",
    "prepare_images",
    "prepare_particles",
    "read_emdb_header",
    "read_images",
    "read_map",
    "read_mask",
    "read_poses",
    "read_reconstruction_sums",
    "read_subtomogram_poses",
    "refuse_to_lose",
    "score_map",
    "simulate_density",
    "soft_mask",
    "spherical_mask",
    "sweep_partials",
    "symmetrised",
    "to_grid",
    "write_fsc_csv",
    "write_fsc_star",
    "write_fsc_xml",
    "write_map",
    "write_poses",
    "write_report",
    "write_sections",
]
