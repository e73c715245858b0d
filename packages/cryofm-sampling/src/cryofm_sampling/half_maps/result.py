"""What restoring a map takes and returns."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, Self

import attrs
from torch import Tensor

from cryofm_ops import Envelope, FourierOperator
from cryofm_sampling.half_maps.checks import HeldOut
from cryofm_sampling.half_maps.envelope import EnvelopeFit
from cryofm_sampling.half_maps.model import HalfMapModel
from cryofm_sampling.protocols import Draw
from cryofm_sampling.scale import ScaleFit

__all__ = ["Grid", "Progress", "RestoredHalfMaps", "RestoredMap"]


class Progress(Protocol):
    """Is told how far a restoration is."""

    def __call__(self, stage: str, done: int, total: int | None, /) -> object:
        """`done` of `total` network evaluations of a stage, `"scale"` (whose total is not known) or `"restoring"`."""
        ...


class Grid(Protocol):
    """The way of a map to the voxel size of a prior, and back. Linear; values stay."""

    @property
    def band(self) -> float:
        """The map's Nyquist frequency over that of the prior's grid."""
        ...

    @property
    def voxel_size(self) -> float:
        """Å, of the prior's grid."""
        ...

    def forward(self, x: Tensor, /) -> Tensor:
        """A map `(z, y, x)` on the prior's grid."""
        ...

    def inverse(self, x: Tensor, /) -> Tensor:
        """A volume of the prior's grid on the map's."""
        ...


_ENOUGH = 8  # network evaluations


@attrs.frozen
class SameGrid:
    """A `Grid` of maps that have the prior's voxel size."""

    voxel_size: float
    band: float = 1.0

    def forward(self, x: Tensor, /) -> Tensor:
        """X."""
        return x

    def inverse(self, x: Tensor, /) -> Tensor:
        """X."""
        return x


@attrs.frozen(eq=False)
class RestoredMap:
    """A restored map, and what there is to know of it.

    Volumes are `(z, y, x)`, in the units and on the grid of the data.

    Attributes:
        map: the restored density, 0 in the solvent.
        observed: what it was restored from, its mean that of `map`.
        offset: what was taken from `observed` for that: the value of the solvent in the data.
        each_sample: makes, one after the other, maps that the data allow, as many as were asked for: on the grid of the
            data all of them together may take far more memory than on the prior's.
        scale: between the data and the prior, and the trials by which it was found.
        settings: the algorithm of `map`, and all settings of it.
        sampling: the same of `samples`; empty where there are none.
        nfe: network evaluations spent on `map`.
        missing: the part of Fourier space that was not measured, on the prior's grid, where there is one.
        doubts_of_data: what speaks against what was told of the data, in plain words.
    """

    map: Tensor
    observed: Tensor
    offset: float
    each_sample: Callable[[], Iterator[Tensor]]
    scale: ScaleFit | EnvelopeFit
    settings: Mapping[str, object]
    sampling: Mapping[str, object]
    nfe: int
    missing: FourierOperator | None
    doubts_of_data: tuple[str, ...] = attrs.field(default=(), kw_only=True)

    @property
    def samples(self) -> tuple[Tensor, ...]:
        """All of `each_sample`."""
        return tuple(self.each_sample())

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the result, in plain words; nothing where it is to be believed."""
        return self.doubts_of_data

    def warn_of_doubts(self, *, stacklevel: int = 2) -> None:
        """Say so."""
        for doubt in self.doubts:
            warnings.warn(f"{doubt}: do not trust this map", stacklevel=stacklevel)

    @classmethod
    def of(
        cls,
        draw: Draw,
        observed: Tensor,
        scale: ScaleFit | EnvelopeFit,
        *,
        samples: Sequence[Draw] = (),
        offset: float | None = None,
        missing: FourierOperator | None = None,
        grid: Grid | None = None,
        way: Callable[[Tensor, int], Tensor] | None = None,
        doubts_of_data: tuple[str, ...] = (),
        **others: object,
    ) -> Self:
        """Of what `restore` returned, and what it was restored from.

        Args:
            draw: the map.
            observed: the data.
            scale: by which it was restored.
            samples: each drawn by itself.
            offset: the value of the solvent in the data. None: what makes the mean of both the same.
            missing: the part of Fourier space that was not measured.
            grid: by which all volumes go back from the prior's grid. None: they are where they belong.
            way: of a sample, and which one it is, to where it belongs, another than that of the grid.
            doubts_of_data: what speaks against what was told of the data.
            others: what a subclass has besides.

        >>> from types import SimpleNamespace
        >>> from cryofm_sampling import ScaledNormalization
        >>> import torch
        >>> scale = ScaleFit(ScaledNormalization(SimpleNamespace(mean=0.0, std=1.0), 1.0), (), 0)
        >>> RestoredMap.of(Draw(torch.zeros(4, 4, 4), 8, {}), torch.ones(4, 4, 4), scale).offset
        1.0
        """
        if grid is not None:
            observed = grid.inverse(observed)
            draw, way = attrs.evolve(draw, x=grid.inverse(draw.x)), way or (lambda x, _: grid.inverse(x))
        if offset is None:
            offset = float(observed.mean() - draw.x.mean())  # of restored density it is 0
        return cls(
            map=draw.x,
            observed=observed - offset,
            offset=offset,
            each_sample=lambda: (sample.x if way is None else way(sample.x, k) for k, sample in enumerate(samples)),
            scale=scale,
            settings=draw.settings,
            sampling=_settings_of(samples),
            nfe=draw.nfe,
            missing=missing,
            doubts_of_data=doubts_of_data,
            **others,
        )


@attrs.frozen(eq=False)
class RestoredHalfMaps(RestoredMap):
    """What `restore_half_maps` returns; `observed` is the mean of the halves, `map` is sharp: without its envelope.

    Attributes:
        linear: what the best linear filter makes of `observed`, sharp as well.
        halves: each half restored by itself, with the noise power, envelope and scale that both halves show.
        model: how the halves came about, on the prior's grid: the FSC between them, their noise.
        b_factor: B of the envelope exp(−B ν² / 4) that was removed, Å²; 0 where none was.
        restored_to: Å, from where on the map is the linear filter's; twice the voxel size where it is nowhere.
        self_consistency: radial table of the FSC between the restored halves; no resolution, for they share the prior.
        held_out: what the first half, restored, says of the second.
        amplitude: what the restored maps were multiplied by for one half to predict the other; 1 where the fit of
            scale and envelope has seen to it.
        widening: by what samples were moved away from the map, so that they show the error with which one half,
            restored, predicts the other; 1 without samples.
        solvent_contrast: k by which the data, and the maps, are less dense than in a vacuum, by 1 − k exp(−B_s ν² / 4)
            with B_s = 750 Å²: the solvent's density over the molecule's; 0 where none was sought.
    """

    linear: Tensor
    halves: tuple[Tensor, Tensor]
    model: HalfMapModel
    b_factor: float
    restored_to: float
    self_consistency: Tensor
    held_out: HeldOut
    amplitude: float = 1.0
    widening: float = 1.0
    solvent_contrast: float = 0.0

    @property
    def fsc(self) -> Tensor:
        """Radial table of the FSC between the halves as measured, on the prior's grid."""
        return self.model.fsc

    @property
    def noise_power(self) -> Tensor:
        """Radial table of the noise power of one half, in the orthonormal FFT, on the prior's grid."""
        return self.model.noise_power

    @property
    def slope_of_the_other_half(self) -> float:
        """By what the first half, restored, has to be multiplied to predict the second where they agree: about 1."""
        return self.held_out.slope

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the data as told, and against the result; nothing where it is to be believed.

        Of the result of fewer than 8 evaluations, which leave much undone, nothing is said.
        """
        return self.doubts_of_data + (self.held_out.doubts if self.nfe >= _ENOUGH else ())

    def with_envelope(self, voxel_size: float) -> Self:
        """The same maps as blurred as the data, whose voxel size in Å this is."""
        blur = Envelope(self.b_factor, voxel_size)
        one, two = self.halves
        return attrs.evolve(
            self,
            map=blur(self.map),
            linear=blur(self.linear),
            halves=(blur(one), blur(two)),
            each_sample=lambda: map(blur, self.each_sample()),
        )


def _settings_of(samples: Sequence[Draw]) -> dict[str, object]:
    if not samples:
        return {}
    settings = samples[0].settings
    return {**settings, "algorithm": settings["sampler"], "estimate": "samples", "samples": len(samples)}
