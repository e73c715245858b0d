"""Flags of several scripts mean the same in all; a TOML file sets them as the line does; --dry-run does nothing."""

import argparse
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cryofm_io import DensityMap, Poses, read_images, write_map, write_poses
from cryofm_ops import random_rotations

script = pytest.importorskip("_command_line")
NAMES = (
    "denoise",
    "anisotropic",
    "missing_wedge",
    "abinitio",
    "sample_prior",
    "likelihood",
    "large_map",
    "enhance",
    "particles",
    "custom_operator",
)
EXAMPLES = Path(__file__).parents[1] / "examples"
TABLE = EXAMPLES.parent / "docs" / "flags.md"
OWN_DEFAULT = {"--steps", "--samples", "--side", "--tilt-min", "--tilt-max", "--prior"}  # of each task
# What abinitio.py, whose data are images, and enhance.py, whose recipe is the published one, mean by themselves.
OWN = {"abinitio": {"--algorithm", "--max-push", "--poses"}, "enhance": {"--b-factor"}}


def parser_of(name, monkeypatch):
    """The parser that a script makes."""
    if name == "custom_operator":
        return importlib.import_module(name).parser
    made = []

    def parse_args(self, *_, **__):
        made.append(self)
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        module = importlib.import_module(name)
        with pytest.raises(SystemExit):
            module.parse([]) if hasattr(module, "parse") else module.main()
    return made[0]


def flags(monkeypatch):
    """By name, of every script that has it."""
    found = {}
    for name in NAMES:
        for action in parser_of(name, monkeypatch)._actions:
            for flag in action.option_strings:
                if flag.startswith("--") and flag != "--help":
                    found.setdefault(flag, {})[name] = action
    return found


ALL_HELP = """
import runpy, sys
for path in sys.argv[1:]:
    for flag, status in (("--help", 0), ("--no-such-flag", 2)):
        sys.argv = [path, flag]
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as stop:
            assert (stop.code or 0) == status, path
        else:
            raise AssertionError(path)
        ours = {"cryofm_io", "cryofm_ops", "cryofm_model", "cryofm_sampling"}
        heavy = ({"torch", "numpy", "scipy"} | ours) & {*sys.modules}
        assert not heavy, (path, flag, heavy)
"""


def test_help_and_a_wrong_flag_import_nothing_heavy():
    paths = sorted(EXAMPLES.glob("[!_]*.py")) + sorted(EXAMPLES.glob("archive/*.py"))
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES)}
    command = [sys.executable, "-c", ALL_HELP, *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == done.stderr.count("usage: ") == len(paths) > 20


def test_samples_take_as_many_evaluations_as_is_said():
    from _flags import EVALUATIONS

    from cryofm_sampling import PosteriorFlow

    assert PosteriorFlow().nfe == EVALUATIONS


def test_shared_flags_mean_the_same(monkeypatch):
    for flag, every in flags(monkeypatch).items():
        scripts = [action for name, action in every.items() if flag not in OWN.get(name, ())]
        for what in ("nargs", "choices", "required", *(() if flag in OWN_DEFAULT else ("default",))):
            assert len({str(getattr(action, what)) for action in scripts}) <= 1, (flag, what)
        kinds = {getattr(action.type, "__name__", str(action.type)) for action in scripts}
        assert len(kinds) <= 1, flag


def test_shared_flags_are_in_the_table(monkeypatch):
    rows = dict(re.findall(r"^\| `(--[\w-]+)` \| ([^|]*) \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE))
    found = flags(monkeypatch)
    assert {flag for flag, scripts in found.items() if len(scripts) > 1} <= set(rows)
    for flag, scripts in rows.items():
        assert scripts == ("all" if len(found[flag]) == len(NAMES) else ", ".join(found[flag])), flag


NUMBERS = {  # of each kind of value, what it takes, and beside NaN, infinities and words what it does not
    "above_zero": (("1e-9", "7"), ("0", "-1", "1e16")),
    "b_factor": (("0", "-50", "300"), ("1e5", "-1e5")),
    "fraction": (("0", "0.3", "1"), ("-0.1", "1.1")),
    "from_zero": (("0", "2.5"), ("-1", "1e16")),
    "half_angle": (("5", "45"), ("0", "4", "46", "-10")),
    "images": (("1", "2000000"), ("0", "-1", "1e3", "9" * 30)),
    "length": (("0.5", "300"), ("0", "-1", "0.001", "1e5")),
    "natural": (("0", "3"), ("-1", "1.5", "1000000")),
    "number": (("-2", "0", "1e6"), ("1e16", "-1e16")),
    "part": (("0.2", "1"), ("0", "-0.2", "1.1")),
    "positive": (("1", "3"), ("0", "-1", "1.5", "1000000", "9" * 30)),
    "processes": (("1", "16"), ("0", "-1", "2000")),
    "seed": (("0", "9"), ("-1", "1.5", "9" * 30)),
    "side": (("8", "96"), ("0", "-8", "7", "5000")),
    "tilt": (("-60", "0", "90"), ("-91", "180")),
    "width": (("0", "12"), ("-1", "1e5")),
}
ALL = sorted(path.stem for path in EXAMPLES.glob("[!_]*.py"))


@pytest.mark.parametrize("name", ALL)
def test_numbers_that_make_no_sense_are_refused(name, monkeypatch, capsys):
    parser = parser_of(name, monkeypatch)
    others = {"Path", "named_folder", "state_file", "symmetry"}
    for action in parser._actions:
        kind = getattr(action.type, "__name__", None)
        if action.type is None or kind in others:
            continue
        assert action.option_strings, (name, action.dest)
        good, bad = NUMBERS[kind]  # float and int are no kinds: they take NaN, and any number of zeros
        for text in good:
            assert action.type(text) == float(text), (action.dest, text)
        for text in (*bad, "nan", "-nan", "inf", "-inf", "1e400", "", "a", "1,5"):
            flag = action.option_strings[0]
            line = [f"{flag}={text}"] if action.nargs is None else [flag, *[text] * action.nargs]
            with pytest.raises(SystemExit) as stop:
                parser.parse_args(line)
            said = capsys.readouterr().err.splitlines()[-1]
            assert stop.value.code == 2, (action.dest, text)
            assert f"argument {'/'.join(action.option_strings)}: " in said, (text, said)


@pytest.mark.parametrize("name", ["missing_wedge", "large_map"])
def test_tilts_have_something_between_them(name, capsys):
    line = ["a.mrc", "--out", "o", "--tilt-min", "30", "--tilt-max", "-30"]
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).parse([*line, *(["--state", "s"] if name == "large_map" else [])])
    assert stop.value.code == 2
    assert "--tilt-min and --tilt-max: 30 to -30 degrees" in capsys.readouterr().err


def test_a_file_sets_flags_as_the_line_does(tmp_path):
    import denoise

    (tmp_path / "s.toml").write_text('steps = 5\n"b-factor" = 40\nhalves = true\nscale = 0.5\n')
    line = ["--out", "o", "--settings", str(tmp_path / "s.toml")]
    by_line = ["--out", "o", "--steps", "5", "--b-factor", "40", "--halves", "--scale", "0.5"]
    found, wanted = vars(denoise.parse([*line])), vars(denoise.parse(by_line))
    assert found | {"settings": None} == wanted
    assert denoise.parse([*line, "--steps", "9"]).steps == 9  # what comes after it wins


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz = 4", "no flag --stepz"),
        ("steps = 'a'", "argument --steps"),
        ("steps = [1, 2]", "2 values"),
        ("steps = true", "steps must be a value"),
        ("halves = 1", "halves must be true or false"),
        ("algorithm = 'best'", "invalid choice"),
        ("steps = ", "s.toml"),
        ("settings = 'other.toml'", "no flag --settings"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, capsys, text, said):
    import denoise

    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        denoise.parse(["--out", "o", "--settings", str(tmp_path / "s.toml")])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def made(monkeypatch):
    """Evaluations of networks, forward and backward, of single boxes."""
    from torch.nn.modules.module import register_module_forward_hook

    counts = []

    def count(module, inputs, output):
        if type(module).__name__ in ("UNet", "UNet3D"):
            counts.append(len(output))
            if output.requires_grad:
                output.register_hook(lambda gradient: counts.append(len(gradient)))

    hook = register_module_forward_hook(count)
    yield counts
    hook.remove()


@pytest.fixture
def call(monkeypatch, small_prior, tmp_path):
    """A script with these arguments, in a folder where there are some images of 24² pixels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("custom_operator.check_operator", lambda _: [])  # which takes seconds
    monkeypatch.setattr("custom_operator.demo_map", lambda **_: DensityMap(np.eye(24)[:, :, None] * np.ones(24), 1.5))

    def call(name, *arguments):
        module = importlib.import_module(name)
        if name in ("abinitio", "particles") and not Path("some.star").exists():
            images = np.random.default_rng(0).normal(0, 0.1, (6, 24, 24))
            images[:, 8:16, 8:16] += 1
            write_map(Path("some.mrcs"), DensityMap(images, 1.5))
            poses = Poses(random_rotations(6, generator=torch.Generator().manual_seed(0)).numpy(), np.zeros((6, 2)))
            write_poses(Path("some.star"), read_images(Path("some.mrcs")), poses)
        known = () if "--prior" in arguments else ("--prior", small_prior)
        monkeypatch.setattr("sys.argv", [f"{name}.py", *map(str, (*arguments, "--out", "out", *known))])
        return script.exit_code(module.main)

    return call


HALVES = ("--scale", 1, "--b-factor", 0, "--steps", 2)
PAPER = ("--mask-diameter", 26, "--tries", 2, "--steps", 2, "--algorithm", "paper")
RUNS = {
    "denoise": ("denoise", "halves", *HALVES),
    "denoise, samples": ("denoise", "halves", *HALVES, "--samples", 1),
    "denoise, paper": ("denoise", "halves", *HALVES, "--algorithm", "paper"),
    "anisotropic": ("anisotropic", "halves", *HALVES),
    "missing_wedge": ("missing_wedge", "half", "--scale", 1, "--steps", 2),
    "sample_prior": ("sample_prior", "--number", 2, "--side", 16, "--steps", 2),
    "likelihood": ("likelihood", "half", "--side", 16, "--steps", 1),
    "abinitio, paper": (
        "abinitio",
        "some.mrcs",
        "--mask-diameter",
        26,
        "--tries",
        1,
        "--steps",
        2,
        "--algorithm",
        "paper",
    ),
    "enhance": ("enhance", "half", "--prior", "conditional", "--steps", 2),
    "custom_operator": ("custom_operator", "--steps", 1, "--samples", 1),
    "large_map": ("large_map", "halves", *HALVES, "--state", "state"),
}


@pytest.mark.parametrize("what", RUNS)
def test_a_dry_run_counts_the_evaluations_of_the_run_and_leaves_nothing(
    call, made, half_maps, conditional, tmp_path, capsys, what
):
    known = {"halves": half_maps, "half": half_maps[:1], "conditional": [conditional]}
    line = [word for one in RUNS[what] for word in known.get(one, [one])]
    before = {path.name for path in tmp_path.iterdir()}
    assert call(*line, "--dry-run") == 0
    assert {path.name for path in tmp_path.iterdir()} - before <= {"some.mrcs", "some.star"}
    said = capsys.readouterr().out
    assert re.search(r"needs about .* of memory, .* on disk", said)
    count = int(re.search(r" s here and now: [\d.e-]+ min for (\d+) evaluations", said)[1])
    made.clear()
    assert call(*line) in (0, 3)
    once = 2 if "paper" in what or what == "likelihood" else 1  # of a small cube, whose memory is measured
    assert sum(made) == count + once


def test_a_dry_run_says_about_how_many_where_the_data_choose(call, tmp_path, capsys):
    for line in (("particles", "some.star", "--mask-diameter", 26), ("likelihood", "--side", 16)):
        assert call(*line, "--dry-run") == 0
        assert re.search(r" min for (about \d+ evaluations|\d+ .* and some \d+)", capsys.readouterr().out)
    assert {path.name for path in tmp_path.iterdir()} == {"some.mrcs", "some.star"}


def test_a_dry_run_leaves_a_state_as_it_is(call, half_maps, tmp_path, capsys, monkeypatch):
    import large_map

    line = ("large_map", *half_maps, *HALVES, "--state", "state")

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(large_map.Job, "found", stop)
        assert call(*line) == 130
    before = {path.name: path.read_bytes() for path in (tmp_path / "state").iterdir()}
    assert call(*line, "--dry-run") == 0
    assert call(*line, "--dry-run", "--seed", 1) == 2
    assert "belongs to another run (settings)" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "state").iterdir()} == before
