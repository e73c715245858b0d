"""How `train_prior.py` trains an autoencoder, or a flow over the latents of one."""

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from cryofm_model import CryoFMError, HourglassConfig
from cryofm_model.data.mixture import CropSource
from cryofm_model.latent import Autoencoder, AutoencoderConfig, Codec, LatentPrior, autoencoding_loss, load_latent
from cryofm_model.latent.training import AutoencoderValidation, LatentFlowLoss, LatentValidation
from cryofm_model.train import Recipe, train


def check_latent(args: argparse.Namespace, recipe: Recipe) -> bool:
    """Whether latents are trained; `CryoFMError` where something is asked for that these do not have."""
    if not args.autoencoder and not isinstance(recipe.network, AutoencoderConfig):
        return False
    if args.init or recipe.data.observed:
        raise CryoFMError("neither --init nor data.observed is for latents: their training starts from scratch")
    if args.autoencoder and not isinstance(recipe.network, HourglassConfig):
        raise CryoFMError(f"--autoencoder takes a recipe of the kind hourglass; {args.recipe} is another")
    return True


def train_latent(
    args: argparse.Namespace,
    recipe: Recipe,
    network: nn.Module,
    source: CropSource,
    validation: Tensor,
    examples: int,
) -> tuple[Codec | LatentPrior, dict[str, str]]:
    """Train an autoencoder, measuring its latents on so many examples, or a flow; what came of it, and its scores."""
    training, machine = recipe.training, recipe.machine
    if args.autoencoder:
        codec = codec_of(recipe, args.autoencoder).to(next(network.parameters()).device)
        flow = LatentValidation(validation, codec)
        flow.check_sides(network, [side for _, side, _ in training.stages])
        loss = LatentFlowLoss(codec)
        averaged = train(network, source, flow, training, args.out, machine=machine, loss=loss).eval()
        return LatentPrior(averaged, codec), scores(flow, averaged)
    rebuilt = AutoencoderValidation(validation, recipe.normalization.std)
    averaged = train(network, source, rebuilt, training, args.out, machine=machine, loss=autoencoding_loss).eval()
    assert isinstance(averaged, Autoencoder)
    crops = source.crops(examples, validation.shape[-1], np.random.default_rng(1))
    return Codec.measured(averaged, recipe.normalization, recipe.voxel_size, crops), scores(rebuilt, averaged)


@torch.no_grad()
def scores(measured: AutoencoderValidation | LatentValidation, network: nn.Module) -> dict[str, str]:
    """The last scores by their names, for the file."""
    return {name: f"{value:.4f}" for name, value in zip(measured.columns, measured.scores(network), strict=True)}


def codec_of(recipe: Recipe, name: str) -> Codec:
    """The codec over whose latents a flow is trained; `CryoFMError` where it is not of the recipe's units."""
    found = load_latent(name)
    codec = found.codec if isinstance(found, LatentPrior) else found
    if (codec.normalization, codec.voxel_size) != (recipe.normalization, recipe.voxel_size):
        raise CryoFMError(
            f"the autoencoder {name} is of {codec.voxel_size:g} Å and {codec.normalization}; the recipe says "
            f"{recipe.voxel_size:g} Å and {recipe.normalization}"
        )
    return codec
