"""What a script costs from the command line to its results: time, network, memory, by size of box and of molecule.

    python benchmarks/end_to_end.py --scripts denoise missing_wedge --sides 64 128 240 --fills 0.5 1 --out CSV

A molecule is made of the example map, repeated within a ball whose diameter is a share of the box's width, in voxels of
0.83 Å; halves of it have white noise whose FSC is .143 at 4.3 Å. Every script runs in a process of its own.
A row has its wall clock and CPU seconds (one thread, unless OMP_NUM_THREADS says otherwise), how many of these the
network took, its evaluations, the voxels it saw, its multiply-adds (times two), peak resident memory, and the FSC_AUC
to 3 Å of what came out. ``--examples`` runs the scripts of another checkout, for before and after: their packages come
by PYTHONPATH. Rows are added; those that are there are not done again.
"""

import argparse
import csv
import json
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _peak import peak_resident_mib
from _table import write_csv
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from cryofm_io import DensityMap, fsc, normalise_clean, read_map, to_grid, write_map
from cryofm_model import load_prior
from cryofm_ops import WhiteNoise, radial_mean, rfft

EXAMPLES = Path(__file__).parents[1] / "examples"
VOXEL_SIZE, LEVEL, TO = 0.83, 4.3, 3.0  # Å
FILES = {
    "denoise": ["half1.mrc", "half2.mrc"],
    "anisotropic": ["half1.mrc", "half2.mrc"],
    "missing_wedge": ["truth.mrc"],
}
MEASURED = "END_TO_END_MEASURED"  # where a child writes what it measured


def molecule(side: int, fill: float) -> NDArray[np.float32]:
    """The example's middle, again and again, within a ball of soft edge."""
    density = normalise_clean(to_grid(read_map(EXAMPLES / "data" / "EMD-3488.mrc.gz"), VOXEL_SIZE)[0])[0]
    core = tuple(slice(n // 5, n - n // 5) for n in density.shape)
    unit = density[core]
    times = [-(-side // n) for n in unit.shape]
    axes = np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 3, indexing="ij", sparse=True)
    inside = np.clip(fill * side / 2 - np.sqrt(sum(a**2 for a in axes)), 0, 4) / 4
    whole: NDArray[np.float32] = (np.tile(unit, times)[:side, :side, :side] * inside).astype(np.float32)
    return whole


def make(folder: Path, side: int, fill: float) -> None:
    """Truth and halves."""
    truth = torch.from_numpy(molecule(side, fill))
    power = radial_mean(rfft(truth).abs().square(), (side, side, side))
    at = min(round(2 * VOXEL_SIZE / LEVEL * (len(power) - 1)), len(power) - 1)
    noise, generator = WhiteNoise(float(power[at] * (1 - 0.143) / 0.143) ** 0.5), torch.Generator().manual_seed(0)
    volumes = {"truth": truth} | {f"half{i}": noise.sample(truth, generator=generator) for i in (1, 2)}
    for name, volume in volumes.items():
        write_map(folder / f"{name}.mrc", DensityMap(volume.numpy(), VOXEL_SIZE))


def child(script: str, arguments: list[str]) -> None:
    """Run a script as the command line does, and measure."""
    found = {"network_s": 0.0, "evaluations": 0, "voxels": 0}
    begun: list[float] = []

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if type(module).__name__ == "UNet":
            begun.append(time.process_time())
            found["evaluations"] += 1
            found["voxels"] += inputs[0].numel()

    def after(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        if type(module).__name__ == "UNet":
            found["network_s"] += time.process_time() - begun.pop()

    register_module_forward_pre_hook(before)
    register_module_forward_hook(after)
    sys.path.insert(0, str(Path(script).parent))
    sys.argv = [script, *arguments]
    start, code = time.perf_counter(), 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        code = int(stop.code or 0)
    used = resource.getrusage(resource.RUSAGE_SELF)
    measured = {
        "wall_s": time.perf_counter() - start,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_gib": peak_resident_mib() / 2**10,
        "exit": code,
        **found,
    }
    rank = os.environ.get("RANK", "")  # under torchrun
    Path(os.environ[MEASURED] + rank).write_text(json.dumps(measured), encoding="utf-8")


def flop_of_a_voxel(side: int = 32) -> float:
    """Of the bundled network: two for every multiply-add of its convolutions and linear maps."""
    count = 0

    def add(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        nonlocal count
        if isinstance(module, nn.Conv3d | nn.Linear):
            width = module.weight.shape[0]
            count += 2 * (output.numel() // width) * module.weight.numel()

    prior = load_prior("cryofm-tiny")
    hooks = [module.register_forward_hook(add) for module in prior.network.modules()]
    prior(torch.zeros(side, side, side), torch.tensor(0.5))
    for hook in hooks:
        hook.remove()
    return count / side**3


def row(script: str, side: int, fill: float, examples: Path, name: str, flop: float) -> dict[str, Any]:
    """One run."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(folder, side, fill)
        files = [str(folder / file) for file in FILES[script]]
        run = [str(examples / f"{script}.py"), *files, "--out", str(folder / "out")]
        environment = {"OMP_NUM_THREADS": "1"} | os.environ | {MEASURED: str(folder / "measured.json")}
        subprocess.run(
            [sys.executable, __file__, "--child", *run], env=environment, check=True, stdout=subprocess.DEVNULL
        )
        measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
        truth = read_map(folder / "truth.mrc").data
        curve = fsc(read_map(folder / "out" / "restored.mrc").data, truth, VOXEL_SIZE)
        auc = float(np.nanmean(curve.correlation[curve.frequency <= 1 / TO]))
    return {
        "checkout": name,
        "script": script,
        "side": side,
        "fill": fill,
        **{key: round(value, 2) for key, value in measured.items()},
        "tflop": round(flop * measured["voxels"] / 1e12, 2),
        "share_not_network": round(1 - measured["network_s"] / measured["cpu_s"], 2),
        "auc": round(auc, 4),
    }


def main() -> None:
    """Parse the command line, and add rows."""
    if "--child" in sys.argv[1:2]:
        child(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--scripts", nargs="+", choices=FILES, default=list(FILES))
    add("--sides", type=int, nargs="+", default=[64, 128, 240], help="voxels (default 64 128 240)")
    add("--fills", type=float, nargs="+", default=[0.5, 1.0], help="diameter of the molecule over the side")
    add("--examples", type=Path, default=EXAMPLES)
    add("--name", default="this", help="of the checkout, in the table")
    add("--out", type=Path, required=True, help="CSV; rows are added")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.out.exists():
        with args.out.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    done = {(row["checkout"], row["script"], str(row["side"]), str(row["fill"])) for row in rows}
    flop = flop_of_a_voxel()
    for side in args.sides:
        for fill in args.fills:
            for script in args.scripts:
                if (args.name, script, str(side), str(fill)) not in done:
                    rows.append(row(script, side, fill, args.examples, args.name, flop))
                    write_csv(args.out, rows)
                    print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
