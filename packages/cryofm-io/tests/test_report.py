"""One page of a run: what it says is what is in the files, its places are the map's, and it needs nothing else."""

import base64
import hashlib
import html.parser
import json
import re
import shutil
import sys
import warnings
import zlib
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryofm_io import (
    DensityMap,
    ImageStack,
    InputFileError,
    MissingExtraError,
    OutputExistsError,
    Poses,
    automatic_mask,
    changes,
    conical_fsc,
    filtered_by_shell,
    fsc,
    low_pass,
    map_on_disk,
    read_images,
    read_map,
    write_map,
    write_poses,
    write_report,
)

pytest.importorskip("jinja2")
from cryofm_io.report import read_report
from cryofm_io.report.__main__ import main
from cryofm_io.report.chimerax import chimerax_commands
from cryofm_io.report.content import level
from cryofm_io.report.large import coarse
from cryofm_io.report.page import environment
from cryofm_io.report.run import Run
from cryofm_io.report.volumes import Window

ORIGIN = (31.0, -12.5, 7.0)
SHAPE = (24, 26, 30)


def blob(at, width=2.0):
    """At (z, y, x) in voxels."""
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return np.exp(-((z - at[0]) ** 2 + (y - at[1]) ** 2 + (x - at[2]) ** 2) / (2 * width**2))


@pytest.fixture(scope="session")
def halves():
    rng = np.random.default_rng(0)
    like = DensityMap(np.ones(SHAPE), 1.5, origin=ORIGIN)
    signal = 3 * blob((12, 13, 15), 4)
    return tuple(attrs.evolve(like, data=signal + 0.3 * rng.normal(size=SHAPE)) for _ in range(2))


def made(folder, halves, added=(8, 9, 20), **record):
    """A run in a folder, that added density at a place."""
    folder.mkdir(parents=True)
    for name, half in zip(("half1", "half2"), halves, strict=True):
        write_map(folder / f"{name}.mrc", half)
    linear = low_pass((halves[0].data + halves[1].data) / 2, 5, 1.5)
    new = linear + 2 * blob(added)
    for name, data in (("linear", linear), ("restored", new), ("uncertainty", 0.1 + 0 * new + blob(added))):
        write_map(folder / f"{name}.mrc", attrs.evolve(halves[0], data=data))
    content = {
        "program": "denoise.py",
        "command": "denoise.py half1.mrc half2.mrc --out out",
        "settings": {"half1": "a </script><script>alert(1)</script>"},
        "held_out": {"slope": 1.0, "gain": 0.1, "explained": 0.5},
        "slope_of_the_other_half": 1.01,
        "doubts": [],
    }
    (folder / "run.json").write_text(json.dumps(content | record))
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory, halves):
    folder = made(tmp_path_factory.mktemp("report") / "run", halves)
    write_report(folder, halves=halves)
    return folder


class Page(html.parser.HTMLParser):
    """Every attribute that could fetch something, and the tags that are open."""

    VOID = frozenset({"meta", "input", "br", "link", "img"})

    def __init__(self, text):
        super().__init__()
        self.fetched, self.open, self.scripts = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.fetched += [value for name, value in attributes if name in ("src", "href") and not value.startswith("#")]
        self.scripts += tag == "script"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone(run):
    text = (run / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.fetched == []
    assert page.scripts == 2  # none came in by a file's name
    assert not re.search(r"https?://|url\(|@import", text.replace("http://www.w3.org", ""))


def test_what_was_added_is_named_where_it_is(run):
    content = read_report(run / "report.html")
    place = content["places"][0]
    assert place["position"] == pytest.approx([31 + 1.5 * 20, -12.5 + 1.5 * 9, 7 + 1.5 * 8], abs=0.75)
    assert place["z"] > 5
    marker = re.findall(r"^marker .* position (\S+) ", (run / "open.cxc").read_text(), re.MULTILINE)[0]
    assert [float(x) for x in marker.split(",")] == pytest.approx(place["position"], abs=0.01)


def test_figures_are_what_the_plain_functions_find(run, halves):
    """The page computes them by one transform of every map; here every figure is made by itself."""
    figures = {figure["name"]: figure for figure in read_report(run / "report.html")["figures"]}

    def series(name, label):
        return np.array(next(s["y"] for s in figures[name]["series"] if s["label"] == label), float)

    one, two = (half.data - np.median(half.data) for half in halves)
    linear, restored = (read_map(run / f"{name}.mrc").data for name in ("linear", "restored"))
    assert np.allclose(series("fsc-data", "halves"), fsc(one, two, 1.5).correlation, atol=1e-4)
    assert np.allclose(
        series("fsc-results", "restored against linear"), fsc(restored, linear, 1.5).correlation, atol=1e-4
    )
    along_z = conical_fsc(one, two, 1.5).correlation[2]
    assert np.allclose(series("fsc-directions", "along z"), along_z, atol=1e-4, equal_nan=True)
    mask = automatic_mask(linear - np.median(linear), 1.5)
    white = [filtered_by_shell(x, 1 / np.sqrt(power(x))) for x in (one, two)]
    assert np.allclose(series("fsc-data", "inside an automatic mask"), fsc(*white, 1.5, mask).correlation, atol=1e-4)
    for label, data in (("input", (one + two) / 2), ("linear", linear), ("restored", restored)):
        wanted = np.log(power(data))  # below e^-20 of single precision's rounding
        assert np.allclose(series("wilson", label)[wanted > -20], wanted[wanted > -20], atol=1e-3)
    assert np.allclose(series("noise", "noise of the mean"), np.log10(power((one - two) / 2)), atol=1e-3)


def power(data):
    """Mean of every shell but that of frequency 0."""
    axes = np.meshgrid(*map(np.fft.fftfreq, data.shape), indexing="ij")
    shell = np.rint(max(data.shape) * np.sqrt(sum(k**2 for k in axes))).astype(int)
    spectrum = abs(np.fft.fftn(data.astype(float), norm="ortho")) ** 2
    return np.array([spectrum[shell == s].mean() for s in range(1, max(data.shape) // 2 + 1)])


def test_changes_are_those_of_a_search_in_the_whole_box():
    rng = np.random.default_rng(7)
    noise, signal = rng.normal(size=(2, 30, 34, 32)).astype(np.float32)
    signal = 40 * low_pass(signal, 8, 1.5) * (np.abs(np.arange(32) - 16) < 7)
    before = DensityMap(low_pass(noise, 6, 1.5), 1.5)
    z, places = changes(before, attrs.evolve(before, data=before.data + signal), noise, 6.0, threshold=4.0, most=999)
    wanted = set()
    for sign in (1, -1):
        near = np.lib.stride_tricks.sliding_window_view(np.pad(sign * z, 4, constant_values=-np.inf), (9, 9, 9))
        peak = (sign * z == near.max(axis=(3, 4, 5))) & (sign * z > 4)
        wanted |= set(z[peak].tolist())
        assert sum(p.volume for p in places if sign * p.z > 0) == pytest.approx(1.5**3 * (sign * z > 4).sum())
    assert len(wanted) > 3
    assert {place.z for place in places} == wanted


def test_noise_changes_nothing():
    rng = np.random.default_rng(5)
    noise, other = (low_pass(rng.normal(size=(48, 48, 48)), 6, 1.5) for _ in range(2))
    before = DensityMap(noise, 1.5)
    assert changes(before, attrs.evolve(before, data=1.5 * noise), other, 6.0)[1] == []
    hole = 9 * low_pass((np.indices(noise.shape) == 24).all(axis=0), 9, 1.5)
    places = changes(before, attrs.evolve(before, data=noise - 50 * hole), other, 6.0)[1]
    assert places[0].z < -5
    assert places[0].position == pytest.approx((36, 36, 36), abs=0.5)


def test_slices_lie_where_the_map_says(run):
    content = read_report(run / "report.html")
    assert content["grid"]["position"] == list(ORIGIN)
    assert content["grid"]["shape"] == list(SHAPE)
    assert {volume["name"] for volume in content["volumes"]} == {"input", "linear", "restored", "uncertainty", "change"}


@given(
    at=st.tuples(*(st.integers(6, n - 7) for n in SHAPE)),
    voxel_size=st.floats(0.5, 3),
    origin=st.tuples(*[st.one_of(st.just(0.0), st.floats(-500, 500))] * 3),
    nstart=st.tuples(*[st.integers(-300, 300)] * 3),
)
@settings(max_examples=20, deadline=None)
def test_places_are_where_the_map_lies(at, voxel_size, origin, nstart):
    noise = np.random.default_rng(0).normal(size=(2, *SHAPE))
    before = DensityMap(noise[0], voxel_size, origin=origin, nstart=nstart)
    after = attrs.evolve(before, data=before.data + 30 * blob(at))
    places = changes(before, after, noise[1], 3 * voxel_size)[1]
    first = origin if any(origin) else voxel_size * np.array(nstart)
    assert places[0].position == pytest.approx(first + voxel_size * np.array(at[::-1]), abs=0.6 * voxel_size)


def test_a_surface_is_never_that_of_the_solvent():
    """In a mask that is mostly solvent, as an automatic one of a flattened box may be."""
    density = np.random.default_rng(0).normal(0, 0.02, (32, 32, 32)).astype(np.float32)
    density[12:20, 12:20, 12:18] += 1
    mask = np.zeros(density.shape, dtype=bool)
    mask[4:28, 4:28, 4:28] = True
    assert 0.1 < level(density, mask) < 0.5
    assert (density > level(density, mask)).sum() == 8 * 8 * 6


@pytest.mark.parametrize("shape", [(130, 140, 150), (64, 64, 64)])
def test_what_is_cut_and_coarsened_stays_in_place(shape):
    at = (36, 41, 33)
    grid = np.ogrid[: shape[0], : shape[1], : shape[2]]
    data = np.exp(-sum((g - a) ** 2 for g, a in zip(grid, at, strict=True)) / 50).astype(np.float32)
    window = Window(DensityMap(data, 1.1, origin=(5.0, -4.0, 300.0)), data > 0.01)
    shown = window.show(data)
    assert shown.size < 1_200_000
    centre = [float((shown * g).sum() / shown.sum()) for g in np.indices(shown.shape)][::-1]
    found = [p + window.voxel_size * c for p, c in zip(window.position, centre, strict=True)]
    assert found == pytest.approx([5 + 1.1 * 33, -4 + 1.1 * 41, 300 + 1.1 * 36], abs=0.3)


@pytest.mark.parametrize("shape", [(64, 66, 70), (4, 70, 66)])
def test_a_map_larger_than_memory_is_coarsened_in_place(shape, tmp_path, monkeypatch):
    monkeypatch.setattr("cryofm_io.report.large.MOST", 2500)
    at = (min(33, shape[0] // 2), 30, 41)
    grid = np.ogrid[: shape[0], : shape[1], : shape[2]]
    data = np.exp(-sum((g - a) ** 2 for g, a in zip(grid, at, strict=True)) / 60).astype(np.float32)
    write_map(tmp_path / "large.mrc", DensityMap(data, 1.1, nstart=(-20, 3, 7)))
    first = map_on_disk(tmp_path / "large.mrc")
    shown = coarse(first, attrs.evolve(first, data=3 * data))
    assert 1000 < shown.data.size <= 2500
    k = round(shown.voxel_size / 1.1)
    cube = data[k * (shown.shape[0] - 1) :][:k, k : 2 * k, 2 * k : 3 * k]
    assert shown.data[-1, 1, 2] == pytest.approx(2 * cube.mean(), rel=1e-4)
    centre = [float((shown.data * g).sum() / shown.data.sum()) for g in np.indices(shown.shape)][::-1]
    found = [p + shown.voxel_size * c for p, c in zip(shown.position, centre, strict=True)]
    wanted = [1.1 * (start + a) for start, a in zip((-20, 3, 7), at[::-1], strict=True)]
    assert found[:2] == pytest.approx(wanted[:2], abs=0.2)


def test_the_verdict_follows_the_checks(run, halves, tmp_path):
    assert read_report(run / "report.html")["trusted"] is True
    doubted = made(tmp_path / "run", halves, doubts=["one half does not predict the other"])
    content = read_report(write_report(doubted, halves=halves))
    assert content["trusted"] is False
    assert "one half does not predict the other" in content["verdict"]


def test_one_map_without_halves_is_unchecked(halves, tmp_path):
    folder = made(tmp_path / "run", halves)
    record = json.loads((folder / "run.json").read_text())
    del record["held_out"], record["slope_of_the_other_half"]
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "linear.mrc").unlink()
    content = read_report(write_report(folder, observed=halves[0]))
    assert content["trusted"] is None
    assert content["places"] is None


def test_made_again_from_the_folder(run, capsys):
    before = read_report(run / "report.html")
    assert main([str(run)]) == 0
    assert read_report(run / "report.html")["numbers"] == before["numbers"]  # its inputs are gone: what the page held
    assert capsys.readouterr().out.strip() == str(run / "report.html")


def test_inputs_are_read_again_only_if_they_are_what_they_were(halves, tmp_path):
    folder = made(tmp_path / "run", halves)
    names = [str(folder / "half1.mrc"), str(folder / "half2.mrc")]
    sums = {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in names}
    record = json.loads((folder / "run.json").read_text())
    record |= {"settings": dict(zip(("half1", "half2"), names, strict=True)), "inputs_sha256": sums}
    (folder / "run.json").write_text(json.dumps(record))
    assert main([str(folder)]) == 0
    assert read_report(folder / "report.html")["places"]
    write_map(names[1], attrs.evolve(halves[1], data=2 * halves[1].data), overwrite=True)
    (folder / "report.html").unlink()
    assert main([str(folder)]) == 0
    content = read_report(folder / "report.html")
    assert content["places"] is None
    assert any("were not there" in warning for warning in content["warnings"])


def test_two_runs_side_by_side(run, halves, tmp_path, capsys):
    other = made(tmp_path / "other", halves, added=(15, 15, 10), slope_of_the_other_half=0.7)
    write_report(other, halves=halves)
    page = tmp_path / "both.html"
    assert main([str(run), str(other), "--compare", "--out", str(page)]) == 0
    content = read_report(page)
    row = next(row for row in content["comparison"]["rows"] if row[0] == "slope of the other half")
    assert row[1:3] == ["1.01", "0.70"]
    assert Page(page.read_text()).open == []


def test_results_are_read_without_the_warnings_of_their_input(halves, tmp_path):
    folder = made(tmp_path / "run", [attrs.evolve(half, voxel_size=1.0) for half in halves])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a voxel size of exactly 1 Å is told where the halves are read
        run = Run.of(folder)
    assert run.restored.voxel_size == 1


def test_what_is_no_run_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert re.fullmatch(r"error: .* has no run\.json and restored\.mrc; .*\n", capsys.readouterr().err)
    (tmp_path / "report.html").write_text("<html>")
    with pytest.raises(InputFileError, match="no report"):
        read_report(tmp_path / "report.html")


def test_likelihoods_have_a_page_whatever_the_files_are_called(tmp_path, capsys):
    name = b"odd\xff.mrc".decode("utf-8", "surrogateescape")
    record = {"program": "likelihood.py", "command": f"likelihood.py {name}", "settings": {"maps": [name]}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    table = f"map,voxels,bits_per_voxel,standard_error_bits_per_voxel\n{name},8,-1.5,0.123456789\nother.mrc,8,2,nan\n"
    (tmp_path / "likelihood.csv").write_text(table, encoding="utf-8", errors="surrogateescape")
    page = write_report(tmp_path, cubes={name: np.arange(8.0), "other.mrc": np.ones(8)})
    before = read_report(page)
    assert before["verdict"] == f"Of 2 maps the likeliest is {name}, with -1.5 ± 0.12346 bits per voxel."
    assert [len(series["x"]) for series in before["figures"][0]["series"]] == [80, 80]
    assert "odd?.mrc" in page.read_text(encoding="utf-8")
    assert Page(page.read_text()).open == []
    assert not (tmp_path / "open.cxc").exists()
    assert main([str(tmp_path)]) == 0
    assert read_report(page) == before  # its cubes are not in the folder
    assert main([str(tmp_path), str(tmp_path), "--compare"]) == 2
    assert "not compared" in capsys.readouterr().err


def test_a_page_is_not_overwritten_unasked(run, halves):
    with pytest.raises(OutputExistsError):
        write_report(run, halves=halves)


def test_without_jinja2_it_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    environment.cache_clear()
    with pytest.raises(MissingExtraError, match=r"cryofm-io\[report\]"):
        write_report(run, overwrite=True)


# The words of ChimeraX's documented commands that the file may use, and the options that each takes.
COMMANDS = {
    "open": set(),
    "set": {"bgColor"},
    "lighting": {"soft"},
    "volume": {"style", "step", "level", "color", "transparency"},
    "hide": {"models"},
    "color": {"sample", "map", "palette"},
    "marker": {"position", "radius", "color"},
    "view": set(),
}


def test_commands_for_chimerax_are_those_of_its_documentation(run):
    lines = (run / "open.cxc").read_text().splitlines()
    used = [line.split() for line in lines if not line.startswith("#")]
    for name, *words in used:
        assert {word for word in words if re.fullmatch("[a-zA-Z]+", word)} - {"white", "surface"} <= COMMANDS[name]
    opened = [words[1] for words in used if words[0] == "open"]
    assert all((run / name).is_file() for name in opened)
    levels = {line.split("level ")[1] for line in lines if " level " in line}
    assert len(levels) == 1  # equal contours
    assert float(levels.pop()) < read_map(run / "restored.mrc").data.max()


def test_commands_without_linear_or_spread():
    content = {"level": 1.0, "volumes": [], "places": None}
    text = chimerax_commands(content, ["restored.mrc"])
    assert text.splitlines()[-1] == "view #1"
    assert "color sample" not in text


@pytest.fixture
def models(tmp_path, halves):
    """The folder of a script that makes models, with poses all about the z axis but one."""
    angles = np.array([[0, 90, 0], [90, 90, 0], [0, 0, 0], [0, 150, 0]])
    rng = np.random.default_rng(0)
    images = ImageStack(rng.normal(size=(4, 12, 12)), 3.0)
    write_map(tmp_path / "images.mrcs", DensityMap(images.data, 3.0))
    poses = Poses.from_angles(angles, shifts=np.zeros((4, 2)))
    write_poses(tmp_path / "poses.star", read_images(tmp_path / "images.mrcs"), poses)
    for i in (1, 2):
        write_map(tmp_path / f"model_0{i}.mrc", halves[i - 1])
    (tmp_path / "scores.csv").write_text("model,misfit,poses_from_the_best_deg\nmodel_01,1.5,0.0\nmodel_02,1.7,8.0\n")
    (tmp_path / "run.json").write_text(json.dumps({"program": "abinitio.py", "correlations_of_the_best": [0.5, 0.7]}))
    return tmp_path, images.data


def test_models_have_a_page(models):
    folder, images = models
    content = read_report(write_report(folder, pairs=(images, -images)))
    assert content["trusted"] is True
    assert [volume["name"] for volume in content["volumes"]] == ["model_01", "model_02"]
    assert [len(content["sphere"][side]) for side in ("above", "below")] == [3, 1]
    # Views from the side lie on the rim, the one from above in the middle, and 30° off the lower pole is sin 15° · √2.
    radii = sorted(float(np.hypot(*point)) for point in content["sphere"]["above"])
    assert radii == pytest.approx([0, 1, 1], abs=0.01)
    assert np.hypot(*content["sphere"]["below"][0]) == pytest.approx(np.sqrt(2) * np.sin(np.radians(15)), abs=0.01)
    shown = np.frombuffer(zlib.decompress(base64.b64decode(content["pairs"]["data"])), np.uint8).reshape(4, 2, 12, 12)
    assert np.corrcoef(shown[2, 0].ravel(), images[2].ravel())[0, 1] > 0.999
    assert np.corrcoef(shown[2, 1].ravel(), images[2].ravel())[0, 1] < -0.999
    assert Page((folder / "report.html").read_text()).open == []


def test_the_verdict_of_models_is_the_run_s_and_images_that_were_left_out_are_named(models):
    """Two models that agree are not determined where the run says so."""
    folder, images = models
    verdict = {"chains_that_agree": 1, "chains": 7, "predicted_to_angstrom": 23.04, "determined": False}
    why = {"3@c": "models of the others predict it with a correlation of 0.21"}
    record = {"program": "abinitio.py", **verdict, "left_out_because": why, "doubtful": ["5@c"], "note": "Either hand."}
    (folder / "run.json").write_text(json.dumps(record))
    content = read_report(write_report(folder, pairs=(images, images)))
    assert content["trusted"] is False
    assert content["verdict"] == (
        "1 of 7 other chains came to the best one's poses, and images that were left out are predicted to 23.0 Å: "
        "the model is in doubt."
    )
    assert content["warnings"] == [
        "3@c was left out: models of the others predict it with a correlation of 0.21.",
        "5@c is hardly predicted by the others.",
        "Either hand.",
    ]


def test_models_that_disagree_are_in_doubt_and_images_are_kept(models, capsys):
    folder, images = models
    before = read_report(write_report(folder, pairs=(images, images)))
    (folder / "scores.csv").write_text("model,misfit,poses_from_the_best_deg\nmodel_01,1.5,0.0\nmodel_02,1.7,80.0\n")
    assert main([str(folder)]) == 0
    after = read_report(folder / "report.html")
    assert after["trusted"] is False
    assert after["pairs"] == before["pairs"]
    assert main([str(folder), str(folder), "--compare"]) == 2
    assert "not compared" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser():
    """Chromium, drawing surfaces without a graphics card."""
    api = pytest.importorskip("playwright.sync_api")
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
    with api.sync_playwright() as started:
        try:
            found = started.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        except api.Error as error:
            pytest.skip(f"no chromium: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_in_a_browser_slices_move_and_the_surface_turns(browser, run, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, fetched = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    page.goto((run / "report.html").as_uri())
    page.wait_for_function("document.querySelector('#view').toDataURL().length > 2000")  # more than one colour

    def seen(selector):
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return page.eval_on_selector_all(selector, "every => every.map((one) => one.toDataURL())")

    def changed(selector, act):
        before = seen(selector)
        act()
        return [a != b for a, b in zip(before, seen(selector), strict=True)]

    panes, view = "#panes canvas", page.locator("#view")
    place = page.inner_text("#place-out")
    assert page.locator("#panes figcaption").all_inner_texts() == ["input", "linear", "restored", "uncertainty"]
    for act in (
        lambda: page.focus("#place") or page.keyboard.press("ArrowRight"),
        lambda: page.check("[name=axis][value=x]"),
        lambda: page.locator(".go").first.click(),
    ):
        assert all(changed(panes, act))
        assert place != (place := page.inner_text("#place-out"))
    at = read_report(run / "report.html")["places"][0]["position"]
    assert float(place.split()[2]) == pytest.approx(at[0], abs=0.8)

    def drag():
        box = view.bounding_box()
        page.mouse.move(box["x"] + 90, box["y"] + 90)
        page.mouse.down()
        page.mouse.move(box["x"] + 150, box["y"] + 120)
        page.mouse.up()

    for act in (
        lambda: view.scroll_into_view_if_needed() or drag(),
        lambda: view.press("ArrowLeft"),
        lambda: page.fill("#level", "200"),
        lambda: page.fill("#zoom", "2"),
    ):
        assert changed("#view", act) == [True]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []
    assert all(url.startswith(("file:", "blob:", "data:")) for url in fetched)
    page.close()
