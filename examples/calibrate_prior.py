"""Measure a prior's statistics, once: ``python examples/calibrate_prior.py PRIOR --maps FOLDER --out FILE``.

Plug-and-play, samples and models from images need to know how strong a prior's data are, and how well it denoises them.
The priors that ship and those of train_prior.py carry both; a published CryoFM folder does not. FILE is the same prior
with them; every script takes it as --prior.

Give maps of the kind that the prior was trained on, a few dozen, best not the very ones: the tables are as strong as
their density is (of the bundled prior, by a quarter and more from one folder of maps to another), and results hang
little on that. Crops are cut where there is density; for a prior of whole particles, such as CryoFM-L, give ``--place
centre --side 128``. A prior that may be shown a map, such as cryofm2-emhancer, is shown every crop with noise, filter
and blur, without guidance.
"""

import argparse
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from _first import check_line
from _flags import add_report_flag, positive, seed, side

LARGEST = 64  # side of the crops that are taken unless told, voxels


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("prior", help="name, file or folder of a prior")
    add("--maps", type=Path, nargs="+", required=True, help="folders of maps or atomic models, or single ones")
    add("--out", type=Path, required=True, help=".safetensors file for the prior with its statistics")
    add("--number", type=positive, default=24, help="of crops (default 24)")
    add("--side", type=side, help=f"of the crops, voxels (default the prior's, at most {LARGEST})")
    place = "where crops are cut: about density, at any place, or in the middle of the map (default density)"
    add("--place", choices=("density", "uniform", "centre"), default="density", help=place)
    add("--seed", type=seed, default=0, help="of crops and noise (default 0)")
    add("--device", default="cpu", help="torch device (default cpu)")
    add("--overwrite", action="store_true", help="replace FILE if it exists")
    add_report_flag(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

import attrs
import numpy as np
import torch
from _command_line import choose_device, exit_code
from _pages import page
from _record import prior_file
from _streams import bar
from torch import Tensor

from cryofm_io import CryoFMError, OutputExistsError, refuse_to_lose
from cryofm_io.report import calibration_content
from cryofm_model import ConditionalPrior, Prior, load_prior, save_prior
from cryofm_model.data import MapSet
from cryofm_model.data.pairs import degraded
from cryofm_model.data.simulated import is_atomic_model
from cryofm_sampling import VelocityField, calibrate

MAPS = (".mrc", ".map", ".ccp4", ".mrc.gz", ".map.gz", ".ccp4.gz")
FILES_EACH = 4  # files that are read, at most, for each crop


def run(args: argparse.Namespace) -> None:
    """The whole job."""
    prior = load_prior(args.prior).to(choose_device(args.device))
    refuse_to_lose([path for path in (prior_file(args.prior),) if path is not None], [args.out])
    side = args.side or min(prior.box, LARGEST)
    if side % prior.multiple:
        raise CryoFMError(f"the side of crops is {side}; the prior {args.prior} takes multiples of {prior.multiple}")
    if args.out.exists() and not args.overwrite:  # before hours of work
        raise OutputExistsError(f"{args.out} exists; give another --out, or --overwrite")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    crops = examples(args, prior, side)
    shown = seen(crops, prior, args.seed) if isinstance(prior, ConditionalPrior) else None
    with page(args.report, args, overwrite=args.overwrite) as show:
        with evaluations(prior, args.number, shown) as velocity:
            generator = torch.Generator().manual_seed(args.seed)
            measured = calibrate(velocity, crops.to(args.device), generator=generator)
        density, known = float(crops.square().mean()), (measured.signal_power, measured.denoising_error)
        show(calibration_content, *(table.cpu().numpy() for table in known), density, prior.voxel_size)
    about = {**prior.about, "statistics": f"{args.number} crops of {side}³, seed {args.seed}"}
    save_prior(
        attrs.evolve(prior, about=about).with_statistics(measured),
        args.out,
        dtype=stored(prior),
        overwrite=args.overwrite,
    )
    print(f"{'t':>6}  error of the denoised density, over its power")
    for t, error in (measured.denoising_error / torch.tensor([1.0, density])).tolist():
        print(f"{t:6.2f}  {error:.4f}")
    print(f"saved {args.out}")


def examples(args: argparse.Namespace, prior: Prior, side: int) -> Tensor:
    """Crops in model units, of maps chosen at random where there are more than are needed."""
    paths = sorted(
        path
        for folder in args.maps
        for path in ([folder] if folder.is_file() else folder.iterdir())
        if path.name.lower().endswith(MAPS) or is_atomic_model(path)
    )
    if not paths:
        raise CryoFMError(f"no maps or atomic models in {', '.join(map(str, args.maps))}")
    rng = np.random.default_rng(args.seed)
    if len(paths) > FILES_EACH * args.number:
        paths = [paths[i] for i in sorted(rng.choice(len(paths), FILES_EACH * args.number, replace=False))]
    maps = MapSet.from_files(paths, prior.normalization, prior.voxel_size, place=args.place)
    print(f"{args.number} crops of {side}³ voxels of {prior.voxel_size:g} Å, of {len(maps.maps)} maps")
    return maps.crops(args.number, side, rng)


def seen(crops: Tensor, prior: Prior, seed: int) -> Tensor:
    """What an experiment might have made of each crop, in model units."""
    mean, std, rng = prior.normalization.mean, prior.normalization.std, np.random.default_rng(seed)
    made = [torch.from_numpy(degraded((crop * std + mean).numpy(), rng)) for crop in crops]
    return (torch.stack(made) - mean) / std


@contextmanager
def evaluations(prior: Prior, crops: int, shown: Tensor | None) -> Iterator[VelocityField]:
    """The prior, with a bar of what it has done; a conditional one is shown what goes with each crop in its turn."""
    times = inspect.signature(calibrate).parameters["times"].default
    calls = count()
    with bar(total=crops * len(times), unit=" evaluations", desc="calibrating") as done:

        def velocity(x: Tensor, t: Tensor, /) -> Tensor:
            done.update()
            if shown is None or not isinstance(prior, ConditionalPrior):
                return prior(x, t)
            return prior.given(x, t, shown[next(calls) // len(times)], None)

        yield velocity


def stored(prior: Prior) -> torch.dtype:
    """Half precision where it keeps every bit of the weights, as of priors that were stored so."""
    kept = all(torch.equal(w, w.bfloat16().to(w)) for w in prior.network.parameters())
    return torch.bfloat16 if kept else torch.float32


def main() -> None:
    """Parse the command line and run."""
    run(parse())


if __name__ == "__main__":
    sys.exit(exit_code(main))
