"""The other example scripts as their users run them, on tiny input: what they leave, keep, find and refuse."""

import ast
import csv
import inspect
import json
import re

import attrs
import numpy as np
import pytest
import torch

from cryofm_io import DensityMap, ImageCtf, ImageStack, Poses, fsc, read_map, to_grid, write_map, write_poses
from cryofm_model import Prior, load_prior, save_prior
from cryofm_ops import (
    CTF,
    AnisotropicNoise,
    CoverageNoise,
    FourierProjector,
    MissingWedge,
    coverage_from_tilts,
    random_rotations,
    wedge_alpha,
)
from cryofm_sampling import Checkpoint, Rescaled
from cryofm_sampling.samplers import flow

pytest.importorskip("jinja2")
from cryofm_io.report import read_report
from cryofm_io.report.__main__ import main as report_again

script = pytest.importorskip("_command_line")
given = pytest.importorskip("_maps")
results = pytest.importorskip("_results")
particles = pytest.importorskip("particles")
abinitio = pytest.importorskip("abinitio")
SCRIPTS = ("anisotropic", "missing_wedge", "sample_prior", "likelihood", "custom_operator")
anisotropic, missing_wedge, sample_prior, likelihood, custom_operator = map(pytest.importorskip, SCRIPTS)
RESTORED = {"restored.mrc", "fsc.csv", "fsc.png", "slices.png", "report.html", "open.cxc", "run.json"}


@pytest.fixture
def run(monkeypatch, small_prior, tmp_path):
    def run(module, *arguments, prior=small_prior):
        out = ("--out", tmp_path / "out", "--prior", prior)
        monkeypatch.setattr("sys.argv", [f"{module.__name__}.py", *map(str, (*arguments, *out))])
        status = script.exit_code(module.main)
        return 0 if status == 3 and prior == small_prior else status  # of an untrained prior there are doubts

    return run


@pytest.fixture(scope="module")
def blobs():
    """A clean map of 24³ voxels of 1.5 Å."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(24)] * 3, indexing="ij"), -1)
    density = sum(np.exp(-((grid - c) ** 2).sum(-1) / 4) for c in rng.uniform(7, 17, (12, 3)))
    return DensityMap(density, 1.5, origin=(1.5, 3.0, -6.0))


@pytest.fixture
def save(tmp_path, blobs):
    def save(name, data):
        write_map(tmp_path / name, attrs.evolve(blobs, data=data))
        return tmp_path / name

    return save


def left(tmp_path):
    return {path.name for path in (tmp_path / "out").iterdir()}


def record(tmp_path):
    return json.loads((tmp_path / "out" / "run.json").read_text())


def same_grid(a, b):
    return (a.shape, a.voxel_size, a.origin, a.nstart) == (b.shape, b.voxel_size, b.origin, b.nstart)


@pytest.fixture
def directional_halves(blobs, save):
    """Halves of which the tilts beyond ±45° have 25 times the noise power."""
    noise = AnisotropicNoise(torch.full((13,), 0.01), wedge_alpha(-45, 45, 5))
    generator = torch.Generator().manual_seed(0)
    x = torch.from_numpy(blobs.data)
    return [save(f"half{i}.mrc", noise.sample(x, generator=generator).numpy()) for i in (1, 2)]


def test_anisotropic_finds_the_noisy_directions(run, directional_halves, blobs, tmp_path, capsys):
    assert run(anisotropic, *directional_halves, "--steps", 2, "--cone", 20) == 0
    assert left(tmp_path) == RESTORED | {"linear.mrc"}
    restored = read_map(tmp_path / "out" / "restored.mrc")
    assert same_grid(restored, blobs)
    table = record(tmp_path)["alpha"]
    direction, alpha = np.array(table["directions_xyz"]), np.array(table["alpha_variance"])
    assert alpha[np.abs(direction[:, 2]) > 0.95].mean() > 5 * alpha[np.abs(direction[:, 0]) > 0.95].mean()
    assert "cFAR" in capsys.readouterr().out


def test_anisotropic_believes_what_is_known(run, directional_halves, tmp_path):
    known = ("--kept", -45, 45, "--amplitude", 5)
    assert run(anisotropic, *directional_halves, "--steps", 2, *known, "--checkpoint", tmp_path / "state") == 0
    assert record(tmp_path)["alpha"] == "as given"
    assert not list(tmp_path.glob("state*"))


@pytest.fixture
def bare_prior(small_prior, tmp_path):
    """The small prior without its statistics, as published ones are."""
    known = load_prior(small_prior)
    save_prior(Prior(known.network, known.normalization, known.voxel_size, known.box), tmp_path / "bare.safetensors")
    return tmp_path / "bare.safetensors"


def tilted_views(tmp_path, tilt_deg, count=400):
    """A STAR file of particles tilted by so much, rms; no images are there."""
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 360, (count, 3))
    angles[:, 1] = rng.normal(0, tilt_deg, count)
    images = ImageStack(rng.normal(size=(count, 2, 2)), 1.5, names=[f"{i + 1}@none.mrcs" for i in range(count)])
    write_poses(tmp_path / "particles.star", images, Poses.from_angles(angles, np.zeros((count, 2))))
    return tmp_path / "particles.star"


def test_anisotropic_takes_the_views_of_the_particles(run, directional_halves, tmp_path, capsys):
    star = tilted_views(tmp_path, 15)
    line = (*directional_halves, "--scale", 1, "--b-factor", 0, "--steps", 2)
    assert run(anisotropic, *line, "--poses", star) == 0
    assert "400 poses\nfrequencies were measured by 0 to" in capsys.readouterr().out
    assert record(tmp_path)["not_measured"] > 0.1
    assert str(star) in record(tmp_path)["inputs_sha256"]


def test_views_tell_the_noise_better_than_cones(tmp_path):
    # Halves of a box of 32³ with noise as strong as slices, inserted by the nearest voxel, are sparse.
    n, counted = 32, anisotropic.counted(star := tilted_views(tmp_path, 25))
    i = torch.arange(-n, n + 1, dtype=torch.float64)
    plane = torch.stack([*torch.meshgrid(i, i, indexing="ij"), torch.zeros(len(i), len(i))], -1).flatten(0, 1)
    points = torch.from_numpy(anisotropic.read_poses(star).rotations).mT @ plane[plane.norm(dim=1) < n].T
    k = points.mT.round().long().flatten(0, 1)
    k = k[(k.abs() < n // 2).all(1)] % n
    count = torch.bincount((k[:, 2] * n + k[:, 1]) * n + k[:, 0], minlength=n**3).reshape(n, n, n).double()
    seen = count > 0.02 * count.max() / n
    std = torch.where(seen, count.clamp(min=1e-9) ** -0.5, 0)
    generator = torch.Generator().manual_seed(0)
    one, two = (
        torch.fft.ifftn(std * torch.fft.fftn(torch.randn(n, n, n, generator=generator))).real.float() for _ in range(2)
    )
    frequency = torch.fft.fftfreq(n) * n
    radius = (frequency[:, None, None] ** 2 + frequency[:, None] ** 2 + frequency**2).sqrt()
    ring = (seen & (radius > 4) & (radius < 14))[..., : n // 2 + 1]
    errors = []
    for model in (
        anisotropic.coverage_model(one, two, counted),
        anisotropic.directional_model(one, two, half_angle_deg=10),
    ):
        found, _ = model.noise_on((n, n, n))
        errors.append((found / std[..., : n // 2 + 1] ** 2).log()[ring].abs().median())
    assert errors[0] < 0.7 * errors[1]


def test_of_many_views_some_are_counted(tmp_path, monkeypatch, capsys):
    star = tilted_views(tmp_path, 25)
    whole = anisotropic.counted(star)((16, 16, 16))
    monkeypatch.setattr(anisotropic, "COUNTED", 200)
    half = anisotropic.counted(star)((16, 16, 16))
    assert "400 poses, of which one in 2 is counted" in capsys.readouterr().out
    assert float(half.sum()) == pytest.approx(float(whole.sum()) / 2, rel=1e-2)


def test_symmetric_particles_are_seen_from_every_side_that_is_equal(tmp_path):
    """A C4 particle that lies along x is as good as four without symmetry, along x, y, −x and −y."""
    angles = np.array([[rot, 90.0, 25.0] for rot in (0, 90, 180, 270)])
    one = subtomograms(tmp_path / "one.star", angles[:1])
    four = subtomograms(tmp_path / "four.star", angles)
    found, expected = (anisotropic.counted(*told)((9, 9, 9)) for told in ((one, "C4"), (four,)))
    torch.testing.assert_close(found, expected)
    tilts = MissingWedge(-40, 50)
    found, expected = (
        missing_wedge.coverage_of(*told)((9, 9, 9)) for told in ((one, tilts, "C4"), (four, tilts, "C1"))
    )
    assert torch.equal(found, expected)


def test_anisotropic_example_has_the_paper_s_auc():
    """Input of the paper's row ±45°: FSC_AUC 0.6623 on average over other maps."""
    example = anisotropic.demo(seed=0)
    one, two, truth = (to_grid(density, 1.5)[0] for density in (*example.maps, example.truth))
    assert fsc((one + two) / 2, truth, 1.5).auc == pytest.approx(0.6623, abs=0.005)


def test_missing_wedge_keeps_what_was_measured_and_fills_the_rest(run, blobs, save, tmp_path):
    wedge, truth = MissingWedge(-50, 40, "x"), torch.from_numpy(blobs.data[4:20, 4:20, 4:20].copy())
    path = save("wedge.mrc", wedge(truth).numpy())
    options = ("--tilt-min", -50, "--tilt-max", 40, "--tilt-axis", "x", "--steps", 12)
    assert run(missing_wedge, path, *options, prior="cryofm-tiny") == 0
    assert left(tmp_path) == RESTORED
    restored = read_map(tmp_path / "out" / "restored.mrc")
    assert same_grid(restored, read_map(path))
    before = torch.from_numpy(read_map(path).data)
    after = torch.from_numpy(restored.data)
    torch.testing.assert_close(wedge(after), wedge(before), rtol=0, atol=1e-4)
    missing = truth - before
    filled = after - wedge(after)
    assert torch.corrcoef(torch.stack([filled.flatten(), missing.flatten()]))[0, 1] > 0.3


def test_a_prior_without_statistics_does_what_needs_none(run, bare_prior, save, blobs, tmp_path, capsys):
    path = save("map.mrc", MissingWedge(-60, 60)(torch.from_numpy(blobs.data)).numpy())
    assert run(missing_wedge, path, "--steps", 3, "--scale", 1, prior=bare_prior) == 0
    assert "the paper's restores, Alg. 2 with 3 steps" in capsys.readouterr().out
    assert record(tmp_path)["algorithm"]["sampler"] == "Inpainting"
    kept = MissingWedge(-60, 60)
    after, before = (torch.from_numpy(read_map(file).data) for file in (tmp_path / "out" / "restored.mrc", path))
    assert (kept(after) - kept(before)).std() < 1e-3 * before.std()
    assert run(sample_prior, "--number", 1, "--side", 16, "--steps", 2, "--overwrite", prior=bare_prior) == 0
    assert record(tmp_path)["power_over_the_prior_s_data"] is None
    assert "the prior's data" not in (tmp_path / "out" / "power.csv").read_text()
    assert run(likelihood, path, "--side", 8, "--steps", 2, "--overwrite", prior=bare_prior) == 0


def test_missing_wedge_of_other_tilts_is_told(run, blobs, save, tmp_path, capsys):
    path = save("wedge.mrc", MissingWedge(-50, 50, "x")(torch.from_numpy(blobs.data)).numpy())
    line = (missing_wedge, path, "--scale", 1, "--steps", 2, "--overwrite")
    for axis, limit, told in (("x", 52, False), ("x", 60, True), ("y", 50, True)):
        assert (
            run(*line, "--tilt-axis", axis, "--tilt-min", -limit, "--tilt-max", limit, prior="cryofm-tiny") == 3 * told
        )
        assert ("looks measured from -50 to 50 degrees about x" in capsys.readouterr().err) is told
        assert bool(record(tmp_path)["doubts"]) is told


def test_missing_wedge_of_halves_of_other_tilts_is_told(run, blobs, save, tmp_path, capsys):
    generator, truth = torch.Generator().manual_seed(0), torch.from_numpy(blobs.data)
    halves = [MissingWedge(-50, 50, "x")(truth + 0.1 * torch.randn(truth.shape, generator=generator)) for _ in range(2)]
    # What is left of noise within the wedge, by other weights or rounding, tells nothing.
    one, two = (
        save(f"half{i}.mrc", (x + 0.02 * torch.randn(truth.shape, generator=generator)).numpy())
        for i, x in enumerate(halves, 1)
    )
    line = (missing_wedge, one, "--half2", two, "--tilt-min", -50, "--tilt-max", 50, "--scale", 1, "--steps", 2)
    for axis, told in (("x", False), ("y", True)):
        assert run(*line, "--tilt-axis", axis, "--overwrite") == 0
        assert ("looks measured from -50 to 50 degrees about x" in capsys.readouterr().err) is told


def test_missing_wedge_of_two_noisy_halves(run, blobs, save, tmp_path):
    wedge, generator = MissingWedge(-60, 60), torch.Generator().manual_seed(0)
    truth = torch.from_numpy(blobs.data)
    noisy = [wedge(truth + 0.1 * torch.randn(truth.shape, generator=generator)) for _ in range(2)]
    one, two = (save(f"half{i}.mrc", x.numpy()) for i, x in enumerate(noisy, 1))
    assert run(missing_wedge, one, "--half2", two, "--steps", 2, "--samples", 2) == 0
    assert left(tmp_path) == RESTORED | {"linear.mrc"} | {"sample_01.mrc", "sample_02.mrc", "uncertainty.mrc"}
    assert record(tmp_path)["drawing"]["first"]["iterations"] == 2  # samples begin with the gap filled
    power = np.array(record(tmp_path)["noise_power_of_one_half_where_measured"])
    assert np.median(power) == pytest.approx(0.01, rel=0.15)  # of the part that has any, not of whole shells


def subtomograms(path, angles, tilts=None):
    """A STAR file of particles as RELION 3 lists them."""
    names = ["rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
    names += [] if tilts is None else ["cryofmTiltMin", "cryofmTiltMax"]
    rows = np.column_stack([angles, *([] if tilts is None else [tilts])])
    lines = [f"sub{i}.mrc " + " ".join(f"{value:.4f}" for value in row) for i, row in enumerate(rows)]
    path.write_text("\n".join(["data_particles", "loop_", *(f"_{name}" for name in names), *lines, ""]))
    return path


def test_missing_wedge_of_an_average_takes_the_particles(run, blobs, save, tmp_path, capsys):
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    angles = np.column_stack([rng.uniform(-180, 180, 40), rng.uniform(0, 40, 40), rng.uniform(-180, 180, 40)])
    tilts = [(-60, 60), (-40, 50)] * 20
    rotations = torch.from_numpy(Poses.from_angles(angles, np.zeros((40, 2))).rotations)
    coverage = coverage_from_tilts(rotations, [MissingWedge(*each) for each in tilts], (24, 24, 24))
    noise = CoverageNoise(torch.full((2,), 0.5), coverage, (24, 24, 24))
    truth = torch.from_numpy(blobs.data)
    halves = [noise.measured(noise.sample(truth, generator=generator)) for _ in range(2)]
    one, two = (save(f"half{i}.mrc", x.numpy()) for i, x in enumerate(halves, 1))
    star = subtomograms(tmp_path / "particles.star", angles, tilts)
    line = (missing_wedge, one, "--half2", two, "--steps", 2, "--scale", 1, "--b-factor", 0)
    assert run(*line, "--poses", star) == 0
    said = capsys.readouterr()
    assert "40 particles in particles.star: tilted as the file tells, from -60 to 60 degrees at most" in said.out
    assert f"was measured by {coverage.min():g} to 40 of them" in said.out
    assert "poses" not in said.err
    assert record(tmp_path)["particles"]["most"] == 40

    # Of particles that were turned the other way, or others altogether.
    wrong = subtomograms(tmp_path / "wrong.star", angles + np.array([0, 90, 0]))
    assert run(*line, "--poses", wrong, "--tilt-min", -50, "--overwrite") == 0
    said = capsys.readouterr()
    assert "all tilted from -50 to 60 degrees, as told" in said.out
    assert "poses" in said.err
    with pytest.raises(SystemExit):
        run(missing_wedge, one, "--poses", star)
    assert "--poses goes with half maps" in capsys.readouterr().err


def test_missing_wedge_says_how_much_of_the_wedge_is_right(run, blobs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(missing_wedge, "demo_map", lambda: blobs)
    assert run(missing_wedge, "--steps", 2, "--samples", 1) == 0
    assert "sample_01.mrc" in left(tmp_path)
    rows = record(tmp_path)["against_the_truth"]
    assert abs(rows["input"]["fsc_auc_missing"]) < 0.2
    assert rows["restored"]["fsc_auc"] > 0.5
    assert "what was missing" in capsys.readouterr().out


@pytest.fixture
def evaluations_until(run, monkeypatch):
    """Run to that evaluation, where it is interrupted, or to the end; the status, and how many there were."""
    part = Checkpoint.part
    monkeypatch.setattr(Checkpoint, "part", lambda self, k: attrs.evolve(part(self, k), every_seconds=0))
    call, calls = Rescaled.__call__, []

    def evaluations_until(at, *arguments):
        calls.clear()

        def interrupted(self, x, t, /):
            calls.append(t)
            if len(calls) == at:
                raise KeyboardInterrupt
            return call(self, x, t)

        monkeypatch.setattr(Rescaled, "__call__", interrupted)
        return run(*arguments), len(calls)

    return evaluations_until


@pytest.mark.parametrize("module", [anisotropic, missing_wedge])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    run, evaluations_until, blobs, directional_halves, save, tmp_path, capsys, module
):
    wedge = save("wedge.mrc", MissingWedge(-60, 60)(torch.from_numpy(blobs.data)).numpy())
    line = [module, *(directional_halves if module is anisotropic else [wedge]), "--steps", 2, "--samples", 2]
    line += ["--scale", 0.5, *(["--b-factor", 0] if module is anisotropic else []), "--checkpoint", tmp_path / "state"]
    status, total = evaluations_until(None, *line)
    assert status == 0
    maps = ("restored.mrc", "sample_01.mrc", "sample_02.mrc", "uncertainty.mrc")
    undisturbed = [(tmp_path / "out" / name).read_bytes() for name in maps]

    line.append("--overwrite")
    assert evaluations_until(total - 2, *line)[0] == 130
    # Of half maps a sample of one of them tells whether the others are wide enough.
    restorations, drawn, of_a_sample = (3, 3, 25) if module is anisotropic else (1, 2, 26)
    assert {state.name for state in tmp_path.glob("state*")} == {f"state-{k}" for k in range(restorations + drawn)}
    assert run(*line, "--seed", 1) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"error: .*/state-0 belongs to another run \(seed: .* there, .* here.*", said)
    status, left_over = evaluations_until(None, *line)
    assert status == 0
    assert left_over == total - restorations * 2 - drawn * of_a_sample + 3
    assert [(tmp_path / "out" / name).read_bytes() for name in maps] == undisturbed
    assert not list(tmp_path.glob("state*"))


def test_missing_wedge_of_a_map_on_a_constant(run, blobs, save, tmp_path):
    maps, curves = [], []
    for constant in (0, 2000):
        path = save(f"{constant}.mrc", MissingWedge(-60, 60)(torch.from_numpy(blobs.data)).numpy() + constant)
        assert run(missing_wedge, path, "--voxel-size", 1.2, "--steps", 2, "--overwrite") == 0  # which is resampled
        maps.append(read_map(tmp_path / "out" / "restored.mrc").data - constant)
        curves.append(np.genfromtxt(tmp_path / "out" / "fsc.csv", delimiter=",", skip_header=1))
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-2)
    np.testing.assert_allclose(curves[1], curves[0], atol=2e-3)


def test_missing_wedge_warns_of_inverted_contrast(run, blobs, save, capsys):
    assert run(missing_wedge, save("dark.mrc", 1 - blobs.data), "--steps", 2) == 0
    captured = capsys.readouterr().err
    assert "inverted contrast" in captured
    assert "not writable" not in captured


def test_sample_prior(run, tmp_path):
    assert run(sample_prior, "--number", 2, "--side", 16, "--steps", 2) == 0
    assert left(tmp_path) == {"sample_01.mrc", "sample_02.mrc", *sample_prior.FILES}
    page = read_report(tmp_path / "out" / "report.html")
    assert [volume["name"] for volume in page["volumes"]] == ["sample_01", "sample_02"]
    assert page["figures"][0]["series"][0]["label"] == "the prior's data"
    assert (tmp_path / "out" / "open.cxc").read_text().count("open sample_0") == 2
    one, two = (read_map(tmp_path / "out" / f"sample_0{i}.mrc") for i in (1, 2))
    assert one.shape == (16, 16, 16)
    assert one.voxel_size == 1.5
    assert not np.array_equal(one.data, two.data)
    power = np.genfromtxt(tmp_path / "out" / "power.csv", delimiter=",", skip_header=1)
    # Model units: a sample's voxels have the variance that its power says, the corners of the box aside.
    normalised = (one.data - 0.04) / 0.09
    spectrum = np.abs(np.fft.fftn(normalised, norm="ortho")) ** 2
    assert power[0, 3] == pytest.approx(spectrum[0, 0, 0], rel=1e-4)
    assert power[-1, 0] == pytest.approx(1 / 3)


def test_sample_prior_goes_on_to_the_same_bits(run, tmp_path, monkeypatch, capsys):
    line = (sample_prior, "--number", 2, "--side", 16, "--steps", 3)
    names = ("sample_01.mrc", "sample_02.mrc")
    assert run(*line) == 0
    undisturbed = [(tmp_path / "out" / name).read_bytes() for name in names]
    step, calls = flow._heun, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setitem(flow._INTEGRATORS, "heun", interrupted)
    line += ("--checkpoint", tmp_path / "state", "--overwrite")
    assert run(*line) == 130
    assert "the same line goes on" in capsys.readouterr().err
    assert run(*line, "--seed", 1) == 2
    assert "belongs to another run (seed" in capsys.readouterr().err
    assert run(*line) == 0
    assert len(calls) == 5 + 3  # the second sample's; too short for a checkpoint within
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == undisturbed
    assert not list(tmp_path.glob("state*"))


def test_likelihood_is_that_of_the_maps(run, blobs, save, tmp_path, capsys):
    one, two = save("one.mrc", blobs.data), save("two.mrc", 100 * blobs.data)
    assert run(likelihood, one, two, "--steps", 1, "--side", 16, prior="cryofm-tiny") == 0
    with (tmp_path / "out" / "likelihood.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["map"] for row in rows] == [str(one), str(two)]
    for row in rows:
        bits = -float(row["log_p_nats"]) / (16**3 * np.log(2))
        assert float(row["bits_per_voxel"]) == pytest.approx(bits, rel=1e-5)
        assert float(row["standard_error_bits_per_voxel"]) > 0
    assert float(rows[1]["bits_per_voxel"]) > float(rows[0]["bits_per_voxel"]) + 1
    page = read_report(tmp_path / "out" / "report.html")
    assert [row["map"] for row in page["scores"]] == [str(one), str(two)]
    assert f"the likeliest is {one}" in page["verdict"]
    captured = capsys.readouterr()
    assert re.search(r"two.mrc is not on the prior's scale.*--normalise", captured.err)
    assert "bits per voxel" in captured.out


def test_likelihood_of_normalised_maps_does_not_depend_on_their_scale(run, blobs, save, tmp_path, capsys):
    one, two = save("one.mrc", blobs.data), save("two.mrc", 100 * blobs.data)
    assert run(likelihood, one, two, "--steps", 1, "--side", 16, "--normalise") == 0
    first, second = record(tmp_path)["results"]
    assert first["bits_per_voxel"] == pytest.approx(second["bits_per_voxel"], rel=1e-4)
    assert "scale" not in capsys.readouterr().err


def test_likelihood_tells_a_constant_beneath_a_map(run, blobs, save, capsys):
    for constant, told in ((0.0, False), (0.3, True)):
        path = save(f"{constant}.mrc", 7 * (blobs.data + constant))
        assert run(likelihood, path, "--normalise", "--steps", 1, "--side", 16, "--overwrite") == 0
        assert ("a constant beneath it" in capsys.readouterr().err) is told
    dark = save("dark.mrc", 1 - blobs.data)
    assert run(likelihood, dark, "--normalise", "--steps", 1, "--side", 16, "--overwrite") == 0
    assert "inverted contrast" in capsys.readouterr().err


def test_likelihood_example(run, blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(likelihood, "demo_map", lambda: blobs)
    assert run(likelihood, "--steps", 1, "--side", 16, "--probes", 1) == 0
    results = json.loads((tmp_path / "out" / "run.json").read_text(), parse_constant=pytest.fail)["results"]
    assert [row["standard_error_nats"] for row in results] == [None] * 5  # one probe tells none


def test_likelihood_tells_an_absurd_voxel_size_before_anything_is_resampled(run, blobs, save, monkeypatch, capsys):
    monkeypatch.setattr("cryofm_sampling.runs.memory._available_memory", lambda _: 2**30)
    assert run(likelihood, save("one.mrc", blobs.data), "--voxel-size", 60) == 2
    assert "a grid of 960 x 960 x 960 voxels needs about " in capsys.readouterr().err


def test_likelihood_never_replaces_what_it_reads(run, save, blobs, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text('{"results_sha256": {"restored.mrc": "00"}}')  # of a former run
    one, two = save("one.mrc", blobs.data), save("out/restored.mrc", blobs.data)
    assert run(likelihood, one, two, "--steps", 1, "--overwrite") == 2
    assert "out/restored.mrc is read, and would be lost" in capsys.readouterr().err
    assert two.exists()


def test_custom_operator(run, blobs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(custom_operator, "demo_map", lambda **_: blobs)
    assert run(custom_operator, "--steps", 2) == 0
    assert left(tmp_path) == RESTORED
    assert record(tmp_path)["algorithm"]["algorithm"] == "PlugAndPlay"
    restored = read_map(tmp_path / "out" / "restored.mrc")
    assert same_grid(restored, blobs)
    assert np.corrcoef(restored.data.ravel(), blobs.data.ravel())[0, 1] > 0.7
    printed = capsys.readouterr().out
    assert "passes shape_and_batch" in printed
    assert re.search(r"input .*\nrestored .*", printed)


def test_custom_operator_draws_samples(run, blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(custom_operator, "demo_map", lambda **_: blobs)
    monkeypatch.setattr(custom_operator, "check_operator", lambda _: [])  # which takes seconds, and passed above
    assert run(custom_operator, "--steps", 1, "--samples", 2) == 0
    assert left(tmp_path) == RESTORED | {"sample_01.mrc", "sample_02.mrc", "uncertainty.mrc"}
    assert record(tmp_path)["drawing"]["algorithm"] == "PosteriorFlow"
    one, two = (read_map(tmp_path / "out" / f"sample_0{k}.mrc").data for k in (1, 2))
    spread = read_map(tmp_path / "out" / "uncertainty.mrc").data
    np.testing.assert_allclose(spread, np.abs(one - two) / 2**0.5, atol=1e-5 * spread.max())


def test_custom_operator_is_fifty_lines():
    """From nothing to a restored map: what a stranger would have to write."""
    early = 'if __name__ == "__main__":\n    check_line(parser.parse_args)'  # of the scripts here, as its import is
    source = inspect.getsource(custom_operator).replace(early, "").replace("from _first import check_line\n", "")
    statements = ast.unparse(ast.parse(source)).splitlines()  # docstrings and one long call as they are, no comments
    docstrings = len(ast.get_docstring(ast.parse(source)).splitlines())
    assert len([line for line in statements if line.strip()]) - docstrings <= 50


OPTIONS = {
    "anisotropic": ["--steps", 2],
    "missing_wedge": ["--steps", 2],
    "sample_prior": ["--steps", 1],
    "likelihood": ["--steps", 1],
    "custom_operator": ["--steps", 1],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_mistakes_are_one_line_and_leave_nothing(run, name, tmp_path, capsys):
    module = globals()[name]
    assert run(module, *OPTIONS[name], "--device", "nowhere") == 2
    assert capsys.readouterr().err.startswith("error: no device 'nowhere'")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("precious")
    assert run(module, *OPTIONS[name]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "run.json").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("missing_wedge", ["none.mrc"], "none.mrc"),
        ("likelihood", ["none.mrc"], "none.mrc"),
        ("anisotropic", ["none.mrc", "none.mrc"], "none.mrc"),
    ],
)
def test_bad_input(run, name, arguments, message, tmp_path, capsys):
    assert run(globals()[name], *arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def particles_of(volume, number, folder):
    """A STAR file, its stack in a folder beside it, and what was written."""
    g = torch.Generator().manual_seed(0)
    rotations, shifts = random_rotations(number, generator=g), torch.randn(number, 2, generator=g)
    project = FourierProjector(rotations, shifts, (24, 24, 24), CTF(defocus_u_angstrom=8000.0, voxel_size_angstrom=1.5))
    y = project(torch.from_numpy(volume.data))
    y = (y + 0.5 * y.std() * torch.randn(y.shape, generator=g)).numpy()
    (folder / "job").mkdir()
    write_map(folder / "job" / "some.mrcs", DensityMap(y, 1.5))
    one = np.ones(number)
    fields = (8000 * one, 8000 * one, 0 * one, 300 * one, 2.7 * one, 0.1 * one, 0 * one)
    names = [f"{k + 1:06d}@job/some.mrcs" for k in range(number)]
    stack = ImageStack(y, 1.5, names, ImageCtf(*fields))
    write_poses(folder / "some.star", stack, Poses(rotations.double().numpy(), 1.5 * shifts.double().numpy()))
    return folder / "some.star"


def test_particles_are_reconstructed_and_restored(run, blobs, tmp_path, capsys):
    star = particles_of(blobs, 150, tmp_path)
    assert run(particles, star, "--mask-diameter", 26, "--steps", 2) == 0
    assert left(tmp_path) == set(particles.FILES)
    assert record(tmp_path)["particles"] == 150
    page = read_report(tmp_path / "out" / "report.html")
    assert len(page["sphere"]["above"]) + len(page["sphere"]["below"]) == page["sphere"]["of"] == 150
    assert {volume["name"] for volume in page["volumes"]} == {"input", "linear", "restored", "change"}
    assert report_again([str(tmp_path / "out")]) == 0
    assert read_report(tmp_path / "out" / "report.html") == page
    assert 0.4 < record(tmp_path)["misfit"] < 1.3  # in so small a box the particle is in the background, too
    found = read_map(tmp_path / "out" / "reconstruction.mrc")
    low = fsc(found.data, blobs.data, 1.5).correlation[1:6]
    assert low.mean() > 0.9
    assert "150 particles of 24 × 24 pixels of 1.5 Å" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text.replace("rlnAngleTilt", "rlnSomething"), "the images have no angles"),
        (lambda text: text.replace("job/some", "job/none"), "job/none.mrcs is not there"),
        (lambda text: text.replace("000003@", "000009@"), "job/some.mrcs has 4 images, not 9"),
        (lambda text: text.replace("000003@", ""), "is no image of a stack"),
        (lambda text: text.replace("1.500000", "2.000000").replace("1.5 ", "2.0 "), "relion_preprocess"),
    ],
)
def test_particles_that_will_not_do_are_named(run, blobs, tmp_path, capsys, damage, words):
    star = particles_of(blobs, 4, tmp_path)
    star.write_text(damage(star.read_text()))
    assert run(particles, star, "--mask-diameter", 26) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module", [anisotropic, missing_wedge])
@pytest.mark.parametrize("state", ["none/state", "file/state", "."])
def test_a_checkpoint_that_cannot_be_written_is_told_at_the_start(run, module, state, tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SystemExit) as stop:
        run(module, "--checkpoint", tmp_path / state)
    assert stop.value.code == 2
    assert "argument --checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(run, name, capsys):
    with pytest.raises(SystemExit) as stop:
        run(globals()[name], "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("--out", "--steps", "--seed", "--prior", "--device", "--precision", "--overwrite"):
        assert option in text
