"""What is to be said of models: how they show their images, which images were left out and why, and a verdict."""

import math
from collections.abc import Sequence
from typing import Any, Self

import attrs
import torch
from torch import Tensor

from cryofm_ops import FourierMultiplier, FourierProjector, pose_difference_deg
from cryofm_sampling.models.ranked import LeftOut, RankedModels

__all__ = ["Assessment", "Verdict"]

_AGREE_DEG = 15.0  # between models that tell the same story


@attrs.frozen
class Verdict:
    """Whether images determine their poses and the model.

    Attributes:
        agreeing: other chains that came to the same poses.
        chains: of how many.
        predicted_to: resolution to which images are predicted by models that have not seen them; infinite: to none.
        determined: the verdict.
    """

    agreeing: int
    chains: int
    predicted_to: float
    determined: bool

    def __str__(self) -> str:
        said = "the images determine the model" if self.determined else "the model is in doubt"
        return (
            f"{self.agreeing} of {self.chains} other chains came to the same poses within {_AGREE_DEG:g}°; images that "
            f"are left out are predicted to {self.predicted_to:.1f} Å: {said}"
        )


@attrs.frozen(eq=False)
class Assessment:
    """What ranked models come to, beside the images that they were made of.

    Attributes:
        projections: of the best model, of the images that it was made of, `(K, n, n)`.
        correlations: of these images with them, `(K,)`.
        differences_deg: of the poses of each model from those of the best, `(C,)`.
        used: numbers of these images among all.
        left_out: the others, each with the reason.
        doubtful: numbers of used images that the others hardly predict.
        image_scales: of class averages, by what each was divided; 1: it was not.
        predicted: of class averages, how well each used one is predicted by models that have not seen it.
        verdict: of class averages.
    """

    projections: Tensor
    correlations: Tensor
    differences_deg: Tensor
    used: tuple[int, ...]
    left_out: tuple[LeftOut, ...]
    doubtful: tuple[int, ...]
    image_scales: tuple[float, ...] | None
    predicted: tuple[float, ...] | None
    verdict: Verdict | None

    @classmethod
    def of(
        cls,
        models: RankedModels,
        images: Tensor,
        /,
        *,
        voxel_size: float,
        best: Tensor | None = None,
        symmetry: Tensor | None = None,
        ctf: FourierMultiplier | None = None,
    ) -> Self:
        """Of models of images.

        Args:
            models: ranked.
            images: all that they were to be made of, `(K, n, n)`.
            voxel_size: Å.
            best: the first model as it is written, such as with its symmetry; None: as it is.
            symmetry: rotations of its point group, `(G, 3, 3)`.
            ctf: of particles.
        """
        x = (models.x[0] if best is None else best).cpu()
        box = (len(x), len(x), len(x))
        used = tuple(range(len(images))) if models.used is None else tuple(models.used.tolist())
        projections = FourierProjector(models.rotations[0].cpu(), models.shifts_px[0].cpu(), box, ctf)(x)
        pairs = zip(images[list(used)].cpu(), projections, strict=True)
        same = [torch.corrcoef(torch.stack((a.flatten(), b.flatten())).double())[0, 1] for a, b in pairs]
        differences = [pose_difference_deg(models.rotations[0], R, symmetry) for R in models.rotations]
        trust, verdict = models.trust, None
        if trust is not None:
            finest = len(x) * voxel_size / trust.frequency if trust.frequency else math.inf
            determined = trust.determines(len(x), _AGREE_DEG)
            verdict = Verdict(trust.agreeing(_AGREE_DEG), len(trust.differences_deg), finest, determined)
        return cls(
            projections=projections,
            correlations=torch.stack(same),
            differences_deg=torch.stack(differences),
            used=used,
            left_out=models.left_out,
            doubtful=() if trust is None else tuple(used[i] for i in trust.outliers),
            image_scales=None if models.image_scales is None else tuple(models.image_scales.tolist()),
            predicted=None if trust is None else tuple(trust.predicted.tolist()),
            verdict=verdict,
        )

    def lines(self, names: Sequence[str]) -> list[str]:
        """What to tell a user: every image that was put right or left out, and the verdict.

        Args:
            names: of all images.
        """
        said = []
        for i, scale in enumerate(self.image_scales or ()):
            if scale != 1:
                what = (
                    "inverted" if scale == -1 else f"{abs(scale):.2g} times as intense{' and inverted' * (scale < 0)}"
                )
                said.append(f"{names[i]} is {what} beside the others; it was put right")
        said += [f"{names[one.number]} was left out: {one.why}" for one in self.left_out]
        said += [
            f"{names[i]} is hardly predicted by the others; look at it beside its projection" for i in self.doubtful
        ]
        others = self.differences_deg[1:]
        if self.verdict is not None:
            said.append(str(self.verdict))
        elif len(others):
            agree = int((others < _AGREE_DEG).sum())
            verdict = "which speaks for them" if agree else "they are in doubt, and so is the model"
            said.append(f"{agree} of {len(others)} other models have the same poses within {_AGREE_DEG:g}°: {verdict}")
        return said

    def record(self, names: Sequence[str]) -> dict[str, Any]:
        """The same as plain values, for a file.

        Args:
            names: of all images.
        """
        values: dict[str, Any] = {"correlations_of_the_best": [round(c, 4) for c in self.correlations.tolist()]}
        if self.verdict is not None:
            finest = self.verdict.predicted_to
            values |= {
                "chains_that_agree": self.verdict.agreeing,
                "chains": self.verdict.chains,
                "predicted_to_angstrom": None if math.isinf(finest) else round(finest, 2),
                "determined": self.verdict.determined,
            }
            values["left_out"] = [names[one.number] for one in self.left_out]
            values["left_out_because"] = {names[one.number]: one.why for one in self.left_out}
            values["doubtful"] = [names[i] for i in self.doubtful]
            values["image_scales"] = [round(scale, 3) for scale in self.image_scales or ()]
            values["predicted_when_left_out"] = [round(p, 3) for p in self.predicted or ()]
        return values
