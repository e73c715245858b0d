"""The prior inside RELION: what the script leaves, that no failure ends a refinement, and real refinements."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryofm_io import (
    DensityMap,
    ImageCtf,
    ImageStack,
    Poses,
    low_pass,
    read_map,
    read_reconstruction_sums,
    write_map,
    write_poses,
)
from cryofm_ops import (
    CTF,
    FourierProjector,
    fourier_filter,
    radial_mean,
    random_rotations,
    rfft,
)

script = pytest.importorskip("relion_reconstruct")
pytestmark = pytest.mark.filterwarnings("ignore::cryofm_io.MapWarning")

N, P = 16, 32
TOOLS = ("mpirun", "relion_refine_mpi", "relion_external_reconstruct")
needs_relion = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS),
    reason=f"{', '.join(TOOLS)} of RELION 3.1 or later are not installed (Debian: package relion)",
)


def name(half="_half1"):
    return f"run_it003{half}_class001_external_reconstruct"


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Sums as RELION leaves them, of two iterations of a half and of all; and a program that copies own.mrc."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*3 * [np.arange(P) - P // 2], indexing="ij"), -1)
    volume = sum(np.exp(-((grid - c) ** 2).sum(-1) / 3) for c in rng.uniform(-4, 4, (8, 3)))
    spectrum = np.fft.rfftn(np.fft.ifftshift(volume)) / N**2
    k = np.fft.fftfreq(P) * P
    weight = 50.0 * (np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.arange(P // 2 + 1) ** 2) <= N)
    noise = np.fft.rfftn(rng.normal(size=(P, P, P)), norm="ortho") * np.sqrt(2 * weight)
    for half in ("_half1", ""):
        data = spectrum * weight + noise
        for part, array in (("data_real", data.real), ("data_imag", data.imag), ("weight", weight)):
            with mrcfile.new(tmp_path / f"{name(half)}_{part}.mrc") as file:
                file.set_data(array.astype("f4"))
        files = zip(
            ("DataReal", "DataImag", "Weight", "Result"), ("_data_real", "_data_imag", "_weight", ""), strict=True
        )
        lines = [f"_rlnExtRecons{tag} {name(half)}{end}.mrc" for tag, end in files]
        lines += ["_rlnTau2FudgeFactor 1", "_rlnPaddingFactor 2", "_rlnReferenceDimensionality 3"]
        lines += [f"_rlnOriginalImageSize {N}", f"_rlnCurrentImageSize {N}", "_rlnPixelSize 2.0"]
        rows = [f"{i} 1.0 {0.9 if i < 7 else 0.1}" for i in range(N // 2 + 1)]
        columns = ["_rlnSpectralIndex #1", "_rlnReferenceTau2 #2", "_rlnGoldStandardFsc #3"]
        text = ["data_external_reconstruct_general", *lines, "data_external_reconstruct_tau2", "loop_", *columns, *rows]
        (tmp_path / f"{name(half)}.star").write_text("\n".join(text) + "\n")
    write_map(tmp_path / "own.mrc", DensityMap(read_reconstruction_sums(tmp_path / f"{name()}.star").map(), 2.0))
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / script.PROGRAM
    program.write_text('#!/bin/sh\n[ -e fail ] && exit 7\ncp own.mrc "$(basename "$1" .star).mrc"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(small_prior, *arguments):
    """As RELION does it."""
    flags = ("--prior", str(small_prior), "--steps", "2", *arguments)
    line = [sys.executable, script.__file__, *map(str, flags)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def values(path):
    return read_map(path, voxel_size=2.0).data


def test_a_half_is_restored_in_its_place(job, small_prior):
    done = call(small_prior, "--scale", "1", "--b-factor", "20", f"{name()}.star")
    assert done.returncode == 0
    assert "nothing was restored" not in done.stderr
    assert "half 1: restored to 6.4 Å, noise" in done.stdout
    own, found = values("own.mrc"), values(f"{name()}.mrc")
    spectrum, plain = (np.abs(np.fft.rfftn(x)) for x in (found, own))
    k = np.fft.fftfreq(N) * N
    shell = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.arange(N // 2 + 1) ** 2)
    np.testing.assert_allclose(spectrum[shell < 0.5], plain[shell < 0.5], rtol=1e-3)
    assert spectrum[shell > 5.5].max() < 1e-4 * plain.max()  # one shell below the last of FSC 1/7
    assert np.abs(found - own)[4:-4, 4:-4, 4:-4].max() > 0.01
    assert not (job / f"{name()}_out.star").exists()  # with which FSC and tau2 could be changed


def test_the_final_map_is_relions_with_the_restored_one_beside_it(job, small_prior):
    done = call(small_prior, "--scale", "1", "--b-factor", "20", f"{name('')}.star")
    assert done.returncode == 0
    assert "nothing was restored" not in done.stderr
    assert "both halves: restored" in done.stdout
    assert (job / f"{name('')}.mrc").read_bytes() == (job / "own.mrc").read_bytes()
    assert not np.array_equal(values(f"{name('')}_restored.mrc"), values("own.mrc"))


FLAGS = ["--scale", "1", "--b-factor", "20"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "give --scale and --b-factor"),
        (["--scale", "0"], "argument --scale"),
        (["--stepz", "1"], "unrecognized arguments"),
        ([*FLAGS, "--prior", "none.safetensors"], "none.safetensors"),
        ([*FLAGS, "--device", "nowhere"], "no device"),
    ],
)
def test_whatever_is_wrong_relions_map_is_used(job, capfd, flags, said):
    assert script.hook([*flags, f"{name()}.star"]) == 0
    err = capfd.readouterr().err
    assert said in err
    assert err.splitlines()[-1].startswith("warning: nothing was restored")
    assert (job / f"{name()}.mrc").read_bytes() == (job / "own.mrc").read_bytes()


def test_damaged_sums_are_survived(job, capfd):
    (job / f"{name()}_weight.mrc").write_bytes(b"nothing")
    assert script.hook([*FLAGS, f"{name()}.star"]) == 0
    assert "weight.mrc" in capfd.readouterr().err
    assert np.array_equal(values(f"{name()}.mrc"), values("own.mrc"))


@pytest.mark.parametrize(
    "end",
    [
        lambda _: os.kill(os.getpid(), signal.SIGKILL),  # as for want of memory
        lambda _: sys.exit(9),
        lambda _: 1 / 0,
    ],
)
def test_it_outlives_its_own_end(job, capfd, monkeypatch, end):
    monkeypatch.setattr(script, "replace_map", end)
    assert script.hook([f"{name()}.star"]) == 0
    assert "warning: nothing was restored" in capfd.readouterr().err
    assert np.array_equal(values(f"{name()}.mrc"), values("own.mrc"))


def test_it_outlives_who_reads_what_it_says(job, monkeypatch):
    monkeypatch.setattr(script, "replace_map", lambda _: print("restored"))
    monkeypatch.setattr("sys.argv", ["relion_reconstruct.py", f"{name()}.star"])
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        ended = script.main()
        monkeypatch.undo()
    assert ended == 0
    assert np.array_equal(values(job / f"{name()}.mrc"), values(job / "own.mrc"))


def test_without_relions_own_map_there_is_nothing_to_go_on_with(job, capfd, monkeypatch):
    (job / "fail").touch()
    assert script.hook([f"{name()}.star"]) == 7
    assert "failed with status 7" in capfd.readouterr().err
    monkeypatch.setenv("PATH", str(job))
    assert script.hook([f"{name()}.star"]) == 127
    assert "cannot be run" in capfd.readouterr().err


def test_a_dry_run_finds_scale_and_b_and_changes_nothing(job, small_prior, capsys, monkeypatch):
    before = sorted(job.iterdir())
    line = ["relion_reconstruct.py", "--dry-run", "--prior", str(small_prior), f"{name()}.star"]
    monkeypatch.setattr("sys.argv", line)
    assert script.main() == 0
    said, export = capsys.readouterr().out.splitlines()
    assert "16 voxels of 2 Å, restored from 12 Å to 6.4 Å on a grid of 22" in said
    assert export.startswith("export RELION_EXTERNAL_RECONSTRUCT_EXECUTABLE='")
    words = shlex.split(shlex.split(export)[1].partition("=")[2])
    assert words[:2] == [sys.executable, script.__file__]
    assert words[2::2] == ["--scale", "--b-factor", "--prior"]
    assert words[-1] == str(small_prior)
    monkeypatch.setattr("sys.argv", [*line[:-1], "none.star"])
    assert script.main() == 2
    assert "none.star: no such file" in capsys.readouterr().err
    assert sorted(job.iterdir()) == before


SIDE, VOXEL, COUNT = 32, 3.0, 208


def particles(folder):
    """Images of blobs at the poses that RELION is told, with white noise of variance 1; and the blobs."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*3 * [np.arange(SIDE) - SIDE // 2], indexing="ij"), -1)
    truth = 0.6 * sum(np.exp(-((grid - c) ** 2).sum(-1) / 2) for c in rng.uniform(-6, 6, (30, 3)))
    rotations = random_rotations(COUNT, generator=generator)
    clean = FourierProjector(rotations, torch.zeros(COUNT, 2), (SIDE,) * 3)(torch.from_numpy(truth).float())
    u = 8000 + 12000 * torch.rand(COUNT, generator=generator)
    ctf = CTF(defocus_u_angstrom=u, defocus_v_angstrom=u, defocus_angle_deg=0 * u, voxel_size_angstrom=VOXEL)
    images = fourier_filter(clean[:, None], ctf.transfer((1, SIDE, SIDE)).float())[:, 0]
    images = (images + torch.randn(images.shape, generator=generator)).numpy()
    same = [np.full(COUNT, value) for value in (0.0, 300.0, 2.7, 0.1, 0.0)]
    told = ImageCtf(u.numpy(), u.numpy(), *same)
    names = [f"{i + 1:06d}@particles.mrcs" for i in range(COUNT)]
    write_map(folder / "particles.mrcs", DensityMap(images, VOXEL))
    poses = Poses(rotations.numpy(), np.zeros((COUNT, 2)))
    write_poses(folder / "particles.star", ImageStack(images, VOXEL, ctf=told, names=names), poses)
    write_map(folder / "reference.mrc", DensityMap(low_pass(truth, 20, VOXEL), VOXEL))
    return torch.from_numpy(truth)


@pytest.mark.slow
@needs_relion
def test_a_refinement_by_relion(tmp_path, small_prior, monkeypatch, capfd):
    truth = particles(tmp_path)
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path)
    hook = f"{sys.executable} {script.__file__} --scale 1 --b-factor 20 --steps 1 --prior {small_prior}"
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
    line = "mpirun --oversubscribe -n 3 relion_refine_mpi --i particles.star --o job/run --ref reference.mrc "
    line += "--ini_high 13.7 --auto_refine --split_random_halves --skip_align --auto_ignore_angles --ctf "
    line += "--flatten_solvent --particle_diameter 88 --external_reconstruct --random_seed 1 --dont_check_norm"
    own = os.environ | allowed | {"RELION_EXTERNAL_RECONSTRUCT_EXECUTABLE": hook}
    done = subprocess.run(line.split(), env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "nothing was restored" not in done.stderr
    for whose in ("half 1", "half 2", "both halves"):
        assert f"{whose}: restored to " in done.stdout
    assert len(list(Path("job").glob("run_it*_class001_external_reconstruct_restored.mrc"))) == 1

    # What RELION goes on with is the restored map, but for its solvent.
    star = "job/run_it002_half1_class001_external_reconstruct.star"
    found = read_reconstruction_sums(star)
    restored = read_map(found.result).data
    x = np.arange(SIDE) - SIDE // 2
    within = x[:, None, None] ** 2 + x[:, None] ** 2 + x**2 < (SIDE / 2 - 7) ** 2
    np.testing.assert_allclose(read_map("job/run_it002_half1_class001.mrc").data[within], restored[within], atol=1e-5)

    # A failure leaves RELION's own map, and a good status; ours of the same sums is that map.
    assert script.hook(["--scale", "none", star]) == 0
    assert "nothing was restored" in capfd.readouterr().err
    relions = read_map(found.result, voxel_size=VOXEL).data
    assert np.corrcoef(restored[within], relions[within])[0, 1] < 0.999
    own = found.map(wiener=True)[within]
    assert np.corrcoef(own, relions[within])[0, 1] > 0.999  # whose gridding weights even out what poses left uneven
    subprocess.run([script.PROGRAM, star, "--skip_gridding"], check=True, capture_output=True)  # as RELION 4 and 5 do
    assert np.corrcoef(own, read_map(found.result, voxel_size=VOXEL).data[within])[0, 1] > 0.9999

    # The weights tell the noise at the true poses, as far as the halves agree.
    error = rfft(torch.from_numpy(found.map())) - rfft(truth.float())
    W = torch.from_numpy(found.precision())
    chi = radial_mean(W * error.abs().square(), (SIDE,) * 3) / radial_mean((W > 0).float(), (SIDE,) * 3)
    assert float(chi[4:10].mean()) == pytest.approx(1, abs=0.3)
