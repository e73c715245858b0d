"""The paper's ablations (F.1, F.2, figure 9) from trainings: ``python benchmarks/ablation.py RUN... --out NAME``.

RUN is a folder of `train_prior.py`, finished or not. Written are

- NAME_curves.csv: mean v-MSE over the times of the log, on the run's own kept-back crops, against what the training had
  computed (figures 8 and 15: three evaluations for each crop);
- NAME.csv: one row a run. With --held-out, of finished runs: v-MSE on crops of these maps, the same for all; FSC_AUC of
  three tasks, where the mean of two halves is restored as `restore` does by default (the paper takes Alg. 1 and 1000
  steps for each half); with --train too, nats a voxel of log p of crops of maps that the run was trained on, and of
  those held out (figure 14 d): a run that remembers knows the former better than another run does, and the latter no
  better. One map may be more likely than another for what it is: compare runs, not columns;
- NAME.png: all of it.

v-MSE is in each run's own units: of runs with different normalisations compare the tasks, and log p, which is of
densities.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from _inputs import clean
from _protocol import WEDGE, WEDGE_ROW, Score, crop, degraded
from _runs import Run, evaluation_gflop
from _table import write_csv
from torch import Tensor
from tqdm import tqdm

from cryofm_model import CryoFMError, Prior
from cryofm_model.train import VALIDATION_TIMES, validation_loss
from cryofm_sampling import log_likelihood, restore

TASKS = {"spectral": "spectral 4.3A", "anisotropic": "anisotropic ±30°", "wedge": WEDGE_ROW}
V_MSE = tuple(f"v_mse_t{t}" for t in VALIDATION_TIMES)


def curve(run: Run) -> list[dict[str, object]]:
    """v-MSE against computing, by the log."""
    return [
        {
            "run": run.name,
            "step": int(row["step"]),
            "gflop": float(row["gflop"]),
            "v_mse": round(float(np.mean([float(row[column]) for column in V_MSE])), 4),
        }
        for row in run.log
        if all(column in row for column in V_MSE)
    ]


def crops_of(paths: Sequence[Path], voxel_size: float, side: int) -> list[Tensor]:
    """Densities around the middle of each map."""
    return [torch.from_numpy(crop(clean(path, voxel_size), side)) for path in paths]


def in_units(prior: Prior, crops: Sequence[Tensor]) -> Tensor:
    """The crops in the prior's units."""
    return (torch.stack(list(crops)) - prior.normalization.mean) / prior.normalization.std


def tasks(prior: Prior, truths: Sequence[Tensor]) -> dict[str, float]:
    """Mean FSC_AUC of every task; of the wedge that inside the missing region too."""
    found: dict[str, list[float]] = {}
    for name, row in TASKS.items():
        wedge = WEDGE if row == WEDGE_ROW else None
        for seed, truth in enumerate(truths):
            data = degraded(row, truth, torch.Generator().manual_seed(seed))
            generator = torch.Generator().manual_seed(seed)
            x = restore(prior, data.of_mean, shape=tuple(truth.shape), generator=generator).x
            score = Score.of(x, truth, prior.voxel_size, wedge)
            found.setdefault(f"auc_{name}", []).append(score.auc)
            found.setdefault(f"auc_{name}_degraded", []).append(Score.of(data.mean, truth, prior.voxel_size).auc)
            if wedge is not None:
                found.setdefault("auc_gap", []).append(score.auc_gap)
    return {name: round(float(np.mean(values)), 4) for name, values in found.items()}


def nats(prior: Prior, crops: Sequence[Tensor], steps: int) -> tuple[float, float]:
    """Log p a voxel of densities: mean, and its standard error over the crops."""
    generator = torch.Generator().manual_seed(0)
    each = [float(log_likelihood(prior, x, generator=generator, probes=1, steps=steps).nats) / x.numel() for x in crops]
    return float(np.mean(each)), float(np.std(each) / math.sqrt(max(len(each) - 1, 1)))


def measured(run: Run, train: Sequence[Path], held_out: Sequence[Path], side: int, steps: int) -> dict[str, object]:
    """A row of the table; what cannot be measured is empty."""
    row: dict[str, object] = {"run": run.name, "steps": run.log[-1]["step"] if run.log else ""}
    row |= {"training_gflop": run.trained_gflop, "million_parameters": "", "evaluation_gflop": "", "v_mse": ""}
    row |= {f"auc_{name}{which}": "" for name in TASKS for which in ("_degraded", "")} | {"auc_gap": ""}
    row |= {"nats_train": "", "nats_train_se": "", "nats_held_out": "", "nats_held_out_se": ""}
    prior = run.made
    if prior is None:
        return row
    if not isinstance(prior, Prior):
        raise CryoFMError(f"{run.name} is of latents; latent.py compares those")
    row["million_parameters"] = round(sum(p.numel() for p in prior.network.parameters()) / 1e6, 2)
    row["evaluation_gflop"] = round(evaluation_gflop(prior.network, side), 3)
    if held_out:
        truths = crops_of(held_out, prior.voxel_size, side)
        row["v_mse"] = round(float(np.mean(validation_loss(prior.network, in_units(prior, truths)))), 4)
        row |= tasks(prior, truths)
        if train:
            for name, crops in (("train", crops_of(train, prior.voxel_size, side)), ("held_out", truths)):
                mean, error = nats(prior, crops, steps)
                row |= {f"nats_{name}": round(mean, 4), f"nats_{name}_se": round(error, 4)}
    return row


def plot(curves: Sequence[dict[str, object]], rows: Sequence[dict[str, object]], path: Path) -> None:
    """Curves, and bars of what was measured."""
    import matplotlib.pyplot as plt

    done = [row for row in rows if row["auc_spectral"] != ""]
    known = [row for row in done if row["nats_train"] != ""]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for name in dict.fromkeys(str(point["run"]) for point in curves):
        points = [point for point in curves if point["run"] == name]
        axes[0].plot([p["gflop"] for p in points], [p["v_mse"] for p in points], marker=".", label=name)
    axes[0].set(xscale="log", yscale="log", xlabel="training compute (GFLOP)", ylabel="v-MSE, kept-back crops")
    if curves:
        axes[0].legend(fontsize=8)
    at = np.arange(len(done))
    for i, name in enumerate(TASKS):
        axes[1].bar(at + 0.27 * (i - 1), [float(str(row[f"auc_{name}"])) for row in done], 0.25, label=TASKS[name])
    axes[1].set(ylabel="FSC_AUC", ylim=(0, 1))
    for i, name in enumerate(("train", "held_out")):
        values = [float(str(row[f"nats_{name}"])) for row in known]
        errors = [float(str(row[f"nats_{name}_se"])) for row in known]
        axes[2].errorbar(np.arange(len(known)) + 0.1 * i, values, errors, fmt="o", label=name.replace("_", "-"))
    axes[2].set(ylabel="log p, nats a voxel")
    for axis, shown in ((axes[1], done), (axes[2], known)):
        axis.set_xlim(-0.6, len(shown) - 0.4)
        axis.set_xticks(np.arange(len(shown)), [str(row["run"]) for row in shown], rotation=40, ha="right", fontsize=8)
        if shown:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of trainings")
    parser.add_argument("--train", type=Path, nargs="*", default=[], help="maps that all runs were trained on")
    parser.add_argument("--held-out", type=Path, nargs="*", default=[], help="maps that none was trained on")
    parser.add_argument("--box", type=int, default=32, help="side of the crops, voxels (default 32)")
    parser.add_argument("--steps", type=int, default=20, help="of the likelihood's Runge-Kutta method (default 20)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    parser.add_argument("--out", required=True, help="beginning of the names of all results")
    args = parser.parse_args()
    torch.set_autocast_enabled("cpu", args.precision == "bf16")
    runs = [Run.of(folder) for folder in args.runs]
    curves = [point for run in runs for point in curve(run)]
    rows: list[dict[str, object]] = []
    for run in tqdm(runs, unit="run"):
        rows.append(measured(run, args.train, args.held_out, args.box, args.steps))
        print(rows[-1], flush=True)
        write_csv(Path(f"{args.out}.csv"), rows)  # after every run, for these are long
    if curves:
        write_csv(Path(f"{args.out}_curves.csv"), curves)
    plot(curves, rows, Path(f"{args.out}.png"))


if __name__ == "__main__":
    main()
