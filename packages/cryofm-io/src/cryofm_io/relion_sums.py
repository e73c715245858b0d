"""What RELION hands to a program that reconstructs in its place (``--external_reconstruct``, RELION 3.1 and later).

For every half and iteration, on a Fourier grid padded to P³: d = Σ CTF y / σ², the images back-projected, and
w = Σ CTF² / σ², with σ² of one complex component. Their ratio is the map that no prior touched, and w says how well
each coefficient was measured.
"""

import math
import os
import re
import warnings
from functools import cached_property
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


@attrs.frozen(eq=False, slots=False)
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
        return len(self.data) / self.box

    def map(self, side: int | None = None, *, wiener: bool = False) -> NDArray[np.float32]:
        """The map of the sums in a cube of ``side`` voxels, at most P; N if not given.

        With ``wiener`` RELION's d / (w + 1/τ²), as versions 4 and 5 make it; 3.1 evens out w first, by its gridding.
        Otherwise the map that no prior damped, 0 where nothing was measured: d / (w + w̄), w̄ the mean of a shell, over
        the local mean of w / (w + w̄). A plain d / w would count a coefficient of the padded grid that hardly any image
        met as much as its neighbours.

        Raises:
            GeometryError: The side is larger than the padded grid's.
        """
        side = self._side(side)
        if wiener:
            inverse = 1 / (self.padding**3 * np.maximum(self.tau2, 1e-30))
            return self._inverse(inverse.astype(np.float32)[np.minimum(self._shells, len(inverse) - 1)], side)
        level = self._mean_weight
        gain = _local_mean(self._over(self.weight, level), side)
        spectrum = scipy.fft.rfftn(self._inverse(level, side))
        spectrum = np.where(gain > _LEAST, spectrum / np.maximum(gain, _LEAST), 0)
        return np.asarray(scipy.fft.irfftn(spectrum, s=(side,) * 3), np.float32)

    def precision(self, side: int | None = None) -> NDArray[np.float32]:
        """W, 1 over the noise power of that map in the orthonormal FFT, on the half grid of its cube.

        W = (P/N)³ / (2 N) · ⟨w / (w + w̄)⟩² / ⟨w / (w + w̄)²⟩ with local means, which is (P/N)³ w / (2 N) where w is
        even: the noise of P³ coefficients in N³ voxels, of both components. 0 where nothing was measured, and from the
        last shell on, of which some is missing.

        Raises:
            GeometryError: The side is larger than the padded grid's.

        Example:
            >>> zeros, flat = np.zeros((8, 8, 5), np.complex64), np.full((8, 8, 5), 2, np.float32)
            >>> sums = ReconstructionSums(zeros, flat, 4, 4, 1.5, np.ones(3), np.ones(3))
            >>> sums.precision()[0, 0]
            array([2., 2., 0.], dtype=float32)
        """
        side = self._side(side)
        level = self._mean_weight
        once = self._over(self.weight, level)
        gain, noise = _local_mean(once, side), _local_mean(self._over(once, level), side)
        w = np.where(gain > _LEAST, gain, 0) ** 2 / np.maximum(noise, np.finfo(np.float32).tiny)
        k = np.fft.fftfreq(side) * self.box
        w[_length(k, np.arange(side // 2 + 1) * (self.box / side)) > self.current_size / 2 - 0.5] = 0
        return np.asarray(w * (self.padding**3 / (2 * self.box)), np.float32)

    def _side(self, side: int | None) -> int:
        p = self.data.shape[0]
        if side is not None and not 1 <= side <= p:
            raise GeometryError(f"a side of {side} voxels: the grid has {p}")
        return self.box if side is None else side

    @cached_property
    def _shells(self) -> NDArray[np.int16]:
        """Shell of the box N of every coefficient of the padded grid; one beyond the last of those without data."""
        p = self.data.shape[0]
        shells = np.rint(_length(np.fft.fftfreq(p) * p, np.arange(p // 2 + 1)) / self.padding)
        return np.asarray(np.minimum(shells, self.current_size // 2 + 1), np.int16)

    @cached_property
    def _mean_weight(self) -> NDArray[np.float32]:
        """W̄ of its shell, of every coefficient."""
        sums = np.bincount(self._shells.ravel(), np.maximum(self.weight, 0).ravel())
        mean: NDArray[np.float32] = (sums / np.bincount(self._shells.ravel())).astype(np.float32)[self._shells]
        return mean

    def _over(self, x: NDArray[Any], level: NDArray[np.float32]) -> NDArray[Any]:
        """X / (w + level), and 0 where there are no data."""
        total = np.maximum(self.weight, 0) + level
        known = (self._shells <= self.current_size // 2) & (self.weight > 0)
        return np.where(known, x / np.where(known, total, 1), 0)

    def _inverse(self, level: NDArray[np.float32], side: int) -> NDArray[np.float32]:
        """The map of d / (w + level)."""
        p = self.data.shape[0]
        spectrum = self._over(self.data, level).astype(np.complex64)
        volume = np.fft.fftshift(scipy.fft.irfftn(spectrum, s=(p, p, p))) * np.float32(self.box**2)
        first = p // 2 - side // 2
        cut = slice(first, first + side)
        x = (np.arange(side) - side // 2) / p
        r = np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2)
        # Interpolated between neighbours by their distance, which is a multiplication by sinc².
        return np.asarray(volume[cut, cut, cut] / np.sinc(np.minimum(r, 0.5)) ** 2, np.float32)


def _local_mean(w: NDArray[Any], side: int) -> NDArray[np.float32]:
    """Of a padded half grid, on the half grid of a cube of ``side`` voxels; never negative where w is not.

    A cube smaller than the padded one has coefficients that are means of neighbours.
    """
    p = w.shape[0]
    step = p / side
    reach = math.ceil(step) - 1
    # The mates of columns kx > 0 are those with kx < 0.
    mates = np.roll(w[::-1, ::-1, reach:0:-1], (1, 1), (0, 1))
    w = np.concatenate([mates, w], -1).astype(np.float32)
    k_in, k_out = np.fft.fftfreq(p) * p, np.fft.fftfreq(side) * p
    across = _triangles(k_out, k_in, step)
    along = _triangles(np.arange(side // 2 + 1) * step, np.arange(-reach, p // 2 + 1), step)
    w = np.einsum("ai,ijk->ajk", across, w, optimize=True)
    mean: NDArray[np.float32] = np.einsum("bj,ajk->abk", across, w, optimize=True) @ along.T
    return mean


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

    Example:
        >>> read_reconstruction_sums("run_it001_half1_class001_external_reconstruct.star")
        Traceback (most recent call last):
        cryofm_io.errors.InputFileError: run_it001_half1_class001_external_reconstruct.star: no such file; ...
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
        data=np.asarray(real + 1j * imaginary, np.complex64),
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
