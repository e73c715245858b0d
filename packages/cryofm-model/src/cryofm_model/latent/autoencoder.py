"""A 3-D convolutional variational autoencoder (paper F.4.1), which compresses each axis of a volume.

The paper takes the autoencoder of Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR
2022 (arXiv 2112.10752), and replaces its 2-D convolutions by 3-D ones. Of its loss the paper says nothing. Here it is
Rombach's without the parts that need a network trained on photographs (LPIPS) or a discriminator: the sum of |x − x̂|
over the voxels, and 10⁻⁶ times the divergence of q(z | x) = N(μ, σ²) from N(0, 1) (Kingma & Welling, "Auto-Encoding
Variational Bayes", ICLR 2014, appendix B).
"""

from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import attrs
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cryofm_model._kinds import listed, not_negative, sizes, whole
from cryofm_model.errors import CryoFMError

__all__ = ["VAE_4", "VAE_8", "Autoencoder", "AutoencoderConfig", "autoencoding_loss", "divergence"]

_LOWEST, _HIGHEST = -30.0, 20.0  # log σ² that an exponential takes


@attrs.frozen(kw_only=True)
class AutoencoderConfig:
    """Sizes of an `Autoencoder`.

    Attributes:
        widths: features of each level, finest first, multiples of ``groups``; each level halves the grid of the one
            before.
        depth: residual blocks of a level on the way down; one more on the way up.
        channels: values of a latent voxel.
        groups: of the group norms.
        kl: weight of the divergence in `autoencoding_loss`, β.

    >>> VAE_4.factor, VAE_8.factor
    (4, 8)
    """

    widths: tuple[int, ...] = attrs.field(converter=listed, validator=sizes(1, 2**16))
    depth: int = attrs.field(default=2, validator=whole(1, 2**10))
    channels: int = attrs.field(default=4, validator=whole(1, 2**10))
    groups: int = attrs.field(default=32, validator=whole(1, 2**16))
    kl: float = attrs.field(default=1e-6, validator=not_negative)

    def __attrs_post_init__(self) -> None:
        if not self.widths or any(width % self.groups for width in self.widths):
            raise CryoFMError(f"widths {self.widths} must be multiples of {self.groups} groups")
        if 2 * self.channels > self.factor**3:
            raise CryoFMError(f"{self.channels} channels for {self.factor}³ voxels compress to no more than a half")

    @property
    def factor(self) -> int:
        """Voxels along each axis that become one latent voxel, d."""
        return int(2 ** (len(self.widths) - 1))

    @property
    def multiple(self) -> int:
        """Every side of a volume must be a multiple of this."""
        return self.factor

    def check_box(self, box: torch.Size) -> None:
        """Raise `CryoFMError` unless the sides (z, y, x) can be compressed."""
        if len(box) != 3 or any(side % self.factor for side in box):
            raise CryoFMError(f"a box of {tuple(box)} voxels: every side must be a multiple of {self.factor}")


# Rombach et al., table 8 (KL, f = 4) and the released Stable Diffusion (f = 8), in three dimensions.
VAE_4 = AutoencoderConfig(widths=(128, 256, 512), channels=3)
VAE_8 = AutoencoderConfig(widths=(128, 256, 512, 512), channels=4)


class Autoencoder(nn.Module):
    """Volume to latent to volume: residual 3 x 3 x 3 convolutions, and global attention on the coarsest grid.

    A latent is a volume too, (batch, channels · z, y, x): its channels lie one behind the other along z.

    >>> network = Autoencoder(AutoencoderConfig(widths=(8, 16), depth=1, channels=2, groups=4))
    >>> x = torch.zeros(1, 8, 8, 12)
    >>> mean, log_variance = network.encode(x)
    >>> mean.shape, network.decode(mean).shape
    (torch.Size([1, 8, 4, 6]), torch.Size([1, 8, 8, 12]))
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = _Encoder(config), _Decoder(config)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x̂ = D(μ + σ ε), μ and log σ² of volumes x (batch, z, y, x) and ``noise`` ε, of a latent's shape."""
        mean, log_variance = self.encode(x)
        return self.decode(mean + (log_variance / 2).exp() * noise), mean, log_variance

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ² of q(z | x), for volumes (batch, z, y, x) in model units.

        Raises:
            CryoFMError: a side is no multiple of ``config.factor``.
        """
        self.config.check_box(x.shape[1:])
        with _precision(x, min(x.shape[1:]) // self.config.factor):
            moments: Tensor = self.encoder(x[:, None])
        mean, log_variance = rearrange(moments, "b (m c) z y x -> m b (c z) y x", m=2)
        return mean, log_variance.clamp(_LOWEST, _HIGHEST)

    def decode(self, z: Tensor) -> Tensor:
        """The volumes of latents (batch, channels · z, y, x).

        Raises:
            CryoFMError: the first side is no multiple of ``config.channels``.
        """
        if z.ndim != 4 or z.shape[1] % self.config.channels:
            raise CryoFMError(f"a latent must be (batch, {self.config.channels} · z, y, x), found {tuple(z.shape)}")
        with _precision(z, min(z.shape[1] // self.config.channels, *z.shape[2:])):
            x: Tensor = self.decoder(rearrange(z, "b (c z) y x -> b c z y x", c=self.config.channels))
        return x[:, 0]


def _precision(x: Tensor, coarsest: int) -> AbstractContextManager[object]:
    """Autocast as it is, but for grids smaller than a kernel, of which oneDNN's bf16 makes garbage (torch 2.13)."""
    return nullcontext() if coarsest >= 3 else torch.autocast(x.device.type, enabled=False)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½ Σ (μ² + σ² − 1 − log σ²) of each sample, in nats.

    >>> divergence(torch.ones(1, 2, 1, 1), torch.zeros(1, 2, 1, 1))
    tensor([1.])
    """
    return (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1) / 2


def autoencoding_loss(network: nn.Module, x_0: Tensor, t: Tensor, x_1: Tensor) -> Tensor:
    """(Σ |x̂ − x| + β KL) / voxels; a `cryofm_model.train.Loss`.

    Args:
        network: an `Autoencoder`, or it among other processes.
        x_0: data (batch, z, y, x), normalised.
        t: times, of which it makes no use.
        x_1: white noise of unit variance, like ``x_0``: the first values are ε.

    Returns:
        The loss of each sample, (batch,).
    """
    config = getattr(network, "module", network).config
    assert isinstance(config, AutoencoderConfig)
    found, mean, log_variance = network(x_0, latent_noise(x_1, config))
    error: Tensor = (found.float() - x_0).abs().flatten(1).sum(1)
    return (error + config.kl * divergence(mean.float(), log_variance.float())) / x_0[0].numel()


def latent_noise(x_1: Tensor, config: AutoencoderConfig, offset: int = 0) -> Tensor:
    """White noise of a latent's shape: the values of that of volumes from the ``offset``-th latent on."""
    z, y, x = (side // config.factor for side in x_1.shape[1:])
    count = config.channels * z * y * x
    return x_1.flatten(1)[:, offset * count : (offset + 1) * count].reshape(-1, config.channels * z, y, x)


class _Encoder(nn.Module):
    """(batch, 1, z, y, x) -> μ and log σ², (batch, 2 · channels, z / d, ...)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        groups, last = config.groups, config.widths[-1]
        self.stem = nn.Conv3d(1, config.widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        for fine, width in pairwise((config.widths[0], *config.widths)):
            blocks = [_Residual(fine if i == 0 else width, width, groups) for i in range(config.depth)]
            self.levels.append(nn.Sequential(*blocks))
        self.merge = nn.ModuleList(nn.Conv3d(width, width, 3, stride=2) for width in config.widths[:-1])
        self.middle = _middle(last, groups)
        self.norm = nn.GroupNorm(groups, last, eps=1e-6)
        moments = 2 * config.channels
        self.out = nn.Sequential(nn.Conv3d(last, moments, 3, padding=1), nn.Conv3d(moments, moments, 1))

    def forward(self, h: Tensor) -> Tensor:
        """Moments of volumes."""
        h = self.stem(h)
        for level, blocks in enumerate(self.levels):
            if level:
                h = self.merge[level - 1](F.pad(h, (0, 1) * 3))
            h = blocks(h)
        found: Tensor = self.out(F.silu(self.norm(self.middle(h))))
        return found


class _Decoder(nn.Module):
    """(batch, channels, z, y, x) -> (batch, 1, d · z, ...)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        groups, last, channels = config.groups, config.widths[-1], config.channels
        self.stem = nn.Sequential(nn.Conv3d(channels, channels, 1), nn.Conv3d(channels, last, 3, padding=1))
        self.middle = _middle(last, groups)
        self.levels = nn.ModuleList()
        for coarse, width in pairwise((last, *reversed(config.widths))):
            blocks = [_Residual(coarse if i == 0 else width, width, groups) for i in range(config.depth + 1)]
            self.levels.append(nn.Sequential(*blocks))
        self.split = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1) for width in reversed(config.widths[1:]))
        self.norm = nn.GroupNorm(groups, config.widths[0], eps=1e-6)
        self.out = nn.Conv3d(config.widths[0], 1, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """Volumes of latents."""
        h = self.middle(self.stem(h))
        for level, blocks in enumerate(self.levels):
            if level:
                h = self.split[level - 1](F.interpolate(h, scale_factor=2.0, mode="nearest"))
            h = blocks(h)
        found: Tensor = self.out(F.silu(self.norm(h)))
        return found


class _Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a linear map of x where the widths differ."""

    def __init__(self, before: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.GroupNorm(groups, before, eps=1e-6), nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_in, self.conv_out = (nn.Conv3d(n, width, 3, padding=1) for n in (before, width))
        self.around = nn.Identity() if before == width else nn.Conv3d(before, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, before, z, y, x) -> (batch, width, z, y, x)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        change: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        around: Tensor = self.around(x)
        return around + change


class _Attention(nn.Module):
    """x + attention of one head over all voxels."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.q, self.k, self.v, self.back = (nn.Conv3d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, z, y, x) -> the same."""
        h = self.norm(x)
        q, k, v = (rearrange(part(h), "b c z y x -> b 1 (z y x) c") for part in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)
        change: Tensor = self.back(attended[:, 0].mT.reshape(x.shape))
        return x + change


def _middle(width: int, groups: int) -> nn.Sequential:
    return nn.Sequential(_Residual(width, width, groups), _Attention(width, groups), _Residual(width, width, groups))
