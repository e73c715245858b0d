"""Priors in safetensors files, with everything it takes to use them in the metadata."""

import json
import os
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from cryofm_model._kinds import positive, shown, whole
from cryofm_model.errors import CryoFMError, WeightsError
from cryofm_model.networks.hourglass import Hourglass
from cryofm_model.networks.hourglass_config import HourglassConfig, TimeCode
from cryofm_model.networks.unet import UNet, UNetConfig
from cryofm_model.networks.unet3d import UNet3D, UNet3DConfig
from cryofm_model.prior import (
    CalibratedConditionalPrior,
    CalibratedPrior,
    ConditionalPrior,
    Normalization,
    Prior,
    SpectrallyCalibratedPrior,
)
from cryofm_model.weights._safetensors import build, read, write
from cryofm_model.weights._settings import check_settings, check_values
from cryofm_model.weights.published import published_prior
from cryofm_model.weights.published_unet3d import SecondModel, is_unet3d, second_prior

__all__ = ["BUNDLED_PRIORS", "load_prior", "save_prior"]

_FORMAT = "cryofm-prior-1"
BUNDLED_PRIORS = ("cryofm-tiny", "cryofm-tiny-fine", "cryofm-tiny-particles")
# Each kind of network: how a file names it, its class, and the class of its configuration.
_NETWORKS: dict[str, tuple[Any, Any]] = {
    "unet": (UNet, UNetConfig),
    "hourglass": (Hourglass, HourglassConfig),
    "unet3d": (UNet3D, UNet3DConfig),
}
_STATISTICS = ("signal_power", "denoising_error")
_SPECTRUM = "denoising_spectrum"
_CONDITIONAL = ("tag", "weight")
_REQUIRED = ("format", "network", "config", "normalization", "voxel_size", "box")


def load_prior(
    source: str | os.PathLike[str] = "cryofm-tiny",
    *,
    time_code: TimeCode | None = None,
    voxel_size: float | None = None,
    box: int | None = None,
    kernel: int | None = None,
    model: SecondModel | None = None,
) -> Prior:
    """Load a prior: the name of a bundled one, a safetensors file, or a folder with ``model.safetensors``.

    The file is either one of `save_prior`, which says everything, or a published checkpoint of CryoFM, which
    leaves some things to say; the keyword arguments are for the latter alone. It is mapped into memory: let
    it lie unchanged while the prior is in use.

    Args:
        source: name or path.
        time_code: precision of the network's time code. By default what ``use_fp32_time_emb`` in the
            ``config.yaml`` beside the weights says, and "bf16" where it is not true or not there.
        voxel_size: at which the network was trained, in Å; known for CryoFM-S (1.5) and CryoFM-L (3.0), and for those
            of the second generation (1.5).
        box: side that it was trained on, in voxels; known likewise (64 and 128, and 64).
        kernel: side of the attention's neighbourhood, in tokens, which no tensor tells; 7 by default.
        model: of the second generation, where neither tensors nor the folder's name tell: "emhancer" and "emready" have
            the same shapes, and other tags and weights of guidance.

    Returns:
        A `ConditionalPrior` where the network takes a condition. A `CalibratedPrior` where the file holds statistics,
        a `SpectrallyCalibratedPrior` where the error per shell is among them; the published checkpoints hold none
        (``cryofm_sampling.calibrate`` measures them).

    Raises:
        WeightsError: no such file, a pickle, a foreign or damaged file, tensors that do not fit their network.
    """
    told = {"time_code": time_code, "voxel_size": voxel_size, "box": box, "kernel": kernel, "model": model}
    if source in BUNDLED_PRIORS:
        with as_file(files("cryofm_model.weights") / f"{source}.safetensors") as path:
            return _load(path, **told)
    path = Path(source)
    try:
        path = path / "model.safetensors" if path.is_dir() else path
        there = path.is_file()
    except (OSError, ValueError):  # a name that no disk takes
        there = False
    if not there:
        raise WeightsError(
            f"no weights at {path}; give a .safetensors file, a folder with model.safetensors, or one of "
            f"{BUNDLED_PRIORS}"
        )
    return _load(path, **told)


def save_prior(
    prior: Prior, path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32, overwrite: bool = False
) -> None:
    """Write a prior with everything it needs; the file appears whole or not at all.

    Args:
        prior: what to save.
        path: of the safetensors file.
        dtype: in which the weights are stored: float32 keeps every bit, bfloat16 halves the file. They are used
            in float32 whatever is stored.
        overwrite: replace an existing file.

    Raises:
        WeightsError: the file exists or cannot be written, or the network is of a kind that files cannot name.
        CryoFMError: a normalisation, voxel size or box that `load_prior` would refuse.
    """
    check_settings(prior.normalization)
    positive.check("voxel_size", prior.voxel_size)
    whole(1, 2**16).check("box", prior.box)
    kind = next((k for k, (network, _) in _NETWORKS.items() if type(prior.network) is network), None)
    if kind is None:
        raise WeightsError(f"cannot save a {type(prior.network).__name__}; a file holds one of {tuple(_NETWORKS)}")
    metadata = {
        **prior.about,
        "format": _FORMAT,
        "network": kind,
        "config": json.dumps(attrs.asdict(prior.network.config)),  # type: ignore[arg-type]
        "normalization": json.dumps(attrs.asdict(prior.normalization)),
        "voxel_size": repr(prior.voxel_size),
        "box": repr(prior.box),
    }
    if isinstance(prior, ConditionalPrior):
        metadata |= {"conditional": json.dumps({key: getattr(prior, key) for key in _CONDITIONAL})}
    statistics = [key for key in (*_STATISTICS, _SPECTRUM) if hasattr(prior, key)]
    metadata |= {key: json.dumps(getattr(prior, key).float().tolist()) for key in statistics}
    learnt = {name for name, _ in prior.network.named_parameters()}  # buffers stay exact: rounded times are others
    state = prior.network.state_dict()
    tensors = {key: value.to(dtype if key in learnt else value.dtype) for key, value in state.items()}
    write(Path(path), tensors, metadata, overwrite=overwrite)


def _load(path: Path, **told: Any) -> Prior:
    tensors, metadata = read(path)
    if metadata.get("format") != _FORMAT and (second := is_unet3d(tensors)) | ("patch_in.proj.weight" in tensors):
        foreign = ("time_code", "kernel") if second else ("model",)
        if given := [key for key in foreign if told.pop(key) is not None]:
            raise WeightsError(f"{path} leaves no {', '.join(given)} to say: it is of the other generation")
        return (second_prior if second else published_prior)(path, tensors, metadata, **told)
    if given := [key for key, value in told.items() if value is not None]:
        raise WeightsError(f"{path} says its own {', '.join(given)}; they are for published checkpoints")
    try:
        return _prior(path, tensors, metadata)
    except WeightsError:
        raise
    except (CryoFMError, TypeError, ValueError, KeyError, RuntimeError, OverflowError, RecursionError) as error:
        raise WeightsError(f"{path}: metadata do not describe a prior ({shown(error)})") from error


def _prior(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Prior:
    if metadata.get("format") != _FORMAT:
        raise WeightsError(
            f"{path} says format {metadata.get('format')!r}, expected {_FORMAT!r}; write it with save_prior"
        )
    kind: type[Prior] = Prior
    statistics: tuple[str, ...] = ()
    if _SPECTRUM in metadata:
        kind, statistics = SpectrallyCalibratedPrior, (*_STATISTICS, _SPECTRUM)
    elif any(key in metadata for key in _STATISTICS):
        kind, statistics = CalibratedPrior, _STATISTICS
    conditional: dict[str, Any] = {}
    if "conditional" in metadata:
        if kind is CalibratedPrior:
            raise WeightsError(f"{path}: a conditional prior has all three tables of statistics, or none")
        kind = ConditionalPrior if kind is Prior else CalibratedConditionalPrior
        conditional = _table_of(_CONDITIONAL, metadata["conditional"])
    missing = [key for key in (*_REQUIRED, *statistics) if key not in metadata]
    if missing or metadata["network"] not in _NETWORKS:
        raise WeightsError(f"{path}: metadata lack {missing} or name an unknown network {metadata.get('network')!r}")
    network_class, config_class = _NETWORKS[metadata["network"]]
    config = _made(config_class, metadata["config"])
    # Before it is built: every block has tensors of its own, and a file of few tensors no network of many.
    if sum(config.depths) > len(tensors):
        raise WeightsError(f"{path} holds {len(tensors)} tensors, too few for the depths {config.depths}")
    voxel_size, box = float(metadata["voxel_size"]), int(metadata["box"])
    positive.check("voxel_size", voxel_size)
    whole(1, 2**16).check("box", box)
    tables: dict[str, Any] = {key: _table(key, metadata[key]) for key in statistics}
    return kind(
        network=build(partial(network_class, config), tensors, path),
        normalization=_made(Normalization, metadata["normalization"]),
        voxel_size=voxel_size,
        box=box,
        about={k: value for k, value in metadata.items() if k not in (*_REQUIRED, *statistics, "conditional")},
        **conditional,
        **tables,
    )


def _made(kind: Any, text: str) -> Any:
    """Settings from JSON, each checked for its kind before they meet each other."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise CryoFMError(f"{kind.__name__} is {shown(values)}")
    check_values(kind, values, f"{kind.__name__}: ")
    if kind is Normalization and set(values) - {"clip"} != {
        "mean",
        "std",
    }:  # whose defaults would be wrong without a word
        raise CryoFMError(f"Normalization: mean and std are needed, found {shown(list(values))}")
    return kind(**values)


def _table_of(names: tuple[str, ...], text: str) -> dict[str, Any]:
    """Values by these names from JSON; they are checked where they are used."""
    values = json.loads(text)
    if not isinstance(values, dict) or set(values) != set(names):
        raise CryoFMError(f"{', '.join(names)} are needed, found {shown(values)}")
    return values


def _table(name: str, text: str) -> Tensor:
    """A table of statistics from JSON: finite, and along one axis or two."""
    table = torch.tensor(json.loads(text), dtype=torch.get_default_dtype())
    axes, least = (1, 1) if name == "signal_power" else (2, 2)
    if table.ndim != axes or table.shape[-1] < least or table.numel() == 0 or not table.isfinite().all():
        raise CryoFMError(f"{name} is of shape {tuple(table.shape)}, or not finite")
    return table
