"""An operator of your own, from nothing to a restored map.

    python examples/custom_operator.py --out DIR

A flexible domain: it moves from particle to particle, so that the average is blurred there, and sharp elsewhere. No
multiplication of Fourier coefficients does that, nothing that ships does, and a class of two methods says it. The rest
is what every task takes: data, a noise, a prior, and ``restore``. The data are the example in examples/data, EMD-3488,
degraded by that very operator.
"""

import argparse
import sys
from pathlib import Path

import attrs
import torch
from _input import DEMO_MAP, demo_truth
from _script import add_flags, choose_device, exit_code, launch, settings, sha256, tiles, write_run
from torch import Tensor
from tqdm import tqdm

from cryofm_io import VIEWING_NOTE, DensityMap, fsc, normalise_clean, plot_slices, to_grid, write_map
from cryofm_model import load_prior
from cryofm_ops import LowPass, WhiteNoise, gaussian_likelihood
from cryofm_ops.testing import check_operator
from cryofm_sampling import Renoising, restore

FILES = ["restored.mrc", "slices.png", "run.json"]


class FlexibleDomain:
    """A = (1 − w) + w B: the map itself where w is 0, blurred by B where w is 1. It imports nothing of ours but B."""

    def __init__(self, w: Tensor, resolution: float, voxel_size: float) -> None:
        self.w, self.blur = w, LowPass(resolution, voxel_size, edge_fraction=1.0)

    def __call__(self, x: Tensor, /) -> Tensor:
        """A x, for x `(*batch, z, y, x)` of any precision, on any device."""
        w = self.w.to(x)
        return (1 - w) * x + w * self.blur(x)

    def adjoint(self, y: Tensor, /) -> Tensor:
        """Aᵀ y = (1 − w) y + Bᵀ (w y): now the weight comes first."""
        w = self.w.to(y)
        return (1 - w) * y + self.blur.adjoint(w * y)


def run(args: argparse.Namespace, folder: Path) -> None:
    """From nothing to a restored map."""
    # Is it what it claims to be? A wrong adjoint, a changed input, a lost batch axis: all would be told.
    small = (6, 7, 8)
    passed = check_operator(FlexibleDomain(torch.rand(small), 8.0, 1.5), shapes=[small])
    print(f"FlexibleDomain passes {', '.join(passed)}")

    # 1. The prior, and a map on its grid and scale.
    device = choose_device(args.device)
    prior = load_prior(args.prior).to(device)
    deposited = demo_truth()
    data, grid = to_grid(deposited, prior.voxel_size)
    box = tuple(slice(max(0, n // 2 - 24), n // 2 + 24) for n in data.shape)  # not much more than the molecule
    truth = torch.from_numpy(normalise_clean(data[box])[0]).to(device)

    # 2. How the data come about: the right half is blurred to 5 Å, and there is noise.
    generator = torch.Generator(device).manual_seed(args.seed)
    across = torch.arange(truth.shape[-1], device=device) - truth.shape[-1] // 2
    operator = FlexibleDomain(torch.sigmoid(across / 2.0).expand(truth.shape), 5.0, grid.voxel_size)
    noise = WhiteNoise(0.02)
    observed = noise.sample(operator(truth), generator=generator)

    # 3. What the data say together with the prior.
    likelihood = attrs.evolve(gaussian_likelihood(operator, noise, observed), tolerance=1e-2)  # of conjugate gradients
    sampler = Renoising(times=torch.linspace(0.8, 0, args.steps + 1)[:-1].tolist(), chains=4)
    velocity = tiles(prior, truth.shape)
    with tqdm(total=args.steps, unit=" steps", file=sys.stdout, leave=False) as bar:
        draw = restore(
            velocity,
            likelihood,
            shape=tuple(truth.shape),
            generator=generator,
            samples=1,
            sampler=sampler,
            callback=lambda *_: bar.update(),
        )
    print(f"restored by {draw.settings['algorithm']} in {draw.nfe} network evaluations")

    volumes = {"data": observed, "restored": draw.x, "truth": truth}
    aucs = {}
    for name, x in volumes.items():
        left, right = (
            fsc(x.cpu().numpy(), truth.cpu().numpy(), grid.voxel_size, mask=part.cpu().numpy()).auc
            for part in (1 - operator.w, operator.w)
        )
        aucs[name] = {"sharp half": left, "blurred half": right}
        print(f"{name:10} FSC_AUC against the truth: {left:.3f} in the sharp half, {right:.3f} in the blurred one")
    restored = DensityMap(draw.x.cpu().numpy(), grid.voxel_size, labels=(VIEWING_NOTE,))
    write_map(folder / "restored.mrc", restored)
    plot_slices({name: x.cpu().numpy() for name, x in volumes.items()}, folder / "slices.png", grid.voxel_size)
    content = {"settings": settings(args), "algorithm": dict(draw.settings), "fsc_auc": aucs, "note": VIEWING_NOTE}
    write_run(folder / "run.json", {DEMO_MAP.name: sha256(DEMO_MAP)}, content)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, steps=4, of="levels of fresh noise, 4 network evaluations each")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error("--steps must be at least 1")
    launch(args, FILES, run)


if __name__ == "__main__":
    sys.exit(exit_code(main))
