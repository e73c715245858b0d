"""Where the first of several processes refuses a folder, the others do not wait for it."""

import copy
import os
import socket
import subprocess
import sys

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("cryofm_io")

from cryofm_model import UNet, UNetConfig
from cryofm_model.train import TrainConfig
from cryofm_model.train import checkpoint as checkpoints

PROGRAM = """
import os
import sys
import torch
from pathlib import Path
from cryofm_model import CryoFMError
from cryofm_model.train import TrainConfig
from cryofm_model.train.checkpoint import resume, taken
from cryofm_model.train.distributed import processes, rank_and_world

folder, said = Path(sys.argv[1]), []
with processes("cpu"):
    for name in ("damaged", "in-use"):
        try:
            with taken(folder / name):
                resume(folder / name, TrainConfig(crops=1), None, None, [])
        except CryoFMError as error:
            said.append(str(error))
    (folder / f"said-{rank_and_world()[0]}").write_text("\\n".join(said))
    torch.distributed.barrier()
    os._exit(0)  # all is said; gloo's threads may abort a process that takes them down in good order
"""


@pytest.mark.slow
def test_every_process_is_told(tmp_path):
    config = TrainConfig(crops=1)
    network = UNet(UNetConfig(widths=(4, 8), depths=(1, 1), up_depths=(1,), conditioning=8))
    (tmp_path / "damaged").mkdir()
    optimisers = [torch.optim.AdamW(network.parameters())]
    checkpoints.save(
        tmp_path / "damaged", config, next(iter(config.plan())), network, copy.deepcopy(network), optimisers
    )
    state = next((tmp_path / "damaged").rglob("state.safetensors"))
    state.write_bytes(state.read_bytes()[:-1] + b"?")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with checkpoints.taken(tmp_path / "in-use"):
        started = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, tmp_path],
                env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]
        try:
            assert [process.wait(timeout=120) for process in started] == [0, 0]
        finally:
            for process in started:
                process.kill()
    for rank in range(2):
        damaged, in_use = (tmp_path / f"said-{rank}").read_text().splitlines()
        assert "state.safetensors was damaged" in damaged
        assert "is in use by process" in in_use
