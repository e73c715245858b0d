"""What a prior believes: ``python benchmarks/prior_samples.py --train MAPS --held-out MAPS --foreign MAPS --out NAME``.

- 16 unconditional samples of 64³: NAME.png shows them beside held-out crops, with the radial power of both;
- memorisation: every sample's and every held-out crop's nearest place in the training maps, over all shifts and the 24
  rotations of the cube, as a normalised correlation at 4.5 Å a voxel. A prior that copies has samples that lie nearer
  to the training maps than held-out crops do;
- what it does to things that are no protein: pure noise, a sphere, and the maps given as --foreign (nucleic acids), at
  the paper's level 4.3 Å.
"""

import argparse
from collections import defaultdict
from itertools import permutations, product
from pathlib import Path

import numpy as np
import torch
from _figures import plot_power
from _inputs import calibrated_prior, clean
from _protocol import BOX, crop, degraded
from _table import write_csv
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cryofm_io import fourier_resample, fsc
from cryofm_model import CalibratedPrior
from cryofm_ops import Identity, SpectralNoise, fourier_filter, gaussian_likelihood, radial, radial_mean, rfft
from cryofm_sampling import Flow, restore

COARSE = 3  # times the prior's voxel
SAMPLES = 16


def coarse(density: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(fourier_resample(density, tuple(max(1, n // COARSE) for n in density.shape)), dtype=np.float32)


def turned(density: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The 24 rotations of a cube."""
    result = []
    for order in permutations(range(3)):
        for flips in product((1, -1), repeat=3):
            if np.linalg.det(np.eye(3)[list(order)] * flips) > 0:
                result.append(
                    np.ascontiguousarray(density.transpose(order)[tuple(slice(None, None, s) for s in flips)])
                )
    return result


def nearest(queries: list[NDArray[np.float32]], paths: list[Path]) -> list[tuple[float, str]]:
    """For every query the highest normalised correlation with any place of any map, and the map."""
    side = queries[0].shape[0]
    templates = [torch.from_numpy(np.stack(turned(q / np.linalg.norm(q)))) for q in queries]
    # Maps have empty margins, so that what wraps around is solvent; multiples of 8, so that shapes are few.
    maps: dict[tuple[int, ...], list[tuple[Tensor, str]]] = defaultdict(list)
    for path in tqdm(paths, unit="map", mininterval=10, desc="reading"):
        density = torch.from_numpy(coarse(clean(path, 1.5)))
        maps[tuple(-(-max(n, side) // 8) * 8 for n in density.shape)].append((density, path.name))
    best = [(0.0, "")] * len(queries)
    with tqdm(total=len(paths) * len(queries), mininterval=10, desc="nearest") as bar:
        for shape, group in maps.items():
            window = torch.fft.rfftn(torch.ones((side,) * 3), s=shape).conj()
            energies = [torch.fft.irfftn(torch.fft.rfftn(d**2, s=shape) * window, s=shape) for d, _ in group]
            for i, turns in enumerate(templates):  # one query at a time: all would fill any memory
                spectra = torch.fft.rfftn(turns, s=shape).conj()
                for (density, name), energy in zip(group, energies, strict=True):
                    overlap = torch.fft.irfftn(torch.fft.rfftn(density, s=shape) * spectra, s=shape)
                    # A place with next to no density would be near to anything.
                    correlation = overlap / energy.clamp(min=0.25 * float(energy.max())).sqrt()
                    best[i] = max(best[i], (float(correlation.max()), name))
                bar.update(len(group))
    return best


def foreign(name: str, truth: Tensor, prior: CalibratedPrior) -> dict[str, object]:
    """One map at the level 4.3 Å: noise and scale are told."""
    generator = torch.Generator().manual_seed(0)
    if name == "pure noise":  # of the same power as a protein's
        power = radial_mean(rfft(truth).abs() ** 2, BOX)
        noise = SpectralNoise(power)
        halves = [noise.sample(torch.zeros(BOX), generator=generator) for _ in range(2)]
        truth = torch.zeros(BOX)
    else:
        halves = list(degraded("spectral 4.3A", truth, generator).maps)
        noise = SpectralNoise.from_half_maps(halves[0], halves[1])
    mean = (halves[0] + halves[1]) / 2
    likelihood = gaussian_likelihood(Identity(), SpectralNoise(noise.radial_power / 2), mean)
    x = restore(prior, likelihood, shape=BOX, generator=generator).x
    signal = radial_mean(rfft(truth).abs() ** 2, BOX)
    linear = fourier_filter(mean, radial(signal / (signal + noise.radial_power / 2), BOX))
    row: dict[str, object] = {"map": name, "power_of_input": round(float(mean.square().sum()), 1)}
    row |= {
        "power_of_truth": round(float(truth.square().sum()), 1),
        "power_restored": round(float(x.square().sum()), 1),
    }
    for kind, estimate in (("wiener", linear), ("restored", x)):
        known = bool(truth.any())
        row[f"auc_{kind}"] = round(fsc(estimate.numpy(), truth.numpy(), 1.5).auc, 4) if known else float("nan")
        row[f"error_{kind}"] = round(float((estimate - truth).square().sum() / truth.square().sum()), 4)
    return row


def plot(samples: Tensor, crops: Tensor, powers: dict[str, NDArray[np.float64]], path: Path) -> None:
    """Central sections of samples (left) and held-out crops (right), and the power of both."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(15, 5.2), layout="constrained")
    grid = figure.add_gridspec(1, 3)
    parts = [figure.add_subfigure(column) for column in (grid[0], grid[1], grid[2])]
    for part, volumes, title in ((parts[0], samples, "samples"), (parts[1], crops, "held-out crops")):
        part.suptitle(title)
        for axis, volume in zip(part.subplots(4, 4).flat, volumes, strict=False):
            axis.imshow(volume[BOX[0] // 2], cmap="gray", vmin=0, vmax=0.8)
            axis.axis("off")
    plot_power(parts[2].subplots(), powers, 1.5)
    figure.savefig(path, dpi=110)


@torch.no_grad()
def main() -> None:
    """Parse the command line, sample, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="maps that the prior was trained on")
    parser.add_argument("--held-out", type=Path, nargs="+", required=True, help="at least 16 maps that it was not")
    parser.add_argument("--foreign", type=Path, nargs="*", default=[], help="maps of something else than proteins")
    parser.add_argument("--prior", default="cryofm-tiny")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    parser.add_argument("--out", required=True, help="beginning of the names of all results")
    args = parser.parse_args()
    torch.set_autocast_enabled("cpu", args.precision == "bf16")
    prior = calibrated_prior(args.prior)
    held_out = torch.from_numpy(np.stack([crop(clean(path, prior.voxel_size)) for path in args.held_out[:SAMPLES]]))
    generator = torch.Generator().manual_seed(0)
    bar = tqdm(range(SAMPLES), unit="sample")
    drawn = [Flow()(prior, shape=BOX, generator=generator).x for _ in bar]
    samples = torch.stack(drawn) * prior.normalization.std + prior.normalization.mean

    powers = {
        name: radial_mean(rfft(volumes).abs().square().mean(0), BOX).double().numpy()
        for name, volumes in (("samples", samples), ("held-out crops", held_out))
    }
    plot(samples, held_out, powers, Path(f"{args.out}.png"))
    shells = [
        {"resolution_angstrom": round(96 / s, 2), **{name: round(float(p[s]), 5) for name, p in powers.items()}}
        for s in range(1, 33)
    ]
    write_csv(Path(f"{args.out}_power.csv"), shells)

    distance = torch.stack(torch.meshgrid(*[torch.arange(-32.0, 32)] * 3, indexing="ij")).square().sum(0).sqrt()
    sphere = 0.6 * (distance < 14)
    things = {"pure noise": held_out[0], "sphere": sphere}
    things |= {path.stem: torch.from_numpy(crop(clean(path, prior.voxel_size))) for path in args.foreign}
    table = [foreign(name, truth, prior) for name, truth in things.items()]
    print(*table, sep="\n", flush=True)
    write_csv(Path(f"{args.out}_foreign.csv"), table)

    queries = [coarse(x.numpy()) for x in (*samples, *held_out)]
    found = nearest(queries, args.train)
    rows = [
        {"volume": f"{kind} {i + 1}", "nearest": name, "correlation": round(value, 3)}
        for (kind, i), (value, name) in zip(product(("sample", "held-out crop"), range(SAMPLES)), found, strict=True)
    ]
    write_csv(Path(f"{args.out}_nearest.csv"), rows)
    for kind, part in (("samples", found[:SAMPLES]), ("held-out crops", found[SAMPLES:])):
        values = [value for value, _ in part]
        print(f"{kind}: nearest training place correlates {np.mean(values):.3f}, at most {max(values):.3f}")


if __name__ == "__main__":
    main()
