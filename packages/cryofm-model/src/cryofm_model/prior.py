"""A prior over density maps: a velocity network and what must be known to use it, in one safetensors file."""

import json
import os
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .errors import WeightsError
from .hourglass import Hourglass, HourglassConfig
from .unet import UNet, UNetConfig

__all__ = ["Normalization", "Prior", "load_prior", "save_prior"]

_FORMAT = "cryofm-prior-1"
_BUNDLED = ("cryofm-tiny",)
# Each kind of network: how a file names it, its class, and the class of its configuration.
_NETWORKS: dict[str, tuple[Any, Any]] = {
    "unet": (UNet, UNetConfig),
    "hourglass": (Hourglass, HourglassConfig),
}


@attrs.frozen
class Normalization:
    """Model units are (density − mean) / std, with the density scaled so that its 99.999th percentile is 1.

    >>> Normalization(mean=0.04, std=0.09)
    Normalization(mean=0.04, std=0.09)
    """

    mean: float = 0.04
    std: float = attrs.field(default=0.09, validator=attrs.validators.gt(0))


@attrs.frozen(eq=False)
class Prior:
    """A velocity field v(x, t) over volumes in model units (it satisfies cryofm-sampling's ``VelocityField``).

    Attributes:
        network: called with (batch, z, y, x) and times (batch,).
        normalization: between densities and model units.
        voxel_size: at which it was trained, Å.
        box: a good side for tiles, voxels.
        signal_power: radial power of the data in model units, orthonormal FFT, from frequency 0 to Nyquist.
        denoising_error: (n, 2), times and the mean square error of x̂_0 per voxel at them.
        about: whatever else its file says: licence, training data, validation loss.

    >>> prior = load_prior("cryofm-tiny")
    >>> prior.voxel_size
    1.5
    >>> x_t, t = torch.randn(2, 32, 32, 32), torch.tensor(0.5)
    >>> x_hat_0 = x_t - t * prior(x_t, t)
    >>> x_hat_0.shape
    torch.Size([2, 32, 32, 32])
    """

    network: nn.Module = attrs.field(repr=False)
    normalization: Normalization
    voxel_size: float = attrs.field(validator=attrs.validators.gt(0))
    box: int = attrs.field(validator=attrs.validators.gt(0))
    signal_power: Tensor = attrs.field(repr=False)
    denoising_error: Tensor = attrs.field(repr=False)
    about: Mapping[str, str] = attrs.field(factory=dict, repr=False)

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Velocity dx/dt at ``x`` (*batch, z, y, x), ``t`` in [0, 1] scalar or (*batch,); the weights' precision."""
        weight = next(self.network.parameters())
        flat = x.reshape(-1, *x.shape[-3:]).to(weight)
        times = t.to(weight).expand(x.shape[:-3]).reshape(-1)
        velocity: Tensor = self.network(flat, times)
        return velocity.reshape(x.shape).to(x)

    @property
    def multiple(self) -> int:
        """Every side of a box must be a multiple of this."""
        return int(self.network.config.multiple)  # type: ignore[union-attr, arg-type]

    def to(self, device: torch.device | str) -> "Prior":
        """The same prior on another device; the network moves, as torch's modules do."""
        return attrs.evolve(
            self,
            network=self.network.to(device),
            signal_power=self.signal_power.to(device),
            denoising_error=self.denoising_error.to(device),
        )


def load_prior(source: str | os.PathLike[str] = "cryofm-tiny") -> Prior:
    """Load a prior: the name of a bundled one, a safetensors file, or a folder with ``model.safetensors``.

    Raises:
        WeightsError: no such file, a pickle, a foreign or damaged file, tensors that do not fit their network.
    """
    if source in _BUNDLED:
        with as_file(files("cryofm_model") / "weights" / f"{source}.safetensors") as path:
            return _read(path)
    path = Path(source)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise WeightsError(
            f"no weights at {path}; give a .safetensors file, a folder with model.safetensors, or one of {_BUNDLED}"
        )
    return _read(path)


def save_prior(
    prior: Prior, path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32, overwrite: bool = False
) -> None:
    """Write a prior with everything it needs; the file appears whole or not at all.

    Args:
        prior: what to save.
        path: of the safetensors file.
        dtype: in which the weights are stored; they are used in float32 whatever is stored.
        overwrite: replace an existing file.

    Raises:
        WeightsError: the file exists, or the network is of a kind that files cannot name.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise WeightsError(f"{path} exists; pass overwrite=True to replace it")
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
        "signal_power": json.dumps([float(f"{p:.6g}") for p in prior.signal_power.tolist()]),
        "denoising_error": json.dumps([[float(f"{v:.6g}") for v in row] for row in prior.denoising_error.tolist()]),
    }
    learnt = {name for name, _ in prior.network.named_parameters()}  # buffers stay exact: rounded times are others
    state = prior.network.state_dict()
    tensors = {k: v.to("cpu", dtype if k in learnt else v.dtype).contiguous() for k, v in state.items()}
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(save(tensors, metadata))  # save_file would make it unreadable to others
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path) -> Prior:
    _refuse_pickle(path)
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file ({error})") from None
    if metadata.get("format") != _FORMAT:
        raise WeightsError(
            f"{path} says format {metadata.get('format')!r}, expected {_FORMAT!r}; write it with save_prior"
        )
    own = (
        "format",
        "network",
        "config",
        "normalization",
        "voxel_size",
        "box",
        "signal_power",
        "denoising_error",
    )
    missing = [key for key in own if key not in metadata]
    if missing or metadata["network"] not in _NETWORKS:
        raise WeightsError(f"{path}: metadata lack {missing} or name an unknown network {metadata.get('network')!r}")
    try:
        network_class, config_class = _NETWORKS[metadata["network"]]
        network: nn.Module = network_class(config_class(**json.loads(metadata["config"])))
        prior = Prior(
            network=network,
            normalization=Normalization(**json.loads(metadata["normalization"])),
            voxel_size=float(metadata["voxel_size"]),
            box=int(metadata["box"]),
            signal_power=torch.tensor(json.loads(metadata["signal_power"])),
            denoising_error=torch.tensor(json.loads(metadata["denoising_error"])),
            about={key: value for key, value in metadata.items() if key not in own},
        )
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path}: metadata do not describe a prior ({error})") from error
    _load_strictly(network, tensors, path)
    network.eval().requires_grad_(False)
    return prior


def _load_strictly(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    expected = network.state_dict()
    wrong = [f"{key} is missing" for key in expected if key not in tensors]
    wrong += [f"{key} is not expected" for key in tensors if key not in expected]
    wrong += [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise WeightsError(f"{path}: the weights do not fit their network: {'; '.join(wrong[:5])}{more}")
    network.load_state_dict({key: value.to(expected[key].dtype) for key, value in tensors.items()})


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(2)
    if head == b"PK" or head[:1] == b"\x80":
        raise WeightsError(f"{path} is a pickle, which can run code when it is read; convert it to safetensors")
