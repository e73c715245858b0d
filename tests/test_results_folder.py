"""The folder of results: whole or not there, on its own file system, and nobody else's files touched."""

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from cryofm_io import OutputExistsError, output_folder
from cryofm_sampling.half_maps import _runs as restoration

script = pytest.importorskip("_command_line")
results = pytest.importorskip("_results")

RESULTS = {"restored.mrc", "linear.mrc", "fsc.csv", "fsc.png", "slices.png", "report.html", "open.cxc", "run.json"}


def test_results_are_not_overwritten_unasked(run, half_maps, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "restored.mrc").write_text("precious")
    (out / "notes.txt").write_text("mine")
    assert run(*half_maps, "--out", out, "--steps", 2) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "restored.mrc").read_text() == "precious"
    assert run(*half_maps, "--out", out, "--steps", 2, "--overwrite") == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert {path.name for path in out.iterdir()} == RESULTS | {"notes.txt"}


def test_overwriting_leaves_nothing_of_the_former_run(run, half_maps, tmp_path, scale_given):
    out = tmp_path / "out"
    assert run(*half_maps, "--out", out, "--steps", 2, "--samples", 2) == 0
    mine = {"sample_of_mine.mrc", "sample_07.mrc", "model_01.mrc", "samples.png"}  # names that some script may leave
    for name in mine:
        (out / name).write_text("mine")
    assert run(*half_maps, "--out", out, "--steps", 2, "--overwrite") == 0
    assert {path.name for path in out.iterdir()} == RESULTS | mine


def test_folders_that_are_named_like_results_stay(run, half_maps, tmp_path, capsys, scale_given):
    out = tmp_path / "out"
    line = (*half_maps, "--out", out, "--steps", 2, "--overwrite")
    assert run(*line) == 0
    (out / "sample_03.mrc").mkdir()  # of a name that this run will not leave
    assert run(*line) == 0
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    (out / "restored.mrc").unlink()
    (out / "restored.mrc").mkdir()
    capsys.readouterr()
    assert run(*line) == 2
    assert re.fullmatch(r"error: restored\.mrc in .*: a folder; give another --out", capsys.readouterr().err.strip())
    (out / "restored.mrc").rmdir()
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != "restored.mrc")
    assert (out / "sample_03.mrc").is_dir()


def test_what_a_run_reads_is_never_lost_to_its_results(run, half_maps, tmp_path, capsys):
    out, mask = tmp_path / "out", tmp_path / "mask.mrc"
    out.mkdir()
    shutil.copy(half_maps[0], out / "restored.mrc")
    shutil.copy(half_maps[1], out / "sample_07.mrc")  # of a former run with more samples
    (out / "run.json").write_text('{"results_sha256": {"sample_07.mrc": "", "../half1.mrc": ""}}')
    mask.symlink_to(out / "sample_07.mrc")
    for arguments, said in [
        ((out / "restored.mrc", half_maps[1]), "restored.mrc"),
        ((half_maps[0], out / "sample_07.mrc"), "sample_07.mrc"),
        ((*half_maps, "--mask", mask), "mask.mrc"),
    ]:
        assert run(*arguments, "--out", out, "--overwrite") == 2
        assert re.fullmatch(f"error: .*{said} is read, and .* give another --out", capsys.readouterr().err.strip())
    assert {path.name for path in out.iterdir()} == {"restored.mrc", "sample_07.mrc", "run.json"}


def test_results_are_made_on_the_file_system_where_they_will_lie(tmp_path):
    there, link = tmp_path / "disk" / "there", tmp_path / "link"
    there.parent.mkdir()
    link.symlink_to(there)
    for _ in range(2):  # at first it does not exist
        with output_folder(link, [], overwrite=True) as partial:
            assert partial.parent == there
            (partial / "file").write_text("whole")
        assert [path.name for path in there.iterdir()] == ["file"]


@pytest.mark.parametrize("existing", [".", "made"])
def test_the_folder_one_is_in_and_folders_to_make(run, half_maps, tmp_path, monkeypatch, scale_given, existing):
    out = tmp_path / "here" / existing
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run(*half_maps, "--out", existing, "--steps", 2) == 0
    assert {path.name for path in out.iterdir()} == RESULTS


@pytest.mark.parametrize("out", ["file", "file/in/it", "locked/in/it"])
def test_impossible_folders_are_one_line(run, half_maps, tmp_path, capsys, monkeypatch, out):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "locked").mkdir()
    make = os.mkdir

    def refuse(path, *mode):  # whoever runs the tests may write everywhere
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return make(path, *mode)

    monkeypatch.setattr(os, "mkdir", refuse)
    before = set(tmp_path.iterdir())
    assert run(*half_maps, "--out", tmp_path / out) == 2
    assert re.fullmatch("error: .*(is a file|cannot be written to).*", capsys.readouterr().err.strip())
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("module", "where"), [(restoration, "restore"), (results, "plot_slices"), (results, "write_run")]
)
def test_ctrl_c_leaves_nothing_half_written(run, half_maps, tmp_path, capsys, monkeypatch, module, where):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, where, interrupt)
    assert run(*half_maps, "--out", tmp_path / "out", "--steps", 2) == 130
    assert "no results were written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_sigterm_is_as_ctrl_c(run, half_maps, tmp_path, monkeypatch):
    monkeypatch.setattr(restoration, "restore", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert run(*half_maps, "--out", tmp_path / "made" / "out", "--steps", 2) == 130
    assert list(tmp_path.iterdir()) == []


def test_results_that_appear_meanwhile_are_not_replaced(tmp_path):
    out = tmp_path / "out"
    folders = []

    def leave():
        with output_folder(out, ["a.txt"]) as partial:
            folders.append(partial)
            (partial / "a.txt").write_text("ours")
            (out / "a.txt").write_text("theirs")

    with pytest.raises(OutputExistsError, match=r"a\.txt appeared in .* the results are in"):
        leave()
    assert (out / "a.txt").read_text() == "theirs"
    kept = folders[0].with_name(folders[0].name.removeprefix(".partial-"))  # which no next start takes for half-written
    assert (kept / "a.txt").read_text() == "ours"


def test_maps_that_are_named_like_parts_of_a_checkpoint_stay(run, half_maps, tmp_path, scale_given):
    names = [tmp_path / f"half-{i}.mrc" for i in (6, 7, 8)]
    for path in names:
        shutil.copy(half_maps[0], path)
    line = (*half_maps, "--steps", 2, "--samples", 2, "--checkpoint", tmp_path / "half.mrc", "--out", tmp_path / "out")
    assert run(*line) == 0
    assert all(path.read_bytes() == half_maps[0].read_bytes() for path in names)
    assert sorted(tmp_path.glob("half-*")) == names


def test_two_runs_do_not_share_a_folder(run, half_maps, tmp_path, capsys):
    out = tmp_path / "out"
    with output_folder(out, []) as partial:
        (partial / "file").write_text("mine")
        assert run(*half_maps, "--out", out, "--overwrite") == 2
        assert f"out is in use by process {os.getpid()} on " in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["file"]


@pytest.mark.parametrize("when", [1, 2, 3, 4])
def test_results_that_are_whole_come_into_place_in_spite_of_ctrl_c(tmp_path, monkeypatch, when):
    calls = []

    def interrupted(do):
        def call(*arguments):
            calls.append(do)
            if len(calls) == when:
                raise KeyboardInterrupt
            return do(*arguments)

        return call

    out = tmp_path / "out"
    with output_folder(out, ["a", "b", "run.json"]) as folder:
        for name in ("a", "b", "run.json"):
            (folder / name).write_text(name)
        for name in ("replace", "rename"):
            monkeypatch.setattr(os, name, interrupted(getattr(os, name)))
    assert len(calls) > 4
    assert sorted(os.listdir(out)) == ["a", "b", "run.json"]


KILLED = """
import os, signal, sys
from pathlib import Path
from cryofm_io import output_folder
out, after = Path(sys.argv[1]), int(sys.argv[2])
rename, moved = os.replace, []
def replace(a, b):
    if len(moved) == after:
        os.kill(os.getpid(), signal.SIGKILL)
    moved.append(a)
    rename(a, b)
os.replace = replace
with output_folder(out, ["a", "b", "run.json"], overwrite=True) as folder:
    for name in ("a", "b", "run.json"):
        (folder / name).write_text("new")
    if after < 0:
        os.kill(os.getpid(), signal.SIGKILL)
"""


OLD = '{"results_sha256": {"a": "", "b": "", "c": ""}}'


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("moved", [-1, 0, 1, 2])
def test_who_is_killed_leaves_the_old_results_or_the_new(tmp_path, moved):
    """Before the results are whole the old ones stay; from then on the next start makes up for what was left."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a", "b", "c", "run.json", "mine"):
        (out / name).write_text("old")
    (out / "run.json").write_text(OLD)
    killed = subprocess.run([sys.executable, "-c", KILLED, out, str(moved)], check=False)
    assert killed.returncode == -signal.SIGKILL
    if moved >= 0:
        assert not (out / "run.json").exists()  # nothing vouches for a mixture
    with pytest.raises(OutputExistsError, match="already"), output_folder(out, ["a", "run.json"]):
        pass
    found = {path.name: path.read_text() for path in out.iterdir()}
    old = dict.fromkeys(("a", "b", "c", "mine"), "old") | {"run.json": OLD}
    new = {"a": "new", "b": "new", "run.json": "new", "mine": "old"}
    assert found == (old if moved < 0 else new)
