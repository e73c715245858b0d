"""How an autoencoder and a flow over its latents are trained by `cryofm_model.train.train`: what is measured of each,
and the loss of the latter (extra ``[train]``).
"""

from collections.abc import Sequence

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from cryofm_model.errors import CryoFMError
from cryofm_model.flow import flow_matching_loss
from cryofm_model.latent.autoencoder import Autoencoder, AutoencoderConfig, divergence, latent_noise
from cryofm_model.latent.codec import Codec, OverChannels
from cryofm_model.networks.flops import counted_gflop, forward_gflop
from cryofm_model.networks.hourglass import Hourglass
from cryofm_model.train.report import SAMPLE_STEPS, SAMPLES, VALIDATION_TIMES, sample, validation_loss

__all__ = ["AutoencoderValidation", "LatentFlowLoss", "LatentValidation", "ae_fsc", "ae_l1"]

_PROBE_TIME = 0.7


def ae_fsc(volume: Tensor, found: Tensor) -> float:
    """AE-FSC = FSC(V, VAE(V)) (paper F.4.2), as FSC_AUC: the mean over the shells."""
    from cryofm_io import fsc

    return fsc(found.float().numpy(), volume.float().numpy(), 1.0).auc


def ae_l1(volume: Tensor, found: Tensor) -> float:
    """AE-L1 = ‖V − VAE(V)‖₁ (paper F.4.2) over the number of voxels: the paper's .0028 is no sum over 64³.

    >>> ae_l1(torch.zeros(2, 2, 2), torch.full((2, 2, 2), -0.5))
    0.5
    """
    return float((volume - found).abs().mean())


@attrs.frozen(eq=False)
class AutoencoderValidation:
    """Of an `Autoencoder`: AE-FSC, AE-L1, and nats of divergence for each value of a latent.

    Attributes:
        crops: see `cryofm_model.train.report.Validation`.
        std: of the normalisation: AE-L1 is in densities, of which 1 is full.
    """

    crops: Tensor
    std: float
    columns = ("ae_fsc", "ae_l1", "kl")

    @torch.no_grad()
    def scores(self, network: nn.Module) -> list[float]:
        """As `Validation.scores`."""
        rows = []
        for crop in self.crops:
            mean, log_variance, found = self._coded(network, crop)
            kl = float(divergence(mean, log_variance)) / mean.numel()
            rows.append([ae_fsc(crop, found), self.std * ae_l1(crop, found), kl])
        return [float(value) for value in np.mean(rows, 0)]

    @torch.no_grad()
    def maps(self, network: nn.Module, seed: int) -> Tensor:
        """A crop, its reconstruction, and the same of others."""
        shown = [torch.stack([crop, self._coded(network, crop)[2]]) for crop in self.crops[: (SAMPLES + 1) // 2]]
        return torch.cat(shown)

    def gflop(self, network: nn.Module, side: int) -> float:
        """Three evaluations, of encoder and decoder."""
        config = network.config
        assert isinstance(config, AutoencoderConfig)
        z, y, x = (side // config.factor,) * 3
        return 3 * counted_gflop(network, (1, side, side, side), (1, config.channels * z, y, x))

    @staticmethod
    def _coded(network: nn.Module, crop: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """μ, log σ² and D(μ)."""
        assert isinstance(network, Autoencoder)
        mean, log_variance = network.encode(crop[None].to(next(network.parameters()).device))
        return mean.float(), log_variance.float(), network.decode(mean)[0].float().cpu()


@attrs.frozen(eq=False)
class LatentFlowLoss:
    """Flow matching (paper 3.1) of the latents z ~ q(z | x_0) of crops; a `cryofm_model.train.Loss`.

    Attributes:
        codec: whose autoencoder stays as it is.
    """

    codec: Codec

    def __call__(self, network: nn.Module, x_0: Tensor, t: Tensor, x_1: Tensor) -> Tensor:
        """The loss of each crop: all noise comes from ``x_1``, white like ``x_0``."""
        config = self.codec.autoencoder.config
        with torch.no_grad():
            z_0 = self.codec.encode(x_0, latent_noise(x_1, config))
        return flow_matching_loss(OverChannels(network, config.channels), z_0, t, latent_noise(x_1, config, 1))


@attrs.frozen(eq=False)
class LatentValidation:
    """Of a flow over latents: v-MSE there at fixed times, FSC of one denoising step behind the decoder, samples.

    Attributes:
        crops: see `cryofm_model.train.report.Validation`.
        codec: between them and latents.
    """

    crops: Tensor
    codec: Codec
    columns = (*(f"latent_v_mse_t{t}" for t in VALIDATION_TIMES), f"fsc_auc_t{_PROBE_TIME}")

    @torch.no_grad()
    def scores(self, network: nn.Module) -> list[float]:
        """As `Validation.scores`."""
        flow = self._flow(network)
        device = next(network.parameters()).device
        z_0 = torch.cat([self.codec.encode(crop[None].to(device)).cpu() for crop in self.crops])
        z_1 = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(0), dtype=z_0.dtype)
        z_t = torch.lerp(z_0, z_1, _PROBE_TIME)
        t = torch.tensor([_PROBE_TIME], device=device)
        aucs = []
        for crop, z in zip(self.crops, z_t.to(device), strict=True):
            denoised = z[None] - _PROBE_TIME * flow(z[None], t).float()
            aucs.append(ae_fsc(crop, self.codec.decode(denoised)[0].float().cpu()))
        return [*validation_loss(flow, z_0), float(np.mean(aucs))]

    @torch.no_grad()
    def maps(self, network: nn.Module, seed: int) -> Tensor:
        """A crop, and decoded samples."""
        shape = self.codec.latent_shape((SAMPLES, *self.crops.shape[1:]))
        latents = sample(self._flow(network), shape, SAMPLE_STEPS, torch.Generator().manual_seed(seed))
        device = next(network.parameters()).device
        return torch.cat([self.crops[:1], *(self.codec.decode(z[None].to(device)).cpu() for z in latents)])

    def gflop(self, network: nn.Module, side: int) -> float:
        """Three evaluations of the network, and one of the encoder."""
        assert isinstance(network, Hourglass)
        autoencoder = self.codec.autoencoder
        latent = (side // autoencoder.config.factor,) * 3
        encoder = counted_gflop(autoencoder.encoder, (1, 1, side, side, side))
        return 3 * forward_gflop(network.config, latent) + encoder

    def check_sides(self, network: nn.Module, sides: Sequence[int]) -> None:
        """Raise `CryoFMError` unless crops of all these sides can be trained on."""
        assert isinstance(network, Hourglass)
        config, channels = network.config, self.codec.autoencoder.config.channels
        if config.channels != channels:
            raise CryoFMError(f"the network takes {config.channels} channels, the codec's latents have {channels}")
        for side in sides:
            self.codec.latent_shape((side,) * 3)
            config.check_box((side // self.codec.autoencoder.config.factor,) * 3)

    def _flow(self, network: nn.Module) -> OverChannels:
        return OverChannels(network, self.codec.autoencoder.config.channels)
