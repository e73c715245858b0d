"""The cache under everything that happens to files: damage, changed input, killed and simultaneous processes."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from cryofm_model.data import map_cache
from cryofm_model.data.map_cache import cached, file_identity

pytest.importorskip("cryofm_io")

ARRAY = np.random.default_rng(0).normal(size=(7, 8, 9)).astype(np.float16)


@pytest.fixture
def counted():
    calls = []

    def make():
        calls.append(1)
        return ARRAY

    return make, calls


def test_made_once_and_read_only(tmp_path, counted):
    make, calls = counted
    for _ in range(3):
        entry = cached(tmp_path / "new" / "folder", ["key", 1], make)
        assert entry.dtype == np.float16
        assert np.array_equal(entry, ARRAY)
        assert not entry.flags.writeable
    assert len(calls) == 1
    cached(tmp_path / "new" / "folder", ["key", 2], make)
    assert len(calls) == 2


def test_an_entry_is_a_plain_npy_file(tmp_path, counted):
    cached(tmp_path, ["key"], counted[0])
    (path,) = tmp_path.iterdir()
    assert np.array_equal(np.load(path, allow_pickle=False), ARRAY)


@pytest.mark.parametrize("position", [0, 9, 200, -900, -5, -1])
def test_one_wrong_byte_anywhere_is_noticed(tmp_path, counted, position):
    make, calls = counted
    cached(tmp_path, ["key"], make)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)
    assert np.array_equal(cached(tmp_path, ["key"], make), ARRAY)
    assert len(calls) == 2
    cached(tmp_path, ["key"], make)
    assert len(calls) == 2  # it was mended, not made every time


@pytest.mark.parametrize("length", [0, 3, 100, 600])
def test_truncation_is_noticed(tmp_path, counted, length):
    make, calls = counted
    cached(tmp_path, ["key"], make)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:length])
    assert np.array_equal(cached(tmp_path, ["key"], make), ARRAY)
    assert len(calls) == 2


def test_a_changed_file_is_another_file(tmp_path):
    path = tmp_path / "a.mrc"
    path.write_bytes(b"1234")
    os.utime(path, ns=(0, 1_000_000_000))
    first = file_identity(path)
    assert file_identity(tmp_path / "." / "a.mrc") == first
    os.utime(path, ns=(0, 2_000_000_000))
    assert file_identity(path) != first
    path.write_bytes(b"12345")
    os.utime(path, ns=(0, 1_000_000_000))
    assert file_identity(path) != first


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cached(tmp_path, ["key"], lambda: 1 / 0)
    assert list(tmp_path.iterdir()) == []


WORKER = f"""
import sys, time, numpy as np
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
spec = spec_from_file_location("map_cache", {map_cache.__file__!r})  # alone: torch takes seconds to import
spec.loader.exec_module(module := module_from_spec(spec))
cached = module.cached
def make(seed):
    if sys.argv[2] == "killed" and seed == 3:
        print("here", flush=True); time.sleep(120)
    return np.random.default_rng(seed).normal(size=(40, 40, 40)).astype(np.float16)
for seed in range(12):
    entry = cached(Path(sys.argv[1]), ["map", seed], lambda: make(seed))
    assert np.array_equal(entry, np.random.default_rng(seed).normal(size=(40, 40, 40)).astype(np.float16)), seed
"""


def start(folder, mode):
    return subprocess.Popen([sys.executable, "-c", WORKER, str(folder), mode], stdout=subprocess.PIPE)


@pytest.mark.slow
def test_processes_side_by_side(tmp_path):
    workers = [start(tmp_path, "whole") for _ in range(2)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 12


@pytest.mark.slow
def test_a_killed_process_leaves_what_it_had_finished(tmp_path):
    worker = start(tmp_path, "killed")
    assert worker.stdout.readline() == b"here\n"
    worker.kill()
    worker.wait(120)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    assert len(before) == 3
    time.sleep(0.02)
    assert start(tmp_path, "whole").wait(120) == 0
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())  # used, not made again
    assert len(list(tmp_path.glob("*.npy"))) == 12
