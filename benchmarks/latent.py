"""Latent flow models beside voxel space (F.4): ``python benchmarks/latent.py --models RUN... --maps MAPS --out NAME``.

RUN is a folder of `train_prior.py`: an autoencoder, a flow over the latents of one, or a prior of volumes.

- NAME_autoencoding.csv: AE-FSC and AE-L1 (Table 10) of every codec, on crops of the maps; AE-L1 is the mean over the
  voxels, where full density is 1. The paper: VAE-4 .982 and .0028, VAE-8 .854 and .0049.
- NAME_power.csv and NAME.png (figure 11): unconditional samples of every flow at about equal computing, with the mean
  power per shell beside that of the crops. What a decoder costs counts.
- NAME_tasks.csv, with --rows: posterior samples by Alg. 1 for likelihoods in voxel space, of latents with the gradient
  through the decoder; FSC_AUC as in the paper: both halves are restored, and averaged. There is no row of the missing
  wedge, whose noiseless data have no log p.
"""

import argparse
from pathlib import Path

import torch
from _figures import plot_power
from _inputs import clean
from _protocol import ANISOTROPIC, SPECTRAL, Score, crop, degraded
from _runs import Run, evaluation_gflop
from _table import means_of_maps, write_csv
from torch import Tensor
from tqdm import tqdm

from cryofm_model import CryoFMError, Prior
from cryofm_model.latent import Codec, Decoded, LatentPrior
from cryofm_model.latent.training import ae_fsc, ae_l1
from cryofm_model.networks.flops import counted_gflop
from cryofm_ops import in_model_units, radial_mean, rfft
from cryofm_sampling import Flow, Guided

Flowing = Prior | LatentPrior
MOST_STEPS = 100  # beyond which no sample changes: a small flow may compute less than the others


def autoencoding(run: Run, codec: Codec, truths: dict[str, Tensor]) -> list[dict[str, object]]:
    """Table 10: a row for every crop."""
    mean, std = codec.normalization.mean, codec.normalization.std
    rows: list[dict[str, object]] = []
    for name, truth in truths.items():
        found = codec.densities(codec.encode((truth - mean) / std))
        scores = {"ae_fsc": round(ae_fsc(truth, found), 4), "ae_l1": round(ae_l1(truth, found), 5)}
        rows.append({"map": name, "model": run.name, "training_gflop": round(run.trained_gflop), **scores})
    return rows


def evaluation_and_end(model: Flowing, box: tuple[int, int, int]) -> tuple[float, float]:
    """GFLOP of one evaluation of the network, and of what comes after all of them."""
    if isinstance(model, Prior):
        return evaluation_gflop(model.network, box[0]), 0.0
    autoencoder = model.codec.autoencoder
    side = box[0] // autoencoder.config.factor
    end = counted_gflop(autoencoder.decoder, (1, autoencoder.config.channels, side, side, side))
    return evaluation_gflop(model.network, side), end


def samples(model: Flowing, box: tuple[int, int, int], number: int, gflop: float) -> tuple[Tensor, int]:
    """Unconditional samples in densities, for about so many GFLOP each, and evaluations a sample."""
    each, end = evaluation_and_end(model, box)
    steps = round(((gflop - end) / each + 1) / 2)  # Heun's rule: 2 N − 1 evaluations
    sampler = Flow(steps=min(max(steps, 2), MOST_STEPS))
    generator = torch.Generator().manual_seed(0)
    shape = box if isinstance(model, Prior) else model.codec.latent_shape(box)
    drawn = [sampler(model, shape=shape, generator=generator) for _ in tqdm(range(number), unit="sample")]
    return torch.stack([densities(model, draw.x) for draw in drawn]), drawn[0].nfe


def densities(model: Flowing, x: Tensor) -> Tensor:
    """What a sampler draws, as densities."""
    if isinstance(model, LatentPrior):
        return model.codec.densities(x)
    return x * model.normalization.std + model.normalization.mean


def restored(model: Flowing, row: str, truth: Tensor, seed: int, sampler: Guided) -> dict[str, object]:
    """One map in one row by Alg. 1."""
    data = degraded(row, truth, torch.Generator().manual_seed(seed))
    halves = []
    for likelihood in data.likelihoods:
        generator = torch.Generator().manual_seed(seed)
        if isinstance(model, LatentPrior):
            precision = torch.bfloat16 if torch.is_autocast_enabled("cpu") else None
            decoded, shape = Decoded(likelihood, model.codec, precision), model.codec.latent_shape(tuple(truth.shape))
            draw = sampler(model, decoded, shape=shape, generator=generator)
        else:
            inner = in_model_units(likelihood, model.normalization)
            draw = sampler(model, inner, shape=tuple(truth.shape), generator=generator)
        halves.append(densities(model, draw.x))
    return {
        "auc_degraded": round(Score.of(data.mean, truth, 1.0).auc, 4),
        "auc": round(Score.of((halves[0] + halves[1]) / 2, truth, 1.0).auc, 4),
    }


def plot(drawn: dict[str, Tensor], powers: dict[str, Tensor], voxel_size: float, path: Path) -> None:
    """Central sections of the samples, and power per shell."""
    import matplotlib.pyplot as plt

    shown = min(4, *(len(volumes) for volumes in drawn.values()))
    figure = plt.figure(figsize=(4 + 2 * shown, 2 * len(drawn)), layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=(shown, 3))
    left, right = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    axes = left.subplots(len(drawn), shown, squeeze=False)
    for row, (name, volumes) in zip(axes, drawn.items(), strict=True):
        for axis, volume in zip(row, volumes, strict=False):
            axis.imshow(volume[len(volume) // 2].numpy(), cmap="gray", vmin=0, vmax=0.8)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    plot_power(right.subplots(), powers, voxel_size)
    figure.savefig(path, dpi=110)


@torch.no_grad()
def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="folders of trainings")
    parser.add_argument("--maps", type=Path, nargs="+", required=True, help="maps that none was trained on")
    parser.add_argument("--box", type=int, default=32, help="side of crops and samples, voxels (default 32)")
    parser.add_argument("--samples", type=int, default=8, help="of each flow (default 8)")
    parser.add_argument("--gflop", type=float, default=120.0, help="for each sample, about (default 120)")
    parser.add_argument("--rows", nargs="*", default=[], choices=(*SPECTRAL, *ANISOTROPIC), help="tasks (default none)")
    parser.add_argument("--steps", type=int, default=200, help="N of Alg. 1 (default 200)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the networks (default fp32)")
    parser.add_argument("--out", required=True, help="beginning of the names of all results")
    args = parser.parse_args()
    torch.set_autocast_enabled("cpu", args.precision == "bf16")
    runs = [Run.of(folder) for folder in args.models]
    if unfinished := [run.name for run in runs if run.made is None]:
        raise CryoFMError(f"no model.safetensors in {', '.join(unfinished)}: let train_prior.py end first")
    voxel_size = float(runs[0].settings["voxel_size"])
    if others := [run.name for run in runs if run.settings["voxel_size"] != voxel_size]:
        raise CryoFMError(f"{', '.join(others)}: of another voxel size than {runs[0].name}, {voxel_size:g} Å")
    box = (args.box,) * 3
    truths = {path.name: torch.from_numpy(crop(clean(path, voxel_size), args.box)) for path in args.maps}

    table: list[dict[str, object]] = []
    drawn = {"held-out crops": torch.stack(list(truths.values()))}
    computed: list[dict[str, object]] = []
    tasks: list[dict[str, object]] = []
    for run in runs:
        model = run.made
        if isinstance(model, Codec | LatentPrior):
            table += autoencoding(run, model.codec if isinstance(model, LatentPrior) else model, truths)
        if isinstance(model, Prior | LatentPrior):
            each, end = evaluation_and_end(model, box)
            drawn[run.name], nfe = samples(model, box, args.samples, args.gflop)
            cost = {"evaluations": nfe, "gflop": float(f"{nfe * each + end:.4g}"), "training_gflop": run.trained_gflop}
            computed.append({"model": run.name, **cost})
            print(computed[-1], flush=True)
            sampler = Guided(steps=args.steps, guidance="paper")
            for row in args.rows:
                for seed, (name, truth) in enumerate(tqdm(truths.items(), unit="map", desc=f"{run.name}, {row}")):
                    scores = restored(model, row, truth, seed, sampler)
                    tasks.append({"map": name, "model": run.name, "row": row, **scores})
    if table:
        table += means_of_maps(table, ("ae_fsc", "ae_l1"))
        print(*table, sep="\n", flush=True)
        write_csv(Path(f"{args.out}_autoencoding.csv"), table)
    if tasks:
        tasks += means_of_maps(tasks, ("auc_degraded", "auc"))
        print(*tasks, sep="\n", flush=True)
        write_csv(Path(f"{args.out}_tasks.csv"), tasks)
    if computed:
        powers = {name: radial_mean(rfft(volumes).abs().square().mean(0), box) for name, volumes in drawn.items()}
        last = args.box // 2
        shells = [
            {"resolution_angstrom": round(args.box * voxel_size / s, 2)}
            | {name: round(float(power[s]), 6) for name, power in powers.items()}
            for s in range(1, last + 1)
        ]
        write_csv(Path(f"{args.out}_power.csv"), shells)
        write_csv(Path(f"{args.out}_computing.csv"), computed)
        plot(drawn, powers, voxel_size, Path(f"{args.out}.png"))


if __name__ == "__main__":
    main()
