"""No setting is NaN, infinite or out of range: it is refused in one line that names it and its value."""

import math
import os
import socket
import subprocess
import sys
import zlib

import numpy as np
import pytest

pytest.importorskip("cryofm_io")

from cryofm_model import CryoFMError, HourglassConfig, Normalization, UNetConfig, WeightsError, load_prior, save_prior
from cryofm_model.data.mixture import Imitated, Mixture
from cryofm_model.data.particles import whole_particle
from cryofm_model.prior import Prior
from cryofm_model.train import DataConfig, Machine, Recipe, TrainConfig
from cryofm_model.train.muon import Muon

NAN, INF = math.nan, math.inf
UNET = UNetConfig(widths=(4, 8), depths=(1, 1), up_depths=(1,), conditioning=8)
RUN = TrainConfig()


def recipe(**changes):
    return Recipe(**{"voxel_size": 1.5, "box": 16, "network": UNET, "training": RUN, **changes})


WRONG_NUMBERS = [NAN, INF, -INF, -1.0, "1", None, True, 10**400, [1.0]]


@pytest.mark.parametrize("value", [*WRONG_NUMBERS, 0, 0.0])
@pytest.mark.parametrize("name", ["lr", "clip", "muon_lr"])
def test_rates(name, value):
    if (name, value) != ("muon_lr", None):
        with pytest.raises(CryoFMError, match=rf"^TrainConfig: {name} must be a finite number above 0, found .*$"):
            TrainConfig(**{name: value})


@pytest.mark.parametrize("value", WRONG_NUMBERS)
def test_weight_decay(value):
    with pytest.raises(CryoFMError, match=r"^TrainConfig: weight_decay must be a finite number from 0 on, found"):
        TrainConfig(weight_decay=value)


@pytest.mark.parametrize("value", [*WRONG_NUMBERS, 1.0, 1.5])
def test_the_decay_of_an_average_is_below_1(value):
    with pytest.raises(CryoFMError, match=r"^TrainConfig: ema must be a number from 0 to below 1, found"):
        TrainConfig(ema=value)


@pytest.mark.parametrize("value", [*WRONG_NUMBERS, 1.5])
@pytest.mark.parametrize("name", ["measured", "imitated", "observed"])
def test_fractions(name, value):
    with pytest.raises(CryoFMError, match=f"^DataConfig: {name} must be a number from 0 to 1, found"):
        DataConfig(**{name: value})


@pytest.mark.parametrize("value", [NAN, INF, 0, -1, 1.5, 2.0, "1", True, 10**400])
@pytest.mark.parametrize(
    ("kind", "name"),
    [(TrainConfig, "crops"), (TrainConfig, "warmup"), (TrainConfig, "report_every"), (Machine, "micro_batch")],
)
def test_counts(kind, name, value):
    with pytest.raises(CryoFMError, match=f"^{kind.__name__}: {name} must be a whole number from 1 to .*, found"):
        kind(**{name: value})


@pytest.mark.parametrize(
    "stages",
    [
        *(NAN, 3, "abc", [3], [[1.0, 32]], [[NAN, 32, 2]], [[INF, 32, 2]], [[1.0, 0, 2]], [[1.0, 32, 0]]),
        *([[1.0, 32.5, 2]], [[1.0, NAN, 2]], [[1.0, 32, INF]], [["1.0", 32, 2]], [[1.0, 10**6, 2]], [[True, 32, 2]]),
    ],
)
def test_stages(stages):
    with pytest.raises(CryoFMError, match=r"^TrainConfig: stages are .*found"):
        TrainConfig(stages=stages)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: TrainConfig(schedule="never"), "schedule"),
        (lambda: TrainConfig(times=[]), "times"),
        (lambda: TrainConfig(precision=16), "precision"),
        (lambda: TrainConfig(seed=-1), "seed"),
        (lambda: Machine(shard=1), "shard"),
        (lambda: Machine(recompute="no"), "recompute"),
        (lambda: DataConfig(place="edge"), "place"),
        (lambda: DataConfig(turn=[]), "turn"),
        (lambda: recipe(voxel_size=NAN), "voxel_size"),
        (lambda: recipe(voxel_size=INF), "voxel_size"),
        (lambda: recipe(box=1.5), "box"),
        (lambda: recipe(normalization=Normalization(mean=NAN)), "Normalization: mean"),
        (lambda: recipe(normalization=Normalization(std=INF)), "Normalization: std"),
        (lambda: recipe(network=UNetConfig((4, 8), (1e6, 1), (1,))), "UNetConfig: depths"),
        (lambda: recipe(network=UNetConfig((4, 8), (10**6, 1), (1,))), "UNetConfig: depths"),
        (lambda: recipe(network=UNetConfig((4, NAN), (1, 1), (1,))), "UNetConfig: widths"),
        (lambda: recipe(network=UNetConfig(conditioning=3)), "UNetConfig: conditioning"),
        (lambda: recipe(network=HourglassConfig(widths=(64,), depths=(1e6,))), "HourglassConfig: depths"),
        (lambda: recipe(network=HourglassConfig(widths=(64,), depths=(1,), kernel=7.0)), "HourglassConfig: kernel"),
        (lambda: Imitated(None, NAN, Normalization(), 1.5), "fraction"),
        (lambda: Imitated(None, 0.5, Normalization(mean=INF), 1.5), "Normalization: mean"),
        (lambda: Imitated(None, 0.5, Normalization(), NAN), "voxel_size"),
        (lambda: Mixture([(None, NAN), (None, 0.5)]), "fractions"),
        (lambda: Muon([], lr=NAN), "lr"),
        (lambda: Muon([], momentum=1.5), "momentum"),
        (lambda: whole_particle(np.ones((4, 4, 4)), NAN, 8, finest=1.0), "voxel_size"),
        (lambda: whole_particle(np.ones((4, 4, 4)), 1.0, 0, finest=1.0), "box"),
        (lambda: whole_particle(np.full((99, 4, 4), INF), 1.0, 8, finest=1.0), "no density"),
    ],
)
def test_others(make, name):
    with pytest.raises(CryoFMError, match=name):
        make()


def test_a_prior_that_could_not_be_loaded_is_not_saved(tmp_path):
    good = load_prior()
    settings = {"normalization": good.normalization, "voxel_size": 1.5, "box": 32}
    with pytest.raises(CryoFMError, match="voxel_size"):
        save_prior(Prior(good.network, **settings | {"voxel_size": INF}), tmp_path / "a.safetensors")
    with pytest.raises(CryoFMError, match="Normalization: mean"):
        save_prior(
            Prior(good.network, **settings | {"normalization": Normalization(mean=NAN)}), tmp_path / "a.safetensors"
        )
    with pytest.raises(WeightsError, match="cannot be written"):
        save_prior(good, tmp_path / "missing" / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_prior_is_written_through_no_link(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "a.safetensors.partial").symlink_to(tmp_path / "victim")
    save_prior(load_prior(), tmp_path / "a.safetensors")
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "a.safetensors.partial").is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="there nobody asks whether a process lives")
def test_what_a_dead_process_left_of_a_prior_goes_with_the_next(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    machine = f"{zlib.crc32(socket.gethostname().encode()):08x}"
    left, lives, another = (
        tmp_path / f".partial-{machine}-{process}-0123456789abcdef-{name}.safetensors"
        for process, name in ((dead.pid, "a"), (os.getpid(), "a"), (dead.pid, "b"))
    )
    for path in (left, lives, another):
        path.touch()
    save_prior(load_prior(), tmp_path / "a.safetensors")
    assert sorted(tmp_path.iterdir()) == sorted([lives, another, tmp_path / "a.safetensors"])
