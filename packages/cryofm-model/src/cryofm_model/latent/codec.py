"""Between volumes and latents, and a flow over the latents with the decoder at its end (paper F.4)."""

from collections.abc import Mapping
from typing import Protocol, Self

import attrs
import torch
from einops import rearrange
from torch import Tensor, nn

from cryofm_model._kinds import finite, positive, whole
from cryofm_model.errors import CryoFMError
from cryofm_model.latent.autoencoder import VAE_4, VAE_8, Autoencoder
from cryofm_model.networks.hourglass_config import HourglassConfig
from cryofm_model.prior import Normalization

__all__ = ["DIT_4", "DIT_8", "Codec", "Decoded", "LatentPrior", "OverChannels"]

# F.4.1: 12 layers of 1024, patches of 2³ latent voxels, over the latents of `VAE_4` and `VAE_8`.
DIT_4 = HourglassConfig(widths=(1024,), depths=(12,), patch=2, channels=VAE_4.channels)
DIT_8 = HourglassConfig(widths=(1024,), depths=(12,), patch=2, channels=VAE_8.channels)


def _one_per_channel(codec: "Codec", attribute: "attrs.Attribute[Tensor]", value: Tensor) -> None:
    channels = codec.autoencoder.config.channels
    kind = positive if attribute.name == "std" else finite
    if value.shape != (channels,) or not all(kind.holds(float(one)) for one in value):
        raise CryoFMError(f"Codec: {attribute.name} must be {channels} values, each {kind.expected}")


@attrs.frozen(eq=False)
class Codec:
    """An autoencoder, and what must be known to use it.

    Volumes are (*batch, z, y, x) in model units; latents (*batch, channels · z, y, x), about of zero mean and unit
    variance: a volume to every sampler, with the channels one behind the other along z.

    Attributes:
        autoencoder: the network.
        normalization: between densities and model units.
        voxel_size: at which it was trained, Å.
        box: a good side, voxels.
        mean: of each channel, over maps.
        std: likewise.
        about: whatever else is known of it.

    >>> from cryofm_model.latent import Autoencoder, AutoencoderConfig
    >>> network = Autoencoder(AutoencoderConfig(widths=(8, 16), depth=1, channels=2, groups=4))
    >>> codec = Codec(network, Normalization(), 1.5, 8, torch.zeros(2), torch.ones(2))
    >>> codec.latent_shape((8, 8, 12))
    (8, 4, 6)
    """

    autoencoder: Autoencoder = attrs.field(repr=False)
    normalization: Normalization
    voxel_size: float = attrs.field(validator=positive)
    box: int = attrs.field(validator=whole(1, 2**16))
    mean: Tensor = attrs.field(repr=False, validator=_one_per_channel)
    std: Tensor = attrs.field(repr=False, validator=_one_per_channel)
    about: Mapping[str, str] = attrs.field(factory=dict, repr=False, kw_only=True)

    @classmethod
    def measured(
        cls, autoencoder: Autoencoder, normalization: Normalization, voxel_size: float, crops: Tensor
    ) -> "Codec":
        """With the mean and the standard deviation that samples of q(z | x) have over crops (n, side, side, side)."""
        weight, channels = next(autoencoder.parameters()), autoencoder.config.channels
        with torch.no_grad():
            moments = [torch.stack(autoencoder.encode(crop[None].to(weight))).float() for crop in crops]
        mean, log_variance = rearrange(torch.cat(moments, 1), "m b (c z) y x -> m c (b z y x)", c=channels)
        std = (mean.var(1) + log_variance.exp().mean(1)).sqrt()
        return cls(autoencoder, normalization, voxel_size, crops.shape[-1], mean.mean(1), std)

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the latents of volumes of this shape.

        Raises:
            CryoFMError: a side is no multiple of the factor.
        """
        config = self.autoencoder.config
        config.check_box(torch.Size(shape[-3:]))
        z, y, x = (side // config.factor for side in shape[-3:])
        return (*shape[:-3], config.channels * z, y, x)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of volumes: the mean of q(z | x), or a sample of it by white noise of a latent's shape."""
        mean, log_variance = self.autoencoder.encode(self._flat(x))
        z = mean if noise is None else mean + (log_variance / 2).exp() * noise.reshape(mean.shape).to(mean)
        z = (z - self._each(self.mean, z)) / self._each(self.std, z)
        return z.reshape(self.latent_shape(tuple(x.shape))).to(x)

    def decode(self, z: Tensor) -> Tensor:
        """Volumes of latents; gradients pass."""
        flat = self._flat(z)
        x = self.autoencoder.decode(flat * self._each(self.std, flat) + self._each(self.mean, flat))
        return x.reshape(*z.shape[:-3], *x.shape[1:]).to(z)

    def densities(self, z: Tensor) -> Tensor:
        """As `decode`, in data units: what a likelihood of maps takes."""
        return self.decode(z) * self.normalization.std + self.normalization.mean

    def to(self, device: torch.device | str) -> Self:
        """The same on another device; the networks move, as torch's modules do."""
        mean, std = self.mean.to(device), self.std.to(device)
        return attrs.evolve(self, autoencoder=self.autoencoder.to(device), mean=mean, std=std)

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *x.shape[-3:]).to(next(self.autoencoder.parameters()))

    def _each(self, values: Tensor, z: Tensor) -> Tensor:
        """A value for each channel, to be broadcast with latents."""
        return values.to(z).repeat_interleave(z.shape[-3] // len(values))[:, None, None]


class OverChannels(nn.Module):
    """A network of (batch, z, y, x, channels) as a velocity field over latents (batch, channels · z, y, x)."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network, self.channels = network, channels

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """Velocity, of the shape of z."""
        if self.channels == 1:  # which `Hourglass` takes as a volume
            return self.network(z, t)  # type: ignore[no-any-return]
        grid = rearrange(z, "b (c z) y x -> b z y x c", c=self.channels)
        velocity: Tensor = rearrange(self.network(grid, t), "b z y x c -> b (c z) y x")
        return velocity


@attrs.frozen(eq=False)
class LatentPrior:
    """A velocity field v(z, t) over latents (it satisfies cryofm-sampling's ``VelocityField``), and their decoder.

    It has no ``normalization`` of its own: to a sampler latents are in their own units. `Decoded` makes a likelihood of
    maps one of latents, and ``codec.densities`` maps of the result.

    Attributes:
        network: called with (batch, z, y, x, channels) and times (batch,).
        codec: between volumes and latents.
        about: whatever else is known of it.
    """

    network: nn.Module = attrs.field(repr=False)
    codec: Codec
    about: Mapping[str, str] = attrs.field(factory=dict, repr=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        config, channels = self.network.config, self.codec.autoencoder.config.channels
        if getattr(config, "channels", None) != channels:
            raise CryoFMError(f"the codec's latents have {channels} channels; the network is {config}")

    def __call__(self, z: Tensor, t: Tensor, /) -> Tensor:
        """Velocity dz/dt at latents (*batch, channels · z, y, x), ``t`` in [0, 1] scalar or (*batch,)."""
        weight = next(self.network.parameters())
        flat = z.reshape(-1, *z.shape[-3:]).to(weight)
        times = t.to(weight.device).expand(z.shape[:-3]).reshape(-1)
        velocity: Tensor = OverChannels(self.network, self.codec.autoencoder.config.channels)(flat, times)
        return velocity.reshape(z.shape).to(z)

    @property
    def multiple(self) -> int:
        """Every side of a box of voxels must be a multiple of this."""
        return int(self.network.config.multiple * self.codec.autoencoder.config.factor)  # type: ignore[union-attr, operator]

    def to(self, device: torch.device | str) -> Self:
        """The same on another device; the networks move, as torch's modules do."""
        return attrs.evolve(self, network=self.network.to(device), codec=self.codec.to(device))


class _Likelihood(Protocol):
    def log_prob(self, x: Tensor, /) -> Tensor: ...


@attrs.frozen(eq=False)
class Decoded:
    """A likelihood of maps as one of latents: log p(y | D(z)), with gradients through the decoder.

    It satisfies cryofm-sampling's ``Likelihood`` alone, whatever the given one can besides: behind a decoder nothing is
    linear.

    Attributes:
        likelihood: in data units, with a ``log_prob``.
        codec: its decoder.
        precision: in which that runs, such as ``torch.bfloat16``; None: the weights'. Samplers keep autocast, which is
            meant for the network, from likelihoods.
    """

    likelihood: _Likelihood
    codec: Codec
    precision: torch.dtype | None = None

    def log_prob(self, z: Tensor, /) -> Tensor:
        """Log p(y | z) of latents (*batch, channels · z, y, x), (*batch,)."""
        with torch.autocast(z.device.type, self.precision, enabled=self.precision is not None):
            x = self.codec.densities(z)
        return self.likelihood.log_prob(x)
