"""Several data sets of one volume: log p(y₁, y₂, … | x) = Σ log p(yᵢ | x).

Data that are diagonal in Fourier space are one such set: W = Σ Wᵢ and ỹ = Σ Wᵢ ỹᵢ / W. Linear Gaussian data are one,
too: operators, observations and noises one above the other. What is left has a `log_prob`.

To condition on all of it, the Fourier-diagonal part is taken into the prior, which stays stationary:
N(μ, V) × it = N(μ', V'), in closed form. Then come the linear data alone, by conjugate gradients, or together with the
rest, by the mode (`Proximal`).
"""

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import attrs
import torch
from torch import Tensor

from cryofm_ops.errors import GridMismatchError, OperatorError
from cryofm_ops.fourier.grid import Shape, half_shape
from cryofm_ops.likelihoods._summable import Summable
from cryofm_ops.likelihoods.fourier_gaussian import FourierGaussian
from cryofm_ops.likelihoods.linear_gaussian import LinearGaussian
from cryofm_ops.likelihoods.model_units import in_units_of
from cryofm_ops.likelihoods.proximal import Proximal
from cryofm_ops.noise.block import BlockNoise
from cryofm_ops.normal import Normal
from cryofm_ops.protocols import Averaging, Conjugate, FourierDiagonal, Likelihood, LinearOperator

__all__ = ["Joint", "joint"]


@attrs.frozen(eq=False)
class Joint(Summable):
    """Data of several kinds about one volume: a `Likelihood` and a `Conjugate`; made by `joint`.

    Attributes:
        spectral: all that is diagonal in Fourier space, or None.
        others: the rest; where that is one `Conjugate`, conditioning is exact, otherwise it finds the mode.
        tolerance: of that search, as `max_iterations` is (see `Proximal`).
    """

    spectral: FourierGaussian | None
    others: tuple[Any, ...]
    tolerance: float = 1e-2
    max_iterations: int = 100

    @property
    def batched(self) -> bool:
        """Whether `condition` takes a variance for each volume of a batch."""
        return bool(getattr(self._rest(), "batched", False))

    @property
    def dtype(self) -> torch.dtype | None:
        """The finest of those of the parts that have one."""
        found = [part.dtype for part in self._all() if getattr(part, "dtype", None) is not None]
        return reduce(torch.promote_types, found) if found else None

    def log_prob(self, x: Tensor, /) -> Tensor:
        """The sum of the parts', `(*batch,)`."""
        found: Tensor = reduce(torch.add, [part.log_prob(x) for part in self._all()])
        return found

    def condition(self, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """N(mean, variance) given all the data.

        `mean` is `(*batch, z, y, x)`; `variance` is a number (white) or per coefficient (half grid).
        """
        return self._rest().condition(*self._with_spectral(mean, variance))

    def condition_from(self, start: Tensor, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """As `condition`, sought from `start` where it is sought."""
        rest = self._rest()
        found = self._with_spectral(mean, variance)
        nearer = getattr(rest, "condition_from", None)
        posterior: Normal = rest.condition(*found) if nearer is None else nearer(start, *found)
        return posterior

    def mean_from(self, start: Tensor, mean: Tensor, variance: Tensor | float, /) -> Normal:
        """As `condition_from`, with the mean where that finds the mode."""
        rest = self._rest()
        if not isinstance(rest, Averaging):
            return self.condition_from(start, mean, variance)
        return rest.mean_from(start, *self._with_spectral(mean, variance))

    def _all(self) -> tuple[Any, ...]:
        return self.others if self.spectral is None else (self.spectral, *self.others)

    def _rest(self) -> Conjugate:
        first = self.others[0]
        if len(self.others) == 1 and isinstance(first, Conjugate):
            return first
        return Proximal(Joint(None, self.others), self.tolerance, self.max_iterations)

    def _with_spectral(self, mean: Tensor, variance: Tensor | float) -> tuple[Tensor, Tensor | float]:
        if self.spectral is None:
            return mean, variance
        posterior = self.spectral.condition(mean, variance)
        assert not callable(posterior.variance)
        return posterior.mean, posterior.variance


@attrs.frozen(eq=False)
class _Blocks:
    """x ↦ (A x, B x, …), flattened: the operator that belongs to a `BlockNoise`."""

    parts: tuple[LinearOperator, ...]
    noise: BlockNoise

    def __call__(self, x: Tensor, /) -> Tensor:
        made = [part(x) for part in self.parts]
        for part, one, shape in zip(self.parts, made, self.noise.shapes, strict=True):
            if one.shape[x.ndim - 3 :] != shape:
                raise GridMismatchError(
                    f"{type(part).__name__} makes {tuple(one.shape[x.ndim - 3 :])} of a volume "
                    f"{tuple(x.shape[-3:])}, but its observation has shape {shape}"
                )
        return self.noise.joined(made)

    def adjoint(self, y: Tensor, /) -> Tensor:
        back = [part.adjoint(one) for part, one in zip(self.parts, self.noise.split(y), strict=True)]
        return reduce(torch.add, back)


def joint(likelihoods: Iterable[Any], *, shape: Shape | None = None) -> FourierGaussian | LinearGaussian | Joint:
    """The likelihood of several independent data sets of one volume; `l1 + l2` is `joint([l1, l2])`.

    Args:
        likelihoods: any; what is diagonal in Fourier space is merged in closed form, linear Gaussian data are solved
            for together, the rest is summed. The tolerance of a `Proximal` among them is kept.
        shape: the box of the volume. With it, data that are diagonal in Fourier space may have boxes of their own
            (`FourierGaussian`): maps of one field of view at several voxel sizes. What of them the volume's grid does
            not hold, or they hold only at their Nyquist frequency, is left out.

    Returns: a `FourierGaussian` or a `LinearGaussian` where all are such, otherwise a `Joint`.

    Raises `OperatorError` for an empty list, and for one that is `Blind`, in model units or has nothing to add;
    `GridMismatchError` for boxes that differ.

    >>> from cryofm_ops import Identity, MissingWedge, WhiteNoise, gaussian_likelihood
    >>> y = torch.ones(4, 4, 4)
    >>> two = [gaussian_likelihood(MissingWedge(-60, 60, axis), WhiteNoise(1.0), y) for axis in "yx"]
    >>> joint(two).spectral_precision()[0, 0]
    tensor([2., 2., 2.])
    """
    likelihoods = list(likelihoods)
    parts = [part for likelihood in likelihoods for part in _parts(likelihood)]
    if not parts:
        raise OperatorError("likelihoods is empty: there are no data to join")
    converted = next((part for part in parts if in_units_of(part) is not None), None)
    if converted is not None:
        raise OperatorError("a likelihood in model units cannot be added: add those in data units, and convert the sum")
    diagonal = [part for part in parts if isinstance(part, FourierDiagonal)]
    others = [part for part in parts if not isinstance(part, FourierDiagonal)]
    spectral = _merged(diagonal, shape) if diagonal else None
    linear = [part for part in others if type(part) is LinearGaussian]
    if len(linear) > 1:
        others = [_stacked(linear), *(part for part in others if type(part) is not LinearGaussian)]
    if spectral is not None and not others:
        return spectral
    if len(others) == 1 and spectral is None and isinstance(others[0], LinearGaussian):
        return others[0]
    for part in others:
        if not isinstance(part, Likelihood) and not (isinstance(part, Conjugate) and len(others) == 1):
            blind = ": its poses are unknown, so refine it first" if hasattr(part, "refine") else ""
            raise OperatorError(f"{type(part).__name__} has no log_prob to add{blind}")
    searched = [one for one in likelihoods if isinstance(one, Joint | Proximal)] or [Joint(None, ())]
    tolerance, most = min(one.tolerance for one in searched), max(one.max_iterations for one in searched)
    return Joint(spectral, tuple(others), tolerance, most)


def _parts(likelihood: Any) -> list[Any]:
    """Those of a sum."""
    if not isinstance(likelihood, Joint):
        return [likelihood.likelihood if isinstance(likelihood, Proximal) else likelihood]
    return [part for part in (likelihood.spectral, *likelihood.others) if part is not None]


def _merged(parts: Sequence[FourierDiagonal], shape: Shape | None) -> FourierGaussian:
    boxes = {part.shape for part in parts if isinstance(part, FourierGaussian)}
    if shape is None:
        if len(boxes) > 1:
            raise GridMismatchError(
                f"the data have boxes {sorted(boxes)}; where they show one field of view, give joint(..., shape=) the "
                "volume's"
            )
        if not boxes:
            raise GridMismatchError("half grids do not tell their box; give joint(..., shape=)")
        shape = boxes.pop()
    spectra = [_on_grid(part, shape) for part in parts]
    if len(spectra) == 1:
        return FourierGaussian(*spectra[0], shape)
    W = torch.stack(torch.broadcast_tensors(*(w for w, _ in spectra)))  # type: ignore[no-untyped-call]
    y = torch.stack(torch.broadcast_tensors(*(data for _, data in spectra)))  # type: ignore[no-untyped-call]
    hard = W.isinf()  # beside which all others say nothing
    share = torch.where(hard.any(0), hard.to(W), W)
    data = torch.where(W > 0, share * y, 0).sum(0) / torch.where(share.sum(0) > 0, share.sum(0), 1)
    return FourierGaussian(W.sum(0), data, shape)


def _on_grid(part: FourierDiagonal, shape: Shape) -> tuple[Tensor, Tensor]:
    """W and ỹ on the half grid of `shape`; of a band-limited volume on another grid of the same extent."""
    W, y = part.spectral_precision(), part.spectral_data()
    y = torch.where(W > 0, y, 0)
    W = W.to(y.real.dtype)
    box = part.shape if isinstance(part, FourierGaussian) else shape
    if tuple(W.shape[-3:]) != half_shape(box):
        raise GridMismatchError(
            f"{type(part).__name__} is on a half grid {tuple(W.shape[-3:])}, the volume {shape} has {half_shape(shape)}"
        )
    if box == shape:
        return W, y
    scale = math.prod(shape) / math.prod(box)  # of an orthonormal transform's squares
    for axis, (n, m) in enumerate(zip(box, shape, strict=True), -3):
        k = torch.arange(
            (min(n, m) - 1) // 2 + 1, device=W.device
        )  # the frequencies, Nyquist's left out, that both have
        if axis != -1:
            k = torch.cat((k, -k[1:].flip(0)))
        n_half, m_half = (n, m) if axis != -1 else (n // 2 + 1, m // 2 + 1)
        W, y = (
            values.new_zeros([*values.shape[:axis], m_half, *values.shape[axis:][1:]]).index_copy(
                axis, k % m_half, values.index_select(axis, k % n_half)
            )
            for values in (W, y)
        )
    return W / scale, y * scale**0.5


def _stacked(parts: Sequence[LinearGaussian]) -> LinearGaussian:
    noise = BlockNoise(tuple(part.noise for part in parts), tuple(tuple(part.observation.shape) for part in parts))
    return LinearGaussian(
        _Blocks(tuple(part.operator for part in parts), noise),
        noise,
        noise.joined([part.observation for part in parts]),
        tolerance=min(part.tolerance for part in parts),
        max_iterations=max(part.max_iterations for part in parts),
    )
