"""Restoring two half maps: what the scripts for one kind of noise or another share."""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from _input import UNCERTAINTY, Input, sample_names
from _ranks import agreed, everyone, is_first
from _results import HALVES, INPUT, RESTORED, SELF, WIENER, leave
from _script import WithProgress
from _site import Site, Volume
from torch import Tensor
from tqdm import tqdm

from cryofm_io import VIEWING_NOTE, write_map
from cryofm_ops import FourierGaussian, FourierOperator, Likelihood, fourier_filter, friedel_weights, radial, rfft
from cryofm_sampling import (
    Callback,
    Checkpoint,
    Draw,
    PlugAndPlay,
    PosteriorFlow,
    Sampler,
    ScaledNormalization,
    ScaleFit,
    VelocityField,
    fit_scale,
    restore,
    spread,
)

AGREE = 0.05  # least FSC of shells where the halves say something of each other
WEAK = 1.5  # of right scales it is 0.85 to 1.1, of those twice as large up to 1.25
SPREAD_NOTE = "Standard deviation of maps that the data allow; where large, the prior's word."


@attrs.frozen(eq=False)
class Model:
    """How two half maps came about.

    Attributes:
        fsc: radial table of the FSC between them.
        observe: (x, share) -> likelihood of a map x whose noise has ``share`` of the power that ONE half has.
        gain: of the best linear filter of the mean of both, on the half grid.
        record: what ``run.json`` should say of it.
        measured: the part of Fourier space that was measured, where not all was.
        missing: the other part.
    """

    fsc: Tensor
    observe: Callable[[Tensor, float], FourierGaussian]
    gain: Tensor
    record: dict[str, Any]
    measured: FourierOperator | None = None
    missing: FourierOperator | None = None


@attrs.frozen
class Judged:
    """A sampler whose volumes are cut to the part of Fourier space where held-out data can judge them."""

    sampler: Sampler
    region: FourierOperator

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
        """As the sampler, then cut."""
        draw = self.sampler(velocity, likelihood, shape=shape, generator=generator, callback=callback)
        return attrs.evolve(draw, x=self.region(draw.x))


def restore_halves(
    args: argparse.Namespace,
    folder: Path,
    site: Site,
    given: Input,
    model: Model,
    sampler: PlugAndPlay,
) -> None:
    """Restore the mean of the halves and each half by itself, draw samples where asked to, and leave all of it.

    The noise in ``model`` and the scale come from both halves and are the same for all three. Of anything else the
    restoration of a half sees that half alone.
    """
    halves = [site.forward(half.data) for half in (given.half1, given.half2)]
    mean = (halves[0] + halves[1]) / 2
    linear_filtered = fourier_filter(mean, model.gain)
    linear_filtered += mean.mean() - linear_filtered.mean()
    measured = model.measured
    drawing = PosteriorFlow() if measured is None else PosteriorFlow(first=sampler)  # which fills the gap

    trial: Sampler = PlugAndPlay(iterations=3)
    with tqdm(unit=" evaluations", file=sys.stdout, leave=False, desc="scale") as bar:
        fit = given_scale(args, site) or agreed(
            fit_scale(
                WithProgress(site.velocity, site.prior, site.prior.normalization, bar),
                model.observe(halves[0], 1),
                halves[1] if measured is None else measured(halves[1]),
                model.fsc,
                generator=site.generator(args.seed),
                guess=1 / height(linear_filtered),
                sampler=trial if measured is None else Judged(trial, measured),
            )
        )
        units = site.in_units(fit.normalization, bar)
        likelihoods = [model.observe(mean, 1 / 2), *(model.observe(half, 1) for half in halves)]
        (draw, *restored_halves), samples = restored_and_drawn(args, site, units, likelihoods, sampler, drawing)
    if not is_first():
        return
    say_how(fit, draw)
    slope = slope_of(halves[1], restored_halves[0].x, model)
    if slope > WEAK and sampler.iterations >= PlugAndPlay().iterations:  # fewer passes leave more undone
        warnings.warn(
            f"where the halves agree, one restored has to be multiplied by {slope:.2g} to predict the other: the scale "
            f"{fit.normalization.scale:.3g} may be too high; look at scale_trials in run.json, and try a lower --scale",
            stacklevel=2,
        )

    solvent = mean.mean() - draw.x.mean()  # of restored density it is 0
    had = given.solvent + float(solvent)

    def back(x: Tensor) -> Volume:
        return site.back(x, had)

    uncertainty = leave_samples(folder, site, [back(sample.x) for sample in samples])
    one, two = (site.back(half.x) for half in restored_halves)
    curves = {
        HALVES: site.compare(given.half1.data, given.half2.data),
        SELF: site.compare(one, two),
    }
    leave(
        args,
        folder,
        site,
        given.files,
        given.truth,
        {INPUT: back(mean - solvent), WIENER: back(linear_filtered - solvent), RESTORED: back(draw.x)},
        curves,
        draw,
        fit,
        {
            "solvent": had,
            "grid": attrs.asdict(site.grid),
            **model.record,
            **drawn_by(samples),
            "slope_of_the_other_half": slope,
            "self_consistency_fsc_auc": curves[SELF].auc,
            "half_map_fsc_auc": curves[HALVES].auc,
        },
        missing=model.missing,
        uncertainty=uncertainty,
    )


def height(density: Tensor) -> float:
    """Of the brightest voxels over the solvent, if that is most of the box."""
    return float(np.percentile(density.cpu(), 99.999)) - float(density.median())


def slope_of(y: Tensor, x: Tensor, model: Model) -> float:
    """By what restored density x has to be multiplied to predict the other half y, where the halves agree; about 1."""
    if model.measured is not None:
        x, y = model.measured(x), model.measured(y)
    depth, height, width = x.shape
    shape = depth, height, width
    agree = friedel_weights(shape).to(x) * (radial(model.fsc.to(x).nan_to_num(0), shape) > AGREE)
    agree[0, 0, 0] = 0
    seen, predicted = rfft(y), rfft(x)
    return float((agree * (predicted.conj() * seen).real).sum() / (agree * predicted.abs().square()).sum())


def given_scale(args: argparse.Namespace, site: Site) -> ScaleFit | None:
    """That of the command line, if there is one."""
    return None if args.scale is None else ScaleFit(ScaledNormalization(site.prior.normalization, args.scale), (), 0)


def restored_and_drawn(
    args: argparse.Namespace,
    site: Site,
    units: WithProgress,
    likelihoods: Sequence[FourierGaussian],
    sampler: PlugAndPlay,
    drawing: PosteriorFlow,
) -> tuple[list[Draw], list[Draw]]:
    """Restore a map by each likelihood, all with the same random numbers, and draw samples by the first.

    Samples are drawn one by one: a batch would take their number times the memory. Where ranks do not share the tiles,
    they share restorations and samples.
    """
    tiles = site.velocity.group
    group = everyone() if tiles is None else None
    shape, first = site.grid.target, likelihoods[0]

    def part(k: int) -> Checkpoint | None:
        return None if args.checkpoint is None else Checkpoint(args.checkpoint, group=tiles).part(k)

    def restored(k: int) -> Draw:
        generator = site.generator(args.seed)
        return restore(units, likelihoods[k], shape=shape, generator=generator, sampler=sampler, checkpoint=part(k))

    def drawn(seed: int, k: int) -> Draw:
        # Given to the sampler: `restore` would remove it when this sample is done, and not when all is written.
        keeping = partial(drawing, checkpoint=part(k))
        return restore(units, first, shape=shape, generator=site.generator(seed), sampler=keeping, samples=1)

    seeds = torch.randint(2**62, (args.samples,), generator=torch.Generator().manual_seed(args.seed)).tolist()
    n = len(likelihoods)
    jobs = [partial(restored, k) for k in range(n)] + [partial(drawn, seed, k) for k, seed in enumerate(seeds, n)]
    known = args.checkpoint is not None  # one more evaluation tells a checkpoint whose it is
    evaluations = [args.steps + known] * n + [drawing.nfe + known] * args.samples
    units.bar.reset(total=sum(evaluations[:: 1 if group is None else group.size()]))  # the first rank's
    units.bar.set_description("restoring")
    draws = spread(jobs, group)
    return draws[:n], draws[n:]


def drawn_by(samples: list[Draw]) -> dict[str, Any]:
    """What ``run.json`` should say of the sampler, where there are samples."""
    if not samples:
        return {}
    settings = samples[0].settings
    return {"drawing": {**settings, "algorithm": settings["sampler"], "estimate": "samples", "samples": len(samples)}}


def leave_samples(folder: Path, site: Site, samples: list[Volume]) -> Volume | None:
    """Write samples, and their standard deviation, which is returned, where there are two or more."""
    for name, sample in zip(sample_names(len(samples)), samples, strict=True):
        write_map(folder / name, attrs.evolve(site.like, data=sample, labels=(VIEWING_NOTE,)))
    if len(samples) < 2:
        return None
    uncertainty: Volume = np.std(samples, axis=0, ddof=1)
    write_map(folder / UNCERTAINTY, attrs.evolve(site.like, data=uncertainty, labels=(SPREAD_NOTE,)))
    return uncertainty


def say_how(fit: ScaleFit, draw: Draw) -> None:
    """By what the map was restored."""
    found = f"found by cross-validation in {fit.nfe} network evaluations" if fit.trials else "as given"
    print(f"scale {fit.normalization.scale:.3g}, {found}")
    print(f"restored by {draw.settings['algorithm']} (the posterior mean) in {draw.nfe} network evaluations")
