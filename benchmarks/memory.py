"""Peak memory of runs of very different shape against what they say at the start that they will need.

    python benchmarks/memory.py --out CSV

A ball of blobs 36 Å wide in noise, in boxes of all kinds; each script runs in a process of its own, one thread, with
the bundled prior or with one of many channels. A row has what was foretold and the peak of resident memory, both with
what Python and torch take, and their ratio. Rows are added; those that are there are not done again.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from _table import write_csv

from cryofm_io import DensityMap, write_map
from cryofm_model import (
    ConditionalPrior,
    Normalization,
    UNet,
    UNet3D,
    UNet3DConfig,
    UNetConfig,
    load_prior,
    save_prior,
)

EXAMPLES = Path(__file__).parents[1] / "examples"
PEAK = str(Path(__file__).with_name("_peak.py"))
WIDTH = 36.0  # Å, of what is dense
QUICK = ("--steps", "2", "--scale", "1", "--b-factor", "0")
ONE = ("--steps", "2", "--scale", "1")
MODELS = ("--mask-diameter", "150", "--tries", "1", "--keep", "1", "--steps", "2")
WIDE = "wide.safetensors"  # a network of 64 channels a voxel, its weights random; the bundled one has fewer than 8
SHOWN = "shown.safetensors"  # a network that is shown a map, its weights random


@attrs.frozen
class Run:
    """A script and its input.

    Attributes:
        script: of the examples.
        shape: of the maps, (z, y, x).
        voxel_size: Å.
        flags: all but files and ``--out``.
        files: names of those that it takes.
        own: flags and files that are made for it.
    """

    script: str
    shape: tuple[int, int, int]
    voxel_size: float
    flags: tuple[str, ...] = QUICK
    files: tuple[str, ...] = ("half1.mrc", "half2.mrc")
    own: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the row."""
        sides = " × ".join(map(str, reversed(self.shape)))
        extra = " ".join(flag for flag in (*self.flags, *self.own) if flag not in (*QUICK, *ONE))
        return f"{self.script} {extra}".strip() + (f", {sides} of {self.voxel_size} Å" if self.files else "")


RUNS = (
    Run("abinitio", (12, 96, 96), 3.0, MODELS, ("views.mrcs",)),
    Run("enhance", (128, 128, 128), 1.5, ("--steps", "2"), ("half1.mrc",), ("--prior", SHOWN)),
    Run("large_map", (160, 240, 240), 1.5, (*QUICK, "--block", "96", "--state", "state")),
    Run("missing_wedge", (112, 112, 112), 1.5, (*QUICK, "--half2", "half2.mrc"), ("half1.mrc",)),
    Run("anisotropic", (120, 120, 120), 1.2),
    Run("sample_prior", (1, 1, 1), 1.5, ("--number", "3", "--side", "96", "--steps", "2"), ()),
    Run("likelihood", (64, 64, 64), 1.5, ("--normalise", "--probes", "1", "--steps", "2"), ("half1.mrc",)),
    Run("denoise", (64, 64, 64), 1.5, own=("--prior", WIDE)),
    Run("denoise", (40, 320, 60), 1.5),
    Run("denoise", (144, 144, 144), 0.75, (*QUICK, "--samples", "4")),
    Run("denoise", (300, 300, 300), 0.5),
    Run("abinitio", (12, 96, 96), 3.0, (*MODELS, "--algorithm", "paper"), ("views.mrcs",)),
    Run("denoise", (80, 80, 80), 3.0),
    Run("denoise", (64, 64, 64), 1.5, (*QUICK, "--algorithm", "paper")),
    Run("denoise", (160, 160, 160), 1.2, (*ONE, "--resolution", "4"), ("half1.mrc",)),
    Run("missing_wedge", (128, 128, 128), 1.5, ONE, ("half1.mrc",)),
    Run("denoise", (128, 128, 128), 1.5),
    Run("denoise", (200, 200, 200), 0.75),
    Run("denoise", (64, 64, 64), 1.5, ()),
    Run("denoise", (64, 64, 64), 1.5, (*QUICK, "--algorithm", "paper"), own=("--prior", WIDE)),
)


def make(folder: Path, run: Run) -> None:
    """Two halves or images, and a prior."""
    torch.manual_seed(0)
    config = UNetConfig(widths=(64, 128), depths=(1, 1), up_depths=(1,), patch=1)
    save_prior(attrs.evolve(load_prior("cryofm-tiny"), network=UNet(config).eval()), folder / WIDE)
    shown = UNet3D(UNet3DConfig(widths=(16, 32, 64), depths=(1, 1, 1), attention=(2,), conditions=2, groups=8)).eval()
    save_prior(ConditionalPrior(shown, Normalization(clip=False), 1.5, 64, weight=0.5), folder / SHOWN)
    rng = np.random.default_rng(0)
    axes = [(np.arange(n) - n // 2) * run.voxel_size for n in run.shape]
    density = np.zeros(run.shape, np.float32)
    for centre in rng.normal(0, WIDTH / 5, (60, 3)).clip(-WIDTH / 2, WIDTH / 2):
        z, y, x = (np.exp(-((axis - c) ** 2) / 6).astype(np.float32) for axis, c in zip(axes, centre, strict=True))
        density += z[:, None, None] * y[:, None] * x
    density /= density.max()
    for name in dict.fromkeys((*run.files, "half2.mrc")):
        noise = rng.standard_normal(run.shape, np.float32)
        write_map(folder / name, DensityMap(density + np.float32(0.1) * noise, run.voxel_size))


def row(run: Run) -> dict[str, Any]:
    """One run."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if run.files:
            make(folder, run)
        script = str(EXAMPLES / f"{run.script}.py")
        command = [sys.executable, PEAK, "peak", script, *run.files, *run.flags, *run.own, "--out", "out"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with open(folder / "said", "w+") as said:
            status = subprocess.call(command, cwd=folder, env=environment, stdout=said, stderr=subprocess.DEVNULL)
            said.seek(0)
            found = re.search(r"needs about ([\d.]+)", said.read())
        if status not in (0, 3) or found is None:
            raise SystemExit(f"{run.name}: status {status}")
        told, peak = float(found[1]), int((folder / "peak").read_text(encoding="utf-8")) / 2**10
    return {"run": run.name, "told_gib": told, "peak_gib": round(peak, 2), "told_over_peak": round(told / peak, 2)}


def main() -> None:
    """Parse the command line, and add rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="CSV; rows are added")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.out.exists():
        with args.out.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    for run in RUNS:
        if run.name not in {row["run"] for row in rows}:
            rows.append(row(run))
            write_csv(args.out, rows)
            print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
