"""What training CryoFM-S and -L takes on 8 GPUs, computed: ``python benchmarks/training_cost.py --out CSV``.

Memory of one GPU: weights, gradients, two moments and the average in float32 (divided among the GPUs by FSDP2);
the copies of the weights that bf16 autocast makes; and what autograd keeps of each volume, counted with our own
attention on the smallest box that the network takes (memory is linear in the voxels). Time: operations, a
multiplication and an addition being two, over a fraction of the GPUs' peak; the backward pass costs twice the
forward pass, and recomputing one more. Each GPU holds as large a part of its 16 volumes as fits.
"""

import argparse
from pathlib import Path

import torch
from _table import write_csv
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from cryofm_model import Hourglass, HourglassConfig, forward_gflop
from cryofm_model.train import read_recipe

GPUS = 8
# Dense bf16 operations a second and bytes of memory (NVIDIA's data sheets, SXM).
DEVICES = {"A100": (312e12, 80e9), "H100": (989e12, 80e9)}
FRACTIONS = (0.2, 0.4)  # of the peak that training reaches: cautious, good
STATE = 5 * 4  # bytes a parameter: weight, gradient, two moments, average
SPARE = 0.1  # of the memory, for what is there for a moment only
RECIPES = Path(__file__).parents[1] / "examples" / "recipes"


def main() -> None:
    """Count, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    args = parser.parse_args()
    rows = [row for name in ("cryofm-s", "cryofm-l") for row in costs(name)]
    write_csv(args.out, rows)
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()))


def costs(name: str) -> list[dict[str, object]]:
    """A row for each device, with and without recomputing."""
    recipe = read_recipe(RECIPES / f"{name}.toml")
    config = recipe.network
    assert isinstance(config, HourglassConfig)
    step = next(recipe.training.plan())
    steps = recipe.training.crops * 32**3 // step.voxels
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Hourglass(config).parameters())
    rows: list[dict[str, object]] = []
    for recompute in (False, True):
        volume = bytes_per_volume(config, recompute) * (step.side / config.smallest_side) ** 3
        operations = forward_gflop(config, (step.side,) * 3) * 1e9 * (4 if recompute else 3) * step.batch * steps
        for device, (peak, memory) in DEVICES.items():
            fixed = parameters * (STATE / GPUS + 2)
            fits = int((memory * (1 - SPARE) - fixed) / volume)
            share = step.batch // GPUS
            part = max(n for n in range(1, share + 1) if share % n == 0 and n <= fits)
            hours = (f"{operations / (GPUS * peak * fraction) / 3600:.0f}" for fraction in FRACTIONS)
            rows.append(
                {
                    "network": name,
                    "parameters_m": f"{parameters / 1e6:.1f}",
                    "recompute": recompute,
                    "device": f"{GPUS} x {device}",
                    "state_gb": f"{parameters * STATE / 1e9:.2f}",
                    "state_shard_gb": f"{parameters * STATE / GPUS / 1e9:.2f}",
                    "bf16_copies_gb": f"{parameters * 2 / 1e9:.2f}",
                    "volume_gb": f"{volume / 1e9:.2f}",
                    "micro_batch": part,
                    "total_gb": f"{(fixed + part * volume) / 1e9:.1f}",
                    "eflop": f"{operations / 1e18:.1f}",
                    **{f"hours_at_{f:.0%}": h for f, h in zip(FRACTIONS, hours, strict=True)},
                }
            )
    return rows


def bytes_per_volume(config: HourglassConfig, recompute: bool) -> int:
    """What autograd keeps of each volume of ``config.smallest_side``³: of two less of one, so without the weights."""
    return kept(config, 2, recompute) - kept(config, 1, recompute)


def kept(config: HourglassConfig, batch: int, recompute: bool) -> int:
    """Bytes that a forward pass under autocast keeps for the backward pass; fake tensors, so nothing is computed."""
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no two storages have the same address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with FakeTensorMode():
        network = Hourglass(config)
        network.recompute = recompute
        x = torch.zeros(batch, *(config.smallest_side,) * 3)
        with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
            network(x, torch.full((batch,), 0.5))
    return sum(sizes.values())


if __name__ == "__main__":
    main()
