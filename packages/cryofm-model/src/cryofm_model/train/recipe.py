"""Recipes: a network and a run as a TOML file."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import attrs
from attrs.validators import ge, in_, le
from torch import nn

from cryofm_model.data.map_set import MapSet
from cryofm_model.data.mixture import CropSource, Imitated, Mixture
from cryofm_model.errors import CryoFMError
from cryofm_model.networks.hourglass import Hourglass
from cryofm_model.networks.hourglass_config import HourglassConfig
from cryofm_model.networks.unet import UNet, UNetConfig
from cryofm_model.prior import Normalization
from cryofm_model.train.config import Machine, TrainConfig

__all__ = ["DataConfig", "Recipe", "read_recipe"]

T = TypeVar("T")
_NETWORKS = {"unet": UNetConfig, "hourglass": HourglassConfig}


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
    """

    place: Literal["density", "centre"] = attrs.field(default="density", validator=in_(("density", "centre")))
    turn: Literal["none", "rot24", "so3"] = attrs.field(default="rot24", validator=in_(("none", "rot24", "so3")))
    measured: float = attrs.field(default=0.0, validator=[ge(0), le(1)])
    imitated: float = attrs.field(default=0.0, validator=[ge(0), le(1)])
    observed: float = attrs.field(default=0.0, validator=[ge(0), le(1)])

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

    voxel_size: float = attrs.field(validator=attrs.validators.gt(0))
    box: int = attrs.field(validator=attrs.validators.gt(0))
    network: UNetConfig | HourglassConfig
    training: TrainConfig
    data: DataConfig = attrs.field(factory=DataConfig)
    machine: Machine = attrs.field(factory=Machine)
    normalization: Normalization = attrs.field(factory=Normalization)

    def build(self) -> nn.Module:
        """The network, untrained."""
        return UNet(self.network) if isinstance(self.network, UNetConfig) else Hourglass(self.network)


def read_recipe(path: Path) -> Recipe:
    """Read a TOML file with the tables ``network`` (its ``kind``: "unet" or "hourglass"), ``training``, ``data``,
    ``machine`` and ``normalization``, whose keys are the attributes of `UNetConfig` or `HourglassConfig`,
    `TrainConfig`, `DataConfig`, `Machine` and `Normalization`.

    Raises:
        CryoFMError: no such file, no TOML, unknown or missing keys, values that do not fit; each by name.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise CryoFMError(f"{path} is not a readable TOML file ({error})") from None
    tables: dict[str, type] = {
        "training": TrainConfig,
        "data": DataConfig,
        "machine": Machine,
        "normalization": Normalization,
    }
    network = dict(content.get("network", {}))
    kind = network.pop("kind", None)
    if kind not in _NETWORKS:
        raise CryoFMError(f"{path}: [network] says kind {kind!r}, expected one of {', '.join(_NETWORKS)}")
    content["network"] = _made(_NETWORKS[kind], network, f"{path}: [network]")
    for name, kind in tables.items():
        if name in content:
            content[name] = _made(kind, content[name], f"{path}: [{name}]")
    return _made(Recipe, content, str(path))


def _made(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    fields = attrs.fields_dict(kind)  # type: ignore[arg-type]
    if unknown := [key for key in values if key not in fields]:
        raise CryoFMError(f"{where} has unknown keys {', '.join(unknown)}; known are {', '.join(fields)}")
    if missing := [name for name, field in fields.items() if field.default is attrs.NOTHING and name not in values]:
        raise CryoFMError(f"{where} lacks {', '.join(missing)}")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise CryoFMError(f"{where}: {error}") from None
