"""What the command lines of the scripts share: flags, output folder, several processes, progress, exit status."""

import argparse
import errno
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from _streams import bar, outlived_streams
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

import cryofm_io
import cryofm_model
import cryofm_ops
from cryofm_io import CryoFMError, InputFileError, atomic_write, find_emdb_entry, output_folder
from cryofm_model import CalibratedPrior, ConditionalPrior, Prior, WeightsError, load_prior
from cryofm_sampling import (
    Checkpoint,
    ConditionalVelocityField,
    Guided,
    Inpainting,
    PlugAndPlay,
    PosteriorFlow,
    Progress,
    RestoredMap,
    Sampler,
    Tiled,
    everyone,
    is_first,
    joined,
)

UNCERTAINTY = "uncertainty.mrc"
OTHER_FILES = 10 * 2**20  # bytes, of pictures, tables, records and the report
MOST, EXTREME = 10**7, 1e15  # of what is counted; of numbers that are squared
STARTED = time.perf_counter()
ERRORS = (cryofm_io.CryoFMError, cryofm_ops.CryoFMError, cryofm_model.CryoFMError)


def run_script(
    args: argparse.Namespace, names: list[str], run: Callable[[argparse.Namespace, Path], RestoredMap | None]
) -> None:
    """Run with a folder for the files ``names``; nothing appears in the output folder unless everything went well."""
    logging.basicConfig(format="note: %(message)s")
    logging.getLogger("cryofm_io").setLevel(logging.INFO)
    with ExitStack() as stack:
        with joined(args.device), silent_unless_first():
            results = output_folder(args.out, names, overwrite=args.overwrite, read=named_files(args))
            with results if is_first() else TemporaryDirectory() as folder:
                result = run(args, Path(folder))
                if is_first():
                    seal(Path(folder))
                stack.enter_context(signals(signal.SIG_IGN))  # what is left to do takes a moment
            ours, alone = is_first(), everyone() is None
        if ours and (state := checkpoint(args)) is not None:
            state.remove_parts(4 + args.samples)
        if ours:
            print(f"results in {args.out}: {', '.join(names)}")
    if alone and result is not None and result.doubts:  # of several processes torchrun would make a crash of it
        raise DoubtfulError("the results are written, and are not to be trusted (see above)")


@contextmanager
def silent_unless_first() -> Iterator[None]:
    """Of several processes the first one speaks for all."""
    with open(os.devnull, "w") as nowhere, nullcontext() if is_first() else redirect_stdout(nowhere):
        if not is_first():
            warnings.showwarning = lambda *_, **__: None
            logging.disable()
        yield


class OnlyPlanned(Exception):
    """What would be done has been said, and nothing was."""


class DoubtfulError(Exception):
    """The results are there, and are not to be trusted."""


def exit_code(main: Callable[[], int | None], left: str = "no results were written") -> int:
    """Run ``main``; a mistake of the user's is one line and status 2, Ctrl-C is 130, a result in doubt 3.

    SIGTERM, and SIGHUP of a terminal that goes away, are as Ctrl-C; ``left`` says what of it that leaves.
    """
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    with outlived_streams():
        try:
            with signals(signal.default_int_handler):
                return main() or 0
        except OnlyPlanned as plan:
            print(f"{plan}; nothing was written")
            return 0
        except DoubtfulError as error:
            print(f"warning: {error}", file=sys.stderr)
            return 3
        except KeyboardInterrupt:
            goes_on = "; the same line goes on where it was" if "--checkpoint" in sys.argv else ""
            print(f"interrupted; {left}{goes_on}", file=sys.stderr)
            return 130
        except (*ERRORS, OSError, MemoryError, RuntimeError) as error:
            if (line := one_line(error)) is None:
                raise
            print(f"error: {line}", file=sys.stderr)
            return 2


def disk_is_full(error: Exception) -> bool:
    """Whether nothing more can be written."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def one_line(error: Exception) -> str | None:
    """What an error says to a user; nothing for one that is a fault of the program."""
    said = str(error).strip().splitlines()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any("allocate memory" in line for line in said):
        need = said[0] if said else "it does not say of how much"
        return f"out of memory ({need}); crop the maps, or use a machine with more"
    if disk_is_full(error):
        return f"the disk is full, or what may be written to it ({error}); make room and start again"
    return str(error) if isinstance(error, (*ERRORS, OSError)) else None


@contextmanager
def signals(handler: Callable[[int, Any], Any] | signal.Handlers) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP are handled so, but for those that are ignored, as by nohup; at the end as before."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for name in names if signal.getsignal(number := getattr(signal, name)) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def add_flags(parser: argparse.ArgumentParser, *, steps: int | None, of: str) -> None:
    """The flags of every script; ``of`` says what a step is; None: as many as it takes."""
    add = parser.add_argument
    add("--out", type=named_folder, required=True, help="folder for the results; made if need be")
    add("--steps", type=positive, default=steps, help=f"{of} (default {steps or 'as many as it takes'})")
    add("--seed", type=seed, default=0, help="of all random numbers; the same seed gives the same maps (default 0)")
    add("--prior", default="cryofm-tiny", help="name, file or folder of a prior (default cryofm-tiny)")
    add("--device", default="cpu", help="torch device: cpu, cuda or cuda:1, … (default cpu)")
    precision = (
        "of the network (default bf16 where the processor has units for it, which is faster; likelihood.py: fp32)"
    )
    add("--precision", choices=("fp32", "bf16"), help=precision)
    add("--overwrite", action="store_true", help="replace results that exist; others of the former run are removed")
    flags = "TOML file with flags, such as steps = 20 and b-factor = 60; flags after it on the line win"
    add("--settings", type=Path, action=FromToml, metavar="FILE", help=flags)


class FromToml(argparse.Action):
    """Sets every flag that a TOML file names, as if it stood on the line."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Set them; what is wrong with the file is what would be wrong with the line."""
        try:
            with values.open("rb") as file:
                table = tomllib.load(file)
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise argparse.ArgumentError(self, f"{values}: {error}") from None
        for name, value in table.items():
            flag = f"--{name.replace('_', '-')}"
            action = parser._option_string_actions.get(flag)
            if action is None or action.dest in ("help", self.dest):
                raise argparse.ArgumentError(self, f"{values}: there is no flag {flag}")
            if (action.nargs == 0) != isinstance(value, bool):
                kind = "true or false" if action.nargs == 0 else "a value"
                raise argparse.ArgumentError(self, f"{values}: {name} must be {kind}")
            if action.nargs == 0:
                setattr(namespace, action.dest, value)
            else:
                words = [str(one) for one in (value if isinstance(value, list) else [value])]
                found = parser._get_values(action, words)  # with its type, choices and number
                if len(words) != (action.nargs if isinstance(action.nargs, int) else 1) and action.nargs != "+":
                    raise argparse.ArgumentError(action, f"{values}: {len(words)} values")
                action(parser, namespace, found, flag)
        setattr(namespace, self.dest, values)


def add_half_map_flags(parser: argparse.ArgumentParser) -> None:
    """Two half maps and what is particular to them."""
    add = parser.add_argument
    first = "first raw half map (MRC/CCP4, .gz too), or alone the folder of an EMDB entry; none: the example"
    add("half1", type=Path, nargs="?", help=first)
    add("half2", type=Path, nargs="?", help="second raw half map, on the same grid")
    add_map_flags(parser, "half maps")
    add_envelope_flags(parser)
    masked = "take masked or filtered half maps; noise is then underestimated"
    add("--allow-masked", action="store_true", help=masked)
    add_flags(parser, steps=8, of="network evaluations for each restored map, 2 or more; 1000 of the paper's")
    add_algorithm_flags(parser, "Alg. 1")


def add_enhancement_flags(parser: argparse.ArgumentParser, steps: int) -> None:
    """A map or two half maps, and how a conditional prior is shown it; so many steps of one map."""
    add = parser.add_argument
    add("half1", metavar="map", type=Path, help="map, or first raw half map (MRC/CCP4, .gz too)")
    add("half2", type=Path, nargs="?", help="second raw half map, on the same grid")
    add("--tag", type=natural, help="kind of enhancement, of a network that knows several (default the prior's own)")
    more = "w of guidance, v = (1 + w) v(x | map) - w v(x); above 0 it takes two evaluations (default the prior's own)"
    add("--weight", type=from_zero, help=more)
    add("--mask", type=Path, help="soft mask, 0..1, on the grid of the map: applied to the FSC and the result")
    add("--voxel-size", type=above_zero, help="of the map and the mask, Å, where the headers are wrong")
    add("--b-factor", type=float, default=0.0, help="of the half maps' envelope, Å²; denoise.py finds it (default 0)")
    add("--allow-masked", action="store_true", help="take masked or filtered half maps")
    add_checkpoint_flag(parser, "the run")
    add_flags(parser, steps=None, of=f"of one map {steps} unless told, of half maps those of denoise.py")
    add_algorithm_flags(parser, "Alg. 1, of half maps")
    parser.set_defaults(samples=0)


def add_envelope_flags(parser: argparse.ArgumentParser) -> None:
    """What may be said of the envelope of half maps, and what is left of them."""
    add = parser.add_argument
    envelope = "B factor of the half maps' envelope exp(-B ν²/4), Å², 0 for sharpened ones; found where it is not given"
    add("--b-factor", type=float, help=envelope)
    blurred = "leave the maps as blurred as the data; without it they are sharp"
    add("--keep-envelope", action="store_true", help=blurred)
    add("--halves", action="store_true", help="write both restored halves as well")


def add_algorithm_flags(parser: argparse.ArgumentParser, paper: str) -> None:
    """Whose algorithm restores; ``paper`` says which the paper's is."""
    add = parser.add_argument
    whose = (
        f"default: plug-and-play; paper: the paper's {paper}, of far more steps, which needs no statistics of the prior"
    )
    add("--algorithm", choices=("default", "paper"), default="default", help=f"{whose} (default default)")
    push = "λ_max of Alg. 1 in 1000 steps and a box of 64³; others scale it (default 5)"
    add("--max-push", type=above_zero, default=5.0, help=push)
    parser.set_defaults(steps=None)  # which depends on the algorithm


def parse_half_maps(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The command line of a script with the flags of half maps."""
    args = parser.parse_args(with_plain_numbers(arguments))
    if args.half1 is not None and args.half2 is None and args.half1.is_dir():
        take_entry(args)
    given = (args.half1 is not None, args.half2 is not None, vars(args).get("resolution") is not None)
    if given not in ((False, False, False), (True, True, False), (True, False, True)):
        parser.error("give both half maps, or one map and its --resolution, or nothing for the example")
    if args.steps is not None and args.steps < 2:
        parser.error("--steps must be at least 2")
    return args


def take_entry(args: argparse.Namespace) -> None:
    """Of a folder of the EMDB in the place of the half maps: these, or the map and its resolution, and the mask.

    Raises:
        InputFileError: It has none that the script can take.
    """
    folder, entry = args.half1, find_emdb_entry(args.half1)
    told = None if entry.header is None else entry.header.resolution
    if entry.half_maps is not None and vars(args).get("resolution") is None:
        args.half1, args.half2 = entry.half_maps
    elif entry.map is not None and "resolution" in vars(args) and (args.resolution or told):
        args.half1, args.resolution = entry.map, args.resolution or told
    else:
        raise InputFileError(f"{folder} holds no half maps, and no map with a header that tells its resolution")
    args.mask = args.mask or entry.mask
    said = [str(path) for path in (args.half1, args.half2, args.mask) if path is not None]
    if entry.header is not None:
        resolution = "no resolution" if told is None else f"{told:g} Å"
        contour = "" if entry.header.contour is None else f", contour {entry.header.contour:g}"
        said.append(f"by its header {resolution}{contour}")
    print(f"{folder}: {', '.join(said)}")


def with_plain_numbers(arguments: list[str] | None) -> list[str]:
    """The command line, negative numbers such as -60. and -6e1 so that argparse takes them for no flags."""
    negative = re.compile(r"-(\d+\.|(\d+\.?\d*|\.\d+)e[+-]?\d+)", re.IGNORECASE)
    found = sys.argv[1:] if arguments is None else arguments
    return [f"{float(text):.9f}" if negative.fullmatch(text) else text for text in found]


def add_map_flags(parser: argparse.ArgumentParser, of: str) -> None:
    """What may be said of the input maps."""
    add = parser.add_argument
    mask = f"soft mask, 0..1, on the grid of the {of}: applied to the FSC and the result, whose solvent is then 0"
    add("--mask", type=Path, help=mask)
    add("--voxel-size", type=float, help=f"of the {of} and the mask, Å, where the headers are wrong")
    scale = f"what the density of the {of} is multiplied by to be the prior's, such as the scale in the run.json of a "
    scale += "map of the same kind; found by cross-validation where it is not given"
    add("--scale", type=above_zero, help=scale)
    add("--dry-run", action="store_true", help="say what it would take, memory, disk and time, and do nothing")
    add_checkpoint_flag(parser, "every restoration and sample")
    add_samples_flag(parser)


def add_checkpoint_flag(parser: argparse.ArgumentParser, of: str) -> None:
    """Where a killed run goes on."""
    state = f"file beside which the state of {of} is kept: the same line goes on from there"
    parser.add_argument("--checkpoint", type=state_file, help=state)


def add_symmetry_flag(parser: argparse.ArgumentParser) -> None:
    """Of the particles."""
    group = "point group, axis along z: C1, C4, D7, T, O, I (default C1)"
    parser.add_argument("--sym", type=symmetry, default="C1", help=group)


def add_samples_flag(parser: argparse.ArgumentParser) -> None:
    """How many maps to draw."""
    draw = f"maps to draw of those that the data allow, each of {PosteriorFlow().nfe} network evaluations or some "
    draw += f"more; from two on, their standard deviation is {UNCERTAINTY} (default 0)"
    parser.add_argument("--samples", type=natural, default=0, help=draw)


def positive(text: str) -> int:
    """A whole number from 1 on, or what argparse makes a message of."""
    return natural(text, least=1)


def natural(text: str, least: int = 0) -> int:
    """A whole number from 0 on, or what argparse makes a message of."""
    if not least <= (number := int(text)) <= MOST:
        raise argparse.ArgumentTypeError(f"must be at least {least} and at most {MOST}")
    return number


def symmetry(text: str) -> str:
    """A point group's name, or what argparse makes a message of."""
    if not re.fullmatch(r"[CD][1-9]\d?|T|O|I", text.upper()):
        raise argparse.ArgumentTypeError("must be a point group: C1, C4, D7, T, O or I")
    return text.upper()


def point_group(name: str) -> NDArray[np.float64]:
    """Rotations of a point group, its main axis along z (of T and I a twofold one), `(G, 3, 3)`."""
    return np.asarray(Rotation.create_group(name).as_matrix())


def of_all_copies(rotations: NDArray[np.float64], group: str) -> Tensor:
    """Rotations `(G K, 3, 3)` of K particles, each taken in all orientations that its point group makes equal."""
    return torch.from_numpy((rotations @ point_group(group)[:, None]).reshape(-1, 3, 3))


def from_zero(text: str) -> float:
    """A finite number from 0 on, or what argparse makes a message of."""
    return 0.0 if float(text) == 0 else above_zero(text)


def above_zero(text: str) -> float:
    """A number above 0 whose square is one too, or what argparse makes a message of."""
    if not 1 / EXTREME <= (number := float(text)) <= EXTREME:
        raise argparse.ArgumentTypeError(f"must be a number above 0, from {1 / EXTREME:g} to {EXTREME:g}")
    return number


def seed(text: str) -> int:
    """A number that random generators take, or what argparse makes a message of."""
    if not 0 <= (number := int(text)) < 2**64:
        raise argparse.ArgumentTypeError("must be from 0 on, of 64 bits")
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


def sample_names(samples: int) -> list[str]:
    """Files of the samples."""
    return [f"sample_{i + 1:02d}.mrc" for i in range(samples)]


def chosen_prior(args: argparse.Namespace) -> Prior:
    """The prior that the command line names, on its device; ``args.precision``, if it is not told, is that device's."""
    device = choose_device(args.device)
    if args.precision is None:
        args.precision = "bf16" if has_bf16(device) else "fp32"
    return load_prior(args.prior).to(device)


def calibrated_prior(args: argparse.Namespace, otherwise: str | None = None) -> CalibratedPrior:
    """The same; `WeightsError` where it has no measured statistics: says what to do, or ``otherwise``."""
    prior = chosen_prior(args)
    if not isinstance(prior, CalibratedPrior):
        raise WeightsError(
            f"the prior {args.prior} has no measured statistics, which its noise level is chosen by: "
            f"calibrate_prior.py adds them, once" + (f"; or {otherwise}" if otherwise else "")
        )
    return prior


def chosen_conditional_prior(args: argparse.Namespace) -> ConditionalPrior:
    """The prior of the command line, if it can be shown a map."""
    prior = chosen_prior(args)
    if not isinstance(prior, ConditionalPrior):
        raise WeightsError(
            f"the prior {args.prior} cannot be shown a map; give --prior the folder cryofm2-emhancer or "
            "cryofm2-emready, or what train_prior.py made of a recipe with conditions"
        )
    return prior


def chosen_sampler(args: argparse.Namespace, prior: Prior, *, noiseless: bool = False) -> Sampler:
    """Plug-and-play; the paper's algorithm where it is asked for, or where the prior has no measured statistics."""
    calibrated = isinstance(prior, CalibratedPrior)
    if args.samples and not calibrated:
        raise WeightsError(
            f"the prior {args.prior} has no measured statistics, which samples need: calibrate_prior.py adds them, once"
        )
    if args.algorithm == "default" and calibrated:
        return PlugAndPlay(args.steps or (20 if noiseless else 8))
    paper = Inpainting(args.steps or 1000) if noiseless else Guided(args.steps or 1000, "paper", args.max_push)
    if args.algorithm == "default":
        print(
            f"the prior {args.prior} has no measured statistics, which the default algorithm needs (calibrate_prior.py "
            f"adds them, once): the paper's restores, Alg. {2 if noiseless else 1} with {paper.steps} steps"
        )
    return paper


def choose_device(name: str) -> torch.device:
    """The device of that name, or an error that says what there is."""
    try:
        probe = torch.zeros(1, device=name)
        probe.cpu()  # from "meta" nothing comes back
        return probe.device
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        reason = str(error).splitlines()[0]
        raise CryoFMError(f"no device {name!r} here ({reason}); there is {', '.join(there)}") from None


def in_tiles(prior: Prior, shape: tuple[int, ...], precision: str) -> Tiled:
    """The prior on a box of that shape, its network computing in a precision.

    Raises:
        CryoFMError: The processor has no units for it.
    """
    device = next(prior.network.parameters()).device
    if precision == "bf16" and not has_bf16(device):
        raise CryoFMError(f"{device} has no units for bf16, which would make it far slower; leave out --precision bf16")
    return Tiled.fitting(prior, shape, dtype=torch.bfloat16 if precision == "bf16" else None, group=everyone())


def conditional_in_tiles(prior: ConditionalPrior, shape: tuple[int, ...], precision: str) -> ConditionalVelocityField:
    """The same of a prior that may be shown a volume, as its tiles may."""
    return cast(ConditionalVelocityField, in_tiles(prior, shape, precision))


def has_bf16(device: torch.device) -> bool:
    """Whether a processor computes with bf16 itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if hasattr(torch.cpu, "get_capabilities"):
        return any(there is True for name, there in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def checkpoint(args: argparse.Namespace) -> Checkpoint | None:
    """Where the command line wants the state kept."""
    path = vars(args).get("checkpoint")
    return None if path is None else Checkpoint(path)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar that is gone at the end."""
    with bar(unit=" evaluations", desc="starting") as shown:

        def progress(stage: str, done: int, total: int | None) -> None:
            if not shown.desc.startswith(stage):
                shown.reset(total)
                shown.set_description(stage)
            shown.update(done - shown.n)

        yield progress


def check_disk(out: Path, results: int, largest: int, state: int = 0) -> str:
    """Refuse results for which there is no room on their disk.

    Args:
        out: Their folder, if it is there.
        results: Bytes of all.
        largest: Of the largest file.
        state: Of what is kept meanwhile.

    Returns:
        What is needed and what there is, in words.

    Raises:
        CryoFMError: It does not suffice.
    """
    place = folder_of(out)
    needed, free = results + state + OTHER_FILES, shutil.disk_usage(place).free
    said = f"{needed / 2**20:.0f} of {free / 2**20:.0f} MiB on disk"
    if needed > free:
        raise CryoFMError(f"the results need about {said} ({place}); make room, or give another --out")
    if sys.platform != "win32":
        import resource  # which Windows has not

        most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if most != resource.RLIM_INFINITY and largest > most:
            raise CryoFMError(
                f"the results need files of {largest / 2**20:.1f} MiB, and this shell allows {most / 2**20:.1f} MiB "
                "(ulimit -f)"
            )
    return said


def folder_of(out: Path) -> Path:
    """That folder, or what is there of the way to it."""
    return next(path for path in (out.resolve(), *out.resolve().parents) if path.is_dir())


def by(shape: tuple[int, ...]) -> str:
    """A box as x × y × z."""
    return " × ".join(map(str, reversed(shape)))


def prior_file(name: str) -> Path | None:
    """Where the weights of a prior are, unless it is a bundled one, which the version of its package tells."""
    if name in cryofm_model.BUNDLED_PRIORS:
        return None
    return Path(name) / "model.safetensors" if Path(name).is_dir() else Path(name)


def named_files(args: argparse.Namespace) -> list[Path]:
    """Those that the command line names, the prior's among them."""
    values = [v for value in vars(args).values() for v in (value if isinstance(value, list) else [value])]
    return [path for path in (*values, prior_file(args.prior)) if isinstance(path, Path)]


def sha256(path: Path) -> str:
    """The SHA-256 sum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(args: argparse.Namespace, *others: Path) -> dict[str, Any]:
    """What ``run.json`` begins with: the command line, and the sums of all files that it names and of ``others``."""
    state = vars(args).get("checkpoint")
    sums = {str(path): sha256(path) for path in named_files(args) if path.is_file() and path != state}
    settings = json.loads(json.dumps(vars(args), default=str))  # paths become strings
    return environment(sums | {path.name: sha256(path) for path in others}) | {"settings": settings}


def environment(sums: dict[str, str]) -> dict[str, Any]:
    """The program, its inputs' SHA-256 sums, and what else its results depend on."""
    packages = ("cryofm-io", "cryofm-ops", "cryofm-sampling", "cryofm-model", "torch", "numpy")
    return {
        "program": Path(sys.argv[0]).name,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "inputs_sha256": sums,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "threads": torch.get_num_threads(),  # on which the order of sums depends, and so the last bits
    }


def cost() -> dict[str, Any]:
    """What the run took until now, in seconds and GiB."""
    took: dict[str, Any] = {"seconds": time.perf_counter() - STARTED, "cpu_seconds": time.process_time()}
    if sys.platform != "win32":
        import resource  # which Windows has not

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        took["peak_memory_gib"] = most / (2**30 if sys.platform == "darwin" else 2**20)
    return took


def seal(folder: Path) -> None:
    """Let ``run.json`` tell the SHA-256 sums of the results beside it, and what the run took unless it says so."""
    path = folder / "run.json"
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        others = sorted(other for other in folder.iterdir() if other != path)
        path.unlink()
        sums = {other.name: sha256(other) for other in others}
        write_run(path, {"took": cost()} | record | {"results_sha256": sums})


def write_run(path: Path, content: dict[str, Any]) -> None:
    """``run.json``: what is needed to get the same result again."""
    plain = json.loads(json.dumps(content), parse_constant=lambda _: None)  # of NaN and infinity, which are no JSON
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
