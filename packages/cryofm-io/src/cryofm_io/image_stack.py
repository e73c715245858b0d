"""Images of one particle each, class averages or particles, and what is known of them."""

import warnings
from collections.abc import Iterable
from typing import Any, Self

import attrs
import numpy as np
import scipy
from numpy.typing import NDArray

from cryofm_io.checks import all_finite, positive
from cryofm_io.errors import CryoFMError, GeometryError

__all__ = ["ImageCtf", "ImageStack", "Poses"]

_ORTHONORMAL = 1e-4  # largest entry of R Rᵀ − 1 that passes: above what files of float32 leave


def _as_float32(data: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(data, dtype=np.float32)


def _as_float64(values: Any) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def _strings(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


def _summary(values: NDArray[Any] | None) -> str:
    return "None" if values is None else f"{values.dtype} {values.shape}"


@attrs.frozen(eq=False)
class ImageCtf:
    """The contrast transfer function of each image; all fields are float64 ``(K,)``.

    The names are those of ``cryofm_ops.CTF``.

    Args:
        defocus_u_angstrom: Along the axis of ``defocus_angle_deg``; underfocus is positive.
        defocus_v_angstrom: At right angles to it.
        defocus_angle_deg: From the x axis towards the y axis.
        voltage_kv: Acceleration voltage.
        spherical_aberration_mm: Cs.
        amplitude_contrast: 0 to 1.
        phase_shift_deg: Of a phase plate; 0 without.

    Raises:
        GeometryError: The fields differ in length, or hold NaN or infinity.
    """

    defocus_u_angstrom: NDArray[np.float64] = attrs.field(converter=_as_float64, repr=_summary)
    defocus_v_angstrom: NDArray[np.float64] = attrs.field(converter=_as_float64, repr=_summary)
    defocus_angle_deg: NDArray[np.float64] = attrs.field(converter=_as_float64, repr=_summary)
    voltage_kv: NDArray[np.float64] = attrs.field(converter=_as_float64, repr=_summary)
    spherical_aberration_mm: NDArray[np.float64] = attrs.field(converter=_as_float64, repr=_summary)
    amplitude_contrast: NDArray[np.float64] = attrs.field(converter=_as_float64, repr=_summary)
    phase_shift_deg: NDArray[np.float64] = attrs.field(converter=_as_float64, repr=_summary)

    def __attrs_post_init__(self) -> None:
        shapes = {name: values.shape for name, values in attrs.asdict(self).items()}
        if len(set(shapes.values())) != 1 or self.voltage_kv.ndim != 1:
            raise GeometryError(f"the fields of a CTF are (K,), one value per image, got shapes {shapes}")
        for name, values in attrs.asdict(self).items():
            if not np.isfinite(values).all():
                raise GeometryError(f"{name} of image {int(np.isfinite(values).argmin())} is not finite")

    def __len__(self) -> int:
        return len(self.voltage_kv)


@attrs.frozen(eq=False)
class Poses:
    """Where the object was, image by image.

    Image k shows the object turned by ``rotations[k]``, projected along z and moved by minus ``shifts[k]``.

    Args:
        rotations: Object to view, ``(K, 3, 3)``, acting on (x, y, z).
        shifts: What centres the images, (x, y) in Å, ``(K, 2)``.

    Raises:
        GeometryError: Other shapes, values that are not finite, or matrices that are no rotations.

    Example:
        >>> poses = Poses.from_angles([[10, 20, 30], [0, 90, 0]], shifts=[[1.5, 0], [0, -3]])
        >>> poses.angles_deg.round(6) + 0.0
        array([[10., 20., 30.], [ 0., 90.,  0.]])
    """

    rotations: NDArray[np.float64] = attrs.field(converter=_as_float64, repr=_summary)
    shifts: NDArray[np.float64] = attrs.field(converter=_as_float64, repr=_summary)

    def __attrs_post_init__(self) -> None:
        r, k = self.rotations, len(self.rotations) if self.rotations.ndim else 0
        if r.shape != (k, 3, 3) or self.shifts.shape != (k, 2):
            raise GeometryError(
                f"poses are rotations (K, 3, 3) and shifts (K, 2), got shapes {r.shape} and {self.shifts.shape}"
            )
        error = np.abs(r @ r.mT - np.eye(3)).max((1, 2))
        wrong = ~(error <= _ORTHONORMAL) | ~np.isfinite(self.shifts).all(1)
        wrong[~wrong] = np.linalg.det(r[~wrong]) < 0
        if wrong.any():
            raise GeometryError(
                f"pose {int(wrong.argmax())} is no rotation with a finite shift; check where it is from"
            )

    @classmethod
    def from_angles(cls, angles_deg: Any, shifts: Any) -> Self:
        """From RELION's Euler angles.

        Args:
            angles_deg: (rot, tilt, psi), ``(K, 3)``.
            shifts: What centres the images, (x, y) in Å, ``(K, 2)``.
        """
        angles = _as_float64(angles_deg)
        if angles.ndim != 2 or angles.shape[1] != 3:
            raise GeometryError(f"angles are (K, 3), got shape {angles.shape}")
        turned = scipy.spatial.transform.Rotation.from_euler("ZYZ", angles, degrees=True)
        return cls(turned.as_matrix().mT, shifts)

    @classmethod
    def nearest(cls, rotations: Any, shifts: Any) -> Self:
        """From matrices that are rotations but for rounding: the nearest ones, in double precision."""
        u, _, v = np.linalg.svd(_as_float64(rotations))
        return cls(u @ v, shifts)

    @property
    def angles_deg(self) -> NDArray[np.float64]:
        """RELION's (rot, tilt, psi), ``(K, 3)``; psi is 0 where tilt is 0 or 180 and only one angle is determined."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Gimbal lock")
            angles = scipy.spatial.transform.Rotation.from_matrix(self.rotations.mT).as_euler("ZYZ", degrees=True)
        return np.asarray(angles)

    def __len__(self) -> int:
        return len(self.rotations)


@attrs.frozen(eq=False)
class ImageStack:
    """Square images on one grid.

    Args:
        data: float32 ``(K, y, x)``, at least two images.
        voxel_size: Edge of a pixel in Å.
        names: Where each image is stored, as RELION writes it (``000001@stack.mrcs``); empty if nowhere.
        ctf: Contrast transfer functions, if known.
        poses: Poses, if known.
        shares: Of class averages, the part of all particles that each is made of, ``(K,)``, if known.

    Raises:
        GeometryError: The images are not square or fewer than two or hold NaN, the voxel size is not positive, or there
            are not as many names, CTFs, poses or shares as images.

    Example:
        >>> ImageStack(np.zeros((3, 8, 8)), 1.5)
        ImageStack(data=float32 (3, 8, 8), voxel_size=1.5, names=0 of them, ctf=None, poses=None, shares=None)
    """

    data: NDArray[np.float32] = attrs.field(converter=_as_float32, repr=_summary)
    voxel_size: float = attrs.field(converter=float)
    names: tuple[str, ...] = attrs.field(default=(), converter=_strings, repr=lambda names: f"{len(names)} of them")
    ctf: ImageCtf | None = None
    poses: Poses | None = None
    shares: NDArray[np.float64] | None = attrs.field(
        default=None, converter=attrs.converters.optional(_as_float64), repr=_summary
    )

    def __attrs_post_init__(self) -> None:
        shape = self.data.shape
        if len(shape) != 3 or shape[1] != shape[2]:
            raise GeometryError(f"expected square images (K, y, x), got shape {shape}; crop or pad them")
        if len(self) < 2:
            raise GeometryError(f"{len(self)} image(s): a reconstruction needs at least 2")
        positive("voxel size", self.voxel_size, "Å")
        all_finite("an image stack's values", self.data)
        parts_of = {"names": self.names or None, "CTFs": self.ctf, "poses": self.poses, "shares": self.shares}
        for what, parts in parts_of.items():
            if parts is not None and len(parts) != len(self):
                raise GeometryError(f"{len(self)} images and {len(parts)} {what}; there must be as many")

    def __len__(self) -> int:
        return len(self.data)

    def chosen(self, which: Any) -> Self:
        """Some of the images, with what is known of them.

        Args:
            which: Their numbers, or for each image whether it is one of them.
        """
        at = np.arange(len(self))[which]
        return attrs.evolve(
            self,
            data=self.data[at],
            names=[self.names[i] for i in at] if self.names else (),
            ctf=self.ctf and ImageCtf(**{field: values[at] for field, values in attrs.asdict(self.ctf).items()}),
            poses=self.poses and Poses(self.poses.rotations[at], self.poses.shifts[at]),
            shares=None if self.shares is None else self.shares[at],
        )

    def largest(self, count: int | None = None, *, least: float = 0.1) -> Self:
        """The class averages of the most particles, the largest first.

        Args:
            count: How many at most. None: all.
            least: Of a class's fair share of the particles, below which it is taken as empty and left out.

        Raises:
            CryoFMError: The shares are not known.
        """
        if self.shares is None:
            raise CryoFMError("nothing tells how many particles each class has (rlnClassDistribution)")
        enough = self.shares >= least / len(self)
        return self.chosen([i for i in np.argsort(-self.shares, kind="stable") if enough[i]][:count])
