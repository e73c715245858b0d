"""A folder has one run at a time; what the dead left is swept, and nothing else."""

import os
import signal
import subprocess
import sys
import zlib
from socket import gethostname

import numpy as np
import pytest

from cryofm_io import DensityMap, InUseError, OutputExistsError, held_folder, partial_path, sweep_partials, write_map

LONG_AGO = 2**31 - 1  # no process has such a number
unix = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")


def left_by(folder, process, machine=None, kind="partial"):
    machine = machine or f"{zlib.crc32(gethostname().encode()):08x}"
    path = folder / f".{kind}-{machine}-{process}-0123456789abcdef-map.mrc"
    path.write_text("half")
    return path


@unix
def test_the_second_is_told_the_number_of_the_first_until_that_is_killed(tmp_path):
    program = (
        "import sys, signal; from cryofm_io import held_folder\n"
        "with held_folder(sys.argv[1]): print(flush=True); signal.pause()"
    )
    first = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline()
        with pytest.raises(InUseError, match=f"in use by process {first.pid} on "), held_folder(tmp_path):
            pass
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    with held_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@unix
@pytest.mark.parametrize("call", ["open", "unlink"])
def test_ctrl_c_while_a_folder_is_taken_or_given_back_leaves_no_lock(tmp_path, monkeypatch, call):
    usual, there = getattr(os, call), []

    def interrupted(path, *arguments, **options):
        made = usual(path, *arguments, **options)
        if str(path).endswith(".run.lock"):
            os.kill(os.getpid(), signal.SIGINT)  # before the one who called gets what was made
        return made

    monkeypatch.setattr(os, call, interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
    try:
        with pytest.raises(KeyboardInterrupt), held_folder(tmp_path):
            there += [path.name for path in tmp_path.iterdir()]
    finally:
        signal.signal(signal.SIGINT, before)
    assert there == ([".run.lock"] if call == "unlink" else [])
    assert list(tmp_path.iterdir()) == []


@unix
def test_what_lies_in_the_place_of_the_lock_stays(tmp_path):
    lock, victim = tmp_path / ".run.lock", tmp_path / "victim"
    victim.write_text("precious")
    for make in (lambda: lock.write_text("mine"), lambda: lock.symlink_to(victim), lambda: os.mkfifo(lock), lock.mkdir):
        make()
        with pytest.raises(OutputExistsError), held_folder(tmp_path):
            pass
        assert os.path.lexists(lock)
        lock.rmdir() if lock.is_dir() else lock.unlink()
    assert victim.read_text() == "precious"


@unix
@pytest.mark.parametrize("start", [sweep_partials, lambda folder: write_map(folder / "map.mrc", MAP)])
def test_what_the_dead_left_is_swept_and_nothing_else(tmp_path, start):
    dead = [left_by(tmp_path, LONG_AGO), partial_path(tmp_path / "folder")]
    dead[1] = dead[1].with_name(dead[1].name.replace(f"-{os.getpid()}-", f"-{LONG_AGO}-"))
    dead[1].mkdir()
    (dead[1] / "map.mrc").write_text("half")
    stay = [
        left_by(tmp_path, os.getppid()),  # it lives
        left_by(tmp_path, os.getpid()),
        left_by(tmp_path, LONG_AGO, "00000000"),  # of another machine
        left_by(tmp_path, LONG_AGO, kind="whole"),  # which is taken up, not removed
        tmp_path / ".partial-mine",
        tmp_path / "partial-0-1-2",
    ]
    for path in stay[4:]:
        path.write_text("mine")
    start(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*stay, *([tmp_path / "map.mrc"] * (tmp_path / "map.mrc").exists())])


MAP = DensityMap(np.arange(64).reshape(4, 4, 4), 1.5)


@unix
def test_a_map_that_was_cut_off_by_a_kill_is_gone_at_the_next_start(tmp_path):
    program = (
        "import os, sys, signal\nfrom cryofm_io import atomic_write\n"
        "with atomic_write(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "map.mrc"], check=False)
    assert [path.name[:9] for path in tmp_path.iterdir()] == [".partial-"]
    write_map(tmp_path / "other.mrc", MAP)
    assert [path.name for path in tmp_path.iterdir()] == ["other.mrc"]
