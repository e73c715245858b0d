"""The whole network against its matrix products alone: ``python benchmarks/network.py --networks S L --out CSV``.

CryoFM-S at 64³ and CryoFM-L at 128³, with random weights: forward, and forward with the gradient in the input, the
latter also with every block computed again in the backward pass (`Hourglass.recompute`). The lower bound is the time
of the network's linear maps and its global attention's two products, as bare matrix products of the same shapes in the
same dtype (`products`); neighbourhood attention, norms, gates and positions all come on top of it. The gradient in the
input needs each linear map once more and each product of attention twice. Of the second generation's U-Net (2), at 64³,
the bound has its convolutions as well.
Peak memory is the high-water mark of the process (Linux), weights included.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from _peak import peak_resident_mib
from _table import write_csv
from torch import nn

from cryofm_model import CRYOFM2, CRYOFM_L, CRYOFM_S, Hourglass, HourglassConfig, UNet3D, UNet3DConfig
from cryofm_model.networks.unet3d import Attention

CASES: dict[str, tuple[HourglassConfig | UNet3DConfig, int]] = {
    "S": (CRYOFM_S, 64),
    "L": (CRYOFM_L, 128),
    "2": (CRYOFM2, 64),
}
PASSES = {"forward": False, "forward+input gradient": True, "forward+input gradient, recomputed": True}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def network_of(config: HourglassConfig | UNet3DConfig) -> Hourglass | UNet3D:
    """Random weights, also where a fresh network has zeros."""
    with torch.device("meta"):
        network = UNet3D(config) if isinstance(config, UNet3DConfig) else Hourglass(config)
    network = network.to_empty(device="cpu").requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.copy_(
            torch.rand(tensor.shape, generator=generator)
            .sub_(0.5)
            .mul_(2 * (tensor[0].numel() if tensor.ndim > 1 else len(tensor)) ** -0.5)
        )
    return network


def products(network: Hourglass | UNet3D, box: int, dtype: torch.dtype, backward: bool) -> float:
    """Seconds of the matrix products of one evaluation, each timed by itself on its real shapes."""
    shapes: dict[tuple[int, int, int, int], int] = {}  # (batch, m, k, n): how often

    def count(batch: int, m: int, k: int, n: int, times: int = 1) -> None:
        shapes[batch, m, k, n] = shapes.get((batch, m, k, n), 0) + times

    def linear(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, nn.Linear)
        rows = inputs[0].numel() // module.in_features
        count(1, rows, module.in_features, module.out_features)
        if backward:
            count(1, rows, module.out_features, module.in_features)

    def attention(n: int, heads: int, width: int) -> None:
        count(heads, n, width, n, 3 if backward else 1)  # q · k; again, and dO · V
        count(heads, n, n, width, 4 if backward else 1)  # weights · v; dQ, dK and dV

    def of_unet(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, Attention)
        attention(inputs[0][0, 0].numel(), module.heads, inputs[0].shape[1] // module.heads)

    convolutions: list[tuple[nn.Conv3d, torch.Size]] = []

    def convolution(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv3d)
        convolutions.append((module, inputs[0].shape))

    kinds = ((nn.Linear, linear), (nn.Conv3d, convolution), (Attention, of_unet))
    hooks = [
        m.register_forward_pre_hook(hook) for m in network.modules() for kind, hook in kinds if isinstance(m, kind)
    ]
    evaluate(network, box, dtype, backward=False)
    for handle in hooks:
        handle.remove()
    if isinstance(network, Hourglass):
        config = network.config
        n, width = (box // (config.patch << (len(config.widths) - 1))) ** 3, config.head_width
        for _ in range(config.depths[-1]):
            attention(n, config.widths[-1] // width, width)
    seconds = 0.0
    for module, shape in convolutions:
        x = torch.rand(shape, dtype=dtype).requires_grad_(backward)
        seconds += timed(lambda m=module, x=x: convolved(m, x, backward))  # type: ignore[misc]
    for (batch, m, k, n), times in shapes.items():
        a, b = torch.rand(batch, m, k, dtype=dtype), torch.rand(batch, n, k, dtype=dtype).mT
        seconds += times * statistics.median(timed(lambda a=a, b=b: torch.matmul(a, b)) for _ in range(3))  # type: ignore[misc]
    return seconds


def convolved(module: nn.Conv3d, x: torch.Tensor, backward: bool) -> None:
    """One convolution, and its gradient in x."""
    with torch.set_grad_enabled(backward):
        y = F.conv3d(x, module.weight.to(x), None, module.stride, module.padding)
    if backward:
        torch.autograd.grad(y, x, torch.ones_like(y))


def evaluate(network: Hourglass | UNet3D, box: int, dtype: torch.dtype, backward: bool) -> None:
    x = torch.zeros(1, box, box, box).normal_(generator=torch.Generator().manual_seed(1)).requires_grad_(backward)
    with torch.set_grad_enabled(backward), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        velocity = network(x, torch.tensor(0.5))
    if backward:
        torch.autograd.grad(velocity.square().sum(), x)


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Parse the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=["S"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32"])
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--out", type=Path, help=".csv file")
    args = parser.parse_args()
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    rows: list[dict[str, object]] = []
    for name, dtype in [(n, d) for n in args.networks for d in args.dtypes]:
        config, box = CASES[name]
        network = network_of(config)
        for what, backward in PASSES.items():
            if isinstance(network, Hourglass):
                network.recompute = what.endswith("recomputed")
            elif what.endswith("recomputed"):
                continue
            bound = products(network, box, DTYPES[dtype], backward)
            peak_resident_mib(reset=True)
            seconds = statistics.median(
                timed(lambda: evaluate(network, box, DTYPES[dtype], backward))  # noqa: B023
                for _ in range(args.calls)
            )
            rows.append(
                {
                    "network": name,
                    "box": box,
                    "dtype": dtype,
                    "pass": what,
                    "seconds": round(seconds, 2),
                    "products_seconds": round(bound, 2),
                    "ratio": round(seconds / bound, 2),
                    "peak_MiB": peak_resident_mib(),
                    "calls": args.calls,
                    "machine": f"CPU ({capability}), {threads} threads, torch {torch.__version__}",
                }
            )
            print(rows[-1], flush=True)
    if args.out:
        write_csv(args.out, rows)


if __name__ == "__main__":
    main()
