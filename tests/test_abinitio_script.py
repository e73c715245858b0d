"""abinitio.py as its users run it, on a few small images: what it leaves, and what it refuses."""

import csv
import json

import numpy as np
import pytest
import torch

from cryofm_io import DensityMap, read_images, read_map, write_map
from cryofm_ops import FourierProjector, random_rotations

script = pytest.importorskip("_script")
abinitio = pytest.importorskip("abinitio")
N, SIZE = 40, 4.0


@pytest.fixture(scope="module")
def images():
    """Five projections of some blobs, dark on a bright background."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(N)] * 3, indexing="ij"), -1)
    density = sum(np.exp(-((grid - c) ** 2).sum(-1) / 12) for c in rng.uniform(13, 27, (9, 3)))
    rotations = random_rotations(5, generator=torch.Generator().manual_seed(0))
    projections = FourierProjector(rotations, torch.full((5, 2), 2.0), (N, N, N))(torch.from_numpy(density).float())
    return 100 - 3 * projections.numpy() + rng.normal(0, 0.5, (5, N, N))


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(data, *arguments):
        write_map(tmp_path / "classes.mrcs", DensityMap(data, SIZE), overwrite=True)
        out = ("--out", tmp_path / "out", "--tries", 2, "--steps", 3, "--seed", 1)
        arguments = ("classes.mrcs", "--mask-diameter", 96, *out, *arguments)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["abinitio.py", *map(str, arguments)])
        return script.exit_code(abinitio.main)

    return run


def test_leaves_models_poses_and_scores(run, images, tmp_path, capsys):
    assert run(images, "--invert", "--keep", 2) == 0
    out = tmp_path / "out"
    names = {"model_01.mrc", "model_02.mrc", "poses.star", "pairs.png", "scores.csv", "run.json"}
    assert {path.name for path in out.iterdir()} == names
    model = read_map(out / "model_01.mrc")
    assert (model.shape, model.voxel_size) == ((32, 32, 32), pytest.approx(5.0, rel=5e-3))
    poses = read_images(out / "poses.star").poses
    # The centres of mass are 2 pixels of 4 Å off.
    assert poses.shifts == pytest.approx(np.full((5, 2), 8.0), abs=4.5)
    rows = list(csv.DictReader((out / "scores.csv").open(newline="")))
    misfits = [float(row["misfit"]) for row in rows]
    assert misfits == sorted(misfits)
    assert misfits[0] < 0.4
    record = json.loads((out / "run.json").read_text())
    assert record["network_evaluations"] == 2 * (3 + 3) + 2 * (3 + 3)  # all tries, then those kept
    assert min(record["correlations_of_the_best"]) > 0.7
    assert "mirror" in record["note"]
    printed = capsys.readouterr()
    assert "5 images hardly determine a model" in printed.err
    assert "hand of a model" in printed.out


def test_symmetry_is_imposed(run, images, tmp_path):
    assert run(images, "--invert", "--keep", 1, "--sym", "c2") == 0
    x = read_map(tmp_path / "out" / "model_01.mrc").data[:, 1:, 1:]
    assert np.abs(x - x[:, ::-1, ::-1]).max() < 0.02 * x.max()


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda y: y[:, :-2], [], "expected square images"),
        (lambda y: y[:1], [], "at least 2"),
        (lambda y: np.where(y == y.max(), np.nan, y), [], "not finite"),
        (lambda y: y, ["--mask-diameter", 400], "does not fit"),
        (lambda y: y, ["--device", "nowhere"], "no device 'nowhere'"),
        (lambda y: np.repeat(y, 21, 0), [], "100 at most"),
    ],
)
def test_bad_input(run, images, change, arguments, message, tmp_path, capsys):
    assert run(change(images), *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_inverted_contrast_is_noticed(run, images, capsys):
    run(images)
    assert "inverted contrast" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["C0", "X", "D", "C4v"])
def test_point_groups_that_are_none(run, images, name):
    with pytest.raises(SystemExit) as stopped:
        run(images, "--sym", name)
    assert stopped.value.code == 2
