"""Preferred views, and what is told of them: ``python benchmarks/views.py MAPS... --out CSV``.

K views within an angle of one axis (--within, degrees) are inserted as planes of noise, by trilinear shares, and the
map is added wherever they left something: half maps as gridding makes them, with noise of the level 4.3 Å on average
over what was measured. Restored are

- found: noise by direction, as the halves show it (`denoise.py`, `anisotropic.py`)
- directions told: a density of views by direction, `alpha_from_poses`
- voxels told: how many images measured each voxel (`anisotropic.py --poses`)

Leaves CSV: a line for every map, angle and kind, and their means.
"""

import argparse
import math
from functools import partial
from itertools import product
from pathlib import Path

import attrs
import torch
from _inputs import calibrated_prior, clean
from _protocol import BOX, VOXEL, Score, crop, noise_power
from _table import means_of_maps, write_csv
from torch import Tensor

from cryofm_ops import alpha_from_poses, coverage_from_poses, irfft, radial, random_rotations, rfft
from cryofm_sampling import PlugAndPlay, coverage_model, directional_model, restore

KINDS = ("mean", "found", "directions told", "voxels told")
SCORES = ("auc", "fsc05", "error")
LEVEL, STEPS, LEAST = "4.3A", 8, 0.05  # of the shares of planes in a voxel, below which it is left at 0


def views(count: int, within_deg: float, generator: torch.Generator) -> Tensor:
    """Rotations whose views are within an angle of the axis z, from either side."""
    found = random_rotations(100 * count, generator=generator)
    return found[found[:, 2, 2].abs() >= math.cos(math.radians(within_deg))][:count].double()


def inserted(rotations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """On the half grid: shares of the planes of these views, and the sum of what white images have on them."""
    n = BOX[0]
    axis = torch.arange(-(n // 2 - 1), n // 2)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = (x**2 + y**2).sqrt() < n / 2
    q = torch.stack([x[inside], y[inside]]).double()
    shares, sums = torch.zeros(n**3, dtype=torch.float64), torch.zeros(n**3, dtype=torch.complex128)
    for R in rotations:
        image = torch.fft.fft2(torch.randn(n, n, generator=generator).double(), norm="ortho")[y[inside], x[inside]]
        k = (R[:2].T @ q).flip(0)
        low = k.floor()
        for corner in product((0, 1), repeat=3):
            up = torch.tensor(corner)[:, None]
            share = torch.where(up == 1, k - low, 1 - k + low).prod(0)
            i, j, l = (low + up).long() % n
            at = (i * n + j) * n + l
            shares.index_add_(0, at, share)
            sums.index_add_(0, at, share * image)
    return tuple(a.reshape(n, n, n)[..., : n // 2 + 1] for a in (shares, sums))  # type: ignore[return-value]


def half_map(truth: Tensor, rotations: Tensor, generator: torch.Generator) -> Tensor:
    """The map and noise where planes are, 0 elsewhere."""
    shares, sums = inserted(rotations, generator)
    seen = shares > LEAST
    level = (radial(noise_power(truth, LEVEL).double(), BOX) * shares[seen].mean()).sqrt()
    return irfft(torch.where(seen, rfft(truth.double()) + level * sums / shares.clamp(min=LEAST), 0), BOX).float()


def main() -> None:
    """Parse the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("maps", type=Path, nargs="+", help="maps that the prior was not trained on")
    add("--prior", default="cryofm-tiny", help="(default cryofm-tiny)")
    add("--views", type=int, default=1000, help="in both halves together (default 1000)")
    add("--within", type=float, nargs="+", default=[25.0, 60.0], help="degrees of the axis (default 25 60)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    add("--out", type=Path, required=True, help="CSV file")
    args = parser.parse_args()
    prior = calibrated_prior(args.prior)
    lines: list[dict[str, object]] = []
    for seed, path in enumerate(args.maps):
        truth = torch.from_numpy(crop(clean(path, VOXEL), BOX[0]))
        for within in args.within:
            generator = torch.Generator().manual_seed(seed)
            R = views(args.views, within, generator)
            one, two = (half_map(truth, R[i::2], generator) for i in range(2))
            density = alpha_from_poses(R)
            least = 1 / density.alpha_variance.values.max()

            def alpha(u: Tensor, table=density, least=least) -> Tensor:  # type: ignore[no-untyped-def]
                found = attrs.evolve(table.alpha_variance, values=table.density)(u)
                return torch.where(found > least, 1 / found, math.inf)

            models = {
                "found": directional_model(one, two),
                "directions told": directional_model(one, two, alpha),
                "voxels told": coverage_model(one, two, partial(coverage_from_poses, R)),
            }
            found: dict[str, Tensor] = {"mean": (one + two) / 2}
            for kind, model in models.items():
                data, same = model.observe(found["mean"], 1 / 2), torch.Generator().manual_seed(seed)
                with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
                    draw = restore(prior, data, shape=BOX, generator=same, sampler=PlugAndPlay(STEPS))
                found[kind] = draw.x.float()
            for kind in KINDS:
                score = attrs.asdict(Score.of(found[kind], truth, VOXEL))
                first: dict[str, object] = {"map": path.name.split(".")[0], "within_deg": within, "kind": kind}
                lines.append(first | {key: round(score[key], 4) for key in SCORES})
                print(*lines[-1].values(), sep="  ", flush=True)
            write_csv(args.out, lines + means_of_maps(lines, SCORES))


if __name__ == "__main__":
    main()
