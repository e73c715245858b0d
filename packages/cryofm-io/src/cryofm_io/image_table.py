"""The tables of images in STAR files as RELION writes them.

RELION 3.0 has one table; since 3.1 what images of one optics group share stands in a table ``data_optics``.
"""

import warnings
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

from cryofm_io.cryosparc import read_data_set
from cryofm_io.errors import InputFileError, MapWarning
from cryofm_io.foreign_tables import FOREIGN_COLUMNS, refuse_foreign_columns
from cryofm_io.image_stack import ImageCtf, Poses
from cryofm_io.star_text import Block, read_star

__all__ = ["ANGLES", "BOX_ANGLES", "DEFOCUS", "OPTICS", "TILTS", "ImageTable", "read_subtomograms", "read_table"]

# Columns of RELION by the fields of `ImageCtf`: of an image, and of its optics group.
DEFOCUS = {
    "defocus_u_angstrom": "rlnDefocusU",
    "defocus_v_angstrom": "rlnDefocusV",
    "defocus_angle_deg": "rlnDefocusAngle",
    "phase_shift_deg": "rlnPhaseShift",
}
OPTICS = {
    "voltage_kv": "rlnVoltage",
    "spherical_aberration_mm": "rlnSphericalAberration",
    "amplitude_contrast": "rlnAmplitudeContrast",
}
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
BOX_ANGLES = ("rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi")
TILTS = ("cryofmTiltMin", "cryofmTiltMax")  # RELION has none

_PIXELS = ("rlnImagePixelSize", "rlnPixelSize")
_NAMES = ("rlnImageName", "rlnReferenceImage")
_PARTICLES = ("rlnTomoParticleName", "rlnImageName", "rlnTomoParticleId", "rlnTomoName", "rlnMicrographName")
_SHARE = "rlnClassDistribution"
_2D_STACKS = "rlnTomoSubTomosAre2DStacks"
_WANTED = (
    *DEFOCUS.values(),
    *OPTICS.values(),
    *ANGLES,
    *BOX_ANGLES,
    *TILTS,
    *_PIXELS,
    *_NAMES,
    *_PARTICLES,
    *("rlnOpticsGroup", "rlnImageDimensionality", "rlnDetectorPixelSize", "rlnMagnification"),
    *("rlnCtfDataAreCtfPremultiplied", "rlnOriginX", "rlnOriginY", "rlnOriginXAngst", "rlnOriginYAngst"),
    *(_2D_STACKS, "rlnTomoVisibleFrames", _SHARE),
    *FOREIGN_COLUMNS,
)
# What a value can be; beyond it the unit is another or the file is damaged.
_RANGES = {
    "rlnVoltage": (10.0, 3000.0, "kV"),
    "rlnSphericalAberration": (-100.0, 100.0, "mm"),
    "rlnAmplitudeContrast": (-1.0, 1.0, "of 1"),
}


@attrs.frozen
class ImageTable:
    """The table of a STAR file that lists images, and all the file's tables."""

    path: Path
    names: list[str]
    block: Block
    blocks: list[Block]

    def numbers(self, tag: str) -> NDArray[np.float64] | None:
        """The column (K,), from the images' own table or their optics groups'; none where neither has it."""
        own = self._column(self.block, tag)
        optics = next((block for block in self.blocks if block.name == "optics"), None)
        if own is not None or optics is None:
            return own
        shared, groups = self._column(optics, tag), self._column(optics, "rlnOpticsGroup")
        mine = self._column(self.block, "rlnOpticsGroup")
        if shared is None or groups is None or mine is None:
            return None
        known = dict(zip(groups.tolist(), shared.tolist(), strict=True))
        missing = set(mine.tolist()) - set(known)
        if missing:
            raise InputFileError(f"{self.path}: optics groups {sorted(missing)} of images are not in data_optics")
        return np.array([known[group] for group in mine.tolist()])

    def finite(self, tag: str) -> NDArray[np.float64] | None:
        """The column as `numbers` has it, if its values can be what they are taken for."""
        values = self.numbers(tag)
        low, high, unit = _RANGES.get(tag, (-1e9, 1e9, ""))
        if values is None:
            return None
        wrong = ~((low <= values) & (values <= high))
        if not wrong.any():
            return values
        row = int(wrong.argmax())
        between = f"; expected {low:g} to {high:g} {unit}" if tag in _RANGES else ""
        raise InputFileError(
            f"{self.path}: {tag} is {values[row]:g} in row {row + 1} ({self.names[row]}){between}; correct the file"
        )

    def pixel_sizes(self) -> NDArray[np.float64] | None:
        """Å, one per image or one for all; none where no column states sizes that can be."""
        for tags in (*((tag,) for tag in _PIXELS), ("rlnDetectorPixelSize", "rlnMagnification")):
            columns = [column for tag in tags if (column := self.numbers(tag)) is not None]
            if len(columns) < len(tags):
                continue
            with np.errstate(all="ignore"):
                sizes = columns[0] if len(tags) == 1 else 1e4 * columns[0] / columns[1]  # μm
            if self._possible(sizes, " / ".join(tags)):
                return sizes
        for block in self.blocks:  # data_model_general of a classification
            sizes_of_all = self._column(block, "rlnPixelSize")
            if sizes_of_all is not None and self._possible(sizes_of_all, f"rlnPixelSize of data_{block.name}"):
                return sizes_of_all
        return None

    def _possible(self, sizes: NDArray[np.float64], what: str) -> bool:
        wrong = ~(np.isfinite(sizes) & (sizes > 0))
        if wrong.any():
            row = int(wrong.argmax())
            message = (
                f"{self.path}: {what} gives a pixel size of {sizes[row]:g} Å in row {row + 1}; taken as not stated"
            )
            warnings.warn(message, MapWarning, stacklevel=6)
        return not wrong.any()

    def ctf(self) -> ImageCtf | None:
        """The CTFs, if there is a defocus."""
        u = self.finite("rlnDefocusU")
        if u is None:
            return None
        columns = {field: self.finite(tag) for field, tag in (DEFOCUS | OPTICS).items()}
        missing = [tag for field, tag in OPTICS.items() if columns[field] is None]
        if missing:
            raise InputFileError(f"{self.path}: there is a defocus but no {', '.join(missing)}; add the columns")
        premultiplied = self.numbers("rlnCtfDataAreCtfPremultiplied")
        if premultiplied is not None and premultiplied.any():
            message = f"{self.path}: images multiplied by their CTF already: it acts twice on them, once is modelled"
            warnings.warn(message, MapWarning, stacklevel=4)
        otherwise = {"defocus_v_angstrom": u}  # no astigmatism, no phase plate
        return ImageCtf(
            **{f: otherwise.get(f, np.zeros_like(u)) if values is None else values for f, values in columns.items()}
        )

    def poses(self, voxel_size: float) -> Poses | None:
        """The poses, if there are all three angles; origins in pixels are made Å."""
        angles = [column for tag in ANGLES if (column := self.finite(tag)) is not None]
        if len(angles) < 3:
            return None
        shifts = []
        for axis in "XY":
            origin, origin_px = self.finite(f"rlnOrigin{axis}Angst"), self.finite(f"rlnOrigin{axis}")
            if origin is None:
                origin = np.zeros(len(self.names)) if origin_px is None else voxel_size * origin_px
            shifts.append(origin)
        return Poses.from_angles(np.stack(angles, -1), np.stack(shifts, -1))

    def shares(self) -> NDArray[np.float64] | None:
        """Of class averages, the part of the particles that each is made of, if the table tells it."""
        shares = self._column(self.block, _SHARE)
        return None if shares is None else np.where(np.isfinite(shares), shares, 0.0)  # as RELION has empty classes

    def _column(self, block: Block, tag: str) -> NDArray[np.float64] | None:
        values = block.column(tag)
        if not values:
            return None
        expected = len(self.names) if block is self.block else len(block.column("rlnOpticsGroup") or values)
        if len(values) == 1:  # a pair beside a loop holds for all of its rows
            values = values * expected
        if len(values) != expected:
            raise InputFileError(f"{self.path}: {len(values)} values of {tag} for {expected} rows of data_{block.name}")
        try:
            return np.array([float(value) for value in values])
        except ValueError:
            row = next(i for i, value in enumerate(values) if not _is_number(value))
            raise InputFileError(
                f"{self.path}: {tag} in data_{block.name} holds no number in row {row + 1} ({values[row]!r})"
            ) from None


def read_table(path: Path) -> ImageTable:
    """The images that a STAR file or a data set of cryoSPARC (.cs) lists, particles or class averages."""
    blocks = read_data_set(path) if path.suffix.lower() == ".cs" else read_star(path, _WANTED)
    for tag in _NAMES:
        for block in blocks:
            if names := block.column(tag):
                if sum(other.name == block.name and bool(other.column(tag)) for other in blocks) > 1:
                    raise InputFileError(f"{path}: two tables data_{block.name} list images; join them to one table")
                table = ImageTable(path, names, block, blocks)
                _refuse_tilt_series(table)
                return table
    refuse_foreign_columns(path, blocks)
    raise InputFileError(f"{path}: no table lists images (rlnImageName or rlnReferenceImage) among {len(blocks)}")


def read_subtomograms(path: Path) -> ImageTable:
    """The particles of tomograms that a STAR file lists, volumes or stacks of a tilt series."""
    if path.suffix.lower() == ".cs":
        raise InputFileError(f"{path}: a data set of cryoSPARC lists no subtomograms; give RELION's STAR file")
    blocks = read_star(path, _WANTED)
    for block in blocks:
        names = next((names for tag in _PARTICLES if (names := block.column(tag))), None)
        if names and block.column(ANGLES[0]):
            images = block.column("rlnImageName") or []
            if any(name.partition("@")[0].isdecimal() for name in images):
                raise InputFileError(f"{path}: lists images of single particles ({images[0]}), not subtomograms")
            return ImageTable(path, names, block, blocks)
    refuse_foreign_columns(path, blocks)
    raise InputFileError(f"{path}: no table lists particles and their angles ({', '.join(ANGLES)}) among {len(blocks)}")


def _refuse_tilt_series(table: ImageTable) -> None:
    """RELION 5 and Warp list a stack per particle, its tilt series; RELION 4 and 5 a volume per particle, too."""
    flags = [block.column(_2D_STACKS) for block in table.blocks]
    if any(flag and flag[0] not in ("0", "0.0") for flag in flags) or (
        table.block.column("rlnTomoVisibleFrames") and not any("@" in name for name in table.names)
    ):
        raise InputFileError(
            f"{table.path}: lists particles of tilt series, a 2-D stack each (RELION 5, Warp), not one image each; "
            "make volumes of them: relion_tomo_subtomo without --stack2d, or WarpTools ts_export_particles --3d"
        )
    dimensions = table.numbers("rlnImageDimensionality")
    if dimensions is not None and (dimensions == 3).any():
        raise InputFileError(
            f"{table.path}: lists 3-D subtomograms (rlnImageDimensionality 3), not images; average them: "
            "relion_reconstruct, and read the map"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
