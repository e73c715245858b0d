"""Training crops: places in a set of maps, turned at random.

What `MapSet.crops` returns depends on its ``rng`` alone, never on what was drawn before: a training that makes
``rng = np.random.default_rng([seed, step, place in the batch])`` anew for every crop gets the same crops whether it was
interrupted or not, and whichever thread, process or machine cuts them.
"""

import errno
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryofm_model._kinds import one_of, positive, whole
from cryofm_model.data.augment import cut, cut_rotated, random_rotation, rot24
from cryofm_model.data.map_cache import cached, file_identity
from cryofm_model.data.simulated import is_atomic_model, simulate_variant
from cryofm_model.errors import CryoFMError
from cryofm_model.prior import Normalization
from cryofm_model.weights._settings import check_settings

__all__ = ["MapSet", "Place", "Turn"]

Place = Literal["density", "uniform", "centre"]
Turn = Literal["none", "rot24", "so3"]

_OCCUPIED = 0.13  # of full density: above it a voxel holds some
_SMALLEST = {"density": 500, "uniform": 500, "centre": 100}  # such voxels of a map worth training on: a part, a whole
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_COARSEST = 1 / 250  # of full density: the steps in which float16 may show it
_CACHE_VERSION = 1  # to be raised when what `_in_model_units` or `simulate_density` returns changes


def _fit_for_maps(_: object, __: object, normalization: Normalization) -> None:
    """A normalisation under which float16 tells densities apart."""
    check_settings(normalization)
    mean, std = normalization.mean, normalization.std
    with np.errstate(all="ignore"):
        step = float(np.spacing(np.float16(max(abs(mean), abs(1 - mean)) / std))) * std
    if not step <= _COARSEST:
        raise CryoFMError(
            f"{normalization}: maps in model units are float16, which shows full density in steps of {step:.2g}; take "
            "a mean between 0 and 1 and a std that is not far from that of densities"
        )


@attrs.frozen(eq=False)
class MapSet:
    """Maps from which crops are drawn, with the augmentations of paper F.1.

    The paper's four are ``place="centre", turn="none"`` (centre crop), ``place="uniform", turn="none"`` (random
    crop), and the latter with ``turn="rot24"`` or ``turn="so3"`` (random rotation, which is the paper's choice; about
    a hundredth as fast, see benchmarks/README.md). CryoFM-L was trained with ``place="centre", turn="so3"``.
    ``place="density"`` is ours: most of a map is solvent, and so are most crops at uniform places.

    Attributes:
        maps: model units, float16, (z, y, x), all at the prior's voxel size; in memory or mapped into it.
        normalization: to model units. Which voxels hold density does not depend on it (but for the rounding of
            float16): those above 0.13 of full density.
        place: ``"density"`` centres a crop on a random voxel with density, moved by up to a quarter of its side along
            each axis: somewhere in the density's mask dilated by side / 4, so that no crop is empty.
            ``"uniform"`` takes any place within the map, each as likely, with density or without; along an axis that
            is shorter than the crop, any at which the crop holds all of it.
            ``"centre"`` takes the middle of the map.
        turn: ``"none"``, ``"rot24"`` (axes swapped and flipped) or ``"so3"`` (any rotation, by cubic splines).
        weights: how often each map is chosen: (voxels with density)^0.6, so that the many small ones do not
            crowd out the large, nor the reverse.

    Raises:
        CryoFMError: there are no maps, one of them has no density, or float16 is too coarse for the normalisation.
    """

    maps: Sequence[NDArray[np.float16]]
    normalization: Normalization = attrs.field(validator=_fit_for_maps)
    place: Place = attrs.field(default="density", kw_only=True, validator=one_of("density", "uniform", "centre"))
    turn: Turn = attrs.field(default="rot24", kw_only=True, validator=one_of("none", "rot24", "so3"))
    weights: NDArray[np.float64] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        level = _level(self.normalization)
        weights = np.array([np.count_nonzero(m > level) for m in self.maps], dtype=float) ** 0.6
        if not self.maps or not weights.all():
            raise CryoFMError(f"no density to train on in {int((weights == 0).sum())} of {len(self.maps)} maps")
        object.__setattr__(self, "weights", weights / weights.sum())

    @classmethod
    def from_files(
        cls,
        paths: Sequence[Path],
        normalization: Normalization,
        voxel_size: float,
        *,
        cache: Path | None = None,
        variants: int = 2,
        place: Place = "density",
        turn: Turn = "rot24",
    ) -> "MapSet":
        """Read maps, or simulate them from atomic models, and bring them to ``voxel_size`` and model units.

        A map is clipped to [0, p99.999] and scaled to 0..1 (paper 4.1). Maps with fewer than 500 voxels of
        density (100 where whole particles are taken, ``place="centre"``) are left out. Needs the extra ``[train]``.

        Args:
            paths: maps (MRC, CCP4), and atomic models (.pdb, .ent, .cif, .mmcif, .gz too).
            normalization: to model units.
            voxel_size: Å.
            cache: folder that keeps what was made of each file, for the next run and for other processes; the maps
                are then mapped into memory, one copy for all processes.
            variants: maps simulated of each atomic model, see `simulate_variant`.
            place: see `MapSet`.
            turn: see `MapSet`.

        Raises:
            CryoFMError: nothing to train on is left, or a setting is out of range.

        Warns:
            cryofm_io.MapWarning: a file cannot be used, and is left out; its name and why.
        """
        from cryofm_io import CryoFMError as InputError
        from cryofm_io import MapWarning, MissingExtraError

        _fit_for_maps(None, None, normalization)
        positive.check("voxel_size", voxel_size)
        whole(1).check("variants", variants)
        one_of(*_SMALLEST).check("place", place)
        maps, warning, level = [], "", _level(normalization)
        jobs = [(path, variant) for path in paths for variant in range(variants if is_atomic_model(path) else 1)]
        for path, variant in jobs:
            make = partial(_in_model_units, path, variant, normalization, voxel_size)
            try:
                if cache is None or not path.is_file():
                    z = make()  # which says what is wrong with a path that is no file
                else:
                    settings: list[object] = [
                        normalization.mean,
                        normalization.std,
                        voxel_size,
                        variant,
                        _CACHE_VERSION,
                    ]
                    settings += [] if normalization.clip else ["unclipped"]
                    z = cached(cache, [*file_identity(path), *settings], make)
                if (occupied := np.count_nonzero(z > level)) < (smallest := _SMALLEST[place]):
                    raise InputError(f"{occupied} voxels with density, {smallest} are worth training on")
            except MissingExtraError:  # which is no fault of the file
                raise
            except (InputError, CryoFMError, OSError, MemoryError) as error:
                if isinstance(error, OSError) and error.errno in _NO_ROOM:  # for what is kept of it
                    raise
                warning = f"{path.name} is left out: {error}"
                warnings.warn(warning, MapWarning, stacklevel=2)
            else:
                maps.append(z)
        if not maps:
            found = f"no density to train on in {len(paths)} files; give maps or atomic models"
            raise CryoFMError(f"{found} ({warning})" if warning else found)
        return cls(maps, normalization, place=place, turn=turn)

    @property
    def empty(self) -> float:
        """What solvent is in model units; crops that reach beyond their map are filled with it."""
        return -self.normalization.mean / self.normalization.std

    def crops(self, batch: int, side: int, rng: np.random.Generator) -> Tensor:
        """``batch`` crops of ``side``³ voxels, (batch, z, y, x) float32."""
        chosen = rng.choice(len(self.maps), batch, p=self.weights)
        return torch.from_numpy(np.stack([self._crop(self.maps[index], side, rng) for index in chosen]))

    def _crop(self, density: NDArray[np.float16], side: int, rng: np.random.Generator) -> NDArray[np.float32]:
        if self.place == "centre":
            centre = np.array(density.shape) // 2
        elif self.place == "uniform":
            room = np.array(density.shape) - side  # where the first voxel may be
            centre = rng.integers(np.minimum(room, 0), np.maximum(room, 0) + 1) + side // 2
        else:
            centre = _occupied_voxel(density, _level(self.normalization), rng)
            centre += rng.integers(-(side // 4), side // 4 + 1, 3)
        if self.turn == "so3":
            return cut_rotated(density, centre, side, random_rotation(rng), self.empty)
        crop = cut(density, centre, (side,) * 3, self.empty)
        return rot24(crop, rng) if self.turn == "rot24" else crop


def _level(normalization: Normalization) -> float:
    """What `_OCCUPIED` is in model units; 1.0 exactly for a mean of 0.04 and a std of 0.09."""
    return (_OCCUPIED - normalization.mean) / normalization.std


def _in_model_units(path: Path, variant: int, normalization: Normalization, voxel_size: float) -> NDArray[np.float16]:
    from cryofm_io import normalise_clean, read_map, to_grid

    if is_atomic_model(path):
        density = simulate_variant(path, variant, voxel_size)
    else:
        density = to_grid(read_map(path), voxel_size)[0]
    scaled, _ = normalise_clean(density, clip=normalization.clip)
    z = (scaled - normalization.mean) / normalization.std
    return np.asarray(z, dtype=np.float16)


def _occupied_voxel(density: NDArray[np.float16], level: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """One of the voxels above ``level``, each as likely. Found by trial: a table of them is larger than the maps."""
    values = density.reshape(-1)
    while True:
        tried = rng.integers(values.size, size=32)
        occupied = tried[values[tried] > level]
        if occupied.size:
            return np.array(np.unravel_index(occupied[0], density.shape))
