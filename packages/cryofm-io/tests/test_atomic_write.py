"""Nothing is half-written: a file appears whole or not at all, and never replaces another unasked."""

import attrs
import numpy as np
import pytest

from cryofm_io import (
    DensityMap,
    FscCurve,
    OutputExistsError,
    atomic_write,
    plot_fsc,
    write_fsc_csv,
    write_map,
)

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


def test_values_are_frozen():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        DensityMap(np.zeros((4, 4, 4)), 1.5).voxel_size = 2.0  # type: ignore[misc]
