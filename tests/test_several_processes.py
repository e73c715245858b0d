"""Scripts that torchrun starts: several processes leave what one does, once, and fail as one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from cryofm_model import Prior, load_prior, save_prior

EXAMPLES = Path(__file__).parents[1] / "examples"
MAPS = ("restored.mrc", "sample_01.mrc", "sample_02.mrc", "uncertainty.mrc")
SETTINGS = ("--steps", "2", "--samples", "2", "--scale", "0.5", "--b-factor", "0")
DENOISE = """
import os, signal, sys
import attrs, denoise
from cryofm_io import CryoFMError
from _command_line import exit_code
from cryofm_sampling import Checkpoint, Rescaled

def fails(self, x, t, /, call=Rescaled.__call__, calls=[]):
    calls.append(t)
    if len(calls) == 20 and os.environ["RANK"] == "1":
        FAILURE
    return call(self, x, t)

Rescaled.__call__ = fails
Checkpoint.part = lambda self, k, part=Checkpoint.part: attrs.evolve(part(self, k), every_seconds=0)
sys.exit(exit_code(denoise.main))
"""

pytestmark = pytest.mark.skipif(not dist.is_available() or sys.platform == "win32", reason="needs gloo")


@pytest.fixture
def torchrun(tmp_path, half_maps, small_prior, monkeypatch):
    """denoise.py in two processes, the second of which may fail at its 20th evaluation."""
    monkeypatch.setenv("PYTHONPATH", f"{EXAMPLES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def torchrun(*arguments, failure="pass", prior=small_prior):
        job = tmp_path / "job.py"
        job.write_text(DENOISE.replace("FAILURE", failure))
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", job]
        line += [*half_maps, *SETTINGS, "--prior", prior, *arguments]
        return subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=300)

    return torchrun


@pytest.mark.parametrize(("box", "killed"), [(16, True), (32, False)])
def test_two_processes_leave_what_one_does(torchrun, run, half_maps, small_prior, tmp_path, box, killed):
    """They share tiles where there are several, otherwise restorations and samples; and go on after a kill."""
    known, prior = load_prior(small_prior), tmp_path / "prior.safetensors"
    save_prior(Prior(known.network, known.normalization, known.voxel_size, box).with_statistics(known), prior)
    assert run(*half_maps, *SETTINGS, "--out", tmp_path / "one", prior=prior) == 0
    line = ("--out", tmp_path / "two", "--checkpoint", tmp_path / "state")
    if killed:
        assert torchrun(*line, prior=prior, failure="os.kill(os.getpid(), signal.SIGKILL)").returncode != 0
        assert list(tmp_path.glob("state-*"))
    done = torchrun(*line, prior=prior)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results in") == done.stdout.count("restored by") == 1
    for name in MAPS:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert not list(tmp_path.glob("state*"))


@pytest.mark.parametrize("only_one", [False, True])
def test_they_fail_with_one_message(torchrun, tmp_path, only_one):
    if only_one:
        failed, said = torchrun("--out", tmp_path / "out", failure="raise CryoFMError('a bad disk')"), "a bad disk"
    else:
        failed, said = torchrun("--out", tmp_path / "out", "--mask", "none.mrc"), "none.mrc"
    assert failed.returncode != 0
    (message,) = [line for line in failed.stderr.splitlines() if line.startswith(("error", "interrupted"))]
    assert said in message
    assert {path.name for path in tmp_path.iterdir()} == {"job.py"}
