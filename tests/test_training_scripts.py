"""From atomic models to a prior that denoise.py takes: simulate_maps.py and train_prior.py as their user runs them."""

import numpy as np
import pytest
import torch

from cryofm_io import read_map
from cryofm_model import UNet, UNetConfig, load_prior
from cryofm_model.train import TrainConfig

pytest.importorskip("gemmi")
simulate_maps = pytest.importorskip("simulate_maps")
train_prior = pytest.importorskip("train_prior")


@pytest.fixture
def models(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("1AAA", "2BBB"):
        position = rng.uniform(-12, 12, (300, 3))
        lines = [
            f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00{b:6.2f}           C\n"
            for i, ((x, y, z), b) in enumerate(zip(position, rng.uniform(10, 60, 300), strict=True), 1)
        ]
        (folder / f"{name}.pdb").write_text("".join(lines) + "END\n")
    (folder / "broken.pdb").write_text("ATOM  nonsense\n")
    return folder


def test_from_models_to_a_prior(models, tmp_path, monkeypatch, capsys):
    maps, run = tmp_path / "maps", tmp_path / "run"
    arguments = ["simulate_maps.py", *map(str, sorted(models.iterdir())), "--out", str(maps), "--jobs", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    assert simulate_maps.main() == 1  # one model is no model, and is named; the others are there
    assert "broken.pdb" in capsys.readouterr().err
    assert sorted(p.name for p in maps.iterdir()) == ["1AAA_0.mrc", "1AAA_1.mrc", "2BBB_0.mrc", "2BBB_1.mrc"]
    assert read_map(maps / "1AAA_0.mrc").voxel_size == 1.5
    assert not np.array_equal(read_map(maps / "1AAA_0.mrc").data, read_map(maps / "1AAA_1.mrc").data)

    small = UNetConfig(widths=(8, 16), depths=(1, 1), up_depths=(1,), conditioning=8)
    monkeypatch.setitem(train_prior.NETWORKS, "unet", lambda: UNet(small))
    monkeypatch.setattr(
        train_prior, "TrainConfig", lambda **options: TrainConfig(**options, stages=((1.0, 32, 2),), warmup=2)
    )
    monkeypatch.setattr(train_prior, "EXAMPLES", 2)
    monkeypatch.setattr(
        "sys.argv",
        ["train_prior.py", "--maps", str(maps), "--validation", str(maps), "--out", str(run), "--crops", "6"],
    )
    assert train_prior.main() == 0
    assert "saved" in capsys.readouterr().out
    prior = load_prior(run)
    assert prior.voxel_size == 1.5
    assert prior.denoising_error[-1, 0] == 1
    assert prior(torch.zeros(32, 32, 32), torch.tensor(0.5)).isfinite().all()

    monkeypatch.setattr(
        "sys.argv",
        ["train_prior.py", "--maps", str(maps), "--validation", str(maps), "--out", str(run), "--crops", "7"],
    )
    assert train_prior.main() == 2
    assert "crops: 6 there, 7 here" in capsys.readouterr().err


def test_no_maps_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["train_prior.py", "--maps", str(tmp_path), "--validation", str(tmp_path), "--out", str(tmp_path)]
    )
    assert train_prior.main() == 2
    assert "error: no density to train on" in capsys.readouterr().err
