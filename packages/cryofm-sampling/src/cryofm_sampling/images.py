"""Images at known poses in, a restored map out: what a reconstruction program does, with a prior.

Each half of the images makes a map of its own, nearly without a prior, and the noise is what these differ by; the scale
of the images is found as that of half maps is (`fit_scale`), and all images together are restored at it.
"""

import attrs
import torch
from torch import Tensor

from cryofm_ops import GridMismatchError, NoiseEstimate, ToeplitzGaussian, estimate_noise_power, fourier_filter, radial
from cryofm_sampling.errors import CapabilityError, SettingError
from cryofm_sampling.priors.rescaled import Rescaled
from cryofm_sampling.protocols import Callback, Draw, Sampler, VelocityField
from cryofm_sampling.restore import restore
from cryofm_sampling.samplers.plug_and_play import PlugAndPlay
from cryofm_sampling.scale import ScaledNormalization, ScaleFit, fit_scale

__all__ = ["RestoredImages", "restore_images"]

_NO_PRIOR = 1e4  # times the power of an average coefficient: next to none


@attrs.frozen(eq=False)
class RestoredImages:
    """What images at known poses come to; maps are `(z, y, x)` in the units of the images.

    Attributes:
        draw: the restored map, with its misfit and evaluations.
        reconstruction: of all images, not filtered.
        halves: of each half of them, likewise.
        linear: the reconstruction by the best linear filter.
        noise: what the halves tell of it, and their FSC.
        fit: the scale, and the trials that found it.
    """

    draw: Draw
    reconstruction: Tensor
    halves: tuple[Tensor, Tensor]
    linear: Tensor
    noise: NoiseEstimate
    fit: ScaleFit

    @property
    def map(self) -> Tensor:
        """The restored one."""
        return self.draw.x


def restore_images(
    prior: VelocityField,
    half1: ToeplitzGaussian,
    half2: ToeplitzGaussian,
    /,
    *,
    generator: torch.Generator,
    sampler: Sampler = PlugAndPlay(),  # noqa: B008 (frozen)
    scale: float | None = None,
    callback: Callback | None = None,
) -> RestoredImages:
    """Restore a volume from images at known poses, given as two halves that share no image.

    No envelope is sought: poses count as right, and amplitudes as what the CTFs say.

    Args:
        prior: a velocity field with a `.normalization`, at the images' pixel size; in `Tiled` for boxes larger than
            its own.
        half1: of every second image, say, by `ToeplitzGaussian.from_images`.
        half2: of the others.
        generator: all randomness; the same seed gives the same map.
        sampler: restores.
        scale: what the images' density is multiplied by to be the prior's. None: found by the halves.
        callback: is told of every step of the trials of scale and of the sampler.

    Raises `GridMismatchError` for halves of two boxes, `CapabilityError` for a prior without a normalisation,
    `SettingError` for halves that nothing is seen in or a scale that is not positive.

    >>> from types import SimpleNamespace
    >>> from cryofm_ops import FourierProjector, WhiteNoise, random_rotations
    >>> from cryofm_sampling.testing import GaussianPrior
    >>> prior = Rescaled(GaussianPrior(1.0, (8, 8, 8)), SimpleNamespace(mean=0.0, std=1.0))
    >>> generator = torch.Generator().manual_seed(0)
    >>> truth = torch.nn.functional.pad(torch.randn(4, 4, 4, generator=generator), 6 * [2])
    >>> def half():
    ...     project = FourierProjector(random_rotations(100, generator=generator), torch.zeros(100, 2), (8, 8, 8))
    ...     return ToeplitzGaussian.from_images([(project, project(truth))], WhiteNoise(1.0), shape=(8, 8, 8))
    >>> found = restore_images(prior, half(), half(), generator=generator, scale=1.0)
    >>> found.map.shape, bool(found.noise.fsc[2] > 0.9)
    (torch.Size([8, 8, 8]), True)
    """
    normalization = getattr(prior, "normalization", None)
    if normalization is None:
        raise CapabilityError(f"restore_images needs a prior with a normalization; {type(prior).__name__} has none")
    if half1.shape != half2.shape:
        raise GridMismatchError(f"the halves are of two boxes, {half1.shape} and {half2.shape}")
    whole: ToeplitzGaussian = half1 + half2
    power = float(whole.data.square().mean()) / float(whole.spectrum.mean()) ** 2
    if not power > 0:
        raise SettingError("the images are empty: nothing is seen in them")
    nothing = torch.zeros_like(whole.data)
    one, two, both = (data.condition(nothing, _NO_PRIOR * power).mean for data in (half1, half2, whole))
    noise = estimate_noise_power(one, two)
    gain = noise.fsc.nan_to_num(0).clamp(0, 1)
    linear = fourier_filter(both, radial((2 * gain / (1 + gain)).to(both), whole.shape))  # Wiener's, of the mean
    if scale is None:
        guess = 1 / float(linear.max())
        fit = fit_scale(prior, half1, two, noise.fsc, generator=generator, guess=guess, callback=callback)
    else:
        fit = ScaleFit(ScaledNormalization(normalization, scale), (), 0)
    rescaled = Rescaled(prior, fit.normalization)
    draw = restore(rescaled, whole, shape=whole.shape, generator=generator, sampler=sampler, callback=callback)
    return RestoredImages(draw, both, (one, two), linear, noise, fit)
