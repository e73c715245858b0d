"""examples/enhance.py as its user runs it: the published recipe, half maps with their likelihood, refusals."""

import json

import attrs
import numpy as np
import pytest
import torch

from cryofm_io import GridTransform, read_map
from cryofm_model import load_prior, save_prior
from cryofm_sampling import calibrate

enhance = pytest.importorskip("enhance")
script = pytest.importorskip("_command_line")
results = pytest.importorskip("_results")


@pytest.fixture
def run(monkeypatch, conditional, tmp_path):
    def run(*arguments, prior=conditional):
        line = (*map(str, arguments), "--prior", str(prior), "--out", str(tmp_path / "out"))
        monkeypatch.setattr("sys.argv", ["enhance.py", *line])
        return script.exit_code(enhance.main)

    return run


def test_one_map_is_the_published_recipe(run, conditional, half_maps, tmp_path, capsys):
    path = half_maps[0]
    state = tmp_path / "state"
    line = ("--steps", 3, "--seed", 4, "--checkpoint", state, "--precision", "fp32")
    assert run(path, *line) == 3  # of an untrained prior there are doubts
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(results.FILES)
    assert not list(tmp_path.glob("state*"))
    before, after = read_map(path), read_map(tmp_path / "out" / "restored.mrc")
    assert (after.shape, after.voxel_size, after.origin) == (before.shape, before.voxel_size, before.origin)
    said = capsys.readouterr()
    assert "do not trust this map" in said.err
    assert "shown the map alone" in said.out
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    settings = record["algorithm"]
    assert (settings["steps"], settings["integrator"], settings["spacing"]) == (3, "euler", "even")
    assert (settings["tag"], settings["weight"], len(record["doubts"])) == (1, 0.5, 1)

    # Once more by hand; one tile has the whole box, mirrored to a cube.
    prior, grid = load_prior(conditional), GridTransform.of(before, 1.5)
    y = torch.from_numpy(grid.forward(before.data - np.median(before.data))).float()
    p = np.percentile(y.numpy(), 99.999)
    side = 2 * ((max(y.shape) + 1) // 2)
    place = np.ix_(*(_mirrored(n, side) for n in y.shape))
    shown = (torch.from_numpy(y.numpy()[place]) / p - 0.04) / 0.09
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(4)))
    x = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
    inner = tuple(slice((side - n) // 2, (side - n) // 2 + n) for n in y.shape)
    both = torch.stack([shown, torch.ones_like(shown)])[None]
    with torch.no_grad():
        for t in (1.0, 2 / 3, 1 / 3):
            x_t = torch.from_numpy(x.numpy()[place])[None]
            v_given, v = (prior.network(x_t, torch.tensor([t]), shown, 1)[0] for shown in (both, None))
            x = x - (1.5 * v_given - 0.5 * v)[inner] / 3
    expected = grid.inverse(((x * 0.09 + 0.04) * p).numpy())
    found = after.data - after.data.mean()
    assert np.abs(found - (expected - expected.mean())).max() < 1e-4 * found.std()


def _mirrored(n, side):
    """Indices of an axis of n voxels, extended to a side by reflection at both ends."""
    at = (np.arange(side) - (side - n) // 2) % (2 * n)
    return np.minimum(at, 2 * n - 1 - at)


def test_half_maps_bring_their_likelihood(run, conditional, half_maps, tmp_path, capsys):
    assert run(*half_maps, "--steps", 2) in (0, 3)  # no statistics: the paper's algorithm
    assert "Alg. 1 with 2 steps" in capsys.readouterr().out
    prior = load_prior(conditional)
    examples = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    tables = calibrate(prior, examples, generator=torch.Generator().manual_seed(0), times=(0.1, 0.5, 0.9))
    calibrated = tmp_path / "calibrated.safetensors"
    save_prior(attrs.evolve(prior, weight=0.0).with_statistics(tables), calibrated)
    assert run(*half_maps, "--steps", 2, "--overwrite", prior=calibrated) in (0, 3)
    assert "shown the filtered mean of the halves; tag 1, guidance 0" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["algorithm"]["algorithm"] == "PlugAndPlay"
    mean = (read_map(half_maps[0]).data + read_map(half_maps[1]).data) / 2
    held = read_map(tmp_path / "out" / "restored.mrc").data
    assert np.corrcoef(mean.ravel(), held.ravel())[0, 1] > 0.9  # whatever the prior


def test_what_cannot_be_is_refused_in_a_line(run, small_prior, half_maps, tmp_path, capsys):
    assert run(half_maps[0], prior=small_prior) == 2
    assert "cannot be shown a map; give --prior the folder cryofm2-emhancer" in capsys.readouterr().err
    assert run(half_maps[0], "--tag", 2) == 2
    assert "error: tag 2: the network of this prior knows 2 tags" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(half_maps[0], "--weight", -1)
    assert not (tmp_path / "out").exists()
