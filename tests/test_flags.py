"""Flags of several scripts mean the same in all; a TOML file sets them as the line does; --dry-run does nothing."""

import argparse
import importlib
import re
from pathlib import Path

import pytest

script = pytest.importorskip("_command_line")
NAMES = ("denoise", "anisotropic", "missing_wedge", "abinitio", "sample_prior", "likelihood", "large_map", "enhance")
TABLE = Path(__file__).parents[1] / "docs" / "flags.md"
OWN_DEFAULT = {"--steps", "--samples", "--side", "--tilt-min", "--tilt-max", "--prior"}  # of each task
# What abinitio.py, whose data are images, and enhance.py, whose recipe is the published one, mean by themselves.
OWN = {"abinitio": {"--algorithm", "--max-push", "--poses"}, "enhance": {"--b-factor"}}


def parser_of(name, monkeypatch):
    """The parser that a script makes."""
    made = []

    def parse_args(self, *_, **__):
        made.append(self)
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(SystemExit):
            importlib.import_module(name).parse([])
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


def test_shared_flags_mean_the_same(monkeypatch):
    for flag, every in flags(monkeypatch).items():
        scripts = [action for name, action in every.items() if flag not in OWN.get(name, ())]
        for what in ("nargs", "choices", "required", *(() if flag in OWN_DEFAULT else ("default",))):
            assert len({str(getattr(action, what)) for action in scripts}) <= 1, (flag, what)
        kinds = {
            getattr(action.type, "__name__", str(action.type)).replace("above_zero", "float") for action in scripts
        }
        assert len(kinds) <= 1, flag


def test_shared_flags_are_in_the_table(monkeypatch):
    rows = dict(re.findall(r"^\| `(--[\w-]+)` \| ([^|]*) \|", TABLE.read_text(encoding="utf-8"), re.MULTILINE))
    shared = {flag for flag, scripts in flags(monkeypatch).items() if len(scripts) > 1}
    assert shared <= set(rows)
    for flag in rows:
        assert flag in flags(monkeypatch)


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


def test_a_dry_run_says_what_it_takes_and_does_nothing(run, half_maps, tmp_path, capsys):
    assert run(*half_maps, "--out", tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert re.search(r"of memory, .* on disk", said)
    assert re.search(r"evaluation of the network .* s here and now", said)
    assert not (tmp_path / "out").exists()
