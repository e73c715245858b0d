"""What every way from images to models ends with."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from cryofm_ops import ImagesInBand, Normalization
from cryofm_sampling.errors import CapabilityError
from cryofm_sampling.priors.rescaled import Rescaled
from cryofm_sampling.protocols import VelocityField
from cryofm_sampling.samplers.ab_initio import AbInitio, Models

if TYPE_CHECKING:
    from cryofm_sampling.models.trust import Trust

__all__ = ["RankedModels", "Refining"]


@attrs.frozen(eq=False)
class RankedModels:
    """Models of one set of images, the best first.

    Attributes:
        x: densities on the prior's scale, `(C, n, n, n)`.
        rotations: object to view, `(C, K, 3, 3)`.
        shifts_px: what centres the images, `(C, K, 2)`, (x, y), in voxels.
        scores: `(C,)` each, by name; the first is what the models are ranked by, the smaller the better.
        nfe: network evaluations, of all chains together.
        trust: of class averages, what speaks for the best model and against it.
        image_scales: of class averages, by what each was divided, `(K,)`.
        used: of class averages, the images that fit together and have poses here, by their numbers. None: all.
    """

    x: Tensor
    rotations: Tensor
    shifts_px: Tensor
    scores: dict[str, Tensor]
    nfe: int
    trust: "Trust | None" = None
    image_scales: Tensor | None = None
    used: Tensor | None = None


@attrs.frozen(eq=False)
class Refining:
    """Chains of poses taken through the prior, which fills in models and moves the poses.

    Attributes:
        prior: `Calibrated`, with a `.normalization`.
        data: the images.
        max_shift_px: how far off centre they may be, voxels.
        generator: all randomness.
        evaluated: is told of network evaluations.
    """

    prior: VelocityField
    data: ImagesInBand
    max_shift_px: float
    generator: torch.Generator
    evaluated: Callable[[int], object] | None

    def __call__(self, rotations: Tensor, shifts_px: Tensor, **how: object) -> Models:
        """Models of poses `(C, K, ...)`; ``how`` are settings of `AbInitio`."""
        sampler = AbInitio(max_shift_px=self.max_shift_px, **how)  # type: ignore[arg-type]
        normalization = normalization_of(self.prior)
        return sampler(
            Rescaled(self.prior, normalization, self.evaluated),
            self.data,
            normalization=normalization,
            rotations=rotations,
            shifts_px=shifts_px,
            generator=self.generator,
        )


def normalization_of(prior: VelocityField) -> Normalization:
    """That of the prior.

    Raises:
        CapabilityError: it has none.
    """
    own: Normalization | None = getattr(prior, "normalization", None)
    if own is None:
        raise CapabilityError(f"densities need a prior with a normalization; {type(prior).__name__} has none")
    return own
