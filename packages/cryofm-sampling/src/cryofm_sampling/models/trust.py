"""How far to trust a model: what independent chains came to, and whether it predicts images that it has not seen.

A model fits the images that it was made of, right or wrong. So each image is left out once: the model is made anew of
the others, from its poses, and the image is looked for near the pose that it had. Ring by ring, the correlation of the
images with what is predicted, over what their own noise leaves of it, estimates the correlation of the model with the
truth; where that falls below .5 is how fine the model can be called.
"""

from itertools import pairwise

import attrs
import torch
from torch import Tensor

from cryofm_ops import FourierSlices, ImagesInBand, pose_difference_deg
from cryofm_sampling.models.ranked import Refining
from cryofm_sampling.samplers.ab_initio import Models

__all__ = ["Trust"]

_FOLDS = 6  # models made anew; with each of them every sixth image is left out
_BLIND = 1e6  # factor on the noise of an image that is left out
_LOW = 2  # rings that any blob explains
_FITS = 0.6  # an image that is predicted less well than this part of what half of the images are
_AGREEING = 2  # other chains that must have come to the same poses, of those that there are
_FINEST = 4.0  # voxels: images that were left out must be predicted to this resolution
_MEASURED = 0.1  # of the images' power, which must be signal for a ring to count


@attrs.frozen(eq=False)
class Trust:
    """What speaks for a model and against it.

    Attributes:
        differences_deg: of the poses of each other chain from the best, the nearest first, `(C − 1,)`.
        correlations: of the images with the reprojections of the best model, over what their noise leaves, `(K,)`.
        predicted: the same with models that have not seen the image, `(K,)`.
        by_ring: likewise of all, at the frequencies 1, 2, … of 1/box, `(radius,)`; NaN where nothing was measured.
    """

    differences_deg: Tensor
    correlations: Tensor
    predicted: Tensor
    by_ring: Tensor

    @classmethod
    def of(cls, refine: Refining, chains: Models, levels: int) -> "Trust":
        """Of the best of several chains.

        Args:
            refine: with all the images.
            chains: the best first.
            levels: of noise, for the models that are made anew.
        """
        R, group = chains.rotations, refine.data.symmetry
        differences = torch.stack([pose_difference_deg(R[0], other, group) for other in R[1:]] or [R.new_zeros(())])
        made = reprojections(refine.data, chains.x[:1], R[:1], chains.shifts_px[:1])[0] / chains.scale[0]
        predicted, by_ring = predicted_by_others(refine, R[0], chains.shifts_px[0], levels)
        return cls(differences[: len(R) - 1].sort().values, agreement(refine.data, made)[0], predicted, by_ring)

    @property
    def frequency(self) -> float:
        """To which images that were left out are predicted, in units of 1/box; 0: to none."""
        good = [1.0, *self.by_ring.nan_to_num(-1.0).tolist()]
        for r, (above, below) in enumerate(pairwise(good)):
            if below < 0.5:
                return float(r + max(0.0, (above - 0.5) / max(above - max(below, 0.0), 1e-6))) if r else 0.0
        return float(len(self.by_ring))

    def agreeing(self, within_deg: float = 15.0) -> int:
        """Other chains whose poses are those of the best."""
        return int((self.differences_deg < within_deg).sum())

    def determines(self, box: int, within_deg: float = 15.0) -> bool:
        """Whether the images determine their poses and the model, in a box of that side.

        Two other chains came to the same poses, images that were left out are predicted to four voxels, and there are
        no outliers.
        """
        chains = len(self.differences_deg)
        enough = chains > 0 and self.agreeing(within_deg) >= min(_AGREEING, chains)
        return enough and self.frequency * _FINEST >= box and not self.outliers

    @property
    def outliers(self) -> list[int]:
        """Images that the others do not predict."""
        return [int(i) for i in torch.where(self.predicted < _FITS * self.predicted.median())[0]]


def predicted_by_others(refine: Refining, rotations: Tensor, shifts_px: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Every image as models predict it that have not seen it: over images `(K,)` and over rings `(radius,)`.

    Args:
        refine: with all the images.
        rotations: of the model, `(K, 3, 3)`.
        shifts_px: likewise, `(K, 2)`.
        levels: of noise.
    """
    data, K, F = refine.data, len(rotations), folds(len(rotations))
    own = torch.arange(K, device=rotations.device)
    left_out = own % F == own[:F, None]
    noise = torch.where(left_out[..., None], _BLIND * data.noise, data.noise)
    blind = attrs.evolve(data, spectra=data.spectra.expand(F, -1, -1), noise=noise)
    models = attrs.evolve(refine, data=blind)(
        rotations.expand(F, -1, -1, -1), shifts_px.expand(F, -1, -1), levels=levels
    )
    seen = torch.empty_like(models.chain)
    seen[models.chain] = own[:F]  # they come ranked
    x, R, s = (part[seen] for part in (models.x, models.rotations, models.shifts_px))
    return agreement(data, reprojections(data, x, R, s)[own % F, own])


def folds(images: int) -> int:
    """In how many parts images are left out."""
    return min(images, _FOLDS)


def reprojections(data: ImagesInBand, x: Tensor, rotations: Tensor, shifts_px: Tensor) -> Tensor:
    """Of C models, as the images would show them, `(C, K, m)`."""
    return torch.view_as_complex(FourierSlices(rotations, shifts_px, data.k, data.n, data.ctf)(x))


def agreement(data: ImagesInBand, made: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation of images with projections `(K, m)` over what noise leaves of it: of each image, and of each ring."""
    y, ring = data.spectra, data.k.norm(dim=-1).round().long() - 1
    radius = int(data.k.abs().max())
    ring = ring.clamp(max=radius - 1)

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(len(values), radius).index_add(1, ring, values)

    power, noise = summed(y.abs().square()), summed(data.noise.expand(len(y), -1))
    cross = summed((y.conj() * made).real) / (power * summed(made.abs().square())).sqrt().clamp(min=1e-30)
    clean = (1 - noise / power.clamp(min=1e-30)).clamp(min=0)  # the part of an image that is signal
    c = clean.sqrt()
    by_ring = (c * cross).sum(0) / clean.sum(0).clamp(min=1e-9)
    by_ring = torch.where(clean.median(0).values > _MEASURED, by_ring, torch.nan)
    weight = torch.bincount(ring, minlength=radius).to(c)
    weight[:_LOW] = 0
    return (weight * c * cross).sum(-1) / (weight * clean).sum(-1).clamp(min=1e-9), by_ring
