"""Neighbourhood attention against NATTEN and dense masked attention: ``python benchmarks/attention.py --out CSV``.

The three shapes are those of CryoFM-S (level 0) and CryoFM-L (levels 0 and 1), with the kernel of 7 that all use. The
contestants take turns, one call each, until every one has had its calls, so that whatever else the machine does is
shared; times are medians. Peak memory is that of a process of its own (on Linux), above what its inputs and PyTorch
need. NATTEN is measured where it is installed (``pip install natten==0.21.*``); on a CPU it has no backward pass.
"""

import argparse
import csv
import functools
import importlib.metadata
import importlib.util
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _peak import peak_resident_mib
from _table import write_csv
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cryofm_model import neighborhood_attention_3d

KERNEL, WIDTH = 7, 64
SHAPES = {"S0": (16, 12), "L0": (32, 5), "L1": (16, 10)}  # tokens along each axis, heads
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return neighborhood_attention_3d(q, k, v, KERNEL)


def natten(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Forward only: on a CPU it refuses inputs that require gradients."""
    na3d = importlib.import_module("natten").na3d
    out: Tensor = na3d(q.detach(), k.detach(), v.detach(), kernel_size=KERNEL, scale=1.0)
    return out


@functools.lru_cache(maxsize=1)
def mask(n: int, dtype: torch.dtype) -> Tensor:
    """0 or −∞, (n³, n³)."""
    i = torch.arange(n)
    offset = i - (i - KERNEL // 2).clamp(0, n - KERNEL)[:, None]
    member = (offset >= 0) & (offset < KERNEL)
    full = torch.zeros(n, n, n, n, n, n, dtype=dtype)
    for axis in range(3):
        full.masked_fill_(~member.view([n if d in (axis, axis + 3) else 1 for d in range(6)]), -torch.inf)
    return full.view(n**3, n**3)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All tokens against all tokens. The mask counts in the memory, but is made before the time is taken."""
    q, k, v = (a.flatten(1, 3).transpose(1, 2) for a in (q, k, v))
    n = round(q.shape[2] ** (1 / 3))
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask(n, q.dtype), scale=1.0)
    return rearrange(out, "b h (z y x) d -> b z y x h d", z=n, y=n)


CONTESTANTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"ours": ours, "natten": natten, "dense": dense}


def can(name: str, shape: str, dtype: str, backward: bool) -> bool:
    """Whether a contestant is measured: what is left out needs 25 GiB, has no backward pass, or takes 15 minutes."""
    if name == "natten":  # on a CPU
        return not backward and shape != "L0"
    return not (name == "dense" and backward and (shape, dtype) == ("L0", "bf16"))


def inputs(shape: str, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys of cosine similarity scaled by 10, as the networks make them; and values."""
    n, heads = SHAPES[shape]
    q, k, v = torch.randn(3, 1, n, n, n, heads, WIDTH, generator=torch.Generator().manual_seed(0))
    q, k = (torch.nn.functional.normalize(a, dim=-1) * 10**0.5 for a in (q, k))
    q, k, v = (a.to(DTYPES[dtype]).requires_grad_() for a in (q, k, v))
    return q, k, v


def call(name: str, qkv: tuple[Tensor, Tensor, Tensor], backward: bool) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        out = CONTESTANTS[name](*qkv)
    if backward:
        torch.autograd.grad(out, qkv, torch.ones_like(out))
    return time.perf_counter() - start


def peak(name: str, shape: str, dtype: str, backward: bool) -> int:
    """MiB that a call needs above its inputs, measured in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, shape, dtype, str(int(backward))]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(name: str, shape: str, dtype: str, backward: str) -> None:
    q, k, v = inputs(shape, dtype)
    tiny = tuple(a[:, :8, :8, :8, :1].detach().requires_grad_() for a in (q, k, v))
    call(name, tiny, bool(int(backward)))  # type: ignore[arg-type]  # what is loaded at the first call is not counted
    before = peak_resident_mib(reset=True)
    call(name, (q, k, v), bool(int(backward)))
    print(peak_resident_mib() - before)


def machine() -> str:
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{model} ({capability}), {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    """Parse the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help=".csv file; rows of shapes that are not measured are kept")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print_peak(*args.peak)
        return
    names = [name for name in CONTESTANTS if name != "natten" or importlib.util.find_spec("natten")]
    versions = machine() + (f", natten {importlib.metadata.version('natten')}" if "natten" in names else "")
    print(versions)
    rows: list[dict[str, object]] = []
    for shape, dtype in [(s, d) for s in args.shapes for d in args.dtypes]:
        qkv = inputs(shape, dtype)
        for name in names:  # the first call, and the agreement
            if not can(name, shape, dtype, backward=False):
                continue
            with torch.no_grad():
                difference = (CONTESTANTS[name](*qkv).float() - ours(*qkv).float()).abs().max()
            assert difference < (1e-5 if dtype == "fp32" else 2e-2), (name, float(difference))
        for backward in (False, True):
            entered = [name for name in names if can(name, shape, dtype, backward)]
            seconds: dict[str, list[float]] = {name: [] for name in entered}
            for _ in range(args.calls):
                for name in entered:
                    # Slower than 5 s a call is known well enough after one.
                    if not seconds[name] or seconds[name][0] < 5:
                        seconds[name].append(call(name, qkv, backward))
            for name in entered:
                row: dict[str, object] = {"shape": shape, "dtype": dtype, "what": name}
                row["pass"] = "forward+backward" if backward else "forward"
                row["milliseconds"] = round(1e3 * statistics.median(seconds[name]), 1)
                row["calls"] = len(seconds[name])
                row["peak_MiB"] = peak(name, shape, dtype, backward)
                rows.append(row | {"machine": versions})
                print(row, flush=True)
    if args.out:
        kept: list[dict[str, object]] = []
        if args.out.exists():
            with args.out.open(newline="") as file:
                measured = {(row["shape"], row["dtype"]) for row in rows}
                kept = [dict(row) for row in csv.DictReader(file) if (row["shape"], row["dtype"]) not in measured]
        write_csv(args.out, kept + rows)


if __name__ == "__main__":
    main()
