"""Other data restored as some were: the blocks of a map larger than memory, with one noise, envelope and scale."""

import warnings
from typing import Self

import attrs
import torch
from torch import Tensor

from cryofm_ops import Envelope, MissingWedge
from cryofm_sampling._common import split_shape
from cryofm_sampling.errors import MisfitWarning
from cryofm_sampling.half_maps._runs import Runs
from cryofm_sampling.half_maps.fine import FineFilter
from cryofm_sampling.half_maps.join import joined
from cryofm_sampling.half_maps.missing_wedge import restore_missing_wedge
from cryofm_sampling.half_maps.model import FourierModel, directional_model
from cryofm_sampling.half_maps.region import where_dense, where_halves_agree
from cryofm_sampling.half_maps.result import Grid, RestoredHalfMaps, SameGrid
from cryofm_sampling.priors.rescaled import Rescaled
from cryofm_sampling.protocols import VelocityField
from cryofm_sampling.restore import restore
from cryofm_sampling.samplers.plug_and_play import PlugAndPlay

__all__ = ["Alike", "Common", "WedgeAlike"]


@attrs.frozen
class Common:
    """What is found on one part of a map and holds for all of it.

    Attributes:
        scale: what the data are multiplied by to be the prior's.
        b_factor: B of their envelope, Å².
        restored_to: Å, from where on the map is the linear filter's.
        power: mean square of that part, restored.
        solvent_contrast: k of its solvent.
    """

    scale: float
    b_factor: float
    restored_to: float
    power: float
    solvent_contrast: float = 0.0

    @classmethod
    def of(cls, result: RestoredHalfMaps) -> Self:
        """Of the part that was restored."""
        scale = result.scale.normalization.scale
        power = float(result.map.square().mean())
        return cls(scale, result.b_factor, result.restored_to, power, result.solvent_contrast)


@attrs.frozen(eq=False)
class Alike:
    """Restores the mean of other halves, of the same shape, as that of the first ones was; without checks.

    Where they agree nowhere, no network is asked, and the result is solvent: 0.

    Attributes:
        runs: the prior, where each run begins with the same random numbers.
        common: what was found on the first ones.
        model: of their noise, with the envelope.
        fine: their linear filter, where something is finer than the prior knows.
        grid: the way of all of them to the prior's voxel size.
        voxel_size: Å, their own.
        sampler: restores.
    """

    runs: Runs
    common: Common
    model: FourierModel
    fine: FineFilter | None
    grid: Grid
    voxel_size: float
    sampler: PlugAndPlay

    @classmethod
    def of(
        cls,
        prior: VelocityField,
        half1: Tensor,
        half2: Tensor,
        common: Common,
        /,
        *,
        generator: torch.Generator,
        voxel_size: float,
        grid: Grid | None = None,
        model: FourierModel | None = None,
        sampler: PlugAndPlay = PlugAndPlay(),  # noqa: B008 (frozen)
    ) -> Self:
        """As `restore_half_maps` restored the first ones, given the same.

        Args:
            prior: see there.
            half1: `(z, y, x)`.
            half2: likewise.
            common: of its result.
            generator: whose state all runs begin with.
            voxel_size: of the halves, Å.
            grid: see there.
            model: on the prior's grid. None: `directional_model`.
            sampler: restores.

        >>> from types import SimpleNamespace
        >>> from cryofm_sampling import Rescaled, restore_half_maps
        >>> from cryofm_sampling.testing import GaussianPrior
        >>> prior = Rescaled(GaussianPrior(1.0, (16, 16, 16)), SimpleNamespace(mean=0.0, std=1.0))
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(16, 16, 16, generator=generator)
        >>> halves = [x + torch.randn(16, 16, 16, generator=generator) for _ in range(2)]
        >>> how = {"generator": generator, "voxel_size": 1.5}
        >>> alike = Alike.of(prior, *halves, Common(1.0, 0.0, 3.0, 1.0), **how)
        >>> result = restore_half_maps(prior, *halves, scale=1.0, b_factor=0.0, **how)
        >>> bool(torch.allclose(alike(*halves), result.map, atol=1e-5))
        True
        """
        grid = grid or SameGrid(voxel_size)
        if model is None:
            model = directional_model(grid.forward(half1), grid.forward(half2), band=grid.band)
        b = common.b_factor
        fine = None
        if common.restored_to > 2 * voxel_size * (1 + 1e-6):
            fine = FineFilter.of(half1, half2, voxel_size=voxel_size, b_factor=b, width=grid.voxel_size)
        runs = Runs(prior, generator.get_state(), generator.device, None, None, None)
        model = model.blurred(Envelope(b, grid.voxel_size), common.solvent_contrast)
        return cls(runs, common, model, fine, grid, voxel_size, sampler)

    @torch.no_grad()
    def __call__(self, half1: Tensor, half2: Tensor, /) -> Tensor:
        """The mean of two halves `(z, y, x)`, restored."""
        one, two = self.grid.forward(half1), self.grid.forward(half2)
        seen = self.model.comparable(one), self.model.comparable(two)
        where = where_halves_agree(*seen, self.model.signal_power, self.model.noise_power)
        if not where.any():
            return torch.zeros_like(half1)
        mean = (one + two) / 2
        _, shape = split_shape(mean.shape)
        prior = Rescaled(self.runs.within(where).prior, self.runs.scaled(self.common.scale))
        with warnings.catch_warnings():  # the misfit of a block is that of its edges
            warnings.simplefilter("ignore", MisfitWarning)
            draw = restore(
                prior,
                self.model.observe(mean, 1 / 2),
                shape=shape,
                generator=self.runs.generator(),
                sampler=self.sampler,
            )
        x, data = self.grid.inverse(self.model.in_solvent(draw.x)), (half1 + half2) / 2
        if self.fine is None:
            return x
        # Its signal is that of the first ones, and in the mean this one has more or less of it.
        share = float(x.square().mean()) / self.common.power
        fine = attrs.evolve(self.fine, signal=self.fine.signal * share)
        end = 2 * self.voxel_size / self.common.restored_to
        return joined(x, fine(data, x), end, min(1 / self.grid.band, 1.0))


@attrs.frozen(eq=False)
class WedgeAlike:
    """Fills the missing wedge of other maps, of the same shape, as that of a first one was; without checks.

    A map that is everywhere far fainter than the first is solvent, and stays as it is, but for `offset`.

    Attributes:
        prior: see `restore_missing_wedge`.
        first: `(z, y, x)`.
        tilts: what was measured.
        scale: found on the first one.
        offset: of its solvent, likewise.
        generator: whose state all runs begin with.
        grid: the way of all of them to the prior's voxel size.
        sampler: restores.
    """

    prior: VelocityField
    first: Tensor
    tilts: MissingWedge
    scale: float
    offset: float
    generator: torch.Generator
    grid: Grid
    sampler: PlugAndPlay

    @torch.no_grad()
    def __call__(self, map: Tensor, /) -> Tensor:
        """The whole of a map `(z, y, x)`."""
        where = where_dense(map, self.first)
        if not where.any():
            return map - self.offset
        own = torch.Generator(self.generator.device)
        own.set_state(self.generator.get_state())
        with warnings.catch_warnings():  # at the faces of a block the tilts seem to be others
            warnings.simplefilter("ignore")
            return restore_missing_wedge(
                self.prior,
                map,
                self.tilts,
                generator=own,
                grid=self.grid,
                sampler=self.sampler,
                scale=self.scale,
                where=where,
            ).map
