"""Train a prior on folders of maps: ``python examples/train_prior.py --maps FOLDER --validation FOLDER --out RUN``.

A killed run goes on where it stopped when the same line is given again. The result is RUN/model.safetensors,
which ``load_prior("RUN")`` and ``denoise.py --prior RUN`` take.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import cryofm_io
from cryofm_model import (
    CryoFMError,
    Hourglass,
    HourglassConfig,
    Normalization,
    Prior,
    UNet,
    UNetConfig,
    save_prior,
)
from cryofm_model.data import MapSet
from cryofm_model.train import VALIDATION_TIMES, TrainConfig, train, validation_loss
from cryofm_sampling import calibrate

EXAMPLES = 24  # crops of 64³ on which the samplers' statistics are measured
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: UNet(UNetConfig()),
    "hourglass": lambda: Hourglass(HourglassConfig(widths=(192, 384), depths=(2, 4), head_width=32)),
}


def main() -> int:
    """Parse the command line, train, measure the statistics that the samplers need, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=Path, nargs="+", required=True, help="folders of maps to train on")
    parser.add_argument("--validation", type=Path, nargs="+", required=True, help="folders of maps kept back")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--crops", type=int, default=14_000, help="length of the run in crops of 32³ (default 14000)")
    parser.add_argument("--network", choices=NETWORKS, default="unet", help="kind of network (default unet)")
    parser.add_argument("--voxel-size", type=float, default=1.5, help="of the prior, Å (default 1.5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")
    args = parser.parse_args()
    try:
        run(args)
    except (CryoFMError, cryofm_io.CryoFMError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    """Train and save."""
    normalization = Normalization()
    maps, kept_back = (
        MapSet.from_files(sorted(p for f in folders for p in f.glob("*.mrc")), normalization, args.voxel_size)
        for folders in (args.maps, args.validation)
    )
    print(f"{len(maps.maps)} maps to train on, {len(kept_back.maps)} kept back")
    torch.manual_seed(args.seed)
    network = NETWORKS[args.network]().to(args.device)
    print(f"{args.network} with {sum(p.numel() for p in network.parameters()) / 1e6:.2f} million parameters")
    validation = kept_back.crops(min(EXAMPLES, 8), 64, np.random.default_rng(0))
    averaged = train(network, maps, validation, TrainConfig(crops=args.crops, seed=args.seed), args.out).eval()

    examples = maps.crops(EXAMPLES, 64, np.random.default_rng([args.seed, 1]))
    measured = calibrate(averaged, examples.to(args.device), generator=torch.Generator().manual_seed(args.seed))
    losses = validation_loss(averaged, validation)
    about = {
        "license": "Apache-2.0",
        "training": f"{len(maps.maps)} maps, {args.crops} crops of 32³, seed {args.seed}",
        "validation_v_mse": ", ".join(f"{s:.3f} at t={t}" for t, s in zip(VALIDATION_TIMES, losses, strict=True)),
    }
    prior = Prior(averaged, normalization, args.voxel_size, 96, about=about).with_statistics(measured)
    save_prior(prior, args.out / "model.safetensors", dtype=torch.bfloat16, overwrite=True)
    print(f"saved {args.out / 'model.safetensors'}; v-MSE {about['validation_v_mse']}")


if __name__ == "__main__":
    sys.exit(main())
