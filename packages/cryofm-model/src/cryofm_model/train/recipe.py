"""Recipes: a network and a run as a TOML file."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs
from torch import nn

from cryofm_model._kinds import fraction, one_of, positive, shown, whole
from cryofm_model.data.map_set import MapSet, Place, Turn
from cryofm_model.data.mixture import CropSource, Imitated, Mixture
from cryofm_model.data.pairs import Degraded
from cryofm_model.errors import CryoFMError
from cryofm_model.latent.autoencoder import Autoencoder, AutoencoderConfig
from cryofm_model.networks.hourglass import Hourglass
from cryofm_model.networks.hourglass_config import HourglassConfig
from cryofm_model.networks.unet import UNet, UNetConfig
from cryofm_model.prior import Normalization
from cryofm_model.train.config import Machine, TrainConfig
from cryofm_model.weights._settings import check_values, settings_of_its_kind

__all__ = ["DataConfig", "Recipe", "read_recipe"]

T = TypeVar("T")
_NETWORKS = {"unet": UNetConfig, "hourglass": HourglassConfig, "autoencoder": AutoencoderConfig}
_LARGEST = 100_000  # bytes: a recipe has some thousand


@attrs.frozen(kw_only=True)
class DataConfig:
    """Which crops are drawn.

    Attributes:
        place: as in `MapSet`.
        turn: as in `MapSet`.
        measured: fraction of the crops that come from measured maps which are given beside the others.
        imitated: fraction of the other crops that imitate measured ones (`Imitated`).
        observed: fraction of all crops that are shown as plug-and-play shows them (`PlugAndPlayLoss` of
            cryofm-sampling), for training that goes on from a prior.
        dropped: fraction of the crops beside which a conditional network is shown nothing.
    """

    place: Place = attrs.field(default="density", validator=one_of("density", "uniform", "centre"))
    turn: Turn = attrs.field(default="rot24", validator=one_of("none", "rot24", "so3"))
    measured: float = attrs.field(default=0.0, validator=fraction)
    imitated: float = attrs.field(default=0.0, validator=fraction)
    observed: float = attrs.field(default=0.0, validator=fraction)
    dropped: float = attrs.field(default=0.1, validator=fraction)

    def source(
        self, maps: MapSet, measured: MapSet | None, normalization: Normalization, voxel_size: float
    ) -> CropSource:
        """The crops of ``maps`` and of ``measured`` maps, mixed.

        Raises:
            CryoFMError: measured maps are given and not asked for, or the reverse.
        """
        if (measured is None) != (self.measured == 0):
            raise CryoFMError(
                f"the recipe takes {self.measured:g} of the crops from measured maps, and "
                f"{'none' if measured is None else len(measured.maps)} are given beside the others"
            )
        simulated = Imitated(maps, self.imitated, normalization, voxel_size) if self.imitated else maps
        return Mixture([(measured, self.measured), (simulated, 1 - self.measured)]) if measured else simulated


@attrs.frozen
class Recipe:
    """What a recipe says.

    Attributes:
        voxel_size: of the prior, Å.
        box: a good side for tiles, voxels (`Prior.box`).
        network: its sizes.
        training: the run.
        data: its crops.
        machine: how to carry it out.
        normalization: between densities and model units.
    """

    voxel_size: float = attrs.field(validator=positive)
    box: int = attrs.field(validator=whole(1, 2**16))
    network: UNetConfig | HourglassConfig | AutoencoderConfig = attrs.field(validator=settings_of_its_kind)
    training: TrainConfig
    data: DataConfig = attrs.field(factory=DataConfig)
    machine: Machine = attrs.field(factory=Machine)
    normalization: Normalization = attrs.field(factory=Normalization, validator=settings_of_its_kind)

    def paired(self, crops: CropSource) -> CropSource:
        """The crops, with degraded ones beside them (`Degraded`) where the network takes a condition."""
        conditional = isinstance(self.network, UNetConfig) and self.network.conditions
        return Degraded(crops, self.normalization, self.data.dropped) if conditional else crops

    def build(self) -> nn.Module:
        """The network, untrained."""
        if isinstance(self.network, AutoencoderConfig):
            return Autoencoder(self.network)
        return UNet(self.network) if isinstance(self.network, UNetConfig) else Hourglass(self.network)


def read_recipe(path: Path) -> Recipe:
    """Read a TOML file with the tables ``network`` (its ``kind``: "unet", "hourglass" or "autoencoder"), ``training``,
    ``data``, ``machine`` and ``normalization``, whose keys are the attributes of `UNetConfig`, `HourglassConfig` or
    `AutoencoderConfig`, `TrainConfig`, `DataConfig`, `Machine` and `Normalization`.

    Raises:
        CryoFMError: no such file, no TOML, unknown or missing keys, values that do not fit; each by name.
    """
    content = _toml(path)
    tables: dict[str, type] = {
        "training": TrainConfig,
        "data": DataConfig,
        "machine": Machine,
        "normalization": Normalization,
    }
    network = _table(content.get("network", {}), f"{path}: [network]")
    kind = network.pop("kind", None)
    if not isinstance(kind, str) or kind not in _NETWORKS:
        raise CryoFMError(f"{path}: [network] says kind {shown(kind)}, expected one of {', '.join(_NETWORKS)}")
    content["network"] = _made(_NETWORKS[kind], network, f"{path}: [network]")
    for name, table in tables.items():
        if name in content:
            where = f"{path}: [{name}]"
            content[name] = _made(table, _table(content[name], where), where)
    return _made(Recipe, content, str(path))


def _toml(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise CryoFMError(f"{path} is not a readable TOML file (there is no such file)")
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise CryoFMError(f"{path} is not a readable TOML file (a recipe has no more than {_LARGEST} bytes)")
        return tomllib.loads(content.decode())
    except CryoFMError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CryoFMError(f"{path} is not a readable TOML file ({error})") from None


def _words(names: Sequence[str]) -> str:
    """Names that may be anything, in a message of one line."""
    text = " ".join(", ".join(names).split())
    return text if len(text) <= 80 else f"{text[:80]} ..."


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CryoFMError(f"{where} must be a table, found {shown(value)}")
    return dict(value)


def _made(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    fields = attrs.fields_dict(kind)  # type: ignore[arg-type]
    if unknown := [key for key in values if key not in fields]:
        raise CryoFMError(f"{where} has unknown keys {_words(unknown)}; known are {', '.join(fields)}")
    if missing := [name for name, field in fields.items() if field.default is attrs.NOTHING and name not in values]:
        raise CryoFMError(f"{where} lacks {', '.join(missing)}")
    check_values(kind, values, f"{where} ")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise CryoFMError(f"{where}: {error}") from None
