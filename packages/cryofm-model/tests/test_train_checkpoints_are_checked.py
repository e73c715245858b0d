"""A damaged training state, or one that another run has, is refused by name; nothing but our own files is removed."""

import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from socket import gethostname

import attrs
import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("cryofm_io")

from cryofm_model import CryoFMError, UNet
from cryofm_model.train import checkpoint as checkpoints

WORKER = Path(__file__).with_name("train_worker.py")
worker = runpy.run_path(str(WORKER))
RUN = worker["RUN"]
LONG_AGO = 2**22 + 1  # beyond the numbers that Linux gives to processes


def parts():
    torch.manual_seed(1)
    network, averaged = UNet(worker["UNET"]), UNet(worker["UNET"])
    return network, averaged, [torch.optim.AdamW(network.parameters(), lr=0.1)]


def resumed(folder):
    """Steps, voxels and tensors of a run that goes on."""
    network, averaged, optimisers = parts()
    number, seen = checkpoints.resume(folder, RUN, network, averaged, optimisers)
    return number, seen, checkpoints._state(network, averaged, optimisers)


def save(folder, steps=2, config=RUN):
    network, averaged, optimisers = parts()
    checkpoints._fill(optimisers)
    done = list(config.plan())[steps - 1]
    checkpoints.save(folder, config, done, network, averaged, optimisers)
    return folder / f"checkpoint-{steps:08d}"


@pytest.fixture
def left(tmp_path):
    return save(tmp_path)


def damaged(content, kind, rng):
    content = bytearray(content)
    place = rng.randrange(len(content))
    if kind == "bit":
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        content[place] = rng.randrange(256)
    elif kind == "header":
        content[rng.randrange(min(len(content), 4000))] ^= 1 << rng.randrange(8)
    elif kind == "truncated":
        del content[place:]
    elif kind == "extended":
        content += rng.randbytes(rng.randrange(1, 100))
    return bytes(content)


def outcome(folder):
    """What the refusal says, or the state."""
    try:
        return "", resumed(folder)
    except CryoFMError as error:
        return str(error), None


@pytest.mark.slow
def test_no_damage_is_believed(left):
    number, seen, good = resumed(left.parent)
    rng, refused, tried = random.Random(0), 0, 0
    kinds = {"bit": 60, "byte": 40, "header": 40, "truncated": 20, "extended": 10}
    for name in ("progress.json", "state.safetensors"):
        content = (left / name).read_bytes()
        for kind, times in kinds.items():
            for _ in range(times):
                (left / name).write_bytes(other := damaged(content, kind, rng))
                said, state = outcome(left.parent)
                tried += content != other
                if state is None:
                    refused += 1
                    assert str(left) in said
                else:  # a space of the text, say
                    assert state[:2] == (number, seen)
                    assert all(torch.equal(value, state[2][key]) for key, value in good.items())
        (left / name).write_bytes(content)
    assert tried > 300
    assert refused > 0.9 * tried


def changed(path, **values):
    """The checkpoint with another progress, and a checksum that fits it."""
    said = path / "progress.json"
    progress = {key: value for key, value in json.loads(said.read_text()).items() if key != "sha256"} | values
    said.write_text(json.dumps({**progress, "sha256": checkpoints._checksum(progress)}))


@pytest.mark.parametrize("values", [{"step": -5}, {"step": 100}, {"seen": 1}, {"step": 3}, {"seen": -1}])
def test_a_step_that_no_run_has_is_refused(left, values):
    changed(left, **values)
    with pytest.raises(CryoFMError, match=r"checkpoint-00000002 says .* which no run of these settings has"):
        resumed(left.parent)


@pytest.mark.parametrize(
    "values", [{"step": "2"}, {"step": True}, {"config": []}, {"files": []}, {"files": {"../log.safetensors": "0"}}]
)
def test_a_made_up_progress_is_refused(left, values):
    changed(left, **values)
    with pytest.raises(CryoFMError, match=r"progress\.json is no file of a checkpoint"):
        resumed(left.parent)


def test_a_file_too_few_or_too_many_is_refused(left):
    shutil.copy(left / "state.safetensors", left / "other.safetensors")
    with pytest.raises(CryoFMError, match=r"checkpoint-00000002 holds .*other.* expected \['state\.safetensors'\]"):
        resumed(left.parent)
    (left / "other.safetensors").unlink()
    (left / "state.safetensors").unlink()
    with pytest.raises(CryoFMError, match=r"checkpoint-00000002 holds \[\], expected"):
        resumed(left.parent)


def test_only_what_this_run_wrote_is_removed(tmp_path):
    for name in ("checkpoint-best", "checkpoint-keep", "checkpoint-00000009", "checkpoint.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.safetensors").write_text("mine")
    (tmp_path / "state.partial").write_text("mine")
    (tmp_path / "checkpoint-notes").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    first = save(tmp_path, 2)
    (first / "notes.txt").write_text("mine")
    shutil.copytree(first, tmp_path / "checkpoint-of-mine")
    second = save(tmp_path, 4)
    assert sorted(first.iterdir()) == [first / "notes.txt"]  # its own went, a file of the user's did not
    shutil.rmtree(first)
    shutil.rmtree(tmp_path / "checkpoint-of-mine")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, second, *second.iterdir()])
    assert resumed(tmp_path)[0] == 4


def test_a_checkpoint_of_another_run_stays(tmp_path):
    other = save(tmp_path, 2, attrs.evolve(RUN, seed=7))
    save(tmp_path, 4)
    assert len(list(other.iterdir())) == 2


def test_a_folder_in_the_place_of_the_next_checkpoint_stays(tmp_path):
    (tmp_path / "checkpoint-00000002").mkdir()
    with pytest.raises(CryoFMError, match="checkpoint-00000002 is in the way"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000002"]


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CryoFMError, match=r"checkpoint-00000002 cannot be written: .*No space left"):
        save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_the_dead_left_is_swept_and_nothing_else(tmp_path):
    machine = f"{zlib.crc32(gethostname().encode()):08x}"
    names = [
        f".partial-{owner}-0123456789abcdef-checkpoint-00000002"
        for owner in (f"{machine}-{LONG_AGO}", f"{machine}-{os.getppid()}", f"00000000-{LONG_AGO}")
    ]
    for name in names:
        (tmp_path / name).mkdir()
    with checkpoints.taken(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


@pytest.mark.slow
def test_a_row_of_the_log_that_was_cut_off_is_made_again(tmp_path):
    with pytest.raises(InterruptedError):
        worker["start"]("unet", tmp_path, worker["Blobs"](worker["interrupt"]))
    with (tmp_path / "log.csv").open("ab") as log:
        log.write(b"5,\xff")
    worker["start"]("unet", tmp_path)
    assert [row.split(",")[0] for row in (tmp_path / "log.csv").read_text().splitlines()[1:]] == ["2", "4", "6"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.slow
def test_a_second_run_is_refused_with_the_number_of_the_first_until_that_is_killed(tmp_path):
    program = (
        "import sys, signal; from pathlib import Path; from cryofm_model.train.checkpoint import taken\n"
        "with taken(Path(sys.argv[1])): print(flush=True); signal.pause()"
    )
    first = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline()
        with pytest.raises(CryoFMError, match=f"is in use by process {first.pid} on "):
            worker["start"]("unet", tmp_path)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdout.close()
    with checkpoints.taken(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_lock_stays(tmp_path):
    (tmp_path / ".run.lock").write_text("mine")
    with pytest.raises(CryoFMError, match=r"\.run\.lock is no lock of a run"), checkpoints.taken(tmp_path):
        pass
    assert (tmp_path / ".run.lock").read_text() == "mine"
