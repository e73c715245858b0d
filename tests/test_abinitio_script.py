"""abinitio.py as its users run it, on a few small images: what it leaves, and what it refuses."""

import csv
import json
import re

import attrs
import mrcfile
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cryofm_io import (
    CryoFMError,
    DensityMap,
    ImageCtf,
    ImageStack,
    Poses,
    fourier_resample,
    prepare_images,
    read_images,
    read_map,
    write_map,
    write_poses,
)
from cryofm_model import Hourglass, HourglassConfig
from cryofm_ops import CTF, BlindProjections, FourierProjector, angular_distance_deg, random_rotations

script = pytest.importorskip("_command_line")
abinitio = pytest.importorskip("abinitio")
inputs = pytest.importorskip("_images")
N, SIZE = 40, 4.0
ROTATIONS = random_rotations(5, generator=torch.Generator().manual_seed(0))
SHIFTS = np.full((5, 2), 2 * SIZE)

LEFT = {"model_01.mrc", "model_02.mrc", "poses.star", "pairs.png", "scores.csv", "report.html", "open.cxc", "run.json"}


def blobs(n, size):
    """Some blobs about voxel n // 2; volumes of several voxel sizes show the same."""
    at = SIZE * np.random.default_rng(0).uniform(-7, 7, (9, 3))
    grid = size * (np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1) - n // 2)
    return sum(np.exp(-((grid - c) ** 2).sum(-1) / (12 * SIZE**2)) for c in at)


@pytest.fixture(scope="module")
def images():
    """Five projections of some blobs, dark on a bright background."""
    project = FourierProjector(ROTATIONS, torch.from_numpy(SHIFTS).float() / SIZE, (N, N, N))
    projections = project(torch.from_numpy(blobs(N, SIZE)).float())
    return 100 - 3 * projections.numpy() + np.random.default_rng(1).normal(0, 0.5, (5, N, N))


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(data, *arguments, stack="classes.mrcs"):
        with mrcfile.new(tmp_path / "classes.mrcs", overwrite=True) as file:  # which writes NaN as well
            file.set_data(np.asarray(data, np.float32))
            file.voxel_size = SIZE
        out = ("--out", tmp_path / "out", "--tries", 2, "--steps", 3, "--seed", 1)
        arguments = (stack, "--mask-diameter", 96, *out, *arguments)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["abinitio.py", *map(str, arguments)])
        return script.exit_code(abinitio.main)

    return run


def test_leaves_models_poses_and_scores(run, images, tmp_path, capsys):
    assert run(images, "--invert", "--keep", 2, "--dry-run") == 0
    planned = capsys.readouterr()
    said = re.search(r" min for (\d+) evaluations, more where images are left out", planned.out)[1]
    assert "5 images hardly determine a model" in planned.err
    assert {path.name for path in tmp_path.iterdir()} == {"classes.mrcs"}
    assert run(images, "--invert", "--keep", 2) == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == LEFT
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
    assert record["network_evaluations"] == int(said) == (2 + 2 + 5) * (3 + 3)  # all tries, those kept, each left out
    assert min(record["correlations_of_the_best"]) > 0.7
    assert "mirror" in record["note"]
    assert "hand of a model" in capsys.readouterr().out


def test_symmetry_is_imposed(run, images, tmp_path):
    assert run(images[:3], "--invert", "--keep", 1, "--tries", 1, "--sym", "c2") == 0
    x = read_map(tmp_path / "out" / "model_01.mrc").data[:, 1:, 1:]
    assert np.abs(x - x[:, ::-1, ::-1]).max() < 0.02 * x.max()


def test_algorithm_3_searches_its_poses(run, images, tmp_path, capsys):
    assert run(images, "--invert", "--keep", 2, "--algorithm", "paper", "--loss", "sg", "--background", 0.7) == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == LEFT
    assert np.isfinite(read_map(out / "model_01.mrc").data).all()
    losses = [float(row["loss"]) for row in csv.DictReader((out / "scores.csv").open(newline=""))]
    assert losses == sorted(losses)
    record = json.loads((out / "run.json").read_text())
    assert record["network_evaluations"] == 2 * (2 * 3 - 1)
    assert record["settings"]["loss"] == "sg"
    shifts = read_images(out / "poses.star").poses.shifts
    assert np.abs(shifts - SHIFTS).max() < 5 + 4.5  # --offset-range, and the way to the centres of mass
    assert "same poses within" in capsys.readouterr().out


@pytest.fixture
def star(images, tmp_path):
    """The images with their true poses."""
    write_map(tmp_path / "classes.mrcs", DensityMap(images, SIZE))
    write_poses(tmp_path / "given.star", read_images(tmp_path / "classes.mrcs"), Poses(ROTATIONS, SHIFTS))
    return tmp_path / "given.star"


def test_algorithm_3_keeps_the_poses_that_are_given(run, images, star, tmp_path, capsys):
    given = ("--algorithm", "paper", "--poses", "given", "--tries", 1, "--steps", 10)
    assert run(images, "--invert", *given, stack=star.name) == 0
    out = tmp_path / "out"
    poses = read_images(out / "poses.star").poses
    assert angular_distance_deg(torch.from_numpy(poses.rotations).float(), ROTATIONS).max() < 0.1
    assert poses.shifts == pytest.approx(SHIFTS, abs=1e-2)
    assert json.loads((out / "run.json").read_text())["network_evaluations"] == 2 * 10 - 1
    x, size = read_map(out / "model_01.mrc").data, read_map(out / "model_01.mrc").voxel_size
    assert np.corrcoef(x.ravel(), blobs(len(x), size).ravel())[0, 1] > 0.8
    assert "determine" not in capsys.readouterr().out  # that models agree about given poses says nothing


def test_given_poses_are_brought_to_the_prepared_images(images):
    stack = ImageStack(100 - images, SIZE, poses=Poses(ROTATIONS, SHIFTS))
    prepared = prepare_images(stack, mask_diameter=112, voxel_size=5.0, box=32)
    assert np.abs(prepared.shifts).max() > 8
    blind = BlindProjections(torch.from_numpy(prepared.images.data), 1.0, background=0.0)
    truth = torch.from_numpy(blobs(32, prepared.images.voxel_size)).float()
    assert float(inputs.at_given_poses(blind, prepared).log_prob(truth)) > 0.99  # mean correlation


def test_published_weights_need_no_statistics(run, images, tmp_path, monkeypatch, capsys):
    """In the published format, of a network that is small, untrained, and said to be known."""
    config = HourglassConfig(widths=(64, 128), depths=(1, 1), patch=2, conditioning=16)
    weights = Hourglass(config, generator=torch.Generator().manual_seed(0)).state_dict()
    folder = tmp_path / "published"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr("cryofm_model.weights.published._RELEASED", {config: ("CryoFM-XS", 5.0, 32)})
    assert run(images, "--invert", "--prior", folder) == 2
    assert "has no measured statistics" in (error := capsys.readouterr().err)
    assert "choose --algorithm paper, which needs none" in error
    assert run(images, "--invert", "--prior", folder, "--algorithm", "paper", "--tries", 1, "--steps", 2) == 0
    assert read_map(tmp_path / "out" / "model_01.mrc").shape == (32, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "sg"], "--loss belongs to --algorithm paper"),
        (["--max-push", "5"], "--max-push belongs to --algorithm paper"),
        (["--algorithm", "paper", "--sym", "C2"], "knows neither --sym nor --ctf"),
        (["--algorithm", "paper", "--ctf"], "knows neither --sym nor --ctf"),
    ],
)
def test_flags_that_would_do_nothing(run, images, arguments, message, capsys):
    with pytest.raises(SystemExit):
        run(images, *arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda y: y[:, :-2], [], "expected square images"),
        (lambda y: y[:1], [], "at least 2"),
        (lambda y: y, ["--mask-diameter", 400], "does not fit"),
        (lambda y: y, ["--offset-range", 1000], "ends outside of the images"),  # its search would take all memory
        (lambda y: y, ["--device", "nowhere"], "no device 'nowhere'"),
        (lambda y: np.repeat(y, 21, 0), [], "100 at most"),
        (lambda y: y, ["--algorithm", "paper", "--poses", "given"], "the images come without poses"),
    ],
)
def test_bad_input(run, images, change, arguments, message, tmp_path, capsys):
    assert run(change(images), *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_inverted_contrast_is_noticed_and_a_broken_image_left_out(run, images, capsys):
    run(np.where(images == images.max(), np.nan, images), "--tries", 1, "--keep", 1)
    said = capsys.readouterr().err
    assert "inverted contrast" in said
    assert "1 of 5 images are not finite everywhere" in said


@pytest.mark.parametrize("name", ["C0", "X", "D", "C4v"])
def test_point_groups_that_are_none(run, images, name):
    with pytest.raises(SystemExit) as stopped:
        run(images, "--sym", name)
    assert stopped.value.code == 2


@pytest.fixture
def run_particles(monkeypatch, tmp_path):
    """24 noisy particles off centre, dark, whose STAR file tells CTFs with astigmatism."""
    rng, K, generator = np.random.default_rng(0), 24, torch.Generator().manual_seed(0)
    grid = np.stack(np.meshgrid(*[np.arange(N)] * 3, indexing="ij"), -1)
    density = sum(np.exp(-((grid - c) ** 2).sum(-1) / 8) for c in rng.uniform(12, 28, (12, 3)))
    rotations, shifts = random_rotations(K, generator=generator), 4 * torch.rand(K, 2, generator=generator) - 2
    defocus, one = rng.uniform(8000, 20000, K), np.ones(K)
    values = {"defocus_u_angstrom": defocus, "defocus_v_angstrom": 0.9 * defocus, "defocus_angle_deg": 30 * one}
    ctf = CTF(**{name: torch.from_numpy(value) for name, value in values.items()}, voxel_size_angstrom=SIZE)
    clean = FourierProjector(rotations, shifts, (N, N, N), ctf)(torch.from_numpy(density).float()).numpy()
    noisy = 5 - 3 * (clean + rng.normal(0, clean.std(), clean.shape))
    names = [f"{i:06d}@particles.mrcs" for i in range(1, K + 1)]
    optics = {"voltage_kv": 300 * one, "spherical_aberration_mm": 2.7 * one, "amplitude_contrast": 0.1 * one}
    stack = ImageStack(noisy, SIZE, names, ImageCtf(**values, **optics, phase_shift_deg=0 * one))
    write_map(tmp_path / "particles.mrcs", DensityMap(stack.data, SIZE))
    write_poses(tmp_path / "particles.star", stack, Poses.from_angles(np.zeros((K, 3)), np.zeros((K, 2))))
    monkeypatch.chdir(tmp_path)

    def run(images, *arguments):
        arguments = (images, "--mask-diameter", 112, "--out", "out", "--steps", 3, "--invert", *arguments)
        monkeypatch.setattr("sys.argv", ["abinitio.py", *map(str, arguments)])
        return script.exit_code(abinitio.main)

    return run


def test_poses_of_particles_are_those_of_the_originals(run_particles, tmp_path, capsys):
    """The model at the poses and CTFs of poses.star shows the images that the file names, on their own pixels."""
    arguments = ("--ctf", "--tries", 2, "--keep", 1, "--offset-range", 10)
    assert run_particles("particles.star", *arguments, "--dry-run") == 0
    planned = capsys.readouterr()
    said = re.search(r" min for (\d+) evaluations", planned.out)[1]
    assert "24 particles hardly determine a model" in planned.err
    assert run_particles("particles.star", *arguments) == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "model_01.mrc",
        "poses.star",
        "pairs.png",
        "scores.csv",
        "report.html",
        "open.cxc",
        "run.json",
    }
    assert (out / "scores.csv").read_text().startswith("model,misfit,poses_from_the_best_deg\n")
    record = json.loads((out / "run.json").read_text())
    assert record["network_evaluations"] == int(said) == 2 * (6 + 3) + (3 + 3)

    found, model = read_images(out / "poses.star"), read_map(out / "model_01.mrc")
    fields = {name: torch.from_numpy(values) for name, values in attrs.asdict(found.ctf).items()}
    fine = torch.from_numpy(fourier_resample(model.data, (N, N, N)))  # 32 voxels of 5 Å are 40 of 4

    def correlation(rotations, shifts):
        ctf = CTF(**fields, voxel_size_angstrom=SIZE)
        views = torch.from_numpy(rotations.copy()).float(), torch.from_numpy(shifts / SIZE).float()
        made = FourierProjector(*views, (N, N, N), ctf)(fine).numpy()
        return np.mean([np.corrcoef(a.ravel(), -b.ravel())[0, 1] for a, b in zip(made, found.data, strict=True)])

    poses = found.poses
    right = correlation(poses.rotations, poses.shifts)
    assert right > 0.9 * np.mean(record["correlations_of_the_best"]) > 0.4
    assert correlation(poses.rotations.mT, poses.shifts) < 0.8 * right
    assert correlation(poses.rotations, -poses.shifts) < 0.9 * right


def test_particles_without_ctf(run_particles, tmp_path, capsys):
    assert run_particles("particles.mrcs", "--ctf") == 2
    assert "particles.mrcs: --ctf needs a STAR file that tells the CTFs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_particles_without_background_tell_no_noise(run_particles, capsys):
    assert run_particles("particles.star", "--ctf", "--mask-diameter", 158) == 2
    assert "no background" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--offset-range", "nan"), ("--mask-diameter", "inf"), ("--steps", "1")])
def test_options_without_sense_are_refused_before_anything_is_done(option, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        abinitio.parse(["classes.mrcs", "--mask-diameter", "100", "--out", str(tmp_path), *option])
    assert option[0] in capsys.readouterr().err


def averages(shares):
    data = np.random.default_rng(0).normal(size=(len(shares), 8, 8))
    return ImageStack(data, SIZE, [f"{i:06d}@c.mrcs" for i in range(1, len(shares) + 1)], shares=shares)


def test_classes_are_chosen_by_their_size(tmp_path, capsys):
    """Nearly empty ones go with a line; --classes takes the largest."""

    def chosen(stack, *arguments):
        line = ["c.star", "--mask-diameter", "20", "--out", str(tmp_path / "out"), *arguments]
        return inputs.chosen(abinitio.parse(line), stack)

    stack = averages([0.2, 0.3, 0.001, 0.1, 0.399])
    full, why = chosen(stack)
    assert [name[:6] for name in full.names] == ["000005", "000002", "000001", "000004"]
    assert why == {"000003@c.mrcs": "it has hardly any particles"}
    assert "1 of 5 classes have hardly any particles, and are left out" in capsys.readouterr().out
    best, why = chosen(stack, "--classes", "2")
    assert why["000004@c.mrcs"] == "--classes takes larger ones"
    assert np.array_equal(best.data, stack.data[[4, 1]])
    assert "2 classes with 70% of the particles" in capsys.readouterr().out
    assert len(chosen(stack, "--strict")[0]) == 5
    unknown = ImageStack(stack.data, SIZE)
    assert chosen(unknown)[0] is unknown
    with pytest.raises(CryoFMError, match=r"c\.star: --classes needs to know .* give RELION's \*_model\.star"):
        chosen(unknown, "--classes", "2")
