"""Where the first of several processes refuses a checkpoint, the others do not wait for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cryofm_ops import Identity, WhiteNoise, gaussian_likelihood
from cryofm_sampling import Checkpoint, CheckpointError, Guided
from cryofm_sampling.testing import GaussianPrior

BOX = (4, 4, 4)

pytestmark = pytest.mark.skipif(not dist.is_available() or sys.platform == "win32", reason="needs gloo and files")


def run(path, group):
    data = gaussian_likelihood(Identity(), WhiteNoise(0.5), torch.zeros(BOX))
    generator = torch.Generator().manual_seed(0)
    checkpoint = Checkpoint(path, 0, group=group, keep=True)
    Guided(steps=2)(GaussianPrior(1.0), data, shape=BOX, generator=generator, checkpoint=checkpoint)


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    said = []
    for _ in range(2):
        run(folder / "good", dist.group.WORLD)
    for name in ("damaged", "in-use", "missing/run"):
        with pytest.raises(CheckpointError) as refusal:
            run(folder / name, dist.group.WORLD)
        said.append(str(refusal.value))
    (folder / f"said-{rank}").write_text("\n".join(said))
    dist.barrier()  # who leaves first would close what the other still listens to
    os._exit(0)  # all is said; gloo's threads may abort a process that takes them down in good order


@pytest.mark.slow
def test_every_process_is_told(tmp_path):
    from cryofm_sampling.runs._beside import held

    run(tmp_path / "damaged", None)
    content = bytearray((tmp_path / "damaged").read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    with held(tmp_path / "in-use"):
        started = [subprocess.Popen([sys.executable, __file__, str(rank), tmp_path]) for rank in range(2)]
        try:
            assert [process.wait(timeout=120) for process in started] == [0, 0]
        finally:
            for process in started:
                process.kill()
    for rank in range(2):
        damaged, in_use, missing = (tmp_path / f"said-{rank}").read_text().splitlines()
        assert "its checksum differs" in damaged
        assert "is in use by process" in in_use
        assert "a folder that does not exist" in missing


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]))
