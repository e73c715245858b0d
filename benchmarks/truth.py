"""Is the noise of deposited maps the limit? ``python benchmarks/truth.py MAPS... --precision bf16 --out CSV``.

A measured map taken for the truth is signal and noise of its own, in a shell the share n of its power. What is
observed has further noise: with a half-map FSC of F, (1 − F) / 2F times the truth's power in the mean of both halves,
of which e lies where the truth has density. Who knew the signal would still take the deposited noise from the data, as
far as these tell it, and reach FSC² = 1 − n e / (n + e) with the deposited map; nothing does better (noise being
normal, and even where there is density). The map's own half maps would tell n = (1 − F) / (1 + F). They are not at
hand, but what has been reached bounds it: an FSC of r says n ≤ x e / (e − x) with x = 1 − r². So the ceiling of any
level is at least what that n leaves of it. All is said shell by shell to 3 Å; n = 1 where nothing bounds it.

``--model`` is an atomic model fitted into the map: its FSC m with the map says that no more than 1 − m² is noise. It
also stands beside the restored map: what agrees with the model less than the deposited map does, has missed signal.

Leaves a line for every map, level and shell, and one of the whole crop (shell 0).
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from _inputs import calibrated_prior, clean
from _protocol import VOXEL, corner, crop, degraded, noise_power, wiener
from _table import write_csv
from numpy.typing import NDArray
from paper import Case, estimate, name_of, seed_of
from torch import Tensor

from cryofm_io import DensityMap, density_of_model, fsc, read_map, to_grid
from cryofm_ops import radial_mean, rfft

LEVELS = ("3.2A", "4.3A")
SIDE = 64


def curve(x: Tensor, y: Tensor) -> NDArray[np.float64]:
    """FSC, shell by shell to 3 Å."""
    return np.asarray(fsc(x.numpy(), y.numpy(), VOXEL).correlation, dtype=np.float64)


def squares(x: Tensor) -> NDArray[np.float64]:
    """Of every shell to 3 Å, summed."""
    n = fsc(x.numpy(), x.numpy(), VOXEL).n_voxels
    return np.asarray(radial_mean(rfft(x).abs().square(), (SIDE,) * 3)[1:] * torch.from_numpy(n), dtype=np.float64)


def share_of_noise(r: NDArray[np.float64], e: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most so much of the truth is noise where a restoration reached an FSC of r."""
    x = 1 - r.clip(0, 1) ** 2
    return np.where(x < e, x * e / np.where(x < e, e - x, 1), 1).clip(0, 1)


def ceiling(n: NDArray[np.float64], e: NDArray[np.float64]) -> NDArray[np.float64]:
    """FSC with the truth of who knows the signal."""
    return np.sqrt(1 - n * e / np.maximum(n + e, 1e-12))


def of_model(path: Path, model: Path) -> Tensor:
    """The model's density where the map has its own, on the crop's grid."""
    found = read_map(path)
    density = density_of_model(model, found) * (found.data != 0)
    on_grid, _ = to_grid(DensityMap(density, found.voxel_size), VOXEL)
    truth = clean(path, VOXEL)
    around = [(max(0, (SIDE - n + 1) // 2),) * 2 for n in truth.shape]
    z, y, x = (slice(s, s + SIDE) for s in corner(np.pad(truth, around), SIDE))
    return torch.from_numpy(np.ascontiguousarray(np.pad(on_grid, around)[z, y, x], dtype=np.float32))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("maps", type=Path, nargs="+", help="measured maps that the prior was not trained on")
    add("--model", type=Path, help="an atomic model fitted into every one of them")
    add("--prior", default="cryofm-tiny", help="name or file of a prior (default cryofm-tiny)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    add("--out", type=Path, required=True, help="CSV")
    return parser.parse_args(arguments)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Restore every map at both levels, and say what may be noise."""
    args = parse(arguments)
    prior = calibrated_prior(args.prior)
    table: list[dict[str, object]] = []
    for path in args.maps:
        truth, name = torch.from_numpy(crop(clean(path, VOXEL), SIDE)), name_of(path)
        model = None if args.model is None else of_model(path, args.model)
        m = np.full(SIDE // 2, np.nan) if model is None else curve(model, truth)
        n = np.ones(SIDE // 2)
        for level in LEVELS:
            row = f"spectral {level}"
            data = degraded(row, truth, torch.Generator().manual_seed(seed_of(name, row)))
            x, *_ = estimate(Case(name, row, truth, data, ""), None, prior, "cpu", args.precision)
            e = np.asarray(noise_power(truth, level) / radial_mean(rfft(truth).abs().square(), (SIDE,) * 3) / 2)
            e = e.astype(np.float64)[1:] * float((truth != 0).float().mean())
            columns = {"wiener": curve(wiener(data.of_mean, truth), truth), "restored": curve(x, truth)}
            n = np.minimum(n, share_of_noise(columns["restored"], e))
            lost = squares(x - truth)
            columns |= {"noise_at_most": n, "ceiling_at_least": ceiling(n, e)}
            columns |= {"model_and_truth": m, "model_and_restored": m if model is None else curve(model, x)}
            columns |= {"ceiling_by_model": ceiling(1 - m.clip(0, 1) ** 2, e)}
            columns |= {"error_share": lost / lost.sum()}
            whole = {key: float(values.mean()) for key, values in columns.items()} | {"error_share": 1.0}
            shells = [{key: float(values[k]) for key, values in columns.items()} for k in range(SIDE // 2)]
            for shell, line in enumerate([whole, *shells]):
                about = {"map": name, "level": level, "shell": shell}
                about |= {"resolution": round(SIDE * VOXEL / shell, 2) if shell else ""}
                known = {key: "" if math.isnan(value) else round(value, 4) for key, value in line.items()}
                table.append(about | known)
            print(*table[-SIDE // 2 - 1].values(), sep="\t", flush=True)
    write_csv(args.out, table)


if __name__ == "__main__":
    main()
