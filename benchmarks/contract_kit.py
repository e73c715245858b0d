"""What the contract kit costs: ``python benchmarks/contract_kit.py --out CSV``; 10 CPU seconds an object are aimed at.

`check_operator`, `check_noise` and `check_likelihood` on objects of this repository and on a stranger's, each in CPU
seconds of one thread, with the number of checks that passed; the slowest come first.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from _table import write_csv
from torch import Tensor

from cryofm_ops import (
    CTF,
    AnisotropicNoise,
    DoubleTilt,
    Envelope,
    FourierMask,
    FourierProjector,
    Identity,
    LocalNoise,
    LowPass,
    Mask,
    MissingWedge,
    NoiseSum,
    PoissonLikelihood,
    Projector,
    Proximal,
    RemoveMean,
    SpectralNoise,
    StudentTLikelihood,
    ToeplitzGaussian,
    VoxelNoise,
    WhiteNoise,
    adjoint_of,
    cone_alpha,
    gaussian_likelihood,
    random_rotations,
    stack,
    standard_normal,
)
from cryofm_ops.testing import check_likelihood, check_noise, check_operator

F64 = torch.float64
BOX = (5, 5, 5)


class Binned:
    """A stranger's operator: two planes as one."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """(x_2k + x_2k+1) / 2."""
        return (x[..., ::2, :, :] + x[..., 1::2, :, :]) / 2

    def adjoint(self, y: Tensor, /) -> Tensor:
        """The transpose."""
        return y.repeat_interleave(2, -3) / 2


class Stripes:
    """A stranger's noise: every other column is noisier."""

    def std(self, y: Tensor) -> Tensor:
        """Of each column."""
        std = torch.full(y.shape[-1:], 0.05).to(y)
        std[::2] = 0.3
        return std

    def sample(self, y: Tensor, /, *, generator: torch.Generator) -> Tensor:
        """Y + n."""
        return y + self.std(y) * standard_normal(y, generator)

    def precision(self, r: Tensor, /) -> Tensor:
        """Σ⁻¹ r."""
        return r / self.std(r) ** 2


class Saturated:
    """A stranger's likelihood."""

    def __init__(self, y: Tensor) -> None:
        self.y = y

    def log_prob(self, x: Tensor, /) -> Tensor:
        """Of y = tanh x + n."""
        return -50 * (x.tanh() - self.y.to(x)).square().sum((-3, -2, -1))


def objects() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """A kind, a name, and its check."""
    g = torch.Generator().manual_seed(3)
    rotations, shifts = random_rotations(3, generator=g, dtype=F64), torch.zeros(3, 2, dtype=F64)
    ctf = CTF(defocus_u_angstrom=9000.0, voxel_size_angstrom=2.0)
    slices, rays = FourierProjector(rotations, shifts, BOX, ctf), Projector(rotations, shifts, BOX)
    y = torch.randn(BOX, generator=g, dtype=F64)
    images, white = slices(y), WhiteNoise(0.3)
    wedge, colours = MissingWedge(-60, 60), torch.tensor([2.0, 1.0, 0.5], dtype=F64)
    weights = torch.linspace(0, 1, 125, dtype=F64).reshape(BOX)
    operators = {
        "Identity": Identity(),
        "LowPass": LowPass(5.0, voxel_size=1.5),
        "Envelope": Envelope(30.0, voxel_size=1.5),
        "RemoveMean": RemoveMean(),
        "CTF": ctf,
        "MissingWedge": wedge,
        "DoubleTilt": DoubleTilt(wedge, MissingWedge(-50, 40, "x")),
        "stack": stack(wedge, ctf),
        "a stranger's": Binned(),
    }
    for name, op in operators.items():
        shapes = {"shapes": [(4, 4, 4), (6, 5, 3)]} if name == "a stranger's" else {}
        yield "operator", name, lambda op=op, shapes=shapes: check_operator(op, **shapes)  # type: ignore[misc]
    of_a_box = {
        "FourierMask": FourierMask(ctf.transfer(BOX), BOX),
        "FourierProjector": slices,
        "Projector": rays,
        "Mask": Mask(weights),
        "adjoint_of": adjoint_of(lambda x: x[..., 1:] - x[..., :-1], BOX),
        "algebra": -2 * Mask(weights) @ wedge + ctf,
    }
    for name, op in of_a_box.items():
        yield "operator", name, lambda op=op: check_operator(op, shapes=[BOX])  # type: ignore[misc]
    noises = {
        "WhiteNoise": white,
        "SpectralNoise": SpectralNoise(colours),
        "AnisotropicNoise": AnisotropicNoise(colours, cone_alpha((1, 2, 3), 40, alpha_amplitude=0.5)),
        "NoiseSum": NoiseSum([white, SpectralNoise(colours)]),
        "a stranger's": Stripes(),
    }
    for name, noise in noises.items():
        yield "noise", name, lambda noise=noise: check_noise(noise)  # type: ignore[misc]
    local = {
        "VoxelNoise": VoxelNoise(0.5 + weights),
        "LocalNoise": LocalNoise(0.5 + weights, colours),
    }
    for name, noise in local.items():
        yield "noise", name, lambda noise=noise: check_noise(noise, shapes=[BOX])  # type: ignore[misc]
    likelihoods = {
        "FourierGaussian": gaussian_likelihood(ctf, SpectralNoise(colours), y),
        "FourierGaussian, noiseless": gaussian_likelihood(wedge, WhiteNoise(0.0), wedge(y)),
        "LinearGaussian of FourierProjector": gaussian_likelihood(slices, white, images),
        "LinearGaussian of Mask": gaussian_likelihood(Mask(weights), white, y),
        "ToeplitzGaussian": ToeplitzGaussian.from_images([(slices, images)], white, shape=BOX),
        "joint": gaussian_likelihood(slices, white, images) + gaussian_likelihood(Identity(), white, y),
        "PoissonLikelihood": PoissonLikelihood(ctf, y.square().round(), background=1.0),
        "StudentTLikelihood": StudentTLikelihood(Identity(), y, scale=0.3),
        "Proximal of StudentTLikelihood": Proximal(StudentTLikelihood(Identity(), y, scale=0.3)),
        "Proximal of a linear one": Proximal(gaussian_likelihood(Mask(weights), white, y)),
        "a stranger's": Saturated(y / 4),
    }
    for name, likelihood in likelihoods.items():
        yield "likelihood", name, lambda one=likelihood: check_likelihood(one, shapes=[BOX])  # type: ignore[misc]


def main() -> None:
    """Measure, and write the slowest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="CSV")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for kind, name, check in objects():
        start = time.process_time()
        passed = len(check())
        rows.append({"kind": kind, "object": name, "cpu_s": round(time.process_time() - start, 1), "passed": passed})
        print(*rows[-1].values(), flush=True)
    rows.sort(key=lambda row: -row["cpu_s"])
    write_csv(args.out, rows)
    print("torch's compiler is", "loaded" if "torch._dynamo" in sys.modules else "not loaded")


if __name__ == "__main__":
    main()
