"""Sources of crops made of others: simulated crops that imitate measured ones, and mixtures."""

from collections.abc import Sequence
from typing import Protocol

import attrs
import numpy as np
import torch
from torch import Tensor

from cryofm_model._kinds import fraction, positive
from cryofm_model.data.realism import MARGIN, imitate_measured
from cryofm_model.errors import CryoFMError
from cryofm_model.prior import Normalization
from cryofm_model.weights._settings import settings_of_its_kind

__all__ = ["CropSource", "Imitated", "Mixture"]


class CropSource(Protocol):
    """What training draws from: a `MapSet`, or one of the classes here."""

    def crops(self, batch: int, side: int, rng: np.random.Generator, /) -> Tensor:
        """``batch`` crops of ``side``³ voxels in model units, (batch, z, y, x) float32; draws from ``rng`` alone."""
        ...


@attrs.frozen
class Imitated:
    """Simulated crops of which a fraction is shown as an experiment might have, see `imitate_measured`.

    Measured maps need no imitation; mix them in with `Mixture`.

    Attributes:
        simulated: crops of maps made from atoms.
        fraction: of the crops; which ones is drawn for each by itself.
        normalization: of the crops.
        voxel_size: Å.
    """

    simulated: CropSource
    fraction: float = attrs.field(validator=fraction)
    normalization: Normalization = attrs.field(validator=settings_of_its_kind)
    voxel_size: float = attrs.field(validator=positive)

    def crops(self, batch: int, side: int, rng: np.random.Generator) -> Tensor:
        """As `CropSource.crops`."""
        return torch.cat([self._crop(side, rng) for _ in range(batch)])

    def _crop(self, side: int, rng: np.random.Generator) -> Tensor:
        if rng.random() >= self.fraction:
            return self.simulated.crops(1, side, rng)
        mean, std = self.normalization.mean, self.normalization.std
        density = (self.simulated.crops(1, side + 2 * MARGIN, rng)[0] * std + mean).numpy()
        measured = torch.from_numpy(imitate_measured(density, self.voxel_size, rng))
        inner = slice(MARGIN, MARGIN + side)
        return (measured[None, inner, inner, inner] - mean) / std


def _sum_to_1(_: object, __: object, parts: Sequence[tuple[CropSource, float]]) -> None:
    fractions = [share for _, share in parts]
    if not all(positive.holds(share) for share in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise CryoFMError(f"fractions {fractions} of a mixture; they must be positive and sum to 1")


@attrs.frozen
class Mixture:
    """Crops of several sources, the source drawn for each crop by itself.

    ``Mixture([(measured, 0.08), (Imitated(simulated, 0.5, normalization, 1.5), 0.92)])`` is what the bundled prior
    was trained on.

    Attributes:
        parts: sources, each with the fraction of the crops that come from it.

    Raises:
        CryoFMError: the fractions are not positive, or do not sum to 1.
    """

    parts: Sequence[tuple[CropSource, float]] = attrs.field(validator=_sum_to_1)

    def crops(self, batch: int, side: int, rng: np.random.Generator) -> Tensor:
        """As `CropSource.crops`."""
        starts = np.cumsum([0.0] + [share for _, share in self.parts[:-1]])
        crops = []
        for _ in range(batch):
            source, _fraction = self.parts[int(np.searchsorted(starts, rng.random(), side="right")) - 1]
            crops.append(source.crops(1, side, rng))
        return torch.cat(crops)
