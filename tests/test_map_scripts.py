"""inspect_map.py, fsc.py, mask.py and score.py as their users run them."""

import csv
import importlib.util
from pathlib import Path

import attrs
import numpy as np
import pytest

from cryofm_io import DensityMap, automatic_mask, fsc, read_map, write_map

pytest.importorskip("jinja2")
from cryofm_io.report import read_report
from cryofm_io.report.__main__ import main as report_again

script = pytest.importorskip("_command_line")
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def call(monkeypatch):
    """A script by its name; not imported by it, for benchmarks have some of the same."""

    def call(name, *arguments):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr("sys.argv", [f"{name}.py", *map(str, arguments)])
        return script.exit_code(module.main)

    return call


def test_inspect_map_says_what_it_sees(call, half_maps, tmp_path, capsys):
    assert call("inspect_map", *half_maps) == 0
    said = capsys.readouterr().out
    assert "31 × 28 × 25 voxels of 1.3 Å" in said
    assert "yes, two raw halves" in said
    assert "denoise.py" in said


def test_inspect_map_finds_trouble(call, half_maps, tmp_path, capsys):
    assert call("inspect_map", half_maps[0], half_maps[0]) == 1
    assert "trouble: " in capsys.readouterr().out
    (tmp_path / "bad.mrc").write_text("no map")
    assert call("inspect_map", tmp_path / "bad.mrc") == 1
    assert "bad.mrc" in capsys.readouterr().out


def test_a_volume_that_is_marked_as_a_stack_is_no_trouble(call, half_maps, tmp_path, capsys):
    write_map(tmp_path / "marked.mrc", DensityMap(read_map(half_maps[0]).data[:25, :25, :25], 1.3))
    with (tmp_path / "marked.mrc").open("r+b") as file:
        for at, value in ((88, 0), (36, 1)):  # ISPG and MZ
            file.seek(at)
            file.write(value.to_bytes(4, "little"))
    assert call("inspect_map", tmp_path / "marked.mrc") == 0
    assert "header     ISPG 0 and MZ 1 mark a stack of images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("width", "said"), [(5, "prior cryofm-tiny-particles"), (1, "trouble: denoise.py: no bundled")]
)
def test_inspect_map_takes_the_prior_that_denoise_takes(call, tmp_path, capsys, width, said):
    z, y, x = np.ogrid[-16:16, -16:16, -16:16]
    density = np.exp(-(z**2 + y**2 + x**2) / (2 * width**2))
    density += np.random.default_rng(0).normal(size=density.shape) / 50
    write_map(tmp_path / "coarse.mrc", DensityMap(density, 12.0))
    assert call("inspect_map", tmp_path / "coarse.mrc") == (width == 1)
    found = capsys.readouterr().out
    assert said in found
    assert ("a grid of 32 × 32 × 32 voxels of 12 Å, " in found) == (width == 5)  # not of the other prior's voxels


def test_a_voxel_size_that_may_be_missing_is_told_once(call, half_maps, tmp_path, capsys):
    write_map(tmp_path / "one.mrc", attrs.evolve(read_map(half_maps[0]), voxel_size=1.0))
    assert call("inspect_map", tmp_path / "one.mrc") == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trouble")]
    assert line.count("one.mrc") == 1


def test_fsc_of_halves(call, half_maps, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("fsc", *half_maps, "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {"fsc.csv", "fsc.png", "fsc.star", "fsc.xml", "report.html"}
    one, two = map(read_map, half_maps)
    with (out / "fsc.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [float(row["unmasked"]) for row in rows]
    assert np.allclose(found, fsc(one.data, two.data, 1.3).correlation, atol=1e-5)
    assert "cFAR" in capsys.readouterr().out
    assert call("fsc", *half_maps, "--out", out) == 2  # unasked
    content = read_report(out / "report.html")
    assert [figure["name"] for figure in content["figures"]] == ["fsc-data", "fsc-directions"]
    shown = {series["label"]: series["y"] for series in content["figures"][0]["series"]}
    assert np.allclose(shown["unmasked"], found, atol=1e-4)
    assert content["grid"]["position"] == list(one.position)
    assert report_again([str(out)]) == 0  # from what the page holds
    assert read_report(out / "report.html") == content
    assert not (out / "open.cxc").exists()  # there is no map for ChimeraX


def test_mask_of_halves_lies_where_they_do(call, half_maps, tmp_path):
    path = tmp_path / "mask.mrc"
    assert call("mask", *half_maps, "--out", path) == 0
    mask, one = read_map(path), read_map(half_maps[0])
    assert (mask.shape, mask.position) == (one.shape, one.position)
    assert mask.data.max() == 1
    assert mask.data.min() == 0
    assert np.average(one.data, weights=mask.data) > 2 * one.data.mean()
    assert call("mask", half_maps[0], "--threshold", 99, "--out", path, "--overwrite") == 2
    mean = (one.data + read_map(half_maps[1]).data) / 2
    assert np.allclose(mask.data, automatic_mask(mean - np.median(mean), 1.3), atol=1e-3)


def test_page_of_a_mask(call, half_maps, tmp_path, capsys):
    page, path = tmp_path / "mask.html", tmp_path / "mask.mrc"
    line = ("mask", half_maps[0], "--out", path, "--report", page)
    assert call(*line) == 0
    content = read_report(page)
    numbers = {number["label"]: number["value"] for number in content["numbers"] + content["more_numbers"]}
    assert numbers["of the box"] == f"{np.mean(read_map(path).data == 1):.1%}"
    assert f"threshold {numbers['threshold']} " in capsys.readouterr().out
    assert [volume["name"] for volume in content["volumes"]] == ["after the low pass", "map × mask", "mask"]
    path.unlink()
    assert call(*line) == 2  # before the mask is written
    assert not path.exists()
    assert call("mask", half_maps[0], "--out", path, "--report", half_maps[0], "--overwrite") == 2
    assert (
        call("mask", half_maps[0], "--out", path, "--low-pass", 3, "--level", 0.01, "--report", page, "--overwrite")
        == 0
    )
    assert read_report(page)["trusted"] is False  # it fills the box
    assert "% of the box" in read_report(page)["warnings"][0]
    assert "warning: the mask is" in capsys.readouterr().err


def test_pages_of_scores_and_of_what_is_found(call, half_maps, tmp_path):
    page = tmp_path / "page.html"
    assert call("score", half_maps[1], half_maps[0], half_maps[0], "--truth", half_maps[0], "--report", page) == 0
    content = read_report(page)
    assert [row[1] for row in content["table"]["rows"]][1:] == ["1.0000", "1.0000"]
    assert "highest" in content["verdict"]
    assert call("inspect_map", *half_maps, "--report", page) == 2
    assert call("inspect_map", *half_maps, "--report", page, "--overwrite") == 0
    content = read_report(page)
    assert content["trusted"] is True
    assert [figure["name"] for figure in content["figures"]] == ["fsc-data", "wilson", "histogram"]
    assert {"size", "halves", "denoise.py"} <= {row[0] for row in content["table"]["rows"]}
    (tmp_path / "bad.mrc").write_text("no map")
    assert call("inspect_map", tmp_path / "bad.mrc", "--report", page, "--overwrite") == 1
    content = read_report(page)
    assert content["trusted"] is False
    assert "bad.mrc" in content["warnings"][0]


def test_score_is_that_of_the_fsc(call, half_maps, tmp_path, capsys):
    one = read_map(half_maps[0])
    write_map(tmp_path / "twice.mrc", attrs.evolve(one, data=2 * one.data))
    table = tmp_path / "scores.csv"
    assert call("score", *half_maps, tmp_path / "twice.mrc", "--truth", half_maps[0], "--out", table) == 0
    with table.open() as file:
        first, second, twice = csv.DictReader(file)
    assert float(first["fsc_auc"]) == pytest.approx(1)
    assert float(second["fsc_auc"]) == pytest.approx(fsc(one.data, read_map(half_maps[1]).data, 1.3).auc)
    assert float(twice["error_at_best_scale"]) == pytest.approx(0, abs=1e-6)
    assert 0 < float(second["error_at_best_scale"]) < 1
    wrong = attrs.evolve(one, data=np.ones_like(one.data), voxel_size=2.0)
    write_map(tmp_path / "mask.mrc", wrong)
    line = ("score", half_maps[0], "--truth", half_maps[0], "--mask", tmp_path / "mask.mrc")
    assert call(*line) == 2
    assert call(*line, "--voxel-size", 1.3) == 0


def test_a_model_is_scored_where_it_lies(call, tmp_path, capsys):
    pytest.importorskip("gemmi")
    from cryofm_io import DensityMap, density_of_model

    lines = [
        f"ATOM  {i:5d}  CA  GLY A{i:4d}    {10 + 3 * i:8.3f}{20 + 2 * i:8.3f}{30 + i:8.3f}  1.00 20.00           C"
        for i in range(1, 8)
    ]
    (tmp_path / "model.pdb").write_text("\n".join(lines))
    empty = DensityMap(np.zeros((24, 28, 32)), 1.2, origin=(8, 17, 26))
    density = density_of_model(tmp_path / "model.pdb", empty)
    write_map(tmp_path / "map.mrc", attrs.evolve(empty, data=density))
    write_map(tmp_path / "moved.mrc", attrs.evolve(empty, data=np.roll(density, 3, axis=2)))
    table = tmp_path / "scores.csv"
    files = (tmp_path / "map.mrc", tmp_path / "moved.mrc")
    assert call("score", *files, "--model", tmp_path / "model.pdb", "--out", table) == 0
    with table.open() as file:
        right, moved = csv.DictReader(file)
    assert float(right["fsc_auc"]) > 0.99
    assert float(moved["fsc_auc"]) < 0.5
    assert call("fsc", files[0], "--model", tmp_path / "model.pdb", "--out", tmp_path / "out") == 0
    assert [one["name"] for one in read_report(tmp_path / "out" / "report.html")["volumes"]] == ["map", "model"]
    assert "FSC 0.5: " in capsys.readouterr().out
