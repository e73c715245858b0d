"""Models from images at poses that are nearly known, or not at all: renoising, with the poses refined at every level.

As Algorithm 3 (paper, E.2) this goes from noise to a map and adjusts the poses on the way, but it begins with poses
that come from elsewhere (`cryofm_ops.sample_poses`), and is exact where that can be: at every level x_0 given x_t is
taken as a normal of mean x̂_0 and variance e(ν, t) (see `renoising`), each pose moves to where the image agrees best
with x̂_0, frequencies weighed by 1/(e + noise), and the normal is conditioned on all images by conjugate gradients. The
conditioned mean is noised afresh, at ratios of noise to signal that fall geometrically; the last evaluations see it
without noise.

e(ν, t) is a mean over the box, and the errors are where the object is, in a few per cent of it: there they are 1/φ
times as large. Conditioning on images takes them so, or noisy images would count for too little beside the prior: with
8 true poses at a signal-to-noise ratio of 5, FSC_0.5 of four training structures is 18.5 Å with φ = 1, 15.1 with 1/4,
14.2 with 1/20 or 1/40, and 14.4 with 1/100.

Of many noisy images, such as particles, common lines tell nothing, but a model of them all tells much about each. There
poses need not be known (`draw_above`): at every level each is drawn from what its image says of all rotations given
x̂_0, with the variance e + noise. At large t only low frequencies say anything, and poses are nearly free; as t falls
model and poses settle together. That is Gibbs sampling of both, annealed. It may settle wrongly: take several chains,
whose misfits tell which to believe, and refine those by another call.

The scale of class averages is arbitrary, that of the prior is not. It is found from the Wiener estimate at the first
poses, whose highest density is K/(K + 4) of the truth's (8 training structures: 0.60 ± 0.08 for 6 clean images, 0.68 ±
0.06 for 8, 0.87 ± 0.04 for 20; for 8 at a signal-to-noise ratio of 5 or 1, 0.69 ± 0.08 and 0.70 ± 0.09); under a point
group K counts all views of all images.
Where poses are drawn it begins with what makes the images' power that of the prior, less their noise, and then is what
fits x̂_0.
"""

import math

import attrs
import torch
from torch import Tensor

from cryofm_ops import ImagesInBand, Normalization
from cryofm_sampling._common import calibrated, falling_times, streams, velocity_at, white_noise, whole, within
from cryofm_sampling.errors import SettingError
from cryofm_sampling.protocols import Callback, VelocityField
from cryofm_sampling.runs.checkpoint import Checkpoint, Run, iterate
from cryofm_sampling.samplers._denoising_error import DenoisingError

__all__ = ["AbInitio", "Models"]

_LAST = (0.2, 0.2, 0.15)  # times of the evaluations without noise
_QUANTILE = 0.99999  # a prior's densities are in units of this one
_TELLING = 0.8  # flow time below which x̂_0 tells the scale of the images
_FILLED = 1 / 25  # φ, the part of the box that errors are in


@attrs.frozen(eq=False)
class Models:
    """What `AbInitio` returns, the best fit first.

    Attributes:
        x: densities on the prior's scale, `(C, n, n, n)`.
        rotations: object to view, of each image in each model, `(C, K, 3, 3)`.
        shifts_px: what centres the images, `(C, K, 2)`.
        scale: what the images were multiplied by to be on the prior's scale, `(C,)`.
        misfit: Σ |projection − image|² / Σ |image|² within the band, `(C,)`.
        nfe: network evaluations of each.
        chain: which of the starting poses each came from, `(C,)`.
    """

    x: Tensor
    rotations: Tensor
    shifts_px: Tensor
    scale: Tensor
    misfit: Tensor
    nfe: int
    chain: Tensor


def _falling(_: object, __: object, ratios: tuple[float, float]) -> None:
    if len(ratios) != 2:
        raise SettingError(f"AbInitio: 'ratios' are two, the first and the last, got {ratios}")
    first, last = ratios
    if not math.inf > first > last > 0:
        raise SettingError(f"AbInitio: 'ratios' must be positive and fall, got {ratios}")


@attrs.frozen
class AbInitio:
    """Models of an object from images and first poses; one network evaluation a level.

    Attributes:
        levels: how many, of noise.
        ratios: t / (1 − t) at the first and the last of them.
        draw_above: at flow times above this poses are drawn from all rotations, given x̂_0; 1: at none, since they are
            nearly known.
        refine_below: otherwise they are refined at times below this; before, x̂_0 knows less than they do.
        max_shift_px: how far off centre an image may be.

    Raises `CapabilityError` if the velocity field is not `Calibrated`, `SettingError` for poses of other shapes than
    those of the images.
    """

    levels: int = attrs.field(default=20, validator=whole(2))
    ratios: tuple[float, float] = attrs.field(default=(20.0, 0.15), validator=_falling)
    draw_above: float = attrs.field(default=1.0, validator=within(attrs.validators.ge(0)))
    refine_below: float = attrs.field(default=0.9, validator=within(attrs.validators.gt(0)))
    max_shift_px: float = attrs.field(default=2.0, validator=within(attrs.validators.ge(0)))

    @torch.no_grad()
    def __call__(
        self,
        velocity: VelocityField,
        images: ImagesInBand,
        /,
        *,
        normalization: Normalization,
        rotations: Tensor,
        shifts_px: Tensor,
        generator: torch.Generator,
        callback: Callback | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Models:
        """A model for each of C sets of poses.

        Args:
            velocity: a `Calibrated` prior, in model units.
            images: in any units; projections of a density times an unknown factor.
            normalization: of the prior.
            rotations: object to view, `(C, K, 3, 3)`.
            shifts_px: what centres the images, `(C, K, 2)`.
            generator: of all noise.
            callback: is told of every level, in the prior's density.
            checkpoint: a file from which the same call goes on after it was killed, to the same bits.
        """
        C, K = rotations.shape[:2]
        if shifts_px.shape != (C, K, 2) or images.spectra.shape[-2] != K:
            raise SettingError(
                f"poses of {images.spectra.shape[-2]} images are rotations (C, K, 3, 3) and shifts (C, K, 2), "
                f"got {tuple(rotations.shape)} and {tuple(shifts_px.shape)}"
            )
        device = images.noise.device.type
        ambient = torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        with torch.autocast(device, enabled=False):  # which is meant for the network, not for images and poses
            n = images.n
            box, like = (n, n, n), images.noise
            rotations, shifts_px = rotations.to(like), shifts_px.to(like)  # those of scipy are of double precision
            mean, std = normalization.mean, normalization.std
            error = DenoisingError.of(calibrated(velocity, "AbInitio"), box, like)
            noises = streams(generator, (C,))
            times = [*falling_times(*self.ratios, self.levels), *_LAST]

            def level(i: int, state: Tensor) -> tuple[Tensor, Tensor]:
                t = times[i]
                x, R, s, scale = _unpacked(state, n, K)
                x_t = (1 - t) * (x - mean) / std
                if i < self.levels:
                    x_t = x_t + t * torch.stack([white_noise(box, noise, like) for noise in noises])
                with ambient:
                    v = velocity_at(velocity, x_t, t)
                x_0 = std * (x_t - t * v) + mean
                e = std**2 * error(t)
                y = images.scaled(scale)
                if t > self.draw_above:
                    R, s = y.drawn(x_0, _at(e, images.k), s, self.max_shift_px, noises)
                    if t < _TELLING:
                        fit = images.fitting_scale(x_0, R, s)
                        scale = torch.where(fit > 0, fit, scale)  # noise alone may fit as its own negative
                        y = images.scaled(scale)
                elif t < self.refine_below:
                    R, s = y.refined(x_0, _at(e, images.k), R, s, self.max_shift_px)
                x = y.at(R, s).condition(x_0, e / _FILLED).mean
                return _packed(x, R, s, scale), x

            power = std**2 * error.power
            if self.draw_above < 1:
                first = _packed(power.new_zeros(C, *box), rotations, shifts_px, _by_power(images, power).expand(C))
            else:
                x, scale = _wiener(images, power / _FILLED, rotations, shifts_px)
                first = _packed(x, rotations, shifts_px, scale)
            data = {
                "set of images": [part for part in attrs.astuple(images, recurse=False) if isinstance(part, Tensor)],
                "set of first poses": [rotations, shifts_px],
                "normalization": [torch.tensor(mean), torch.tensor(std)],
            }
            run = Run(self, velocity, data, (C, *box))
            state = iterate(level, first, len(times), run=run, streams=noises, callback=callback, checkpoint=checkpoint)
            x, R, s, scale = _unpacked(state, n, K)
            misfit = images.scaled(scale).misfit(x, R, s)
            best = misfit.argsort()
            return Models(x[best], R[best], s[best], scale[best], misfit[best], len(times), best)


def _wiener(images: ImagesInBand, power: Tensor, rotations: Tensor, shifts_px: Tensor) -> tuple[Tensor, Tensor]:
    """What the images and a Gaussian prior say, and the scale at which its highest density is as expected."""
    C, box = len(rotations), (images.n,) * 3
    K = rotations.shape[1] * (1 if images.symmetry is None else len(images.symmetry))
    expected = images.n**3 * _at(power, images.k).sum()
    scale = (expected / images.spectra.abs().square().mean(-2).sum(-1)).sqrt().expand(C)

    def estimate() -> Tensor:
        return images.scaled(scale).at(rotations, shifts_px).condition(power.new_zeros(C, *box), power).mean

    for _ in range(2):  # how strongly the prior smooths depends on the scale
        highest = torch.stack([v.flatten().quantile(_QUANTILE) for v in estimate()])
        scale = scale * K / (K + 4) / highest.clamp(min=1e-6)
    return estimate(), scale


def _by_power(images: ImagesInBand, signal_power: Tensor) -> Tensor:
    """The scale at which images have, beyond their noise, the power of projections of what the prior knows."""
    expected = images.n**3 * (images.ctf.square() * _at(signal_power, images.k)).sum()
    power = images.spectra.abs().square()
    return (expected / (power - images.noise).sum().clamp(min=1e-3 * power.sum())).sqrt()


def _at(radial_power: Tensor, k: Tensor) -> Tensor:
    """A radial quantity on the half grid at the frequencies k `(m, 2)`."""
    along, radius = radial_power[0, 0], k.norm(dim=-1)  # its x axis
    return torch.lerp(along[radius.floor().long()], along[radius.ceil().long()], radius.frac().to(along))


def _packed(x: Tensor, rotations: Tensor, shifts_px: Tensor, scale: Tensor) -> Tensor:
    """One tensor, `(C, ...)`, as checkpoints take it."""
    return torch.cat([part.flatten(1) for part in (x, rotations, shifts_px, scale[:, None])], -1)


def _unpacked(state: Tensor, n: int, K: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, rotations, shifts, scale = torch.split(state, [n**3, 9 * K, 2 * K, 1], -1)
    return x.reshape(-1, n, n, n), rotations.reshape(-1, K, 3, 3), shifts.reshape(-1, K, 2), scale[:, 0]
