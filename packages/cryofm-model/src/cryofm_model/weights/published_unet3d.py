"""The published checkpoints of CryoFM's second generation: one unconditional network, and two that enhance a map.

The tensors say all of the configuration but the groups of the norms (32) and the width of attention's heads (8). The
two conditional networks are of the same shapes: only names tell them apart.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import attrs
from torch import Tensor

from cryofm_model._kinds import one_of, positive, whole
from cryofm_model.errors import CryoFMError, WeightsError
from cryofm_model.networks.unet3d import CRYOFM2, CRYOFM2_CONDITIONAL, UNet3D, UNet3DConfig
from cryofm_model.prior import ConditionalPrior, Normalization, Prior
from cryofm_model.weights._safetensors import build
from cryofm_model.weights._settings import check_settings

__all__ = ["SecondModel", "is_unet3d", "second_prior"]

SecondModel = Literal["pretrain", "emhancer", "emready"]
_VOXEL_SIZE, _BOX = 1.5, 64
# Unclipped: negative density and outliers stay.
_NORMALIZATION = Normalization(clip=False)
# Tag, and the weight of guidance, as its makers run them.
_ADVISED: Mapping[str, tuple[int, float]] = {"emhancer": (1, 2.0), "emready": (0, 0.5)}


def is_unet3d(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these may be the tensors of a `UNet3D`."""
    return {"conv_in.weight", "time_embedding.linear_1.weight", "conv_norm_out.weight"} <= set(tensors)


def second_prior(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    model: SecondModel | None,
    voxel_size: float | None,
    box: int | None,
) -> Prior:
    """The prior of a published checkpoint; the arguments are those of `load_prior`.

    Raises:
        WeightsError: tensors that are no such network, a model that cannot be told or is not in the tensors, or a voxel
            size that is neither known nor given.
    """
    try:
        for told, value, kind in (
            ("model", model, one_of(*get_args(SecondModel))),
            ("voxel_size", voxel_size, positive),
            ("box", box, whole(1, 2**16)),
        ):
            if value is not None:
                kind.check(told, value)
        config = _config({key: tuple(value.shape) for key, value in tensors.items()})
        check_settings(config)
    except (CryoFMError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"{path} is no prior of this package and no CryoFM checkpoint: {error}") from None
    released = config in (CRYOFM2, CRYOFM2_CONDITIONAL)
    if not released and (voxel_size is None or box is None):
        raise WeightsError(
            f"{path} is none of the published networks (widths {config.widths}, depths {config.depths}, "
            f"{config.conditions} conditions, {config.tags} tags) and does not say what it was trained on; pass "
            "voxel_size (Å) and box (voxels)"
        )
    network = build(partial(UNet3D, config), tensors, path)
    name = _name(path, config, model)
    about = {"model": f"cryofm2-{name}", "license": "Apache-2.0"} if name and released else {}
    about |= {key: value for key, value in metadata.items() if key != "format"}
    prior = Prior(network, _NORMALIZATION, voxel_size or _VOXEL_SIZE, box or _BOX, about=about)
    if config.conditions < 2:
        return prior
    tag, weight = _ADVISED.get(name or "", (None, 0.0))
    own = {field.name: getattr(prior, field.name) for field in attrs.fields(Prior)}
    return ConditionalPrior(**own, tag=tag, weight=weight)


def _name(path: Path, config: UNet3DConfig, model: SecondModel | None) -> str | None:
    """Which of the published networks it is; None for another one."""
    conditional = config.conditions == 2
    if model is not None and (model in _ADVISED) != conditional:
        takes = "a volume and a flag" if conditional else "no condition"
        raise WeightsError(f"{path} is not {model}: its network takes {takes}")
    if model is not None or not conditional:
        return model or ("pretrain" if config == CRYOFM2 else None)
    found = [name for name in _ADVISED if name in f"{path.parent.resolve().name}/{path.name}".lower()]
    if len(found) == 1:
        return found[0]
    if config != CRYOFM2_CONDITIONAL:
        return None
    raise WeightsError(
        f'{path} may be emhancer or emready, whose tensors have the same shapes: pass model="emhancer" or '
        'model="emready", or let its folder have the published name'
    )


def _config(shapes: Mapping[str, tuple[int, ...]]) -> UNet3DConfig:
    """Sizes of the network whose tensors have these names and shapes.

    >>> network = UNet3D(UNet3DConfig(widths=(32, 64), depths=(1, 2), attention=(1,), tags=3, conditioning=8))
    >>> _config({key: value.shape for key, value in network.state_dict().items()}) == network.config
    True
    """

    def side(key: str, axis: int) -> int:
        shape = shapes.get(key, ())
        if len(shape) <= axis or 0 in shape:
            raise WeightsError(f"{key} is {'missing' if key not in shapes else tuple(shape)}")
        return int(shape[axis])

    depths: dict[int, int] = {}
    attention: set[int] = set()
    for key in shapes:
        if block := re.match(r"down_blocks\.(\d{1,2})\.(resnets|attentions)\.(\d{1,4})\.", key):
            level = int(block[1])
            depths[level] = max(depths.get(level, 0), int(block[3]) + 1)
            attention |= {level} if block[2] == "attentions" else set()
    if sorted(depths) != list(range(len(depths))) or sum(depths.values()) > len(shapes):
        raise WeightsError(f"blocks of the levels {sorted(depths)}")
    return UNet3DConfig(
        widths=tuple(side(f"down_blocks.{level}.resnets.0.conv2.weight", 0) for level in range(len(depths))),
        depths=tuple(depths[level] for level in range(len(depths))),
        attention=tuple(sorted(attention)),
        conditions=side("conv_in.weight", 1) - 1,
        tags=side("class_embedding.weight", 0) if "class_embedding.weight" in shapes else 0,
        conditioning=side("time_embedding.linear_1.weight", 0),
    )
