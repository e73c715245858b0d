"""The published checkpoints of CryoFM: a folder with ``model.safetensors`` and a ``config.yaml``.

The tensors say all of the configuration but the kernel (7) and the precision of the time code. The release
evaluates the time code in the precision it runs in unless ``use_fp32_time_emb`` is true; the paper trains in
bf16 (Table 4).
"""

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import attrs
from torch import Tensor

from cryofm_model._kinds import positive, shown, whole
from cryofm_model.errors import CryoFMError, WeightsError
from cryofm_model.networks.hourglass import Hourglass
from cryofm_model.networks.hourglass_config import CRYOFM_L, CRYOFM_S, HourglassConfig, TimeCode
from cryofm_model.prior import Normalization, Prior
from cryofm_model.weights._safetensors import build, write
from cryofm_model.weights._settings import check_settings

__all__ = ["export_published", "infer_config", "published_prior"]

# name, voxel size in Å, box
_RELEASED = {CRYOFM_S: ("CryoFM-S", 1.5, 64), CRYOFM_L: ("CryoFM-L", 3.0, 128)}
_LARGEST = 2**20  # characters of a config.yaml that are read
# A line of a YAML file, which may hold Python tags that no safe reader takes.
_FP32_TIME = re.compile(r"^[^#\n]*\buse_fp32_time_emb[\"']?\s*:\s*(?:!\S+\s+)?[\"']?(\w+)", re.MULTILINE)
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "null", "none")


def published_prior(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    time_code: TimeCode | None,
    voxel_size: float | None,
    box: int | None,
    kernel: int | None = None,
) -> Prior:
    """The prior of a published checkpoint; the arguments are those of `load_prior`.

    Raises:
        WeightsError: tensors that are no such network; a voxel size that is neither known nor given.
    """
    for told, value, kind in (
        ("voxel_size", voxel_size, positive),
        ("box", box, whole(1, 2**16)),
        ("kernel", kernel, whole(1, 2**10)),
    ):
        if value is not None and not kind.holds(value):
            raise WeightsError(f"{told} must be {kind.expected}, found {shown(value)}")
    code = time_code or _time_code(path)
    try:
        config = infer_config({key: tuple(value.shape) for key, value in tensors.items()})
        config = attrs.evolve(config, kernel=config.kernel if kernel is None else kernel)
        config = attrs.evolve(config, time_code=code)
        check_settings(config)
        if sum(config.depths) > len(tensors):  # every block has tensors of its own
            raise WeightsError(f"{len(tensors)} tensors are too few for the depths {config.depths}")
    except (CryoFMError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"{path} is no prior of this package and no CryoFM checkpoint: {error}") from None
    released = attrs.evolve(config, time_code=CRYOFM_S.time_code)
    name, known_voxel_size, known_box = _RELEASED.get(released, (None, None, None))
    network = build(partial(Hourglass, config), tensors, path)
    voxel_size = known_voxel_size if voxel_size is None else voxel_size
    box = known_box if box is None else box
    if voxel_size is None or box is None:
        raise WeightsError(
            f"{path} is neither CryoFM-S nor CryoFM-L (widths {config.widths}, depths {config.depths}, patch "
            f"{config.patch}) and does not say what it was trained on; pass voxel_size (Å) and box (voxels)"
        )
    about = {"model": name, "license": "Apache-2.0"} if name else {}
    about |= {key: value for key, value in metadata.items() if key != "format"}
    return Prior(network, Normalization(), voxel_size, box, about=about)


def infer_config(shapes: Mapping[str, tuple[int, ...]]) -> HourglassConfig:
    """Sizes of the network whose tensors have these names and shapes, with the paper's kernel of 7.

    Raises:
        WeightsError: tensors that any such network has are missing, or have another number of axes.

    >>> network = Hourglass(HourglassConfig(widths=(128,), depths=(3,), patch=2))
    >>> infer_config({key: value.shape for key, value in network.state_dict().items()}).depths
    (3,)
    """

    def matrix(key: str) -> tuple[int, ...]:
        shape = shapes.get(key)
        if shape is None or len(shape) != 2 or 0 in shape:
            raise WeightsError(f"{key} is {'missing' if shape is None else f'{tuple(shape)}, expected a matrix'}")
        return shape

    depths: dict[str, int] = {}
    for key in shapes:
        if block := re.match(r"(down_levels\.\d+|mid_level)\.(\d+)\.", key):
            depths[block[1]] = max(depths.get(block[1], 0), int(block[2]) + 1)
    levels = [*(f"down_levels.{i}" for i in range(len(depths) - 1)), "mid_level"]
    widths = tuple(matrix(f"{level}.0.self_attn.out_proj.weight")[0] for level in levels)
    heads = matrix("mid_level.0.self_attn.pos_emb.freqs")[0]
    values = matrix("patch_in.proj.weight")[1]
    patch = max(p for p in range(1, 65) if values % p**3 == 0)  # of the cubes that divide it, the largest
    return HourglassConfig(
        widths=widths,
        depths=tuple(depths[level] for level in levels),
        patch=patch,
        head_width=widths[-1] // heads,
        channels=values // patch**3,
        conditioning=matrix("time_in_proj.weight")[0],
        ff_factor=matrix("mid_level.0.ff.down_proj.weight")[1] // widths[-1],
    )


def export_published(prior: Prior, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the tensors of a prior as the published checkpoints have them: float32, bit for bit, nothing else.

    The configuration goes unsaid but for what the shapes say; `save_prior` keeps all of it.

    Raises:
        WeightsError: the file exists, or the network is no `Hourglass`.
    """
    if not isinstance(prior.network, Hourglass):
        raise WeightsError(f"a published checkpoint holds an Hourglass, not a {type(prior.network).__name__}")
    tensors = {key: value.float() for key, value in prior.network.state_dict().items()}
    write(Path(path), tensors, {"format": "pt"}, overwrite=overwrite)


def _time_code(path: Path) -> TimeCode:
    """What the ``config.yaml`` beside the weights says, and bf16 where it says nothing."""
    try:
        with path.with_name("config.yaml").open(encoding="utf-8", errors="replace") as file:
            said = _FP32_TIME.search(file.read(_LARGEST))
    except FileNotFoundError:
        said = None
    except OSError as error:
        raise WeightsError(f"{path.with_name('config.yaml')} cannot be read ({error}); pass time_code") from None
    word = said[1].lower() if said else "false"
    if word not in _YES + _NO:
        raise WeightsError(f"{path.with_name('config.yaml')} says use_fp32_time_emb {word!r}; pass time_code")
    return "fp32" if word in _YES else "bf16"
