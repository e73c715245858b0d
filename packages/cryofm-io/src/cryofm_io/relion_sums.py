"""What RELION hands to a program that reconstructs in its place (``--external_reconstruct``, RELION 3.1 and later).

For every half and iteration, on a Fourier grid padded to P³: d = Σ CTF y / σ², the images back-projected, and
w = Σ CTF² / σ², with σ² of one complex component. Their ratio is the map that no prior touched, and w says how well
each coefficient was measured.
"""

import math
import os
import re
import warnings
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import scipy
from numpy.typing import NDArray

from cryofm_io.errors import GeometryError, InputFileError, MapWarning
from cryofm_io.mrc_read import read_map
from cryofm_io.star_text import Block, read_star

__all__ = ["ReconstructionSums", "read_reconstruction_sums"]

_GENERAL, _SPECTRA = "external_reconstruct_general", "external_reconstruct_tau2"
_FILES = ("rlnExtReconsDataReal", "rlnExtReconsDataImag", "rlnExtReconsWeight", "rlnExtReconsResult")
_SIZES = ("rlnOriginalImageSize", "rlnCurrentImageSize", "rlnReferenceDimensionality")
_COLUMNS = ("rlnReferenceTau2", "rlnGoldStandardFsc")
_WANTED = (*_FILES, *_SIZES, *_COLUMNS, "rlnTau2FudgeFactor", "rlnPixelSize")
_NAME = re.compile(r"(?P<root>.*)_it(?P<iteration>\d+)(_half(?P<half>[12]))?_class\d+_external_reconstruct\.star")
_LEAST = 1e-3  # of a shell's mean weight, below which a coefficient counts as not measured


@attrs.frozen(eq=False)
class ReconstructionSums:
    """The sums of one half, or of all images, and what RELION knows besides.

    Attributes:
        data: d, complex ``(P, P, P // 2 + 1)``, frequency 0 first; 0 beyond the current size.
        weight: w, likewise, real.
        box: Voxels N a side of the map that RELION wants; P is N times the padding.
        current_size: Twice the last shell that has data.
        voxel_size: Å.
        tau2: RELION's signal power of every shell ``(N // 2 + 1,)``, the factor tau2_fudge in it.
        fsc: Between the halves, likewise; RELION has it from the sums, before any of them is reconstructed.
        result: The map that RELION will read.
        half: 1 or 2; None of all images together.
    """

    data: NDArray[np.complex64] = attrs.field(repr=lambda d: f"{d.dtype} {d.shape}")
    weight: NDArray[np.float32] = attrs.field(repr=lambda d: f"{d.dtype} {d.shape}")
    box: int
    current_size: int
    voxel_size: float
    tau2: NDArray[np.float64]
    fsc: NDArray[np.float64]
    result: Path = Path()
    half: int | None = None

    def __attrs_post_init__(self) -> None:
        p = self.data.shape[0]
        if self.data.shape != (p, p, p // 2 + 1) or self.weight.shape != self.data.shape or not 2 <= self.box <= p:
            shapes = f"data of shape {self.data.shape} and weights of shape {self.weight.shape}"
            raise GeometryError(f"{shapes} are no padded half grid of a box of {self.box}")
        if not (len(self.tau2) == len(self.fsc) == self.box // 2 + 1 and 0 < self.current_size <= self.box):
            sizes = f"{len(self.tau2)} and {len(self.fsc)} shells, current size {self.current_size}"
            raise GeometryError(f"{sizes}: a box of {self.box} has {self.box // 2 + 1} shells")

    @property
    def padding(self) -> float:
        """P / N."""
        return self.data.shape[0] / self.box

    def map(self, side: int | None = None, *, wiener: bool = False) -> NDArray[np.float32]:
        """D / w, or RELION's d / (w + 1/τ²), in a cube of ``side`` voxels, at most P; N if not given.

        What was hardly measured is damped. RELION's own program divides more carefully close to frequency 0.
        """
        p, side = self.data.shape[0], self.box if side is None else side
        if not 1 <= side <= p:
            raise GeometryError(f"a side of {side} voxels: the grid has {p}")
        radius = _length(np.fft.fftfreq(p) * p, np.arange(p // 2 + 1))
        shell = np.rint(radius / self.padding).astype(np.intp)
        inside = shell <= self.current_size // 2
        shell[~inside] = 0
        mean = np.bincount(shell[inside], self.weight[inside]) / np.maximum(np.bincount(shell[inside]), 1)
        w = np.maximum(self.weight, _LEAST * mean[shell])
        if wiener:
            w += 1 / (self.padding**3 * np.maximum(self.tau2, 1e-30))[shell]
        ratio = np.where(inside & (self.weight > 0), self.data / np.where(w > 0, w, 1), 0).astype(np.complex64)
        volume = np.fft.fftshift(scipy.fft.irfftn(ratio, s=(p, p, p))) * np.float32(self.box**2)
        first = p // 2 - side // 2
        cut = slice(first, first + side)
        x = (np.arange(side) - side // 2) / p
        r = np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2)
        # Interpolated between neighbours by their distance, which is a multiplication by sinc².
        return np.asarray(volume[cut, cut, cut] / np.sinc(np.minimum(r, 0.5)) ** 2, np.float32)

    def precision(self, side: int | None = None) -> NDArray[np.float32]:
        """1 over the noise power of that map in the orthonormal FFT, on the half grid of its cube.

        W = (P/N)³ w / (2 N): noise of P³ coefficients in N³ voxels, of both components. The cube is smaller than the
        padded one, so that each of its coefficients is a mean of neighbours, as W is of w. 0 where nothing was
        measured, and from the last shell on, of which some is missing.

        Example:
            >>> zeros, flat = np.zeros((8, 8, 5), np.complex64), np.full((8, 8, 5), 2, np.float32)
            >>> sums = ReconstructionSums(zeros, flat, 4, 4, 1.5, np.ones(3), np.ones(3))
            >>> sums.precision()[0, 0]
            array([4., 4., 0.], dtype=float32)
        """
        p, side = self.weight.shape[0], self.box if side is None else side
        step = p / side
        reach = math.ceil(step) - 1
        # The mates of columns kx > 0 are those with kx < 0.
        mates = np.roll(self.weight[::-1, ::-1, reach:0:-1], (1, 1), (0, 1))
        w = np.concatenate([mates, self.weight], -1)
        k_in, k_out = np.fft.fftfreq(p) * p, np.fft.fftfreq(side) * side
        across = _triangles(k_out * step, k_in, step)
        along = _triangles(np.arange(side // 2 + 1) * step, np.arange(-reach, p // 2 + 1), step)
        w = np.einsum("ai,ijk->ajk", across, w, optimize=True)
        w = np.einsum("bj,ajk->abk", across, w, optimize=True) @ along.T
        shell = _length(k_out, np.arange(side // 2 + 1)) * (self.box / side)  # of the box N
        w[shell > self.current_size / 2 - 0.5] = 0
        nearest = np.rint(shell).astype(np.intp)
        mean = np.bincount(nearest.ravel(), w.ravel()) / np.maximum(np.bincount(nearest.ravel()), 1)
        w[w < _LEAST * mean[nearest]] = 0  # and what rounding made of 0
        return np.asarray(np.maximum(w, 0) * (self.padding**3 / (2 * self.box)), np.float32)


def _length(k: NDArray[Any], kx: NDArray[Any]) -> NDArray[np.float32]:
    """|k| on a half grid."""
    square = np.asarray(k, np.float32) ** 2
    length: NDArray[np.float32] = np.sqrt(square[:, None, None] + square[:, None] + np.asarray(kx, np.float32) ** 2)
    return length


def _triangles(centres: NDArray[Any], places: NDArray[Any], width: float) -> NDArray[np.float32]:
    """Rows of weights that fall linearly to 0 at a distance of ``width``; of sum 1."""
    rows = np.maximum(1 - np.abs(centres[:, None] - places) / width, 0)
    return np.asarray(rows / rows.sum(1, keepdims=True), np.float32)


def read_reconstruction_sums(path: str | os.PathLike[str], *, voxel_size: float | None = None) -> ReconstructionSums:
    """Read the STAR file that RELION gives to an external reconstruction, and the arrays that it names.

    Args:
        path: ``…_external_reconstruct.star``. The names in it are as seen from the folder in which RELION was
            started; where they are not there, files of the same names beside it are taken.
        voxel_size: Å. None: the file's own (RELION 5), or that of the ``_model.star`` of the iteration before.

    Raises:
        InputFileError: Not such a file, an array is missing or damaged, or nothing tells the voxel size.
        GeometryError: References that are not 3-D, or sizes that do not fit each other.
    """
    path = Path(path)
    blocks = {block.name: block for block in read_star(path, _WANTED)}
    general, spectra = blocks.get(_GENERAL), blocks.get(_SPECTRA)
    if general is None or spectra is None:
        raise InputFileError(
            f"{path}: no data_{_GENERAL} or data_{_SPECTRA}; is it RELION's external_reconstruct.star?"
        )
    box, current_size, dimensions = (round(_numbers(path, general, tag)[0]) for tag in _SIZES)
    if dimensions != 3:
        raise GeometryError(f"{path}: references of {dimensions} dimensions; 3-D ones can be reconstructed")
    files = [Path(_values(path, general, tag)[0]) for tag in _FILES]
    real, imaginary, weight = (_array(path, file) for file in files[:3])
    if real.shape != imaginary.shape:
        raise GeometryError(f"{path}: real parts of shape {real.shape}, imaginary ones of {imaginary.shape}")
    found = _NAME.fullmatch(path.name)
    tau2, fsc = (np.array(_numbers(path, spectra, tag)) for tag in _COLUMNS)
    return ReconstructionSums(
        data=real + np.complex64(1j) * imaginary,
        weight=weight,
        box=box,
        current_size=current_size,
        voxel_size=_voxel_size(path, general) if voxel_size is None else voxel_size,
        tau2=tau2 * (_numbers(path, general, "rlnTau2FudgeFactor")[0]),
        fsc=fsc,
        result=files[3],
        half=int(found["half"]) if found and found["half"] else None,
    )


def _values(path: Path, block: Block, tag: str) -> list[str]:
    values = block.column(tag)
    if not values:
        raise InputFileError(f"{path}: no {tag} in data_{block.name}")
    return values


def _numbers(path: Path, block: Block, tag: str) -> list[float]:
    values = _values(path, block, tag)
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        raise InputFileError(f"{path}: {tag} holds what is no number") from None
    if not np.isfinite(numbers).all():
        raise InputFileError(f"{path}: {tag} holds what is not finite")
    return numbers


def _array(star: Path, file: Path) -> NDArray[np.float32]:
    where = file if file.exists() else star.parent / file.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MapWarning)  # these have no voxel size
        return read_map(where, voxel_size=1.0).data


def _voxel_size(path: Path, general: Block) -> float:
    """The file's own, or that of the model before."""
    if general.column("rlnPixelSize") is not None:
        return _numbers(path, general, "rlnPixelSize")[0]
    found = _NAME.fullmatch(path.name)
    if found is not None:
        stem, half = f"{found['root']}_it{int(found['iteration']) - 1:03d}", found["half"] or "1"
        for model in (f"{stem}_half{half}_model.star", f"{stem}_model.star"):
            if (path.parent / model).exists():
                for block in read_star(path.parent / model, ("rlnPixelSize",)):
                    if block.column("rlnPixelSize") is not None:
                        return _numbers(path.parent / model, block, "rlnPixelSize")[0]
    raise InputFileError(f"{path}: nothing tells the voxel size, nor a _model.star of the iteration before; give it")
