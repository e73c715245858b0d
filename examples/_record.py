"""What a run leaves of itself: run.json, the sums of what it read and wrote, and what it took."""

import argparse
import hashlib
import json
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import cryofm_model
from cryofm_io import atomic_write

STARTED = time.perf_counter()


def prior_file(name: str | None) -> Path | None:
    """Where the weights of a prior are, unless it is a bundled one, which the version of its package tells."""
    if name is None or name in cryofm_model.BUNDLED_PRIORS:
        return None
    return Path(name) / "model.safetensors" if Path(name).is_dir() else Path(name)


def named_files(args: argparse.Namespace) -> list[Path]:
    """Those that the command line names, the prior's among them."""
    values = [v for value in vars(args).values() for v in (value if isinstance(value, list) else [value])]
    return [path for path in (*values, prior_file(vars(args).get("prior"))) if isinstance(path, Path)]


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
