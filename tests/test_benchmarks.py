"""The benchmarks on tiny input: what they say is what was measured, and what they have they do not measure again."""

import csv
import importlib.util
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cryofm_io import DensityMap, fsc, write_map
from cryofm_model import ConditionalPrior, Prior, UNet, UNetConfig, load_prior, save_prior
from cryofm_ops import ObservationError, coverage_from_poses
from cryofm_sampling import Guided

pytest.importorskip("tqdm")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # where the scripts find _protocol.py


def load(name):
    """A script; by its path, since examples have some of the same name."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


protocol, paper, tables = load("_protocol"), load("paper"), load("_paper_tables")


def density(seed, side=32):
    """Blobs, solvent 0 and the brightest 1."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*3 * [np.arange(side)], indexing="ij"), -1)
    x = sum(np.exp(-((grid - c) ** 2).sum(-1) / 3) for c in rng.uniform(0.3 * side, 0.7 * side, (25, 3)))
    return (x / x.max()).astype(np.float32)


@pytest.fixture
def maps(tmp_path):
    folder = tmp_path / "maps"
    folder.mkdir()
    for i, name in enumerate(("one", "two")):
        write_map(folder / f"{name}.mrc", DensityMap(density(i), 1.5))
    return folder


@pytest.fixture
def run(monkeypatch, small_prior):
    """A script with these arguments, as its user runs it."""

    def run(module, *arguments, prior=small_prior):
        if prior is not None:
            arguments = (*arguments, "--prior", prior)
        monkeypatch.setattr("sys.argv", ["benchmark", *map(str, arguments)])
        module.main()

    return run


def lines_of(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def of(lines, **keys):
    """The lines with these values."""
    return [line for line in lines if all(line[key] == value for key, value in keys.items())]


def untimed(lines):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_failure_is_counted_and_both_means_are_said(run, maps, tmp_path, monkeypatch):
    whole, calls = paper.restore, []

    def restore(*data, **how):
        calls.append(1)
        if len(calls) == 10:  # the second half of the second map's second row
            raise ObservationError("broken on purpose")
        return whole(*data, **how)

    monkeypatch.setattr(paper, "restore", restore)
    line = ("--maps", maps, "--box", 32, "--steps", 2, "--tables", "1", "--out", tmp_path / "t")
    run(paper, *line)
    lines = lines_of(tmp_path / "t.csv")
    assert len(lines) == 2 * 3 * 3  # maps, rows, and degraded, Wiener, ours
    good, bad = of(lines, row="spectral 4.3A", method="plug-and-play, 2")
    assert (good["failed"], bad["failed"]) == ("0", "1")
    found = tables.summary([good, bad], 32)
    auc, fsc05 = float(good["auc"]), float(good["fsc05"])
    assert (found.n, found.fail_rate) == (2, 0.5)
    assert found.auc[0] == auc
    assert math.isnan(found.auc[1])  # of one map there is none
    assert found.auc_of_all == pytest.approx((auc / 2, auc / 2**0.5))
    assert found.fsc05_of_all[0] == pytest.approx((fsc05 + 48) / 2)  # the side of the box
    [row] = [
        text for text in (tmp_path / "t.md").read_text().splitlines() if "plug-and-play, 2" in text and "0.50" in text
    ]
    assert f"| 2 | 0.50 | {auc:.3f} | {fsc05:.2f} | {auc / 2:.3f} ± {auc / 2**0.5:.3f} |" in row
    assert "| *paper: EMReady* | 32 | .16 | 0.59 ± 0.08 | 4.90 ± 0.90 |" in (tmp_path / "t.md").read_text()

    monkeypatch.setattr(paper, "restore", None)  # nothing is done again
    before = (tmp_path / "t.csv").read_text()
    run(paper, *line)
    assert (tmp_path / "t.csv").read_text() == before
    monkeypatch.setattr(paper, "restore", whole)
    (tmp_path / "t.csv").write_text(before[:-3])  # killed while it wrote
    run(paper, *line)
    assert sorted(map(str, untimed(lines_of(tmp_path / "t.csv")))) == sorted(map(str, untimed(lines)))


def test_comparing_our_own_output_gives_our_own_row(run, maps, tmp_path):
    line = ("--maps", maps, "--box", 32, "--steps", 2, "--tables", "2,3", "--alpha", "told")
    line = (*line, "--out", tmp_path / "t")
    run(paper, *line, "--write-degraded", tmp_path / "data", "--write-restored", tmp_path / "ours")
    (tmp_path / "ours" / "anisotropic_30" / "two.mrc").unlink()
    run(paper, *line, "--compare", f"ours={tmp_path / 'ours'}", "--compare", f"half={tmp_path / 'data'}")
    lines = lines_of(tmp_path / "t.csv")
    scores = [*(field.name for field in paper.attrs.fields(protocol.Score)), "failed"]
    for theirs in of(lines, method="ours"):
        [own] = of(lines, map=theirs["map"], row=theirs["row"], method="plug-and-play, 2")
        if (theirs["map"], theirs["row"]) == ("two", "anisotropic ±30°"):
            assert (theirs["failed"], theirs["auc"], theirs["fsc05"]) == ("1", "0.0", "inf")  # it did not run
        else:
            assert [theirs[key] for key in scores] == [own[key] for key in scores]
    for theirs in of(lines, method="half"):  # two halves of a program are averaged
        [data] = of(lines, map=theirs["map"], row=theirs["row"], method="degraded")
        assert [theirs[key] for key in scores] == [data[key] for key in scores]
    assert "α told" in (tmp_path / "t.md").read_text()


def test_ranks_share_the_work(maps, small_prior, tmp_path):
    results = []
    for size in (1, 2):
        args = paper.parse(
            [f"--maps={maps}", f"--prior={small_prior}", f"--out={tmp_path / str(size)}"]  # noqa: RUF005
            + ["--box=32", "--steps=2", "--tables=1"]
        )
        for rank in range(size):
            mine = paper.Lines(args.out, rank)
            paper.measure(paper.maps_of(args.maps, None), load_prior(small_prior), mine, args, rank, size)
        assert len(list(tmp_path.glob(f"{size}.*csv"))) == size
        results.append(untimed(paper.Lines(args.out, 0).gathered()))
        assert [path.name for path in tmp_path.glob(f"{size}.*csv")] == [f"{size}.csv"]
    assert results[0] == results[1]


def test_a_prior_without_statistics_runs_the_papers_algorithms(run, maps, small_prior, tmp_path, capsys):
    known = load_prior(small_prior)
    save_prior(Prior(known.network, known.normalization, 1.5, 32), tmp_path / "bare.safetensors")
    line = ("--maps", maps, "--limit", 1, "--box", 32, "--tables", "1,3,8,9", "--steps", 2, "--max-push", 5)
    line = (*line, "--alpha", "told")
    run(paper, *line, "--out", tmp_path / "t", prior=tmp_path / "bare.safetensors")
    assert "no measured statistics, which the default needs: the paper's algorithms run" in capsys.readouterr().out
    methods = {line["method"] for line in lines_of(tmp_path / "t.csv")}
    assert methods == {"degraded", "Wiener", "Alg. 1, λ 5, N 2", "Alg. 2, N 2"}
    text = (tmp_path / "t.md").read_text()
    assert "## Table 8" in text
    assert text.count("| Alg. 1, λ 5, N 2, bare.safetensors |") == 4  # Table 8, and the rows of Table 1


def test_the_papers_algorithm_is_to_the_letter():
    [method] = paper.paper_methods("spectral 4.3A", [5.0], [1000], 64)
    assert method.sampler == Guided(1000, "paper", 5.0, rescaled=False)
    [method] = paper.paper_methods("spectral 4.3A", [5.0], [50], 32)
    assert method.sampler.max_push == pytest.approx(5 / 8**0.5)  # as ‖x‖ is smaller


@pytest.mark.parametrize("row", ["spectral 3.2A", "spectral 8.5A", "anisotropic ±45°"])
def test_degraded_maps_are_the_papers(row):
    truth = torch.from_numpy(density(0, 64))
    data = protocol.degraded(row, truth, torch.Generator().manual_seed(0))
    [published] = [line for table in (1, 2, 5) for line in tables.published(table) if line["row"] == row][:1]
    assert protocol.Score.of(data.mean, truth, 1.5).auc == pytest.approx(float(published["auc"]), abs=0.005)


def test_measured_tables_have_the_papers_degraded_rows():
    lines = lines_of(BENCHMARKS / "results" / "paper.csv")
    for row in protocol.ROWS[:-1]:
        found = {float(line["auc"]) for line in of(lines, row=row, method="degraded", box="64")}
        assert len(found) >= 32
        published = next(line for table in (1, 2, 5) for line in tables.published(table) if line["row"] == row)
        assert np.mean(list(found)) == pytest.approx(float(published["auc"]), abs=0.005)


def test_score_is_fsc(run, tmp_path, capsys):
    score, truth = load("score"), density(0)
    noisy = truth + np.random.default_rng(0).normal(0, 0.1, truth.shape).astype(np.float32)
    for name, x in (("truth", truth), ("noisy", noisy)):
        write_map(tmp_path / f"{name}.mrc", DensityMap(x, 1.5))
    files = [tmp_path / f"{name}.mrc" for name in ("truth", "noisy", "nowhere")]
    run(score, *files, "--tilts", -60, 60, "--out", tmp_path / "t.csv", prior=None)
    one, none = lines_of(tmp_path / "t.csv")
    curve = fsc(noisy, truth, 1.5)
    assert (float(one["auc"]), float(one["fsc05"])) == pytest.approx((curve.auc, curve.resolution(0.5)), rel=1e-5)
    mask = 1 - protocol.WEDGE.transfer((32, 32, 32)).numpy()
    inside = (np.fft.irfftn(np.fft.rfftn(x) * mask, x.shape, axes=(0, 1, 2)) for x in (noisy, truth))
    assert float(one["auc_gap"]) == pytest.approx(fsc(*inside, 1.5).auc, rel=1e-4)
    assert none["failed"] == "1"
    said = capsys.readouterr().out
    assert "FR 0.50 of 2" in said
    assert f"failures included: FSC_AUC {curve.auc / 2:.4f}" in said


def test_samplers_grow_their_table(run, maps, tmp_path, capsys, monkeypatch):
    samplers = load("samplers")
    line = (
        maps / "one.mrc",
        "--box",
        32,
        "--rows",
        "spectral 4.3A",
        "wedge",
        "--steps",
        2,
        "--out",
        tmp_path / "s.csv",
    )
    run(samplers, *line, "--samplers", "default", "guided, paper (Alg. 1)")
    lines = lines_of(tmp_path / "s.csv")
    assert len(of(lines, sampler="wiener")) == 3
    assert len(of(lines, sampler="guided, paper (Alg. 1)")) == 2  # the noiseless wedge has no density to be guided by
    monkeypatch.setattr(samplers, "restore", lambda *_, **__: raising(ObservationError("broken on purpose")))
    run(samplers, *line, "--samplers", "default", "plug-and-play")
    assert lines_of(tmp_path / "s.csv")[: len(lines)] == lines
    run(samplers, *line, "--summary")
    [said] = [
        text for text in capsys.readouterr().out.splitlines() if "spectral 4.3A" in text and "plug-and-play" in text
    ][-1:]
    assert "1 maps, 1 failed" in said


def raising(error):
    raise error


def test_prior_tells_power_and_velocity(run, maps, tmp_path, monkeypatch):
    prior = load("prior")
    monkeypatch.setattr(prior, "BOX", (32, 32, 32))
    monkeypatch.setattr(prior, "ROWS", ("spectral 3.2A", protocol.WEDGE_ROW))
    run(prior, maps / "one.mrc", "--out", tmp_path / "p")
    power = lines_of(tmp_path / "p_power.csv")
    assert [float(line["resolution_angstrom"]) for line in power][-1] == 3.0
    assert float(power[0]["spectral 3.2A|wiener"]) == pytest.approx(1, abs=0.1)
    velocity = lines_of(tmp_path / "p_velocity.csv")
    assert all(float(line["wiener"]) <= float(line["scalar"]) <= float(line["zero"]) for line in velocity)


def test_denoising_finds_what_the_script_does(run, maps, tmp_path, monkeypatch):
    denoising = load("denoising")
    monkeypatch.setattr(denoising, "BOX", (32, 32, 32))
    run(denoising, maps / "one.mrc", maps / "two.mrc", "--levels", "3.2A", "--out", tmp_path / "d.csv")
    one, two, mean = lines_of(tmp_path / "d.csv")
    assert float(mean["auc_wiener"]) == pytest.approx(
        (float(one["auc_wiener"]) + float(two["auc_wiener"])) / 2, abs=1e-4
    )
    assert float(one["auc_input"]) <= float(one["auc_wiener"]) + 0.01


def test_coverage_says_how_often_the_truth_is_inside(run, maps, tmp_path):
    coverage = load("coverage")
    line = ("--box", 16, "--samples", 2, "--rows", "spectral 4.3A", "every second voxel", "--samplers", "default")
    run(coverage, maps / "one.mrc", *line, "--out", tmp_path / "c.csv")
    for found in lines_of(tmp_path / "c.csv"):
        assert 0 <= float(found["inside_50"]) <= float(found["inside_80"]) <= float(found["inside_95"]) <= 1


def test_noise_alone_is_restored(run, tmp_path, monkeypatch):
    noise_only = load("noise_only")
    monkeypatch.setattr(noise_only, "BOX", (16, 16, 16))
    run(noise_only, "--runs", 1, "--out", tmp_path / "n.csv")
    assert [line["estimate"] for line in lines_of(tmp_path / "n.csv")] == 3 * ["mean", "sample"]


def test_conditioning_is_timed(run, tmp_path):
    run(load("conditioning"), "--box", 16, "--repeats", 1, "--out", tmp_path / "c.csv", prior=None)
    assert lines_of(tmp_path / "c.csv")


def test_algorithm_3_has_its_rows(maps, small_prior, monkeypatch):
    abinitio = load("abinitio")
    problem = abinitio.simulate(maps / "one.mrc", abinitio.TWO)
    assert problem.images.shape == (2, 32, 32)
    for name, value in (("STEPS", 2), ("KEEP", 1), ("aligned", lambda x, truth: truth)):
        monkeypatch.setattr(abinitio, name, value)
    rows = abinitio.paper(load_prior(small_prior), maps / "one.mrc", abinitio.TWO, problem)
    assert [row["method"] for row in rows] == ["sample", "alg3", "alg3_poses"]
    assert rows[1]["nfe"] == 3  # 2 N − 1
    assert {row["fsc05"] for row in rows} == {round(2 * problem.voxel_size, 2)}  # of the truth with itself


def test_averages_of_subtomograms_are_what_their_particles_measured(run, maps, tmp_path, monkeypatch):
    averages = load("subtomograms")
    monkeypatch.setattr(averages, "BOX", (32, 32, 32))
    truth, generator = torch.from_numpy(density(0)), torch.Generator().manual_seed(0)
    one = averages.average(truth, torch.eye(3, dtype=torch.float64)[None], 0.0, generator)
    torch.testing.assert_close(one, averages.WEDGE(truth), rtol=0, atol=2e-3)
    assert (averages.poses(20, 25, generator)[:, 2, 2] > math.cos(math.radians(25))).all()
    line = (maps / "one.mrc", "--particles", 6, "--normal", 25, "--out", tmp_path / "t.csv")
    run(averages, *line)
    lines = lines_of(tmp_path / "t.csv")
    assert [row["kind"] for row in lines] == 2 * list(averages.KINDS)
    assert {key: lines[1][key] for key in averages.SCORES} == {key: lines[6][key] for key in averages.SCORES}
    assert float(lines[1]["error"]) < float(lines[0]["error"])


def test_planes_of_preferred_views_are_those_that_are_counted(run, maps, tmp_path, monkeypatch):
    preferred = load("views")
    monkeypatch.setattr(preferred, "BOX", (32, 32, 32))
    rotations = preferred.views(30, 40, torch.Generator().manual_seed(0))
    shares, _ = preferred.inserted(rotations, torch.Generator().manual_seed(0))
    torch.testing.assert_close(shares, coverage_from_poses(rotations, 32))
    run(preferred, maps / "one.mrc", "--views", 60, "--within", 40, "--out", tmp_path / "t.csv")
    lines = lines_of(tmp_path / "t.csv")
    assert [row["kind"] for row in lines] == 2 * list(preferred.KINDS)


def test_a_conditional_prior_has_all_its_kinds(run, small_prior, maps, tmp_path, monkeypatch):
    conditional, path = load("conditional"), tmp_path / "conditional.safetensors"
    monkeypatch.setattr(conditional, "BOX", (32, 32, 32))
    torch.manual_seed(0)
    network = UNet(UNetConfig(widths=(8, 16), depths=(1, 1), up_depths=(1,), conditioning=8, conditions=2)).eval()
    given = load_prior(small_prior)
    statistics = {name: getattr(given, name) for name in ("signal_power", "denoising_error", "denoising_spectrum")}
    prior = ConditionalPrior(network, given.normalization, 1.5, 32).with_statistics(SimpleNamespace(**statistics))
    save_prior(prior, path)
    line = (maps / "one.mrc", "--conditional", path, "--rows", "spectral 4.3A", "--out", tmp_path / "t.csv")
    line = (*line, "--pictures", tmp_path)
    run(conditional, *line)
    lines = lines_of(tmp_path / "t.csv")
    assert [row["kind"] for row in lines] == 2 * list(conditional.KINDS)
    assert [int(row["evaluations"]) for row in lines[:8]] == [0, 0, 8, 8, 1, 8, 16, 8]
    assert lines[8]["map"] == "mean of 1"
    assert [row["auc"] for row in lines[8:]] == [row["auc"] for row in lines[:8]]

    assert (tmp_path / "one_spectral_4.3A.png").stat().st_size > 10_000

    # The linear filter is told nothing of the truth, and is better than what it filters.
    truth = torch.from_numpy(protocol.crop(conditional.clean(maps / "one.mrc", 1.5), 32))
    data = protocol.degraded("spectral 3.2A", truth, torch.Generator().manual_seed(0))
    errors = [(x - truth).square().sum() for x in (data.mean, conditional.filtered(data))]
    assert errors[1] < errors[0]
    monkeypatch.setattr(conditional, "restore", None)  # nothing is done again
    run(conditional, *line)
    assert lines_of(tmp_path / "t.csv") == lines


SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("[a-z]*.py"))  # those of Python's peers where these are there


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_explains_itself(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", "--help"])
    try:
        module = load(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0
    assert "--out" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="a script for bash")
def test_every_step_of_the_gpu_script_is_begun(tmp_path):
    """By a python that does nothing: each of them is a command that exists, and a script that does."""
    nothing = tmp_path / "python"
    nothing.write_text(f'#!/bin/bash\n[ "$1" = -c ] && echo 2 || echo "$1" >> {tmp_path}/scripts\n')
    nothing.chmod(0o755)
    environment = os.environ | {"PYTHON": str(nothing), "DEVICE": "cuda"}
    command = ["bash", str(BENCHMARKS / "gpu.sh"), str(tmp_path / "out")]
    subprocess.run(command, env=environment, check=False, capture_output=True, timeout=60)
    _, *steps = (tmp_path / "out" / "steps.txt").read_text().splitlines()  # of which the first needs a GPU's tools
    assert len(steps) == 10
    assert all(step.startswith("status 0") for step in steps), steps
    scripts = (tmp_path / "scripts").read_text().splitlines()
    assert all(Path(script).is_file() for script in scripts if script != "-m"), scripts


def test_the_readme_shows_what_was_measured():
    results = BENCHMARKS / "results"
    shown = tables.first_page(lines_of(results / "paper.csv"), lines_of(results / "paper_measured.csv"))
    assert shown in (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")


def test_the_law_of_cost_is_found():
    scaling = load("scaling")
    law = scaling.Law(3.0, 7.0, 2.5)
    sizes = [(side, voxels) for side in (64, 96, 128) for voxels in (1e6, 9e6)]
    rows = [{"side": s, "voxels": v, "cpu_s": law(s**3 / 1e6, v / 1e6), "peak_gib": 1 + s**3 / 1e7} for s, v in sizes]
    found = scaling.Law.of(rows, "cpu_s", network=True)
    assert (found.a, found.b, found.c) == pytest.approx((3.0, 7.0, 2.5))
    memory = scaling.Law.of(rows, "peak_gib", network=False)
    assert (memory.a, memory.b, memory.c) == pytest.approx((1.0, 0.1, 0.0))


def test_peers_that_are_not_there_are_left_out(run, maps, tmp_path, monkeypatch, capsys):
    peers = load("peers")
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda package: None)
    monkeypatch.setattr(peers, "ours", lambda problem, **told: problem.truth)
    run(peers, maps / "one.mrc", "--out", tmp_path / "peers.csv")
    said = capsys.readouterr().out
    assert all(f"left out: {package} is not installed" in said for package in ("skimage", "deepinv", "azula"))
    lines = {line["method"]: line for line in lines_of(tmp_path / "peers.csv")}
    assert set(lines) == {"mean of the halves", "FSC weighting", "masked mean", "ours", "ours, told"}
    assert float(lines["ours"]["auc"]) == 1
    assert float(lines["ours, told"]["error"]) == 0
    # The data of the paper's level: a filter per shell leaves their FSC, but for the shells that it empties.
    assert 0.4 < float(lines["mean of the halves"]["auc"]) < 0.7
    assert float(lines["FSC weighting"]["error"]) < 0.8 < float(lines["mean of the halves"]["error"])


def test_a_denoiser_of_the_flow_is_that_of_its_noise(small_prior):
    """x̂ of a flow at t, for whom s = x + τ z: of a Gaussian prior P / (P + τ²) s."""
    peers = load("peers")
    truth = torch.zeros(16, 16, 16)

    class Gaussian:
        """Velocity of N(0, P): x_t/(t) − x̂/t, with x̂ = (1 − t) P / ((1 − t)² P + t²) x_t."""

        box, multiple, local, normalization = 16, 8, False, load_prior(small_prior).normalization

        def __call__(self, x, t):
            return (x - (1 - t) * 3.0 / ((1 - t) ** 2 * 3.0 + t**2) * x) / t

    problem = peers.Problem(truth, (truth, truth), Gaussian(), None)
    s = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(0))
    for tau in (0.1, 1.0, 5.0):
        torch.testing.assert_close(problem.denoised(s, tau), 3 / (3 + tau**2) * s, rtol=1e-4, atol=1e-5)


def test_relion_is_run_once_and_said_to_be_missing(run, tmp_path, monkeypatch):
    relion = load("relion")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"relion_refine_mpi.*nothing was run"):
        run(relion, "model.cif", "--work", tmp_path, "--out", tmp_path / "r.csv", prior=None)
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "seconds").write_text("12.5\n")
    assert relion.refine(tmp_path, "hook", None, 90.0, 0, SimpleNamespace()) == 12.5
    (tmp_path / "hook" / "seconds").unlink()
    args = SimpleNamespace(iterations=3, auto=False, healpix_order=3, start=5.0)
    with pytest.raises(FileNotFoundError):  # as RELION is not there
        relion.refine(tmp_path, "hook", None, 90.0, 0, args)
    assert not (tmp_path / "hook" / "seconds").exists()


def test_masks_for_relions_references():
    relion = load("relion")
    truth = density(0, 24)
    sphere, tight = relion.masks(DensityMap(truth, 2.0))
    assert sphere[12, 12, 12] == tight[truth > 0.5].min() == 1
    assert sphere[0].max() == 0
    assert tight.mean() < sphere.mean()
    diameter = relion.extent(truth, 2.0)
    assert 24 < diameter <= 44


def test_a_dimer_has_a_half_turn_and_a_monomer_none():
    """Blobs and their copies about an axis of their own, off the middle of the box."""
    rng, n = np.random.default_rng(0), 32
    axis = np.array([0.48, 0.6, 0.64])
    turn = 2 * np.outer(axis, axis) - np.eye(3)
    centres = rng.normal(0, 4, (8, 3))
    grid = (
        np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1)[..., ::-1] - n // 2 - np.array([2.0, -1.0, 1.0])
    )

    def density(at):
        return torch.tensor(sum(np.exp(-((grid - c) ** 2).sum(-1) / 4) for c in at), dtype=torch.float32)

    half_turn = load("class_averages").half_turn
    found = half_turn(density(np.concatenate((centres, centres @ turn))))
    assert len(found) == 2
    assert found[1].numpy() == pytest.approx(turn, abs=0.05)
    assert len(half_turn(density(centres))) == 1


def test_atoms_of_every_kind_are_counted_and_told_apart_where_they_lie(run, tmp_path):
    pytest.importorskip("gemmi")
    kinds = load("kinds")
    residues = 20 * [("LEU", "CA", "A", 0)] + 20 * [("DA", "P", "B", 12)] + 4 * [("NAG", "C1", "C", 24)]
    atoms = [
        f"ATOM  {i:5d}  {atom:<3} {name:>3} {chain}{i:4d}    {4 * (i % 5):8.3f}{4 * (i // 5 % 4):8.3f}{z:8.3f}"
        f"  1.00 20.00           {atom[0]}\n"
        for i, (name, atom, chain, z) in enumerate(residues)
    ]
    (tmp_path / "three.pdb").write_text("".join(atoms) + "END\n")
    run(kinds, tmp_path / "three.pdb", "--count", "--out", tmp_path / "count.csv")
    [found] = lines_of(tmp_path / "count.csv")
    assert [found[f"atoms, {kind}"] for kind in kinds.KINDS] == ["20", "20", "4", "0"]
    assert found["hydrophobic stretches"] == "1"  # 20 leucines
    truth, labels = kinds.simulated(tmp_path / "three.pdb")
    depth = [np.average(np.nonzero(labels == i)[0], weights=truth.numpy()[labels == i]) for i in range(3)]
    assert np.diff(depth) == pytest.approx([8, 8], abs=0.3)  # 12 Å


def test_who_knows_the_signal_reaches_what_is_said_of_a_noisy_truth():
    """Drawn: of a truth s + n observed with e, the best estimate of who knows s has the FSC of the formula."""
    truth = load("truth")
    rng = np.random.default_rng(0)
    n, e = 0.3, 0.5
    s, noise, more = (rng.normal(0, sd, 400_000) for sd in ((1 - n) ** 0.5, n**0.5, e**0.5))
    best = s + n / (n + e) * (noise + more)
    r = np.corrcoef(best, s + noise)[0, 1]
    assert truth.ceiling(np.array([n]), np.array([e])) == pytest.approx([r], abs=1e-3)
    assert truth.share_of_noise(np.array([r, 0.1]), np.array([e, e])) == pytest.approx([n, 1], abs=1e-2)
