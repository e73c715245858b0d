"""How exact and how fast projections are, beside torch-fourier-slice: ``python benchmarks/projector.py --out CSV``.

The object is a sum of 30 Gaussians (σ = 1.5 voxels, so that nothing is beyond Nyquist), whose projections are known
exactly; so is its back-projection, Σ_k y_k(R_k v), since the images are known between the pixels. Errors are relative
L2 norms over all images, or over the sphere that every view covers. 32 random poses, float32; times are medians, of
the operator and of its adjoint (for the peer: of the derivative in the volume, its graph being there already).

The peer (``pip install torch-fourier-slice``) takes matrices from view to object, Rᵀ, and has the centre at n // 2 too.
"""

import argparse
import importlib
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import torch
from _table import write_csv
from torch import Tensor

from cryofm_ops import FourierProjector, Projector, random_rotations

SIGMA = 1.5
HEIGHT = math.sqrt(2 * math.pi) * SIGMA


@attrs.frozen(eq=False)
class Phantom:
    """Gaussians around the centre of a box of n³, and what is known of them in closed form."""

    n: int
    centres: Tensor  # (gaussian, 3), in (x, y, z) from voxel n // 2
    rotations: Tensor  # (pose, 3, 3)

    @classmethod
    def random(cls, n: int, poses: int, generator: torch.Generator) -> "Phantom":
        """Gaussians at random in a ball of 0.3 n, and random poses."""
        direction = torch.randn(30, 3, generator=generator, dtype=torch.float64)
        radius = 0.3 * n * torch.rand(30, 1, generator=generator, dtype=torch.float64) ** (1 / 3)
        centres = torch.nn.functional.normalize(direction, dim=1) * radius
        return cls(n, centres, random_rotations(poses, generator=generator, dtype=torch.float64))

    @property
    def line(self) -> Tensor:
        """Positions of the voxels along an axis."""
        return torch.arange(self.n, dtype=torch.float64) - self.n // 2

    def volume(self) -> Tensor:
        """The object, `(z, y, x)`."""
        x, y, z = (bell(self.line - c[:, None]) for c in self.centres.unbind(1))
        return torch.einsum("nz,ny,nx->zyx", z, y, x)

    def images(self) -> Tensor:
        """Its exact projections, `(pose, y, x)`."""
        x, y, _ = (bell(self.line - c[..., None]) for c in self._seen().unbind(-1))
        return HEIGHT * torch.einsum("kny,knx->kyx", y, x)

    def back_projection(self) -> Tensor:
        """Σ_k y_k(R_k v) for every voxel v, y_k being the exact images."""
        z, y, x = torch.meshgrid(self.line, self.line, self.line, indexing="ij")
        voxels = torch.stack((x, y, z), -1)
        total = torch.zeros_like(x)
        for r, centres in zip(self.rotations, self._seen(), strict=True):
            p = voxels @ r[:2].T
            for c in centres:
                total += HEIGHT * bell((p - c[:2]).norm(dim=-1))
        return total

    def ball(self) -> Tensor:
        """Voxels that stay in the image in every pose, as zeros and ones."""
        z, y, x = torch.meshgrid(self.line, self.line, self.line, indexing="ij")
        return (z**2 + y**2 + x**2 < (self.n // 2 - 1) ** 2).double()

    def _seen(self) -> Tensor:
        return torch.einsum("kij,nj->kni", self.rotations, self.centres)


def bell(x: Tensor) -> Tensor:
    """A Gaussian of width SIGMA."""
    return torch.exp(-(x**2) / (2 * SIGMA**2))


def error(found: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    return float((found - expected).norm() / expected.norm())


def timed(call: Callable[[], Tensor], repeats: int) -> tuple[Tensor, float]:
    """What it gives, and the median time in milliseconds; the first of several calls does not count."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, 1e3 * statistics.median(seconds[1:] or seconds)


def ours(projector: Projector, x: Tensor, y: Tensor) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Projection of x and back-projection of y."""
    return lambda: projector(x), lambda: projector.adjoint(y)


def peer(rotations: Tensor, padding: float, x: Tensor, y: Tensor) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The same by torch-fourier-slice."""
    project_3d_to_2d = importlib.import_module("torch_fourier_slice").project_3d_to_2d
    leaf = x.clone().requires_grad_()
    images = project_3d_to_2d(leaf, rotations.mT, pad_factor=padding)
    return (
        lambda: project_3d_to_2d(x, rotations.mT, pad_factor=padding),
        lambda: torch.autograd.grad(images, leaf, y, retain_graph=True)[0],
    )


def main() -> None:
    """Parse the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, nargs="+", default=[32, 64, 65])
    parser.add_argument("--poses", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help=".csv file")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for n in args.boxes:
        phantom = Phantom.random(n, args.poses, torch.Generator().manual_seed(n))
        images, back, ball = phantom.images(), phantom.back_projection(), phantom.ball()
        x, y, r = phantom.volume().float(), images.float(), phantom.rotations.float()
        pose = r, torch.zeros(args.poses, 2)
        calls = {("Projector", 1.0): ours(Projector(*pose, (n, n, n)), x, y)}
        for padding in (1.0, 1.5, 2.0, 3.0, 4.0):
            calls["FourierProjector", padding] = ours(FourierProjector(*pose, (n, n, n), padding=padding), x, y)
        for padding in (1.0, 2.0, 4.0):
            calls["torch-fourier-slice", padding] = peer(r, padding, x, y)
        for (name, padding), (forward, adjoint) in calls.items():
            repeats = 1 if name == "Projector" else args.repeats + 1
            (y_found, ms), (x_found, ms_adjoint) = timed(forward, repeats), timed(adjoint, repeats)
            rows.append(
                {
                    "box": n,
                    "operator": name,
                    "padding": padding,
                    "error": f"{error(y_found, images):.2e}",
                    "error_adjoint": f"{error(ball * x_found, ball * back):.2e}",
                    "ms": round(ms, 1),
                    "ms_adjoint": round(ms_adjoint, 1),
                    "poses": args.poses,
                    "threads": torch.get_num_threads(),
                }
            )
            print(rows[-1], flush=True)
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
