"""Does it make density out of noise? ``python benchmarks/noise_only.py --out CSV``.

The data are noise alone, in a box of 64³: of the paper's level 4.3 Å for a sample of the prior; of that sample's own
spectrum, as strong in every shell as the signal would be; and ten times as strong. The mean and one sample are compared
with samples of the prior alone: the median over shells of the power's ratio, the ratio of the variances, and the
brightest voxel (of molecules it is about 1). Whatever comes out, nobody measured it.
"""

import argparse
from pathlib import Path

import torch
from _inputs import calibrated_prior
from _protocol import BOX, noise_power
from _table import write_csv
from torch import Tensor

from cryofm_ops import Identity, SpectralNoise, gaussian_likelihood, radial_mean, rfft
from cryofm_sampling import Flow, PlugAndPlay, PosteriorFlow, Sampler, restore

PRIOR_SAMPLES = 4


def noises(like: Tensor) -> dict[str, Tensor]:
    """Radial power of each kind of noise, for a signal like this one."""
    signal = radial_mean(rfft(like).abs().square(), BOX)
    return {"4.3 Å": noise_power(like, "4.3A"), "as density": signal, "ten times density": 10 * signal}


@torch.no_grad()
def main() -> None:
    """Parse the command line; restore noise, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="seeds of each kind of noise (default 3)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    parser.add_argument("--prior", default="cryofm-tiny")
    parser.add_argument("--out", type=Path, required=True, help=".csv file")
    args = parser.parse_args()
    prior = calibrated_prior(args.prior)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16")
    with autocast:
        drawn = Flow()(prior, shape=(PRIOR_SAMPLES, *BOX), generator=torch.Generator().manual_seed(0)).x
    drawn = drawn * prior.normalization.std + prior.normalization.mean
    power, variance = radial_mean(rfft(drawn).abs().square(), BOX).mean(0), drawn.var((1, 2, 3)).mean()
    samplers: dict[str, Sampler] = {"mean": PlugAndPlay(), "sample": PosteriorFlow()}
    table: list[dict[str, object]] = []
    for kind, strength in noises(drawn[0]).items():
        noise = SpectralNoise(strength.float())
        for seed in range(args.runs):
            y = noise.sample(torch.zeros(BOX), generator=torch.Generator().manual_seed(seed))
            likelihood = gaussian_likelihood(Identity(), noise, y)
            for estimate, sampler in samplers.items():
                numbers = torch.Generator().manual_seed(100 + seed)
                with autocast:
                    draw = restore(prior, likelihood, shape=BOX, generator=numbers, sampler=sampler, samples=1)
                x = draw.x
                ratio = radial_mean(rfft(x).abs().square(), BOX) / power
                values = {
                    "power": ratio[1:].median(),
                    "power_lowest_shells": ratio[1:4].mean(),
                    "variance": x.var() / variance,
                    "brightest": x.max(),
                    "brightest_of_noise": y.max(),
                }
                found = {key: f"{float(value):.3g}" for key, value in values.items()}
                table.append({"noise": kind, "seed": seed, "estimate": estimate, **found})
                print(table[-1], flush=True)
    write_csv(args.out, table)


if __name__ == "__main__":
    main()
