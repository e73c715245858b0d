"""From atomic models to a prior that denoise.py takes: simulate_maps.py and train_prior.py as their user runs them."""

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass

from cryofm_io import DensityMap, read_map, write_map
from cryofm_io.report import read_report
from cryofm_model import CRYOFM_L, CRYOFM_S, CryoFMError, load_prior
from cryofm_model.data import MapSet
from cryofm_model.latent import Codec, LatentPrior, load_latent
from cryofm_model.train import read_recipe

pytest.importorskip("gemmi")
pytest.importorskip("tqdm")
helix_bundles = runpy.run_path(str(Path(__file__).with_name("helix_bundles.py")))
EXAMPLES = Path(__file__).parents[1] / "examples"
simulate_maps = pytest.importorskip("simulate_maps")
whole_particles = pytest.importorskip("whole_particles")
train_prior = pytest.importorskip("train_prior")

RECIPE = """
voxel_size = 1.5
box = 64
[network]
kind = "unet"
widths = [8, 16]
depths = [1, 1]
up_depths = [1]
conditioning = 8
[training]
crops = 6
stages = [[1.0, 32, 2]]
warmup = 2
report_every = 2
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("models")
    for name in ("1AAA", "2BBB"):
        position = rng.uniform(-12, 12, (300, 3))
        lines = [
            f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00{b:6.2f}           C\n"
            for i, ((x, y, z), b) in enumerate(zip(position, rng.uniform(10, 60, 300), strict=True), 1)
        ]
        (folder / f"{name}.pdb").write_text("".join(lines) + "END\n")
    return folder


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(autouse=True)
def _few_examples(monkeypatch):
    monkeypatch.setattr(train_prior, "EXAMPLES", 2)
    monkeypatch.setattr(train_prior, "VALIDATION", 2)


@pytest.fixture
def run(monkeypatch, models, recipe, tmp_path):
    """Call train_prior.py on the models, with more options after it."""

    def call(*options):
        data = ["--maps", models, "--validation", models, "--out", tmp_path / "run", "--cache", tmp_path / "cache"]
        monkeypatch.setattr("sys.argv", ["train_prior.py", *map(str, [recipe, *data, *options])])
        return train_prior.exit_code(train_prior.main)

    return call


def test_models_become_maps(models, tmp_path, monkeypatch, capsys):
    maps, broken = tmp_path / "maps", tmp_path / "broken.pdb"
    broken.write_text("ATOM  nonsense\n")
    files = [*sorted(models.iterdir()), broken]
    monkeypatch.setattr("sys.argv", ["simulate_maps.py", *map(str, files), "--out", str(maps), "--jobs", "1"])
    assert simulate_maps.main() == 1  # one model is no model, and is named; the others are there
    assert "broken.pdb" in capsys.readouterr().err
    assert sorted(p.name for p in maps.iterdir()) == [
        "1AAA_0.mrc",
        "1AAA_1.mrc",
        "2BBB_0.mrc",
        "2BBB_1.mrc",
        "report.html",
    ]
    content = read_report(maps / "report.html")
    assert content["verdict"].startswith("4 maps")
    assert "broken.pdb" in content["table"]["rows"][0][0]
    assert read_map(maps / "1AAA_0.mrc").voxel_size == 1.5
    assert not np.array_equal(read_map(maps / "1AAA_0.mrc").data, read_map(maps / "1AAA_1.mrc").data)


def test_models_of_one_name_and_maps_of_another_grid_are_refused(models, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["simulate_maps.py", *map(str, arguments), "--jobs", "1", "--variants", "1"])
        return simulate_maps.exit_code(simulate_maps.main)

    model, maps = sorted(models.iterdir())[0], tmp_path / "maps"
    assemblies = [tmp_path / f"1AAA.assembly{i}.pdb" for i in (1, 2)]
    for path in assemblies:
        path.write_bytes(model.read_bytes())
    assert run(*assemblies, "--out", maps) == 0
    assert sorted(p.name for p in maps.iterdir()) == ["1AAA.assembly1_0.mrc", "1AAA.assembly2_0.mrc", "report.html"]
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / assemblies[0].name
    twin.write_bytes(model.read_bytes())
    with pytest.raises(SystemExit, match="2"):
        run(assemblies[0], twin, "--out", maps)
    assert "would make the same maps: 1AAA.assembly1" in capsys.readouterr().err
    assert run(assemblies[0], "--out", maps, "--voxel-size", "3") == 1
    assert "exists, with 1.5 Å a voxel" in capsys.readouterr().err


def test_whole_particles(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["whole_particles.py", *map(str, arguments), "--jobs", "1"])
        return whole_particles.exit_code(whole_particles.main)

    z, y, x = np.ogrid[:24, :24, :24]
    blob = np.exp(-(((x - 9) / 5) ** 2 + ((y - 12) / 4) ** 2 + ((z - 14) / 3) ** 2))
    a, twin, out = tmp_path / "a.mrc", tmp_path / "other" / "a.mrc", tmp_path / "out"
    twin.parent.mkdir()
    for path in (a, twin):
        write_map(path, DensityMap(blob, 3.0))
    write_map(tmp_path / "dark.mrc", DensityMap(-blob, 3.0))
    line = (a, "--out", out, "--box", 16, "--orientations", 2)
    assert run(*line) == 0
    content = read_report(out / "report.html")
    assert [volume["name"] for volume in content["volumes"]] == ["a_0", "a_1"]
    made = {path.name: path.read_bytes() for path in out.glob("*.mrc")}
    assert made.keys() == {"a_0.mrc", "a_1.mrc"}
    one, two = (read_map(out / name).data for name in made)
    for particle in (one, two):
        assert np.array_equal(np.round(center_of_mass(np.maximum(particle, 0))), [8, 8, 8])
    assert not np.array_equal(one, two)
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path / "dark.mrc", *line)
    assert "dark.mrc is left out: no density" in capsys.readouterr().err
    for wrong in (("--orientations", 0), ("--voxel-size", -1)):
        with pytest.raises(SystemExit, match="2"):
            run(*line, *wrong)
    with pytest.raises(SystemExit, match="2"):
        run(twin, *line)
    assert "several maps would make the same particles: a" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert run(a, "--out", tmp_path / "file") == 2
    assert {path.name: path.read_bytes() for path in out.glob("*.mrc")} == made


def test_from_models_to_a_prior_and_on_from_it(run, recipe, tmp_path, capsys):
    assert run() == 0
    assert "saved" in capsys.readouterr().out
    content = read_report(tmp_path / "run" / "report.html")
    assert [figure["name"] for figure in content["figures"]] == ["losses", "fsc"]
    assert ["training_data", "1AAA.pdb, 2BBB.pdb"] in content["table"]["rows"]
    prior = load_prior(tmp_path / "run")
    assert prior.voxel_size == 1.5
    assert prior.denoising_error[-1, 0] == 1
    assert prior(torch.zeros(32, 32, 32), torch.tensor(0.5)).isfinite().all()
    assert prior.about["training_data"] == "1AAA.pdb, 2BBB.pdb"
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["data"]["validation"] == ["1AAA.pdb", "2BBB.pdb"]
    assert told["settings"]["training"]["crops"] == 6
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2  # three steps: after 2 and at the end

    (tmp_path / "first").mkdir()
    os.replace(tmp_path / "run" / "model.safetensors", tmp_path / "first" / "model.safetensors")
    assert run("--init", tmp_path / "first") == 2  # the run that is there did not start from it
    assert "init: None there" in capsys.readouterr().err
    assert run("--init", tmp_path / "first", "--out", tmp_path / "first") == 2
    assert "first/model.safetensors is read, and would be lost" in capsys.readouterr().err
    recipe.write_text(RECIPE.replace("crops = 6", "crops = 7"))
    assert run() == 2
    assert "training.crops: 6 there, 7 here" in capsys.readouterr().err

    recipe.write_text(RECIPE + "\n[data]\nobserved = 1.0\n")
    assert run("--out", tmp_path / "second") == 2
    assert "that takes --init with a prior that carries statistics" in capsys.readouterr().err
    assert run("--out", tmp_path / "second", "--init", tmp_path / "first") == 0
    assert "from " in load_prior(tmp_path / "second").about["training"]
    recipe.write_text(RECIPE)

    network = train_prior.start_network(read_recipe(recipe), str(tmp_path / "first"))
    first = load_prior(tmp_path / "first").network
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), first.parameters(), strict=True))
    recipe.write_text(RECIPE.replace("depths = [1, 1]", "depths = [1, 2]"))
    with pytest.raises(CryoFMError, match=r"is not what the recipe trains \(depths: \[1, 1\] there, \[1, 2\] here\)"):
        train_prior.start_network(read_recipe(recipe), str(tmp_path / "first"))


def test_the_helices_of_the_smoke_run_can_be_trained_on(tmp_path):
    for seed in (0, 15):
        helix_bundles["write_bundle"](tmp_path / f"{seed}.pdb", seed)
    smoke = read_recipe(EXAMPLES / "recipes" / "smoke.toml")
    maps = MapSet.from_files(sorted(tmp_path.iterdir()), smoke.normalization, smoke.voxel_size, variants=1).maps
    assert [min(m.shape) > 40 for m in maps] == [True, True]  # every helix is there, not the first alone


def test_torchrun_trains_on_two_processes(models, recipe, tmp_path):
    """As its user starts it; without the statistics, which one process measures for minutes."""
    out = tmp_path / "run"
    arguments = [recipe, "--maps", models, "--validation", models, "--out", out, "--device", "cpu"]
    script = "import train_prior, sys; train_prior.EXAMPLES = train_prior.VALIDATION = 1; sys.exit(train_prior.main())"
    small = tmp_path / "small.py"
    small.write_text(script)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", small, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": f"{EXAMPLES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "OMP_NUM_THREADS": "1",
        },
        check=True,
        timeout=300,
    )
    assert json.loads((out / "run.json").read_text())["machine"]["processes"] == 2
    assert [row[0] for row in csv.reader((out / "log.csv").open())] == ["step", "2", "3"]
    assert load_prior(out).voxel_size == 1.5


def test_no_maps_is_one_line(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run("--maps", tmp_path / "empty") == 2
    assert capsys.readouterr().err.startswith("error: no maps or atomic models in ")


def test_a_folder_that_cannot_be_made_is_one_line(run, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert run("--out", tmp_path / "file" / "run") == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_measured_maps_are_for_recipes_that_mix_them_in(run, models, capsys):
    assert run("--measured", models) == 2
    assert "the recipe takes 0 of the crops from measured maps, and 4 are given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (RECIPE + "rate = 1\n", r"\[training\] has unknown keys rate; known are crops, stages, lr"),
        (RECIPE.replace("box = 64", ""), "lacks box"),
        (RECIPE.replace('"unet"', '"vae"'), "kind 'vae', expected one of unet, hourglass"),
        (RECIPE.replace("[[1.0, 32, 2]]", "[[0.5, 32, 2]]"), r"ends that rise to 1.0; found \(\(0.5, 32, 2\),\)"),
        (RECIPE.replace("crops = 6", "crops = -6"), "crops"),
        (RECIPE.replace("crops = 6", "crops = '6'"), "crops"),
        (RECIPE.replace("[network]", "[network"), "not a readable TOML file"),
    ],
)
def test_wrong_recipes_are_refused_by_name(recipe, wrong, message):
    recipe.write_text(wrong)
    with pytest.raises(CryoFMError, match=message):
        read_recipe(recipe)


@pytest.mark.parametrize(
    ("name", "config", "steps"), [("cryofm-s", CRYOFM_S, 150_000), ("cryofm-l", CRYOFM_L, 300_000)]
)
def test_the_published_recipes_are_those_of_table_4(name, config, steps):
    recipe = read_recipe(EXAMPLES / "recipes" / f"{name}.toml")
    assert (recipe.network.widths, recipe.network.depths) == (config.widths, config.depths)
    plan = recipe.training.plan()
    first = next(plan)
    assert first.batch == 128
    assert recipe.training.crops * 32**3 == steps * first.voxels
    assert first.batch % (8 * recipe.machine.micro_batch) == 0


def test_the_recipe_of_the_bundled_prior_has_its_sizes():
    recipe = read_recipe(EXAMPLES / "recipes" / "cryofm-tiny.toml")
    prior = load_prior("cryofm-tiny")
    assert (recipe.network, recipe.normalization, recipe.voxel_size, recipe.box) == (
        prior.network.config,
        prior.normalization,
        prior.voxel_size,
        prior.box,
    )


AUTOENCODER = """kind = "autoencoder"
widths = [8, 16]
depth = 1
channels = 2
groups = 4
"""
LATENT_FLOW = """kind = "hourglass"
widths = [16]
depths = [1]
patch = 2
head_width = 16
channels = 2
"""


def test_an_autoencoder_and_a_flow_over_its_latents(run, recipe, tmp_path, capsys):
    begin, end = RECIPE.index("kind"), RECIPE.index("[training]")
    recipe.write_text((RECIPE[:begin] + AUTOENCODER + RECIPE[end:]).replace("32, 2", "16, 2").replace("= 6", "= 1"))
    assert run() == 0
    assert "ae_fsc" in capsys.readouterr().out
    codec = load_latent(tmp_path / "run")
    assert isinstance(codec, Codec)
    assert codec.about["training_data"] == "1AAA.pdb, 2BBB.pdb"
    assert 0 < float(codec.about["ae_l1"]) < 1
    with pytest.raises(CryoFMError, match="load_latent reads it"):
        load_prior(tmp_path / "run")
    os.replace(tmp_path / "run", tmp_path / "autoencoder")

    assert run("--autoencoder", tmp_path / "autoencoder") == 2
    assert "takes a recipe of the kind hourglass" in capsys.readouterr().err
    flow = (RECIPE[:begin] + LATENT_FLOW + RECIPE[end:]).replace("32, 2", "16, 2").replace("= 6", "= 1")
    recipe.write_text(flow)
    assert run("--autoencoder", tmp_path / "autoencoder", "--init", "cryofm-tiny") == 2
    assert "their training starts from scratch" in capsys.readouterr().err
    assert run("--autoencoder", tmp_path / "autoencoder") == 0
    prior = load_latent(tmp_path / "run")
    assert isinstance(prior, LatentPrior)
    assert torch.equal(prior.codec.std, codec.std)
    assert prior.codec.decode(prior(torch.zeros(16, 8, 8), torch.tensor(0.5))).shape == (16, 16, 16)
    recipe.write_text(flow.replace("voxel_size = 1.5", "voxel_size = 2.0"))
    assert run("--autoencoder", tmp_path / "autoencoder", "--out", tmp_path / "other") == 2
    assert "the recipe says 2 Å" in capsys.readouterr().err
