"""STAR files are read whatever their dialect, encoding and capitals; what is written is read, whatever it says."""

import gzip
import os
import subprocess
import sys

import attrs
import numpy as np
import pytest
import raw_mrc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryofm_io import CryoFMError, InputFileError, MapWarning, Poses, read_images, write_poses
from cryofm_io.star_text import quoted, read_star, tokens

DATA = np.random.default_rng(5).normal(size=(2, 6, 6)).astype(np.float32)
OPTICS = """data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
1 1.5 300 2.7 0.1

"""
PARTICLES = """data_particles

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnOpticsGroup #3
_rlnDefocusU #4
1@views.mrcs MICROGRAPH 1 9000
2@views.mrcs MICROGRAPH 1 8000

"""
TEXT = OPTICS + PARTICLES


@pytest.fixture
def read(tmp_path):
    """A function that reads the two images that a STAR file of this content lists."""
    raw_mrc.write(tmp_path / "views.mrcs", DATA, cell=(18.0, 18.0, 3.0))

    def read(content, name="images.star"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_images(path)

    return read


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.encode("utf-16"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("MICROGRAPH", "mé.mrc").encode("latin-1"),
        TEXT.replace("MICROGRAPH", "東京/μ.mrc").encode(),
        TEXT.replace("data_optics", "data_Optics").replace("_rlnImageName", "_RLNimageName").encode(),
        TEXT.replace("loop_", "LOOP_").replace("data_", "DATA_").encode(),
        *(
            TEXT.replace("MICROGRAPH", value).encode()
            for value in (
                "data_1/m.mrc",
                "save_a",
                "_m",
                "$mic1",
                "#1",
                "'a b'",
                "'tis",
                "it's",
                '"',
                "loop_",
                "?",
                ";",
            )
        ),
    ],
)
def test_dialects(read, content):
    stack = read(content)
    assert np.array_equal(stack.data, DATA)
    assert stack.voxel_size == 1.5
    assert stack.ctf.defocus_u_angstrom.tolist() == [9000, 8000]


def test_capital_endings_and_gzip(read):
    assert len(read(TEXT, "IMAGES.STAR")) == 2
    assert len(read(gzip.compress(TEXT.encode()), "images.STAR.GZ")) == 2


@pytest.mark.parametrize("value", ["data_1@views.mrcs", "_1", "$1", "#1", "save_1"])
def test_first_in_the_row(read, value):
    columns = "_rlnMicrographName #1\n_rlnImageName #2\n_rlnOpticsGroup #3\n"
    rows = "".join(f"{value} {i}@views.mrcs 1\n" for i in (1, 2))
    assert np.array_equal(read(f"{OPTICS}data_particles\n\nloop_\n{columns}{rows}").data, DATA)


def test_comments_pairs_and_a_loop_of_one_column(read):
    text = "# made by hand\ndata_\n_rlnPixelSize 1.5 # Å\nloop_ # names\n_rlnImageName\n"
    text += "1@views.mrcs\n2@views.mrcs\ndata_x\n_a b\n"
    assert read(text).voxel_size == 1.5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2@views.mrcs MICROGRAPH 1", "2@views.mrcs 1", r"line 19: 3 values for 4 columns of data_particles"),
        ("data_optics", "hello", "not a readable STAR file"),
        ("1@views", "9" * 5000 + "@views", "expected a number before @"),
        ("1@views", "٣٣@views", "there is no image 33"),
        ("1@views.mrcs", "1@" + "a" * 5000, "which is neither in"),
        ("1@views.mrcs", "1@a\0b", "which is neither in"),
        (" 300 ", " 300000 ", r"rlnVoltage is 300000 in row 1 \(1@views\.mrcs\); expected 10 to 3000 kV"),
        (" 300 ", " 0 ", r"rlnVoltage is 0 in row 1"),
        (" 9000", " nan", r"rlnDefocusU is nan in row 1"),
        (" 8000", " inf", r"rlnDefocusU is inf in row 2"),
        (" 2.7 ", " nan ", r"rlnSphericalAberration is nan in row 1"),
        (" 0.1\n", " 10\n", r"rlnAmplitudeContrast is 10 in row 1"),
        (" 8000", " 1e999", r"rlnDefocusU is inf in row 2"),
        (" 8000", " low", r"rlnDefocusU in data_particles holds no number in row 2 \('low'\)"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_row(read, old, new, message):
    assert TEXT.count(old) == 1
    with pytest.raises(InputFileError, match=message) as caught:
        read(TEXT.replace(old, new))
    assert "images.star" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (OPTICS + PARTICLES + PARTICLES, "two tables data_particles list images; join them"),
        (OPTICS + PARTICLES + PARTICLES.replace("data_particles", ""), "data_particles has rlnimagename twice"),
        (OPTICS + PARTICLES.replace("_rlnMicrographName", "_rlnImageName"), "data_particles has rlnimagename twice"),
    ],
)
def test_nothing_that_is_listed_is_lost(read, content, message):
    with pytest.raises(InputFileError, match=message):
        read(content)


@pytest.mark.slow
def test_bytes_of_any_kind(read):
    for content in (bytes(5000), b"\xff" * 5000, gzip.compress(b"\n" * 2**27), b"data_" * 10**5, b"' " * 10**5):
        with pytest.raises(InputFileError, match=r"images\.star"):
            read(content)
    with pytest.raises(InputFileError, match="100000 values for 1 columns"):
        read(b"data_a\nloop_\n_x\n" + b"'a " * 10**5)  # a quote that never ends


@pytest.mark.parametrize("magnification", ["0", "nan"])
def test_magnification_of_nothing_states_no_pixel_size(read, magnification):
    head = "data_\n\nloop_\n_rlnImageName #1\n_rlnMagnification #2\n_rlnDetectorPixelSize #3\n"
    rows = "".join(f"{i}@views.mrcs {magnification} 5.0\n" for i in (1, 2))
    with pytest.warns(MapWarning, match=r"images\.star: .*rlnMagnification gives .* in row 1"):
        assert read(head + rows).voxel_size == 3  # the stack's


def test_tilt_series_name_what_makes_volumes_of_them(read):
    flag = "data_general\n\n_rlnTomoSubTomosAre2DStacks 1\n\n"
    with pytest.raises(InputFileError, match="relion_tomo_subtomo without --stack2d, or WarpTools"):
        read(flag + TEXT.replace("1@", "").replace("2@", ""))
    dimensions = TEXT.replace("_rlnVoltage", "_rlnImageDimensionality #9\n_rlnVoltage").replace("1 1.5 ", "1 1.5 3 ")
    with pytest.raises(InputFileError, match="3-D subtomograms"):
        read(dimensions)


@settings(max_examples=500)
@given(st.text(st.characters(blacklist_categories=["Cs"])))
@pytest.mark.parametrize("at", ["alone", "between"])
@pytest.mark.slow
def test_any_text_that_a_star_file_can_hold(tmp_path_factory, at, value):
    path = tmp_path_factory.getbasetemp() / "any.star"
    try:
        written = quoted(value)
    except CryoFMError:
        assert {"\n", "\r"} & set(value) or ({"' ", "'\t"} and {"'", '"'} <= set(value))
        return
    before, after = ("", "") if at == "alone" else ("5\t", "\t7")
    assert tokens(f"{before}{written}{after}") == [*before.split(), value, *after.split()]
    columns = {"alone": ["name"], "between": ["a", "name", "b"]}[at]
    heads = "".join(f"_{column} #{i}\n" for i, column in enumerate(columns, 1))
    line = f"{before}{written}{after}\n"
    path.write_bytes(f"data_a\n\nloop_\n{heads}{line}{line}\n\ndata_b\n\n_c d\n".encode())
    first, second = read_star(path, ["name", "c"])
    assert first.column("name") == [value, value]
    assert second.column("c") == ["d"]


NAMES = [
    "..mrcs",
    "it's.mrcs",
    "a b.mrcs",
    "a\tb.mrcs",
    'say "a".mrcs',
    "größe 東京.mrcs",
    "data_1.mrcs",
    "#1.mrcs",
    "$1.mrcs",
]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="/@"), min_size=1, max_size=30))
@pytest.mark.slow
def test_poses_of_images_of_any_name(tmp_path, monkeypatch, name):
    check_round_trip(tmp_path, monkeypatch, name + ".mrcs")


@pytest.mark.parametrize("name", NAMES)
def test_poses_of_images_of_these_names(tmp_path, monkeypatch, name):
    check_round_trip(tmp_path, monkeypatch, name)


def check_round_trip(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    try:
        raw_mrc.write(tmp_path / name, DATA)
    except OSError:  # too long for the file system
        return
    images = read_images(name)
    poses = Poses.from_angles([[1, 2, 3], [4, 5, 6]], [[0, 0], [1, 1]])
    try:
        write_poses(tmp_path / "run" / "poses.star", images, poses, overwrite=True)
    except CryoFMError:  # that it has to be is tested above
        return
    assert read_images("run/poses.star").names == images.names
    monkeypatch.chdir("/")
    assert np.array_equal(read_images(tmp_path / "run" / "poses.star").data, DATA)


def test_names_are_written_as_seen_from_the_star_file(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "work").mkdir()
    raw_mrc.write(tmp_path / "data" / "a.mrcs", DATA)
    monkeypatch.chdir(tmp_path / "work")
    images = read_images("../data/a.mrcs")
    write_poses("run/poses.star", images, Poses.from_angles(np.zeros((2, 3)), np.zeros((2, 2))))
    assert "\n000001@../../data/a.mrcs\t" in (tmp_path / "work/run/poses.star").read_text(encoding="utf-8")
    monkeypatch.chdir("/")
    assert np.array_equal(read_images(tmp_path / "work/run/poses.star").data, DATA)


def test_a_name_with_bytes_that_are_no_utf_8(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"m\xe9.mrcs")
    try:
        raw_mrc.write(tmp_path / name, DATA)
    except OSError:
        pytest.skip("this file system holds only names in UTF-8")
    images = read_images(name)
    write_poses("poses.star", images, Poses.from_angles(np.zeros((2, 3)), np.zeros((2, 2))))
    assert b"1@m\xe9.mrcs" in (tmp_path / "poses.star").read_bytes()
    assert read_images("poses.star").names == images.names
    with pytest.raises(CryoFMError, match="no text that a STAR file can hold"):
        quoted("\ud800")
    names = ["a", "b\nc"]
    with pytest.raises(CryoFMError, match="no way to quote it"):
        write_poses("b.star", attrs.evolve(images, names=names), Poses.from_angles(np.zeros((2, 3)), np.zeros((2, 2))))


@pytest.mark.parametrize("encoding", ["ascii", "cp932", "latin-1"])
@pytest.mark.slow
def test_the_locale_does_not_matter(tmp_path, encoding):
    """Python asks the locale only where no encoding is given."""
    code = """
import io, builtins, pathlib, numpy as np, cryofm_io as c
stack = c.ImageStack(np.arange(72.).reshape(2, 6, 6), 1.5, ["1@größe.mrcs", "2@größe.mrcs"])
c.write_poses("p.star", stack, c.Poses.from_angles(np.zeros((2, 3)), np.zeros((2, 2))))
assert "größe" in open("p.star", encoding="utf-8").read()
from cryofm_io.star_text import read_star
assert read_star(pathlib.Path("p.star"), ["rlnImageName"])[1].column("rlnImageName") == list(stack.names)
c.write_fsc_csv("f.csv", {"größer, 3 Å": c.FscCurve(np.array([.1]), np.array([.5]), np.array([18]))})
assert "größer" in open("f.csv", encoding="utf-8").read()
"""
    environment = os.environ | {"PYTHONWARNDEFAULTENCODING": "1", "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    environment |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    script = tmp_path / "script.py"
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, "-W", "error::EncodingWarning:cryofm_io", str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
