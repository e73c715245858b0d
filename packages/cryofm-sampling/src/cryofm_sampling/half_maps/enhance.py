"""Maps enhanced by a conditional prior, one that was trained to make of a map what it should look like.

Of one map it is the published recipe of the second generation: a sample of the flow with the map shown, in even Euler
steps, and nothing but what was shown keeps it to the map. Of two half maps the filtered mean is shown, and the halves'
likelihood keeps the result to the data. What is shown is scaled to the prior by its 99.999th percentile. Neither B nor
the solvent's contrast is sought: such a prior was trained on maps as they are, blurred and in their solvent.
"""

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from cryofm_ops import Envelope, fourier_filter
from cryofm_sampling._common import split_shape
from cryofm_sampling.errors import CapabilityError, GridMismatchError, SettingError
from cryofm_sampling.half_maps._fsc import correlation
from cryofm_sampling.half_maps._runs import top
from cryofm_sampling.half_maps.model import directional_model
from cryofm_sampling.half_maps.result import Grid, Progress, RestoredMap, SameGrid
from cryofm_sampling.priors.conditioned import Conditioned
from cryofm_sampling.priors.rescaled import Rescaled
from cryofm_sampling.protocols import ConditionalVelocityField, Draw, Sampler
from cryofm_sampling.restore import restore
from cryofm_sampling.runs.checkpoint import Checkpoint
from cryofm_sampling.samplers.flow import Flow
from cryofm_sampling.samplers.plug_and_play import PlugAndPlay
from cryofm_sampling.scale import ScaledNormalization, ScaleFit

__all__ = ["enhance_half_maps", "enhance_map"]

_COARSE, _ALIKE = 10.0, 0.7  # Å, to which every map is good, and its FSC with what is made of it


@torch.no_grad()
def enhance_map(
    prior: ConditionalVelocityField,
    map: Tensor,
    /,
    *,
    voxel_size: float,
    generator: torch.Generator,
    tag: int | None = None,
    weight: float | None = None,
    steps: int = 200,
    grid: Grid | None = None,
    checkpoint: Checkpoint | None = None,
    group: "dist.ProcessGroup | None" = None,
    callback: Progress | None = None,
) -> RestoredMap:
    """One sample of the flow with a map shown; no noise is known, and no data keep it to the map.

    Args:
        prior: a velocity field that may be shown a volume, with a `.normalization`; in `Tiled` for boxes larger than
            its own.
        map: `(z, y, x)`, in any units, near 0 in the solvent, protein positive.
        voxel_size: Å, of the map.
        generator: all randomness; the same seed gives the same map.
        tag: of the kind of enhancement, see `Conditioned`.
        weight: of guidance, likewise.
        steps: of Euler's rule, even; evaluations, or twice as many with guidance.
        grid: the way of the map to the prior's voxel size. None: it has it.
        checkpoint: see `restore_half_maps`.
        group: of processes that share the tiles, which share the checkpoint.
        callback: is told of steps.

    Raises `CapabilityError` for a prior that cannot be shown a volume, `SettingError` for a map without density.

    Warns where the result is not the map at 10 Å, to which every map is good.

    >>> from types import SimpleNamespace
    >>> class Shown:  # data that are the volume
    ...     normalization = SimpleNamespace(mean=0.0, std=1.0)
    ...     def given(self, x, t, volume, tag):
    ...         return x / (2 * t * t - 2 * t + 1) * (2 * t - 1) if volume is None else (x - volume) / t
    >>> y = 3 * torch.rand(16, 16, 16, generator=torch.Generator().manual_seed(0))
    >>> result = enhance_map(Shown(), y, voxel_size=1.5, generator=torch.Generator().manual_seed(0), steps=4)
    >>> bool((result.map - y).abs().max() < 1e-4), result.nfe, result.doubts
    (True, 4, ())
    """
    grid = grid or SameGrid(voxel_size)
    _volume(map)
    shown = grid.forward(map)
    conditioned, units = _shown(prior, shown, tag, weight)
    draw = Flow(steps, "euler", "even")(
        conditioned,
        shape=tuple(shown.shape),
        generator=generator,
        checkpoint=_part(checkpoint, group),
        callback=None if callback is None else lambda step, total, _: callback("enhancing", step, total),
    )
    settings = {**draw.settings, "algorithm": "Flow", "estimate": "one sample, with the map shown"}
    draw = attrs.evolve(draw, x=draw.x * units.std + units.mean, settings=settings)
    return _result(draw, shown, shown, conditioned, units, grid, ())


def enhance_half_maps(
    prior: ConditionalVelocityField,
    half1: Tensor,
    half2: Tensor,
    /,
    *,
    voxel_size: float,
    generator: torch.Generator,
    tag: int | None = None,
    weight: float | None = None,
    sampler: Sampler = PlugAndPlay(),  # noqa: B008 (frozen)
    b_factor: float = 0.0,
    grid: Grid | None = None,
    checkpoint: Checkpoint | None = None,
    group: "dist.ProcessGroup | None" = None,
    callback: Progress | None = None,
) -> RestoredMap:
    """The posterior of both halves, by a prior that is shown what the best linear filter makes of their mean.

    The halves cannot check each other then, for both have seen the same. `restore_half_maps` keeps them apart.

    Args:
        prior: see `enhance_map`; `Calibrated` if the sampler needs it.
        half1: `(z, y, x)`, raw, in any units, near 0 in the solvent.
        half2: likewise, with independent noise.
        voxel_size: Å, of the halves.
        generator: all randomness; the same seed gives the same map.
        tag: of the kind of enhancement, see `Conditioned`.
        weight: of guidance, likewise.
        sampler: restores.
        b_factor: B of the halves' envelope in Å²; `restore_half_maps` finds it.
        grid: the way of the halves to the prior's voxel size. None: they have it.
        checkpoint: see `restore_half_maps`.
        group: of processes that share the tiles, which share the checkpoint.
        callback: is told of network evaluations.

    Raises `GridMismatchError` for halves that are not volumes of one shape, and what `enhance_map` raises.

    Warns as `enhance_map` does.
    """
    if half1.shape != half2.shape:
        raise GridMismatchError(f"the halves differ in shape: {tuple(half1.shape)} and {tuple(half2.shape)}")
    grid = grid or SameGrid(voxel_size)
    _volume(half1)
    one, two = grid.forward(half1), grid.forward(half2)
    mean = (one + two) / 2
    model = directional_model(one, two, band=grid.band).blurred(Envelope(b_factor, grid.voxel_size))
    shown = fourier_filter(mean, model.gain.to(mean))
    shown += mean.mean() - shown.mean()
    conditioned, units = _shown(prior, shown, tag, weight)
    draw = restore(
        Rescaled(conditioned, units),
        model.observe(mean, 1 / 2),
        shape=tuple(mean.shape),
        generator=generator,
        sampler=sampler,
        samples=1,
        checkpoint=_part(checkpoint, group),
        callback=None if callback is None else lambda step, total, _: callback("enhancing", step, total),
    )
    return _result(draw, shown, mean, conditioned, units, grid, model.doubts)


def _volume(map: Tensor) -> None:
    batch, _ = split_shape(map.shape)
    if batch:
        raise GridMismatchError(f"a map is one volume (z, y, x), got {tuple(map.shape)}")


def _shown(
    prior: ConditionalVelocityField, y: Tensor, tag: int | None, weight: float | None
) -> tuple[Conditioned, ScaledNormalization]:
    """The prior that is shown a map, and the map's units; negative density and outliers stay."""
    own = getattr(prior, "normalization", None)
    if own is None:
        raise CapabilityError(f"maps need a prior with a normalization; {type(prior).__name__} has none")
    full = top(y)
    if not full > 0:
        raise SettingError(f"no positive density (99.999th percentile {full:g}); is the contrast inverted?")
    units = ScaledNormalization(own, 1 / full)
    return Conditioned(prior, (y - units.mean) / units.std, tag=tag, weight=weight), units


def _part(checkpoint: Checkpoint | None, group: "dist.ProcessGroup | None") -> Checkpoint | None:
    return None if checkpoint is None else attrs.evolve(checkpoint, group=group).part(0)


def _result(
    draw: Draw,
    shown: Tensor,
    data: Tensor,
    conditioned: Conditioned,
    units: ScaledNormalization,
    grid: Grid,
    doubts: tuple[str, ...],
) -> RestoredMap:
    tag = getattr(conditioned.prior, "tag", None) if conditioned.tag is None else conditioned.tag
    settings = {**draw.settings, "tag": tag, "weight": conditioned.weight}
    fsc = correlation(data, draw.x)
    frequency = torch.linspace(0, 0.5 / grid.voxel_size, len(fsc))
    coarse = (frequency > 0) & (frequency < 1 / _COARSE)
    alike = float(fsc.cpu()[coarse].mean()) if coarse.any() else 1.0
    if alike < _ALIKE:
        doubts += (f"down to {_COARSE:g} Å, where every map is good, its FSC with the input is {alike:.2f}",)
    draw = attrs.evolve(draw, settings=settings)
    result = RestoredMap.of(draw, shown, ScaleFit(units, (), 0), grid=grid, doubts_of_data=doubts)
    result.warn_of_doubts(stacklevel=3)
    return result
