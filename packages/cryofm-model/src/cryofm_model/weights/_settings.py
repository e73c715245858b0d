"""Which `Kind` each attribute of `Normalization`, `UNetConfig`, `HourglassConfig` and `UNet3DConfig` is of."""

from collections.abc import Mapping
from typing import Any

import attrs

from cryofm_model._kinds import Kind, even, finite, flag, one_of, positive, sizes, whole
from cryofm_model.networks.hourglass_config import HourglassConfig
from cryofm_model.networks.unet import UNetConfig
from cryofm_model.networks.unet3d import UNet3DConfig
from cryofm_model.prior import Normalization

__all__ = ["check_settings", "check_values", "settings_of_its_kind"]

_FEATURES, _BLOCKS, _SIDE = 2**16, 2**10, 2**10  # of networks: beyond any that a machine can hold
_KINDS: Mapping[type, Mapping[str, Kind]] = {
    Normalization: {"mean": finite, "std": positive, "clip": flag},
    UNetConfig: {
        "widths": sizes(1, _FEATURES),
        "depths": sizes(0, _BLOCKS),
        "up_depths": sizes(0, _BLOCKS),
        "patch": whole(1, 64),
        "conditioning": even(_FEATURES),
        "conditions": whole(0, _SIDE),
    },
    HourglassConfig: {
        "widths": sizes(1, _FEATURES),
        "depths": sizes(1, _BLOCKS),
        "patch": whole(1, 64),
        "kernel": whole(1, _SIDE),
        "head_width": whole(12, _FEATURES),
        "channels": whole(1, _FEATURES),
        "conditioning": even(_FEATURES),
        "ff_factor": whole(1, _BLOCKS),
        "time_code": one_of("fp32", "bf16", "fp16"),
    },
    UNet3DConfig: {
        "widths": sizes(2, _FEATURES),
        "depths": sizes(1, _BLOCKS),
        "attention": sizes(0, 15),
        "conditions": whole(0, _SIDE),
        "tags": whole(0, _FEATURES),
        "conditioning": even(_FEATURES),
        "groups": whole(1, _FEATURES),
        "head_width": whole(1, _FEATURES),
    },
}


def check_values(kind: type, values: Mapping[str, Any], where: str) -> None:
    """Raise `CryoFMError` where a value is none for that attribute of `Normalization`, `UNetConfig`, ...; ``where``
    begins the message.
    """
    for name, value in values.items():
        if (known := _KINDS.get(kind, {}).get(name)) is not None:
            known.check(f"{where}{name}", value)


def check_settings(settings: Any) -> None:
    """The same for an object that was made from its values."""
    name = type(settings).__name__
    check_values(type(settings), attrs.asdict(settings), f"{name}: ")


def settings_of_its_kind(_: Any, __: "attrs.Attribute[Any]", settings: Any) -> None:
    """`check_settings` as a validator of attrs."""
    check_settings(settings)
