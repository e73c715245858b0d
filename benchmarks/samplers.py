"""Quality per network evaluation of every sampler: ``python benchmarks/samplers.py MAPS... --out CSV``.

Data and scores are those of the paper's protocol (see ``_protocol.py``), with the ±60° wedge also with noise of the
level 4.3 Å in what it keeps, but not its way: here ONE observation of a crop (for noise: the mean of both halves) is
restored by every sampler at every number of steps, which is what tells samplers apart and what ``denoise.py`` does.
Numbers that stand beside the paper's are those of ``paper.py``, where each half is restored by itself. ``input`` is the
observation, ``wiener`` the Wiener filter of the truth's own spectrum. The CSV grows line by line, and lines that it has
are not computed again: a stopped run goes on, and boxes, crops, rows, samplers or steps can be added later.
``--summary`` prints what the CSV has, mean ± standard deviation over crops (n − 1), failures excluded (of seconds the
median, as other jobs may have run), how many crops fall below the Wiener filter, and how many failed.

``default`` is what `restore` chooses by itself, whatever ``--steps``. NFE counts a backward pass through the network as
one more evaluation. The whole grid on 20 maps is days on one core; README.md has an order in which to run parts of it.
"""

import argparse
import csv
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from _inputs import clean
from _protocol import ROWS, VOXEL, WEDGE, WEDGE_ROW, Score, Summary, crop, degraded, sides, wiener
from torch import Tensor

from cryofm_model import Prior, load_prior
from cryofm_ops import CryoFMError, FourierGaussian, irfft
from cryofm_sampling import Draw, Guided, Inpainting, PlugAndPlay, PosteriorFlow, Renoising, Sampler, restore

NOISY_WEDGE = "wedge ±60°, noisy"
COLUMNS = ("map", "box", "row", "sampler", "steps", "nfe", "seconds", "auc", "fsc05", "error", "auc_gap")


def posterior_flow(nfe: int, row: str) -> PosteriorFlow:
    """One evaluation, or where a gap has to be filled up to a quarter of them, on the mean; the others on the flow."""
    passes = max(1, min(nfe // 4, 20)) if row.startswith("wedge") else 1
    return PosteriorFlow(max(2, nfe - passes), PlugAndPlay(passes))


def renoising(nfe: int, chains: int) -> Renoising:
    """``chains`` chains of as many levels, falling evenly from 0.8, as the evaluations allow."""
    levels = max(1, nfe // chains)
    return Renoising(times=tuple(np.linspace(0.8, 0.8 / levels, levels).tolist()), chains=chains)


SAMPLERS: dict[str, Callable[[int, str], Sampler | None]] = {  # (steps, row)
    "default": lambda n, row: None,
    "plug-and-play": lambda n, row: PlugAndPlay(n),
    "posterior flow": posterior_flow,
    "renoising, 4 chains": lambda n, row: renoising(n, 4),
    "renoising, 1 chain": lambda n, row: renoising(n, 1),
    "guided, gaussian": lambda n, row: Guided(n),
    "guided, paper (Alg. 1)": lambda n, row: Guided(n, "paper"),
    "inpainting (Alg. 2)": lambda n, row: Inpainting(n),
}


def observations(truth: Tensor, seed: int) -> Iterator[tuple[str, FourierGaussian]]:
    """Every row's data for one map."""
    generator = torch.Generator().manual_seed(seed)
    box = sides(truth)
    kept = WEDGE.transfer(box).to(truth)
    for row in ROWS:
        data = degraded(row, truth, generator).of_mean
        yield row, data
        if row == "spectral 4.3A":
            noisy = FourierGaussian(kept * data.precision, kept * data.data, box)
    yield NOISY_WEDGE, noisy


def line_of(truth: Tensor, x: Tensor | None, gap: bool) -> dict[str, float]:
    """What is said of one estimate."""
    score = Score.of(x, truth, VOXEL, WEDGE if gap else None)
    values = {"auc": score.auc, "fsc05": score.fsc05, "error": score.error, "auc_gap": score.auc_gap}
    return {key: round(value, 4) for key, value in values.items()}


def measure(name: str, truth: Tensor, seed: int, prior: Prior, args: argparse.Namespace) -> None:
    """Add to the CSV what it lacks of one map."""
    keys = ("map", "box", "row", "sampler", "steps")
    done = {tuple(line[key] for key in keys) for line in read(args.out)}
    box = sides(truth)

    def add(row: str, sampler: str, steps: int, nfe: int, seconds: float, x: Tensor | None, gap: bool) -> None:
        line: dict[str, object] = dict(zip(keys, (name, box[0], row, sampler, steps), strict=True))
        line |= {"nfe": nfe, "seconds": round(seconds, 2), **line_of(truth, x, gap)}
        print(line, flush=True)
        new = not args.out.exists()
        with args.out.open("a", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                table.writeheader()
            table.writerow(line)

    for row, likelihood in observations(truth, seed):
        if args.rows and not any(row.startswith(chosen) for chosen in args.rows):
            continue
        gap = row.startswith("wedge")
        plain = {"input": irfft(likelihood.data, box), "wiener": wiener(likelihood, truth)}
        for kind, x in plain.items():
            if (name, str(box[0]), row, kind, "0") not in done:
                add(row, kind, 0, 0, 0.0, x, gap)
        for sampler in args.samplers:
            if sampler.startswith("inpainting") and row != WEDGE_ROW:
                continue  # which takes the data as noiseless
            if sampler.startswith("guided") and row == WEDGE_ROW:
                continue  # noiseless data have no density to be guided by
            for steps in args.steps if sampler != "default" else [0]:
                if (name, str(box[0]), row, sampler, str(steps)) in done:
                    continue
                start = time.perf_counter()
                numbers = torch.Generator().manual_seed(seed)
                algorithm = SAMPLERS[sampler](steps, row)
                draw: Draw | None
                try:
                    with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
                        draw = restore(prior, likelihood, shape=box, generator=numbers, sampler=algorithm, samples=1)
                except CryoFMError as error:
                    print(f"{name}, {row}, {sampler}, {steps} steps: {error}", flush=True)
                    draw = None
                found, nfe = (None, 0) if draw is None else (draw.x, draw.nfe)
                add(row, sampler, steps, nfe, time.perf_counter() - start, found, gap)


def read(path: Path) -> list[dict[str, str]]:
    """The lines of the CSV."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def summary(path: Path) -> None:
    """Print the means."""
    lines = read(path)
    wieners = {(line["map"], line["box"], line["row"]): line["auc"] for line in lines if line["sampler"] == "wiener"}
    groups: dict[tuple[str, str, str, int], list[dict[str, str]]] = defaultdict(list)
    for line in lines:
        groups[line["box"], line["row"], line["sampler"], int(line["steps"])].append(line)
    for (box, row, sampler, steps), group in groups.items():
        scores = [Score(*(float(line[key]) for key in ("auc", "fsc05", "auc_gap", "error"))) for line in group]
        found = Summary.of(scores, float(box) * VOXEL)
        below = sum(float(line["auc"]) < float(wieners[line["map"], box, row]) - 0.02 for line in group)
        nfe, seconds = (np.array([float(line[key]) for line in group]) for key in ("nfe", "seconds"))
        error = np.array([score.error for score in scores if not score.failed] or [math.nan])
        print(
            f"{box:>3}³ {row:20} {sampler:24} {steps:5} steps {nfe.mean():6.0f} NFE {np.median(seconds):7.1f} s  "
            f"AUC {found.auc[0]:.3f} ± {found.auc[1]:.3f}  FSC_0.5 {found.fsc05[0]:5.2f} ± {found.fsc05[1]:4.2f} Å  "
            f"error {error.mean():.3f}  gap {found.auc_gap[0]:.3f}  "
            f"{found.n} maps, {round(found.fail_rate * found.n)} failed, {below} worse than Wiener by .02"
        )


@torch.no_grad()
def main() -> None:
    """Parse the command line; measure, or summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path, nargs="*", help="maps that the prior was not trained on")
    parser.add_argument("--rows", nargs="*", default=[], help="beginnings of the names of rows (default all)")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), help="(default all)")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50, 200, 1000])
    parser.add_argument("--box", type=int, default=64, help="side of the crops, a multiple of 8 (default 64)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    parser.add_argument("--prior", default="cryofm-tiny")
    parser.add_argument("--out", type=Path, required=True, help=".csv file, added to")
    parser.add_argument("--summary", action="store_true", help="print what the CSV has")
    args = parser.parse_args()
    if args.summary:
        summary(args.out)
        return
    prior = load_prior(args.prior)
    for seed, path in enumerate(args.maps):
        measure(path.stem, torch.from_numpy(crop(clean(path, prior.voxel_size), args.box)), seed, prior, args)


if __name__ == "__main__":
    main()
