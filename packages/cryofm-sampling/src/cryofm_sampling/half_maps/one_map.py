"""One map in, such as a deposited one, a restored map out; weaker than with halves, for nothing tells its noise.

The resolution does, roughly. Where the FSC of two halves is F = 0.143 their mean has a signal-to-noise ratio of
2 F / (1 − F) = 1/3, so three quarters of the map's power at that frequency are noise. That noise is taken for white,
and beyond the resolution all power is noise. The scale is that at which the brightest voxels of the linear filter's map
are the prior's. Neither can be checked, so nobody should believe more of the result than of the map. Envelope and
solvent, which are found where one half predicts the other, have to be told.
"""

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from cryofm_ops import Envelope, GridMismatchError, fourier_filter, radial, radial_mean, rfft
from cryofm_sampling._common import Box, split_shape
from cryofm_sampling.errors import SettingError
from cryofm_sampling.half_maps._runs import Runs, check_scale, height
from cryofm_sampling.half_maps.model import FourierModel
from cryofm_sampling.half_maps.region import on_grid
from cryofm_sampling.half_maps.result import Grid, Progress, RestoredMap, SameGrid
from cryofm_sampling.protocols import Sampler, VelocityField
from cryofm_sampling.runs.checkpoint import Checkpoint
from cryofm_sampling.samplers.plug_and_play import PlugAndPlay
from cryofm_sampling.samplers.posterior_flow import PosteriorFlow
from cryofm_sampling.scale import ScaleFit

__all__ = ["restore_map"]

_SNR = 2 * 0.143 / (1 - 0.143)  # of the mean of halves whose FSC is 0.143


def restore_map(
    prior: VelocityField,
    map: Tensor,
    /,
    *,
    resolution: float,
    voxel_size: float,
    generator: torch.Generator,
    grid: Grid | None = None,
    sampler: Sampler = PlugAndPlay(),  # noqa: B008 (frozen)
    b_factor: float = 0.0,
    scale: float | None = None,
    solvent_contrast: float = 0.0,
    samples: int = 0,
    where: Tensor | None = None,
    checkpoint: Checkpoint | None = None,
    group: "dist.ProcessGroup | None" = None,
    callback: Progress | None = None,
) -> RestoredMap:
    """Restore one map of a stated resolution; with halves `restore_half_maps` knows more, and checks itself.

    Args:
        prior: a velocity field with a `.normalization`, and `Calibrated` if `sampler` or `samples` need it; in `Tiled`
            for boxes larger than its own.
        map: `(z, y, x)`, in any units, near 0 in the solvent, protein positive, not masked tightly.
        resolution: Å, where the FSC of its halves was 0.143.
        voxel_size: Å, of the map.
        generator: all randomness; the same seed gives the same map.
        grid: the way of the map to the prior's voxel size. None: it has it.
        sampler: restores.
        b_factor: B of the map's envelope in Å²; 0 of sharpened maps, as deposited ones mostly are.
        scale: what the map is multiplied by to be the prior's. None: by its brightest voxels.
        solvent_contrast: k of the map, see `RestoredHalfMaps`; about 0.6 of a molecule in ice. It stays in the result.
        samples: maps to draw by `PosteriorFlow`.
        where: where density can be, see `restore_half_maps`. None: anywhere.
        checkpoint: see `restore_half_maps`.
        group: of processes that share the runs, likewise.
        callback: is told of network evaluations.

    Raises `GridMismatchError` for a map that is not one volume, `SettingError` for a resolution beyond the voxels.

    >>> from types import SimpleNamespace
    >>> from cryofm_sampling import Rescaled
    >>> from cryofm_sampling.testing import GaussianPrior
    >>> prior = Rescaled(GaussianPrior(1.0, (16, 16, 16)), SimpleNamespace(mean=0.0, std=1.0))
    >>> generator = torch.Generator().manual_seed(0)
    >>> y = torch.randn(16, 16, 16, generator=generator)
    >>> restore_map(prior, y, resolution=4.0, voxel_size=1.5, generator=generator, scale=1.0).map.shape
    torch.Size([16, 16, 16])
    """
    batch, _ = split_shape(map.shape)
    if batch:
        raise GridMismatchError(f"a map is one volume (z, y, x), got {tuple(map.shape)}")
    if not 2 * voxel_size * (1 - 1e-6) <= resolution < min(map.shape) * voxel_size / 2:
        raise SettingError(
            f"a resolution of {resolution:g} Å cannot be that of a box {tuple(map.shape)} of voxels of {voxel_size:g} Å"
        )
    grid = grid or SameGrid(voxel_size)
    y = grid.forward(map)
    _, shape = split_shape(y.shape)
    model = _model(y, resolution, grid.voxel_size).blurred(Envelope(b_factor, grid.voxel_size), solvent_contrast)
    runs = Runs(prior, generator.get_state(), generator.device, checkpoint, group, callback)
    runs = runs.within(on_grid(where, grid))
    seeds = torch.randint(2**62, (samples + 1,), generator=generator, device=generator.device).tolist()[:samples]
    linear = fourier_filter(y, model.gain.to(y))
    check_scale(scale, linear)
    fit = ScaleFit(runs.scaled(scale or 1 / height(linear)), (), 0)
    data = model.observe(y, 1 / 2)
    wanted = [(data, seed) for seed in seeds]
    [draw], drawn = runs.restored_and_drawn(fit.normalization, [data], sampler, PosteriorFlow(), wanted, shape)
    draw, *drawn = (attrs.evolve(each, x=model.in_solvent(each.x)) for each in (draw, *drawn))
    return RestoredMap.of(draw, y, fit, samples=drawn, grid=grid)


def _model(y: Tensor, resolution: float, voxel_size: float) -> FourierModel:
    """White noise as strong as the resolution says; what is beyond it is noise altogether."""
    _, shape = split_shape(y.shape)
    power = radial_mean(rfft((y - y.mean()).double()).abs().square(), shape)
    n = len(power)
    last = min(round(2 * voxel_size / resolution * (n - 1)), n - 1)
    level = power[max(last - 1, 1) : last + 2].mean() / (1 + _SNR)
    noise = torch.full_like(power, float(level))
    noise[last + 1 :] = torch.maximum(power[last + 1 :], level)
    signal = (power - noise).clamp(min=0)
    table = 2 * noise  # of one half of the data

    def noise_on(shape: Box) -> tuple[Tensor, Tensor]:
        grid = radial(table, shape)
        return grid, torch.ones_like(grid)

    ratio = signal / table
    return FourierModel((ratio / (1 + ratio)).to(y), table.to(y), signal.to(y), shape, noise_on)
