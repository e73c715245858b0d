"""What ``denoise.py`` costs as box, molecule, samples and processes grow: ``python benchmarks/scaling.py --out CSV``.

The data are those of ``end_to_end.py``, at a voxel size (1.5 Å) that needs no resampling, told scale and envelope, so
that every run does the same: 2 evaluations for the map and each half (31 with a sample). Every run is a process, or
one for each rank, of its own. Rows are added; those that are there are not done again.

Then the law: CPU seconds = a + b (voxels of the box) + c (voxels that the network saw), by least squares of the
relative errors over what one process did, and how far every row is from it. Memory likewise, by the box alone. And on
paper, with the assumptions that are printed, an archive of many entries and a tomogram.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from _table import write_csv
from end_to_end import EXAMPLES, MEASURED, flop_of_a_voxel, make
from numpy.typing import NDArray

CHILD = Path(__file__).parent / "end_to_end.py"
EVALUATIONS = 2
TOLD = ("--voxel-size", "1.5", "--scale", "1", "--b-factor", "0", "--steps", str(EVALUATIONS))
RUNS = (  # side, fill, samples, ranks, threads
    *((side, fill, 0, 1, 1) for side in (64, 128) for fill in (0.5, 1.0)),
    (64, 0.5, 1, 1, 1),
    (128, 0.5, 0, 2, 1),
    (192, 0.5, 0, 1, 1),
    (256, 0.25, 0, 1, 1),
    (256, 0.5, 0, 1, 1),
)
KEYS = ("side", "fill", "samples", "ranks", "threads")
SUSTAINED = 20.0  # TFLOP/s of a GPU in this network
ENTRIES, ENTRY, WIDTH = 10_000, 210, 0.5  # an archive; voxels of 1.5 Å a side; the particle's width in it
TOMOGRAM, DENSE, PASSES = 1024, (1.0, 0.1), 8  # side; share that is not solvent; evaluations
MAPS, TRIALS, TRIAL = 24, 36, 48  # evaluations of a run with nothing told: of map and halves, and of 48³ alone


def run(side: int, fill: float, samples: int, ranks: int, threads: int) -> dict[str, Any]:
    """One run."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, side, fill)
        script = [
            str(CHILD),
            "--child",
            str(EXAMPLES / "denoise.py"),
            str(folder / "half1.mrc"),
            str(folder / "half2.mrc"),
        ]
        script += ["--out", str(folder / "out"), "--samples", str(samples), *TOLD]
        spread = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), MEASURED: str(folder / "measured")}
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *spread, *script], env=environment, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)  # of this process alone, and of what it waited for
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"denoise.py ended with {process.returncode}")
        measured = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("measured*")]
    return {
        **dict(zip(KEYS, (side, fill, samples, ranks, threads), strict=True)),
        "wall_s": round(wall, 2),
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "peak_gib": round(max(one["peak_gib"] for one in measured), 2),  # of one process
        "network_s": round(sum(one["network_s"] for one in measured), 2),
        "evaluations": sum(one["evaluations"] for one in measured),
        "voxels": sum(one["voxels"] for one in measured),
    }


@attrs.frozen
class Law:
    """y = a + b (10⁶ voxels of the box) + c (10⁶ voxels that the network saw)."""

    a: float
    b: float
    c: float

    @classmethod
    def of(cls, rows: list[dict[str, float]], what: str, *, network: bool) -> "Law":
        """Least squares of the relative errors."""
        y = np.array([row[what] for row in rows])
        columns = np.array([[1.0, *_sizes(row)] for row in rows])[:, : 3 if network else 2]
        found: NDArray[np.float64] = np.linalg.lstsq(columns / y[:, None], np.ones(len(y)), rcond=None)[0]
        a, b, c = (*found.tolist(), 0.0)[:3]
        return cls(a, b, c)

    def __call__(self, box: float, seen: float) -> float:
        """Of millions of voxels."""
        return self.a + self.b * box + self.c * seen


def _sizes(row: dict[str, float]) -> tuple[float, float]:
    return row["side"] ** 3 / 1e6, row["voxels"] / 1e6


def report(rows: list[dict[str, float]]) -> None:
    """The laws, how far every row is from them, and what they would come to."""
    alone = [row for row in rows if row["ranks"] == row["threads"] == 1]
    cpu, memory = Law.of(alone, "cpu_s", network=True), Law.of(alone, "peak_gib", network=False)
    print(f"CPU s = {cpu.a:.1f} + {cpu.b:.2f} (10⁶ voxels of the box) + {cpu.c:.2f} (10⁶ voxels that the network saw)")
    print(f"GiB = {memory.a:.2f} + {memory.b:.3f} (10⁶ voxels of the box)")
    for row in rows:
        told, gib = cpu(*_sizes(row)), memory(*_sizes(row))
        print(
            f"{row['side']:4.0f}³, fill {row['fill']}, samples {row['samples']:.0f}, ranks {row['ranks']:.0f}, threads "
            f"{row['threads']:.0f}: {row['wall_s']:6.1f} s, CPU {row['cpu_s']:6.1f} ({row['cpu_s'] / told - 1:+.0%}), "
            f"{row['peak_gib']:.2f} GiB ({row['peak_gib'] / gib - 1:+.0%})"
        )
    flop = flop_of_a_voxel()
    print(
        f"on paper: {flop / 1e6:.2f} MFLOP for a voxel and evaluation; a GPU sustains {SUSTAINED:g} TFLOP/s in it, and"
    )
    print("what is not network costs it nothing to speak of (FFTs; to be measured)")

    def cost(box: float, seen: float) -> tuple[float, float]:
        return cpu(box, seen) / 3600, seen * 1e6 * flop / SUSTAINED / 1e12 / 3600

    inside = (WIDTH * ENTRY + 16) ** 3 / 1e6  # a cube around the particle, and a margin
    cores, gpus = cost(ENTRY**3 / 1e6, inside * MAPS + TRIALS * TRIAL**3 / 1e6)
    print(f"an entry of {ENTRY}³ voxels, its particle {WIDTH:g} of the width: {cores:.3f} CPU h")
    print(f"{ENTRIES} of them: {ENTRIES * cores:.0f} CPU h, or {ENTRIES * gpus:.1f} GPU h")
    box = TOMOGRAM**3 / 1e6
    for share in DENSE:
        cores, gpus = cost(box, PASSES * share * box)
        print(
            f"a tomogram of {TOMOGRAM}³, {share:.0%} of it dense, {PASSES} evaluations, overlap of blocks aside: "
            f"{cores:.1f} CPU h, or {gpus * 60:.2f} minutes of a GPU, {gpus * 60 / 8:.2f} of eight"
        )
    print(f"its memory in one piece: {memory(box, 0):.0f} GiB")


def main() -> None:
    """Parse the command line, add rows and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="CSV; rows are added")
    parser.add_argument("--report", action="store_true", help="of what is there; nothing is run")
    parser.add_argument("--largest", type=int, default=256, help="side of the box (default %(default)s)")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.out.exists():
        with args.out.open(newline="", encoding="utf-8") as file:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    done = {tuple(row[key] for key in KEYS) for row in rows}
    for setting in RUNS:
        if not args.report and setting not in done and setting[0] <= args.largest:
            rows.append(run(*setting))
            write_csv(args.out, rows)
            print(rows[-1], flush=True)
    report(rows)


if __name__ == "__main__":
    main()
