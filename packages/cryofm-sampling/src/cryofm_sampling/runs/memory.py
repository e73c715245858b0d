"""Whether the memory suffices, before anything is computed.

A run has three stages, of which the largest makes the peak: what is done on the maps' own grid (reading, judging,
joining, writing), what is estimated on the prior's grid, and the network. What a network takes is measured with it, on
a small crop; the other constants were measured once (`benchmarks/memory.py`). How much of a box the network will see
depends on the molecule, which nobody has looked at yet: of one as wide as the box it is all, and of a small one next to
nothing; both are within a quarter of what is told.
"""

import math
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cryofm_sampling.errors import SettingError
from cryofm_sampling.priors.tiled import Tiled
from cryofm_sampling.protocols import VelocityField

__all__ = ["Memory", "check_available", "check_memory"]

# Bytes for each voxel: of the maps' own grid, of the prior's for estimates and beside the network, of a tile. Maps of
# more than 32 MiB the C library gives back as soon as they are gone; of smaller ones it keeps some.
_OWN, _OWN_BEYOND, _GRID, _BESIDE, _SAMPLE, _SPREAD, _RESAMPLED = 97, 52, 182, 60, 4, 24, 16
_KEPT = 8 * 2**20  # voxels of 4 bytes
_CROP = 32  # side of what a network is measured on, voxels, or twice as much
_WORKSPACE = 1.25  # what kernels take beside the tensors that are seen
_SEEN = 0.65  # of the box by the network, between a small molecule and one that fills it
_LATER = 120 * 2**20  # bytes, of libraries that load later
_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")

Shape = tuple[int, int, int]


@attrs.frozen
class Memory:
    """What is needed and what there is, bytes.

    Attributes:
        needed: at the peak, what the process has at the start included.
        available: as much as the process may have, what it has included; None where nobody tells.
    """

    needed: int
    available: int | None

    def __str__(self) -> str:
        free = "" if self.available is None else f" of {self.available / 2**30:.2f}"
        return f"{self.needed / 2**30:.2f}{free} GiB"


def check_memory(
    shape: Shape,
    tiled: Tiled,
    /,
    *,
    device: torch.device,
    gradients: bool = False,
    own: Shape | None = None,
    samples: int = 0,
    beside: int = 0,
) -> Memory:
    """Refuse a restoration that cannot fit, before it starts; what it needs and what there is.

    Args:
        shape: of the volume on the prior's grid (z, y, x).
        tiled: the prior, which is evaluated once on a small crop; its weights are in memory afterwards.
        device: whose memory is asked.
        gradients: whether they pass through the network.
        own: of the maps' own grid, where it is another.
        samples: to be drawn.
        beside: bytes, of what else is computed.

    Raises `SettingError` saying how much is needed, how much there is, and how large a cube would fit.

    >>> tiled = Tiled(lambda x, t: -x, tile=64, overlap=16)
    >>> check_memory((96, 96, 96), tiled, device=torch.device("cpu")).needed > 96**3
    True
    """
    each = _WORKSPACE * _alive(tiled.velocity, tiled.tile, device, gradients=gradients)

    def growth(fraction: float) -> int:
        """Of a box of that fraction of the voxels."""
        voxels, written = fraction * math.prod(shape), fraction * math.prod(own or shape)
        network = _SEEN * min(tiled.tile**3, voxels) * each
        maps = max(_OWN * min(written, _KEPT), _OWN_BEYOND * written)
        stages = maps + written * _SPREAD * (samples > 1), voxels * _GRID, network + voxels * _BESIDE
        return round(max(stages) + voxels * _SAMPLE * samples + beside + _LATER * (device.type == "cpu"))

    sides = own or shape
    found = Memory(_now(device) + growth(1.0), _available_memory(device))
    if found.available is not None and found.needed > found.available:
        fits = 1.0
        while fits > 1e-6 and _now(device) + growth(fits) > found.available:
            fits *= 0.98
        side = int((fits * math.prod(sides)) ** (1 / 3)) // 2 * 2
        fitting = f"crop the maps to a cube of {side}" if side >= 16 else "give maps of far fewer voxels"
        raise _refusal(sides, device, found, fitting + (", draw fewer samples" if samples > 1 else ""))
    return found


def check_available(shape: Shape, /) -> None:
    """Refuse to resample a map to a grid of that shape, on the CPU, where it cannot fit.

    Raises `SettingError` saying how much is needed and how much there is.

    >>> check_available((64, 64, 64))
    """
    device = torch.device("cpu")
    found = Memory(_now(device) + _RESAMPLED * math.prod(shape), _available_memory(device))
    if found.available is not None and found.needed > found.available:
        raise _refusal(shape, device, found, "crop the maps")


def _alive(velocity: VelocityField, tile: int, device: torch.device, *, gradients: bool) -> float:
    """Bytes for each voxel that are alive at once, beside its weights, while a velocity field is evaluated."""
    for side in (*(side for side in (_CROP, 2 * _CROP) if side < tile), tile):
        try:
            return _alive_on(velocity, side, device, gradients=gradients)
        except Exception:  # of a network that takes no such box, whoever wrote it
            continue
    return 0.0  # the run will say what is wrong with it


def _alive_on(velocity: VelocityField, side: int, device: torch.device, *, gradients: bool) -> float:
    x = torch.zeros((side, side, side), dtype=torch.float32, device=device, requires_grad=gradients)
    alive = _Alive()
    with torch.set_grad_enabled(gradients), alive:
        v = velocity(x, torch.tensor(0.5, device=device))
        if gradients:
            torch.autograd.grad(v.sum(), x)
    return alive.most / side**3


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations make, until these are gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.known: dict[int, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch would load its whole compiler, to keep it away: 1.5 s and 100 MiB

    def __torch_dispatch__(
        self, operation: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for x in tree_leaves((args, kwargs)):
            self._meet(x, new=False)
        made = operation(*args, **kwargs)
        for x in tree_leaves(made):
            self._meet(x, new=True)
        self.most = max(self.most, self.now)
        return made

    def _meet(self, x: Any, *, new: bool) -> None:
        if not isinstance(x, Tensor):
            return
        storage = x.untyped_storage()
        key = storage._cdata
        if key not in self.known:  # weights and views of them were there before
            self.known[key] = storage.nbytes() if new else 0
            self.now += self.known[key]
            weakref.finalize(storage, self._lose, key)

    def _lose(self, key: int) -> None:
        self.now -= self.known.pop(key, 0)


def _refusal(shape: Shape, device: torch.device, found: Memory, fitting: str) -> SettingError:
    assert found.available is not None
    grid = " x ".join(map(str, reversed(shape)))
    return SettingError(
        f"a grid of {grid} voxels needs about {found.needed / 2**30:.2f} GiB on {device}, "
        f"and there are {found.available / 2**30:.2f}; {fitting}, or use a machine with more memory"
    )


def _now(device: torch.device) -> int:
    """What this process has already."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    if device.type == "cpu" and (told := _status("VmRSS")) is not None:
        return told
    return 0


def _available_memory(device: torch.device) -> int | None:
    """As much as this process may have: what is free, within the bounds of its container and its own."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + _now(device)
    if device.type != "cpu":
        return None
    rooms = [*_free(), *_within_cgroups(), *_within_limits()]
    return _now(device) + max(0, min(rooms)) if rooms else None


def _free() -> Iterator[int]:
    # MemAvailable counts what caches would give back, which SC_AVPHYS_PAGES does not.
    if (meminfo := _read(_PROC / "meminfo")) is not None:
        lines = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
        yield int(lines["MemAvailable"].split()[0]) * 1024
    elif hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        yield os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _within_cgroups() -> Iterator[int]:
    """What the control groups of this process leave, those of a container or a batch system, of version 1 or 2."""
    for line in (_read(_PROC / "self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        roots: tuple[Path, ...]
        if controllers == "":
            roots, files = (_CGROUPS, _CGROUPS / "unified"), ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            roots = (_CGROUPS / "memory",)
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = Path(path.lstrip("/"))
        for root in roots:
            for folder in (own, *own.parents):
                limit, used = (_read(root / folder / name) for name in files[:2])
                if limit is not None and used is not None and limit.strip().isdecimal():
                    stat = _read(root / folder / "memory.stat") or ""
                    cached = sum(int(row.split()[1]) for row in stat.splitlines() if row.split()[0] == files[2])
                    yield int(limit) - int(used) + cached


def _within_limits() -> Iterator[int]:
    """What the limits of this process, those of `ulimit`, leave."""
    if sys.platform == "win32":
        return
    import resource  # which Windows has not

    for limit, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most, had = resource.getrlimit(limit)[0], _status(used)
        if most != resource.RLIM_INFINITY and had is not None:
            yield most - had


def _status(name: str) -> int | None:
    """A line of /proc/self/status, bytes."""
    for line in (_read(_PROC / "self/status") or "").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
