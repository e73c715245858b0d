"""What goes on about a script does not cost its results: dead streams, signals, full disks, little memory."""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

from cryofm_io import CryoFMError, DensityMap, read_map, write_map

script = pytest.importorskip("_command_line")
records = pytest.importorskip("_record")
streams = pytest.importorskip("_streams")
many = pytest.importorskip("_many")
results = pytest.importorskip("_results")
denoise = pytest.importorskip("denoise")
EXAMPLES = Path(script.__file__).parent
unix = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signals here")


class Dead(io.StringIO):
    """A stream that nobody reads, or whose disk is full."""

    def write(self, text):
        raise OSError(errno.EPIPE, "Broken pipe")

    def flush(self):
        raise OSError(errno.EPIPE, "Broken pipe")

    fileno = flush


def test_a_dead_stdout_costs_nothing(run, half_maps, tmp_path, monkeypatch, scale_given):
    monkeypatch.setattr("sys.stdout", Dead())
    monkeypatch.setattr("sys.stderr", Dead())
    assert run(*half_maps, "--out", tmp_path / "out", "--steps", 2) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "out").iterdir()}
    del sums["run.json"]
    assert record["results_sha256"] == sums


@unix
def test_a_closed_pipe_and_a_full_device_are_no_errors_at_the_end(tmp_path):
    program = (
        "import sys; from _streams import outlived_streams\n"
        "with outlived_streams():\n    print('x' * 100000)\n    print('Å', file=sys.stderr)"
    )
    read, write = os.pipe()
    os.close(read)
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES), "PYTHONIOENCODING": "ascii"}
    with open(os.devnull if not Path("/dev/full").exists() else "/dev/full", "w") as full:
        for stdout, stderr in ((write, subprocess.PIPE), (full, full)):
            command = [sys.executable, "-c", program]
            done = subprocess.run(command, stdout=stdout, stderr=stderr, env=environment, check=False)
            assert done.returncode == 0
            assert not done.stderr or done.stderr.strip() == rb"\xc5"
    os.close(write)


@unix
def test_ctrl_c_while_everything_is_imported_is_no_traceback():
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / "denoise.py", "--help"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while "libtorch" not in _maps(process.pid) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert said == b""
    assert process.returncode in (-signal.SIGINT, 0)


def _maps(pid):
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


@unix
def test_hanging_up_is_as_ctrl_c_unless_it_is_ignored(capsys):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever started the tests

    def main():
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.01)

    assert script.exit_code(main) == 130
    assert "interrupted; no results were written" in capsys.readouterr().err
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        assert script.exit_code(main) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_not_installed_is_one_line(tmp_path):
    (tmp_path / "some.py").write_text("import _first\nimport torch")
    (tmp_path / "_first.py").write_text(
        (EXAMPLES / "_first.py").read_text().replace('"torch", ', '"torch", "no_such_module", ')
    )
    done = subprocess.run([sys.executable, tmp_path / "some.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: not installed: no-such-module; python -m pip install ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("said", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_wait_asleep_unless_the_user_says_otherwise(tmp_path, said, spins):
    (tmp_path / "some.py").write_text("import _first, os\nprint(os.environ.get('GOMP_SPINCOUNT'))")
    shutil.copy(EXAMPLES / "_first.py", tmp_path)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))} | said
    done = subprocess.run(
        [sys.executable, tmp_path / "some.py"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == str(spins), done.stderr


def test_a_log_file_gets_one_line_a_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with streams.bar(total=100, unit=" steps", desc="restoring") as shown:
        for _ in range(30):
            now[0] += 10
            shown.update()
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 5
    assert "\r" not in said.err
    assert "6/100" in lines[0]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("Unable to allocate 5.00 GiB for an array"), "out of memory .*5.00 GiB"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes."), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory .*2.00 GiB"),
        (OSError(errno.ENOSPC, "No space left on device", "a.mrc"), "the disk is full.*a.mrc"),
        (OSError(errno.EFBIG, "File too large", "a.mrc"), "the disk is full"),
        (CryoFMError("what is wrong"), "what is wrong"),
    ],
)
def test_what_runs_out_is_one_line(error, said, capsys):
    def main():
        raise error

    assert script.exit_code(main) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert re.search(f"error: {said}", line)


def test_faults_of_the_program_are_not_hidden():
    def main():
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError):
        script.exit_code(main)


def test_a_full_disk_is_told_before_the_run(run, half_maps, tmp_path, capsys, monkeypatch):
    usage = script.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(script.shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    monkeypatch.setattr("_maps.read_map", None)  # nothing is read
    assert run(*half_maps, "--out", tmp_path / "out") == 2
    assert "the results need about 10 of 1 MiB on disk" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@unix
def test_files_that_the_shell_does_not_allow_are_told_before_the_run(tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(CryoFMError, match=r"files of 2\.0 MiB, and this shell allows 1\.0 MiB"):
            script.check_disk(tmp_path / "out", 2**21, 2**21)
        assert "MiB on disk" in script.check_disk(tmp_path / "out", 2**21, 2**19)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_bf16_needs_a_processor_that_has_it(run, half_maps, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "has_bf16", lambda _: False)
    assert run(*half_maps, "--out", tmp_path / "out", "--steps", 2, "--precision", "bf16") == 2
    assert "cpu has no units for bf16" in capsys.readouterr().err
    if hasattr(torch.cpu, "get_capabilities"):
        monkeypatch.undo()
        for name, there in (("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)):
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True, "bf16": False})
            assert script.has_bf16(torch.device("cpu")) is there


def test_the_spread_of_samples_is_summed_as_they_come(tmp_path):
    like = DensityMap(np.arange(64.0).reshape(4, 4, 4), 1.5)
    samples = np.random.default_rng(0).normal(1e3, 1, (5, 4, 4, 4)).astype(np.float32)
    grid = attrs.make_class("Grid", ["like"])(like)
    names = [f"sample_{i}.mrc" for i in range(5)]
    spread = results.write_samples(tmp_path, grid, names, iter(samples))
    np.testing.assert_allclose(spread, samples.astype(float).std(0, ddof=1), rtol=1e-5)
    np.testing.assert_array_equal(read_map(tmp_path / "uncertainty.mrc").data, spread)
    assert results.write_samples(tmp_path / "one", grid, names[:1], iter(samples[:1])) is None


@pytest.mark.parametrize("text", ["-60.", "-6e1", "-60", "-60.0"])
def test_negative_numbers_are_numbers(text):
    wedge = pytest.importorskip("missing_wedge")
    assert wedge.parse(["map.mrc", "--out", "out", "--tilt-min", text]).tilt_min == -60


def outcome(item):
    """A job that may fail in every way."""
    if item == "dies":
        os._exit(9)
    if item == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    return f"{item} is left out" if item == "bad" else ""


def test_of_many_jobs_those_that_fail_are_named():
    items = ["good", "bad", *["good"] * 3, "dies", "good"]
    found = many.failures(outcome, items, 2, strict=False, unit="item")
    assert sorted(found) == ["bad is left out", "dies: its process died, perhaps of too little memory"]
    with pytest.raises(CryoFMError, match="bad is left out"):
        many.failures(outcome, ["good", "bad", "good"], 1, strict=True, unit="item")
    with pytest.raises(OSError, match="No space left"):
        many.failures(outcome, ["good", "full"], 1, strict=False, unit="item")


@pytest.fixture
def ctrl_c():
    """Heard also where the tests are a job in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_processes_begin_waits():
    """A thread of some library takes the signal, and Python raises in the one that forks."""
    threading.Thread(target=time.sleep, args=(0.5,), daemon=True).start()
    done = []

    def begin():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        done.append(True)

    with pytest.raises(KeyboardInterrupt), many.undisturbed():
        begin()
    assert done


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_that_python_drops_comes_again(capsys):
    class Freed:
        def __del__(self):
            raise KeyboardInterrupt

    def main():
        made = [Freed()]
        made.clear()
        time.sleep(5)

    assert script.exit_code(main) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_one_bad_model_of_several_is_named(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gemmi")
    simulate = pytest.importorskip("simulate_maps")
    atom = "ATOM  {0:5d}  CA  ALA A{0:4d}    {1:8.3f}{2:8.3f}{3:8.3f}  1.00 20.00           C\n"
    atoms = np.random.default_rng(0).uniform(-6, 6, (40, 3))
    (tmp_path / "good.pdb").write_text("".join(atom.format(i, *xyz) for i, xyz in enumerate(atoms, 1)) + "END\n")
    (tmp_path / "bad.pdb").write_text("garbage")
    (tmp_path / "folder.pdb").mkdir()
    models = [str(tmp_path / f"{name}.pdb") for name in ("bad", "folder", "good", "missing")]
    for strict in (False, True):
        out = tmp_path / f"out{strict}"
        line = ["simulate_maps.py", *models, "--out", str(out), "--variants", "1", *(["--strict"] * strict)]
        monkeypatch.setattr("sys.argv", line)
        assert script.exit_code(simulate.main) == (2 if strict else 1)
        said = capsys.readouterr().err
        if strict:
            assert said.startswith("error: ")
        else:
            assert all(f"{name}.pdb is left out: " in said for name in ("bad", "folder", "missing"))
            assert sorted(path.name for path in out.iterdir()) == ["good_0.mrc", "report.html"]
        assert "Traceback" not in said


def test_every_script_begins_with_what_comes_first():
    for path in EXAMPLES.glob("[!_]*.py"):
        lines = [x.split() for x in path.read_text().splitlines() if x.startswith(("import ", "from "))]
        names = [line[1].split(".")[0] for line in lines]
        ours = [name for name in names if name not in sys.stdlib_module_names]
        assert ours[:1] in (["_first"], []), path.name  # none: RELION gets its own map whatever is missing


def test_a_map_whose_header_alone_is_read(tmp_path):
    from cryofm_io import map_size

    for name in ("map.mrc", "map.mrc.gz"):
        write_map(tmp_path / name, DensityMap(np.random.default_rng(0).normal(size=(20, 30, 40)), 1.5))
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: 1024 if name.endswith("mrc") else len(content) // 2])
        assert map_size(tmp_path / name) == attrs.evolve(map_size(tmp_path / name), shape=(20, 30, 40), voxel_size=1.5)
        assert map_size(tmp_path / name, voxel_size=2.0).voxel_size == 2.0


def test_a_file_that_has_the_name_of_a_bundled_prior_was_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cryofm-tiny").write_bytes(b"something else")
    args = denoise.parse(["--out", "out"])
    assert script.chosen_prior(args).network is not None
    assert records.provenance(args)["inputs_sha256"] == {}


def test_many_jobs_are_done_whatever_way_python_starts_processes(tmp_path):
    program = (
        "import multiprocessing as m, sys\nfrom _many import failures\ndef job(x):\n    import time; time.sleep(0.7)\n"
        "    return ''\nif __name__ == '__main__':\n    m.set_start_method(sys.argv[1])\n"
        "    print(failures(job, [1, 2], 2, strict=False, unit=' jobs'))"
    )
    (tmp_path / "program.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES)}
    command = [sys.executable, tmp_path / "program.py", "forkserver" if sys.platform == "linux" else "spawn"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "[]", done.stderr
