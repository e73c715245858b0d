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

__all__ = ["LeftOut", "RankedModels", "Refining"]


@attrs.frozen
class LeftOut:
    """An image that the others do not predict, and of which no model was made.

    Attributes:
        number: among all images.
        predicted: its correlation with models that have not seen it, over what its noise leaves.
        usual: of half of the images it is more.
    """

    number: int
    predicted: float
    usual: float

    @property
    def why(self) -> str:
        """The reason, in words."""
        return (
            f"models of the others predict it with a correlation of {self.predicted:.2f}, half of the images with "
            f"{self.usual:.2f} or more"
        )


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
        left_out: the others, and why.
    """

    x: Tensor
    rotations: Tensor
    shifts_px: Tensor
    scores: dict[str, Tensor]
    nfe: int
    trust: "Trust | None" = None
    image_scales: Tensor | None = None
    used: Tensor | None = None
    left_out: tuple[LeftOut, ...] = ()


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
