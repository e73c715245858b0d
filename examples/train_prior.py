"""Train a prior: ``python examples/train_prior.py RECIPE --maps FOLDER --validation FOLDER --out RUN``.

On several GPUs, ``torchrun --nproc-per-node 8`` takes the place of ``python``; TRAINING.md of cryofm-model has the
lines for every machine. A run that was killed goes on where it stopped when the same line is given again.

RUN gets log.csv, samples/ (pictures: a kept-back map, then maps drawn from the prior), the last checkpoint, run.json
(recipe, data, versions, machine), and in the end model.safetensors, which ``load_prior("RUN")`` and
``denoise.py --prior RUN`` take.

A recipe of the kind "autoencoder" trains one, and ``--autoencoder RUN`` a flow over the latents of that: then it is
``cryofm_model.latent.load_latent("RUN")`` that takes the file.
"""

import argparse
import csv
import json
import platform
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _first import check_line


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="TOML file; examples/recipes has some")
    parser.add_argument("--maps", type=Path, nargs="+", required=True, help="folders of maps or atomic models")
    parser.add_argument("--list", type=Path, help="CSV: take only the maps in it that pass the paper's limits")
    parser.add_argument("--measured", type=Path, nargs="+", default=[], help="folders of measured maps to mix in")
    parser.add_argument("--validation", type=Path, nargs="+", required=True, help="folders of maps kept back")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--cache", type=Path, help="folder for prepared maps (default: cache in the folder of the run)")
    parser.add_argument("--autoencoder", help="file or folder of an autoencoder, over whose latents a flow is trained")
    parser.add_argument("--init", help="prior to start from: a name, a file or a folder (default: from scratch)")
    parser.add_argument("--device", help="torch device (default: a GPU for each process, or the CPU)")
    parser.add_argument("--strict", action="store_true", help="refuse to leave out maps that cannot be used")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    check_line(parse)  # before imports that take seconds

import attrs
import numpy as np
import torch
from _command_line import exit_code
from _latents import check_latent, train_latent
from _pages import page
from _record import environment, prior_file, sha256, write_run
from torch import Tensor, nn

from cryofm_io import MapWarning, refuse_to_lose
from cryofm_io.report import training_content
from cryofm_model import (
    CalibratedPrior,
    ConditionalPrior,
    CryoFMError,
    Prior,
    load_prior,
    save_prior,
)
from cryofm_model.data import MapSet
from cryofm_model.data.curation import curated
from cryofm_model.data.mixture import CropSource
from cryofm_model.data.pairs import Degraded, drawn
from cryofm_model.data.simulated import is_atomic_model
from cryofm_model.flow import flow_matching_loss
from cryofm_model.latent import save_latent
from cryofm_model.train import VALIDATION_TIMES, Loss, Recipe, read_recipe, train, validation_loss
from cryofm_model.train.checkpoint import differences
from cryofm_model.train.distributed import processes, rank_and_world
from cryofm_sampling import CalibratedVelocity, PlugAndPlayLoss, calibrate

VALIDATION, EXAMPLES = 8, 24  # crops: for the losses, and to measure the statistics that the samplers need
MAPS = (".mrc", ".map", ".ccp4")


def main() -> None:
    """Parse the command line and run."""
    args = parse()
    with processes(args.device) as device:
        run(args, read_recipe(args.recipe), device)


def run(args: argparse.Namespace, recipe: Recipe, device: torch.device) -> None:
    """Train and save; one of several processes where there are several."""
    rank, world = rank_and_world()
    starts = [prior_file(name) for name in (args.init, args.autoencoder) if name]
    refuse_to_lose([start for start in starts if start is not None], [args.out / "model.safetensors"])
    latent = check_latent(args, recipe)
    files = {kind: files_in(getattr(args, kind)) for kind in ("maps", "measured", "validation")}
    if args.list:
        files["maps"] = curated(args.list).choose(files["maps"])
    maps, measured, kept_back = (map_set(paths, recipe, args) if paths else None for paths in files.values())
    if maps is None or kept_back is None:
        raise CryoFMError(f"no maps or atomic models in {', '.join(map(str, [*args.maps, *args.validation]))}")
    source = recipe.paired(recipe.data.source(maps, measured, recipe.normalization, recipe.voxel_size))

    network = start_network(recipe, args.init).to(device)
    loss = loss_of(recipe, args.init, device)
    if rank == 0:
        describe(args, recipe, files, device, world)
        parameters = sum(p.numel() for p in network.parameters()) / 1e6
        print(
            f"{len(maps.maps)} maps to train on, {len(kept_back.maps)} kept back; {parameters:.2f} million parameters"
        )
    side = recipe.training.stages[-1][1]
    validation, shown = shown_crops(recipe.paired(kept_back), VALIDATION, side, 0)
    machine = recipe.machine
    if latent:
        made, scores = train_latent(args, recipe, network, source, validation, EXAMPLES)
        if rank == 0:
            made = attrs.evolve(made, about=about_run(args, recipe, files) | scores)
            save_latent(made, args.out / "model.safetensors", dtype=torch.bfloat16, overwrite=True)
            show_training(args, made.about)
            print(f"saved {args.out / 'model.safetensors'}; {', '.join(f'{k} {v}' for k, v in scores.items())}")
        return
    averaged = train(network, source, validation, recipe.training, args.out, machine=machine, loss=loss, shown=shown)
    averaged.eval()
    if rank > 0:
        return

    # Kept-back maps are there to report on, and for nothing else.
    statistics = measure(averaged, *shown_crops(source, EXAMPLES, side, 1), recipe.training.seed)
    losses = validation_loss(averaged, validation, shown=shown)
    about = about_run(args, recipe, files) | {
        "validation_v_mse": ", ".join(f"{s:.3f} at t={t}" for t, s in zip(VALIDATION_TIMES, losses, strict=True)),
    }
    kind = Prior if shown is None else ConditionalPrior
    prior = kind(averaged, recipe.normalization, recipe.voxel_size, recipe.box, about=about)
    model = args.out / "model.safetensors"
    save_prior(prior.with_statistics(statistics), model, dtype=torch.bfloat16, overwrite=True)
    show_training(args, about)
    print(f"saved {model}; v-MSE {about['validation_v_mse']}")


def about_run(args: argparse.Namespace, recipe: Recipe, files: dict[str, list[Path]]) -> dict[str, str]:
    """What the file says of a training."""
    return {
        "license": "Apache-2.0",
        "training": f"{args.recipe.name}, {recipe.training.crops} crops of 32³, seed {recipe.training.seed}"
        + (f", from {args.init}" if args.init else ""),
        "training_data": ", ".join(path.name for kind in ("maps", "measured") for path in files[kind]),
        "commit": commit(),
    }


def shown_crops(source: CropSource, number: int, side: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Crops, and what a conditional network is shown of each of them."""
    source = attrs.evolve(source, dropped=0.0) if isinstance(source, Degraded) else source
    return drawn(source, number, side, np.random.default_rng(seed))


def measure(network: nn.Module, crops: Tensor, shown: Tensor | None, seed: int) -> CalibratedVelocity:
    """The statistics of `calibrate` for the samplers; of a conditional network for what is shown, crop by crop."""
    device = next(network.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    if shown is None:
        return calibrate(network, crops.to(device), generator=generator)
    each = [
        calibrate(lambda x, t, y=y: network(x, t, y), crop[None], generator=generator)
        for crop, y in zip(crops.to(device), shown[:, None].to(device), strict=True)
    ]
    tables = ("signal_power", "denoising_error", "denoising_spectrum")
    means = {name: torch.stack([getattr(one, name) for one in each]).mean(0) for name in tables}
    return CalibratedVelocity(network, **means)


def files_in(folders: list[Path]) -> list[Path]:
    """Maps and atomic models in folders, each by its name in order; a folder given twice counts twice."""
    kinds = (*MAPS, *(f"{kind}.gz" for kind in MAPS))
    return [p for f in folders for p in sorted(f.glob("*")) if p.name.lower().endswith(kinds) or is_atomic_model(p)]


def map_set(paths: list[Path], recipe: Recipe, args: argparse.Namespace) -> MapSet:
    """Maps in model units, prepared once for all processes and runs."""
    cache = args.cache or args.out / "cache"
    data = recipe.data
    with warnings.catch_warnings():
        if args.strict:
            warnings.filterwarnings("error", ".* is left out: ", MapWarning)
        try:
            return MapSet.from_files(
                paths, recipe.normalization, recipe.voxel_size, cache=cache, place=data.place, turn=data.turn
            )
        except MapWarning as warning:
            raise CryoFMError(f"{warning} (--strict)") from None


def show_training(args: argparse.Namespace, about: Mapping[str, Any]) -> None:
    """The page of a training that has ended."""
    with (args.out / "log.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with page(args.out / "report.html", args, overwrite=True) as show:
        show(training_content, rows, about)


def start_network(recipe: Recipe, init: str | None) -> nn.Module:
    """The recipe's network with its first weights, drawn or taken from a prior."""
    torch.manual_seed(recipe.training.seed)
    network = recipe.build()
    if init:
        prior = load_prior(init)
        parts = ((prior.network.config, recipe.network), (prior.normalization, recipe.normalization))
        differs = [differences(settings_of(theirs), settings_of(ours)) for theirs, ours in parts]
        if prior.voxel_size != recipe.voxel_size:
            differs.append(f"voxel_size: {prior.voxel_size:g} Å there, {recipe.voxel_size:g} Å here")
        if differs := list(filter(None, differs)):
            raise CryoFMError(f"the prior {init} is not what the recipe trains ({'; '.join(differs)})")
        network.load_state_dict(as_conditional(prior.network.state_dict(), network))
    return network


def settings_of(part: Any) -> dict[str, Any]:
    """The settings in which a start and a recipe must agree; of a network all but whether it takes conditions."""
    settings: dict[str, Any] = attrs.asdict(part)
    settings.pop("conditions", None)
    return settings


def as_conditional(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The weights of an unconditional U-Net for one that takes conditions: what is shown begins with no effect."""
    stem = "stem.weight"
    if stem in state and (more := network.state_dict()[stem].shape[1] - state[stem].shape[1]):
        blind = state[stem].new_zeros(len(state[stem]), more, *state[stem].shape[2:])
        state = state | {stem: torch.cat([state[stem], blind], 1)}
    return state


def loss_of(recipe: Recipe, init: str | None, device: torch.device) -> Loss:
    """Flow matching, on the fraction of the crops that the recipe says for what plug-and-play shows."""
    if not recipe.data.observed:
        return flow_matching_loss
    prior = load_prior(init) if init else None
    if not isinstance(prior, CalibratedPrior) or recipe.machine.shard:
        raise CryoFMError(
            f"the recipe shows {recipe.data.observed:g} of the crops as plug-and-play does: that takes --init with a "
            "prior that carries statistics, and a whole network on every process (no shard)"
        )
    return PlugAndPlayLoss(prior.to(device), recipe.data.observed)


def describe(
    args: argparse.Namespace, recipe: Recipe, files: dict[str, list[Path]], device: torch.device, world: int
) -> None:
    """Write run.json, or compare with the one that is there.

    Raises:
        CryoFMError: the folder has a run with other data, another recipe or another start.
    """
    settings: dict[str, Any] = attrs.asdict(recipe)
    del settings["machine"]
    settings["init"] = args.init
    if args.autoencoder:
        settings["autoencoder"] = sha256(prior_file(args.autoencoder) or Path(args.autoencoder))
    data = {kind: [path.name for path in paths] for kind, paths in files.items()}
    path = args.out / "run.json"
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            differs = [differences(before["settings"], settings)]
            differs += [
                f"{len(before['data'][kind])} {kind} there, {len(names)} here, or others"
                for kind, names in data.items()
                if before["data"][kind] != names
            ]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise CryoFMError(f"{path} is damaged, or no record of a training; use another folder") from None
        if any(differs):
            raise CryoFMError(f"{path} is of another run ({'; '.join(filter(None, differs))}); use another folder")
        return
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    machine = {"platform": platform.platform(), "device": gpu or platform.processor(), "processes": world}
    content = {"settings": settings, "data": data, "commit": commit(), "machine": machine}
    write_run(path, environment({args.recipe.name: sha256(args.recipe)}) | content)


def commit() -> str:
    """The commit of the checkout that this script lies in."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(exit_code(main, left="the same line goes on from the last checkpoint"))
