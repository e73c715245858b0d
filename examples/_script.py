"""What the example scripts share: flags, outputs that appear together or not at all, progress, and the exit status."""

import argparse
import hashlib
import json
import logging
import math
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

import torch
from _ranks import dropped, everyone, is_first, ranks
from torch import Tensor
from tqdm import tqdm

import cryofm_io
import cryofm_model
import cryofm_ops
from cryofm_model import Prior
from cryofm_ops import Normalization
from cryofm_sampling import Calibrated, Checkpoint, SpectrallyCalibrated, Tiled

# Bytes of peak memory: fixed, per voxel of the grid, and per voxel of a tile without and with a backward pass; per
# voxel of a grid on which a map is resampled and no more.
BYTES_FIXED, BYTES_GRID, BYTES_NETWORK, BYTES_GRADIENT = 300 * 2**20, 200, 250, 1000
BYTES_RESAMPLED = 16

RESULT = re.compile(  # what any script may leave
    r"((restored|uncertainty|(sample|model)_\d+)\.mrc|(fsc|power|likelihood|scores)\.csv"
    r"|(fsc|slices|samples|power|pairs)\.png|poses\.star|run\.json)"
)

ERRORS = (cryofm_io.CryoFMError, cryofm_ops.CryoFMError, cryofm_model.CryoFMError)


def add_flags(parser: argparse.ArgumentParser, *, steps: int | None, of: str) -> None:
    """The flags of every script; ``of`` says what a step is; None: as many as it takes."""
    add = parser.add_argument
    add("--out", type=named_folder, required=True, help="folder for the results; made if need be")
    add("--steps", type=positive, default=steps, help=f"{of} (default {steps or 'as many as it takes'})")
    add(
        "--seed",
        type=seed,
        default=0,
        help="of all random numbers; the same seed gives the same files (default 0)",
    )
    add("--prior", default="cryofm-tiny", help="name, file or folder of a prior (default cryofm-tiny)")
    add("--device", default="cpu", help="torch device: cpu, cuda or cuda:1, … (default cpu)")
    add(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of the network; bf16 is faster on processors that have it, and far slower on others (default fp32)",
    )
    add("--overwrite", action="store_true", help="replace results that exist; others of the former run are removed")


def positive(text: str) -> int:
    """A whole number from 1 on, or what argparse makes a message of."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def above_zero(text: str) -> float:
    """A finite number above 0, or what argparse makes a message of."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("must be a finite number above 0")
    return number


def seed(text: str) -> int:
    """A number that random generators take, or what argparse makes a message of."""
    number = int(text)
    if not -(2**63) <= number < 2**64:
        raise argparse.ArgumentTypeError("must be of 64 bits")
    return number


def named_folder(text: str) -> Path:
    """A path; an empty one, of a variable that is not set, would be the folder that one is in."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return Path(text)


def state_file(text: str) -> Path:
    """A path where a file can be written, or what argparse makes a message of: not after hours of work."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path.parent} is no folder that can be written to")
    return path


def launch(args: argparse.Namespace, names: list[str], run: Callable[[argparse.Namespace, Path], None]) -> None:
    """Run with a folder for the files ``names``; nothing appears in the output folder unless everything went well."""
    logging.basicConfig(format="note: %(message)s")
    logging.getLogger("cryofm_io").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, which leaves nothing behind
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    with ranks(args.device):
        ours = is_first()
        with output_folder(args.out, names, args.overwrite, named_files(args)) if ours else dropped() as folder:
            run(args, folder)
    forget_checkpoints(args)
    if ours:
        print(f"results in {args.out}: {', '.join(names)}")


def forget_checkpoints(args: argparse.Namespace) -> None:
    """Remove those of a restored map, of its halves and samples, and of more samples that a killed run had begun."""
    if (path := vars(args).get("checkpoint")) is None:
        return
    for k in count():
        part = Checkpoint(path).part(k)
        if k >= 3 + args.samples and not part.path.exists():
            return
        part.remove()


def exit_code(main: Callable[[], None]) -> int:
    """Run ``main``; a mistake of the user's is one line and status 2, Ctrl-C is status 130."""
    try:
        main()
    except (*ERRORS, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: out of memory ({error}); crop the maps, or use a machine with more", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = "; the same line goes on where it was" if "--checkpoint" in sys.argv else ""
        print(f"interrupted; no results were written{goes_on}", file=sys.stderr)
        return 130
    return 0


@contextmanager
def output_folder(folder: Path, names: list[str], overwrite: bool, read: Sequence[Path] = ()) -> Iterator[Path]:
    """A temporary folder, whose files are moved to ``folder`` at the end, and dropped on any exception.

    What a former run has left in ``folder`` is removed then, so that nobody takes it for a part of this one.

    Raises:
        OutputExistsError: before anything is computed, if a file of ``names`` exists and may not be replaced, one that
            is to be ``read`` would go, or ``folder`` cannot be written to.
    """
    folder = folder.resolve()
    existing = [name for name in names if (folder / name).exists()]
    if folders := [name for name in existing if (folder / name).is_dir()]:
        raise cryofm_io.OutputExistsError(f"{', '.join(folders)} in {folder}: a folder; give another --out")
    if existing and not overwrite:
        raise cryofm_io.OutputExistsError(f"{folder} has {', '.join(existing)} already; give --overwrite to replace")
    refuse_to_lose(read, [*former(folder), *(folder / name for name in names)])
    # In the folder or what it will be made in: what lies beside a mount point is on another file system.
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise cryofm_io.OutputExistsError(f"{place} is a file; give a folder")
    partial: Path | None
    try:
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=place))
    except OSError as error:
        raise cryofm_io.OutputExistsError(
            f"{place} cannot be written to ({error.strerror}); give another --out"
        ) from None
    try:
        yield partial
        folder.mkdir(parents=True, exist_ok=True)
        if not overwrite and (appeared := [name for name in names if (folder / name).exists()]):
            kept, partial = partial, None
            raise cryofm_io.OutputExistsError(
                f"{', '.join(appeared)} appeared in {folder} meanwhile; the results are in {kept}"
            )
        left_over = {path.name for path in former(folder)}
        for path in sorted(partial.iterdir()):
            os.replace(path, folder / path.name)
            left_over.discard(path.name)
        for name in left_over:
            (folder / name).unlink()
    finally:
        if partial is not None:
            shutil.rmtree(partial)


def former(folder: Path) -> list[Path]:
    """What a former run has left there."""
    if not (folder / "run.json").is_file():
        return []
    return [path for path in folder.iterdir() if RESULT.fullmatch(path.name) and not path.is_dir()]


def refuse_to_lose(read: Iterable[Path], going: Sequence[Path]) -> None:
    """Raise `OutputExistsError` where a file that is to be read is one that will be replaced or removed."""
    for path in read:
        if path.exists() and any(other.exists() and other.samefile(path) for other in going):
            raise cryofm_io.OutputExistsError(f"{path} is read, and would be lost to the results; give another --out")


def named_files(args: argparse.Namespace) -> list[Path]:
    """Those that the command line names, the prior's among them."""
    values = [v for value in vars(args).values() for v in (value if isinstance(value, list) else [value])]
    return [*(v for v in values if isinstance(v, Path)), prior_file(args.prior)]


class WithProgress:
    """A prior in the units of ``normalization`` that moves a progress bar at every evaluation of a volume."""

    def __init__(
        self,
        velocity: Tiled,
        statistics: Calibrated,
        normalization: Normalization,
        bar: "tqdm[NoReturn]",
    ) -> None:
        self.velocity, self.normalization, self.bar = velocity, normalization, bar
        self.group = velocity.group  # by which `restore` knows who shares a checkpoint
        self.signal_power, self.denoising_error = statistics.signal_power, statistics.denoising_error
        if isinstance(statistics, SpectrallyCalibrated):
            self.denoising_spectrum = statistics.denoising_spectrum

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """The velocity."""
        velocity = self.velocity(x, t)
        self.bar.update(math.prod(x.shape[:-3]))
        return velocity


def tiles(prior: Prior, shape: tuple[int, ...], precision: str) -> Tiled:
    """The prior on a box of that shape; one that is no multiple of what the network takes is mirrored to one.

    Only the network computes in ``precision``: volumes, data and Fourier transforms stay in fp32.
    """
    device = next(prior.network.parameters()).device.type
    velocity = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")(prior)
    tile = min(prior.box, math.ceil(max(shape) / prior.multiple) * prior.multiple)
    several = tile < max(shape)
    return Tiled(velocity, tile, tile // 4 if several else 0, group=everyone() if several else None)


def by(shape: tuple[int, ...]) -> str:
    """A box as x × y × z."""
    return " × ".join(map(str, reversed(shape)))


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The command line, as ``run.json`` keeps it."""
    plain: dict[str, Any] = json.loads(json.dumps(vars(args), default=str))  # paths become strings
    return plain


def choose_device(name: str) -> torch.device:
    """The device of that name, or an error that says what there is."""
    try:
        probe = torch.zeros(1, device=name)
        probe.cpu()  # from "meta" nothing comes back
        return probe.device
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        reason = str(error).splitlines()[0]
        raise cryofm_io.CryoFMError(f"no device {name!r} here ({reason}); there is {', '.join(there)}") from None


def check_memory(shape: tuple[int, int, int], tiled: Tiled, device: torch.device, *, gradients: bool) -> None:
    """Refuse a job that cannot fit, before it starts.

    The constants were measured with the bundled prior (peak resident memory, boxes of 64³ to 144³). One tile is held
    at a time, with what its backward pass needs.
    """
    network = tiled.tile**3 * (BYTES_GRADIENT if gradients else BYTES_NETWORK)
    check_available(BYTES_FIXED + math.prod(shape) * BYTES_GRID + network, shape, device)


def check_available(needed: int, shape: tuple[int, int, int], device: torch.device) -> None:
    """Refuse what needs so many bytes for a grid of that shape, where there are fewer."""
    available = _available_memory(device)
    if available is not None and needed > available:
        raise cryofm_io.CryoFMError(
            f"a grid of {shape[2]} x {shape[1]} x {shape[0]} voxels needs about {needed / 2**30:.1f} GiB on {device}, "
            f"{available / 2**30:.1f} GiB are free; crop the maps, "
            "or use a machine with more memory"
        )


def _available_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        # MemAvailable counts what caches would give back, which SC_AVPHYS_PAGES does not.
        meminfo = Path("/proc/meminfo")
        if meminfo.exists():
            lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
            return int(lines["MemAvailable"].split()[0]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def sha256(path: Path) -> str:
    """The SHA-256 sum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prior_file(name: str) -> Path:
    """Where its weights are, unless it is a bundled one."""
    return Path(name) / "model.safetensors" if Path(name).is_dir() else Path(name)


def prior_sum(name: str) -> dict[str, str]:
    """The SHA-256 sum of a prior's file, by its path; a bundled one is told by its package's version."""
    path = prior_file(name)
    return {str(path): sha256(path)} if path.is_file() else {}


def write_run(path: Path, inputs: dict[str, str], content: dict[str, Any]) -> None:
    """``run.json``: what is needed to get the same result again."""
    packages = ("cryofm-io", "cryofm-ops", "cryofm-sampling", "cryofm-model", "torch", "numpy")
    run = {
        "program": Path(sys.argv[0]).name,
        "inputs_sha256": inputs,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "threads": torch.get_num_threads(),  # on which the order of sums depends, and so the last bits
        **content,
    }
    run = json.loads(json.dumps(run), parse_constant=lambda _: None)  # of NaN and infinity, which are no JSON
    with cryofm_io.atomic_write(path) as temporary:
        temporary.write_text(json.dumps(run, indent=2) + "\n")
