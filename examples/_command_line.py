"""How a script runs: its prior and sampler, output folder, several processes, progress, exit status."""

import _thread
import argparse
import errno
import gc
import logging
import math
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from _record import named_files, seal
from _streams import bar, outlived_streams
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

import cryofm_io
import cryofm_model
import cryofm_ops
from cryofm_io import CryoFMError, output_folder, write_report
from cryofm_model import CalibratedPrior, ConditionalPrior, Prior, WeightsError, load_prior
from cryofm_sampling import (
    Checkpoint,
    ConditionalVelocityField,
    Guided,
    Inpainting,
    PlugAndPlay,
    Progress,
    Sampler,
    Tiled,
    everyone,
    is_first,
    joined,
)
from cryofm_sampling.runs.memory import Memory

OTHER_FILES = 10 * 2**20  # bytes, of pictures, tables, records and the report
ERRORS = (cryofm_io.CryoFMError, cryofm_ops.CryoFMError, cryofm_model.CryoFMError)


class Written(NamedTuple):
    """Of a restored map that is written: what speaks against it, and the maps for its page, whose making takes many."""

    doubts: tuple[str, ...]
    page: dict[str, Any]


def run_script(
    args: argparse.Namespace, names: list[str], run: Callable[[argparse.Namespace, Path], Written | None]
) -> None:
    """Run with a folder for the files ``names``; nothing appears in the output folder unless everything went well."""
    logging.basicConfig(format="note: %(message)s")
    logging.getLogger("cryofm_io").setLevel(logging.INFO)
    with ExitStack() as stack:
        with together(args.device):
            results = output_folder(args.out, names, overwrite=args.overwrite, read=named_files(args))
            with results if is_first() else TemporaryDirectory() as folder:
                written = run(args, Path(folder))  # of which only this is kept
                gc.collect()  # formulas in pictures leave exceptions, whose frames hold all maps of the run
                if is_first():
                    if written is not None:
                        write_report(Path(folder), **written.page)
                    seal(Path(folder))
                stack.enter_context(signals(signal.SIG_IGN))  # what is left to do takes a moment
            ours, alone = is_first(), everyone() is None
        if ours and (state := checkpoint(args)) is not None:
            state.remove_parts(4 + args.samples)
        if ours:
            print(f"results in {args.out}: {', '.join(names)}")
    if alone and written is not None and written.doubts:  # of several processes torchrun would make a crash of it
        raise DoubtfulError("the results are written, and are not to be trusted (see above)")


@contextmanager
def together(device: str) -> Iterator[None]:
    """Among the processes that torchrun started, if it did, of which the first one speaks; a plan is no failure."""
    planned = None
    with joined(device), silent_unless_first():
        try:
            yield
        except OnlyPlanned as plan:
            planned = plan
    if planned is not None:
        raise planned


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
            with signals(signal.default_int_handler), interrupts_are_heard():
                return main() or 0
        except OnlyPlanned:
            return 0
        except DoubtfulError as error:
            print(f"warning: {error}", file=sys.stderr)
            return 3
        except KeyboardInterrupt:
            goes_on = "; the same line goes on where it was" if "--checkpoint" in sys.argv else ""
            sys.unraisablehook = lambda _: None  # of what libraries were just making
            print(f"interrupted; {left}{goes_on}", file=sys.stderr)
            return 130
        except (*ERRORS, OSError, MemoryError, RuntimeError) as error:
            if (line := one_line(error)) is None:
                raise
            print(f"error: {line}", file=sys.stderr)
            return 2


@contextmanager
def interrupts_are_heard() -> Iterator[None]:
    """One that comes where Python can raise nothing, as while something is freed, comes again a moment later."""
    usual = sys.unraisablehook

    def again(dropped: "sys.UnraisableHookArgs") -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            threading.Timer(0.01, _thread.interrupt_main).start()  # at once it would be dropped, too
        else:
            usual(dropped)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = usual


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


def point_group(name: str) -> NDArray[np.float64]:
    """Rotations of a point group, its main axis along z (of T and I a twofold one), `(G, 3, 3)`."""
    return np.asarray(Rotation.create_group(name).as_matrix())


def of_all_copies(rotations: NDArray[np.float64], group: str) -> Tensor:
    """Rotations `(G K, 3, 3)` of K particles, each taken in all orientations that its point group makes equal."""
    return torch.from_numpy((rotations @ point_group(group)[:, None]).reshape(-1, 3, 3))


def chosen_prior(args: argparse.Namespace) -> Prior:
    """The prior that the command line names, on its device; ``args.precision``, if it is not told, is that device's.

    Where the data are to choose it (`fitting_prior`), the one that most of them take.
    """
    device = choose_device(args.device)
    if args.precision is None:
        args.precision = "bf16" if has_bf16(device) else "fp32"
    return load_prior(args.prior or "cryofm-tiny").to(device)


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
                shown.set_description_str(stage)  # to which tqdm adds the colon
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


def tell_plan(
    args: argparse.Namespace,
    need: Memory,
    disk: str,
    tiled: Tiled,
    shape: tuple[int, ...],
    count: float,
    told: str,
    *,
    gradients: bool = False,
) -> None:
    """Say what a job needs; with ``--dry-run`` how long it takes as well, and that is all.

    Args:
        args: The command line.
        need: Of memory.
        disk: Likewise, of `check_disk`.
        tiled: The prior.
        shape: Of the box on its grid.
        count: Evaluations of the network on all of it, and of its gradients where there are such.
        told: What these are for, in words.
        gradients: Whether there are.
    """
    print(f"needs about {need} of memory, {disk}")
    if args.dry_run:
        seconds = time_of_one(tiled, shape, choose_device(args.device), gradients=gradients)
        ways = ", forward or backward," if gradients else ""
        print(
            f"a grid of {by(shape)} voxels of the prior's; one evaluation of the network on all of it{ways} takes "
            f"about {seconds:.2g} s here and now: {count * seconds / 60:.2g} min for {told}; nothing was written"
        )
        raise OnlyPlanned


def time_of_one(tiled: Tiled, shape: tuple[int, ...], device: torch.device, *, gradients: bool = False) -> float:
    """Seconds that one evaluation of a prior in tiles takes, by one tile; with gradients the mean of both ways."""
    stride = tiled.tile - tiled.overlap
    tiles = math.prod(max(1, math.ceil((n - tiled.overlap) / stride)) for n in shape)
    x, t = torch.zeros((tiled.tile,) * 3, device=device, requires_grad=gradients), torch.tensor(0.5)

    def once() -> float:
        start = time.perf_counter()
        if tiles > 1 or not gradients:  # of several tiles each is evaluated again on the way back
            with torch.no_grad():
                tiled.velocity(x, t)
        if gradients:
            with torch.enable_grad():
                torch.autograd.grad(tiled.velocity(x, t).sum(), x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / (1 + gradients)

    once()  # a first time takes longer
    return tiles * once()


def folder_of(out: Path) -> Path:
    """That folder, or what is there of the way to it."""
    return next(path for path in (out.resolve(), *out.resolve().parents) if path.is_dir())


def by(shape: tuple[int, ...]) -> str:
    """A box as x × y × z."""
    return " × ".join(map(str, reversed(shape)))
