"""What a finer prior is worth where the data reach beyond 3 Å: ``python benchmarks/fine.py MAPS... --out CSV``.

A crop of a clean map, in voxels of 1 Å, is the truth. Two halves get noise whose FSC is the paper's curve of the level
3.2 Å, moved along the frequencies to each ``--levels``; where that curve ends there is no signal. denoise.py restores
them with each of ``--priors``, as its user would: scale, envelope and noise are found, and what a prior does not reach
is what the best linear filter makes of it. Rows have the mean FSC with the truth to 3 Å, from there to 2 Å, and of
both; ``linear`` is the best linear filter of the halves (linear.mrc), ``wiener`` the one told the truth's power.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from _inputs import clean
from _protocol import CURVES, crop, sides
from _table import write_csv
from numpy.typing import NDArray
from torch import Tensor

from cryofm_io import DensityMap, fsc, read_map, write_map
from cryofm_ops import SpectralNoise, fourier_filter, radial, radial_mean, rfft

DENOISE = Path(__file__).parents[1] / "examples" / "denoise.py"
VOXEL, LEVEL, COARSE = 1.0, 3.2, 3.0  # Å
PRIORS = ("cryofm-tiny", "cryofm-tiny-fine")


def noise_power(truth: Tensor, level: float) -> Tensor:
    """Radial power of one half map's noise: signal power (1 − F) / F, shell by shell."""
    with CURVES.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    signal = radial_mean(rfft(truth).abs().square(), sides(truth))
    nu = np.linspace(0, 0.5 / VOXEL, len(signal)) * level / LEVEL
    curve = np.interp(nu, [float(row["freq"]) for row in rows], [float(row["3.2A"]) for row in rows], right=0)
    f = torch.from_numpy(curve).to(truth).clamp(1e-5, 1 - 1e-6)
    return signal * (1 - f) / f


def scores(x: NDArray[np.floating], truth: NDArray[np.floating]) -> dict[str, float]:
    """Mean FSC to 3 Å, from 3 to 2 Å, and to 2 Å."""
    curve = fsc(x, truth, VOXEL)
    seen, fine = curve.frequency > 0, curve.frequency > 1 / COARSE
    bands = {"auc_to_3A": seen & ~fine, "auc_3A_to_2A": fine, "auc_to_2A": seen}
    return {name: round(float(np.nanmean(curve.correlation[band])), 4) for name, band in bands.items()}


def restored(folder: Path, prior: str) -> float:
    """Run denoise.py on the halves in a folder; the seconds that it took."""
    line = [sys.executable, str(DENOISE), "half1.mrc", "half2.mrc", "--prior", prior, "--out", "out", "--overwrite"]
    start = time.perf_counter()
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):  # 3: in doubt
        raise RuntimeError(done.stderr)
    return time.perf_counter() - start


def rows(path: Path, level: float, side: int, priors: list[str]) -> Iterator[dict[str, object]]:
    """Of one map and level: both filters, and every prior."""
    truth = torch.from_numpy(crop(clean(path, VOXEL), side))
    noise = SpectralNoise(noise_power(truth, level))
    generator = torch.Generator().manual_seed(zlib.crc32(f"{path.name}|{level:g}".encode()))
    halves = [noise.sample(truth, generator=generator) for _ in range(2)]
    signal = radial_mean(rfft(truth).abs().square(), sides(truth))
    gain = radial(signal / (signal + noise_power(truth, level) / 2), sides(truth))
    about = {"map": path.name, "level": level}
    wiener = fourier_filter((halves[0] + halves[1]) / 2, gain)
    yield {**about, "method": "wiener", **scores(wiener.numpy(), truth.numpy()), "seconds": 0.0}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, half in zip(("half1", "half2"), halves, strict=True):
            write_map(folder / f"{name}.mrc", DensityMap(half.numpy(), VOXEL))
        for number, prior in enumerate(priors):
            seconds = round(restored(folder, prior), 1)
            found = {"linear": "linear.mrc"} if number == 0 else {}
            for method, file in {**found, prior: "restored.mrc"}.items():
                x = read_map(folder / "out" / file).data
                yield {**about, "method": method, **scores(x, truth.numpy()), "seconds": seconds}


def main() -> None:
    """Parse the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("maps", type=Path, nargs="+", help="maps that no prior was trained on, which reach 2 Å")
    add("--priors", nargs="+", default=list(PRIORS), help="names, files or folders (default the two bundled ones)")
    add("--levels", type=float, nargs="+", default=[2.2, 2.6, 3.2], help="Å (default 2.2 2.6 3.2)")
    add("--side", type=int, default=64, help="of the crops, voxels (default 64)")
    add("--out", type=Path, required=True, help="CSV")
    args = parser.parse_args()
    priors = [str(Path(prior).resolve()) if Path(prior).exists() else prior for prior in args.priors]
    table: list[dict[str, object]] = []
    for path in args.maps:
        for level in args.levels:
            for row in rows(path, level, args.side, priors):
                print(row, flush=True)
                table.append(row)
            write_csv(args.out, table)


if __name__ == "__main__":
    main()
