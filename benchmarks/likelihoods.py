"""Data of any kind: ``python benchmarks/likelihoods.py MAP --out CSV``.

Every row is a likelihood that is told by its log p alone. Four have the bundled prior and a crop of the map; three have
the prior N(0, 1), independent in every voxel, under which the posterior mean is known by quadrature. Squared error over
the truth's, by

- `observed`: the volume that the data alone say, without a prior;
- `ours`: `restore`, which is given the log p and nothing else; with 20 passes, too, which is what deepinv gets, of one
  run where there are several modes;
- `closed form`, `quadrature`: what there is to reach, where it is known: `restore` of the `FourierGaussian` that the
  same data are, and the exact posterior mean;
- with `--peers deepinv azula`, in an environment that has them, and with the same prior: deepinv (plug-and-play by
  proximal gradients, 20 evaluations, from `observed`; steps of σ² and a denoiser for σ, and the best of six choices by
  the truth) and azula (MMPS, 16 steps of DDIM, 5 iterations of GMRES; the mean of 2 draws).
"""

import argparse
import importlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from _inputs import calibrated_prior, clean
from _protocol import crop, sides
from _table import write_csv
from torch import Tensor

from cryofm_ops import FourierGaussian, Identity, MissingWedge, WhiteNoise, gaussian_likelihood, rfft
from cryofm_sampling import PlugAndPlay, restore
from cryofm_sampling.testing import GaussianPrior

VOLUME = (-3, -2, -1)
ITERATIONS = 20
STEPS, DRAWS, SOLVES = 16, 2, 5


@attrs.frozen(eq=False)
class Problem:
    """A row: the data, and what is known of them.

    Attributes:
        name: of the row.
        prior: a velocity field with statistics.
        truth: which the data are of.
        observed: what the data alone say; None where that is no volume.
        log_prob: of volumes `(*batch, z, y, x)`, given the data.
        operator, data, variance: the same as if the noise were Gaussian, for programs that take nothing else.
        known: what there is to reach: its name, and how it is found.
    """

    name: str
    prior: Any
    truth: Tensor
    observed: Tensor | None
    log_prob: Callable[[Tensor], Tensor]
    operator: Callable[[Tensor], Tensor]
    data: Tensor
    variance: float
    known: tuple[str, Callable[[], Tensor]] | None = None


def numbers(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def normal(y: Tensor, std: float, A: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Log p of y = A(x) + white noise."""
    return lambda x: -0.5 * ((A(x) - y) / std).square().sum(VOLUME)


def of_maps(path: Path, prior: Any, side: int, seed: int) -> Iterator[Problem]:
    """The rows with the bundled prior."""
    truth = torch.from_numpy(crop(clean(path, prior.voxel_size), side))
    box, g = sides(truth), numbers(seed + 1)

    def found(likelihood: FourierGaussian) -> Tensor:
        return restore(prior, likelihood, shape=box, generator=numbers(seed)).x

    y = WhiteNoise(0.05).sample(truth, generator=g)
    white = gaussian_likelihood(Identity(), WhiteNoise(0.05), y)
    known = ("closed form", lambda: found(white))
    yield Problem("white noise", prior, truth, y, normal(y, 0.05, Identity()), Identity(), y, 0.05**2, known)

    def detector(x: Tensor) -> Tensor:
        return 0.2 * torch.tanh(x / 0.2)

    z = WhiteNoise(0.02).sample(detector(truth), generator=g)
    yield Problem("saturation", prior, truth, z, normal(z, 0.02, detector), detector, z, 0.02**2)

    def magnitudes(x: Tensor) -> Tensor:
        return rfft(x).abs()

    m = magnitudes(truth) + 0.02 * torch.randn(magnitudes(truth).shape, generator=g)
    yield Problem("magnitudes", prior, truth, None, normal(m, 0.02, magnitudes), magnitudes, m, 0.02**2)

    wedges = [MissingWedge(-60, 60, axis) for axis in ("y", "x")]
    series = torch.stack([WhiteNoise(0.05).sample(wedge(truth), generator=g) for wedge in wedges])
    parts = [gaussian_likelihood(wedge, WhiteNoise(0.05), one) for wedge, one in zip(wedges, series, strict=True)]
    W = sum((part.precision for part in parts), torch.zeros(()))
    joint = FourierGaussian(W, sum((p.precision * p.data for p in parts), torch.zeros(())) / W.clamp(min=1e-9), box)

    def both(x: Tensor) -> Tensor:
        return torch.stack([wedge(x) for wedge in wedges], -4)

    def log_prob(x: Tensor) -> Tensor:
        return sum((part.log_prob(x) for part in parts), torch.zeros(()))

    known = ("closed form", lambda: found(joint))
    observed = FourierGaussian.condition(joint, torch.zeros(box), 1e4).mean
    yield Problem("two wedges", prior, truth, observed, log_prob, both, series, 0.05**2, known)


def of_voxels(side: int, seed: int) -> Iterator[Problem]:
    """The rows whose voxels are independent, N(0, 1) before they are observed."""
    prior, g = GaussianPrior(1.0), numbers(seed + 1)
    truth, n = (torch.randn(3 * [side], generator=g) for _ in range(2))

    def problem(
        name: str, y: Tensor, observed: Tensor, one: Callable[[Tensor, Tensor], Tensor], A: Any, variance: float
    ) -> Problem:
        known = ("quadrature", lambda: quadrature(one, y))
        return Problem(name, prior, truth, observed, lambda x: one(x, y).sum(VOLUME), A, y, variance, known)

    def exponential(x: Tensor, y: Tensor) -> Tensor:
        return -0.5 * ((x.exp() - y) / 0.3).square()

    y = truth.exp() + 0.3 * n
    yield problem("exponential", y, y.clamp(min=0.3).log(), exponential, torch.exp, 0.3**2)

    def outliers(x: Tensor, y: Tensor) -> Tensor:
        good = -0.5 * ((x - y) / 0.2).square() + math.log(0.9 / 0.2)
        return torch.logaddexp(good, -0.5 * ((x - y) / 2).square() + math.log(0.1 / 2))

    wrong = torch.rand(truth.shape, generator=g) < 0.1
    y = truth + torch.where(wrong, 2.0, 0.2) * n
    yield problem("outliers", y, y, outliers, Identity(), 0.9 * 0.2**2 + 0.1 * 2**2)

    def multiplicative(x: Tensor, y: Tensor) -> Tensor:
        variance = (0.3 * x).square() + 0.02**2
        return -0.5 * (x - y).square() / variance - 0.5 * variance.log()

    y = truth * (1 + 0.3 * n) + 0.02 * torch.randn(truth.shape, generator=g)
    yield problem("multiplicative", y, y, multiplicative, Identity(), 0.3**2 + 0.02**2)


def quadrature(log_prob: Callable[[Tensor, Tensor], Tensor], y: Tensor) -> Tensor:
    """The mean of N(0, 1) × p(y | x) in every voxel."""
    x, means = torch.linspace(-8, 8, 8001, dtype=torch.float64), []
    flat = y.flatten().double()
    for k in range(0, len(flat), 256):
        some = flat[k : k + 256]
        density = (log_prob(x[None], some[:, None]) - x.square() / 2).softmax(1)  # spacing cancels
        means.append((density * x).sum(1))
    return torch.cat(means).reshape(y.shape).to(y)


def error(x: Tensor, truth: Tensor) -> float:
    """Squared, relative."""
    return float((x - truth).square().sum() / truth.square().sum())


def aligned(x: Tensor, truth: Tensor) -> float:
    """The error where place and hand are unknown: the least over all shifts of x and of its inverse."""
    inner = []
    for one in (x, x.flip(VOLUME)):
        correlation = torch.fft.irfftn(torch.fft.rfftn(truth) * torch.fft.rfftn(one).conj(), s=sides(truth))
        inner.append(float(correlation.max()))
    squares = float(x.square().sum() + truth.square().sum())
    return (squares - 2 * max(inner)) / float(truth.square().sum())


@attrs.frozen(eq=False)
class LogProb:
    """A likelihood that is a log p and nothing else."""

    of: Callable[[Tensor], Tensor]

    def log_prob(self, x: Tensor, /) -> Tensor:
        """`(*batch,)`."""
        return self.of(x)


def denoise(prior: Any, s: Tensor, sigma: float) -> Tensor:
    """E[x | x + σ n = s], in data units; x_t = (1 − t) s at σ = t / (1 − t)."""
    normalization = getattr(prior, "normalization", None)
    mean, std = (0.0, 1.0) if normalization is None else (normalization.mean, normalization.std)
    t = sigma / std / (1 + sigma / std)
    x = (1 - t) * (s - mean) / std
    found: Tensor = (x - t * prior(x, torch.tensor(t, dtype=x.dtype))) * std + mean
    return found


Found = tuple[str, Tensor, int, str]  # the method, its volume, evaluations, and a note


def deepinv(problem: Problem, seed: int) -> list[Found]:
    """Plug-and-play by proximal gradients with the noise's own σ, and the best of six by the truth."""
    dinv = importlib.import_module("deepinv")

    class Fidelity(dinv.optim.DataFidelity):  # type: ignore[misc, name-defined]
        def grad(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (g,) = torch.autograd.grad(-problem.log_prob(x).sum(), x)
            return g

    prior = dinv.optim.PnP(denoiser=lambda x, sigma, *_, **__: denoise(problem.prior, x, float(sigma)))
    start = problem.observed
    if start is None:
        start = 0.1 * torch.randn(problem.truth.shape, generator=numbers(seed))
    found: list[Found] = []
    std = problem.variance**0.5
    for step, level in ((1.0, 1.0), (1.0, 0.5), (1.0, 2.0), (0.3, 1.0), (0.3, 0.5), (0.3, 2.0)):
        algorithm = dinv.optim.PGD(
            data_fidelity=Fidelity(),
            prior=prior,
            stepsize=step * std**2,
            sigma_denoiser=level * std,
            max_iter=ITERATIONS,
            custom_init=lambda *_, **__: start[None, None],
        )
        with torch.no_grad():
            x = algorithm(problem.data[None, None], dinv.physics.Physics())[0, 0]
        if x.isfinite().all():
            found.append(("deepinv", x, ITERATIONS, f"step {step:g} σ², denoiser {level:g} σ"))
    plain = [one for one in found if one[3] == "step 1 σ², denoiser 1 σ"]
    best = sorted(found, key=lambda one: error(one[1], problem.truth))[:1]
    if not found:
        raise ArithmeticError("none of the six is finite")
    return [*plain, *(("deepinv, told the truth", *one[1:]) for one in best)]


def azula(problem: Problem, seed: int) -> list[Found]:
    """Moment matching posterior sampling, the mean of some draws."""
    denoisers, samplers = importlib.import_module("azula.denoise"), importlib.import_module("azula.sample")
    guidance, noise = importlib.import_module("azula.guidance"), importlib.import_module("azula.noise")

    class Prior(denoisers.Denoiser):  # type: ignore[misc, name-defined]
        schedule = noise.RectifiedSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            alpha, sigma = self.schedule(t)
            return denoisers.DiracPosterior(mean=denoise(problem.prior, x_t / alpha, float(sigma / alpha)))

    posterior = guidance.MMPSDenoiser(
        Prior(), problem.data, problem.operator, lambda v: problem.variance * v, iterations=SOLVES
    )
    sampler = samplers.DDIMSampler(posterior, steps=STEPS, silent=True)
    torch.manual_seed(seed)  # it draws from the global state
    draws = [sampler(sampler.init(problem.truth.shape)) for _ in range(DRAWS)]
    return [("azula", torch.stack(draws).mean(0), STEPS * DRAWS, "")]


PEERS = {"deepinv": deepinv, "azula": azula}


def measure(problem: Problem, seed: int, peers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A line for every method."""
    box = sides(problem.truth)

    def line(method: str, x: Tensor, nfe: int = 0, **more: Any) -> dict[str, Any]:
        shifted = round(aligned(x, problem.truth), 4) if problem.name == "magnitudes" else ""
        said = {"calls": "", "misfit": "", "note": ""} | more
        found = {"error": round(error(x, problem.truth), 4), "aligned": shifted, "nfe": nfe}
        seconds = round(time.process_time() - start, 1)
        return {"row": problem.name, "side": box[0], "seed": seed, "method": method, **found, "cpu_s": seconds} | said

    start = time.process_time()
    if problem.observed is not None:
        yield line("observed", problem.observed)
    for method, sampler in (("ours", None), (f"ours, {ITERATIONS} passes", PlugAndPlay(ITERATIONS))):
        start = time.process_time()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            likelihood = LogProb(problem.log_prob)
            draw = restore(problem.prior, likelihood, shape=box, generator=numbers(seed), sampler=sampler)
        misfit = "" if draw.misfit is None else round(float(draw.misfit), 2)
        note = "; ".join([str(draw.settings.get("note", "")), *(type(w.message).__name__ for w in warned)]).strip("; ")
        yield line(method, draw.x, draw.nfe, calls=draw.calls, misfit=misfit, note=note)
    if problem.known is not None:
        start = time.process_time()
        name, find = problem.known
        yield line(name, find(), PlugAndPlay().iterations if name == "closed form" else 0)
    for peer in peers:
        start = time.process_time()
        try:
            results = PEERS[peer](problem, seed)
        except ImportError as missing:
            print(f"{peer} is not there: {missing}", flush=True)
            continue
        except (ArithmeticError, RuntimeError) as failure:
            print(f"{problem.name}: {peer} failed, {failure}", flush=True)
            continue
        for method, x, nfe, note in results:
            yield line(method, x, nfe, note=note)


def main() -> None:
    """Parse the command line, and write every line as it is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("map", type=Path, help="a clean map")
    parser.add_argument("--prior", default="cryofm-tiny")
    parser.add_argument("--side", type=int, default=24, help="of the crops of the map")
    parser.add_argument("--voxels", type=int, default=16, help="side of the boxes of independent voxels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", nargs="+", help="some only")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=(), help="programs to compare with")
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    args = parser.parse_args()
    prior, lines = calibrated_prior(args.prior), []
    for seed in args.seeds:
        for problem in (*of_voxels(args.voxels, seed), *of_maps(args.map, prior, args.side, seed)):
            if args.rows is not None and problem.name not in args.rows:
                continue
            for line in measure(problem, seed, args.peers):
                lines.append(line)
                print(*(f"{key} {value}" for key, value in line.items() if value != ""), flush=True)
                write_csv(args.out, lines)


if __name__ == "__main__":
    main()
