"""One safetensors file for a codec, or for a latent prior with its codec; everything is checked as in `load_prior`."""

import json
import os
from functools import partial
from pathlib import Path

import attrs
import torch
from torch import Tensor, nn

from cryofm_model._kinds import positive, shown, whole
from cryofm_model.errors import CryoFMError, WeightsError
from cryofm_model.latent.autoencoder import Autoencoder, AutoencoderConfig
from cryofm_model.latent.codec import Codec, LatentPrior
from cryofm_model.networks.hourglass import Hourglass
from cryofm_model.networks.hourglass_config import HourglassConfig
from cryofm_model.prior import Normalization
from cryofm_model.weights._safetensors import build, read, write
from cryofm_model.weights._settings import check_settings
from cryofm_model.weights.prior_file import LATENT_FORMAT, settings_of

__all__ = ["load_latent", "save_latent"]

_REQUIRED = ("format", "autoencoder", "latent_mean", "latent_std", "normalization", "voxel_size", "box")
_AUTOENCODER, _NETWORK = "autoencoder.", "network."  # what the names of their tensors begin with


def save_latent(
    latent: Codec | LatentPrior,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> None:
    """Write a codec, or a latent prior with its codec; the file appears whole or not at all.

    Args:
        latent: what to save.
        path: of the safetensors file.
        dtype: in which the weights are stored; they are used in float32 whatever is stored.
        overwrite: replace an existing file.

    Raises:
        WeightsError: the file exists or cannot be written, or the network is no `Hourglass`.
    """
    codec = latent.codec if isinstance(latent, LatentPrior) else latent
    check_settings(codec.normalization)
    metadata = {
        **latent.about,
        "format": LATENT_FORMAT,
        "autoencoder": json.dumps(attrs.asdict(codec.autoencoder.config)),
        "latent_mean": json.dumps(codec.mean.tolist()),
        "latent_std": json.dumps(codec.std.tolist()),
        "normalization": json.dumps(attrs.asdict(codec.normalization)),
        "voxel_size": repr(codec.voxel_size),
        "box": repr(codec.box),
    }
    modules: dict[str, nn.Module] = {_AUTOENCODER: codec.autoencoder}
    if isinstance(latent, LatentPrior):
        if not isinstance(latent.network, Hourglass):
            raise WeightsError(f"cannot save a {type(latent.network).__name__} over latents; a file holds an Hourglass")
        metadata["network"] = json.dumps(attrs.asdict(latent.network.config))
        modules[_NETWORK] = latent.network
    tensors: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        learnt = {name for name, _ in module.named_parameters()}  # buffers stay exact
        state = module.state_dict()
        tensors |= {prefix + key: v.to(dtype if key in learnt else v.dtype) for key, v in state.items()}
    write(Path(path), tensors, metadata, overwrite=overwrite)


def load_latent(source: str | os.PathLike[str]) -> Codec | LatentPrior:
    """Load a file of `save_latent`, or that of a folder with ``model.safetensors``.

    Returns:
        A `LatentPrior` where the file has a flow, else a `Codec`.

    Raises:
        WeightsError: no such file, a pickle, a foreign or damaged file, tensors that do not fit their network.
    """
    path = Path(source)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise WeightsError(f"no weights at {path}; give a .safetensors file or a folder with model.safetensors")
    tensors, metadata = read(path)
    if metadata.get("format") != LATENT_FORMAT:
        raise WeightsError(
            f"{path} says format {metadata.get('format')!r}, expected {LATENT_FORMAT!r}; load_prior reads the others"
        )
    try:
        return _latent(path, tensors, metadata)
    except WeightsError:
        raise
    except (CryoFMError, TypeError, ValueError, KeyError, RuntimeError, OverflowError, RecursionError) as error:
        raise WeightsError(f"{path}: metadata do not describe latents ({shown(error)})") from error


def _latent(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Codec | LatentPrior:
    if missing := [key for key in _REQUIRED if key not in metadata]:
        raise WeightsError(f"{path}: metadata lack {missing}")
    parts: dict[str, dict[str, Tensor]] = {_AUTOENCODER: {}, _NETWORK: {}}
    for key, value in tensors.items():
        prefix = next((prefix for prefix in parts if key.startswith(prefix)), None)
        if prefix is None or (prefix == _NETWORK and "network" not in metadata):
            raise WeightsError(f"{path}: the tensor {shown(key)} is of none of its networks")
        parts[prefix][key.removeprefix(prefix)] = value
    config = settings_of(AutoencoderConfig, metadata["autoencoder"])
    # Before they are built: every block has tensors of its own, and a file of few tensors no network of many.
    if config.depth * len(config.widths) > len(tensors):
        raise WeightsError(f"{path} holds {len(tensors)} tensors, too few for an autoencoder of depth {config.depth}")
    voxel_size, box = float(metadata["voxel_size"]), int(metadata["box"])
    positive.check("voxel_size", voxel_size)
    whole(1, 2**16).check("box", box)
    about = {key: value for key, value in metadata.items() if key not in (*_REQUIRED, "network")}
    autoencoder = build(partial(Autoencoder, config), parts[_AUTOENCODER], path)
    assert isinstance(autoencoder, Autoencoder)
    codec = Codec(
        autoencoder,
        settings_of(Normalization, metadata["normalization"]),
        voxel_size,
        box,
        torch.tensor(json.loads(metadata["latent_mean"]), dtype=torch.float32),
        torch.tensor(json.loads(metadata["latent_std"]), dtype=torch.float32),
        about=about,
    )
    if "network" not in metadata:
        return codec
    flow = settings_of(HourglassConfig, metadata["network"])
    if sum(flow.depths) > len(tensors):
        raise WeightsError(f"{path} holds {len(tensors)} tensors, too few for the depths {flow.depths}")
    return LatentPrior(build(partial(Hourglass, flow), parts[_NETWORK], path), codec, about=about)
