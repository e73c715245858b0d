"""The same loop trains an autoencoder and a flow over its latents; a run that stopped goes on exactly."""

import csv
import runpy
from pathlib import Path

import attrs
import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("cryofm_io")

import numpy as np

from cryofm_model import CryoFMError, Hourglass, HourglassConfig, Normalization, forward_gflop
from cryofm_model.latent import Autoencoder, AutoencoderConfig, Codec, autoencoding_loss
from cryofm_model.latent.training import AutoencoderValidation, LatentFlowLoss, LatentValidation
from cryofm_model.networks.flops import counted_gflop
from cryofm_model.train import TrainConfig, train

worker = runpy.run_path(str(Path(__file__).with_name("train_worker.py")))
Blobs, interrupt = worker["Blobs"], worker["interrupt"]
TINY = AutoencoderConfig(widths=(8, 16), depth=1, channels=2, groups=4)
FLOW = HourglassConfig(widths=(16,), depths=(1,), patch=2, head_width=16, channels=2, conditioning=8)
RUN = TrainConfig(crops=1, stages=((1.0, 16, 2),), lr=2e-3, warmup=2, report_every=2, ema=0.5)  # 4 steps


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    crops = Blobs().crops(2, 16, np.random.default_rng(1))
    return Codec.measured(Autoencoder(TINY).eval().requires_grad_(False), Normalization(), 1.5, crops)


def start(kind, folder, codec, maps=None, config=RUN):
    torch.manual_seed(0)
    crops = Blobs().crops(2, 16, np.random.default_rng(0))
    if kind == "autoencoder":
        validation, loss = AutoencoderValidation(crops, 0.09), autoencoding_loss
        return train(Autoencoder(TINY), maps or Blobs(), validation, config, folder, loss=loss)
    validation, loss = LatentValidation(crops, codec), LatentFlowLoss(codec)
    return train(Hourglass(FLOW), maps or Blobs(), validation, config, folder, loss=loss)


def log(folder):
    return list(csv.DictReader((folder / "log.csv").read_text().splitlines()))


@pytest.mark.parametrize("kind", ["autoencoder", "flow"])
@pytest.mark.slow
def test_a_run_that_stopped_ends_as_if_it_never_had(kind, codec, tmp_path):
    whole = start(kind, tmp_path / "whole", codec)

    def stop(draw):
        if draw > 6:  # of the fourth step
            raise Interrupted

    with pytest.raises(Interrupted):
        start(kind, tmp_path / "stopped", codec, Blobs(stop))
    assert [row["step"] for row in log(tmp_path / "stopped")] == ["2"]
    again = start(kind, tmp_path / "stopped", codec)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    rows = [
        [{k: v for k, v in row.items() if k != "crops_per_s"} for row in log(tmp_path / f)]
        for f in ("whole", "stopped")
    ]
    assert rows[0] == rows[1]
    assert len(list((tmp_path / "whole" / "samples").iterdir())) == 2
    columns = ["ae_fsc", "ae_l1", "kl"] if kind == "autoencoder" else ["latent_v_mse_t0.1", "fsc_auc_t0.7"]
    assert all(np.isfinite(float(rows[0][0][column])) for column in columns)


@pytest.mark.slow
def test_the_column_of_computing(codec, tmp_path):
    """Three evaluations a crop, and the encoder once for a flow over latents; rows of an old log, without it, stay."""
    start("autoencoder", tmp_path / "a", codec)
    each = counted_gflop(Autoencoder(TINY), (1, 16, 16, 16), (1, 16, 8, 8))
    assert [float(row["gflop"]) for row in log(tmp_path / "a")] == pytest.approx([3 * 4 * each, 3 * 8 * each], rel=1e-5)
    old = tmp_path / "a" / "log.csv"
    rows = [[v for k, v in row.items() if k != "gflop"] for row in log(tmp_path / "a")]
    header = [k for k in log(tmp_path / "a")[0] if k != "gflop"]
    with old.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    start("autoencoder", tmp_path / "a", codec)  # finished: nothing is left to do
    assert [(row["step"], row["ae_fsc"], row["gflop"]) for row in log(tmp_path / "a")] == [
        (rows[i][0], rows[i][header.index("ae_fsc")], "") for i in range(2)
    ]
    flow = LatentValidation(torch.zeros(1, 16, 16, 16), codec).gflop(Hourglass(FLOW), 16)
    encoder = counted_gflop(codec.autoencoder.encoder, (1, 1, 16, 16, 16))
    assert flow == pytest.approx(3 * forward_gflop(FLOW, (8, 8, 8)) + encoder)


@pytest.mark.slow
def test_an_autoencoder_learns(codec, tmp_path):
    crops = Blobs().crops(1, 16, np.random.default_rng(0))
    torch.manual_seed(0)
    before = AutoencoderValidation(crops, 0.09).scores(Autoencoder(TINY))
    config = attrs.evolve(RUN, crops=6, lr=1e-2, report_every=100)
    after = AutoencoderValidation(crops, 0.09).scores(start("autoencoder", tmp_path, codec, config=config))
    assert after[0] > before[0] + 0.1
    assert after[1] < 0.7 * before[1]


def test_the_flow_is_trained_on_samples_of_latents_by_flow_matching(codec):
    seen = []

    class Network(torch.nn.Module):
        def forward(self, z, t):
            seen.append(z)
            return torch.zeros_like(z)

    x_0, x_1 = Blobs().crops(1, 16, np.random.default_rng(0)), torch.randn(1, 16, 16, 16, dtype=torch.float32)
    loss = LatentFlowLoss(codec)(Network(), x_0, torch.tensor([0.25]), x_1)
    noise, z_1 = x_1.reshape(-1)[:1024].reshape(1, 16, 8, 8), x_1.reshape(-1)[1024:2048].reshape(1, 16, 8, 8)
    z_0 = codec.encode(x_0, noise)
    torch.testing.assert_close(loss, (z_1 - z_0).square().flatten(1).mean(1))
    z_t = (0.75 * z_0 + 0.25 * z_1).reshape(1, 2, 8, 8, 8).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(seen[0], z_t)


def test_sides_that_no_latent_has_are_refused_before_anything_is_trained(codec):
    validation = LatentValidation(torch.zeros(1, 16, 16, 16), codec)
    validation.check_sides(Hourglass(FLOW), [16, 32])
    with pytest.raises(CryoFMError, match="every side must be a multiple of 2"):
        validation.check_sides(Hourglass(FLOW), [16, 18])
    with pytest.raises(CryoFMError, match="takes 1 channels, the codec's latents have 2"):
        validation.check_sides(Hourglass(attrs.evolve(FLOW, channels=1)), [16])
