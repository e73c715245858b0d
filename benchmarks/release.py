"""What the faults of CryoFM2's release change: ``python benchmarks/release.py --out CSV``, on the example that ships.

The release's restoration operators as their formulas stand, beside the same quantity done right. For each fault a line:
what it is, a number of the release's, and ours.

- denoise: the weights w(kz, ky, kx) of the data term are summed over kz, whatever kz is. The cosine of its gradient
  with the right one at the prior's mean, the same over the directions of noise that is stronger in a wedge, and the
  error of the posterior mean of a Gaussian prior with the map's power, over the map's squares, at the best overall
  strength.
- non-uniform: a tile gets the sum of the weights of all tiles of its batch; and its weights, of one difference in every
  voxel, vary where the noise does not: the share of voxels that count, (Σ w)² / n Σ w².
- batch: ‖∇L‖ runs over the tiles of a batch, so that a tile's push depends on the others.
- inpaint: measured coefficients are replaced, noise and all. The error of the result as above.
- guided: with half maps data guidance is multiplied by 1 + w.
- steps: the posterior sampler steps by ⌊1000/N⌋ of 1000.
- euler: a step asks for the velocity at its end; the power of a Gaussian prior's samples over the prior's, its worst
  shell, N = 200.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from _inputs import clean
from _protocol import ALPHA, BOX, VOXEL, crop, noise_power, sides
from _table import write_csv
from torch import Tensor

from cryofm_ops import (
    AnisotropicNoise,
    SpectralNoise,
    VoxelNoise,
    half_shape,
    irfft,
    radial,
    radial_mean,
    rfft,
    wedge_alpha,
)

MAP = Path(__file__).parents[1] / "examples" / "data" / "EMD-3488.mrc.gz"
LEVEL = "4.3A"
EULER_STEPS, COVERING, WEIGHT, STD = 200, 300, 2.0, 0.09  # of model units


def summed_over_kz(w: Tensor) -> Tensor:
    """What the release's broadcasting makes of a weight on the half grid `(kz, ky, kx)`.

    `(w[:, None] * misfit).sum()` with the misfit `(1, kz, ky, kx)` has an axis too many.
    """
    return w.sum(0).expand(w.shape)


def gradient(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """∇ of −½ Σ w |X − Y|², in space."""
    return irfft(w * (rfft(y) - rfft(x)), sides(x))


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two volumes."""
    return float((a * b).sum() / (a.norm() * b.norm()))


def posterior_mean(w: Tensor, y: Tensor, P: Tensor) -> Tensor:
    """Of a Gaussian prior of power P and data with the weights w."""
    return irfft(P * w / (1 + P * w) * rfft(y), sides(y))


def best_error(w: Tensor, y: Tensor, P: Tensor, truth: Tensor) -> float:
    """Of the posterior mean, over the truth's squares; at the overall strength of the data that does best."""
    errors = [
        float((posterior_mean(c * w, y, P) - truth).square().sum() / truth.square().sum())
        for c in np.geomspace(1e-4, 1e4, 81) / float((P * w).mean())
    ]
    return min(errors)


def denoising(truth: Tensor, y: Tensor, noise: Tensor, P: Tensor, name: str) -> list[dict[str, object]]:
    """The weights 1 / noise power, right and summed."""
    right = 1 / noise
    wrong, zero = summed_over_kz(right), torch.zeros_like(y)
    angle = cosine(gradient(wrong, zero, y), gradient(right, zero, y))
    return [
        line(f"denoise, {name}", "cosine of the gradient with the right one", angle, 1.0),
        line(f"denoise, {name}", "error", best_error(wrong, y, P, truth), best_error(right, y, P, truth)),
    ]


def local(truth: Tensor, generator: torch.Generator) -> list[dict[str, object]]:
    """Four tiles with noise of 1, 2, 4 and 8 times the power of the first, and voxels' own weights."""
    one = SpectralNoise(torch.ones(2)).sample(torch.zeros_like(truth), generator=generator)
    two = SpectralNoise(torch.ones(2)).sample(torch.zeros_like(truth), generator=generator)
    own = 1 / (0.5 * (one - two).square())
    counts = float(own.sum() ** 2 / (own.numel() * own.square().sum()))
    n = truth.shape[0] // 2
    tiles = torch.stack([truth[n:, :n, :n], truth[:n, n:, :n], truth[:n, :n, n:], truth[:n, :n, :n]])
    ramp = 1 + 9 * torch.linspace(0, 1, n)
    variances = torch.stack([ramp[:, None, None].expand(n, n, n), ramp[:, None].expand(n, n, n), ramp.expand(n, n, n)])
    variances = torch.cat([variances, torch.ones(1, n, n, n)]) * 0.01
    noisy = tiles + variances.sqrt() * torch.randn(tiles.shape, generator=generator)
    w = 1 / variances
    right = [VoxelNoise(v.sqrt()).precision(y) for v, y in zip(variances, noisy, strict=True)]
    wrong = w.sum(0) * noisy
    angle = float(np.mean([cosine(a, b) for a, b in zip(wrong[:3], right[:3], strict=True)]))
    alone, together = torch.ones(()), right[0].norm() / torch.stack(right).norm()
    return [
        line("non-uniform", "cosine of a tile's gradient with the right one", angle, 1.0),
        line("non-uniform", "share of voxels that count where noise is even", counts, 1.0),
        line("batch", "push of the first of 4 tiles over that of it alone", float(together), float(alone)),
    ]


def inpainting(truth: Tensor, y: Tensor, noise: Tensor, P: Tensor) -> list[dict[str, object]]:
    """Half of the coefficients measured, with noise."""
    z = torch.fft.fftfreq(BOX[0])[:, None, None]
    x = torch.fft.rfftfreq(BOX[2])
    measured = (z.abs() <= x).expand(half_shape(BOX))  # a wedge
    replaced = irfft(torch.where(measured, rfft(y), 0), BOX)  # and what is not measured the prior's mean, 0
    known = posterior_mean(torch.where(measured, 1 / noise, 0), y, P)
    errors = [float((found - truth).square().sum() / truth.square().sum()) for found in (replaced, known)]
    return [line("inpaint", "error", *errors)]


def amplitude(P: Tensor, steps: int, at_end: bool) -> Tensor:
    """By what Euler's rule multiplies a coefficient of a Gaussian prior of power P, from t = 1 to 0."""
    a = torch.ones_like(P)
    for i in range(steps):
        t = 1 - (i + at_end) / steps
        a = a * (1 - (t - (1 - t) * P) / ((1 - t) ** 2 * P + t**2) / steps)
    return a


def flows(truth: Tensor) -> list[dict[str, object]]:
    """What the flow's times do, in model units."""
    P = radial_mean(rfft(truth.double() / STD).abs().square(), BOX)[1:]
    worst = []
    for at_end in (True, False):
        ratio = amplitude(P, EULER_STEPS, at_end).square() / P
        worst.append(float(ratio[ratio.log().abs().argmax()]))
    covered = COVERING * (1000 // COVERING) / 1000
    return [
        line("guided", f"strength of the data at w = {WEIGHT:g}", 1 + WEIGHT, 1.0),
        line("steps", f"part of the flow covered, N = {COVERING}", covered, 1.0),
        line("steps", "noise left, of full density", (1 - covered) * STD, 0.0),
        line("euler", "power of the worst shell over the prior's", *worst),
    ]


def line(fault: str, quantity: str, release: float, ours: float) -> dict[str, object]:
    """Of the table."""
    return {"fault": fault, "quantity": quantity, "release": float(f"{release:.3g}"), "right": float(f"{ours:.3g}")}


def table() -> list[dict[str, object]]:
    """All lines."""
    truth = torch.from_numpy(crop(clean(MAP, VOXEL), BOX[0]))
    generator = torch.Generator().manual_seed(0)
    P = radial(radial_mean(rfft(truth).abs().square(), BOX), BOX)
    lines: list[dict[str, object]] = []
    for noise, name in (
        (SpectralNoise(noise_power(truth, LEVEL)), f"level {LEVEL}"),
        (AnisotropicNoise(noise_power(truth, "3.2A"), wedge_alpha(-45, 45, ALPHA)), "level 3.2A, 50 × beyond ±45°"),
    ):
        y, N = noise.sample(truth, generator=generator), noise.power(BOX)
        lines += denoising(truth, y, N, P, name)
    return [*lines, *local(truth, generator), *inpainting(truth, y, N, P), *flows(truth)]


def main() -> None:
    """Parse the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="CSV file")
    args = parser.parse_args()
    lines = table()
    for found in lines:
        print(*found.values(), sep="  ")
    write_csv(args.out, lines)


if __name__ == "__main__":
    main()
