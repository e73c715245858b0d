"""The parts of a run: its plan, its rates, its times, its draws, and what it reports."""

import math
import struct
import zlib

import attrs
import numpy as np
import pytest
import torch
from torch import nn

from cryofm_model import CryoFMError
from cryofm_model.train import TrainConfig
from cryofm_model.train._png import write_png
from cryofm_model.train.batches import batches, draw_times
from cryofm_model.train.config import Step
from cryofm_model.train.report import _bar, denoising_fsc, validation_loss

pytest.importorskip("tqdm")
cryofm_io = pytest.importorskip("cryofm_io")

CONFIG = TrainConfig(crops=64, stages=((0.25, 32, 4), (1.0, 64, 2)), warmup=4)


def test_a_plan_counts_voxels_and_goes_on_anywhere():
    plan = list(CONFIG.plan())
    assert [(step.side, step.batch) for step in plan] == [(32, 4)] * 4 + [(64, 2)] * 3
    assert [step.seen // 32**3 for step in plan] == [0, 4, 8, 12, 16, 32, 48]
    assert list(CONFIG.plan(plan[5].number, plan[5].seen)) == plan[5:]


def test_rates_rise_linearly_and_then_fall_as_a_cosine_or_stay():
    plan = list(CONFIG.plan())
    cosine = [0.5 * (1 + math.cos(math.pi * step.seen / (64 * 32**3))) for step in plan]
    assert [CONFIG.rate(step) for step in plan] == pytest.approx(
        [c * min(1, (n + 1) / 4) for n, c in enumerate(cosine)]
    )
    constant = attrs.evolve(CONFIG, schedule="constant")
    assert [constant.rate(step) for step in plan] == [0.25, 0.5, 0.75, 1, 1, 1, 1]


@pytest.mark.parametrize("stages", [(), ((0.5, 32, 4),), ((1.0, 32, 4), (1.0, 64, 2)), ((1.0, 32, 0),)])
def test_stages_that_lead_nowhere_are_refused(stages):
    with pytest.raises(CryoFMError, match="stages are"):
        TrainConfig(stages=stages)


def test_uniform_times_fill_every_stratum_once():
    t = draw_times(CONFIG, Step(3, 0, 8, 50)).sort().values
    assert ((t * 50).floor() == torch.arange(50)).all()


def test_logit_normal_times_have_a_normal_logit():
    t = draw_times(attrs.evolve(CONFIG, times="logit-normal"), Step(3, 0, 8, 20_000)).double()
    z = torch.logit(t)
    moments = [z.mean(), z.square().mean(), (z**4).mean()]
    assert [m.item() for m in moments] == pytest.approx([0, 1, 3], abs=0.02)


class Noise:
    def crops(self, batch, side, rng):
        return torch.from_numpy(rng.standard_normal((batch, side, side, side), np.float32))


def test_processes_and_restarts_see_what_one_process_sees():
    config = TrainConfig(crops=1, stages=((1.0, 16, 4),))
    whole = list(batches(Noise(), config, config.plan(), 0, 1))
    assert len(whole) == 2
    assert not torch.equal(whole[0][1][0], whole[1][1][0])
    assert len({crop.sum().item() for crop in [*whole[0][1][0], *whole[0][1][2]]}) == 8  # nothing twice
    for rank in (0, 1):
        (step, share), *_ = batches(Noise(), config, config.plan(1, 4 * 16**3), rank, 2)
        assert step == whole[1][0]
        for mine, all_of_it in zip(share, whole[1][1], strict=True):
            assert torch.equal(mine, all_of_it[2 * rank : 2 * rank + 2])


class Oracle(nn.Module):
    """The velocity to a crop that is known."""

    def __init__(self, crop):
        super().__init__()
        self.crop = nn.Parameter(crop)

    def forward(self, x, t):
        return (x - self.crop) / t


def test_a_perfect_denoiser_has_fsc_1_and_no_loss_and_a_useless_one_neither():
    crop = torch.randn(1, 12, 12, 12, generator=torch.Generator().manual_seed(3))
    assert denoising_fsc(Oracle(crop[0]), crop) == pytest.approx(1, abs=1e-5)
    assert validation_loss(Oracle(crop[0]), crop) == pytest.approx([0] * 5, abs=1e-8)
    other = torch.randn(12, 12, 12, generator=torch.Generator().manual_seed(4))
    assert abs(denoising_fsc(Oracle(other), crop)) < 0.3
    assert min(validation_loss(Oracle(other), crop)) > 1


def test_pictures_are_png(tmp_path):
    grey = torch.linspace(0, 1, 16).reshape(2, 8)  # 255/15 is whole
    write_png(tmp_path / "a.png", grey)
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunks[kind] = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + chunks[kind])
        at += 12 + length
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (8, 2, 8, 0, 0, 0, 0)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(2, 9)
    assert (rows[:, 0] == 0).all()
    assert rows[:, 1:].ravel().tolist() == [17 * i for i in range(16)]


def test_a_log_file_gets_a_line_a_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with _bar(total=100, mininterval=10) as bar:
        for _ in range(30):
            now[0] += 10
            bar.update()
    said = capsys.readouterr().err
    assert len([line for line in said.splitlines() if line]) == 5
    assert "\r" not in said
