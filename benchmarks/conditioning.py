"""Conditioning on Fourier-diagonal data against the FFT pair that it needs: ``python benchmarks/conditioning.py``.

One run, alternating, medians. `condition` of a 256³ likelihood, with a white and with a spectral prior variance.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _table import write_csv

from cryofm_ops import Identity, SpectralNoise, gaussian_likelihood, irfft, rfft

RESULTS = Path(__file__).parent / "results" / "conditioning.csv"


def main() -> None:
    """Time, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--box", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    n = options.box
    shape = (n, n, n)
    generator = torch.Generator().manual_seed(0)
    observation, mean = torch.randn(2, *shape, generator=generator)
    likelihood = gaussian_likelihood(Identity(), SpectralNoise(torch.tensor([1.0, 4.0])), observation)
    spectral = torch.rand(n, n, n // 2 + 1, generator=generator) + 0.5
    tasks: dict[str, Callable[[], object]] = {
        "FFT pair": lambda: irfft(rfft(mean), shape),
        "condition, white variance": lambda: likelihood.condition(mean, 0.5),
        "condition, spectral variance": lambda: likelihood.condition(mean, spectral),
    }
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(options.repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if repeat:  # the first is for warming up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [
        {"task": name, "box": n, "ms": round(1000 * t), "per FFT pair": f"{t / medians['FFT pair']:.2f}"}
        for name, t in medians.items()
    ]
    for row in rows:
        print(f"{row['task']:30}{row['ms']:8} ms{row['per FFT pair']:>8}")
    write_csv(options.out, rows)


if __name__ == "__main__":
    main()
