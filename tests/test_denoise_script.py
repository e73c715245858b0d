"""examples/denoise.py as its user runs it: what it leaves, what it refuses, and that it gains."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import attrs
import mrcfile
import numpy as np
import pytest
import torch

from cryofm_io import DensityMap, FscCurve, fsc, read_map, write_map
from cryofm_model import Prior, load_prior, save_prior
from cryofm_ops import Envelope
from cryofm_sampling import stationary_model
from cryofm_sampling.half_maps import _runs as restoration

denoise = pytest.importorskip("denoise")
script = pytest.importorskip("_command_line")
given = pytest.importorskip("_maps")
records = pytest.importorskip("_record")
results = pytest.importorskip("_results")

EXAMPLES = Path(__file__).parents[1] / "examples"
RESULTS = {"restored.mrc", "linear.mrc", "fsc.csv", "fsc.png", "slices.png", "report.html", "open.cxc", "run.json"}


def test_results_lie_on_the_input_grid(run, small_prior, half_maps, tmp_path, capsys):
    assert run(*half_maps, "--out", tmp_path / "out", "--samples", 0, "--scale", 0.33, "--b-factor", 0) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == RESULTS
    before, after = read_map(half_maps[0]), read_map(tmp_path / "out" / "restored.mrc")
    assert after.shape == before.shape
    assert (after.voxel_size, after.origin, after.nstart) == (before.voxel_size, before.origin, before.nstart)
    # The scale is kept: the restored map explains the data about as well as the halves explain each other.
    mean = (before.data + read_map(half_maps[1]).data) / 2
    assert np.corrcoef(mean.ravel(), after.data.ravel())[0, 1] > 0.8
    assert 0.5 < after.data.std() / mean.std() < 1.1
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert len(record["inputs_sha256"]) == 3  # the prior's file too
    assert record["inputs_sha256"][record["settings"]["prior"]] == records.sha256(small_prior)
    assert record["threads"] == torch.get_num_threads()
    assert "drawing" not in record
    assert record["settings"]["seed"] == 0
    assert record["algorithm"]["algorithm"] == "PlugAndPlay"
    assert set(record["versions"]) >= {"cryofm-io", "cryofm-ops", "cryofm-sampling", "cryofm-model", "torch"}
    for picture in ("fsc.png", "slices.png"):
        assert (tmp_path / "out" / picture).read_bytes()[:4] == b"\x89PNG"
    assert "self-consistency, not resolution" in (tmp_path / "out" / "fsc.csv").read_text()
    with mrcfile.open(tmp_path / "out" / "restored.mrc") as file:
        assert b"never for resolution claims" in file.header.label[0]
    assert "restored by PlugAndPlay" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(run, half_maps, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        line = ("--seed", seed, "--samples", 1, "--steps", 2, "--scale", 0.5)  # B is searched for
        assert run(*half_maps, "--out", tmp_path / name, *line) == 0
    a, b, c = (read_map(tmp_path / name / "sample_01.mrc").data for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


KILLED = """
import os, signal, sys
import attrs, denoise
from _command_line import exit_code
from cryofm_sampling import Checkpoint, Rescaled

def killed(self, x, t, /, call=Rescaled.__call__, calls=[]):
    calls.append(t)
    if len(calls) == AT:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(self, x, t)

Rescaled.__call__ = killed
Checkpoint.part = lambda self, k, part=Checkpoint.part: attrs.evolve(part(self, k), every_seconds=0)
sys.exit(exit_code(denoise.main))
"""


def test_the_scale_and_the_envelope_that_were_found_may_be_given(run, half_maps, tmp_path, capsys):
    assert run(*half_maps, "--out", tmp_path / "found") == 0
    assert "found in" in capsys.readouterr().out
    record = json.loads((tmp_path / "found" / "run.json").read_text())
    scale, b, k = record["scale"], record["b_factor"], record["solvent_contrast"]
    assert len(record["scale_trials"]) > 5
    given = ("--scale", scale, "--b-factor", b, "--solvent-contrast", k)
    assert run(*half_maps, "--out", tmp_path / "given", *given) == 0
    said = capsys.readouterr().out
    assert f"scale {scale:.3g}, envelope B = {b:.0f} Å²" in said
    assert "as given" in said
    found, given = (read_map(tmp_path / name / "restored.mrc").data for name in ("found", "given"))
    assert np.array_equal(found, given)


def test_a_killed_run_goes_on_to_the_same_bits(run, small_prior, half_maps, tmp_path, monkeypatch):
    line = (*half_maps, "--steps", 2, "--samples", 1, "--scale", 0.5, "--b-factor", 0)
    assert run(*line, "--out", tmp_path / "a") == 0
    line = (*line, "--out", tmp_path / "b", "--checkpoint", tmp_path / "state.safetensors")
    monkeypatch.setenv("PYTHONPATH", f"{EXAMPLES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED.replace("AT", "15"), *map(str, line), "--prior", small_prior], timeout=300
    )
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "state-3.safetensors").exists()  # of the sample
    assert run(*line) == 0
    for name in ("restored.mrc", "sample_01.mrc"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    assert not list(tmp_path.glob("state*"))


def test_precision(run, half_maps, tmp_path, scale_given):
    for precision in ("fp32", "bf16"):
        options = ("--out", tmp_path / precision, "--precision", precision, "--steps", 2)
        assert run(*half_maps, *options, prior="cryofm-tiny") == 0
    single, mixed = (read_map(tmp_path / name / "restored.mrc").data for name in ("fp32", "bf16"))
    difference = np.square(mixed - single).sum() / np.square(single).sum()
    assert 0 < difference < 1e-2


def test_samples_and_mask(run, half_maps, tmp_path, monkeypatch):
    plot, met = results.plot_slices, []
    monkeypatch.setattr(results, "plot_slices", lambda *a, through, **b: (met.append(through), plot(*a, **b)))
    half = read_map(half_maps[0])
    mask = np.zeros(half.shape, np.float32)
    mask[6:19, 6:19, 8:23] = 1
    write_map(tmp_path / "mask.mrc", DensityMap(mask, half.voxel_size, half.origin, half.nstart))
    line = ("--samples", 2, "--mask", tmp_path / "mask.mrc", "--scale", 0.33, "--b-factor", 0)
    assert run(*half_maps, "--out", tmp_path / "out", *line) == 0
    assert met == [[12, 12, 15]]
    one, two = (read_map(tmp_path / "out" / f"sample_0{i}.mrc").data for i in (1, 2))
    assert not np.array_equal(one, two)
    drawing = json.loads((tmp_path / "out" / "run.json").read_text())["drawing"]
    assert (drawing["algorithm"], drawing["samples"]) == ("PosteriorFlow", 2)
    assert drawing["steps"] > 2
    uncertainty = read_map(tmp_path / "out" / "uncertainty.mrc")
    assert uncertainty.labels == (results.SPREAD_NOTE,)
    np.testing.assert_allclose(uncertainty.data, np.abs(one - two) / 2**0.5, rtol=1e-4, atol=1e-6)
    assert (uncertainty.voxel_size, uncertainty.origin) == (half.voxel_size, half.origin)
    restored = read_map(tmp_path / "out" / "restored.mrc").data
    for data in (one, two, restored):
        assert not data[mask == 0].any()
        assert data[mask == 1].any()


@pytest.mark.parametrize("masked", [False, True])
def test_a_constant_under_the_halves_changes_nothing_but_itself(run, half_maps, tmp_path, capsys, scale_given, masked):
    constant, half = 2000, read_map(half_maps[0])  # thousands of standard deviations
    mask = np.zeros(half.shape, np.float32)
    mask[6:20, 6:20, 6:20] = 1
    write_map(tmp_path / "mask.mrc", attrs.evolve(half, data=mask))
    lifted = [tmp_path / path.name for path in half_maps]
    for path, to in zip(half_maps, lifted, strict=True):
        write_map(to, attrs.evolve(half, data=read_map(path).data + constant))
    maps, said = [], []
    for name, files in (("plain", half_maps), ("lifted", lifted)):
        options = ("--mask", tmp_path / "mask.mrc") if masked else ()
        assert run(*files, "--out", tmp_path / name, "--steps", 2, *options) == 0
        maps.append(read_map(tmp_path / name / "restored.mrc").data)
        said.append(re.search("half maps: .*", capsys.readouterr().out)[0])
    assert said[0] == said[1]
    np.testing.assert_allclose(maps[1] - (0 if masked else constant), maps[0], atol=2e-3)


def test_solvent_is_found_where_density_fills_the_box(run, tmp_path):
    truth, rng = given.demo_map(), np.random.default_rng(0)
    inside = truth.data[32:68, 32:68, 32:68] / np.percentile(truth.data, 99.999)
    halves = [inside + 0.2 + rng.normal(0, 0.1, inside.shape) for _ in range(2)]
    assert np.median(halves) > 0.25  # which would be taken for solvent
    paths = [tmp_path / f"half{i}.mrc" for i in (1, 2)]
    for path, half in zip(paths, halves, strict=True):
        write_map(path, DensityMap(half, truth.voxel_size))
    assert run(*paths, "--out", tmp_path / "out", "--scale", 1, "--b-factor", 0, prior="cryofm-tiny") == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["solvent"] == pytest.approx(0.2, abs=0.015)


@pytest.mark.parametrize("changed", [0, 1])
def test_a_restored_half_depends_on_the_other_by_noise_and_scale_alone(
    run, half_maps, tmp_path, monkeypatch, scale_given, changed
):
    models = []
    made = lambda *a, **k: models[0] if models else models.append(stationary_model(*a, **k)) or models[0]  # noqa: E731
    monkeypatch.setattr(sys.modules["cryofm_sampling.half_maps.restore"], "directional_model", made)
    restore, draws = restoration.restore, []
    monkeypatch.setattr(restoration, "restore", lambda *a, **k: draws.append(restore(*a, **k)) or draws[-1])
    half = read_map(half_maps[changed])
    data = half.data.copy()
    data[:20] += 0.1  # the median moves as well
    write_map(tmp_path / "other.mrc", attrs.evolve(half, data=data))
    others = [tmp_path / "other.mrc" if i == changed else path for i, path in enumerate(half_maps)]
    for name, files in (("a", half_maps), ("b", others)):
        assert run(*files, "--out", tmp_path / name) == 0
    before, after = draws[1:3], draws[4:6]
    assert len(draws) == 6
    assert not torch.equal(before[changed].x, after[changed].x)
    assert torch.equal(before[1 - changed].x, after[1 - changed].x)


def broken(tmp_path, half_maps, what):
    """The files of a user who makes one mistake, and what the message must say."""
    half = read_map(half_maps[0])
    path = tmp_path / f"{what}.mrc"

    def save(data, voxel_size=half.voxel_size, origin=half.origin):
        with mrcfile.new(path, overwrite=True) as file:
            file.set_data(np.asarray(data, np.float32))
            file.voxel_size = voxel_size
            file.header.origin = origin
            file.header.nxstart, file.header.nystart, file.header.nzstart = half.nstart
        return path

    if what == "missing":
        return tmp_path / "none.mrc", "none.mrc"
    if what == "truncated":
        path.write_bytes(half_maps[0].read_bytes()[:5000])
        return path, "truncated"
    if what == "text":
        path.write_text("not a map" * 1000)
        return path, "text.mrc"
    if what == "nan":
        data = half.data.copy()
        data[2, 3, 4] = np.nan
        return save(data), r"\(2, 3, 4\)"
    if what == "constant":
        return save(np.ones(half.shape)), "constant|equal"
    if what == "no voxel size":
        return save(half.data, 0), "--voxel-size"
    if what == "other shape":
        return save(half.data[:, :, 1:]), r"shape.*\(25, 28, 31\).*\(25, 28, 30\)|\(25, 28, 30\)"
    if what == "other voxel size":
        return save(half.data, 1.4), r"voxel size.*1\.3.*1\.4"
    if what == "other origin":
        return save(half.data, origin=(9, 9, 9)), "origin"
    if what == "twice":
        return half_maps[0], "noise cannot be estimated"
    if what == "masked":
        data = read_map(half_maps[1]).data.copy()
        data[:12] = 0
        return save(data), "masked"
    if what == "anisotropic":
        with mrcfile.new(path) as file:
            file.set_data(half.data)
            file.voxel_size = (1.3, 1.3, 1.5)
        return path, "1.5"
    if what == "image":
        with mrcfile.new(path) as file:
            file.set_data(half.data[0])
            file.voxel_size = 1.3
        return path, "expected a 3-D map"
    raise AssertionError(what)


MISTAKES = [
    "missing",
    "truncated",
    "text",
    "nan",
    "constant",
    "no voxel size",
    "other shape",
    "other voxel size",
    "other origin",
    "twice",
    "masked",
    "anisotropic",
    "image",
]


@pytest.mark.parametrize("what", MISTAKES)
def test_bad_input_is_one_line_and_leaves_nothing(run, half_maps, tmp_path, capsys, what):
    path, message = broken(tmp_path, half_maps, what)
    before = set(tmp_path.iterdir())
    assert run(half_maps[0], path, "--out", tmp_path / "out") == 2
    captured = capsys.readouterr().err.strip().splitlines()
    assert captured[-1].startswith("error: ")
    assert re.search(message, captured[-1]), captured
    assert set(tmp_path.iterdir()) == before


def test_a_prior_without_statistics_runs_the_papers_algorithm(run, small_prior, half_maps, tmp_path, capsys):
    known, bare = load_prior(small_prior), tmp_path / "bare.safetensors"
    save_prior(Prior(known.network, known.normalization, known.voxel_size, known.box), bare)
    line = (*half_maps, "--steps", 3, "--scale", 0.5, "--b-factor", 0, "--max-push", 2, "--halves")
    assert run(*line, "--out", tmp_path / "bare", prior=bare) in (0, 3)
    assert "no measured statistics, which the default algorithm needs" in (said := capsys.readouterr().out)
    assert "the paper's restores, Alg. 1 with 3 steps" in said
    assert run(*line, "--out", tmp_path / "asked", "--algorithm", "paper") == 0  # the same weights
    maps = [
        [read_map(tmp_path / out / f"restored{end}.mrc").data for end in ("", "_half1", "_half2")]
        for out in ("bare", "asked")
    ]
    assert np.array_equal(*maps)
    whole, one, two = maps[0]
    assert np.abs(whole - (one + two) / 2).max() < 5e-3 * np.abs(whole).max()  # each half by itself, then averaged
    algorithm = json.loads((tmp_path / "bare" / "run.json").read_text())["algorithm"]
    assert {"sampler": "Guided", "guidance": "paper", "steps": 3, "max_push": 2.0}.items() <= algorithm.items()
    assert "average of both halves" in algorithm["estimate"]


def test_samples_of_a_prior_without_statistics_are_refused(run, small_prior, half_maps, tmp_path, capsys):
    known = load_prior(small_prior)
    save_prior(Prior(known.network, known.normalization, known.voxel_size, known.box), tmp_path / "bare.safetensors")
    assert run(*half_maps, "--samples", 2, "--out", tmp_path / "out", prior=tmp_path / "bare.safetensors") == 2
    assert "calibrate_prior.py adds them, once" in capsys.readouterr().err


def test_a_wrong_voxel_size_can_be_put_right(run, half_maps, tmp_path):
    path, _ = broken(tmp_path, half_maps, "no voxel size")
    path2 = tmp_path / "second.mrc"
    path2.write_bytes(path.read_bytes())
    with mrcfile.open(path2, "r+") as file:
        file.set_data(read_map(half_maps[1]).data)
        file.voxel_size = 0
    mask = tmp_path / "mask.mrc"
    mask.write_bytes(path.read_bytes())
    with mrcfile.open(mask, "r+") as file:
        file.set_data((file.data > 0.5).astype(np.float32))
        file.voxel_size = 0
    assert run(path, path2, "--voxel-size", 1.3, "--mask", mask, "--out", tmp_path / "out", "--steps", 2) == 0
    assert read_map(tmp_path / "out" / "restored.mrc").voxel_size == pytest.approx(1.3)


def test_voxels_coarser_than_the_prior_s(run, half_maps, tmp_path):
    for i, path in enumerate(half_maps):
        write_map(tmp_path / f"{i}.mrc", attrs.evolve(read_map(path), voxel_size=2.4))
    assert run(tmp_path / "0.mrc", tmp_path / "1.mrc", "--out", tmp_path / "out") == 0
    before, after = read_map(tmp_path / "0.mrc"), read_map(tmp_path / "out" / "restored.mrc")
    assert after.shape == before.shape
    assert after.voxel_size == before.voxel_size
    assert np.corrcoef(before.data.ravel(), after.data.ravel())[0, 1] > 0.7


def test_the_curves_end_where_the_input_does(run, half_maps, tmp_path, scale_given):
    for i, path in enumerate(half_maps):
        write_map(tmp_path / f"{i}.mrc", attrs.evolve(read_map(path), voxel_size=2.4))
    assert run(tmp_path / "0.mrc", tmp_path / "1.mrc", "--out", tmp_path / "out", "--steps", 2) == 0
    table = np.genfromtxt(tmp_path / "out" / "fsc.csv", delimiter=",", skip_header=1)
    assert 4.8 - 1e-3 <= table[-1, 1] < 5.2


@pytest.mark.parametrize(
    ("correlation", "said"),
    [((0.9, 0.8), "not reached by 4.00 Å"), ((0.9, 0.1), "at 4.11 Å"), ((0.1, 0), "in no shell")],
)
def test_a_resolution_is_said_only_where_the_curve_falls(correlation, said):
    curve = FscCurve(np.array([0.125, 0.25]), np.array(correlation), np.array([10, 40]))
    assert results.crossing(curve) == said


def test_noise_beyond_what_was_measured_is_endless():
    halves = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    noise_power = stationary_model(*halves, band=0.5).noise_power
    assert (noise_power[5:] > 1e5).all()
    assert (noise_power[:5] < 10).all()


def test_another_axis_order_is_noted_and_put_right(run, half_maps, tmp_path, caplog):
    for i, path in enumerate(half_maps):
        half = read_map(path)
        with mrcfile.new(tmp_path / f"{i}.mrc") as file:
            file.set_data(np.ascontiguousarray(half.data.transpose(2, 1, 0)))  # sections along x
            file.voxel_size = half.voxel_size
            file.header.mapc, file.header.mapr, file.header.maps = 3, 2, 1
            file.header.nxstart, file.header.nystart, file.header.nzstart = half.nstart[::-1]
            file.header.origin = half.origin
    known = ("--scale", 0.33, "--b-factor", 0)
    assert run(tmp_path / "0.mrc", tmp_path / "1.mrc", *known, "--out", tmp_path / "swapped") == 0
    assert "axis" in caplog.text
    assert run(*half_maps, *known, "--out", tmp_path / "plain") == 0
    swapped, plain = (read_map(tmp_path / name / "restored.mrc") for name in ("swapped", "plain"))
    assert (swapped.origin, swapped.nstart) == (plain.origin, plain.nstart)
    np.testing.assert_array_equal(swapped.data, plain.data)


@pytest.mark.parametrize(
    ("change", "message"), [("shift", "origin"), ("negative", r"\[0, 1\]"), ("empty", "empty|zero"), ("crop", "shape")]
)
def test_a_mask_that_does_not_fit(run, half_maps, tmp_path, capsys, change, message):
    half = read_map(half_maps[0])
    mask, origin = np.zeros(half.shape, np.float32), half.origin
    mask[6:20, 6:20, 6:20] = 1
    if change == "shift":
        origin = (50, 0, 0)
    elif change == "negative":
        mask -= 0.5
    elif change == "empty":
        mask *= 0
    elif change == "crop":
        mask = mask[1:]
    with mrcfile.new(tmp_path / "mask.mrc") as file:
        file.set_data(mask)
        file.voxel_size = half.voxel_size
        file.header.origin = origin
        file.header.nxstart, file.header.nystart, file.header.nzstart = half.nstart
    assert run(*half_maps, "--mask", tmp_path / "mask.mrc", "--out", tmp_path / "out") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("--out", ""), ("--seed", 10**23), ("--steps", 10**20), ("--samples", 10**20)],
        *[("--scale", value) for value in (0, "inf", "nan", "two", "1e-300", "1e300")],
    ],
)
def test_values_that_cannot_be_are_refused_by_the_command_line(run, half_maps, tmp_path, capsys, option, value):
    with pytest.raises(SystemExit) as stop:
        run(*half_maps, "--out", tmp_path / "out", option, value)
    assert stop.value.code == 2
    assert f"argument {option}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("voxel_size", "message"),
    [(100, "needs about"), (10000, "is the voxel size right")],
)
def test_absurd_voxel_sizes_are_told_before_anything_is_resampled(
    run, half_maps, tmp_path, capsys, monkeypatch, voxel_size, message
):
    monkeypatch.setattr("cryofm_sampling.runs.memory._available_memory", lambda _: 4 * 2**30)
    assert run(*half_maps, "--out", tmp_path / "out", "--voxel-size", voxel_size) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_too_little_memory_is_said_before_the_start(run, half_maps, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cryofm_sampling.runs.memory._available_memory", lambda _: 10 * 2**20)
    monkeypatch.setattr(restoration, "restore", None)
    assert run(*half_maps, "--out", tmp_path / "out") == 2
    assert re.search(r"needs about .* GiB on cpu, and there are 0.01", capsys.readouterr().err)


def test_a_device_that_is_not_there_is_an_error_not_a_change(run, half_maps, tmp_path, capsys):
    missing = "cuda:7" if torch.cuda.device_count() < 8 else "xpu:7"
    assert run(*half_maps, "--out", tmp_path / "out", "--device", missing) == 2
    assert missing in capsys.readouterr().err
    assert run(*half_maps, "--out", tmp_path / "out", "--device", "meta") == 2
    assert "no device 'meta'" in capsys.readouterr().err


def test_weights_that_are_none(run, half_maps, tmp_path, capsys):
    torch.save({}, tmp_path / "weights.pt")
    assert run(*half_maps, "--out", tmp_path / "out", prior=tmp_path / "weights.pt") == 2
    assert "pickle" in capsys.readouterr().err


def test_help_states_units(run, capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--mask",
        "--seed",
        "--steps",
        "--samples",
        "--checkpoint",
        "--device",
        "--overwrite",
        "--voxel-size",
    ):
        assert option in text
    assert "Å" in text


def test_the_example_has_the_noise_that_it_says():
    example = given.demo_half_maps(denoise.DEMO_LEVEL, seed=0)
    half1, half2 = example.maps
    curve = fsc(half1.data, half2.data, half1.voxel_size)
    wanted = np.genfromtxt(given.DEMO_CURVES, delimiter=",", names=True)
    expected = np.interp(curve.frequency, wanted["freq"], wanted["43A"])
    inside = curve.frequency < wanted["freq"][-1]
    spread = 4 / np.sqrt(curve.n_voxels)
    assert (np.abs(curve.correlation - expected)[inside] < spread[inside]).mean() > 0.95


def test_the_example_gains_on_the_best_linear_filter(run, tmp_path, monkeypatch, capsys):
    """The promise of the README, by the bundled prior, a quarter of the default's evaluations, a third of the box."""
    monkeypatch.setattr(given, "demo_map", partial(given.demo_map, side=72.0))
    assert run("--out", tmp_path / "out", "--steps", 2, prior="cryofm-tiny") == 0
    scores = json.loads((tmp_path / "out" / "run.json").read_text())["against_the_truth"]
    degraded, linear, restored = (scores[name] for name in (results.INPUT, results.WIENER, results.RESTORED))
    assert restored["fsc_auc"] > linear["fsc_auc"] + 0.05
    assert restored["fsc_auc"] > degraded["fsc_auc"] + 0.05
    assert restored["relative_error"] < linear["relative_error"]
    assert "best linear filter" in capsys.readouterr().out


@pytest.mark.parametrize(("scale", "told"), [(0.3, False), (10.0, True)])
def test_a_scale_at_which_nothing_is_left_of_the_map_is_told(run, half_maps, tmp_path, capsys, scale, told):
    line = (*half_maps, "--scale", scale, "--b-factor", 0, "--steps", 8, "--out", tmp_path / "out")
    assert run(*line, prior="cryofm-tiny") == (3 if told else 0)
    assert ("restored, has to be multiplied by" in capsys.readouterr().err) is told
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["slope_of_the_other_half"] > 1.3) is told
    assert bool(record["doubts"]) is told


def test_one_map_of_a_stated_resolution(run, half_maps, tmp_path, capsys):
    assert run(half_maps[0], "--resolution", 6.0, "--steps", 2, "--out", tmp_path / "out") == 0
    assert "without halves neither noise nor scale can be checked" in capsys.readouterr().out
    before, after = read_map(half_maps[0]), read_map(tmp_path / "out" / "restored.mrc")
    assert (after.shape, after.origin, after.nstart) == (before.shape, before.origin, before.nstart)


@pytest.mark.parametrize("line", [(0,), (0, 1, "--resolution", 6.0), ("--resolution", 6.0)])
def test_one_map_goes_with_its_resolution_alone(run, half_maps, tmp_path, capsys, line):
    line = [half_maps[part] if part in (0, 1) else part for part in line]
    with pytest.raises(SystemExit) as stop:
        run(*line, "--out", tmp_path / "out")
    assert stop.value.code == 2
    assert "one map and its --resolution" in capsys.readouterr().err


def test_halves_and_the_envelope_are_left_where_they_are_asked_for(run, half_maps, tmp_path):
    told = ("--scale", 0.5, "--b-factor", 80, "--steps", 2, "--halves")
    assert run(*half_maps, "--out", tmp_path / "sharp", *told) == 0
    assert run(*half_maps, "--out", tmp_path / "blurred", *told, "--keep-envelope") == 0
    left = {path.name for path in (tmp_path / "sharp").iterdir()}
    assert left == RESULTS | {"restored_half1.mrc", "restored_half2.mrc"}
    sharp, blurred = (read_map(tmp_path / name / "restored.mrc") for name in ("sharp", "blurred"))
    expected = Envelope(80.0, sharp.voxel_size)(torch.from_numpy(sharp.data))
    np.testing.assert_allclose(blurred.data, expected, atol=1e-3 * np.abs(sharp.data).max())


def test_noise_may_differ_from_place_to_place_in_bands(run, half_maps, tmp_path):
    line = (*half_maps, "--scale", 0.33, "--b-factor", 0, "--steps", 2)
    maps = []
    for flags in (("--local-noise",), ("--noise-bands", 2)):
        assert run(*line, *flags, "--out", tmp_path / "out", "--overwrite") == 0
        maps.append(read_map(tmp_path / "out" / "restored.mrc").data)
    assert 0.9 < np.corrcoef(*(data.ravel() for data in maps))[0, 1] < 1 - 1e-9


def test_the_weighted_map_loses_what_the_halves_do_not_share(run, half_maps, tmp_path):
    line = (*half_maps, "--scale", 0.33, "--b-factor", 0, "--halves", "--fsc-weighted", "--steps", 3)
    assert run(*line, "--out", tmp_path / "out") == 0
    names = ("restored", "restored_half1", "restored_half2", "restored_fsc_weighted")
    plain, one, two, weighted = (read_map(tmp_path / "out" / f"{name}.mrc") for name in names)
    curve = fsc(one.data, two.data, plain.voxel_size)  # another program's shells
    amplitudes = []
    for map in (plain, weighted):
        F, k = np.fft.fftn(map.data), np.linalg.norm(np.meshgrid(*map_frequencies(map), indexing="ij"), axis=0)
        edges = (curve.frequency[:-1] + curve.frequency[1:]) / 2
        amplitudes.append([np.sqrt((abs(F[(k >= a) & (k < b)]) ** 2).sum()) for a, b in itertools.pairwise(edges)])
    ratio = np.array(amplitudes[1]) / amplitudes[0]
    assert np.abs(ratio - np.sqrt(curve.correlation[1:-1].clip(0)))[2:].max() < 0.15
    assert ratio.min() < 0.9


def map_frequencies(map):
    return [np.fft.fftfreq(n, map.voxel_size) for n in map.shape]


def test_the_folder_of_an_emdb_entry(half_maps, tmp_path, capsys):
    import denoise
    from _maps import take_entry

    from cryofm_io import InputFileError

    folder = tmp_path / "EMD-1"
    folder.mkdir()
    for k, half in enumerate(half_maps, 1):
        (folder / f"emd_1_half_map_{k}.map").write_bytes(half.read_bytes())
    args = denoise.parse([str(folder), "--out", "o"])
    take_entry(args)
    assert (args.half1.name, args.half2.name) == ("emd_1_half_map_1.map", "emd_1_half_map_2.map")
    assert f"{folder}: {args.half1}, {args.half2}" in capsys.readouterr().out
    args.half2.rename(folder / "emd_1.map")
    args.half1.unlink()
    args = denoise.parse([str(folder), "--out", "o"])
    with pytest.raises(InputFileError, match="no map with a header that tells its resolution"):
        take_entry(args)
    with (folder / "emd-1.xml").open("w") as file:
        file.write(
            "<emd emdb_id='EMD-1'><structure_determination_list><a><b><final_reconstruction><resolution>4.5"
            "</resolution></final_reconstruction></b></a></structure_determination_list></emd>"
        )
    for given, taken in ((), 4.5), (("--resolution", "5"), 5):
        args = denoise.parse([str(folder), "--out", "o", *given])
        take_entry(args)
        assert args.resolution == taken
