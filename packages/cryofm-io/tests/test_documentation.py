"""The examples in docstrings and in the README run."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import cryofm_io

MODULES = [info.name for info in pkgutil.walk_packages(cryofm_io.__path__, "cryofm_io.")]
README = Path(__file__).parents[1] / "README.md"
EXTRAS = {"plots": "matplotlib", "simulate": "gemmi", "model_map": "gemmi", "report": "jinja2"}


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name, tmp_path, monkeypatch):
    if extra := EXTRAS.get(name.split(".")[1]):
        pytest.importorskip(extra)
    monkeypatch.chdir(tmp_path)  # examples write files
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(importlib.import_module(name), optionflags=flags).failed == 0


def test_every_public_function_has_an_example():
    functions = [f for name in cryofm_io.__all__ if inspect.isfunction(f := getattr(cryofm_io, name))]
    # a simulated map needs a file with an atomic model, a report the folder of a run
    without = {f.__name__ for f in functions if ">>>" not in (f.__doc__ or "")}
    assert without <= {"simulate_density", "write_report"}


def test_readme(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)


def test_readme_names_everything_public():
    text = README.read_text()
    assert [name for name in cryofm_io.__all__ if f"`{name}" not in text] == []
