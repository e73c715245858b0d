"""Whether the memory suffices, before anything is computed.

The constants were measured with the bundled prior (peak resident memory, boxes of 64³ to 144³). One tile is held at a
time, with what its backward pass needs.
"""

import math
import os
from pathlib import Path

import torch

from cryofm_sampling.errors import SettingError

__all__ = ["check_available", "check_memory"]

_FIXED, _GRID, _NETWORK, _GRADIENT, _RESAMPLED = 300 * 2**20, 200, 250, 1000, 16  # bytes; per voxel but for the first


def check_memory(shape: tuple[int, int, int], /, *, tile: int, device: torch.device, gradients: bool = False) -> None:
    """Refuse a restoration that cannot fit, before it starts.

    Args:
        shape: of the volume (z, y, x).
        tile: side of the tiles in which the prior is evaluated.
        device: whose memory is asked.
        gradients: whether they pass through the network.

    Raises `SettingError` saying how much is needed and how much there is.

    >>> check_memory((64, 64, 64), tile=64, device=torch.device("cpu"))
    """
    needed = _FIXED + math.prod(shape) * _GRID + tile**3 * (_GRADIENT if gradients else _NETWORK)
    _check(needed, shape, device)


def check_available(shape: tuple[int, int, int], /) -> None:
    """Refuse to resample a map to a grid of that shape, on the CPU, where it cannot fit.

    Raises `SettingError` saying how much is needed and how much there is.

    >>> check_available((64, 64, 64))
    """
    _check(_FIXED + _RESAMPLED * math.prod(shape), shape, torch.device("cpu"))


def _check(needed: int, shape: tuple[int, int, int], device: torch.device) -> None:
    available = _available_memory(device)
    if available is not None and needed > available:
        raise SettingError(
            f"a grid of {shape[2]} x {shape[1]} x {shape[0]} voxels needs about {needed / 2**30:.1f} GiB on {device}, "
            f"{available / 2**30:.1f} GiB are free; crop the maps, or use a machine with more memory"
        )


def _available_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        # MemAvailable counts what caches would give back, which SC_AVPHYS_PAGES does not.
        meminfo = Path("/proc/meminfo")
        if meminfo.exists():
            lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
            return int(lines["MemAvailable"].split()[0]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
