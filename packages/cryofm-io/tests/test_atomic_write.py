"""Nothing is half-written: a file appears whole or not at all, and never replaces another unasked."""

import os
import re
import stat

import attrs
import numpy as np
import pytest

from cryofm_io import (
    DensityMap,
    FscCurve,
    OutputExistsError,
    atomic_write,
    partial_path,
    plot_fsc,
    read_map,
    write_fsc_csv,
    write_map,
)

MAP = DensityMap(np.arange(64).reshape(4, 4, 4), 1.5)
CURVE = FscCurve(np.array([0.1, 0.2]), np.array([0.9, 0.1]), np.array([18, 62]))


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
def test_failure_leaves_what_was_there(tmp_path, exception, old):
    path = tmp_path / "run.json"
    if old:
        path.write_text(old)

    def write():
        with atomic_write(path, overwrite=True) as temporary:
            temporary.write_text("half of i")
            raise exception

    with pytest.raises(exception):
        write()
    assert [file.read_text() for file in tmp_path.iterdir()] == ([old] if old else [])


def test_interrupt_while_a_map_is_written(tmp_path, monkeypatch):
    class Interrupting(np.ndarray):
        def astype(self, *args, **kwargs):
            raise KeyboardInterrupt  # as if pressed after the header went out

    density = DensityMap(np.zeros((4, 4, 4)), 1.5)
    object.__setattr__(density, "data", density.data.view(Interrupting))
    with pytest.raises(KeyboardInterrupt):
        write_map(tmp_path / "map.mrc.gz", density)
    assert list(tmp_path.iterdir()) == []


def test_success_replaces_the_file_and_keeps_the_ending(tmp_path):
    path = tmp_path / "new folder" / "map.mrc.gz"
    for text in ("one", "two"):
        with atomic_write(path, overwrite=True) as temporary:
            assert temporary.parent == path.parent
            assert temporary.name.endswith("map.mrc.gz")
            temporary.write_text(text)
        assert [file.read_text() for file in path.parent.iterdir()] == [text]


@pytest.mark.parametrize(
    "write",
    [
        lambda path, **kw: write_map(path, DensityMap(np.zeros((4, 4, 4)), 1.5), **kw),
        lambda path, **kw: write_fsc_csv(path, {"a": CURVE}, **kw),
        lambda path, **kw: plot_fsc({"a": CURVE}, path, **kw),
    ],
)
def test_existing_output_is_refused(tmp_path, write):
    path = tmp_path / "output.svg"
    path.write_text("precious")
    if "plot" in write.__code__.co_names[0]:
        pytest.importorskip("matplotlib")
    with pytest.raises(OutputExistsError, match=r"output\.svg exists.*--overwrite"):
        write(path)
    assert path.read_text() == "precious"
    write(path, overwrite=True)
    assert path.read_bytes() != b"precious"


def test_output_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "run.json"

    def write():
        with atomic_write(path) as temporary:
            temporary.write_text("mine")
            path.write_text("another run's")

    with pytest.raises(OutputExistsError):
        write()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["another run's"]


def test_a_folder_is_never_replaced(tmp_path):
    with pytest.raises(OutputExistsError, match="is a folder"), atomic_write(tmp_path, overwrite=True):
        pass


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "map.mrc").write_text("old")
    link = tmp_path / "map.mrc"
    link.symlink_to("far/map.mrc")
    with pytest.raises(OutputExistsError):
        write_map(link, MAP)
    write_map(link, MAP, overwrite=True)
    assert link.is_symlink()
    assert read_map(tmp_path / "far" / "map.mrc").shape == MAP.shape
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["map.mrc"]
    dangling = tmp_path / "dangling.mrc"
    dangling.symlink_to("far/new.mrc")
    write_map(dangling, MAP)
    assert dangling.is_symlink()
    assert (tmp_path / "far" / "new.mrc").is_file()


def test_links_that_lead_nowhere(tmp_path):
    loop = tmp_path / "loop.mrc"
    loop.symlink_to("loop.mrc")
    with pytest.raises((OutputExistsError, OSError)):
        write_map(loop, MAP, overwrite=True)
    folder = tmp_path / "folder"
    folder.symlink_to(".")
    with pytest.raises(OutputExistsError, match="is a folder"):
        write_map(folder, MAP, overwrite=True)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_permissions_stay(tmp_path, mode):
    path = tmp_path / "map.mrc"
    path.write_text("old")
    path.chmod(mode)
    with atomic_write(path, overwrite=True) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == mode  # nobody reads it meanwhile, either
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_has_ordinary_permissions(tmp_path):
    (tmp_path / "ordinary").touch()
    write_map(tmp_path / "map.mrc", MAP)
    assert (tmp_path / "map.mrc").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_read_only_file_is_refused(tmp_path):
    path = tmp_path / "map.mrc"
    path.write_text("precious")
    path.chmod(0o444)
    with pytest.raises(OutputExistsError, match=r"map\.mrc is read-only"):
        write_map(path, MAP, overwrite=True)
    assert path.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputExistsError, match="no ordinary file"):
        write_map(tmp_path / "pipe", MAP, overwrite=True)


def test_nobody_foresees_the_temporary_name(tmp_path, monkeypatch):
    names = set()
    for _ in range(20):
        with atomic_write(tmp_path / "run.json", overwrite=True) as temporary:
            names.add(temporary.name)
            assert re.fullmatch(rf"\.partial-[0-9a-f]{{8}}-{os.getpid()}-[0-9a-f]{{16}}-run\.json", temporary.name)
    assert len(names) == 20
    # and even if somebody did, what lies there is neither followed nor written to
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    partial_path(tmp_path / "run.json").symlink_to(victim)
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "run.json", overwrite=True) as temporary:
        temporary.write_text("mine")
    assert victim.read_text() == "precious"


def test_names_as_long_as_can_be(tmp_path):
    path = tmp_path / ("n" * 251 + ".mrc")
    write_map(path, MAP)
    assert path.is_file()


def test_values_are_frozen():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        DensityMap(np.zeros((4, 4, 4)), 1.5).voxel_size = 2.0  # type: ignore[misc]
