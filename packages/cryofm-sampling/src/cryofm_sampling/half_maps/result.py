"""What restoring a map returns."""

from collections.abc import Mapping, Sequence
from typing import Protocol, Self

import attrs
from torch import Tensor

from cryofm_ops import FourierOperator
from cryofm_sampling.half_maps.model import HalfMapModel
from cryofm_sampling.protocols import Draw
from cryofm_sampling.scale import ScaleFit

__all__ = ["Progress", "RestoredHalfMaps", "RestoredMap"]


class Progress(Protocol):
    """Is told how far a restoration is."""

    def __call__(self, stage: str, done: int, total: int | None, /) -> object:
        """`done` of `total` network evaluations of a stage, `"scale"` (whose total is not known) or `"restoring"`."""
        ...


@attrs.frozen(eq=False)
class RestoredMap:
    """A restored map, and what there is to know of it.

    Volumes are `(z, y, x)`, in the units and on the grid of the data.

    Attributes:
        map: the restored density, 0 in the solvent.
        observed: what it was restored from, its mean that of `map`.
        offset: what was taken from `observed` for that: the value of the solvent in the data.
        samples: maps that the data allow, as many as were asked for.
        scale: between the data and the prior, and the trials by which it was found.
        settings: the algorithm of `map`, and all settings of it.
        sampling: the same of `samples`; empty where there are none.
        nfe: network evaluations spent on `map`.
        missing: the part of Fourier space that was not measured, where there is one.
    """

    map: Tensor
    observed: Tensor
    offset: float
    samples: tuple[Tensor, ...]
    scale: ScaleFit
    settings: Mapping[str, object]
    sampling: Mapping[str, object]
    nfe: int
    missing: FourierOperator | None

    @classmethod
    def of(
        cls,
        draw: Draw,
        observed: Tensor,
        scale: ScaleFit,
        *,
        samples: Sequence[Draw] = (),
        offset: float | None = None,
        missing: FourierOperator | None = None,
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
            others: what a subclass has besides.

        >>> from types import SimpleNamespace
        >>> from cryofm_sampling import ScaledNormalization
        >>> import torch
        >>> scale = ScaleFit(ScaledNormalization(SimpleNamespace(mean=0.0, std=1.0), 1.0), (), 0)
        >>> RestoredMap.of(Draw(torch.zeros(4, 4, 4), 8, {}), torch.ones(4, 4, 4), scale).offset
        1.0
        """
        if offset is None:
            offset = float(observed.mean() - draw.x.mean())  # of restored density it is 0
        return cls(
            map=draw.x,
            observed=observed - offset,
            offset=offset,
            samples=tuple(sample.x for sample in samples),
            scale=scale,
            settings=draw.settings,
            sampling=_settings_of(samples),
            nfe=draw.nfe,
            missing=missing,
            **others,
        )


@attrs.frozen(eq=False)
class RestoredHalfMaps(RestoredMap):
    """What `restore_half_maps` returns; `observed` is the mean of the halves.

    Attributes:
        linear: what the best linear filter makes of `observed`.
        halves: each half restored by itself, with the noise power and the scale that both halves show.
        model: how the halves came about: the FSC between them, their noise.
        self_consistency: radial table of the FSC between the restored halves; no resolution, for they share the prior.
        slope_of_the_other_half: by what the first half, restored, has to be multiplied to predict the second where they
            agree: about 1; far from it the scale is wrong.
    """

    linear: Tensor
    halves: tuple[Tensor, Tensor]
    model: HalfMapModel
    self_consistency: Tensor
    slope_of_the_other_half: float

    @property
    def fsc(self) -> Tensor:
        """Radial table of the FSC between the halves as measured."""
        return self.model.fsc

    @property
    def noise_power(self) -> Tensor:
        """Radial table of the noise power of one half, in the orthonormal FFT."""
        return self.model.noise_power


def _settings_of(samples: Sequence[Draw]) -> dict[str, object]:
    if not samples:
        return {}
    settings = samples[0].settings
    return {**settings, "algorithm": settings["sampler"], "estimate": "samples", "samples": len(samples)}
