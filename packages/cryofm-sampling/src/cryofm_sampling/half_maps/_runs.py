"""The runs that a restoration is made of: trials of the scale, maps, samples; all with random numbers of one origin."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Self, TypeVar

import attrs
import torch
import torch.distributed as dist
from torch import Tensor

from cryofm_ops import Likelihood, LinearOperator, Normalization
from cryofm_sampling.errors import CapabilityError, SettingError
from cryofm_sampling.half_maps.result import Progress
from cryofm_sampling.priors.rescaled import Rescaled
from cryofm_sampling.priors.tiled import Tiled
from cryofm_sampling.protocols import Calibrated, Callback, Draw, Sampler, VelocityField
from cryofm_sampling.region import Region
from cryofm_sampling.restore import restore
from cryofm_sampling.runs._ranks import rank_and_size
from cryofm_sampling.runs.checkpoint import Checkpoint
from cryofm_sampling.runs.spread import spread
from cryofm_sampling.samplers.plug_and_play import PlugAndPlay
from cryofm_sampling.samplers.posterior_flow import PosteriorFlow
from cryofm_sampling.scale import ScaledNormalization

__all__ = ["Predicting", "Runs", "average", "check_scale", "height", "top"]

Found = TypeVar("Found")
_TOP = 0.99999  # quantile of the brightest voxels
_LEAST_TOP, _MOST_TOP = 1e-3, 1e5  # of a map in the prior's units; noise may be far above the molecule


@attrs.frozen
class Predicting:
    """A sampler whose volumes are seen through an operator, as the held-out data that judge them are."""

    sampler: Sampler
    operator: LinearOperator

    def __call__(
        self,
        velocity: VelocityField,
        likelihood: Likelihood,
        /,
        *,
        shape: tuple[int, ...],
        generator: torch.Generator,
        callback: Callback | None = None,
    ) -> Draw:
        """As the sampler, then through the operator."""
        draw = self.sampler(velocity, likelihood, shape=shape, generator=generator, callback=callback)
        return attrs.evolve(draw, x=self.operator(draw.x))


@attrs.frozen(eq=False)
class Runs:
    """Who does the runs of one restoration, and with which random numbers.

    Attributes:
        prior: in the units of its `.normalization`, if need be in tiles.
        state: of the generator with which every run begins.
        device: of that generator.
        checkpoint: beside which every run keeps a part.
        group: of ranks that share the runs; those of a `Tiled` prior share its tiles instead.
        progress: is told of evaluations.
    """

    prior: VelocityField
    state: Tensor
    device: torch.device
    checkpoint: Checkpoint | None
    group: "dist.ProcessGroup | None"
    progress: Progress | None

    @property
    def normalization(self) -> Normalization:
        """Of the prior, as it came.

        Raises:
            CapabilityError: it has none.
        """
        own: Normalization | None = getattr(self.prior, "normalization", None)
        if own is None:
            raise CapabilityError(f"half maps need a prior with a normalization; {type(self.prior).__name__} has none")
        return own

    @property
    def tiles(self) -> "dist.ProcessGroup | None":
        """The ranks that share every evaluation."""
        group = getattr(self.prior, "group", None)
        return group if dist.is_available() and isinstance(group, dist.ProcessGroup) else None

    def generator(self) -> torch.Generator:
        """Random numbers, the same ones every time."""
        generator = torch.Generator(self.device)
        generator.set_state(self.state)
        return generator

    def scaled(self, scale: float) -> ScaledNormalization:
        """A scale that was given."""
        return ScaledNormalization(self.normalization, scale)

    @property
    def calibrated(self) -> bool:
        """Whether the prior has the statistics that trials of the scale need."""
        return isinstance(self.prior, Calibrated)

    def agreed(self, fit: Callable[[VelocityField], Found], side: int | None = None) -> Found:
        """What the first rank finds, for all, where the last bits may differ; on boxes of that side, if told."""
        prior = self.prior
        if side is not None and isinstance(prior, Tiled):
            multiple = int(prior.multiple or getattr(prior.velocity, "multiple", None) or 1)
            tile = math.ceil(side / multiple) * multiple
            if tile < prior.tile:
                prior = attrs.evolve(prior, tile=tile, overlap=0, window=None, group=None)
        return self._of_the_first(fit(self._counting(self.normalization, "scale", None, prior)))

    def within(self, where: Tensor | None) -> Self:
        """The same, a `Tiled` prior evaluated only where the first rank found density, on the prior's grid."""
        if where is None or not isinstance(self.prior, Tiled):
            return self
        region = self._of_the_first(Region.around(where) if where.any() else None)
        return attrs.evolve(self, prior=attrs.evolve(self.prior, region=region))

    def _of_the_first(self, found: Found) -> Found:
        content = [found]
        if (group := self.tiles or self.group) is not None:
            dist.broadcast_object_list(content, src=dist.get_global_rank(group, 0), group=group)
        return content[0]

    def restored_and_drawn(
        self,
        normalization: Normalization,
        likelihoods: Sequence[Likelihood],
        sampler: Sampler,
        drawing: PosteriorFlow,
        samples: Sequence[tuple[Likelihood, int]],
        shape: tuple[int, ...],
    ) -> tuple[list[Draw], list[Draw]]:
        """Restore a map by each likelihood, all with the same random numbers; draw a sample by each that has a seed.

        Samples are drawn one by one: a batch would take their number times the memory. Where ranks do not share the
        tiles, they share restorations and samples.
        """
        group = self.group if self.tiles is None else None
        n = len(likelihoods)
        known = self.checkpoint is not None  # one more evaluation tells a checkpoint whose it is
        each = getattr(sampler, "iterations", getattr(sampler, "steps", None))  # of a stranger's nobody knows
        evaluations = [(each or 0) + known] * n + [drawing.nfe + known] * len(samples)
        rank, size = rank_and_size(group)
        units = self._counting(normalization, "restoring", sum(evaluations[rank::size]) if each else None)

        def part(k: int) -> Checkpoint | None:
            return None if self.checkpoint is None else attrs.evolve(self.checkpoint, group=self.tiles).part(k)

        def restored(k: int) -> Draw:
            if isinstance(sampler, PlugAndPlay):
                own = self.generator()
                return restore(units, likelihoods[k], shape=shape, generator=own, sampler=sampler, checkpoint=part(k))
            draw = one(likelihoods[k], sampler, self.generator(), k)
            name = type(sampler).__name__
            return attrs.evolve(draw, settings={**draw.settings, "algorithm": name, "estimate": "one sample"})

        def drawn(likelihood: Likelihood, seed: int, k: int) -> Draw:
            return one(likelihood, drawing, torch.Generator(self.device).manual_seed(seed), k)

        def one(likelihood: Likelihood, algorithm: Sampler, own: torch.Generator, k: int) -> Draw:
            # Given to the sampler: `restore` would remove it when this sample is done, and not when all is written.
            keeping: Sampler = algorithm
            if (state := part(k)) is not None:
                keeping = partial(algorithm, checkpoint=state)  # type: ignore[call-arg] # `restore` says if it takes none
            return restore(units, likelihood, shape=shape, generator=own, sampler=keeping, samples=1)

        jobs = [partial(restored, k) for k in range(n)] + [
            partial(drawn, likelihood, seed, k) for k, (likelihood, seed) in zip(count(n), samples)
        ]
        draws = spread(jobs, group)
        return draws[:n], draws[n:]

    def _counting(
        self, normalization: Normalization, stage: str, total: int | None, prior: VelocityField | None = None
    ) -> Rescaled:
        done = 0

        def evaluated(volumes: int) -> None:
            nonlocal done
            done += volumes
            if self.progress is not None:
                self.progress(stage, done, total)

        return Rescaled(prior or self.prior, normalization, evaluated)


def average(one: Draw, two: Draw) -> Draw:
    """Of what was made of both halves, each by itself: the paper's restored map."""
    settings = {**one.settings, "estimate": "the average of both halves, each restored by itself"}
    return Draw((one.x + two.x) / 2, one.nfe + two.nfe, settings)


def height(x: Tensor) -> float:
    """Of the brightest voxels over the solvent, if that is most of the box."""
    return top(x) - float(x.median())


def check_scale(scale: float | None, x: Tensor) -> None:
    """Refuse one that makes next to nothing of a map `x`, or next to infinity: rounding would leave no map.

    Raises `SettingError`.
    """
    if scale is not None and not _LEAST_TOP <= scale * (highest := float(x.abs().max())) <= _MOST_TOP:
        raise SettingError(
            f"scale {scale:g} makes {scale * highest:.2g} of the map's largest value, {highest:.3g}; the prior's are "
            "about 1, and without a scale it is found"
        )


def top(x: Tensor) -> float:
    """The 99.999th percentile."""
    position = _TOP * (x.numel() - 1)
    part = position - int(position)
    above = x.flatten().topk(x.numel() - int(position)).values
    low, high = above[-1], above[-2 if len(above) > 1 else -1]
    step = high - low
    return float(low + step * part if part < 0.5 else high - step * (1 - part))
