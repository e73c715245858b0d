"""Other ways to clean the same half maps, in one run: ``python benchmarks/peers.py [MAPS...] --out CSV``.

A clean map (the example without any) is put in two halves with noise of one of the paper's levels. Everybody sees these
halves, on the prior's grid. What an author of a method would tune is tuned on the TRUTH, over the values that stand in
the code: the peers are shown at their best. ``settings`` says which, and ``cpu_s`` is of one run with it, tuning aside.

mean of the halves    as it is.
FSC weighting         every shell times its FSC against a perfect map, √(2 F / (1 + F)) (Rosenthal and Henderson 2003),
                      up to the first with F < .143, beyond which microscopists filter.
masked mean           that, sharpened to the truth's own spectrum, within a soft mask of the truth: more than a
                      microscopist has.
total variation       ``skimage.restoration.denoise_tv_chambolle`` of the mean, plain or after the FSC weighting.
non-local means       ``skimage.restoration.denoise_nl_means``, likewise.
deepinv DPIR, DiffPIR their samplers, given our prior as the denoiser, the noise and the true scale.
azula DiffPIR, MMPS   likewise.
ours                  ``restore_half_maps``: noise, envelope and scale found from the halves.
ours, told            the same, told that there is no envelope, and the true scale.

The samplers of others know white noise alone: they are given data and operator whitened, Ĥ = √W. scikit-image (BSD),
deepinv (BSD) and azula (MIT) are asked for where they are installed, and left out with a message where not. BM4D is
left out: its licence allows no commercial use, and its wheels bring no source.

Squared error over the truth's squares, after the best factor and offset for those that have no scale of their own.
"""

import argparse
import csv
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from _inputs import calibrated_prior, clean
from _protocol import noise_power, sides
from _table import write_csv
from scipy.ndimage import binary_dilation, gaussian_filter
from torch import Tensor, nn

from cryofm_io import fsc
from cryofm_model import CalibratedPrior
from cryofm_ops import (
    FourierDiagonal,
    FourierGaussian,
    SpectralNoise,
    estimate_noise_power,
    fourier_filter,
    in_model_units,
    irfft,
    radial,
    radial_mean,
    rfft,
)
from cryofm_sampling import Tiled, restore_half_maps

EXAMPLE = Path(__file__).parents[1] / "examples" / "data" / "EMD-3488.mrc.gz"
RESOLVED = 0.143  # FSC of the halves
Restored = Callable[[], Tensor]


@attrs.frozen(eq=False)
class Problem:
    """Halves of one map, and what its restorations are told.

    Attributes:
        truth: on the prior's grid.
        halves: with independent noise.
        prior: knows densities on the truth's scale.
        data: likelihood of the halves' mean, in model units: precision and data on the half grid.
    """

    truth: Tensor
    halves: tuple[Tensor, Tensor]
    prior: CalibratedPrior
    data: FourierDiagonal

    @classmethod
    def of(cls, path: Path, prior: CalibratedPrior, level: str) -> "Problem":
        """Of a map and a level of noise."""
        truth = torch.from_numpy(clean(path, prior.voxel_size))
        noise, generator = SpectralNoise(noise_power(truth, level)), torch.Generator().manual_seed(0)
        one, two = (noise.sample(truth, generator=generator) for _ in range(2))
        W = 2 / SpectralNoise.from_half_maps(one, two).power(sides(truth))
        W[0, 0, 0] = 0  # half maps have no mean
        likelihood = FourierGaussian(W.to(truth), rfft((one + two) / 2), sides(truth))
        data = in_model_units(likelihood, prior.normalization, shape=sides(truth))
        return cls(truth, (one, two), prior, data)

    @property
    def mean(self) -> Tensor:
        """Of the halves."""
        one, two = self.halves
        return (one + two) / 2

    @property
    def weighted(self) -> Tensor:
        """The mean, every shell times its FSC with the truth as the halves tell it, to the halves' resolution."""
        f = estimate_noise_power(*self.halves).fsc.clamp(0, 1)
        ends = (f[1:] < RESOLVED).nonzero()
        f[int(ends[0]) + 1 if len(ends) else len(f) :] = 0
        return fourier_filter(self.mean, radial((2 * f / (1 + f)).sqrt(), sides(self.truth)).to(self.truth))

    def fitted(self, x: Tensor) -> Tensor:
        """After the best factor and offset."""
        a, b = x - x.mean(), self.truth - self.truth.mean()
        return (a * b).sum() / a.square().sum() * a + self.truth.mean()

    def error(self, x: Tensor) -> float:
        """Squared, over the truth's squares."""
        return float((x - self.truth).square().sum() / self.truth.square().sum())

    def auc(self, x: Tensor) -> float:
        """FSC_AUC against the truth."""
        return fsc(x.numpy(), self.truth.numpy(), self.prior.voxel_size).auc

    @property
    def whitening(self) -> Tensor:
        """√W of the data in model units, on the half grid."""
        return self.data.spectral_precision().sqrt()

    @property
    def white(self) -> Tensor:
        """The data in model units, with white noise of variance 1 through `whitening`."""
        return irfft(self.whitening * self.data.spectral_data(), sides(self.truth))

    def in_data_units(self, z: Tensor) -> Tensor:
        """A volume of model units, with the mean of the solvent that the halves do not know."""
        x = z * self.prior.normalization.std + self.prior.normalization.mean
        return x - x.median()

    def denoised(self, s: Tensor, tau: Tensor | float) -> Tensor:
        """E[x | s], s = x + noise of standard deviation `tau`, in model units, by the flow at t = τ / (1 + τ)."""
        t = torch.as_tensor(tau / (1 + tau)).clamp(1e-3, 0.999).to(s)
        x_t = (1 - t) * s
        return x_t - t * Tiled.fitting(self.prior, sides(self.truth))(x_t, t)


def masked_mean(problem: Problem) -> Tensor:
    """FSC-weighted, with the truth's own spectrum, within a soft mask of the truth."""
    weighted, shape = problem.weighted, sides(problem.truth)
    powers = [radial_mean(rfft(x).abs().square(), shape) for x in (problem.truth, problem.mean)]
    found = estimate_noise_power(*problem.halves)
    signal = (powers[1] - found.noise_power / 2).clamp(min=1e-6 * powers[1].max())
    sharp = fourier_filter(weighted, radial((powers[0] / signal).sqrt().clamp(max=10), shape).to(weighted))
    dense = binary_dilation(gaussian_filter(problem.truth.numpy(), 2) > 0.05, iterations=2)
    mask = torch.from_numpy(gaussian_filter(dense.astype(np.float32), 1.5))
    return sharp * mask


def tuned(problem: Problem, runs: dict[str, Restored]) -> tuple[str, Tensor, float]:
    """The setting whose result has the highest FSC_AUC; the result, and the CPU seconds of that run."""
    best: tuple[float, str, Tensor, float] | None = None
    for settings, run in runs.items():
        start = time.process_time()
        x = run()
        seconds = time.process_time() - start
        if x.isfinite().all() and (best is None or problem.auc(x) > best[0]):
            best = problem.auc(x), settings, x, seconds
    if best is None:
        return "none is finite", torch.full_like(problem.truth, torch.nan), 0.0
    return best[1:]


def of_images(problem: Problem) -> dict[str, dict[str, Restored]]:
    """What scikit-image makes of the mean and of the weighted one."""
    from skimage.restoration import (  # type: ignore[import-not-found]
        denoise_nl_means,
        denoise_tv_chambolle,
    )

    def total_variation(x: Tensor, weight: float) -> Tensor:
        unit = float(x.max())
        return unit * torch.from_numpy(denoise_tv_chambolle(x.numpy() / unit, weight=weight)).to(x)

    def non_local(x: Tensor, h: float) -> Tensor:
        y, spread = x.numpy(), float(x.std())
        return torch.from_numpy(denoise_nl_means(y, patch_size=3, patch_distance=4, h=h * spread)).to(x)

    inputs = {"mean": problem.mean, "weighted": problem.weighted}
    return {
        "total variation": {
            f"of the {name}, weight {weight}": partial(total_variation, x, weight)
            for name, x in inputs.items()
            for weight in (0.01, 0.03, 0.1, 0.3)
        },
        "non-local means": {
            f"of the {name}, h {h}": partial(non_local, x, h) for name, x in inputs.items() for h in (0.1, 0.3, 0.6)
        },
    }


def of_deepinv(problem: Problem) -> dict[str, dict[str, Restored]]:
    """Deepinv's plug-and-play samplers, with our prior as their denoiser and a closed form as their proximal step."""
    from deepinv.optim import L2, PnP  # type: ignore[import-not-found]
    from deepinv.optim.dpir import (  # type: ignore[import-not-found]
        BaseOptim,
        create_iterator,
        get_DPIR_params,
    )
    from deepinv.physics import GaussianNoise, LinearPhysics  # type: ignore[import-not-found]
    from deepinv.sampling import DiffPIR  # type: ignore[import-not-found]

    shape, normalization = sides(problem.truth), problem.prior.normalization
    # Their images lie between 0 and 1: the density itself.
    W = problem.whitening / normalization.std

    def through(transfer: Tensor, x: Tensor) -> Tensor:
        return irfft(transfer * rfft(x), shape)

    class Whitened(LinearPhysics):  # type: ignore[misc]
        """√W, with noise of variance 1."""

        def __init__(self) -> None:
            super().__init__(noise_model=GaussianNoise(1.0))

        def A(self, x: Tensor, **_: object) -> Tensor:
            return through(W, x)

        def A_adjoint(self, y: Tensor, **_: object) -> Tensor:
            return through(W, y)

        def prox_l2(self, z: Tensor, y: Tensor, gamma: Tensor | float, **_: object) -> Tensor:
            gamma = torch.as_tensor(gamma).to(z).reshape(-1)[0]
            return through(1 / (1 + gamma * W**2), z + gamma * through(W, y))

    class Denoiser(nn.Module):
        """E[x | x + noise of standard deviation `sigma`]."""

        def forward(self, x: Tensor, sigma: Tensor | float, *_: object, **__: object) -> Tensor:
            tau = float(torch.as_tensor(sigma).reshape(-1)[0]) / normalization.std
            z = problem.denoised((x[0, 0] - normalization.mean) / normalization.std, tau)
            return (z * normalization.std + normalization.mean)[None, None]

    y, physics = problem.white[None, None], Whitened()

    def dpir(last: float) -> Tensor:
        levels, _, passes = get_DPIR_params(last)
        prior = PnP(denoiser=Denoiser())
        model = BaseOptim(
            create_iterator("HQS", prior=prior, cost_fn=None, g_first=False),
            max_iter=passes,
            data_fidelity=L2(),
            prior=prior,
            early_stop=False,
            params_algo={"stepsize": levels**2 / 0.23, "g_param": levels},  # theirs, of noise 1
        )
        with torch.no_grad():
            x: Tensor = model(y, physics)[0, 0]
        return x - x.median()

    def diffpir(strength: float) -> Tensor:
        torch.manual_seed(0)
        model = DiffPIR(Denoiser(), L2(), sigma=1.0, max_iter=20, lambda_=strength)
        with torch.no_grad():
            x: Tensor = model(y, physics, x_init=problem.weighted[None, None])[0, 0]
        return x - x.median()

    return {
        "deepinv DPIR": {f"last level {last}": partial(dpir, last) for last in (0.02, 0.05, 0.1, 0.2)},
        "deepinv DiffPIR": {f"lambda {s}": partial(diffpir, s) for s in (0.1, 1.0, 7.0)},
    }


def of_azula(problem: Problem) -> dict[str, dict[str, Restored]]:
    """Azula's guided samplers, of the flow as it is: its rectified schedule is ours."""
    from azula.denoise import Denoiser, DiracPosterior  # type: ignore[import-not-found]
    from azula.guidance import DiffPIRDenoiser, MMPSDenoiser  # type: ignore[import-not-found]
    from azula.linalg.covariance import IsotropicCovariance  # type: ignore[import-not-found]
    from azula.noise import RectifiedSchedule  # type: ignore[import-not-found]
    from azula.sample import DDIMSampler  # type: ignore[import-not-found]

    shape, W = sides(problem.truth), problem.whitening
    tiled = Tiled.fitting(problem.prior, shape)

    class Flow(Denoiser):  # type: ignore[misc]
        """E[x | x_t] = x_t − t v."""

        def __init__(self) -> None:
            super().__init__()
            self.schedule = RectifiedSchedule(1e-3, 1e-3)

        def forward(self, x_t: Tensor, t: Tensor, **_: object) -> DiracPosterior:
            # On our path α + σ = 1.
            alpha, sigma = self.schedule(t)
            at = sigma / (alpha + sigma)
            x = x_t / (alpha + sigma)
            return DiracPosterior(mean=x - at * tiled(x, at))

    def through(x: Tensor) -> Tensor:
        return irfft(W * rfft(x), shape)

    def sampled(guided: Denoiser, steps: int) -> Tensor:
        torch.manual_seed(0)
        sampler = DDIMSampler(guided, eta=0.0, start=0.98, steps=steps, silent=True)
        return problem.in_data_units(sampler(sampler.init((1, *shape)))[0])

    y = problem.white[None]

    def diffpir(strength: float) -> Tensor:
        return sampled(DiffPIRDenoiser(Flow(), y, through, 1.0, lmbda=strength, iterations=5), 20)

    def mmps(iterations: int) -> Tensor:
        covariance = IsotropicCovariance(torch.tensor(1.0))
        return sampled(MMPSDenoiser(Flow(), y, through, covariance, iterations=iterations), 10)

    return {
        "azula DiffPIR": {f"lambda {s}": partial(diffpir, s) for s in (0.01, 0.1, 1.0)},
        "azula MMPS": {f"iterations {n}": partial(mmps, n) for n in (1, 3)},
    }


def ours(problem: Problem, **told: Any) -> Tensor:
    """As ``denoise.py`` does it."""
    return restore_half_maps(
        Tiled.fitting(problem.prior, sides(problem.truth)),
        *problem.halves,
        generator=torch.Generator().manual_seed(0),
        voxel_size=problem.prior.voxel_size,
        **told,
    ).map


PEERS = {"skimage": of_images, "deepinv": of_deepinv, "azula": of_azula}


def methods(problem: Problem) -> dict[str, dict[str, Restored]]:
    """All that can run here; by name, and by setting."""
    found: dict[str, dict[str, Restored]] = {
        "mean of the halves": {"": lambda: problem.mean},
        "FSC weighting": {"": lambda: problem.weighted},
        "masked mean": {"": lambda: masked_mean(problem)},
    }
    for package, make in PEERS.items():
        if importlib.util.find_spec(package) is None:
            print(f"left out: {package} is not installed", flush=True)
        else:
            found |= make(problem)
    told = {"b_factor": 0.0, "scale": 1.0}
    return found | {"ours": {"": lambda: ours(problem)}, "ours, told": {"": lambda: ours(problem, **told)}}


NO_SCALE = ("mean of the halves", "FSC weighting", "masked mean", "total variation", "non-local means", "ours")


def main() -> None:
    """Parse the command line, and add a row for every method and map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("maps", type=Path, nargs="*", default=[EXAMPLE], help="clean maps")
    add("--level", default="4.3A", help="of the paper's noise")
    add("--prior", default="cryofm-tiny")
    add("--out", type=Path, required=True, help="CSV; rows that it has are not done again")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.out.exists():
        with args.out.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    done = {(row["map"], row["level"], row["method"]) for row in rows}
    prior = calibrated_prior(args.prior)
    for path in args.maps:
        name, problem = path.name.split(".")[0], Problem.of(path, prior, args.level)
        for method, runs in methods(problem).items():
            if (name, args.level, method) in done:
                continue
            settings, x, seconds = tuned(problem, runs)
            rows.append(
                {
                    "map": name,
                    "level": args.level,
                    "method": method,
                    "settings": settings,
                    "auc": round(problem.auc(x), 4),
                    "error": round(problem.error(problem.fitted(x) if method in NO_SCALE else x), 4),
                    "cpu_s": round(seconds, 2),
                }
            )
            print(rows[-1], flush=True)
            write_csv(args.out, rows)


if __name__ == "__main__":
    main()
