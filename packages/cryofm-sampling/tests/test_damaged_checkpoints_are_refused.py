"""A checkpoint that was damaged, or that another run has, is refused by name; nothing but our own files is removed."""

import os
import random
import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from socket import gethostname

import pytest
import torch
from safetensors.torch import load_file, save_file

from cryofm_ops import FourierGaussian, rfft
from cryofm_sampling import Checkpoint, CheckpointError, Guided
from cryofm_sampling.runs import checkpoint as checkpoints
from cryofm_sampling.testing import GaussianPrior

BOX = (4, 4, 4)
STEPS = 4
LONG_AGO = 2**22 + 1  # beyond the numbers that Linux gives to processes


class Killed(Exception):
    pass


def killer(after):
    def callback(step, total, x_0):
        if step == after:
            raise Killed

    return callback


def run(path, callback=None, keep=False):
    torch.manual_seed(0)
    y = torch.randn(BOX, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    data = FourierGaussian(torch.ones(4, 4, 3, dtype=torch.float64), rfft(y), BOX)
    prior = GaussianPrior(torch.tensor([3.0, 1.0], dtype=torch.float64))
    checkpoint = None if path is None else Checkpoint(path, 0, keep=keep)
    generator = torch.Generator().manual_seed(3)
    return Guided(steps=STEPS)(prior, data, shape=BOX, generator=generator, callback=callback, checkpoint=checkpoint).x


@pytest.fixture
def left(tmp_path):
    """A checkpoint of a run that was killed after two steps."""
    with pytest.raises(Killed):
        run(tmp_path / "run", killer(2))
    return tmp_path / "run"


def damaged(content, kind, rng):
    content = bytearray(content)
    place = rng.randrange(len(content))
    if kind == "bit":
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        content[place] = rng.randrange(256)
    elif kind == "header":  # as hostile as chance can be: bytes of the description at the start
        content[rng.randrange(600)] ^= 1 << rng.randrange(8)
    elif kind == "length":
        content[rng.randrange(8)] ^= 1 << rng.randrange(8)
    elif kind == "truncated":
        del content[place:]
    elif kind == "extended":
        content += rng.randbytes(rng.randrange(1, 100))
    elif kind == "block":
        content[place : place + 64] = rng.randbytes(len(content[place : place + 64]))
    return bytes(content)


def outcome(path):
    """What the refusal says, or the result."""
    try:
        return "", run(path)
    except CheckpointError as error:
        return str(error), None


@pytest.mark.slow
def test_no_damage_is_believed(left):
    whole, good, rng = run(None), left.read_bytes(), random.Random(0)
    kinds = {"bit": 150, "byte": 100, "header": 100, "length": 20, "truncated": 50, "extended": 20, "block": 60}
    refused = 0
    for kind, times in kinds.items():
        for _ in range(times):
            left.write_bytes(content := damaged(good, kind, rng))
            said, x = outcome(left)
            if x is None:
                refused += content != good
                assert str(left) in said
            else:  # a space of the description, say
                assert torch.equal(x, whole), kind
    assert refused > 0.9 * sum(kinds.values())


def changed(path, **values):
    """The checkpoint with other tensors and a checksum that fits them, or another step."""
    tensors = load_file(path)
    del tensors[checkpoints._CHECKSUM]
    if "step" in values:
        header = tensors["run"].numpy().tobytes().replace(b'"step": 2', b'"step": ' + values.pop("step"))
        values["run"] = torch.tensor(list(header), dtype=torch.uint8)
    tensors |= values
    checksum = torch.tensor(list(checkpoints._checksum(tensors)), dtype=torch.uint8)
    save_file({**tensors, checkpoints._CHECKSUM: checksum}, path)


@pytest.mark.parametrize("step", [b"-5", b"0", b"100", b"5", b"2.0", b"true", b"null", b'"2"', b"1e999"])
def test_a_step_out_of_range_is_refused(left, step):
    changed(left, step=step)
    with pytest.raises(CheckpointError, match=r"run says that .* of 4 steps are done"):
        run(left)


@pytest.mark.parametrize(
    "values",
    [
        {"state": torch.zeros(2, 4, 4, dtype=torch.float64)},
        {"state": torch.zeros(BOX, dtype=torch.float32)},
        {"stream.0": torch.zeros(7, dtype=torch.uint8)},
    ],
)
def test_another_shape_is_refused(left, values):
    changed(left, **values)
    with pytest.raises(CheckpointError, match=rf"run is of other sizes \({next(iter(values))}\)"):
        run(left)


@pytest.mark.parametrize(
    "header", [b"[]", b"{}", b'{"fingerprint": 3}', b'{"fingerprint": {"settings": []}}', b"[" * 9999]
)
def test_a_made_up_header_is_refused(left, header):
    changed(left, run=torch.tensor(list(header), dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="run is no checkpoint of a sampler"):
        run(left)


def test_random_numbers_that_are_none_are_refused(left):
    changed(left, **{"stream.0": torch.full((5056,), 255, dtype=torch.uint8)})
    with pytest.raises(CheckpointError, match="run holds no random numbers"):
        run(left)


def test_files_of_others_beside_a_checkpoint_stay(tmp_path):
    mine = [tmp_path / name for name in ("run.partial", ".run.partial", "run-keep", "run.lock", "run-0.partial")]
    for path in mine:
        path.write_text("mine")
    run(tmp_path / "run")
    Checkpoint(tmp_path / "run").remove_parts(3)
    assert sorted(tmp_path.iterdir()) == sorted(mine)
    assert {path.read_text() for path in mine} == {"mine"}


def test_a_link_is_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run.partial").symlink_to(victim)
    (tmp_path / ".run.lock").symlink_to(victim)
    with pytest.raises(CheckpointError, match="run cannot be written"):
        run(tmp_path / "run")
    (tmp_path / ".run.lock").unlink()
    run(tmp_path / "run", keep=True)
    assert victim.read_text() == "mine"
    assert (tmp_path / "run.partial").is_symlink()


def test_names_cannot_be_foreseen_and_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    names = []

    def full(descriptor):
        names.extend(path.name for path in tmp_path.iterdir() if path.suffix == ".partial")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"run cannot be written: .*No space left"):
            run(tmp_path / "run")
        assert list(tmp_path.iterdir()) == []
    assert len(set(names)) == 2
    assert all(re.fullmatch(rf"\.run\.[0-9a-f]{{8}}-{os.getpid()}-[0-9a-f]{{16}}\.partial", name) for name in names)


def partial(path, process, machine=None):
    machine = f"{zlib.crc32(gethostname().encode()):08x}" if machine is None else machine
    found = path.with_name(f".{path.name}.{machine}-{process}-0123456789abcdef.partial")
    found.write_text("half")
    return found


def test_what_the_dead_left_is_swept_and_nothing_else(tmp_path):
    path = tmp_path / "run"
    dead = partial(path, LONG_AGO)
    others = [
        partial(path, os.getppid()),  # it lives
        partial(path, LONG_AGO, "00000000"),  # of another machine
        partial(tmp_path / "run-1", LONG_AGO),  # of another checkpoint
    ]
    run(path)
    assert not dead.exists()
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_lock_of_the_dead_is_taken_over(tmp_path):
    (tmp_path / ".run.lock").write_text(f"process {LONG_AGO} on {gethostname()}\n")
    run(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_lock_stays(tmp_path):
    (tmp_path / ".run.lock").write_text("mine")
    with pytest.raises(CheckpointError, match=r"\.run\.lock is no lock of a run"):
        run(tmp_path / "run")
    assert (tmp_path / ".run.lock").read_text() == "mine"


def test_two_runs_in_one_process_are_told_apart(tmp_path):
    def second(step, total, x_0):
        with pytest.raises(CheckpointError, match=f"run is in use by process {os.getpid()} on "):
            run(tmp_path / "run")
        Checkpoint(tmp_path / "run").remove()  # not while it is in use
        assert step == 1 or (tmp_path / "run").exists()

    assert torch.equal(run(tmp_path / "run", second), run(None))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.slow
def test_a_second_process_is_refused_with_the_number_of_the_first_until_that_is_killed(tmp_path):
    path = tmp_path / "run"
    first = subprocess.Popen([sys.executable, __file__, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "1\n"
        with pytest.raises(CheckpointError, match=f"run is in use by process {first.pid} on "):
            run(path)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdout.close()
    assert (tmp_path / ".run.lock").exists()
    assert torch.equal(run(path), run(None))
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    run(Path(sys.argv[1]), lambda step, total, x_0: (print(step, flush=True), sys.stdin.read(), signal.pause()))
