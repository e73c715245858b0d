"""Two processes train as one does, and take up each other's checkpoints."""

import csv
import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("cryofm_io")
pytestmark = pytest.mark.slow  # all need the runs of several processes

WORKER = Path(__file__).with_name("train_worker.py")
worker = runpy.run_path(str(WORKER))


def losses(folder):
    """Training loss, validation losses and FSC of every row."""
    rows = list(csv.reader((folder / "log.csv").read_text().splitlines()))[1:]
    return np.array([[float(value) for value in row[3:10]] for row in rows])


@pytest.fixture(scope="module")
def single():
    """As the other processes have it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, single):
    """Folder of the runs, after two processes have done theirs, and this one its own."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.raises(InterruptedError):
        worker["start"]("hourglass", folder / "to-two", worker["Blobs"](worker["interrupt"]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, WORKER, "two", folder], env={**os.environ, **group, "RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in ("0", "1")
    ]
    try:
        assert [process.wait(timeout=300) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    for kind in ("unet", "hourglass"):
        worker["start"](kind, folder / kind)
    return folder


def test_two_copies_reproduce_the_losses_of_one_process(runs):
    assert losses(runs / "ddp").shape == (3, 7)
    np.testing.assert_allclose(losses(runs / "ddp"), losses(runs / "unet"), rtol=1e-3)


def test_shards_reproduce_the_losses_of_one_process_which_goes_on_from_them(runs):
    np.testing.assert_allclose(losses(runs / "to-one"), losses(runs / "hourglass")[:2], rtol=1e-3)
    worker["start"]("hourglass", runs / "to-one")
    np.testing.assert_allclose(losses(runs / "to-one"), losses(runs / "hourglass"), rtol=1e-3)


def test_two_processes_go_on_from_the_file_of_one(runs):
    np.testing.assert_allclose(losses(runs / "to-two"), losses(runs / "hourglass"), rtol=1e-3)


def test_shards_are_safetensors_one_file_a_process_and_nothing_is_a_pickle(runs):
    names = sorted(p.name for p in (runs / "to-two" / "checkpoint-00000006").iterdir())
    assert [Path(name).suffix for name in names] == [".json", ".safetensors", ".safetensors"]


def test_what_cannot_be_divided_is_refused_on_every_process(runs):
    for rank in (0, 1):
        refused = json.loads((runs / f"refused-{rank}.json").read_text())
        assert refused["odd"] == "a batch of 3 crops of 16³ cannot be divided among 2 processes"
        assert refused["unet"] == "only an Hourglass can be divided among processes; found a UNet"
