"""A run that was killed goes on exactly; one that cannot go on says why and leaves the last good checkpoint."""

import csv
import os
import random
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("cryofm_io")

from cryofm_model import CryoFMError

WORKER = Path(__file__).with_name("train_worker.py")
worker = runpy.run_path(str(WORKER))


def log(folder):
    """Rows of the log, without the speed."""
    return [row[:-1] for row in csv.reader((folder / "log.csv").read_text().splitlines())]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, worker["start"]("unet", folder)


@pytest.mark.slow
def test_what_a_run_leaves(whole):
    folder, _ = whole
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-00000006", "log.csv", "samples"]
    assert sorted(p.name for p in (folder / "checkpoint-00000006").iterdir()) == ["progress.json", "state.safetensors"]
    assert [p.name for p in sorted((folder / "samples").iterdir())] == [f"step-0000000{n}.png" for n in (2, 4, 6)]
    header, *rows = log(folder)
    assert header[:5] == ["step", "crops", "rate", "loss", "v_mse_t0.1"]
    assert [int(row[0]) for row in rows] == [2, 4, 6]


@pytest.mark.slow
def test_a_run_killed_at_a_random_step_ends_as_if_it_had_never_stopped(whole, tmp_path):
    draw = random.randrange(1, worker["DRAWS"] + 1)
    killed = subprocess.run([sys.executable, WORKER, "killed", tmp_path, str(draw)], env={**os.environ}, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "checkpoint-00000006").exists()
    resumed = worker["start"]("unet", tmp_path)
    folder, network = whole
    assert log(tmp_path) == log(folder), f"killed at draw {draw}"
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), f"{name}, killed at draw {draw}"


def test_a_finished_run_is_left_as_it_is(whole, monkeypatch):
    folder, network = whole
    before = log(folder)
    again = worker["start"]("unet", folder, worker["killed_at"](1))  # draws nothing
    assert log(folder) == before
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())


def test_other_settings_are_refused_and_named(whole):
    other = attrs.evolve(worker["RUN"], seed=1, lr=0.5)
    with pytest.raises(CryoFMError, match=r"other settings \(lr: 0.01 there, 0.5 here; seed: 0 there, 1 here\)"):
        worker["start"]("unet", whole[0], config=other)


def test_another_network_is_refused(whole):
    with pytest.raises(CryoFMError, match="checkpoint-00000006 does not fit this network"):
        worker["start"]("hourglass", whole[0])


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    class Poisoned(worker["Blobs"]):
        def crops(self, batch, side, rng):
            crops = super().crops(batch, side, rng)
            return crops * float("nan") if self.draws > 2 * 2 + 8 else crops  # the fourth step

    with pytest.raises(CryoFMError, match=r"the loss became nan .* at step 3; the last checkpoint"):
        worker["start"]("unet", tmp_path, Poisoned())
    worker["start"]("unet", tmp_path)  # from step 2, with the good crops
    assert [int(row[0]) for row in log(tmp_path)[1:]] == [2, 4, 6]


def test_accumulated_parts_make_the_same_run_to_rounding(whole, tmp_path):
    network = worker["start"]("unet", tmp_path, machine=worker["Machine"](micro_batch=3))
    for name, tensor in whole[1].state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_bf16_makes_about_the_same_run(whole, tmp_path):
    worker["start"]("unet", tmp_path, config=attrs.evolve(worker["RUN"], precision="bf16"))
    exact, rounded = ([float(row[3]) for row in log(folder)[1:]] for folder in (whole[0], tmp_path))
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.02)


@pytest.mark.slow
def test_recomputing_makes_the_same_run_to_rounding_and_is_for_the_hourglass(tmp_path):
    machine = worker["Machine"](recompute=True)
    kept, recomputed = (
        worker["start"]("hourglass", tmp_path / "a"),
        worker["start"]("hourglass", tmp_path / "b", machine=machine),
    )
    for name, tensor in kept.state_dict().items():
        torch.testing.assert_close(recomputed.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    with pytest.raises(CryoFMError, match="only an Hourglass can recompute; found a UNet"):
        worker["start"]("unet", tmp_path / "c", machine=machine)


def test_crops_that_the_network_cannot_take_are_refused(tmp_path):
    with pytest.raises(CryoFMError, match=r"crops of 18³ voxels: the side must be a multiple of 4"):
        worker["start"]("unet", tmp_path, config=attrs.evolve(worker["RUN"], stages=((1.0, 18, 2),)))
