"""What computes on an accelerator as it does on the CPU: ``python benchmarks/gpu.py --out CSV`` (of ``gpu.sh``).

Every check does the same on the device and, in float32, on the CPU: how far apart they are, relative to the largest
value, the milliseconds of a call on the device, and its peak memory there. A check that fails or cannot be done is a
row, and the others go on; the exit status is 1 where one failed. ``--device cpu --quick`` tries the checks themselves.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from _inputs import calibrated_prior
from _table import write_csv
from torch import Tensor

from cryofm_model import CRYOFM_L, CRYOFM_S, Hourglass, HourglassConfig, attention_backend, neighborhood_attention_3d
from cryofm_model.attention import AttentionBackend
from cryofm_ops import (
    FourierProjector,
    MissingWedge,
    SpectralNoise,
    WhiteNoise,
    estimate_directional_noise,
    gaussian_likelihood,
    so3_grid,
)
from cryofm_sampling import PlugAndPlay, SettingError, Tiled, check_memory, restore_half_maps

CALLS = 3
EXACT, SINGLE, HALF = 1e-4, 5e-3, 5e-2  # relative to the largest value
LIKE = 0.15  # of results with other random numbers, which are a device's own (two seeds on a CPU: 0.09)
Compute = Callable[[torch.device], Tensor]


def timed(compute: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    """The result, and the milliseconds of a call after the first."""
    result, times = compute(), []
    for _ in range(CALLS if device.type != "cpu" else 0):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        compute()
        torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return result, statistics.median(times) if times else float("nan")


def compared(
    check: str, device: torch.device, compute: Compute, limit: float, expected: Compute | None = None
) -> dict[str, Any]:
    """A row."""
    row: dict[str, Any] = {
        "check": check,
        "ran": "no",
        "error": "",
        "limit": limit,
        "ms": "",
        "peak_mib": "",
        "note": "",
    }
    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        found, milliseconds = timed(lambda: compute(device), device)
        if device.type == "cuda":
            row["peak_mib"] = torch.cuda.max_memory_allocated(device) >> 20
        right = (expected or compute)(torch.device("cpu")).double()
        error = float((found.double().cpu() - right).abs().max() / right.abs().max())
        row |= {"ran": "yes" if error <= limit else "WRONG", "error": f"{error:.1e}", "ms": round(milliseconds, 2)}
    except Exception as error:
        missing = "cannot take" in str(error)
        row |= {"ran": "not there" if missing else "FAILED", "note": f"{type(error).__name__}: {error}".splitlines()[0]}
    return row


def attention(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Every backend, with its gradient, against ours on the CPU."""
    n, heads = (8, 2) if quick else (16, 12)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 1, n, n, n, heads, 64, generator=generator)
    qkv[:2] = torch.nn.functional.normalize(qkv[:2], dim=-1) * 10**0.5

    def compute(backend: AttentionBackend, dtype: torch.dtype, on: torch.device) -> Tensor:
        q, k, v = (x.detach().requires_grad_() for x in qkv.to(on, dtype))
        with attention_backend(backend):
            out = neighborhood_attention_3d(q, k, v, 7)
            gradients = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
        return torch.stack([out.detach(), *gradients]).float()

    for dtype, limit in ((torch.float32, SINGLE), (torch.bfloat16, HALF)):
        for backend in get_args(AttentionBackend):
            yield compared(
                f"attention, {backend}, {dtype}",
                device,
                partial(compute, backend, dtype),
                limit,
                partial(compute, "tiled", torch.float32),
            )


def networks(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """CryoFM-S and -L with random weights: at a small box against the CPU; at their own by themselves."""
    configs: list[tuple[str, HourglassConfig, int]] = [("S", CRYOFM_S, 64), ("L", CRYOFM_L, 128)]
    for name, config, own in configs[: 1 if quick else 2]:
        torch.manual_seed(0)
        network = Hourglass(config).requires_grad_(False)
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # a fresh network says 0

        def compute(network: Hourglass, side: int, dtype: torch.dtype, on: torch.device) -> Tensor:
            x = torch.randn(1, side, side, side, generator=torch.Generator().manual_seed(0)).to(on)
            with torch.autocast(on.type, dtype, enabled=dtype != torch.float32):
                v: Tensor = network.to(on)(x, torch.tensor([0.5], device=on))
            return v.float()

        def finite(network: Hourglass, side: int, dtype: torch.dtype, on: torch.device) -> Tensor:
            return compute(network, side, dtype, on).isfinite().double().mean()[None]

        for dtype, limit in ((torch.float32, SINGLE), (torch.bfloat16, HALF)):
            small = max(32, config.smallest_side)
            yield compared(
                f"CryoFM-{name}, {small}³, {dtype}",
                device,
                partial(compute, network, small, dtype),
                limit,
                partial(compute, network, small, torch.float32),
            )
            if not quick:
                yield compared(
                    f"CryoFM-{name}, {own}³, {dtype}, finite",
                    device,
                    partial(finite, network, own, dtype),
                    0.0,
                    lambda on: torch.ones(1),
                )


def tiles(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Several together, and with gradients."""
    prior = calibrated_prior("cryofm-tiny")
    side, tile = (32, 16) if quick else (96, 48)
    x, t = torch.randn(side, side, side, generator=torch.Generator().manual_seed(0)), torch.tensor(0.5)

    def compute(together: int, on: torch.device, *, gradient: bool = False) -> Tensor:
        on_device = prior.to(on)
        tiled = Tiled(on_device, tile, tile // 4, tile_batch=together)
        at = x.to(on).requires_grad_(gradient)
        v = tiled(at, t.to(on))
        return torch.autograd.grad(v.square().sum(), at)[0] if gradient else v.detach()

    for together in (1, 4, 64):
        yield compared(f"tiles of {tile}³, {together} together", device, partial(compute, together), SINGLE)
    yield compared(f"tiles of {tile}³, gradients", device, partial(compute, 64, gradient=True), SINGLE)


def operators(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """Likelihoods, wedges, projections, noise."""
    side = 24 if quick else 64
    x = torch.randn(side, side, side, generator=torch.Generator().manual_seed(0))
    power = torch.linspace(1, 0.2, side // 2 + 1)

    def conditioned(on: torch.device) -> Tensor:
        likelihood = gaussian_likelihood(MissingWedge(-60, 60), SpectralNoise(power.to(on)), x.to(on))
        return likelihood.condition(torch.zeros_like(x, device=on), 0.5).mean

    def projected(on: torch.device) -> Tensor:
        rotations = so3_grid(1)[:8].float().to(on)
        return FourierProjector(rotations, torch.zeros(len(rotations), 2, device=on), (side, side, side))(x.to(on))

    def directions(on: torch.device) -> Tensor:
        halves = [WhiteNoise(0.5).sample(x, generator=torch.Generator().manual_seed(i)).to(on) for i in (1, 2)]
        return estimate_directional_noise(*halves).on_grid((side, side, side))[0].log()

    def drawn(on: torch.device) -> Tensor:
        noise = SpectralNoise(power.to(on)).sample(x.to(on), generator=torch.Generator(on).manual_seed(0)) - x.to(on)
        return noise.std()[None]

    yield compared("likelihood, conditioned", device, conditioned, EXACT)
    yield compared("missing wedge", device, lambda on: MissingWedge(-60, 60)(x.to(on)), EXACT)
    yield compared("projections", device, projected, EXACT)
    yield compared("noise by direction", device, directions, SINGLE)
    yield compared("random numbers of the device, their spread", device, drawn, LIKE)


def restorations(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """A map from its halves; and that it is refused where there is no room."""
    prior, side = calibrated_prior("cryofm-tiny"), 24 if quick else 48
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(side, side, side)
    x[8:-8, 8:-8, 8:-8] = torch.rand(side - 16, side - 16, side - 16, generator=generator)
    halves = [WhiteNoise(0.1).sample(x, generator=generator) for _ in range(2)]

    def restored(on: torch.device) -> Tensor:
        return restore_half_maps(
            Tiled.fitting(prior.to(on), (side, side, side)),
            *(half.to(on) for half in halves),
            generator=torch.Generator(on).manual_seed(0),
            sampler=PlugAndPlay(4),
            scale=1.0,
        ).map

    def refused(on: torch.device) -> Tensor:
        try:
            check_memory((8000, 8000, 8000), Tiled(prior, tile=160, overlap=40), device=on)
        except SettingError:
            return torch.ones(1)
        return torch.zeros(1)

    yield compared("restore_half_maps, other random numbers", device, restored, LIKE)
    yield compared("too large a grid is refused", device, refused, 0.0, lambda on: torch.ones(1))


def main() -> int:
    """Parse the command line, check, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--quick", action="store_true", help="small, for a CPU")
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    args = parser.parse_args()
    name = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else str(args.device)
    print(f"{name}, torch {torch.__version__}", flush=True)
    rows: list[dict[str, Any]] = []
    for part in (operators, tiles, attention, restorations, networks):
        for row in part(args.device, args.quick):
            rows.append({**row, "device": name})
            print({key: value for key, value in row.items() if value != ""}, flush=True)
            write_csv(args.out, rows)
    return int(any(row["ran"] in ("WRONG", "FAILED") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
