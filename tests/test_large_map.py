"""examples/large_map.py judges maps on disk as other maps are judged, and checks its state."""

import shutil
import struct

import numpy as np
import pytest

from cryofm_io import read_map

pytest.importorskip("jinja2")
from cryofm_io.report import read_report

script = pytest.importorskip("_command_line")
large_map = pytest.importorskip("large_map")


@pytest.fixture
def run_large(monkeypatch, small_prior, tmp_path):
    """The script, with a state folder."""

    def run(*arguments):
        line = [*arguments, "--out", tmp_path / "out", "--state", tmp_path / "state", "--steps", 2, "--scale", 1]
        line = [*line, "--b-factor", 0, "--overwrite", "--prior", small_prior]
        monkeypatch.setattr("sys.argv", ["large_map.py", *map(str, line)])
        return script.exit_code(large_map.main)

    return run


@pytest.fixture
def crooked(half_maps, tmp_path):
    """Halves whose headers say stack of volumes, and sections of nothing."""
    ours = []
    for path in half_maps:
        content = bytearray(path.read_bytes())
        struct.pack_into("<i", content, 88, 401)  # ISPG
        struct.pack_into("<i", content, 36, 50)  # MZ
        ours.append(tmp_path / path.name)
        ours[-1].write_bytes(content)
    return ours


def test_headers_are_judged_and_not_copied_and_a_damaged_state_is_mended_or_refused(
    run_large, crooked, half_maps, tmp_path, capsys, monkeypatch
):
    assert run_large(*crooked) == 2
    assert "are not cubes" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "state")
    line, state, out = (*crooked, "--voxel-size", 1.3), tmp_path / "state", tmp_path / "out" / "restored.mrc"

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(large_map, "write_sections", stop)
        assert run_large(*line) == 130
    kept = {path.name: path.read_bytes() for path in state.iterdir() if path.name[0] != "."}
    assert run_large(*line) in (0, 3)
    assert "50" in capsys.readouterr().err  # what was overridden
    assert not state.exists()
    like, found, whole = read_map(half_maps[0]), read_map(out), out.read_bytes()
    assert (found.space_group, found.voxel_size, found.shape) == (1, 1.3, like.shape)
    assert (found.origin, found.nstart) == (like.origin, like.nstart)
    page = read_report(tmp_path / "out" / "report.html")
    assert page["grid"]["position"] == pytest.approx(found.position)
    assert page["grid"]["shape"] == list(found.shape)
    assert "the others were not checked" in page["warnings"][0]

    rng = np.random.default_rng(0)
    for name in ("blocks", "sums", *["found.json", "identity.json"] * 4):
        state.mkdir(exist_ok=True)
        for other, content in kept.items():
            damaged = bytearray(content)
            damaged[rng.integers(len(content))] ^= (name == other) << rng.integers(8)
            (state / other).write_bytes(damaged)
        out.unlink(missing_ok=True)
        if run_large(*line) == 2:
            assert "start anew" in capsys.readouterr().err
            assert name.endswith("json")
        else:
            assert out.read_bytes() == whole
    state.mkdir(exist_ok=True)
    for other, content in kept.items():
        (state / other).write_bytes(content + b"\0" * (other == "blocks"))
    assert run_large(*line) == 2
    assert "start anew" in capsys.readouterr().err


def test_values_that_are_not_finite_are_named(run_large, half_maps, tmp_path, capsys):
    content = bytearray(half_maps[0].read_bytes())
    struct.pack_into("<f", content, 1024 + 4 * (31 * 28 + 1), float("nan"))  # which few of the values do not show
    (tmp_path / "nan.mrc").write_bytes(content)
    assert run_large(tmp_path / "nan.mrc", half_maps[1]) == 2
    assert "nan.mrc: values that are not finite" in capsys.readouterr().err
