"""A half map whose reconstruction program tells how well it measured every Fourier coefficient.

Inside a refinement the sums that a reconstruction is made of give the noise of one half from that half alone, in every
direction: W = 1/N(k). With the envelope ĥ and the scale K that is the likelihood of the sharp map x in y = K ĥ x + n,
and the restored reference K ĥ x̂ goes back to where the images are compared with it. The program's own map is kept
where it is as good (coarser than 12 Å), and nothing where the halves do not agree (one shell below FSC 1/7). The
solvent's contrast is not sought: where it tells, the program's map is kept, and at 12 Å it takes a seventh of the
amplitude at most.
"""

import math
from functools import cached_property

import attrs
import torch
from torch import Tensor

from cryofm_ops import (
    Envelope,
    FourierGaussian,
    GridMismatchError,
    Normalization,
    frequencies,
    half_shape,
    irfft,
    joint,
    radial_mean,
    rfft,
)
from cryofm_sampling._common import Box, missing, split_shape
from cryofm_sampling.errors import CapabilityError, SettingError
from cryofm_sampling.half_maps.envelope import wilson_line
from cryofm_sampling.half_maps.model import FourierModel
from cryofm_sampling.priors.rescaled import Rescaled
from cryofm_sampling.protocols import Calibrated, Callback, Draw, Sampler, VelocityField
from cryofm_sampling.restore import restore
from cryofm_sampling.samplers.plug_and_play import PlugAndPlay
from cryofm_sampling.scale import ScaledNormalization

__all__ = ["WeightedHalf", "fit_weighted", "restore_weighted"]

_AGREE = 1 / 7  # FSC of the last shell but one that is kept
_COARSE = 12.0  # Å
_WIDTH = 4  # shells of a join
_SURE = 0.9  # FSC above which its complement tells no noise
_FACTORS = (0.5, 2.0)


@attrs.frozen(eq=False, slots=False)
class WeightedHalf:
    """A map that no prior touched, and what its reconstruction knows of it.

    Attributes:
        map: y `(n, n, n)`, n even.
        precision: W on the half grid, 0 where nothing was measured, such as `ReconstructionSums.precision` has it.
        fsc: of the halves, by shell, `(n // 2 + 1,)`; it judges the noise, and says where to stop.
        voxel_size: Å.
        halves: 1, or 2 where the map is of all images and the FSC of their halves.

    Raises `GridMismatchError` for shapes that do not fit, `SettingError` for a voxel size that is not positive.

    >>> half = WeightedHalf(torch.zeros(8, 8, 8), torch.ones(8, 8, 5), torch.tensor([1, 0.9, 0.5, 0.3, 0]), 2.0)
    >>> half.last_shell
    2
    """

    map: Tensor
    precision: Tensor
    fsc: Tensor
    voxel_size: float
    halves: int = 1

    def __attrs_post_init__(self) -> None:
        batch, (z, y, x) = split_shape(self.map.shape)
        if batch or not z == y == x or z % 2 or tuple(self.precision.shape) != half_shape((z, y, x)):
            raise GridMismatchError(
                f"a map is an even cube and its precision on its half grid, got {tuple(self.map.shape)} and "
                f"{tuple(self.precision.shape)}"
            )
        if tuple(self.fsc.shape) != (z // 2 + 1,):
            raise GridMismatchError(f"fsc has a value of each of {z // 2 + 1} shells, got {tuple(self.fsc.shape)}")
        if not (self.voxel_size > 0 and math.isfinite(self.voxel_size)):
            raise SettingError(f"voxel_size must be positive, in Å, got {self.voxel_size}")

    @property
    def shape(self) -> Box:
        """Of the box (z, y, x)."""
        return split_shape(self.map.shape)[1]

    @property
    def last_shell(self) -> int:
        """One shell below the last before the FSC falls under 1/7; the first at least."""
        low = (self.fsc[1:].nan_to_num(0) < _AGREE).nonzero()
        agree = int(low[0]) if len(low) else len(self.fsc) - 1
        return max(agree - 1, 1)

    @property
    def _share(self) -> Tensor:
        """Of the map's power, that of its signal."""
        F = self.fsc.nan_to_num(0).clamp(0, 1)
        return self.halves * F / (1 + (self.halves - 1) * F)

    @cached_property
    def noise_factor(self) -> float:
        """Noise by the FSC, P (1 − FSC), over 1/W: the median over the shells where the FSC tells it.

        Particles that are shared among poses average the noise, and a mask around images takes some away: both change
        all shells about alike.
        """
        W = self.precision.double()
        seen = (W > 0).double()
        parts = (seen * rfft(self.map.double()).abs().square(), torch.where(W > 0, 1 / W, 0))
        power, predicted = (radial_mean(part, self.shape) for part in parts)
        F = self._share.to(power)
        told = (F < _SURE) & (F > 0) & (predicted > 0) & (torch.arange(len(F)) <= self.last_shell).to(F.device)
        told[0] = False
        if not told.any():
            return 1.0
        return float((power * (1 - F) / predicted)[told].median().clamp(*_FACTORS))

    def likelihood(self, envelope: Envelope, side: int, coarse: Tensor | None = None) -> FourierGaussian:
        """Of the density without envelope, on a grid of `side` voxels over the same extent: W ĥ² and ỹ / ĥ.

        Nothing is known of the mean. `coarse`: a map of the same data that is better where the weights are uneven,
        close to frequency 0, and is taken coarser than 12 Å.
        """
        h = envelope.transfer(self.shape).to(self.map)
        W = self.precision.to(self.map) * h.square() / self.noise_factor
        W[0, 0, 0] = 0
        y = rfft(self.map)
        if coarse is not None:
            y = torch.lerp(rfft(coarse.to(y.real)), y, self.fine.to(y))
        data = joint([FourierGaussian(W, y / h, self.shape)], shape=(side, side, side))
        assert isinstance(data, FourierGaussian)  # as all that is diagonal
        return data

    @cached_property
    def fine(self) -> Tensor:
        """0 coarser than 12 Å, 1 finer, on the half grid; a raised cosine over four shells."""
        return _rising(self.shells - self.shape[0] * self.voxel_size / _COARSE)

    @cached_property
    def shells(self) -> Tensor:
        """|k| in shells, on the half grid."""
        return (frequencies(self.shape) * self.shape[0]).to(self.map)


def fit_weighted(
    prior: VelocityField, half: WeightedHalf, /, *, normalization: Normalization, side: int
) -> tuple[float, float]:
    """Scale and B of one half from it alone, by its Wilson plot against the prior's.

    A guide, which is to be fixed for a whole run: fitted at every iteration it would wander.

    Args:
        prior: `Calibrated`.
        half: of an iteration that is well under way: the plot begins at 12 Å.
        normalization: of the prior.
        side: voxels of the prior's over the half's extent.

    Returns: what the map is multiplied by to be the prior's, and B in Å², 0 or more.

    Raises `CapabilityError` for a prior that is not `Calibrated`.

    >>> from types import SimpleNamespace
    >>> from cryofm_sampling.testing import GaussianPrior
    >>> y = torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0)) / 2
    >>> half = WeightedHalf(y, torch.full((32, 32, 17), 1e6), torch.ones(17), 2.0)
    >>> units = SimpleNamespace(mean=0.0, std=1.0)
    >>> scale, b_factor = fit_weighted(GaussianPrior(1.0), half, normalization=units, side=32)
    >>> round(scale, 1)
    2.0
    """
    if not isinstance(prior, Calibrated):
        raise CapabilityError(f"fit_weighted needs a Calibrated prior: {missing(prior, 'signal_power')}")
    told = half._share.to(half.map)
    told[half.last_shell + 1 :] = 0
    # An orthonormal transform on a finer grid has larger squares.
    power = radial_mean(rfft(half.map).abs().square(), half.shape) * (side / half.shape[0]) ** 3
    told, power = (torch.nn.functional.pad(table, (0, side // 2 + 1 - len(table))) for table in (told, power))
    model = FourierModel(told, power * (1 - told), power * told, (side, side, side), lambda _: (power, power))
    line = wilson_line(model, prior, normalization, half.voxel_size * half.shape[0] / side)
    b_factor = max(line.b_factor, 0.0)
    return math.exp(-line.kappa - b_factor * line.pivot**2 / 4), b_factor


@torch.no_grad()
def restore_weighted(
    prior: VelocityField,
    half: WeightedHalf,
    plain: Tensor,
    /,
    *,
    side: int,
    scale: float,
    b_factor: float,
    normalization: Normalization,
    generator: torch.Generator,
    sampler: Sampler = PlugAndPlay(),  # noqa: B008 (frozen)
    callback: Callback | None = None,
) -> Draw:
    """A reference for the next iteration of a refinement, from one half alone.

    Args:
        prior: a velocity field in model units, in `Tiled` for boxes larger than its own.
        half: the map without a prior, and its precision.
        plain: the map that the program itself makes of the same data, `(n, n, n)`.
        side: even; voxels of the prior's over the half's extent.
        scale: what the map is multiplied by to be the prior's; the same for both halves and all iterations.
        b_factor: B of the envelope in Å², likewise.
        normalization: of the prior.
        generator: all randomness; the same seed gives the same map.
        sampler: restores.
        callback: is told of its steps.

    Returns: the map in its own units, its envelope in it: `plain` coarser than 12 Å, and finer than the prior knows,
    the restored one between, and nothing from one shell below FSC 1/7 on.

    Raises `GridMismatchError` for a plain map on another grid, `SettingError` for a scale that is not positive and an
    odd side.

    >>> from types import SimpleNamespace
    >>> from cryofm_sampling.testing import GaussianPrior
    >>> generator = torch.Generator().manual_seed(0)
    >>> y, ones = torch.randn(16, 16, 16, generator=generator), torch.ones(9)
    >>> half = WeightedHalf(y, torch.full((16, 16, 9), 1e4), ones, 2.0)
    >>> draw = restore_weighted(GaussianPrior(1.0), half, y, side=16, scale=1.0, b_factor=0.0,
    ...     normalization=SimpleNamespace(mean=0.0, std=1.0), generator=generator)
    >>> draw.x.shape
    torch.Size([16, 16, 16])
    """
    if tuple(plain.shape) != half.shape:
        raise GridMismatchError(f"the plain map has shape {tuple(plain.shape)}, the half {half.shape}")
    if side % 2 or side < 2:
        raise SettingError(f"side must be even, got {side}")
    envelope = Envelope(b_factor, half.voxel_size)
    units = Rescaled(prior, ScaledNormalization(normalization, scale))
    data = half.likelihood(envelope, side, plain)
    draw = restore(units, data, shape=data.shape, generator=generator, sampler=sampler, samples=1, callback=callback)
    restored = _on_grid(rfft(draw.x), side, half.shape[0]) * envelope.transfer(half.shape).to(draw.x)
    # What the prior's grid does not hold stays as it is.
    known = half.fine if side >= half.shape[0] else half.fine * (1 - _rising(half.shells - side / 2 + _WIDTH / 2))
    spectrum = torch.lerp(rfft(plain.to(draw.x)), restored, known.to(restored))
    return attrs.evolve(draw, x=irfft(spectrum * (half.shells < half.last_shell + 0.5), half.shape))


def _rising(shells: Tensor) -> Tensor:
    """From 0 to 1 around 0."""
    return 0.5 + 0.5 * torch.sin(math.pi / 2 * (shells / (_WIDTH / 2)).clamp(-1, 1))


def _on_grid(spectrum: Tensor, n: int, m: int) -> Tensor:
    """Of a cube of n voxels on the half grid of m over the same extent, both even; what either lacks is 0."""
    low = min(n, m) // 2
    out = spectrum.new_zeros(m, m, m // 2 + 1)
    k = torch.cat([torch.arange(low), -torch.arange(1, low).flip(0)]).to(spectrum.device)
    kz, ky, kx = (k % n)[:, None, None], (k % n)[:, None], torch.arange(low, device=k.device)
    out[(k % m)[:, None, None], (k % m)[:, None], kx] = spectrum[kz, ky, kx] * (m / n) ** 1.5
    return out
