"""Where the scripts restore a map: on the grid of a prior, in its tiles, on its device."""

import argparse
from typing import Any, Self

import attrs
import numpy as np
import torch
from _script import WithProgress, by, check_memory, choose_device, tiles
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cryofm_io import DensityMap, FscCurve, GridTransform, fsc, read_mask
from cryofm_model import CalibratedPrior, Prior, WeightsError, load_prior
from cryofm_ops import FourierOperator
from cryofm_sampling import ScaledNormalization, Tiled

Volume = NDArray[np.floating]


@attrs.frozen(eq=False)
class Site:
    """Where a map is restored: on the grid of the prior, in its tiles, on its device."""

    like: DensityMap
    mask: Volume | None
    prior: CalibratedPrior
    velocity: Tiled
    grid: GridTransform
    device: torch.device

    @classmethod
    def of(cls, args: argparse.Namespace, prior: CalibratedPrior, like: DensityMap) -> Self:
        """For a map; refused, before the start, where memory does not suffice."""
        # The prior's voxel size and not a voxel more: padding would break the noise's independent Fourier coefficients.
        grid = GridTransform.of(like, prior.voxel_size)
        device = prior.signal_power.device
        finest = 2 * max(grid.voxel_size, like.voxel_size)
        print(f"map {by(like.shape)} voxels of {like.voxel_size:.4g} Å; prior {args.prior} on {device}")
        print(
            f"grid {by(grid.target)} voxels of {grid.voxel_size:.4g} Å: nothing finer than {finest:.2f} Å is restored"
        )
        velocity = tiles(prior, grid.target, args.precision)
        check_memory(grid.target, velocity, device, gradients=False)
        path = vars(args).get("mask")
        mask = None if path is None else read_mask(path, like, voxel_size=args.voxel_size)
        return cls(like, mask, prior, velocity, grid, device)

    def forward(self, data: Volume) -> Tensor:
        """A map on the grid of the prior."""
        return torch.from_numpy(self.grid.forward(data)).to(self.device)

    def halves(self, half1: DensityMap, half2: DensityMap) -> tuple[Tensor, Tensor]:
        """Both on the grid of the prior, on the CPU."""
        return self.forward(half1.data).cpu(), self.forward(half2.data).cpu()

    @property
    def finer(self) -> float:
        """Voxels of the prior's grid over those of the map."""
        return self.grid.voxel_size / self.like.voxel_size

    def back(self, x: Tensor, solvent: float = 0.0) -> Volume:
        """A map without solvent on the input's grid again: masked, or, where there is no mask, in its solvent."""
        result = self.grid.inverse(x.cpu().numpy())
        return result + solvent if self.mask is None else result * self.mask

    def compare(self, a: Volume, b: Volume, region: FourierOperator | None = None) -> FscCurve:
        """FSC on the prior's grid, inside the mask, of all coefficients or those of a region.

        It ends with the shells that the input has: a mask makes correlated density of finer ones.
        """
        a, b = (self.grid.forward(x) for x in (a, b))
        if region is not None:
            a, b = (region(torch.from_numpy(x)).numpy() for x in (a, b))
        mask = None if self.mask is None else self.grid.forward(self.mask)
        curve = fsc(a, b, self.grid.voxel_size, mask)
        measured = curve.frequency < (1 + 1e-6) / (2 * self.like.voxel_size)
        return FscCurve(curve.frequency[measured], curve.correlation[measured], curve.n_voxels[measured])

    def generator(self, seed: int) -> torch.Generator:
        """Random numbers, the same ones every time."""
        return torch.Generator(self.device).manual_seed(seed)

    def in_units(self, normalization: ScaledNormalization, bar: "tqdm[Any]") -> WithProgress:
        """The prior for maps of another scale than its own."""
        return WithProgress(self.velocity, self.prior, normalization, bar)


def chosen_prior(args: argparse.Namespace) -> Prior:
    """The prior that the command line names, on its device."""
    device = choose_device(args.device)
    return load_prior(args.prior).to(device)


def calibrated_prior(args: argparse.Namespace, otherwise: str | None = None) -> CalibratedPrior:
    """The same.

    Raises:
        WeightsError: it has no measured statistics; the message says what to do, or ``otherwise``.
    """
    prior = chosen_prior(args)
    if not isinstance(prior, CalibratedPrior):
        raise WeightsError(
            f"the prior {args.prior} has no measured statistics, which its noise level is chosen by: add them with "
            f"prior.with_statistics(cryofm_sampling.calibrate(prior, examples, generator=...)) and save it, once"
            + (f"; or {otherwise}" if otherwise else "")
        )
    return prior
