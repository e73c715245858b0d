"""What a script with an operator of one's own needs besides it: the map that ships on the prior's grid, and results."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import numpy as np
import torch
from _input import DEMO_MAP, add_samples_flag, demo_truth, sample_files
from _restoration import drawn_by, leave_samples
from _results import FILES, RESTORED, leave
from _script import WithProgress, add_flags, launch, sha256
from _site import Site, calibrated_prior
from torch import Tensor
from tqdm import tqdm

from cryofm_io import DensityMap
from cryofm_sampling import Draw, ScaledNormalization

SIDE = 72.0  # Å, not much more than the molecule


@attrs.frozen(eq=False)
class Example:
    """The map that ships, and a prior in its units that moves a progress bar.

    Attributes:
        x: the map on the prior's grid, 0 in the solvent.
        brightest: density of its brightest voxels.
        generator: of all random numbers.
    """

    args: argparse.Namespace
    site: Site
    prior: WithProgress
    x: Tensor
    brightest: float
    generator: torch.Generator

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the box (z, y, x)."""
        return self.site.grid.target

    @property
    def voxel_size(self) -> float:
        """Å."""
        return self.site.grid.voxel_size

    def leave(self, folder: Path, observed: Tensor, draw: Draw, samples: list[Draw]) -> None:
        """Write what denoise.py writes, and say what was gained over the observation."""
        print(f"restored by {draw.settings['algorithm']} in {draw.nfe} network evaluations")
        candidates = {"input": self.site.back(observed), RESTORED: self.site.back(draw.x)}
        files = {DEMO_MAP.name: sha256(DEMO_MAP)}
        uncertainty = leave_samples(folder, self.site, [self.site.back(sample.x) for sample in samples])
        record = drawn_by(samples)
        like = self.site.like
        leave(self.args, folder, self.site, files, like, candidates, {}, draw, None, record, uncertainty=uncertainty)


def start(description: str | None, run: Callable[[argparse.Namespace, Path], None]) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_samples_flag(parser)
    add_flags(parser, steps=8, of="network evaluations")
    args = parser.parse_args()
    launch(args, [*FILES, *sample_files(args.samples)], run)


@contextmanager
def example(args: argparse.Namespace, evaluations: int) -> Iterator[Example]:
    """The example and a progress bar of so many network evaluations, which disappears at the end."""
    prior = calibrated_prior(args)
    truth = demo_truth()
    n = min(*truth.shape, round(SIDE / truth.voxel_size))
    box = tuple(slice(m // 2 - n // 2, m // 2 - n // 2 + n) for m in truth.shape)
    origin = [p + truth.voxel_size * part.start for p, part in zip(truth.position, reversed(box), strict=True)]
    site = Site.of(args, prior, DensityMap(truth.data[box], truth.voxel_size, origin))
    brightest = float(np.percentile(truth.data, 99.999))
    with tqdm(total=evaluations, unit=" evaluations", file=sys.stdout, leave=False, desc="restoring") as bar:
        units = site.in_units(ScaledNormalization(prior.normalization, 1 / brightest), bar)
        generator = torch.Generator(site.device).manual_seed(args.seed)
        yield Example(args, site, units, site.forward(site.like.data), brightest, generator)
