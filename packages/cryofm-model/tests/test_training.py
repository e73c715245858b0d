"""Training: the loss by hand, the crops by their definition, a run that resumes exactly and learns."""

import numpy as np
import pytest
import torch

pytest.importorskip("tqdm")

from cryofm_model import CryoFMError, Normalization, UNet, UNetConfig, flow_matching_loss
from cryofm_model.data import MapSet
from cryofm_model.data.augment import cube_rotations
from cryofm_model.train import TrainConfig, train, validation_loss

SMALL = UNetConfig(widths=(8, 16), depths=(1, 1), up_depths=(1,), conditioning=8)
SHORT = TrainConfig(crops=2, stages=((0.5, 16, 2), (1.0, 24, 1)), lr=1e-3, warmup=3)


def blobs(seed, shape=(40, 36, 32)):
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    density = sum(np.exp(-((grid - c) ** 2).sum(-1) / 8) for c in rng.uniform(8, 28, (12, 3)))
    return ((density / density.max() - 0.04) / 0.09).astype(np.float16)


@pytest.fixture
def maps():
    return MapSet([blobs(0), blobs(1)], Normalization())


def test_loss_by_hand():
    x_0, x_1 = torch.full((1, 2, 2, 2), 3.0), torch.full((1, 2, 2, 2), 5.0)
    seen = []

    def network(x, t):
        seen.append((x, t))
        return torch.zeros_like(x)

    loss = flow_matching_loss(network, x_0, torch.tensor([0.25], dtype=torch.float64), x_1)  # finer than the data
    assert loss.tolist() == [4.0]  # |x_1 - x_0|²
    assert seen[0][0].unique().tolist() == [3.5]  # three quarters of the way to the data


def test_the_24_rotations_are_rotations_and_all_different():
    volume = np.arange(27).reshape(3, 3, 3)
    turned = {np.flip(volume.transpose(order), flips).tobytes() for order, flips in cube_rotations()}
    assert len(turned) == 24
    mirrored = volume[::-1].tobytes()
    assert mirrored not in turned


def test_crops_are_cut_from_the_maps(maps):
    crops = maps.crops(6, 16, np.random.default_rng(0))
    assert crops.shape == (6, 16, 16, 16)
    assert crops.dtype == torch.float32
    assert torch.equal(crops, maps.crops(6, 16, np.random.default_rng(0)))
    assert (crops > 1).flatten(1).any(1).all()  # every crop holds density
    values = set(np.unique(np.concatenate([m.ravel() for m in maps.maps])).tolist()) | {np.float32(maps.empty).item()}
    assert set(crops.unique().tolist()) <= values


def test_crops_larger_than_the_map_are_filled_with_solvent(maps):
    crops = maps.crops(2, 64, np.random.default_rng(0))
    assert (crops == np.float32(maps.empty)).float().mean() > 0.7


def test_maps_without_density_are_refused():
    with pytest.raises(CryoFMError, match="no density to train on"):
        MapSet([np.zeros((8, 8, 8), np.float16)], Normalization(mean=0.0))


def run(maps, folder, config=SHORT, **options):
    torch.manual_seed(0)
    return train(UNet(SMALL), maps, torch.from_numpy(blobs(2)[None, :32, :32, :32]).float(), config, folder, **options)


@pytest.mark.slow
def test_resuming_with_other_settings_is_refused(maps, tmp_path):
    run(maps, tmp_path)
    with pytest.raises(CryoFMError, match=r"seed: 0 there, 1 here"):
        run(maps, tmp_path, TrainConfig(crops=2, stages=SHORT.stages, lr=1e-3, warmup=3, seed=1))


@pytest.mark.slow
def test_training_learns(maps, tmp_path):
    validation = torch.from_numpy(blobs(2)[None, :32, :32, :32]).float()
    before = validation_loss(UNet(SMALL), validation)
    config = TrainConfig(crops=20, stages=((1.0, 16, 2),), lr=4e-3, warmup=5, ema=0.9)
    after = validation_loss(run(maps, tmp_path, config), validation)
    assert np.mean(after) < 0.8 * np.mean(before)
    header, *rows = (tmp_path / "log.csv").read_text().splitlines()
    assert header.startswith("step,crops,rate,loss,v_mse_t0.1")
    assert len(rows) == 1


def test_maps_on_disk_come_into_model_units(tmp_path):
    cryofm_io = pytest.importorskip("cryofm_io")
    density = np.maximum(blobs(0).astype(np.float32) * 0.09 + 0.04, 0)
    cryofm_io.write_map(tmp_path / "a.mrc", cryofm_io.DensityMap(7 * density, 1.5))
    maps = MapSet.from_files([tmp_path / "a.mrc"], Normalization(), 1.5)
    np.testing.assert_allclose(maps.maps[0].astype(np.float32), blobs(0).astype(np.float32), atol=0.03, rtol=0.03)
