"""Every script killed, starved and interrupted: ``python tests/faults/run.py [--kills 100] [--seed 0]``.

On toy input, each script first runs in peace. Then it is started again and again with ``--overwrite`` and killed
(SIGKILL, SIGTERM, SIGHUP, Ctrl-C) at random moments of its life; run with a full disk (RLIMIT_FSIZE), with little
memory (RLIMIT_AS), with nobody at its standard output, and twice at once. Of each it is asked whether the results in
its folder are whole, the old ones or the new, whether it ended in one line and not in a traceback, and, after a last
run in peace, whether nothing is left behind and the results are those of the first.

Imports take longer than all that a script then does on toy input, so that most runs are forked from a process that has
imported everything; `WITH_IMPORTS` of the kills, and the first run, are of a process as a shell starts it.
"""

import argparse
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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from cryofm_io import DensityMap, write_map
from cryofm_model import CryoFMError, Normalization, Prior, UNet, UNetConfig, load_prior, save_prior
from cryofm_sampling import calibrate

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUIET = {"SIGTERM": 130, "SIGHUP": 130, "SIGINT": 130}
WITH_IMPORTS = 0.05
IMPORTED = ("cryofm_io", "cryofm_model.train", "cryofm_sampling", "matplotlib.pyplot", "mrcfile", "scipy.ndimage")
NEVER_THE_SAME = {"run.json", "log.csv", "report.html"}  # they tell times and speeds
ATOM = "ATOM  {:5d}  CA  ALA A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00 20.00           C\n"
LISTS = ("train.csv", "held_out.csv", "refused.csv")
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
    """

    name: str
    arguments: tuple[str, ...]
    out: Path
    goes_on: bool = False
    file: str = ""

    @property
    def command(self) -> list[str]:
        """What to run."""
        again = [] if self.goes_on else ["--overwrite"]
        return [
            sys.executable,
            str(EXAMPLES / f"{self.name}.py"),
            *self.arguments,
            "--out",
            str(self.out / self.file),
            *again,
        ]


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

    def script(name: str, *arguments: str, goes_on: bool = False, file: str = "") -> Script:
        return Script(name, arguments, folder / f"out-{name}", goes_on, file)

    return [
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
        script("simulate_maps", *models, "--variants", "1", goes_on=True),
        script("whole_particles", *halves, "--orientations", "1", goes_on=True),
        script("curate_emdb", *(str(folder / f"emd-{k}.xml") for k in range(3)), "--hold-out", "1"),
        script(
            *("calibrate_prior", str(prior), "--maps", str(folder / "model0.pdb")),
            *("--number", "2", "--side", "16"),
            file="calibrated.safetensors",
        ),
        script(
            *("train_prior", str(folder / "recipe.toml"), "--maps", str(folder / "maps")),
            *("--validation", str(folder / "kept-back")),
            goes_on=True,
        ),
    ]


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
        for path in script.out.glob("*.mrc"):
            if path.stat().st_size < 1024:
                return f"{path.name} is cut off"
        return ""
    if script.file:
        path = script.out / script.file
        return "" if not path.exists() or readable(path) else f"{path.name} is not whole"
    if script.name == "curate_emdb":
        there = [name for name in contents(script.out) if "/" not in name]
        whole = len(there) in (0, len(LISTS)) or list(script.out.glob(".whole-*"))
        return "" if whole else f"of {LISTS} there are {there}"
    if not record.exists():
        left = [name for name in contents(script.out) if "/" not in name]
        return f"{left} without run.json" if left and not list(script.out.glob(".whole-*")) else ""
    sums = json.loads(record.read_text())["results_sha256"]
    found = contents(script.out)
    wrong = [name for name, value in sums.items() if found.get(name) != value]
    return f"{wrong} are not those of run.json" if wrong else ""


def readable(path: Path) -> bool:
    """Whether it is a prior."""
    try:
        load_prior(path)
    except CryoFMError:
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
    sys.argv = arguments
    sys.path.insert(0, str(EXAMPLES))
    runpy.run_path(arguments[0], run_name="__main__")


def closed_pipe() -> int:
    """The end of a pipe at which nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return write


class Session:
    """Runs of the scripts, and what was wrong with them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.faults, self.done = folder, random.Random(seed), list[str](), Counter[str]()

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
        """Seconds that it takes."""
        begun = time.monotonic()
        status, said = self.run(script, imports=imports)
        if status not in (0, 3) or (fault := whole(script)):
            self.wrong(script, f"in peace it ends with {status}, {fault if status in (0, 3) else ''}", said)
        return time.monotonic() - begun

    def check(self, script: Script, status: int, said: str, expected: set[int], what: str) -> None:
        """Of a run that came to its end, one way or the other."""
        self.done[what] += 1
        if "Traceback" in said:
            self.wrong(script, f"{what}: a traceback", said)
        if status not in expected:
            self.wrong(script, f"{what}: status {status}", said)
        if fault := whole(script):
            self.wrong(script, f"{what}: {fault}", said)
        if status >= 0 and (left := hidden(script.out) if script.out.exists() else []):
            self.wrong(script, f"{what}: it leaves {left}", said)

    def kill(self, script: Script, lasts: tuple[float, float]) -> None:
        """At a random moment, by a random signal, which goes to all its processes if it is Ctrl-C."""
        name = self.rng.choice(("SIGKILL", "SIGKILL", "SIGTERM", "SIGHUP", "SIGINT"))
        imports = self.rng.random() < WITH_IMPORTS
        process = self.start(script, imports=imports)
        time.sleep(self.rng.uniform(0.05, lasts[imports]))
        number = getattr(signal, name)
        if process.alive():
            try:
                os.killpg(process.pid, number) if name == "SIGINT" else os.kill(process.pid, number)
            except ProcessLookupError:  # it has just ended
                name = "too late"
        status, said = process.ended()
        expected = {0, 3, -number, *([130] if name in QUIET else [])}
        self.check(script, status, said, expected, name)

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
            self.check(script, status, said, {0, 3}, "dead streams")

    def twice(self, script: Script) -> None:
        """Two at once: one is refused, by the number of the other, unless that has ended, or each writes one file."""
        both = [self.start(script) for _ in range(2)]
        ended = [process.ended() for process in both]
        states = sorted(status for status, _ in ended)
        self.done["two at once"] += 2
        if states[0] not in (0, 2, 3) or states == [2, 2] or (script.file and states != [0, 0]):
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


def tortured(session: Session, script: Script, kills: int) -> None:
    """All that can happen to one script."""
    lasts = session.in_peace(script), session.in_peace(script, imports=True)
    before = contents(script.out)
    for _ in range(kills):
        if script.goes_on and session.rng.random() < 0.5:  # begin anew
            shutil.rmtree(script.out, ignore_errors=True)
        session.kill(script, lasts)
    for _ in range(max(1, kills // 10)):
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


def main() -> int:
    """Torture all scripts, and say by the status whether anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each script (default 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="scripts")
    args = parser.parse_args()
    begun = time.monotonic()
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(IMPORTED))
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "work")
        folder.mkdir()
        session = Session(folder, args.seed)
        chosen = [script for script in scripts(folder) if args.only is None or script.name in args.only]
        for script in chosen:
            tortured(session, script, args.kills)
            print(
                f"{script.name:18}{len(session.faults):4} faults so far, {time.monotonic() - begun:.0f} s", flush=True
            )
    print(json.dumps({"seed": args.seed, "runs": session.done, "faults": session.faults}))
    return int(bool(session.faults))


if __name__ == "__main__":
    sys.exit(main())
