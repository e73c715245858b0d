"""Latent flow models (paper F.4): an autoencoder of volumes, a flow over its latents, the decoder at the end.

Apart from everything else: it imports `networks`, `weights` and `prior`, and nothing but `train` and `load_prior`'s
message knows of it. How both are trained is in `latent.training` (extra ``[train]``).
"""

from cryofm_model.latent.autoencoder import VAE_4, VAE_8, Autoencoder, AutoencoderConfig, autoencoding_loss
from cryofm_model.latent.codec import DIT_4, DIT_8, Codec, Decoded, LatentPrior
from cryofm_model.latent.files import load_latent, save_latent

__all__ = [
    "DIT_4",
    "DIT_8",
    "VAE_4",
    "VAE_8",
    "Autoencoder",
    "AutoencoderConfig",
    "Codec",
    "Decoded",
    "LatentPrior",
    "autoencoding_loss",
    "load_latent",
    "save_latent",
]
