"""A prior over density maps: a velocity network and what must be known to use it."""

from collections.abc import Mapping
from typing import Protocol, Self

import attrs
import torch
from attrs.validators import optional
from torch import Tensor, nn

from cryofm_model._kinds import finite, flag, not_negative, positive, whole
from cryofm_model.errors import CryoFMError

__all__ = [
    "CalibratedConditionalPrior",
    "CalibratedPrior",
    "ConditionalPrior",
    "Normalization",
    "Prior",
    "SpectrallyCalibratedPrior",
]


@attrs.frozen
class Normalization:
    """Model units are (density − mean) / std, with the density scaled so that its 99.999th percentile is 1.

    Attributes:
        mean: of the scaled density.
        std: likewise.
        clip: whether the prior was trained on densities clipped to 0 and that percentile; without it negative
            density and outliers stay.

    >>> Normalization(mean=0.04, std=0.09)
    Normalization(mean=0.04, std=0.09, clip=True)
    """

    mean: float = attrs.field(default=0.04, validator=finite)
    std: float = attrs.field(default=0.09, validator=positive)
    clip: bool = attrs.field(default=True, validator=flag, kw_only=True)


class _Statistics(Protocol):
    """What `cryofm_sampling.calibrate` returns, and `CalibratedPrior` is."""

    @property
    def signal_power(self) -> Tensor: ...

    @property
    def denoising_error(self) -> Tensor: ...


@attrs.frozen(eq=False)
class Prior:
    """A velocity field v(x, t) over volumes in model units (it satisfies cryofm-sampling's ``VelocityField``).

    Attributes:
        network: called with (batch, z, y, x) and times (batch,).
        normalization: between densities and model units.
        voxel_size: at which it was trained, Å.
        box: a good side for tiles, voxels.
        about: whatever else is known of it: licence, training data, validation loss.

    >>> from cryofm_model import load_prior
    >>> prior = load_prior("cryofm-tiny")
    >>> prior.voxel_size
    1.5
    >>> x_t, t = torch.randn(2, 32, 32, 32), torch.tensor(0.5)
    >>> x_hat_0 = x_t - t * prior(x_t, t)
    >>> x_hat_0.shape
    torch.Size([2, 32, 32, 32])
    """

    network: nn.Module = attrs.field(repr=False)
    normalization: Normalization
    voxel_size: float = attrs.field(validator=positive)
    box: int = attrs.field(validator=whole(1, 2**16))
    about: Mapping[str, str] = attrs.field(factory=dict, repr=False, kw_only=True)

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Velocity dx/dt at ``x`` (*batch, z, y, x), ``t`` in [0, 1] scalar or (*batch,); the weights' precision."""
        return self._velocity(x, t)

    def _velocity(self, x: Tensor, t: Tensor, *more: object) -> Tensor:
        """What the network makes of flat batches, and of ``more``."""
        weight = next(self.network.parameters())
        flat = x.reshape(-1, *x.shape[-3:]).to(weight)
        times = t.to(weight.device).expand(x.shape[:-3]).reshape(-1)  # a network may need them finer than it is
        velocity: Tensor = self.network(flat, times, *more)
        return velocity.reshape(x.shape).to(x)

    @property
    def multiple(self) -> int:
        """Every side of a box must be a multiple of this."""
        return int(self.network.config.multiple)  # type: ignore[union-attr, arg-type]

    @property
    def local(self) -> bool:
        """Whether the network sees a neighbourhood alone, so that a box of any size is as good as its own."""
        return bool(getattr(self.network.config, "local", False))

    def to(self, device: torch.device | str) -> Self:
        """The same prior on another device; the network moves, as torch's modules do."""
        return attrs.evolve(self, network=self.network.to(device))

    def with_statistics(self, measured: _Statistics) -> "CalibratedPrior":
        """The same prior with the tables that ``cryofm_sampling.calibrate`` measured for it.

        A `SpectrallyCalibratedPrior` if they have a ``denoising_spectrum``.
        """
        kind = SpectrallyCalibratedPrior if hasattr(measured, "denoising_spectrum") else CalibratedPrior
        tables = {field.name: getattr(measured, field.name) for field in attrs.fields(kind)[len(attrs.fields(Prior)) :]}
        return kind(**{field.name: getattr(self, field.name) for field in attrs.fields(Prior)}, **tables)


@attrs.frozen(eq=False)
class CalibratedPrior(Prior):
    """A prior whose statistics have been measured (it satisfies cryofm-sampling's ``Calibrated`` as well).

    A class of its own, so that a prior without statistics has no such attributes, and ``isinstance`` tells.

    Attributes:
        signal_power: radial power of the data in model units, orthonormal FFT, from frequency 0 to Nyquist.
        denoising_error: (n, 2), times and the mean square error of x̂_0 per voxel at them.
    """

    signal_power: Tensor = attrs.field(repr=False)
    denoising_error: Tensor = attrs.field(repr=False)

    def to(self, device: torch.device | str) -> Self:
        """As `Prior.to`; the tables move too."""
        power, error = self.signal_power.to(device), self.denoising_error.to(device)
        return attrs.evolve(super().to(device), signal_power=power, denoising_error=error)


@attrs.frozen(eq=False)
class SpectrallyCalibratedPrior(CalibratedPrior):
    """A prior whose denoising error was measured per shell (it satisfies ``SpectrallyCalibrated`` as well).

    Attributes:
        denoising_spectrum: (n, 1 + shells), times and radial tables of the mean square error of x̂_0 per coefficient.
    """

    denoising_spectrum: Tensor = attrs.field(repr=False)

    def to(self, device: torch.device | str) -> Self:
        """As `Prior.to`; the tables move too."""
        return attrs.evolve(super().to(device), denoising_spectrum=self.denoising_spectrum.to(device))


@attrs.frozen(eq=False, slots=False)
class ConditionalPrior(Prior):
    """A prior that may be shown a volume: v(x, t | y) (it satisfies cryofm-sampling's ``ConditionalVelocityField``).

    Called as any other prior it is shown nothing. ``cryofm_sampling.Conditioned`` makes a velocity field of it and a
    volume.

    Attributes:
        tag: which of several kinds of conditions it was trained on is meant, where nobody says otherwise; None where
            its network knows no kinds.
        weight: of classifier-free guidance, w in v = (1 + w) v(x | y) − w v(x), as its makers advise.
    """

    tag: int | None = attrs.field(default=None, kw_only=True, validator=optional(whole(0, 2**16)))
    weight: float = attrs.field(default=0.0, kw_only=True, validator=not_negative)

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """As `Prior.__call__`, shown nothing."""
        return self.given(x, t, None, None)

    def given(self, x: Tensor, t: Tensor, volume: Tensor | None, tag: int | None, /) -> Tensor:
        """Velocity at ``x`` and ``t`` where ``volume``, in model units and of a shape that expands to x's, is shown.

        Args:
            x: (*batch, z, y, x).
            t: scalar or (*batch,).
            volume: None shows nothing.
            tag: of the kind of condition; None: the prior's own.

        Raises:
            CryoFMError: a tag that the network does not know.
        """
        tags = getattr(self.network.config, "tags", 0)
        tag = self.tag if tag is None else tag
        if tag is not None and not 0 <= tag < tags:
            raise CryoFMError(f"tag {tag}: the network of this prior knows {tags} tags")
        condition = None
        if volume is not None:
            shown = volume.expand(x.shape).reshape(-1, *x.shape[-3:]).to(next(self.network.parameters()))
            condition = torch.stack([shown, torch.ones_like(shown)], 1)
        return self._velocity(x, t, condition, *([] if tag is None else [tag]))

    def with_statistics(self, measured: _Statistics) -> "CalibratedConditionalPrior":
        """The same prior with the three tables that ``cryofm_sampling.calibrate`` measured for it."""
        own = {field.name: getattr(self, field.name) for field in attrs.fields(ConditionalPrior)}
        tables = ("signal_power", "denoising_error", "denoising_spectrum")
        if lacking := [name for name in tables if not hasattr(measured, name)]:
            raise CryoFMError(f"statistics without {', '.join(lacking)}; measure them with cryofm_sampling.calibrate")
        return CalibratedConditionalPrior(**own, **{name: getattr(measured, name) for name in tables})


@attrs.frozen(eq=False, slots=False)
class CalibratedConditionalPrior(ConditionalPrior, SpectrallyCalibratedPrior):
    """A conditional prior whose statistics have been measured, mostly with a volume shown."""
