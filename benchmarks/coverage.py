"""Do samples spread as the truth does? ``python benchmarks/coverage.py MAPS... --out CSV``.

A crop is observed as in ``samplers.py``; or one half of it blurred, and all in white noise as strong as itself; or one
half, or every second voxel along x, not at all, and the rest in noise of 2 % of the brightest voxels. K samples of its
posterior are drawn by every sampler. With mean and standard deviation of the samples in every voxel,
(truth − mean) / (sd √(1 + 1/K)) is Student's t with K − 1 degrees of freedom if truth and samples are draws of one
normal distribution. Said of the voxels where the Wiener estimate has density (a mask made from the truth would choose
voxels whose truth lies above what can be known):

- ``inside_50``, ``_80``, ``_95``: how often the truth lies within the interval that should hold it so often;
- ``factor``: by what to multiply sd so that 68.27 % lie within ±1;
- ``variance``: of the samples, (1 + 1/K) times, over the squared error of their mean, both summed over the whole box;
- ``informs``: correlation of log sd with log |truth − mean|, over cubes of 4³ voxels: does sd tell where errors are?
- ``chi_squared``: of the samples against the data, mean over shells where noise was measured (over voxels, where the
  data are not diagonal in Fourier space); 1 if all is well;
- ``auc_mean``, ``error_mean``: FSC_AUC and relative squared error of the mean of the samples;
- ``error_map``: that of the map that `restore` makes by itself (beside the samples that it draws by itself).

Lines of single crops come first, means over crops last. A backward pass through the network counts as an evaluation.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import torch
from _inputs import calibrated_prior, clean
from _protocol import DENSITY, crop, sides
from _table import write_csv
from samplers import line_of, observations, renoising
from scipy.stats import t as student
from torch import Tensor

from cryofm_model import CalibratedPrior, Normalization
from cryofm_ops import (
    FourierGaussian,
    LinearGaussian,
    LinearOperator,
    LowPass,
    WhiteNoise,
    gaussian_likelihood,
    radial,
    radial_mean,
    rfft,
)
from cryofm_sampling import Guided, PosteriorFlow, Sampler, chi_squared, restore, summarise

ROWS = ("spectral 4.3A", "anisotropic ±30°", "wedge ±60°", "wedge ±60°, noisy")  # of samplers.py
LEVELS = (50, 80, 95)  # per cent
ONE_SIGMA = 0.6827


SAMPLERS: dict[str, Sampler | None] = {
    "default": None,  # of `restore`: the flow of the posterior with 24 steps
    "posterior flow, 12 steps": PosteriorFlow(12),
    "posterior flow, 48 steps": PosteriorFlow(48),
    "renoising, 4 levels": renoising(4, 1),
    "renoising, 8 levels": renoising(8, 1),
    "renoising, 16 levels": renoising(16, 1),
    "guided, 15 steps": Guided(15),
    "guided, 100 steps": Guided(100),
}


class HalfBlurred:
    """A = (1 − w) + w B, which is 1 in one half of the box and blurs to 8 Å in the other."""

    blur = LowPass(8.0, 1.5)

    def w(self, x: Tensor) -> Tensor:
        """1 in the second half."""
        return torch.arange(x.shape[-3]).ge(x.shape[-3] / 2).to(x)[:, None, None]

    def __call__(self, x: Tensor, /) -> Tensor:
        """A x."""
        return (1 - self.w(x)) * x + self.w(x) * self.blur(x)

    def adjoint(self, y: Tensor, /) -> Tensor:
        """Aᵀ y."""
        return (1 - self.w(y)) * y + self.blur.adjoint(self.w(y) * y)


class HalfUnseen:
    """The first half along z."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """A x."""
        return x[..., : x.shape[-3] // 2, :, :]

    def adjoint(self, y: Tensor, /) -> Tensor:
        """Aᵀ y."""
        return torch.cat([y, torch.zeros_like(y)], -3)


class EverySecond:
    """Every second voxel along x."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """A x."""
        return x[..., ::2]

    def adjoint(self, y: Tensor, /) -> Tensor:
        """Aᵀ y."""
        return torch.stack([y, torch.zeros_like(y)], -1).flatten(-2)


def linear(truth: Tensor, seed: int) -> Iterator[tuple[str, LinearGaussian]]:
    """Data of operators that are linear, and not diagonal in Fourier space."""
    loud, quiet = WhiteNoise(float(truth.std())), WhiteNoise(0.02)
    operators: dict[str, tuple[LinearOperator, WhiteNoise]] = {
        "half blurred": (HalfBlurred(), loud),
        "half unseen": (HalfUnseen(), quiet),
        "every second voxel": (EverySecond(), quiet),
    }
    for row, (A, noise) in operators.items():
        observed = noise.sample(A(truth), generator=torch.Generator().manual_seed(seed))
        yield row, gaussian_likelihood(A, noise, observed)


def misfit(x: Tensor, likelihood: FourierGaussian | LinearGaussian) -> float:
    """χ² of volumes, mean over what was measured with noise."""
    if isinstance(likelihood, FourierGaussian):
        chi = chi_squared(x, likelihood)[..., 1:]
        return float(chi[chi.isfinite()].mean())
    return float(torch.stack([-2 * likelihood.log_prob(one) for one in x]).mean()) / likelihood.observation.numel()


def blocks(x: Tensor) -> Tensor:
    """Means over cubes of 4³."""
    return torch.nn.functional.avg_pool3d(x[None, None], 4)[0, 0]


def spread_of(samples: Tensor, truth: Tensor, mask: Tensor) -> dict[str, float]:
    """How the truth lies in the spread of samples `(K, z, y, x)`, in the voxels of the mask."""
    K = len(samples)
    summary = summarise(samples)
    z = ((truth - summary.mean).abs() / summary.std / (1 + 1 / K) ** 0.5)[mask]
    found = {f"inside_{p}": float((z < student.ppf(0.5 + p / 200, K - 1)).double().mean()) for p in LEVELS}
    factor = float(z.quantile(ONE_SIGMA)) / float(student.ppf(0.5 + ONE_SIGMA / 2, K - 1))
    some = blocks(mask.to(truth)) > 0
    logs = [blocks(q.square())[some].log() for q in (truth - summary.mean, summary.std)]
    return found | {"factor": factor, "informs": float(torch.corrcoef(torch.stack(logs))[0, 1])}


def error_of_map(
    prior: CalibratedPrior,
    likelihood: FourierGaussian | LinearGaussian,
    truth: Tensor,
    seed: int,
    args: argparse.Namespace,
) -> float:
    """Relative squared error of the posterior mean as `restore` finds it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
        x = restore(prior, likelihood, shape=sides(truth), generator=generator).x
    return line_of(truth, x, False)["error"]


def line(
    prior: CalibratedPrior,
    likelihood: FourierGaussian | LinearGaussian,
    truth: Tensor,
    row: str,
    sampler: Sampler | None,
    seed: int,
    args: argparse.Namespace,
) -> dict[str, object]:
    """Draw samples and say everything of them."""
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    box = sides(truth)
    settings = {"shape": box, "generator": generator, "samples": args.samples, "sampler": sampler}
    with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
        draw = restore(prior, likelihood, estimate="samples", **settings)
    seconds = time.perf_counter() - start
    error_map = error_of_map(prior, likelihood, truth, seed, args) if sampler is None else math.nan
    power = radial(radial_mean(rfft(truth).abs().square(), box), box).clamp(min=1e-12)
    wiener = likelihood.condition(torch.zeros(box), power).mean
    mean, variance = draw.x.mean(0), draw.x.var(0).sum() * (1 + 1 / args.samples)
    of_mean = line_of(truth, mean, row.startswith("wedge"))
    values = spread_of(draw.x, truth, wiener > DENSITY) | {
        "variance": float(variance / (truth - mean).square().sum()),
        "chi_squared": misfit(draw.x, likelihood),
        "auc_mean": of_mean["auc"],
        "error_mean": of_mean["error"],
        "error_map": error_map,
        "seconds": seconds,
    }
    return {"nfe": draw.nfe, **{key: round(value, 4) for key, value in values.items()}}


@torch.no_grad()
def main() -> None:
    """Parse the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("maps", type=Path, nargs="+", help="maps that the prior was not trained on")
    parser.add_argument("--rows", nargs="+", help="(default: four of samplers.py, and those described above)")
    parser.add_argument(
        "--samplers", nargs="+", choices=SAMPLERS, default=["default", "renoising, 8 levels"], help="of samples"
    )
    parser.add_argument("--samples", type=int, default=8, help="K (default 8)")
    parser.add_argument("--scale", type=float, default=1.0, help="told, times the true one (default 1)")
    parser.add_argument("--box", type=int, default=48, help="side of the crops, a multiple of 8 (default 48)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    parser.add_argument("--prior", default="cryofm-tiny")
    parser.add_argument("--out", type=Path, required=True, help=".csv file")
    args = parser.parse_args()
    prior = calibrated_prior(args.prior)
    mean, std = prior.normalization.mean, prior.normalization.std
    prior = attrs.evolve(prior, normalization=Normalization(mean / args.scale, std / args.scale))
    table: list[dict[str, object]] = []
    for seed, path in enumerate(args.maps):
        truth = torch.from_numpy(crop(clean(path, prior.voxel_size), args.box))
        data: list[tuple[str, FourierGaussian | LinearGaussian]] = [*observations(truth, seed), *linear(truth, seed)]
        chosen = args.rows or [*ROWS, *(row for row, _ in linear(truth, seed))]
        for row, likelihood in data:
            for name in args.samplers if row in chosen else ():
                found = line(prior, likelihood, truth, row, SAMPLERS[name], seed, args)
                about = {
                    "map": path.stem,
                    "box": args.box,
                    "samples": args.samples,
                    "scale": args.scale,
                    "row": row,
                    "sampler": name,
                }
                table.append({**about, **found})
                print(table[-1], flush=True)
    means: list[dict[str, object]] = []
    for row, name in dict.fromkeys((str(one["row"]), str(one["sampler"])) for one in table):
        group = [one for one in table if (one["row"], one["sampler"]) == (row, name)]
        values = {key: round(float(np.mean([float(str(one[key])) for one in group])), 4) for key in list(group[0])[6:]}
        about = {
            "map": f"mean of {len(group)}",
            "box": args.box,
            "samples": args.samples,
            "scale": args.scale,
            "row": row,
            "sampler": name,
        }
        means.append({**about, **values})
        print(means[-1], flush=True)
    write_csv(args.out, table + means)


if __name__ == "__main__":
    main()
