"""How many tiles the memory of an accelerator holds, found with one."""

import torch
from torch import Tensor

from cryofm_sampling.errors import SettingError
from cryofm_sampling.protocols import VelocityField

__all__ = ["tiles_that_fit"]

_USABLE = 0.8  # of what is free: fragments, and the volumes themselves
_GIB = 2**30


def tiles_that_fit(velocity: VelocityField, tile: Tensor, t: Tensor, *, gradients: bool) -> int | None:
    """How many tiles can be evaluated together, from the peak that one of them, `(1, z, y, x)`, makes.

    None where the device does not tell its free memory. Raises `SettingError` where not even one fits.
    """
    device = tile.device
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    # What the allocator has reserved and does not use is free as well.
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - before
    try:
        with torch.set_grad_enabled(gradients):
            x = tile.detach().clone().requires_grad_(gradients)
            v = velocity(x, t)
            if gradients:
                torch.autograd.grad(v.sum(), x)
    except torch.OutOfMemoryError:
        side = tile.shape[-1]
        raise SettingError(
            f"not one tile of {side}³ voxels fits in the {free / _GIB:.1f} GiB that are free on {device}"
            f"{' with its gradient' if gradients else ''}; take smaller tiles, or another device"
        ) from None
    one = torch.cuda.max_memory_allocated(device) - before
    return max(1, int(_USABLE * free / max(one, 1)))
