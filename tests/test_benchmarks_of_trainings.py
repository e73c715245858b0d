"""ablation.py and latent.py on trainings of two steps: their tables say what can be computed again."""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cryofm_io import DensityMap, write_map
from cryofm_model import CryoFMError, Hourglass, HourglassConfig, Normalization, Prior, save_prior
from cryofm_model.latent import Autoencoder, AutoencoderConfig, Codec, LatentPrior, autoencoding_loss, save_latent
from cryofm_model.latent.training import AutoencoderValidation, LatentFlowLoss, LatentValidation
from cryofm_model.train import TrainConfig, train, validation_loss
from cryofm_sampling import calibrate, restore

pytest.importorskip("tqdm")
pytest.importorskip("matplotlib")
pytest.importorskip("torchdiffeq")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
SIDE, CONFIG = 16, TrainConfig(crops=1, stages=((1.0, 16, 4),), warmup=1, report_every=1)  # two steps
VOXEL = HourglassConfig(widths=(16,), depths=(1,), patch=4, head_width=16, conditioning=8)
TINY = AutoencoderConfig(widths=(8, 16), depth=1, channels=2, groups=4)
FLOW = HourglassConfig(widths=(16,), depths=(1,), patch=2, head_width=16, channels=2, conditioning=8)


def script(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def density(rng):
    grid = np.stack(np.meshgrid(*3 * [np.arange(SIDE)], indexing="ij"), -1)
    x = sum(np.exp(-((grid - c) ** 2).sum(-1) / 3) for c in rng.uniform(4, 12, (12, 3)))
    return (x / x.max()).astype(np.float32)


class Blobs:
    def crops(self, batch, side, rng):
        assert side == SIDE
        return (torch.from_numpy(np.stack([density(rng) for _ in range(batch)])) - 0.04) / 0.09


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders: maps, a prior of volumes, one that was not finished, a codec, a flow over its latents."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    crops = Blobs().crops(2, SIDE, np.random.default_rng(0))
    (folder / "maps").mkdir()
    for i, crop in enumerate(crops):
        write_map(folder / "maps" / f"{i}.mrc", DensityMap((crop * 0.09 + 0.04).numpy(), 1.5))
    network = train(Hourglass(VOXEL), Blobs(), crops, CONFIG, folder / "voxel").eval()
    train(Hourglass(VOXEL), Blobs(), crops, CONFIG, folder / "unfinished")
    autoencoder = train(
        Autoencoder(TINY), Blobs(), AutoencoderValidation(crops, 0.09), CONFIG, folder / "codec", loss=autoencoding_loss
    )
    codec = Codec.measured(autoencoder.eval(), Normalization(), 1.5, crops)
    flow = train(
        Hourglass(FLOW), Blobs(), LatentValidation(crops, codec), CONFIG, folder / "flow", loss=LatentFlowLoss(codec)
    )
    prior = Prior(network, Normalization(), 1.5, SIDE)
    prior = prior.with_statistics(calibrate(network, crops, generator=torch.Generator().manual_seed(0)))
    save_prior(prior, folder / "voxel" / "model.safetensors")
    save_latent(codec, folder / "codec" / "model.safetensors")
    save_latent(LatentPrior(flow.eval(), codec), folder / "flow" / "model.safetensors")
    for name in ("voxel", "unfinished", "codec", "flow"):
        (folder / name / "run.json").write_text(json.dumps({"settings": {"voxel_size": 1.5}}))
    return folder


def call(module, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["benchmark", *map(str, arguments)])
    module.main()


def lines(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_ablations(runs, monkeypatch, tmp_path):
    ablation = script("ablation")
    maps = sorted((runs / "maps").iterdir())
    out = tmp_path / "table"
    call(
        ablation, monkeypatch, runs / "voxel", runs / "unfinished", "--held-out", maps[0], "--train", maps[1],
        "--box", SIDE, "--steps", 2, "--out", out,
    )  # fmt: skip
    done, unfinished = lines(f"{out}.csv")
    log = lines(runs / "voxel" / "log.csv")
    prior = ablation.Run.of(runs / "voxel").made
    (truth,) = ablation.crops_of(maps[:1], 1.5, SIDE)
    x_0 = ((truth - 0.04) / 0.09)[None]
    assert float(done["v_mse"]) == pytest.approx(np.mean(validation_loss(prior.network, x_0)), abs=1e-3)
    data = ablation.degraded("spectral 4.3A", truth, torch.Generator().manual_seed(0))
    x = restore(prior, data.of_mean, shape=(SIDE,) * 3, generator=torch.Generator().manual_seed(0)).x
    assert float(done["auc_spectral"]) == pytest.approx(ablation.Score.of(x, truth, 1.5).auc, abs=1e-3)
    assert done["training_gflop"] == log[-1]["gflop"]
    assert float(done["nats_train"]) != float(done["nats_held_out"])
    assert (unfinished["steps"], unfinished["v_mse"], unfinished["nats_train"]) == ("2", "", "")
    curve = [line for line in lines(f"{out}_curves.csv") if line["run"] == "voxel"]
    assert [float(line["gflop"]) for line in curve] == [float(row["gflop"]) for row in log]
    means = [np.mean([float(row[f"v_mse_t0.{i}"]) for i in (1, 3, 5, 7, 9)]) for row in log]
    assert [float(line["v_mse"]) for line in curve] == pytest.approx(means, abs=1e-4)
    assert Path(f"{out}.png").stat().st_size > 10_000
    with pytest.raises(CryoFMError, match=r"flow is of latents; latent.py compares those"):
        call(ablation, monkeypatch, runs / "flow", "--out", out)
    with pytest.raises(CryoFMError, match="is no folder of a training"):
        call(ablation, monkeypatch, runs / "maps", "--out", out)


def test_latent_models(runs, monkeypatch, tmp_path):
    latent = script("latent")
    map_0 = runs / "maps" / "0.mrc"
    out = tmp_path / "table"
    call(
        latent, monkeypatch, "--models", runs / "voxel", runs / "codec", runs / "flow", "--maps", map_0, "--box", SIDE,
        "--samples", 1, "--gflop", 0.004, "--rows", "spectral 4.3A", "--steps", 2, "--out", out,
    )  # fmt: skip
    codec = latent.Run.of(runs / "codec").made
    truth = torch.from_numpy(latent.crop(latent.clean(map_0, 1.5), SIDE))
    found = 0.09 * codec.decode(codec.encode((truth - 0.04) / 0.09)) + 0.04
    rows = lines(f"{out}_autoencoding.csv")
    assert [row["model"] for row in rows] == ["codec", "flow"] * 2  # the map, and the mean of one
    assert float(rows[0]["ae_l1"]) == pytest.approx(float((found - truth).abs().mean()), abs=1e-4)
    power = lines(f"{out}_power.csv")
    assert len(power) == SIDE // 2
    assert list(power[0]) == ["resolution_angstrom", "held-out crops", "voxel", "flow"]
    shell = latent.radial_mean(latent.rfft(truth).abs().square(), (SIDE,) * 3)[3]
    assert float(power[2]["held-out crops"]) == pytest.approx(float(shell), rel=1e-2)
    computed = lines(f"{out}_computing.csv")
    assert float(computed[0]["gflop"]) == pytest.approx(0.004, abs=0.003)
    tasks = [row for row in lines(f"{out}_tasks.csv") if row["map"] == "0.mrc"]
    assert [row["model"] for row in tasks] == ["voxel", "flow"]
    assert tasks[0]["auc_degraded"] == tasks[1]["auc_degraded"]
    assert all(np.isfinite(float(row["auc"])) for row in tasks)
    with pytest.raises(CryoFMError, match=r"no model.safetensors in unfinished"):
        call(latent, monkeypatch, "--models", runs / "unfinished", "--maps", map_0, "--out", out)
