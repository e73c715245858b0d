"""One map with a missing wedge in, the whole of it out; what was measured is taken as free of noise."""

import warnings

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from cryofm_ops import (
    FourierGaussian,
    FourierMask,
    GridMismatchError,
    MissingWedge,
    RemoveMean,
    WhiteNoise,
    compose,
    gaussian_likelihood,
)
from cryofm_sampling._common import split_shape
from cryofm_sampling.half_maps._runs import Predicting, Runs, check_scale, height
from cryofm_sampling.half_maps.envelope import densest
from cryofm_sampling.half_maps.region import on_grid, where_dense
from cryofm_sampling.half_maps.result import Grid, Progress, RestoredMap, SameGrid
from cryofm_sampling.half_maps.tilts import doubt_of_tilts
from cryofm_sampling.protocols import Sampler, VelocityField
from cryofm_sampling.runs.checkpoint import Checkpoint
from cryofm_sampling.samplers.plug_and_play import PlugAndPlay
from cryofm_sampling.samplers.posterior_flow import PosteriorFlow
from cryofm_sampling.scale import ScaleFit, fit_scale

__all__ = ["restore_missing_wedge"]

_SIDE = 64  # voxels of the cube by which the scale is found
_HELD_OUT = 0.25  # of the tilts, on either side together, by which the scale is found


def restore_missing_wedge(
    prior: VelocityField,
    map: Tensor,
    tilts: MissingWedge,
    /,
    *,
    generator: torch.Generator,
    grid: Grid | None = None,
    sampler: Sampler = PlugAndPlay(iterations=20),  # noqa: B008 (frozen)
    scale: float | None = None,
    samples: int = 0,
    where: Tensor | None = None,
    checkpoint: Checkpoint | None = None,
    group: "dist.ProcessGroup | None" = None,
    callback: Progress | None = None,
) -> RestoredMap:
    """Fill the missing wedge of one map; draw samples where asked to. With two halves: `restore_half_maps`.

    The map's scale is the one at which a narrower range of tilts predicts the rest of them best.

    Args:
        prior: a velocity field with a `.normalization`, and `Calibrated` if `sampler` or `samples` need it; in `Tiled`
            for boxes larger than its own.
        map: `(z, y, x)`, in any units, near 0 in the solvent, protein positive.
        tilts: what was measured.
        generator: all randomness; the same seed gives the same maps.
        grid: the way of the map to the prior's voxel size. None: it has it.
        sampler: restores; `PlugAndPlay`, or one that draws, such as `Inpainting`.
        scale: what the map is multiplied by to be the prior's. None: found by `fit_scale`; where the prior is not
            `Calibrated`, by the brightest voxels alone.
        samples: maps to draw by `PosteriorFlow`.
        where: where density can be, see `restore_half_maps`. None: where the map is not far fainter than elsewhere.
        checkpoint: see `restore_half_maps`.
        group: of processes that share the runs, likewise.
        callback: is told of network evaluations.

    Raises `GridMismatchError` for a map that is not one volume, and what `fit_scale` and `restore` raise.

    Warns, at the start and at the end, where the map shows other tilts, see `doubt_of_tilts`.

    >>> from types import SimpleNamespace
    >>> from cryofm_sampling import Rescaled
    >>> from cryofm_sampling.testing import GaussianPrior
    >>> prior = Rescaled(GaussianPrior(1.0, (16, 16, 16)), SimpleNamespace(mean=0.0, std=1.0))
    >>> generator, tilts = torch.Generator().manual_seed(0), MissingWedge(-60, 60)
    >>> y = tilts(torch.randn(16, 16, 16, generator=generator))
    >>> result = restore_missing_wedge(prior, y, tilts, generator=generator, scale=1.0)
    >>> bool(tilts(result.map - result.observed).abs().max() < 1e-3)  # what was measured stays
    True
    """
    batch, _ = split_shape(map.shape)
    if batch:
        raise GridMismatchError(f"a map is one volume (z, y, x), got {tuple(map.shape)}")
    grid = grid or SameGrid(1.0)
    whole = grid.forward(map)
    _, shape = split_shape(whole.shape)
    if doubt := doubt_of_tilts(tilts, whole):
        warnings.warn(doubt, stacklevel=2)
    runs = Runs(prior, generator.get_state(), generator.device, checkpoint, group, callback)
    runs = runs.within(where_dense(whole) if where is None else on_grid(where, grid))
    seeds = torch.randint(2**62, (samples + 1,), generator=generator, device=generator.device).tolist()[:samples]
    y = tilts(whole)
    check_scale(scale, y)
    fit = _scale(runs, y, tilts) if scale is None else ScaleFit(runs.scaled(scale), (), 0)
    drawing = PosteriorFlow(first=sampler if isinstance(sampler, PlugAndPlay) else PlugAndPlay(iterations=20))
    data = _data(y, tilts)
    wanted = [(data, seed) for seed in seeds]
    [draw], drawn = runs.restored_and_drawn(fit.normalization, [data], sampler, drawing, wanted, shape)
    missing = FourierMask(1 - tilts.transfer(shape), shape)
    doubts = (doubt,) if doubt else ()
    result = RestoredMap.of(draw, y, fit, samples=drawn, missing=missing, grid=grid, doubts_of_data=doubts)
    result.warn_of_doubts(stacklevel=3)
    return result


def _data(y: Tensor, measured: MissingWedge) -> FourierGaussian:
    return gaussian_likelihood(compose(RemoveMean(), measured), WhiteNoise(0.0), y)


def _scale(runs: Runs, y: Tensor, tilts: MissingWedge) -> ScaleFit:
    """By what a narrower range of tilts says of the rest, where most density is."""
    if not runs.calibrated:
        return ScaleFit(runs.scaled(1 / height(y)), (), 0)
    y = tilts(y[densest(y, _SIDE)].contiguous())
    _, shape = split_shape(y.shape)
    margin = _HELD_OUT / 2 * (tilts.tilt_max - tilts.tilt_min)
    narrower = attrs.evolve(tilts, tilt_min=tilts.tilt_min + margin, tilt_max=tilts.tilt_max - margin)
    held_out = FourierMask(tilts.transfer(shape) - narrower.transfer(shape), shape)

    def fit(units: VelocityField) -> ScaleFit:
        return fit_scale(
            units,
            _data(y, narrower),
            held_out(y),
            torch.ones(max(shape) // 2 + 1),
            generator=runs.generator(),
            guess=1 / height(y),
            sampler=Predicting(PlugAndPlay(), held_out),  # fewer passes leave more of the gap to fill
        )

    return runs.agreed(fit, _SIDE)
