"""Every script killed, starved and interrupted: ``python tests/faults/run.py [--kills 100] [--seed 0] [--out CSV]``.

On toy input, each script first runs in peace. Then it is started again and again with ``--overwrite`` and killed
(SIGKILL, SIGTERM, SIGHUP, Ctrl-C): half of the times at a random moment of its life, half of them at a random one of
the moments at which it opens a file for writing, renames or removes one, which are few and the dangerous ones. It is
run with a full disk (RLIMIT_FSIZE), with little memory (RLIMIT_AS), with nobody at its standard output, and twice at
once. Of each it is asked whether the results in its folder are whole, the old ones or the new, whether it ended in one
line and not in a traceback, and, after a last run in peace, whether nothing is left behind and the results are those of
the first. Without ``--kills`` all scripts share ``--minutes``; rows of ``--out`` are not done again.

Imports take longer than all that a script then does on toy input, so that most runs are forked from a process that has
imported everything; `WITH_IMPORTS` of the kills, and the first run, are of a process as a shell starts it.
"""

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from cryofm_io import (
    DensityMap,
    ImageCtf,
    ImageStack,
    Poses,
    read_map,
    read_reconstruction_sums,
    write_map,
    write_poses,
)
from cryofm_model import (
    ConditionalPrior,
    Normalization,
    Prior,
    UNet,
    UNet3D,
    UNet3DConfig,
    UNetConfig,
    load_prior,
    save_prior,
)
from cryofm_sampling import calibrate

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUIET = {"SIGTERM": 130, "SIGHUP": 130, "SIGINT": 130}
WITH_IMPORTS = 0.02
IMPORTED = ("cryofm_io", "cryofm_model.train", "cryofm_sampling", "matplotlib.pyplot", "mrcfile", "scipy.ndimage")
IMPORTED += ("jinja2", "scipy.optimize", "torch._dynamo")  # the last for torch's optimisers
WRITING = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
NEVER_THE_SAME = {"run.json", "log.csv", "report.html"}  # they tell times and speeds
ATOM = "ATOM  {:5d}  CA  ALA A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00 20.00           C\n"
LISTS = ("train.csv", "held_out.csv", "refused.csv")
FSC = ("fsc.csv", "fsc.png", "fsc.xml", "fsc.star", "report.html")
HEADER = """<emd emdb_id="{}" version="3.0"><admin><current_status><code>REL</code></current_status></admin>
<structure_determination_list><structure_determination><method>singleParticle</method>
<aggregation_state>particle</aggregation_state><processing><final_reconstruction><resolution>2.7</resolution>
</final_reconstruction></processing></structure_determination></structure_determination_list>
<map><cell><a>270</a><b>270</b><c>270</c></cell></map>
<interpretation><half_map_list><half_map/><half_map/></half_map_list></interpretation></emd>
"""
RECIPE = """voxel_size = 1.5
box = 32
[network]
kind = "unet"
widths = [8, 16]
depths = [1, 1]
up_depths = [1]
conditioning = 8
[training]
crops = 2
stages = [[1.0, 16, 4]]
lr = 1e-3
ema = 0.5
report_every = 2
"""


@attrs.frozen
class Script:
    """A script, its command line but for ``--out``, and its folder of results.

    Attributes:
        name: of the script.
        arguments: all but ``--out``.
        out: where results go.
        goes_on: of one that keeps what it has made: it is started without ``--overwrite``.
        file: the one that is written, where ``--out`` is no folder.
        without_record: the files of one that leaves no ``run.json``: there are all or none.
        no_out: of one that has no ``--out``.
        fine: status of a run in peace.
    """

    name: str
    arguments: tuple[str, ...]
    out: Path
    goes_on: bool = False
    file: str = ""
    without_record: tuple[str, ...] = ()
    no_out: bool = False
    fine: tuple[int, ...] = (0, 3)

    @property
    def command(self) -> list[str]:
        """What to run."""
        line = [sys.executable, str(EXAMPLES / f"{self.name}.py"), *self.arguments]
        if self.no_out:
            return line
        return [*line, "--out", str(self.out / self.file), *([] if self.goes_on else ["--overwrite"])]


def scripts(folder: Path) -> list[Script]:
    """All of them, on toy input in that folder."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), -1)
    density = sum(np.exp(-((grid - c) ** 2).sum(-1) / 4) for c in rng.uniform(5, 11, (8, 3)))
    for name in ("half1", "half2"):
        write_map(folder / f"{name}.mrc", DensityMap(density + rng.normal(0, 0.1, density.shape), 1.5))
    views = np.stack([density.sum(axis) for axis in (0, 1, 2)] * 2) + rng.normal(0, 0.1, (6, 16, 16))
    write_map(folder / "views.mrcs", DensityMap(views, 5.0))
    for k in range(3):
        atoms = rng.uniform(-8, 8, (300, 3))
        text = "".join(ATOM.format(i, i, *xyz) for i, xyz in enumerate(atoms, 1))
        (folder / f"model{k}.pdb").write_text(text + "END\n")
    for name in ("maps", "kept-back"):
        (folder / name).mkdir()
        (folder / name / "model.pdb").write_text((folder / "model0.pdb").read_text())
    (folder / "recipe.toml").write_text(RECIPE)
    torch.manual_seed(0)
    network = UNet(UNetConfig(widths=(8, 16), depths=(1, 1), up_depths=(1,), conditioning=8)).eval()
    generator = torch.Generator().manual_seed(0)
    examples = torch.randn(2, 16, 16, 16, generator=generator)
    measured = calibrate(lambda x, t: network(x, t), examples, generator=generator, times=(0.1, 0.5, 0.9))
    prior = folder / "prior.safetensors"
    save_prior(Prior(network, Normalization(), 1.5, 16).with_statistics(measured), prior)

    halves = (str(folder / "half1.mrc"), str(folder / "half2.mrc"))
    models = tuple(str(folder / f"model{k}.pdb") for k in range(3))
    few, state = ("--prior", str(prior), "--steps", "2"), ("--checkpoint", str(folder / "state"))
    known = ("--scale", "1", "--b-factor", "0")
    wedge = ("--tilt-min", "-60", "--tilt-max", "60")

    header = HEADER.format
    for k in range(3):
        (folder / f"emd-{k}.xml").write_text(header(f"EMD-{1000 + k}"))

    def script(name: str, *arguments: str, **others: Any) -> Script:
        return Script(name, arguments, folder / f"out-{name}", **others)

    enhancer, images, sums = conditional_prior(folder), particles(folder, density), relion_job(folder, density)
    relion = Script("relion_reconstruct", (*few, *known, str(sums)), sums.parent, file=f"{sums.stem}.mrc", no_out=True)
    return [
        script("inspect_map", *halves, "--prior", str(prior), no_out=True, fine=(0, 1)),
        script("mask", *halves, file="mask.mrc"),
        script("score", *halves, "--truth", halves[0], file="scores.csv"),
        script("fsc", *halves, without_record=FSC),
        script("simulate_maps", *models, "--variants", "1", goes_on=True),
        script("whole_particles", *halves, "--orientations", "1", goes_on=True),
        script(
            *("curate_emdb", *(str(folder / f"emd-{k}.xml") for k in range(3)), "--hold-out", "1"),
            without_record=LISTS,
        ),
        script(
            *("calibrate_prior", str(prior), "--maps", str(folder / "model0.pdb")),
            *("--number", "2", "--side", "16"),
            file="calibrated.safetensors",
        ),
        relion,
        script("particles", str(images), "--mask-diameter", "20", *few),
        script("enhance", halves[0], *few[2:], "--prior", str(enhancer)),
        script("denoise", *halves, *few, *known, "--samples", "2", *state),
        script("missing_wedge", halves[0], "--half2", halves[1], *wedge, *few, *known),
        script("anisotropic", *halves, *few, *known, "--half-angle-deg", "40"),
        script(
            *("large_map", *halves, *few, *known),
            *("--state", str(folder / "blocks")),
        ),
        script("custom_operator", *few),
        script("sample_prior", "--number", "2", "--side", "16", *few),
        script("likelihood", halves[0], "--normalise", "--side", "16", "--probes", "1", *few),
        script("abinitio", str(folder / "views.mrcs"), "--mask-diameter", "60", "--tries", "1", "--keep", "1", *few),
        script(
            *("train_prior", str(folder / "recipe.toml"), "--maps", str(folder / "maps")),
            *("--validation", str(folder / "kept-back")),
            goes_on=True,
        ),
    ]


def conditional_prior(folder: Path) -> Path:
    """One that may be shown a map."""
    config = UNet3DConfig(widths=(8, 16), depths=(1, 1), attention=(1,), conditions=2, tags=2, conditioning=8, groups=4)
    prior = ConditionalPrior(UNet3D(config).eval(), Normalization(clip=False), 1.5, 16, tag=1, weight=0.5)
    save_prior(prior, folder / "enhancer.safetensors")
    return folder / "enhancer.safetensors"


def particles(folder: Path, density: Any) -> Path:
    """A STAR file of 60 images from a quarter of a circle, and their stack."""
    rng = np.random.default_rng(1)
    turns = rng.integers(0, 4, 60)
    views = np.stack([np.rot90(density, k, (0, 2)).sum(0) for k in turns]) + rng.normal(0, 0.5, (60, 16, 16))
    write_map(folder / "images.mrcs", DensityMap(views, 1.5))
    angles = np.stack([0 * turns, 90.0 * turns, 0 * turns], -1)
    fields = (value * np.ones(60) for value in (8000, 8000, 0, 300, 2.7, 0.1, 0))
    stack = ImageStack(views, 1.5, [f"{k + 1}@images.mrcs" for k in range(60)], ImageCtf(*fields))
    write_poses(folder / "images.star", stack, Poses.from_angles(angles, np.zeros((60, 2))))
    return folder / "images.star"


def relion_job(folder: Path, density: Any) -> Path:
    """Sums as RELION leaves them, and a program that has made a map of them already and moves it into place."""
    name, box, padded = "run_it003_half1_class001_external_reconstruct", 16, 32
    job, tools = folder / "out-relion_reconstruct", folder / "bin"
    job.mkdir()
    tools.mkdir()
    spectrum = np.fft.rfftn(np.fft.ifftshift(np.pad(density, box // 2))) / box**2
    k = np.fft.fftfreq(padded) * padded
    weight = 50.0 * (k[:, None, None] ** 2 + k[:, None] ** 2 + k[: box + 1] ** 2 <= box**2)
    parts = {"DataReal": spectrum.real * weight, "DataImag": spectrum.imag * weight, "Weight": weight}
    lines = [f"_rlnExtRecons{part} {job / part}.mrc" for part in parts] + [f"_rlnExtReconsResult {job / name}.mrc"]
    lines += ["_rlnTau2FudgeFactor 1", "_rlnPaddingFactor 2", "_rlnReferenceDimensionality 3"]
    lines += [f"_rlnOriginalImageSize {box}", f"_rlnCurrentImageSize {box}", f"_rlnPixelSize {24 / box}"]
    rows = [f"{i} 1.0 {0.9 if i < 7 else 0.1}" for i in range(box // 2 + 1)]
    columns = ["_rlnSpectralIndex #1", "_rlnReferenceTau2 #2", "_rlnGoldStandardFsc #3"]
    for part, array in parts.items():
        write_map(job / f"{part}.mrc", DensityMap(array, 1.0))
    text = ["data_external_reconstruct_general", *lines, "data_external_reconstruct_tau2", "loop_", *columns, *rows]
    star = job / f"{name}.star"
    star.write_text("\n".join(text) + "\n")
    write_map(folder / "own.mrc", DensityMap(read_reconstruction_sums(star).map(), 24 / box))
    program = tools / "relion_external_reconstruct"
    made, out = folder / "own", job / f"{name}.mrc"
    program.write_text(f"#!/bin/sh\ncp {made}.mrc {made}-$$ && mv {made}-$$ {out} || exit 1\n")
    program.chmod(0o755)
    os.environ["PATH"] = f"{tools}:{os.environ['PATH']}"
    return star


def contents(out: Path) -> dict[str, str]:
    """The sums of all files in a folder that are not hidden."""
    found = sorted(path for path in out.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def hidden(folder: Path) -> list[str]:
    """What is half-written, locked or kept for the next start."""
    found = (path for path in folder.rglob(".*") if ".hypothesis" not in path.parts)  # which that library leaves
    return sorted(str(path.relative_to(folder)) for path in found)


def whole(script: Script) -> str:
    """What is wrong with the results in a folder; nothing where they are whole or not there."""
    record = script.out / "run.json"
    if script.goes_on:
        for path in script.out.glob("[!.]*.mrc"):
            if path.stat().st_size < 1024:
                return f"{path.name} is cut off"
        return ""
    if script.file:
        path = script.out / script.file
        return "" if not path.exists() or readable(path) else f"{path.name} is not whole"
    if script.without_record:
        there = [name for name in contents(script.out) if "/" not in name]
        whole = len(there) in (0, len(script.without_record)) or list(script.out.glob(".whole-*"))
        return "" if whole else f"of {script.without_record} there are {there}"
    if not record.exists():
        left = [name for name in contents(script.out) if "/" not in name]
        return f"{left} without run.json" if left and not list(script.out.glob(".whole-*")) else ""
    sums = json.loads(record.read_text())["results_sha256"]
    found = contents(script.out)
    wrong = [name for name, value in sums.items() if found.get(name) != value]
    return f"{wrong} are not those of run.json" if wrong else ""


def readable(path: Path) -> bool:
    """Whether it is a whole prior, map or table."""
    try:
        if path.suffix == ".csv":
            return len(path.read_text().splitlines()) == 3
        {".safetensors": load_prior, ".mrc": read_map}[path.suffix](path)
    except ValueError:
        return False
    return True


class AsAShell:
    """A process that imports what it needs."""

    def __init__(self, command: list[str], folder: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(
            command, text=True, env=environment, cwd=folder, start_new_session=True, **pipes
        )
        self.pid = self.process.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def ended(self) -> tuple[int, str]:
        """Its status, less than 0 for a signal, and what it said, when it has ended."""
        _, said = self.process.communicate()
        return self.process.returncode, said


class Forked:
    """A process that has imported everything."""

    def __init__(self, command: list[str], folder: Path, how: dict[str, Any]) -> None:
        context = multiprocessing.get_context("forkserver")
        self.said, errors = context.Pipe(duplex=False)  # which no limit of files concerns
        self.process = context.Process(target=forked, args=(command[1:], folder, errors, how))
        self.process.start()
        errors.close()
        assert self.process.pid is not None
        self.pid = self.process.pid
        while self.alive() and os.getpgid(self.pid) != self.pid:  # until it is in a session of its own
            time.sleep(0.001)

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.is_alive()

    def ended(self) -> tuple[int, str]:
        """As that of `AsAShell`."""
        with open(self.said.fileno(), "rb", closefd=False) as stream:
            said = stream.read().decode(errors="replace")
        self.said.close()
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode, said


Started = AsAShell | Forked


def forked(arguments: list[str], folder: Path, errors: Connection, how: dict[str, Any]) -> None:
    """Be the script: ``how`` names its limits, and what stands for its streams."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as `_first` does, before anything is imported
    os.setsid()
    os.chdir(folder)
    name = how.get("stdout", os.devnull)
    os.dup2(closed_pipe() if name is None else os.open(name, os.O_WRONLY), 1)
    os.dup2(os.open(how["stderr"], os.O_WRONLY) if "stderr" in how else errors.fileno(), 2)
    errors.close()
    for stream, fd in (("stdout", 1), ("stderr", 2)):
        setattr(sys, stream, open(fd, "w", closefd=False))  # noqa: SIM115
        setattr(sys, f"__{stream}__", getattr(sys, stream))
    for name, most in how.get("limits", {}).items():
        resource.setrlimit(getattr(resource, name), (most, most if name == "RLIMIT_AS" else resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    if "write" in how or "writes" in how:
        sys.addaudithook(Writes(folder, **{name: how[name] for name in ("write", "writes", "number") if name in how}))
    sys.argv = arguments
    sys.path.insert(0, str(EXAMPLES))
    runpy.run_path(arguments[0], run_name="__main__")


class Writes:
    """Counts in a file what a process does to others within a folder, or ends it by a signal at one of these."""

    def __init__(self, folder: Path, write: int = 0, number: int = 0, writes: Path | None = None) -> None:
        self.folder, self.left, self.number, self.pid = str(folder), write, number, os.getpid()
        self.count = -1 if writes is None else os.open(writes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """As `sys.addaudithook` has it: before it is done."""
        if event not in WRITING or not str(arguments[0]).startswith(self.folder):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if self.count >= 0:
            os.write(self.count, b".")
        self.left -= 1
        if self.left == 0:
            if self.number == signal.SIGINT:
                os.killpg(self.pid, self.number)
            else:  # of a worker, it alone
                os.kill(os.getpid(), self.number)


def closed_pipe() -> int:
    """The end of a pipe at which nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return write


class Session:
    """Runs of the scripts, and what was wrong with them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.faults, self.done = folder, random.Random(seed), list[str](), Counter[str]()
        self.left = set[str]()

    def wrong(self, script: Script, what: str, said: str = "") -> None:
        """Note it."""
        self.faults.append(f"{script.name}: {what}")
        print(f"{script.name}: {what}\n{said[-1500:]}", file=sys.stderr, flush=True)

    def start(self, script: Script, how: dict[str, Any] | None = None, *, imports: bool = False) -> "Started":
        """One process and its children, as a shell would start them, or with everything imported already."""
        if imports:
            return AsAShell(script.command, self.folder)
        return Forked(script.command, self.folder, how or {})

    def run(self, script: Script, how: dict[str, Any] | None = None, *, imports: bool = False) -> tuple[int, str]:
        """To its end."""
        return self.start(script, how, imports=imports).ended()

    def in_peace(self, script: Script, *, imports: bool = False) -> float:
        """Seconds that it takes, without the fork, which comes before a moment can be chosen."""
        process = self.start(script, {"writes": self.folder.parent / "writes"}, imports=imports)
        begun = time.monotonic()
        status, said = process.ended()
        lasted = time.monotonic() - begun
        if status not in script.fine or (fault := whole(script)):
            self.wrong(script, f"in peace it ends with {status}, {fault if status in script.fine else ''}", said)
        return lasted

    def check(
        self, script: Script, status: int, said: str, expected: set[int], what: str, workers_end: Sequence[int] = ()
    ) -> None:
        """Of a run that came to its end, one way or the other; what a worker that is killed leaves, the next sweeps."""
        self.done[what] += 1
        if "Traceback" in said:
            self.wrong(script, f"{what}: a traceback", said)
        if status not in expected:
            self.wrong(script, f"{what}: status {status}", said)
        if fault := whole(script):
            self.wrong(script, f"{what}: {fault}", said)
        left = set(hidden(script.out)) if script.out.exists() else set[str]()
        if status >= 0 and (new := left - self.left) and status not in workers_end:
            self.wrong(script, f"{what}: it leaves {sorted(new)}", said)
        self.left = left

    def kill(self, script: Script, lasts: tuple[float, float]) -> bool:
        """At a random moment, by a random signal, which goes to all its processes if it is Ctrl-C; False: too late."""
        name = self.rng.choice(("SIGKILL", "SIGKILL", "SIGTERM", "SIGHUP", "SIGINT"))
        number = getattr(signal, name)
        writes = (self.folder.parent / "writes").stat().st_size
        at_a_write = bool(writes) and self.rng.random() < 0.5
        if at_a_write:
            process = self.start(script, {"write": self.rng.randint(1, writes), "number": number})
        else:
            imports = self.rng.random() < WITH_IMPORTS
            process = self.start(script, imports=imports)
            moment = time.monotonic() + self.rng.uniform(0.02, lasts[imports])
            while process.alive() and time.monotonic() < moment:
                time.sleep(0.01)
            if process.alive():
                try:
                    os.killpg(process.pid, number) if name == "SIGINT" else os.kill(process.pid, number)
                except ProcessLookupError:  # it has just ended
                    name = "too late"
            else:
                name = "too late"
        status, said = process.ended()
        expected = {*script.fine, -number, *([130] if name in QUIET else [])}
        if at_a_write and script.goes_on:  # every worker dies at that write, and each of its items is named
            expected.add(1)
        self.check(script, status, said, expected, name, script.fine if at_a_write else ())
        return name != "too late"

    def full_disk(self, script: Script) -> None:
        """No file may be longer than so many bytes."""
        room = self.rng.choice((0, 512, 2000, 5000, 20000))
        status, said = self.run(script, {"limits": {"RLIMIT_FSIZE": room}})
        self.check(script, status, said, {0, 1, 2, 3}, "full disk")
        if status == 2 and sum(line.startswith("error:") for line in said.splitlines()) != 1:
            self.wrong(script, "full disk: no error of one line", said)

    def little_memory(self, script: Script) -> None:
        """So much address space and no more."""
        most = int(self.rng.uniform(1.0, 2.5) * 2**30)
        status, said = self.run(script, {"limits": {"RLIMIT_AS": most}})
        self.check(script, status, said, {0, 1, 2, 3}, "little memory")

    def nobody_listens(self, script: Script) -> None:
        """Standard output is a pipe that was closed, or a full device."""
        for how in ({"stdout": None}, {"stdout": "/dev/full"}, {"stdout": "/dev/full", "stderr": "/dev/full"}):
            status, said = self.run(script, how)
            self.check(script, status, said, set(script.fine), "dead streams")

    def twice(self, script: Script) -> None:
        """Two at once: one is refused, by the number of the other, unless that has ended, or each writes one file."""
        both = [self.start(script) for _ in range(2)]
        ended = [process.ended() for process in both]
        states = sorted(status for status, _ in ended)
        self.done["two at once"] += 2
        refused = () if script.file or script.no_out else (2,)
        if states == [2, 2] or any(status not in (*refused, *script.fine) for status in states):
            self.wrong(script, f"two at once: {states}", "\n".join(said for _, said in ended))
        for status, said in ended:
            if status == 2 and not any(f"is in use by process {process.pid} on" in said for process in both):
                self.wrong(script, "two at once: the other is not named", said)
        if fault := whole(script):
            self.wrong(script, f"two at once: {fault}")


def differences(script: Script, before: dict[str, str]) -> list[str]:
    """Results that are not those of the run in peace."""
    now = contents(script.out)
    names = {name for name in before.keys() | now.keys() if name.split("/")[0] not in NEVER_THE_SAME}
    return sorted(name for name in names if before.get(name) != now.get(name))


def tortured(session: Session, script: Script, kills: int | None, seconds: float) -> int:
    """All that can happen to one script, with so many kills, or for about so long; the number of kills."""
    end, rng = time.monotonic() + seconds, session.rng
    order = (False, True) if script.goes_on else (True, False)  # the run that tells of writes does as much as others
    took = {imports: session.in_peace(script, imports=imports) for imports in order}
    lasts = took[False], took[True]
    before, killed = contents(script.out), 0
    while killed < kills if kills is not None else not killed or time.monotonic() < end - 12 * lasts[0]:
        if script.goes_on and rng.random() < 0.5:  # begin anew
            shutil.rmtree(script.out, ignore_errors=True)
        killed += session.kill(script, lasts)
    for _ in range(max(1, killed // 10)):
        if script.goes_on:
            shutil.rmtree(script.out, ignore_errors=True)
        session.full_disk(script)
        session.little_memory(script)
    session.nobody_listens(script)
    session.twice(script)
    session.in_peace(script)
    time.sleep(1)  # processes whose parent was killed look after it twice a second
    if left := hidden(session.folder):
        session.wrong(script, f"left behind: {left}")
    if changed := differences(script, before):
        session.wrong(script, f"other results than in peace: {changed}")
    return killed


def main() -> int:
    """Torture all scripts, and say by the status whether anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, help="of each script (default as many as there is time for)")
    parser.add_argument("--minutes", type=float, default=5.0, help="for all scripts, without --kills (default 5)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="scripts")
    parser.add_argument("--out", type=Path, help="CSV; rows are added")
    args = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(IMPORTED))
    os.environ["OMP_NUM_THREADS"] = "1"
    rows: list[dict[str, Any]] = []
    if args.out is not None and args.out.exists():
        with args.out.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    faults = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "work")
        folder.mkdir()
        chosen = [script for script in scripts(folder) if args.only is None or script.name in args.only]
        chosen = [script for script in chosen if script.name not in {row["script"] for row in rows}]
        first = multiprocessing.get_context("forkserver").Process(target=os.getpid)
        first.start()  # the server, whose imports are not to be counted
        first.join()
        for script in chosen:
            begun, session = time.monotonic(), Session(folder, args.seed)
            kills = tortured(session, script, args.kills, 60 * args.minutes / len(chosen))
            faults += len(session.faults)
            row = {"script": script.name, "kills": kills, "other_runs": sum(session.done.values()) - kills}
            row |= {"seed": args.seed, "faults": len(session.faults), "seconds": round(time.monotonic() - begun)}
            print(json.dumps(row | {"runs": session.done, "what": session.faults}), flush=True)
            rows.append(row)
            if args.out is not None:
                with args.out.open("w", newline="", encoding="utf-8") as file:
                    table = csv.DictWriter(file, list(row))
                    table.writeheader()
                    table.writerows(rows)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
