"""Models from a few images whose poses are nearly known: renoising, with the poses refined at every level.

As Algorithm 3 (paper, E.2) this goes from noise to a map and looks for the poses on the way, but the poses come from
elsewhere to begin with (`cryofm_ops.sample_poses`), and every level is exact where that can be: x_0 given x_t is taken
as a normal of mean x̂_0 and variance e(ν, t) (see `renoising`), the poses move to where the images agree best with x̂_0,
each frequency weighed by 1/(e + noise), and the normal is conditioned on the images at these poses by conjugate
gradients. The conditioned mean is renoised with fresh noise, at levels whose noise-to-signal ratio falls geometrically;
the last evaluations have no noise.
"""

import math
from typing import Protocol

import attrs
import torch
from torch import Tensor

from cryofm_ops import Conjugate, Normalization, radial
from cryofm_sampling._common import DenoisingError, calibrated, split_shape, streams, time_like, white_noise
from cryofm_sampling.checkpoint import Checkpoint, Run, iterate
from cryofm_sampling.protocols import Callback, Draw, VelocityField

__all__ = ["AbInitio"]


@attrs.frozen
class AbInitio:
    levels: int = attrs.field(default=20, validator=attrs.validators.ge(2))
    noisiest: float = 20.0
    cleanest: float = 0.15
    last: tuple[float, ...] = (0.2, 0.2, 0.15)
    refine_below: float = 0.9

    @torch.no_grad()
    def __call__(self, prior, images, rotations, shifts_px, *, generator, max_shift_px=2.0, callback=None, x0=None, refine=True):
        C, K = rotations.shape[:2]
        n = images.n
        box = (n, n, n)
        mean, std = prior.normalization.mean, prior.normalization.std
        like = images.noise
        noises = streams(generator, (C,))
        error = DenoisingError.of(calibrated(prior, "AbInitio"), box, like)
        radius = images.k.norm(dim=-1)
        σ = [self.noisiest * (self.cleanest / self.noisiest) ** (i / (self.levels - 1)) for i in range(self.levels)]
        times = [(s / (1 + s), True) for s in σ] + [(t, False) for t in self.last]
        x = images.at(rotations, shifts_px).condition(like.new_zeros(C, *box), std**2 * error.power).mean if x0 is None else x0
        for i, (t, noisy) in enumerate(times):
            z = (x - mean) / std
            x_t = (1 - t) * z
            if noisy:
                x_t = x_t + t * torch.stack([white_noise(box, s, like) for s in noises])
            x_0 = std * (x_t - t * prior(x_t, time_like(t, x_t))) + mean
            e = std**2 * error(t)
            if refine and t < self.refine_below:
                line = e[0, 0]  # along kx, at ky = kz = 0
                at = torch.lerp(line[radius.floor().long()], line[radius.ceil().long()], radius - radius.floor())
                rotations, shifts_px = images.refined(x_0, at, rotations, shifts_px, max_shift_px)
            x = images.at(rotations, shifts_px).condition(x_0, e).mean
            if callback is not None: callback(i + 1, len(times), x, rotations, shifts_px)
        return x, rotations, shifts_px
