"""Flags of several scripts mean the same in all; a TOML file sets them as the line does; --dry-run does nothing."""

import argparse
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

script = pytest.importorskip("_command_line")
NAMES = ("denoise", "anisotropic", "missing_wedge", "abinitio", "sample_prior", "likelihood", "large_map", "enhance")
EXAMPLES = Path(__file__).parents[1] / "examples"
TABLE = EXAMPLES.parent / "docs" / "flags.md"
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


@pytest.mark.parametrize("how", [(), ("--samples", "1"), ("--algorithm", "paper")])
def test_a_dry_run_counts_the_evaluations_that_the_run_makes(run, half_maps, tmp_path, capsys, how):
    from torch.nn.modules.module import register_module_forward_hook

    line = (*half_maps, "--out", tmp_path / "out", "--scale", "1", "--b-factor", "0", "--steps", "2", *how)
    assert run(*line, "--dry-run") == 0
    said = int(re.search(r"here and now; (\d+) restore:", capsys.readouterr().out)[1])
    made = []
    hook = register_module_forward_hook(lambda module, *_: made.append(1) if type(module).__name__ == "UNet" else None)
    try:
        assert run(*line) == 0
    finally:
        hook.remove()
    assert len(made) == said + 1  # one of a small cube, whose memory is measured
