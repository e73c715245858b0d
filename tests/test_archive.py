"""The archive's parts without Snakemake: its table, what the workflow calls, states and report."""

import csv
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "archive"
spec = importlib.util.spec_from_file_location("archive", FOLDER / "archive.py")
archive = importlib.util.module_from_spec(spec)
spec.loader.exec_module(archive)
RUN = {
    "half_map_fsc_auc": 0.5,
    "restored_to_angstrom": 3.25,
    "scale": 1.5,
    "b_factor": 60.0,
    "slope_of_the_other_half": 0.98,
    "held_out": {"gain": 0.1},
}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "entries.csv"
    path.write_text(
        "name,half1,half2,b_factor,mask\none,a/1.mrc,a/2.mrc,80,m.mrc\ntwo,/b/1.mrc,/b/2.mrc,,\nthree,c,d,0,\n"
    )
    return path


def test_a_table_says_files_and_flags(table, tmp_path):
    found = archive.entries(table)
    assert list(found) == ["one", "two", "three"]
    assert found["one"]["half1"] == str(tmp_path / "a" / "1.mrc")
    assert found["two"]["half2"] == "/b/2.mrc"
    assert archive.flags(found["one"]) == ["--b-factor", "80", "--mask", str(tmp_path / "m.mrc")]
    assert archive.flags(found["two"]) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,half1\na,b\n", "needs the columns"),
        ("name,half1,half2\n", "and a row"),
        ("name,half1,half2\n../a,b,c\n", "a name is letters"),
        ("name,half1,half2\na,b,c\na,d,e\n", "more than one entry has the name a"),
    ],
)
def test_a_table_that_is_none_is_refused(table, text, said):
    table.write_text(text)
    with pytest.raises(ValueError, match=said):
        archive.entries(table)


def test_what_the_workflow_calls_is_there():
    """The lines of the Snakefile, with something in every brace, are command lines of `archive.py`."""
    text = (FOLDER / "Snakefile").read_text()
    shell = "".join(re.findall(r'"(OMP_NUM_THREADS.*|\s--name.*)"', text))
    command = shlex.split(re.sub(r"\{[\w.]+(:q)?\}", "some", shell).split(">")[0])
    args = archive.parse(command[3:])
    assert (args.job, args.name, args.flags) == (archive.restore, "some", ["some"])
    (command,) = re.findall(r'REPORT = f"(.*)"', text)
    args = archive.parse(shlex.split(re.sub(r"\{[^}]+\}", "some", command))[2:])
    assert args.job is archive.report
    config = dict(line.split(":", 1) for line in (FOLDER / "config.yaml").read_text().splitlines())
    assert set(re.findall(r"config\[['\"](\w+)", text)) == set(config)


@pytest.fixture
def denoise(monkeypatch, tmp_path):
    """A script in its place, which ends as it is told by the first half's name, and writes what it was given."""
    script = tmp_path / "denoise.py"
    script.write_text(
        "import json, pathlib, sys\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1]); out.mkdir(parents=True)\n"
        f"(out / 'run.json').write_text(json.dumps({RUN!r} | {{'given': sys.argv[1:]}}))\n"
        "status, said = pathlib.Path(sys.argv[1]).read_text().split(' ', 1)\n"
        "print(said, file=sys.stderr); sys.exit(int(status))\n"
    )
    monkeypatch.setattr(archive, "DENOISE", script)


def test_states_and_the_report_of_all(denoise, tmp_path):
    cases = {
        "good": "0 note: fine",
        "bad": "2 error: halves | are equal",
        "doubted": "3 warning: the slope is 3\nwarning: the results are written, and are not to be trusted",
        "let-down": "2 error: out of memory (9 GiB)",
        "mistyped": "2 usage: denoise.py [-h]\ndenoise.py: error: unrecognized arguments: --step",
        "killed": "137 ",
    }
    for name, text in cases.items():
        (tmp_path / name).write_text(text)
    table, out = tmp_path / "entries.csv", tmp_path / "archive"
    table.write_text("name,half1,half2,b_factor\n" + "".join(f"{name},{name},x,7\n" for name in cases))

    def call(*arguments):
        args = archive.parse([arguments[0], "--table", str(table), "--out", str(out), *arguments[1:]])
        return args.job(args)

    statuses = {name: call("restore", "--name", name, "--", "--steps", "2") for name in cases}
    assert statuses == {"good": 0, "bad": 0, "doubted": 0, "let-down": 2, "mistyped": 2, "killed": 137}
    given = json.loads((out / "entries" / "good" / "run.json").read_text())["given"]
    assert given[:2] == [str(tmp_path / "good"), str(tmp_path / "x")]
    assert given[-4:] == ["--b-factor", "7", "--steps", "2"]

    assert call("report") == 0
    with (out / "report.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "good": "restored",
        "bad": "refused",
        "doubted": "in doubt",
        "let-down": "not done",
        "mistyped": "not done",
        "killed": "not done",
    }
    assert rows["good"]["restored to (Å)"] == rows["doubted"]["restored to (Å)"] == "3.25"
    assert rows["bad"]["scale"] == ""
    assert (rows["bad"]["note"], rows["doubted"]["note"]) == ("halves | are equal", "the slope is 3")
    text = (out / "report.md").read_text()
    assert "6 entries: 3 not done, 1 restored, 1 refused, 1 in doubt." in text
    assert r"halves \| are equal" in text
